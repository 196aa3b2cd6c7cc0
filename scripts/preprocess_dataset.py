"""Conversations to token ids, loss masks and the draft vocabulary."""

from specforge.cloud import app
from specforge.cloud.run import run

run(
    app.preprocess_dataset,
    backend=snakemake.params.backend,
    log_file=snakemake.log[0],
    source=snakemake.input.source,
    target=snakemake.input.target,
    settings=snakemake.params.settings,
    chat=snakemake.params.chat,
    template=snakemake.params.template,
    max_length=snakemake.params.max_length,
    cache=snakemake.output.cache,
    vocab=snakemake.output.vocab,
    summary=snakemake.output.summary,
    threads=snakemake.threads,
)
