"""Have a hub model or a local folder ready as the target."""

from specforge.cloud import app
from specforge.cloud.run import run

run(
    app.download_model,
    backend=snakemake.params.backend,
    log_file=snakemake.log[0],
    model=snakemake.params.model,
    skip_download=snakemake.params.skip_download,
    output=snakemake.output.receipt,
)
