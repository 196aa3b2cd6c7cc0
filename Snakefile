"""SpecForge OPD: raw conversations, regenerated, tokenized; one draft an (ablation, rate); evaluations; a report."""

from snakemake.utils import min_version

min_version("9.12")


# `--lint` wants an environment named. Jobs use the one that Snakemake runs in (pyproject.toml); --sdm is not supported.
container: "docker://python:3.11"


configfile: "config.yaml"


include: "rules/common.smk"
include: "rules/cloud.smk"
include: "rules/target.smk"
include: "rules/data.smk"
include: "rules/train.smk"
include: "rules/eval.smk"


onstart:
    before_start(workflow, cfg)


rule all:
    default_target: True
    input:
        goals(),
