"""What is measured beside training: acceptance on held-out sequences, and each term's share of the gradient."""

from dataclasses import replace
from itertools import accumulate
from operator import mul
from typing import Any

import torch

from specforge.model.draft import Draft
from specforge.target.model import Target
from specforge.train.batches import Batch
from specforge.train.optim import MasterAdamW
from specforge.train.parallel import Team
from specforge.train.unroll import Objective, Plan, observe, step_means, supervised, unrolled_loss

ACCEPTANCE = ("accept_sampled", "accept_greedy", "accept_top1")


def forward(
    draft: Draft, target: Target, batch: Batch, objective: Objective, told: list[torch.Tensor] | None = None
) -> torch.Tensor:
    """The teacher-forced loss of one batch from the CPU, a sum; see `unrolled_loss`. Zero where nothing is to learn."""
    batch, plan = placed(batch, objective, draft.lm_head.weight.device)
    if not plan.states:
        return torch.zeros((), device=draft.lm_head.weight.device)
    observed = observe(target, batch, plan, draft.target_ids, objective.temperature)
    return unrolled_loss(draft, target.embed, batch, plan, observed, objective, told)


def placed(batch: Batch, objective: Objective, device: torch.device) -> tuple[Batch, Plan]:
    """A batch from the CPU and its plan, on `device`."""
    plan, batch = Plan.of(batch, objective.ttt_length, objective.mask_shift), batch.to(device)
    return batch, plan.to(device, batch.packing)


@torch.no_grad()
def acceptance(draft: Draft, target: Target, batches: list[Batch], objective: Objective, team: Team) -> dict[str, Any]:
    """Of held-out text, by the three definitions: a list over positions each, and the accept length they imply.

    `accept_length` is 1 + a_1 + a_1 a_2 + ... of sampled drafting, the bonus token included. All processes must ask;
    each brings its own batches.
    """
    totals = torch.zeros(objective.ttt_length, 7, device=team.device, dtype=torch.float64)
    for batch in batches:
        told: list[torch.Tensor] = []
        forward(draft, target, batch, objective, told)
        if told:
            totals += torch.stack(told)
    counts = torch.zeros((), device=team.device)
    for batch in batches:
        counts += int(supervised(batch.mask, batch.packing, objective.mask_shift).sum())
    means = step_means(list(team.sum(totals)), max(1.0, team.sum(counts).item()))
    length = 1 + sum(accumulate(means["accept_sampled"], mul))
    return {name: means[name] for name in ACCEPTANCE} | {"accept_length": length}


def gradient_norms(
    draft: Draft,
    target: Target,
    batches: list[Batch],
    objective: Objective,
    optimizer: MasterAdamW,
    count: float,
    team: Team,
) -> dict[str, float]:
    """Norm of the gradient of each weighted term, teacher-forced, as a mean over `count` tokens; all must ask."""
    norms = {}
    for name, alone in objective.weights.terms().items():
        for batch in batches:
            loss = forward(draft, target, batch, replace(objective, weights=alone))
            if loss.requires_grad:
                loss.backward()
        norms[name] = optimizer.gradient_norm(team, count)
    return norms
