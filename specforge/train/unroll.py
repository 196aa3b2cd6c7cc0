"""The training-time test: the draft unrolled over its own states, K steps, against the target at every step.

Position t of the draft reads token x[t+1+i] and predicts x[t+2+i] at step i; the teacher is the target at index
t+1+i. So one row of the teacher, at index s, serves all K steps: at step i it belongs to draft position s-1-i.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from specforge.model.attention import unrolled_attention
from specforge.model.draft import Draft
from specforge.target.model import Target
from specforge.train.losses import LossWeights, Teacher, Terms, distillation_loss, teacher_from_logits

TEACHER_ELEMENTS = 1 << 27  # logits over the target's vocabulary held at once: 512 MiB of fp32


@dataclass(frozen=True)
class Objective:
    """What a run minimises: sum over steps i of decay^i * loss_i, over the supervised tokens."""

    weights: LossWeights
    ttt_length: int
    decay: float
    temperature: float


@dataclass(frozen=True)
class Rows:
    """Supervised places of a batch: sequence and index s of each teacher row, int64 [N]; x[s+1] is supervised."""

    sequence: Tensor
    index: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> "Rows":
        """From the loss mask bool [B, T] over tokens."""
        return cls(*mask[:, 1:].nonzero(as_tuple=True))

    def __len__(self) -> int:
        return len(self.index)


@torch.no_grad()
def teach(target: Target, final: Tensor, target_ids: Tensor, temperature: float) -> Teacher:
    """The Teacher at final states [N, H], the target's logits formed in chunks."""
    rows = max(1, TEACHER_ELEMENTS // target.head.weight.shape[0])
    parts = [teacher_from_logits(target.head(part), target_ids, temperature) for part in final.split(rows)]
    return Teacher(torch.cat([part.log_p for part in parts]), torch.cat([part.top for part in parts]))


def unrolled_loss(
    draft: Draft, target: Target, ids: Tensor, mask: Tensor, objective: Objective, terms: list[Terms] | None = None
) -> Tensor:
    """Sum over a batch's supervised tokens and unrolled steps of the decayed loss, a scalar.

    Args:
        ids: int64 [B, T], right-padded.
        mask: bool [B, T], true for the tokens to learn (the assistant's); false for padding.
        terms: when given, receives one Terms a step, summed over that step's rows.
    """
    with torch.no_grad():
        features, final = target(ids)
        rows = Rows.of(mask)
        teacher = teach(target, final[rows.sequence, rows.index], draft.target_ids, objective.temperature)
        embeddings = target.embed(F.pad(ids, (0, objective.ttt_length)))
    length = ids.shape[1] - 1
    hidden = draft.fc(features[:, :length])
    first: tuple[Tensor, Tensor] | None = None
    later: list[tuple[Tensor, Tensor]] = []

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        nonlocal first
        if first is None:
            first = (k, v)
        else:
            later.append((k, v))
        return unrolled_attention(q, *first, later)

    total = hidden.new_zeros((), dtype=torch.float32)
    for step in range(objective.ttt_length):
        positions = torch.arange(step, step + length, device=ids.device)[None]
        hidden = draft.step(embeddings[:, 1 + step : 1 + step + length], hidden, positions, attend)
        place = rows.index - 1 - step
        here = (place >= 0).nonzero()[:, 0]
        states = draft.norm(hidden[rows.sequence[here], place[here]])
        chunks = None if terms is None else []
        loss = distillation_loss(
            states, draft.lm_head.weight, teacher[here], objective.weights, objective.temperature, chunks
        )
        total = total + objective.decay**step * loss
        if terms is not None:
            terms.append(sum(chunks[1:], chunks[0]))
    return total
