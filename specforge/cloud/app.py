"""The Modal app: volumes, images, one function a pipeline step.

Each body imports its step when it runs, so declaring them costs nothing, and calls it with paths relative to the
folder that holds `datasets/` and `checkpoints/`: the volumes' mounts in a container, the working directory here.
`function.local(...)` runs a body in this process, with no account. GPUs, timeouts and retries below are what a call
from Python gets; the pipeline sets its own by `with_options`.
"""

from pathlib import Path
from typing import Any

import modal

from specforge.cloud.container import carry_out
from specforge.cloud.places import CHECKPOINTS, DATASETS, HUB_CACHE, MOUNTS

GPUS, ONE_GPU = "H100:8", "H100"
DAY = 24 * 60 * 60  # seconds, the longest attempt that Modal allows
CONSTRAINTS = "/specforge/constraints.txt"
SGLANG = "lmsysorg/sglang:v0.5.23"

app = modal.App("specforge-opd")

# Version 2 takes many writers at once, and twelve trainings commit to one. The hub's cache may be older than this app.
VOLUMES = {
    HUB_CACHE: modal.Volume.from_name(HUB_CACHE, create_if_missing=True),
    DATASETS: modal.Volume.from_name(DATASETS, create_if_missing=True, version=2),
    CHECKPOINTS: modal.Volume.from_name(CHECKPOINTS, create_if_missing=True, version=2),
}
HUGGINGFACE = modal.Secret.from_name("huggingface-secret")


def _locked(*packages: str) -> modal.Image:
    """Debian with `packages` and what they need, in the versions of the project's lock file."""
    lock = Path(__file__).resolve().parents[2] / "constraints.txt"
    image = modal.Image.debian_slim(python_version="3.11")
    if modal.is_local():  # a container is already built, and holds the package without the project around it
        image = image.add_local_file(lock, CONSTRAINTS, copy=True)
    return image.uv_pip_install(*packages, extra_options=f"--constraint {CONSTRAINTS}")


def _with_package(image: modal.Image) -> modal.Image:
    """The package as the last layer: an edit of it builds nothing. The default `ignore` would leave templates out."""
    return image.add_local_python_source("specforge", ignore=["**/*.pyc"])


_DATA = ("datasets", "httptools", "httpx", "huggingface-hub", "modal", "msgspec", "pydantic")
LIGHT = _with_package(_locked(*_DATA))
TRAINING = _with_package(_locked(*_DATA, "jinja2", "numpy", "safetensors", "torch", "transformers", "wandb"))
SERVING = _with_package(modal.Image.from_registry(SGLANG).entrypoint([]).uv_pip_install(*_DATA))


def _function(image: modal.Image, *, hub: bool = True, **options: Any) -> Any:
    """A call has a container of its own: nothing of an earlier one holds its memory, GPUs or files."""
    return app.function(
        image=image,
        volumes={MOUNTS[name]: volume for name, volume in VOLUMES.items()},
        secrets=[HUGGINGFACE] if hub else [],
        timeout=DAY,
        retries=modal.Retries(max_retries=4, initial_delay=5.0, backoff_coefficient=2.0),
        single_use_containers=True,
        **options,
    )


@_function(LIGHT)
def download_model(order: dict | None = None, **request: Any) -> Any:
    from specforge.steps.download_model import download_model as step

    return carry_out(step, request, order, VOLUMES)


@_function(LIGHT)
def prep_dataset(order: dict | None = None, **request: Any) -> Any:
    from specforge.steps.prep_dataset import prep_dataset as step

    return carry_out(step, request, order, VOLUMES)


@_function(LIGHT, hub=False)
def prep_test_dataset(order: dict | None = None, **request: Any) -> Any:
    from specforge.steps.prep_test_dataset import prep_test_dataset as step

    return carry_out(step, request, order, VOLUMES)


@_function(LIGHT, hub=False)
def check_dataset_exists(order: dict | None = None, **request: Any) -> Any:
    from specforge.steps.check_dataset_exists import check_dataset_exists as step

    return carry_out(step, request, order, VOLUMES)


@_function(TRAINING, hub=False, cpu=4.0)
def train_tiny_target(order: dict | None = None, **request: Any) -> Any:
    from specforge.steps.train_tiny_target import train_tiny_target as step

    return carry_out(step, request, order, VOLUMES)


@_function(SERVING)
def regenerate_dataset(order: dict | None = None, **request: Any) -> Any:
    from specforge.steps.regenerate_dataset import regenerate_dataset as step

    return carry_out(step, request, order, VOLUMES)


@_function(TRAINING, cpu=4.0)
def regenerate_dataset_batched(order: dict | None = None, **request: Any) -> Any:
    """The same without servers: batched generation of transformers, copying, joining."""
    from specforge.steps.regenerate_dataset import regenerate_dataset as step

    return carry_out(step, request, order, VOLUMES)


@_function(SERVING)
def regenerate_shard(order: dict | None = None, **request: Any) -> Any:
    from specforge.steps.regenerate_shard import regenerate_shard as step

    return carry_out(step, request, order, VOLUMES)


@_function(TRAINING, cpu=4.0)
def regenerate_shard_batched(order: dict | None = None, **request: Any) -> Any:
    from specforge.steps.regenerate_shard import regenerate_shard as step

    return carry_out(step, request, order, VOLUMES)


@_function(TRAINING, cpu=4.0)
def preprocess_dataset(order: dict | None = None, **request: Any) -> Any:
    from specforge.steps.preprocess_dataset import preprocess_dataset as step

    return carry_out(step, request, order, VOLUMES)


@_function(TRAINING, gpu=GPUS)
def run_training(order: dict | None = None, **request: Any) -> Any:
    import torch

    from specforge.steps.run_training import run_training as step

    return carry_out(step, request | {"processes": max(1, torch.cuda.device_count())}, order, VOLUMES)


@_function(TRAINING, gpu=ONE_GPU)
def run_training_single_gpu(order: dict | None = None, **request: Any) -> Any:
    from specforge.steps.run_training import run_training as step

    return carry_out(step, request, order, VOLUMES)


@_function(TRAINING, gpu=ONE_GPU)
def evaluate(order: dict | None = None, **request: Any) -> Any:
    from specforge.steps.evaluate import evaluate as step

    return carry_out(step, request, order, VOLUMES)
