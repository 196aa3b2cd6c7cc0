"""Make the tiny target."""

from specforge.cloud.job import Job
from specforge.cloud.run import run

run(
    Job.of(snakemake),
    source=snakemake.input.source,
    settings=snakemake.params.settings,
    max_length=snakemake.params.max_length,
    code=snakemake.params.code,
    output=snakemake.output.receipt,
    weights=snakemake.output.model,
    work=snakemake.params.work,
    threads=snakemake.threads,
)
