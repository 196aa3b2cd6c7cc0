"""The Modal app: volumes, images, one function a pipeline step.

Each body imports its step when it runs, so declaring them costs nothing, and calls it with paths relative to the
folder that holds `datasets/` and `checkpoints/`: the volumes' mounts in a container, the working directory here.
`function.local(...)` runs a body in this process, with no account.
"""

import os
from typing import Any

import modal

HOME = "/root/.cache/specforge"
GPUS, ONE_GPU = "H100:8", "H100"
DAY = 24 * 60 * 60  # seconds, the longest attempt that Modal allows

app = modal.App("specforge-opd")

VOLUMES = {
    "/root/.cache/huggingface": modal.Volume.from_name("specforge-hf-cache", create_if_missing=True),
    f"{HOME}/datasets": modal.Volume.from_name("specforge-datasets", create_if_missing=True),
    f"{HOME}/checkpoints": modal.Volume.from_name("specforge-checkpoints", create_if_missing=True),
}
OURS = {"ignore": ["**/*.pyc"]}  # the default would leave templates behind
HUGGINGFACE = modal.Secret.from_name("huggingface-secret")
WANDB = modal.Secret.from_name("wandb-secret")

_python = modal.Image.debian_slim(python_version="3.11")
LIGHT = _python.uv_pip_install("datasets>=4.0,<6", "huggingface-hub", "pydantic>=2.10,<3").add_local_python_source(
    "specforge", **OURS
)
TRAINING = _python.uv_pip_install(
    "datasets>=4.0,<6", "jinja2>=3.1,<4", "numpy>=2.0,<3", "pydantic>=2.10,<3", "pyyaml>=6,<7",
    "safetensors>=0.5,<1", "torch>=2.9,<3", "transformers>=5.18,<6", "wandb>=0.19,<1",
).add_local_python_source("specforge", **OURS)  # fmt: skip
SERVING = modal.Image.from_registry("lmsysorg/sglang:v0.5.9").add_local_python_source("specforge", **OURS)


def _home() -> None:
    if not modal.is_local():
        os.chdir(HOME)


@app.function(image=LIGHT, volumes=VOLUMES, secrets=[HUGGINGFACE], timeout=DAY)
def download_model(**request: Any) -> dict:
    from specforge.steps.download_model import download_model as step

    _home()
    return step(**request)


@app.function(image=LIGHT, volumes=VOLUMES, secrets=[HUGGINGFACE], timeout=DAY)
def prep_dataset(**request: Any) -> dict:
    from specforge.steps.prep_dataset import prep_dataset as step

    _home()
    return step(**request)


@app.function(image=TRAINING, volumes=VOLUMES, timeout=DAY, gpu=ONE_GPU)
def train_tiny_target(**request: Any) -> dict:
    from specforge.steps.train_tiny_target import train_tiny_target as step

    _home()
    return step(**request)


@app.function(image=SERVING, volumes=VOLUMES, secrets=[HUGGINGFACE], timeout=DAY, gpu=GPUS)
def regenerate_dataset(**request: Any) -> dict:
    from specforge.steps.regenerate_dataset import regenerate_dataset as step

    _home()
    return step(**request)


@app.function(image=SERVING, volumes=VOLUMES, secrets=[HUGGINGFACE], timeout=DAY, gpu=GPUS)
def regenerate_shard(**request: Any) -> dict:
    from specforge.steps.regenerate_shard import regenerate_shard as step

    _home()
    return step(**request)


@app.function(image=TRAINING, volumes=VOLUMES, secrets=[HUGGINGFACE], timeout=DAY)
def preprocess_dataset(**request: Any) -> dict:
    from specforge.steps.preprocess_dataset import preprocess_dataset as step

    _home()
    return step(**request)


@app.function(image=TRAINING, volumes=VOLUMES, secrets=[HUGGINGFACE, WANDB], timeout=DAY, gpu=GPUS)
def run_training(**request: Any) -> dict:
    import torch

    from specforge.steps.run_training import run_training as step

    _home()
    return step(**request, processes=max(1, torch.cuda.device_count()))


@app.function(image=TRAINING, volumes=VOLUMES, secrets=[HUGGINGFACE, WANDB], timeout=DAY, gpu=ONE_GPU)
def run_training_single_gpu(**request: Any) -> dict:
    from specforge.steps.run_training import run_training as step

    _home()
    return step(**request)


@app.function(image=TRAINING, volumes=VOLUMES, secrets=[HUGGINGFACE], timeout=DAY, gpu=ONE_GPU)
def evaluate(**request: Any) -> dict:
    from specforge.steps.evaluate import evaluate as step

    _home()
    return step(**request)
