"""Make the tiny target."""

from specforge.cloud import app
from specforge.cloud.run import run

run(
    app.train_tiny_target,
    backend=snakemake.params.backend,
    log_file=snakemake.log[0],
    source=snakemake.input.source,
    settings=snakemake.params.settings,
    max_length=snakemake.params.max_length,
    code=snakemake.params.code,
    output=snakemake.output.receipt,
    weights=snakemake.output.weights,
    work=snakemake.params.work,
    threads=snakemake.threads,
)
