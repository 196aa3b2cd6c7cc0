"""Training state on disk: whole or absent, the newest and the one before, no pickle."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from specforge.errors import UserError
from specforge.files import atomic_path

KEEP = 2


@dataclass
class State:
    """Tensors by name and JSON-able facts after `step` optimizer steps.

    Nothing else decides what comes next: data order, rates and random draws are functions of the step.
    """

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


@dataclass
class ResumeFolder:
    """States of one piece of work, made by `recipe`: all that decides the result, as JSON-able values."""

    folder: Path
    recipe: dict[str, Any] = field(default_factory=dict)
    keep: int = KEEP

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"))

    def save(self, state: State) -> None:
        """Writes the state aside, flushes, renames; then forgets all but the newest `keep`."""
        path = self.folder / f"step-{state.step:08d}.safetensors"
        for torn in self.folder.glob(".step-*.part"):  # a kill in the middle of a save; the folder is held by us alone
            torn.unlink()
        with atomic_path(path) as partial:
            save_file(
                {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.tensors.items()},
                partial,
                metadata={"facts": json.dumps(state.facts), "recipe": json.dumps(self.recipe)},
            )
        for old in self._files()[: -self.keep]:
            old.unlink()

    def load(self) -> State | None:
        """The newest readable state, or None; a torn file is passed over for its elder.

        Raises UserError, naming the keys that differ, for a state of another recipe.
        """
        for path in reversed(self._files()):
            try:
                with safe_open(path, "pt") as file:
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                    words = file.metadata()
            except (SafetensorError, FileNotFoundError):
                path.unlink(missing_ok=True)
                continue
            self._check(path, json.loads(words["recipe"]))
            return State(int(path.stem.removeprefix("step-")), tensors, json.loads(words["facts"]))
        return None

    def _check(self, path: Path, recipe: dict[str, Any]) -> None:
        theirs, ours = dict(_leaves(recipe)), dict(_leaves(json.loads(json.dumps(self.recipe))))
        missing = object()
        keys = [key for key in sorted(theirs | ours) if theirs.get(key, missing) != ours.get(key, missing)]
        if keys:
            said = ", ".join(
                f"{key} ({theirs.get(key, 'absent')} there, {ours.get(key, 'absent')} here)" for key in keys
            )
            raise UserError(f"{path} was made by another configuration: {said}; remove it, or train elsewhere.")


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else key)
    else:
        yield path, value
