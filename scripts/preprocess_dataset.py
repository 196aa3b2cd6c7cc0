"""Conversations to token ids, loss masks and the draft vocabulary."""

from specforge.cloud.job import Job
from specforge.cloud.run import run

run(
    Job.of(snakemake),
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
