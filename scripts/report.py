"""Rank the runs on one page."""

from specforge.cloud.run import told
from specforge.steps.report import FIGURES, report

told(
    snakemake.log[0],
    report,
    evaluations=list(snakemake.input.evaluations),
    manifests=list(snakemake.input.manifests),
    metrics=list(snakemake.input.metrics),
    prep=snakemake.input.prep,
    regenerate=snakemake.input.regenerate,
    cache=snakemake.input.cache,
    config=snakemake.params.config,
    html=snakemake.output.html,
    csv=snakemake.output.csv,
    figures={name: snakemake.output[name] for name in FIGURES},
)
