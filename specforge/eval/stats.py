"""Means over prompts with bootstrap intervals: prompts are what was sampled, so prompts are resampled."""

from collections.abc import Sequence

import numpy as np

INTERVAL = (2.5, 97.5)


def ratio_interval(above: Sequence[float], below: Sequence[float], samples: int, seed: int) -> dict[str, float]:
    """sum(above) / sum(below) over prompts with its 95 % percentile bootstrap interval: mean, low, high."""
    a, b = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(a), size=(samples, len(a)))
    low, high = np.percentile(a[chosen].sum(1) / b[chosen].sum(1), INTERVAL)
    return {"mean": float(a.sum() / b.sum()), "low": float(low), "high": float(high)}


def accept_rate_by_position(rounds: Sequence[Sequence[int]], positions: int) -> list[float | None]:
    """P(position i is accepted | it was judged), i = 0..positions-1; None where none was judged.

    `rounds` holds (accepted, judged) of each verification.
    """
    accepted, judged = np.asarray(rounds, dtype=np.int64).reshape(-1, 2).T
    seen = [int((judged > position).sum()) for position in range(positions)]
    return [float((accepted > i).sum() / total) if total else None for i, total in enumerate(seen)]
