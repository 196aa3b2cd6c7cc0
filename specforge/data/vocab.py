"""Which of the target's tokens the draft can say."""

from collections import Counter

import torch
from torch import Tensor


def draft_vocabulary(counts: Counter[int], always: set[int], size: int, vocab_size: int) -> Tensor:
    """Target ids of the draft vocabulary, ascending int64 [min(size, vocab_size)].

    Special and end tokens first, then the supervised tokens by count (ties by id), then unseen ids from 0 up.
    """
    size = min(size, vocab_size)
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    order = dict.fromkeys([*sorted(always), *ranked, *range(vocab_size)])
    chosen = [token for token in order if 0 <= token < vocab_size][:size]
    return torch.tensor(sorted(chosen), dtype=torch.int64)


def coverage(counts: Counter[int], chosen: Tensor) -> float:
    """Share of supervised tokens that are in the draft vocabulary."""
    inside = sum(counts[token] for token in chosen.tolist())
    return inside / max(1, counts.total())
