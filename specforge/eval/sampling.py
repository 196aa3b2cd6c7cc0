"""Verification of a chain: exact match at temperature 0, speculative sampling above it.

Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", and Chen et al. 2023: accept a
token drawn from q with probability min(1, p/q); at the first refusal draw from max(0, p - q), normalised. What
comes out is distributed as the target's own text.
"""

import torch
from torch import Tensor


def distribution(logits: Tensor, temperature: float) -> Tensor:
    """Softmax at `temperature`, fp32, over the last dimension."""
    return torch.softmax(logits.float() / temperature, dim=-1)


def pick(probabilities: Tensor, generator: torch.Generator) -> int:
    """One index drawn from [n] probabilities (need not sum to one exactly)."""
    return int(torch.multinomial(probabilities, 1, generator=generator))


def verify_greedy(tokens: list[int], logits: Tensor) -> tuple[int, int]:
    """How many of K proposed tokens equal the target's argmax, and the target's own token after them.

    `logits` [K+1, V]: row i is the target's after the first i proposed tokens.
    """
    own = logits.argmax(-1).tolist()
    accepted = 0
    while accepted < len(tokens) and tokens[accepted] == own[accepted]:
        accepted += 1
    return accepted, own[accepted]


def verify_sampled(
    tokens: list[int], q: Tensor, target_ids: Tensor, logits: Tensor, temperature: float, generator: torch.Generator
) -> tuple[int, int]:
    """Speculative sampling of K tokens drawn from q [K, Vd] against the target's logits [K+1, V]."""
    p = distribution(logits, temperature)
    for index, token in enumerate(tokens):
        q_full = torch.zeros_like(p[index])
        q_full[target_ids] = q[index]
        chance = float(p[index, token] / q_full[token])
        if float(torch.rand((), generator=generator, device=p.device)) < chance:
            continue
        residual = (p[index] - q_full).clamp_min_(0)
        # p == q to rounding leaves nothing; a refusal then has probability zero but for that rounding
        return index, pick(residual if residual.sum() > 0 else p[index], generator)
    return len(tokens), pick(p[-1], generator)
