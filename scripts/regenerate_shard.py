"""One piece of the regeneration, of several that are made independently."""

from specforge.cloud.job import Job
from specforge.cloud.run import run

run(
    Job.of(snakemake),
    source=snakemake.input.source,
    target=snakemake.input.target,
    settings=snakemake.params.settings,
    chat=snakemake.params.chat,
    template=snakemake.params.template,
    placement=snakemake.params.placement,
    code=snakemake.params.code,
    shard=int(snakemake.wildcards.shard),
    receipt=snakemake.output.receipt,
    work=snakemake.params.work,
    threads=snakemake.threads,
)
