"""Calls of run_training on a few conversations, and what they leave."""

from pathlib import Path

from specforge.config.steps import Train
from specforge.files import read_json, read_jsonl, sha256_file

STEPS, SAVE_EVERY = 10, 4


def arguments(data: Path, folder: Path, lr: str = "1e-3", **changes) -> dict:
    """`changes` are of the settings."""
    recipe = {
        "batch_size": 4,
        "ttt_length": 3,
        "max_steps": STEPS,
        "save_every": SAVE_EVERY,
        "log_every": 3,
        "held_out": 0,
    }
    return {
        "target": str(data / "target.json"),
        "cache": str(data / "cache.arrow"),
        "vocab": str(data / "vocab.safetensors"),
        "cache_summary": str(data / "summary.json"),
        "ablation": "mixed",
        "lr": lr,
        "weights": {"lambda_ce": 0.4, "lambda_rkl": 0.5, "beta_hinge": 0.1},
        "settings": Train(**recipe | changes).recipe(),
        "placement": Train(**recipe | changes).placement(),
        "layers": [0, 1, 2],
        "epochs": 3,
        "wandb": {"project": None},
        "code": "abc",
        "draft": str(folder / "draft" / "model.safetensors"),
        "metrics": str(folder / "metrics.jsonl"),
        "manifest": str(folder / "manifest.json"),
        "card": str(folder / "draft" / "README.md"),
        "regenerated": True,
        "work": str(folder / "work"),
        "threads": 1,
    }


def states(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "work").glob("*/step-*"))


def same_result(folder: Path, other: Path) -> bool:
    """Equal weights to the bit, equal metrics but for the time they took, all sessions' tokens counted."""
    lines = [
        [row | {"tokens_per_second": 0, "memory_mib": 0} for row in read_jsonl(f / "metrics.jsonl")]
        for f in (folder, other)
    ]
    weights = [sha256_file(f / "draft" / "model.safetensors") for f in (folder, other)]
    tokens = [read_json(f / "manifest.json")["tokens"] for f in (folder, other)]
    return all(pair[0] == pair[1] for pair in (lines, weights, tokens))
