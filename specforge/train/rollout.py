"""On-policy rollouts: the draft goes on by its own samples, and is taught at the states that it gets itself into.

From anchor positions t, supervised ones, the draft samples y_1..y_K-1 one after the other from its q; the target then
scores every drafted prefix x[..t+1], y_1..y_i in one masked pass over the branches, and the reverse KL and the hinge,
expectations over the draft's own choices, are taken there (on-policy distillation: Agarwal et al. 2023, GKD). The
samples carry no gradient; the terms are exact sums over the draft vocabulary at each state.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from specforge.files import digest
from specforge.model.draft import Draft
from specforge.model.flash import Places
from specforge.target.model import Target
from specforge.train.batches import Batch
from specforge.train.head import distillation_loss
from specforge.train.losses import LossWeights, Teacher, wide
from specforge.train.unroll import Objective, Plan, teach, unroll

ON_POLICY = ("lambda_rkl", "beta_hinge")


def on_policy(weights: LossWeights) -> LossWeights:
    """The terms that rollouts teach."""
    return LossWeights(**{name: getattr(weights, name) for name in ON_POLICY})


def teacher_forced(weights: LossWeights) -> LossWeights:
    """The terms that stay on the data's own text."""
    return replace(weights, **dict.fromkeys(ON_POLICY, 0.0))


@dataclass(frozen=True)
class Draws:
    """All that is random in a rollout of A anchors: `anchors` int64 [A], places in the batch, ascending; `uniform`
    fp64 [A, K-1], what their samples are drawn with; `worth` fp64 [A], how many supervised places each stands for.

    Each sequence has its own, named by itself and the seed, so that neither packing nor processes change them.
    """

    anchors: Tensor
    uniform: Tensor
    worth: Tensor

    @classmethod
    def of(cls, batch: Batch, plan: Plan, share: float, seed: str) -> "Draws":
        """A random `share` of each sequence's places whose first prediction is supervised, at least one; on the CPU."""
        places = plan.places.index[plan.drafted[0]]
        sequence, lengths = batch.packing.sequence[places], batch.packing.starts.diff().tolist()
        parts = []
        for number in sequence.unique().tolist():
            mine = places[sequence == number]
            name = digest(seed, batch.names[number], lengths[number])
            generator = torch.Generator().manual_seed(int(name, 16) >> 1)
            count = max(1, round(share * len(mine)))
            anchors = mine[torch.randperm(len(mine), generator=generator)[:count]].sort().values
            uniform = torch.rand(count, len(plan.drafted) - 1, generator=generator, dtype=torch.float64)
            parts.append((anchors, uniform, torch.full((count,), len(mine) / count, dtype=torch.float64)))
        return cls(*map(torch.cat, zip(*parts, strict=True)))

    def to(self, device: torch.device) -> "Draws":
        return Draws(*(x.to(device) for x in (self.anchors, self.uniform, self.worth)))


@dataclass(frozen=True)
class Branches:
    """Sampled continuations of A anchors: `tokens` int64 [A, K-1], target ids, the i-th sampled from the draft's state
    i; `alive` bool [A, K], states before an end token.
    """

    anchors: Tensor
    tokens: Tensor
    alive: Tensor


@torch.no_grad()
def sample(draft: Draft, state: Tensor, temperature: float, uniform: Tensor) -> Tensor:
    """A target id from q at each state [A, H], where the cumulative distribution passes `uniform` [A]; int64 [A]."""
    cumulative = torch.softmax(wide(draft.logits(state)) / temperature, -1).cumsum(-1)
    drawn = torch.searchsorted(cumulative, uniform[:, None].to(cumulative.dtype) * cumulative[:, -1:])
    return draft.target_ids[drawn[:, 0].clamp_max(cumulative.shape[1] - 1)]


@torch.no_grad()
def score(target: Target, batch: Batch, branches: Branches, cache: DynamicCache) -> Tensor:
    """The target's final states [A, K-1, H] at the sampled tokens, in one pass; `cache` holds the batch."""
    anchors, steps = branches.anchors, branches.tokens.shape[1]
    count, length = len(anchors), len(batch.ids)
    depth = torch.arange(steps, device=anchors.device).repeat(count)
    branch = torch.arange(count, device=anchors.device).repeat_interleave(steps)
    root = (anchors + 1)[branch]  # the last token of the text that a branch continues
    place = torch.arange(length, device=anchors.device)
    sequence = batch.packing.sequence
    text = (sequence[root][:, None] == sequence) & (place <= root[:, None])
    own = (branch[:, None] == branch) & (depth <= depth[:, None])
    positions = batch.packing.positions[root] + 1 + depth
    final = target.branches(branches.tokens.flatten(), positions, torch.cat((text, own), 1), cache)
    return final.unflatten(0, (count, steps))


def rollout_loss(draft: Draft, target: Target, batch: Batch, draws: Draws, objective: Objective) -> Tensor:
    """Sum over the batch's supervised tokens of the decayed on-policy terms, estimated from the anchors of `draws`."""
    steps, temperature, anchors = objective.ttt_length, objective.temperature, draws.anchors
    cache = DynamicCache()
    with torch.no_grad():
        features, final = target.packed(batch.ids, batch.packing, cache)
    tokens: list[Tensor] = []

    def embedding_at(step: int, state: Tensor | None) -> Tensor:
        if step == 0:
            return target.embed(F.pad(batch.ids, (0, 1))[1:])
        tokens.append(sample(draft, state, temperature, draws.uniform[:, step - 1]))
        return target.embed(tokens[-1])

    states = list(unroll(draft, features, Places(anchors, batch.packing), embedding_at, steps))
    branches = _branches(anchors, tokens, target.end_ids)
    seen = final.index_select(0, anchors + 1)[:, None]
    if tokens:
        seen = torch.cat((seen, score(target, batch, branches, cache)), 1)
    teacher: Teacher = teach(target, seen.flatten(0, 1), draft.target_ids, temperature)
    rows = branches.alive.flatten().nonzero()[:, 0]
    decay = objective.decay ** torch.arange(steps, device=rows.device)
    scale = (draws.worth[:, None] * decay).flatten()[rows].to(teacher.log_norm.dtype)
    normed = draft.norm(torch.stack(states, 1).flatten(0, 1).index_select(0, rows))
    return distillation_loss(normed, draft.lm_head.weight, teacher, rows, scale, on_policy(objective.weights))


def _branches(anchors: Tensor, tokens: list[Tensor], end_ids: Tensor) -> Branches:
    """A state counts until an end token was said."""
    said = torch.stack(tokens, 1) if tokens else anchors.new_empty(len(anchors), 0)
    ended = F.pad(torch.isin(said, end_ids.to(said.device)).cumsum(1) > 0, (1, 0))
    return Branches(anchors, said, ~ended)
