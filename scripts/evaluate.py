"""Speculative decoding of held-out prompts with one draft."""

from specforge.cloud.job import Job
from specforge.cloud.run import run

run(
    Job.of(snakemake),
    target=snakemake.input.target,
    draft=snakemake.input.draft,
    prompts=snakemake.input.prompts,
    settings=snakemake.params.settings,
    chat=snakemake.params.chat,
    template=snakemake.params.template,
    ablation=snakemake.wildcards.ablation,
    lr=snakemake.wildcards.lr,
    code=snakemake.params.code,
    output=snakemake.output[0],
    work=snakemake.params.work,
    threads=snakemake.threads,
)
