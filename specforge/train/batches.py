"""Which sequences make which step: a function of seed and epoch alone, so that a resumed run sees the same."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from specforge.errors import UserError

BUCKET = 16  # batches sorted by length together; keeps padding small and the order random


def epoch_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices of each batch of an epoch: shuffled, alike in length within a batch; the last may be smaller."""
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths))
    sizes = np.asarray(lengths)
    batches: list[list[int]] = []
    for start in range(0, len(order), BUCKET * batch_size):
        bucket = order[start : start + BUCKET * batch_size]
        bucket = bucket[np.argsort(sizes[bucket], kind="stable")]
        batches += [bucket[i : i + batch_size].tolist() for i in range(0, len(bucket), batch_size)]
    rng.shuffle(batches)
    return batches


def step_batches(
    lengths: Sequence[int], batch_size: int, seed: int, done: int, steps: int
) -> Iterator[tuple[int, list[int]]]:
    """(step, indices) of each step from `done` to `steps`, epoch after epoch, as `epoch_batches` orders them."""
    step, epoch = 0, 0
    while step < steps:
        for batch in epoch_batches(lengths, batch_size, seed, epoch):
            if done <= step < steps:
                yield step, batch
            step += 1
        epoch += 1


def read_cache(path: Path) -> Dataset:
    """The tokenized cache, memory-mapped. Raises UserError when it is missing, cut short or of another layout."""
    if not path.is_file():
        raise UserError(f"{path} is missing; run the rule preprocess_dataset.")
    try:
        cache = Dataset.from_file(str(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable cache ({error}); delete it and run again.") from None
    missing = {"id", "input_ids", "loss_mask"} - set(cache.column_names)
    if missing or not len(cache):
        what = f"lacks the columns {sorted(missing)}" if missing else "holds no sequence"
        raise UserError(f"{path} {what}; delete it and run again.")
    return cache.with_format("numpy")


def collate(rows: dict[str, list[np.ndarray]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Right-padded token ids int64 [B, T] and loss mask bool [B, T]."""
    sequences = rows["input_ids"]
    ids = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.int64)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, (sequence, supervised) in enumerate(zip(sequences, rows["loss_mask"], strict=True)):
        ids[row, : len(sequence)] = torch.as_tensor(np.asarray(sequence, dtype=np.int64))
        mask[row, : len(sequence)] = torch.as_tensor(np.asarray(supervised, dtype=np.bool_))
    return ids.to(device), mask.to(device)
