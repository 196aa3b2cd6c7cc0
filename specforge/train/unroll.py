"""The training-time test: the draft unrolled over its own states, K steps, against the target at every step.

Position t of the draft reads token x[t+1+i] and predicts x[t+2+i] at step i; the teacher is the target at index
t+1+i. So one row of the teacher, at index s, serves all K steps: at step i it belongs to draft position s-1-i.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from specforge.model.attention import Places, unrolled_attention
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
class Plan:
    """Which rows of a batch [B, T+1] are unrolled over T positions, and whose loss each gives at each step.

    `places` are the M positions that some step's loss needs. Teacher row n is the target at `taught`[n], counted
    through [B, T+1]; at step i it belongs to draft row `row_of`[i][n], where -1 means that there is none.
    """

    places: Places
    taught: Tensor
    row_of: list[Tensor]

    @classmethod
    def of(cls, mask: Tensor, steps: int) -> "Plan":
        """From the loss mask bool [B, T+1] over tokens."""
        batch, length = mask.shape[0], mask.shape[1] - 1
        sequence, index = mask[:, 1:].nonzero(as_tuple=True)  # x[index + 1] is supervised
        needed = torch.zeros(batch * length, dtype=torch.bool, device=mask.device)
        drafted = [torch.where(index > step, sequence * length + index - 1 - step, -1) for step in range(steps)]
        for place in drafted:
            needed[place[place >= 0]] = True
        row_at = needed.cumsum(0) - 1
        row_of = [torch.where(place >= 0, row_at[place], -1) for place in drafted]
        return cls(Places(needed.nonzero()[:, 0], batch, length), sequence * (length + 1) + index, row_of)


class _Attend:
    """Remembers the keys and values of step 0 everywhere and of later steps at the unrolled rows."""

    def __init__(self, places: Places):
        self.places = places
        self.first: tuple[Tensor, Tensor] | None = None
        self.later: list[tuple[Tensor, Tensor]] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.first is None:
            grid = (self.places.batch, self.places.length)
            self.first = tuple(x.unflatten(0, grid).transpose(1, 2) for x in (k, v))
        else:
            self.later.append((k, v))
        return unrolled_attention(q, *self.first, self.later, self.places)


@torch.no_grad()
def teach(target: Target, final: Tensor, target_ids: Tensor, temperature: float) -> Teacher:
    """The Teacher at final states [N, H], the target's logits formed in chunks."""
    rows = max(1, TEACHER_ELEMENTS // target.head.weight.shape[0])
    return Teacher.cat([teacher_from_logits(target.head(part), target_ids, temperature) for part in final.split(rows)])


def unrolled_loss(
    draft: Draft,
    target: Target,
    ids: Tensor,
    mask: Tensor,
    objective: Objective,
    terms: list[Terms] | None = None,
) -> Tensor:
    """Sum over a batch's supervised tokens and unrolled steps of the decayed loss, a scalar.

    Args:
        ids: int64 [B, T], right-padded.
        mask: bool [B, T], true for the tokens to learn (the assistant's); false for padding.
        terms: when given, receives one Terms a step, summed over that step's rows.
    """
    steps, length = objective.ttt_length, ids.shape[1] - 1
    plan = Plan.of(mask, steps)
    with torch.no_grad():
        features, final = target(ids)
        teacher = teach(target, final.flatten(0, 1)[plan.taught], draft.target_ids, objective.temperature)
        embeddings = target.embed(F.pad(ids, (0, steps)))
    attend, keep = _Attend(plan.places), plan.places.index
    hidden = draft.fc(features[:, :length].flatten(0, 1))
    positions = torch.arange(length, device=ids.device).repeat(len(ids))
    total = hidden.new_zeros((), dtype=torch.float32)
    for step in range(steps):
        tokens = embeddings[:, 1 + step : 1 + step + length].flatten(0, 1)
        if step == 0:
            hidden = draft.step(tokens, hidden, positions, attend, keep)
        else:
            hidden = draft.step(tokens[keep], hidden, positions[keep] + step, attend)
        rows, chunks = plan.row_of[step], None if terms is None else []
        known = teacher
        if rows.min() < 0:  # an answer that starts within the first tokens; rare, so the copy is too
            here = (rows >= 0).nonzero()[:, 0]
            rows, known = rows[here], teacher[here]
        states = draft.norm(hidden[rows])
        loss = distillation_loss(states, draft.lm_head.weight, known, objective.weights, objective.temperature, chunks)
        total = total + objective.decay**step * loss
        if terms is not None:
            terms.append(sum(chunks, Terms.zero()))
    return total
