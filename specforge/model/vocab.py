"""The file of the draft vocabulary's two maps. Apart from the draft, so that editing that leaves the cache valid."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from specforge.errors import UserError
from specforge.files import atomic_path


def save_vocab(path: Path, target_ids: Tensor, vocab_size: int) -> None:
    """Writes d2t int64 [Vd] and t2d bool [V] for ascending int64 `target_ids`."""
    t2d = torch.zeros(vocab_size, dtype=torch.bool)
    t2d[target_ids] = True
    with atomic_path(path) as partial:
        save_file({"d2t": target_ids - torch.arange(len(target_ids)), "t2d": t2d}, partial)


def load_vocab(path: Path, vocab_size: int) -> tuple[Tensor, Tensor]:
    """d2t and t2d. Raises UserError when they do not fit each other or a target of `vocab_size` tokens."""
    if not path.is_file():
        raise UserError(f"{path} is missing; run the rule preprocess_dataset.")
    try:
        maps = load_file(path)
        d2t, t2d = maps["d2t"], maps["t2d"]
    except (SafetensorError, KeyError):
        raise UserError(f"{path} is damaged; delete it and run preprocess_dataset again.") from None
    if len(t2d) != vocab_size:
        raise UserError(f"{path} maps {len(t2d)} tokens, the target has {vocab_size}; run preprocess_dataset again.")
    if not torch.equal(t2d.nonzero()[:, 0], d2t + torch.arange(len(d2t))):
        raise UserError(f"{path}: d2t and t2d disagree; delete it and run preprocess_dataset again.")
    return d2t, t2d
