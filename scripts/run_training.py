"""Train the draft of one (ablation, rate)."""

from specforge.cloud.job import Job
from specforge.cloud.run import run

run(
    Job.of(snakemake),
    target=snakemake.input.target,
    cache=snakemake.input.cache,
    vocab=snakemake.input.vocab,
    cache_summary=snakemake.input.summary,
    ablation=snakemake.wildcards.ablation,
    lr=snakemake.wildcards.lr,
    weights=snakemake.params.weights,
    settings=snakemake.params.settings,
    placement=snakemake.params.placement,
    layers=snakemake.params.layers,
    epochs=snakemake.params.epochs["epochs"],
    wandb=snakemake.params.wandb,
    code=snakemake.params.code,
    draft=snakemake.output.draft,
    metrics=snakemake.output.metrics,
    manifest=snakemake.output.manifest,
    card=snakemake.output.card,
    regenerated=snakemake.params.regenerated,
    work=snakemake.params.work,
    threads=snakemake.threads,
)
