"""The draft at inference: its key-value cache, and chains of proposed tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from specforge.eval.sampling import distribution, pick
from specforge.model.draft import Draft
from specforge.target.model import Target


@dataclass
class Chain:
    """Proposed target ids [K] and, when sampling, the draft's distribution at each, [K, Vd]; else None."""

    tokens: list[int]
    q: Tensor | None


class Drafter:
    """Follows one text; batch 1. Entries of tokens that were only proposed are forgotten at the next `extend`."""

    def __init__(self, draft: Draft, target: Target, capacity: int):
        self.draft, self.embed = draft, target.embed
        config, weight = draft.config, draft.lm_head.weight
        shape = (config.num_key_value_heads, capacity, config.head_dim)
        self.keys = torch.empty(shape, dtype=weight.dtype, device=weight.device)
        self.values = torch.empty_like(self.keys)
        self.target_ids = draft.target_ids
        self.known = 0  # positions whose features came from the target
        self.filled = 0
        self.hidden: Tensor | None = None

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        start, end = self.filled, self.filled + len(k)
        self.keys[:, start:end], self.values[:, start:end] = k.transpose(0, 1), v.transpose(0, 1)
        self.filled = end
        mask = None
        if len(k) > 1:
            mask = torch.ones(len(k), end, dtype=torch.bool, device=q.device).tril(start)
        heads, keys, values = (x[None] for x in (q.transpose(0, 1), self.keys[:, :end], self.values[:, :end]))
        out = F.scaled_dot_product_attention(heads, keys, values, attn_mask=mask, enable_gqa=True)
        return out[0].transpose(0, 1)

    def _step(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        positions = torch.arange(self.filled, self.filled + len(tokens), device=tokens.device)
        return self.draft.step(self.embed(tokens), hidden, positions, self._attend)

    def extend(self, next_tokens: Tensor, features: Tensor) -> None:
        """Takes in accepted text: int64 [1, m] tokens, each one after the position of its features [1, m, 3H]."""
        self.filled = self.known
        self.hidden = self._step(next_tokens[0], self.draft.fc(features[0]))[-1:]
        self.known = self.filled

    def propose(self, count: int, temperature: float, generator: torch.Generator) -> Chain:
        """`count` tokens, one after another, each from the draft's own state after the one before."""
        hidden, tokens, qs = self.hidden, [], []
        for index in range(count):
            logits = self.draft.logits(hidden[0])
            if temperature > 0:
                qs.append(distribution(logits, temperature))
                choice = pick(qs[-1], generator)
            else:
                choice = int(logits.argmax())
            tokens.append(int(self.target_ids[choice]))
            if index + 1 < count:
                hidden = self._step(torch.tensor([tokens[-1]], device=hidden.device), hidden)
        return Chain(tokens, torch.stack(qs) if qs else None)
