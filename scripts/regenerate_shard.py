"""One piece of the regeneration, of several that are made independently."""

from specforge.cloud import app
from specforge.cloud.run import run

run(
    app.regenerate_shard,
    backend=snakemake.params.backend,
    log_file=snakemake.log[0],
    source=snakemake.input.source,
    target=snakemake.input.target,
    settings=snakemake.params.settings,
    placement=snakemake.params.placement,
    code=snakemake.params.code,
    shard=int(snakemake.wildcards.shard),
    receipt=snakemake.output.receipt,
    work=snakemake.params.work,
    threads=snakemake.threads,
)
