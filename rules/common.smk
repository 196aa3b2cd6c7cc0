"""What rules share: the checked configuration, names, and getters of the params that matter to a rule."""

import os

import psutil
from snakemake.exceptions import WorkflowError

from specforge.config import load_config
from specforge.config.rates import RATE_PATTERN
from specforge.config.schema import NAME
from specforge.errors import UserError
from specforge.fingerprint import code_version
from specforge.sources import source_input, source_version

try:
    cfg = load_config(
        {key: value for key, value in config.items() if key != "pathvars"}
    )
except UserError as error:
    raise WorkflowError(f"config: {error}") from None


wildcard_constraints:
    name=NAME,
    target=NAME,
    prefix=NAME,
    ablation=NAME,
    lr=RATE_PATTERN,


# However many cores are asked for, steps that compute here share this machine's; steps that wait do not count.
for resource, amount in {
    "local_cpus": (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count()
    ),
    "mem_mb": psutil.virtual_memory().total // 2**20,
}.items():
    if resource not in workflow.global_resources:
        workflow.register_resource(resource, amount)

DATASET, TARGET, PREFIX = cfg.dataset_name, cfg.target_name, cfg.prefix
TARGET_FILE = f"checkpoints/targets/{TARGET}/target.json"
HELD_OUT = {"test": f"datasets/{DATASET}_test.jsonl"} if cfg.split_eval else {}
REGENERATED = f"datasets/{PREFIX}/{DATASET}_regenerated.jsonl"
SHARDS = cfg.regenerate.shards if cfg.regenerate else 1
SHARD = f"datasets/{PREFIX}/.shards/{DATASET}_{{shard}}-of-{SHARDS}.json"
CACHE = {
    "cache": f"datasets/{PREFIX}/{DATASET}_cache.arrow",
    "vocab": f"datasets/{PREFIX}/{DATASET}_vocab.safetensors",
    "summary": f"datasets/{PREFIX}/{DATASET}_cache.json",
}
RUN = f"checkpoints/{PREFIX}/{{ablation}}/lr{{lr}}"
RESULT = f"results/{PREFIX}/{{ablation}}/lr{{lr}}"


def recipe(name):
    """What a section of the configuration says of a rule's result; False for a section that is off."""
    section = getattr(cfg, name)
    return section and section.recipe()


def untracked(value):
    """A param that says where or how a step runs, not what it makes: Snakemake compares none that needs resources."""
    return lambda wildcards, resources: value


def placement(name):
    """What a section says of how a rule runs."""
    section = getattr(cfg, name)
    return untracked(section and section.placement())


def loss_weights(wildcards):
    return cfg.ablation_catalogue[wildcards.ablation].weights()


def each_run(pattern):
    """The paths of `pattern` for every (ablation, rate) of the sweep."""
    return [pattern.format(ablation=ablation, lr=lr) for ablation, lr in cfg.runs()]


def goals():
    """The report; without held-out prompts there is nothing to evaluate on, and the drafts are the goal."""
    if cfg.split_eval:
        return [f"results/{PREFIX}/report.html"]
    return each_run(f"{RUN}/manifest.json")
