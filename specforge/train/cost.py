"""The floating-point work that a training step needs, and the rate at which this device could do it.

Counted are the matrix products of the algorithm, two operations a multiply-add: forward once, backward twice (fc
once, since no gradient goes into the target's features), attention's causal half, the teacher's head forward. The
target's own pass, recomputation, element-wise work and the optimizer are not.
"""

import time
from dataclasses import dataclass
from functools import cache

import torch
from transformers import LlamaConfig


@dataclass(frozen=True)
class Work:
    """Sizes of one micro-batch: N places, M unrolled rows, R states that meet the head, n taught rows, sequences'
    lengths squared and summed."""

    places: int
    rows: int
    states: int
    taught: int
    squares: int


def draft_flops(config: LlamaConfig, target_vocab: int, work: Work, steps: int) -> float:
    """Operations of forward and backward of one micro-batch."""
    hidden, size = config.hidden_size, config.head_dim
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    fc = 3 * hidden * hidden * work.places
    keys = 2 * hidden * 2 * kv_heads * size * (work.places + (steps - 1) * work.rows)
    row = 2 * hidden * heads * size + heads * size * hidden + 3 * hidden * config.intermediate_size
    head = hidden * config.draft_vocab_size * work.states
    seen = work.squares / 2 * work.rows / max(1, work.places)  # keys that the unrolled rows attend to
    attention = 2 * heads * size * seen * steps
    teacher = hidden * target_vocab * work.taught
    return 2 * (2 * fc + 3 * (keys + row * work.rows * steps + head + attention) + teacher)


@cache
def peak_rate(device: torch.device) -> float | None:
    """Measured operations a second of a bf16 matrix product of 8192 cubed; None on a CPU."""
    if device.type != "cuda":
        return None
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    for repeats in (3, 10):
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        for _ in range(repeats):
            a @ b
        torch.cuda.synchronize(device)
    return 10 * 2 * 8192**3 / (time.perf_counter() - started)
