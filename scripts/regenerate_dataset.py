"""Every assistant turn written anew by the target."""

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
    output=snakemake.output.data,
    errors=snakemake.output.errors,
    summary=snakemake.output.summary,
    work=snakemake.params.work,
    threads=snakemake.threads,
)
