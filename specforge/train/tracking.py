"""Weights & Biases, when a project is named; offline without a key."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

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
        yield lambda line: run.log({k: v for k, v in line.items() if not isinstance(v, list)}, step=line["step"])
    finally:
        run.finish()
