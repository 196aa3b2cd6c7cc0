"""Which of the target's tokens the draft can say."""

from collections import Counter

import torch
from torch import Tensor

from specforge.errors import UserError


def draft_vocabulary(counts: Counter[int], always: set[int], size: int, vocab_size: int) -> Tensor:
    """Target ids of the draft vocabulary, ascending int64 [min(size, vocab_size)].

    Special and end tokens first, then the supervised tokens by count (ties by id), then unseen ids from 0 up. Raises
    UserError where `always`, special and end tokens, does not fit.
    """
    size = min(size, vocab_size)
    if len(always) > size:
        raise UserError(
            f"preprocess.draft_vocab_size {size} is less than the {len(always)} special and end tokens of the target, "
            "which a draft must be able to say; raise it."
        )
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    order = dict.fromkeys([*sorted(always), *ranked, *range(vocab_size)])
    chosen = [token for token in order if 0 <= token < vocab_size][:size]
    return torch.tensor(sorted(chosen), dtype=torch.int64)


def coverage(counts: Counter[int], chosen: Tensor) -> float:
    """Share of supervised tokens that are in the draft vocabulary."""
    inside = sum(counts[token] for token in chosen.tolist())
    return inside / max(1, counts.total())
