"""Training state on disk: whole or absent, the newest and the one before, no pickle."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from specforge.files import atomic_path

KEEP = 2


@dataclass
class State:
    """Tensors by name and JSON-able facts after `step` optimizer steps."""

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


class ResumeFolder:
    """States of one piece of work. The folder's name holds the digest of all that decides the result."""

    def __init__(self, folder: Path):
        self.folder = folder

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"))

    def save(self, state: State) -> None:
        """Writes the state aside, flushes, renames; then forgets all but the newest two."""
        path = self.folder / f"step-{state.step:08d}.safetensors"
        for torn in self.folder.glob(".step-*.part"):  # a kill in the middle of a save; the folder is held by us alone
            torn.unlink()
        with atomic_path(path) as partial:
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()},
                partial,
                metadata={"facts": json.dumps(state.facts)},
            )
        for old in self._files()[:-KEEP]:
            old.unlink()

    def load(self) -> State | None:
        """The newest readable state, or None; a torn file is passed over for its elder."""
        for path in reversed(self._files()):
            try:
                with safe_open(path, "pt") as file:
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                    facts = json.loads(file.metadata()["facts"])
            except SafetensorError:
                path.unlink()
                continue
            return State(int(path.stem.removeprefix("step-")), tensors, facts)
        return None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An AdamW's moments and step counts under `optimizer.<index>.<name>`."""
    return {
        f"optimizer.{index}.{name}": torch.as_tensor(value)
        for index, slots in optimizer.state_dict()["state"].items()
        for name, value in slots.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`."""
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        head, _, rest = name.partition(".")
        if head == "optimizer":
            index, _, slot = rest.partition(".")
            slots.setdefault(int(index), {})[slot] = tensor
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
