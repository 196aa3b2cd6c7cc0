"""Every assistant turn written anew by the target."""

from specforge.cloud import app
from specforge.cloud.run import run

run(
    app.regenerate_dataset,
    backend=snakemake.params.backend,
    log_file=snakemake.log[0],
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
