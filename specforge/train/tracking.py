"""Weights & Biases, when a project is named; offline without a key."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from specforge.config.steps import Wandb


@contextmanager
def wandb_report(settings: dict, name: str, config: dict, folder: Path) -> Iterator[Callable[[dict], None] | None]:
    """Yields a function that logs one metrics line, or None when tracking is off.

    `folder` (its name identifies the work) makes the run's id, so that a resumed training continues its curve.
    """
    options = Wandb(**settings)
    if options.project is None:
        yield None
        return
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project=options.project,
        entity=options.entity,
        name=name,
        id=folder.name,
        resume="allow",
        dir=str(folder),
        config=config,
        mode="online" if os.environ.get("WANDB_API_KEY") else "offline",
    )
    try:
        yield lambda line: run.log(dict(_flat(line)), step=line["step"])
    finally:
        run.finish()


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Nested figures under one key each: held_out/accept_sampled/1 is the first drafted position's."""
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value, 1)
    else:
        yield path, value
        return
    for key, item in inner:
        yield from _flat(item, f"{path}/{key}" if path else str(key))
