"""The training-time test: the draft unrolled over its own states, K steps, against the target at every step.

Position t of the draft reads token x[t+1+i] and predicts x[t+2+i] at step i; the teacher is the target at index
t+1+i. So one row of the teacher, at index s - 1 for the token s, serves all K steps: at step i it belongs to draft
position s - 2 - i.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from specforge.model.attention import UnrolledAttention
from specforge.model.draft import Draft
from specforge.model.flash import Places
from specforge.model.packing import Packing
from specforge.target.model import Target
from specforge.train.batches import Batch
from specforge.train.head import distillation_loss, new_figures
from specforge.train.losses import FIGURES, LossWeights, Teacher, teacher_from_logits

TEACHER_ELEMENTS = 1 << 27  # logits over the target's vocabulary held at once: 512 MiB of fp32


@dataclass(frozen=True)
class Objective:
    """What a run minimises: sum over steps i of decay^i * loss_i, over the supervised tokens.

    A prediction of x[s] is supervised when x[s - mask_shift] is a token to learn. The shift is 0 by what a draft is
    for: its proposals inside answers. SpecForge masks by the position whose features are read, 2.
    """

    weights: LossWeights
    ttt_length: int
    decay: float
    temperature: float
    mask_shift: int = 0


@dataclass(frozen=True)
class Plan:
    """Which of a batch's N places are unrolled, and whose loss each gives at each step.

    `places` are the M positions that some step's loss needs; the teacher's rows are the target at `taught` int64 [n].
    At step i the draft's rows `drafted`[i] meet the teacher's `teachers`[i], int64 [n_i] both.
    """

    places: Places
    taught: Tensor
    drafted: list[Tensor]
    teachers: list[Tensor]

    @classmethod
    def of(cls, batch: Batch, steps: int, shift: int = 0) -> "Plan":
        """Of a batch that is still on the CPU: on a GPU, asking how many there are would wait for all work before."""
        token = supervised(batch.mask, batch.packing, shift).nonzero()[:, 0]
        at = batch.packing.positions[token]
        teachers = [(at > step + 1).nonzero()[:, 0] for step in range(steps)]
        drafted = [token[rows] - 2 - step for step, rows in enumerate(teachers)]
        needed = torch.zeros(len(batch.mask), dtype=torch.bool)
        needed[torch.cat(drafted)] = True
        row_at = needed.cumsum(0) - 1
        places = Places(needed.nonzero()[:, 0], batch.packing)
        return cls(places, token - 1, [row_at[place] for place in drafted], teachers)

    @property
    def states(self) -> int:
        """Draft states that meet the head, over all steps."""
        return sum(map(len, self.drafted))

    def to(self, device: torch.device, packing: Packing) -> "Plan":
        """On a device, where `packing` is already."""
        places = Places(self.places.index.to(device, non_blocking=True), packing)
        drafted, teachers = ([x.to(device, non_blocking=True) for x in rows] for rows in (self.drafted, self.teachers))
        return Plan(places, self.taught.to(device, non_blocking=True), drafted, teachers)


def supervised(mask: Tensor, packing: Packing, shift: int = 0) -> Tensor:
    """Tokens whose prediction counts, bool [N]: the draft's first in a sequence is the third token."""
    if shift:
        mask = F.pad(mask, (shift, 0))[: len(mask)] & (packing.positions >= shift)
    return mask & (packing.positions >= 2)


@dataclass(frozen=True)
class Observed:
    """What the target says of a batch: features [N, 3H], and the Teacher at the plan's rows."""

    features: Tensor
    teacher: Teacher


@torch.no_grad()
def teach(target: Target, final: Tensor, target_ids: Tensor, temperature: float) -> Teacher:
    """The Teacher at final states [N, H], the target's logits formed in chunks."""
    rows = max(1, TEACHER_ELEMENTS // target.vocab_size)
    return Teacher.cat([teacher_from_logits(target.head(part), target_ids, temperature) for part in final.split(rows)])


@torch.no_grad()
def observe(target: Target, batch: Batch, plan: Plan, target_ids: Tensor, temperature: float) -> Observed:
    """One pass of the target over a batch."""
    features, final = target.packed(batch.ids, batch.packing)
    return Observed(features, teach(target, final.index_select(0, plan.taught), target_ids, temperature))


def unroll(
    draft: Draft, features: Tensor, places: Places, embedding_at: Callable[[int, Tensor | None], Tensor], steps: int
) -> Iterator[Tensor]:
    """The draft's states [M, H] at `places`, step after step.

    `embedding_at(step, state)` gives the embeddings of the tokens read: all N at step 0, the M at later ones, where
    `state` is the one just yielded.
    """
    attend, keep = UnrolledAttention(places), places.index
    positions = places.packing.positions
    hidden = draft.fc(features)
    for step in range(steps):
        tokens = embedding_at(step, hidden if step else None)
        if step == 0:
            hidden = draft.step(tokens, hidden, positions, attend, keep)
        else:
            hidden = draft.step(tokens, hidden, positions[keep] + step, attend)
        yield hidden


def unrolled_loss(
    draft: Draft,
    embed: Callable[[Tensor], Tensor],
    batch: Batch,
    plan: Plan,
    observed: Observed,
    objective: Objective,
    told: list[Tensor] | None = None,
) -> Tensor:
    """Sum over a batch's supervised tokens and unrolled steps of the decayed loss, a scalar.

    Args:
        embed: the target's embedding, int64 [n] to [n, H].
        told: when given, receives one fp32 [7] a step, the sums of FIGURES over that step's rows.
    """
    steps, keep = objective.ttt_length, plan.places.index
    ids = F.pad(batch.ids, (0, steps))

    def embedding_at(step: int, state: Tensor | None) -> Tensor:
        return embed(ids[1 : 1 + len(batch.ids)] if step == 0 else ids[keep + 1 + step])

    hidden = unroll(draft, observed.features, plan.places, embedding_at, steps)
    states = torch.cat([x.index_select(0, rows) for x, rows in zip(hidden, plan.drafted, strict=True)])
    counts, like = [len(rows) for rows in plan.drafted], observed.teacher.log_norm
    scale = torch.cat([like.new_full((count,), objective.decay**step) for step, count in enumerate(counts)])
    figures = None if told is None else new_figures(like, sum(counts))
    loss = distillation_loss(
        draft.norm(states), draft.lm_head.weight, observed.teacher, torch.cat(plan.teachers), scale,
        objective.weights, figures,
    )  # fmt: skip
    if figures is not None:
        told += [part.sum(0) for part in figures.split(counts)]
    return loss


def step_means(told: list[Tensor], count: float) -> dict[str, list[float]]:
    """Sums as `unrolled_loss` tells them to means over `count` tokens: a list over steps for each of FIGURES."""
    table = (torch.stack(told) / count).tolist()
    return {name: [row[column] for row in table] for column, name in enumerate(FIGURES)}
