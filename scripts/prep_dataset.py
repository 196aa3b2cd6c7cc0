"""Raw conversations to checked records, split into training and held-out."""

from specforge.cloud.job import Job
from specforge.cloud.run import run

run(
    Job.of(snakemake),
    dataset=snakemake.params.dataset,
    revision=snakemake.params.revision["revision"],
    sample_size=snakemake.params.sample_size,
    split_eval=snakemake.params.split_eval,
    seed=snakemake.params.seed["seed"],
    settings=snakemake.params.settings,
    train=snakemake.output.train,
    test=snakemake.output.get("test"),
    rejected=snakemake.output.rejected,
    summary=snakemake.output.summary,
)
