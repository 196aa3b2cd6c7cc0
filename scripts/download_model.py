"""Have a hub model or a local folder ready as the target."""

from specforge.cloud.job import Job
from specforge.cloud.run import run

run(
    Job.of(snakemake),
    model=snakemake.params.model,
    skip_download=snakemake.params.skip_download,
    output=snakemake.output.receipt,
)
