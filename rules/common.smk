"""What rules share: the checked configuration, names, and getters of the params that matter to a rule."""

import os

import psutil
from snakemake.exceptions import WorkflowError

from specforge.cloud.devices import visible
from specforge.config import load_config
from specforge.cloud.deploy import contained
from specforge.cloud.start import before_start
from specforge.config.paths import Paths, local_model, tiny_target
from specforge.config.rates import RATE_PATTERN
from specforge.config.schema import NAME
from specforge.data.template import Chat
from specforge.errors import UserError
from specforge.fingerprint import code_version
from specforge.sources import check_source, source_input, source_version

try:
    cfg = load_config(
        {key: value for key, value in config.items() if key != "pathvars"}
    )
    check_source(
        cfg.dataset, cfg.dataset_revision, f"datasets/{cfg.dataset_name}_prep.json"
    )
    CHAT = Chat.choose(cfg.chat_template, cfg.chat_template_kwargs)
except UserError as error:
    raise WorkflowError(f"config: {error}") from None


wildcard_constraints:
    name=NAME,
    target=NAME,
    prefix=NAME,
    ablation=NAME,
    lr=RATE_PATTERN,


CPUS = (
    len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
)
# However many cores are asked for, steps that compute here share this machine's; steps that wait do not count. The
# names are our own: Snakemake cuts a resource to what is registered, and what a job asks of a node that another
# executor finds for it (mem_mb, gpu) must not be cut to what the submitting machine has. Nor are nodes' jobs counted.
for resource, amount in {
    "local_cpus": CPUS,
    "local_mb": psutil.virtual_memory().total // 2**20,
    "local_gpus": len(visible()),
}.items():
    if resource not in workflow.global_resources:
        workflow.register_resource(resource, amount)


resource_scopes:
    local_cpus="local",
    local_mb="local",
    local_gpus="local",


ON_MODAL = cfg.backend == "modal"
WAITING_MB = 200  # of a script that waits for a call
PREPROCESS_CORES = min(8, CPUS)
PREFIX = cfg.prefix
PATHS = Paths(cfg)
HELD_OUT = {"test": PATHS.test} if cfg.split_eval else {}


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


def place(rule):
    """Where a rule's jobs run."""
    return untracked(cfg.place(rule))


def here(amount, waiting=0):
    """What a job claims: nothing but `waiting` when it computes elsewhere."""
    return waiting if ON_MODAL else amount


def claims(rule, cpus, mem_mb):
    """What a job of a rule asks of the node that runs it, `mem_mb` with the tiny target, and of this one if it does."""
    needed = cfg.gpus(rule)
    gpus = here(needed.count if needed else 0)
    memory = here(cfg.memory_mb(rule, mem_mb), WAITING_MB)
    return {
        "mem_mb": memory,
        "gpu": gpus,
        "nodes": 1,
        "local_cpus": here(cpus),
        "local_mb": memory,
        "local_gpus": gpus,
    }


def loss_weights(wildcards):
    return cfg.ablation_catalogue[wildcards.ablation].weights()


def each_run(pattern):
    """The paths of `pattern` for every (ablation, rate) of the sweep."""
    return [pattern.format(ablation=ablation, lr=lr) for ablation, lr in cfg.runs()]


def goals():
    """The report; without held-out prompts there is nothing to evaluate on, and the drafts are the goal."""
    goal = (
        [f"{PATHS.report}/report.html"]
        if cfg.split_eval
        else each_run(f"{PATHS.run}/manifest.json")
    )
    return [*goal, *([DEPLOYED] if ON_MODAL else [])]
