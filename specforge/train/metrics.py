"""metrics.jsonl of a run."""

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from specforge.files import atomic_path
from specforge.train.unroll import step_means

Report = Callable[[dict], None]


class Metrics:
    """One line a logged step; a resumed run drops the lines after its state."""

    def __init__(self, path: Path, resumed_step: int, report: Report | None):
        self.path, self.report = path, report
        kept = []
        if path.is_file():
            lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            kept = [line for line in lines if json.loads(line)["step"] <= resumed_step]
        with atomic_path(path) as partial:
            partial.write_text("".join(kept))

    def write(self, line: dict) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self.report:
            self.report(line)


def told_line(told: list[Tensor], count: float) -> dict:
    """Means over supervised tokens: every term and acceptance at the first unrolled step, and at each of them."""
    by_step = step_means(told, count)
    first = {name: values[0] for name, values in by_step.items()}
    return first | {
        "acceptance": first["accept_sampled"],
        "accept_by_step": by_step["accept_sampled"],
        "terms_by_step": by_step,
    }


def peak_memory(device: torch.device) -> int:
    """Largest so far, MiB: of the GPU's memory, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there and in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit >> 20
