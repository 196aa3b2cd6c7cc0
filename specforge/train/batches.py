"""Which sequences make which step, on which process, in which micro-batch; and their tokens, packed.

A function of seed, epoch and sizes alone, so that a resumed run sees the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from specforge.model.packing import Packing

if TYPE_CHECKING:
    from specforge.data.cache import TokenCache

BUCKET = 16  # batches sorted by length together; keeps lengths within a batch alike and the order random


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


def share_of(batch: Sequence[int], lengths: Sequence[int], rank: int, size: int) -> list[int]:
    """The part of a batch that process `rank` of `size` takes: by length to and fro, so that tokens come out even."""
    order = sorted(batch, key=lambda index: (-lengths[index], index))
    return [index for place, index in enumerate(order) if _turn(place, size) == rank]


def _turn(place: int, size: int) -> int:
    lap, seat = divmod(place, size)
    return size - 1 - seat if lap % 2 else seat


def micro_batches(batch: Sequence[int], lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """A batch in pieces of at most `max_tokens` tokens; a longer sequence is a piece of its own."""
    pieces: list[list[int]] = []
    room = 0
    for index in batch:
        if lengths[index] > room:
            pieces.append([])
            room = max_tokens
        pieces[-1].append(index)
        room -= lengths[index]
    return pieces


def held_out(names: Sequence[str], wanted: int, seed: int) -> list[int]:
    """Indices of sequences kept from training to measure on: those of `wanted` conversations, at most a tenth of all.

    `names` are the sequences' conversations; one that was split into several sequences is kept whole.
    """
    distinct = list(dict.fromkeys(names))
    order = np.random.default_rng((seed, 1 << 32)).permutation(len(distinct))
    kept = {distinct[index] for index in order[: min(wanted, len(distinct) // 10)]}
    return [index for index, name in enumerate(names) if name in kept]


def read_cache(path: Path) -> "TokenCache":
    """The tokenized cache, memory-mapped. Raises UserError when it is missing, cut short or of another layout."""
    from specforge.data.cache import TokenCache  # here: what needs no cache, such as a benchmark on a bare machine

    return TokenCache(path)


@dataclass(frozen=True)
class Batch:
    """Sequences packed into N tokens: `ids` int64 [N], `mask` bool [N] (the tokens to learn), whose they are."""

    ids: Tensor
    mask: Tensor
    packing: Packing
    names: list[str]

    @classmethod
    def pack(cls, rows: dict[str, Any]) -> "Batch":
        """Rows of the cache, side by side."""
        ids, mask = (np.concatenate([np.asarray(part) for part in rows[key]]) for key in ("input_ids", "loss_mask"))
        packing = Packing.of([len(part) for part in rows["input_ids"]])
        return cls(torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(mask), packing, list(map(str, rows["id"])))

    def to(self, device: torch.device) -> "Batch":
        if device.type == "cpu":
            return self
        ids, mask = (x.pin_memory().to(device, non_blocking=True) for x in (self.ids, self.mask))
        return Batch(ids, mask, self.packing.to(device), self.names)


def pack_rows(rows: dict[str, Any], which: Sequence[int]) -> Batch:
    """Some rows of the cache's columns, packed."""
    return Batch.pack({name: [column[index] for index in which] for name, column in rows.items()})
