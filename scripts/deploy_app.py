"""Deploy the app to Modal."""

from specforge.cloud.deploy import ensure_deployed
from specforge.cloud.run import told

told(
    snakemake.log[0],
    ensure_deployed,
    place=snakemake.params.place,
    output=snakemake.output[0],
)
