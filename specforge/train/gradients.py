"""One step's gradients: this process's share of a batch, micro-batch after micro-batch, the target's pass with each."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from specforge.config.steps import Train
from specforge.errors import UserError
from specforge.files import digest
from specforge.model.draft import Draft
from specforge.target.model import Target
from specforge.train.batches import Batch, micro_batches, pack_rows, share_of
from specforge.train.cost import Work, draft_flops
from specforge.train.fit import fitting_tokens
from specforge.train.losses import FIGURES
from specforge.train.measure import placed
from specforge.train.optim import MasterAdamW
from specforge.train.parallel import Team
from specforge.train.rollout import Draws, on_policy, rollout_loss, teacher_forced
from specforge.train.unroll import Objective, Observed, Plan, observe, unrolled_loss

log = logging.getLogger("specforge")


@dataclass
class Sums:
    """Of this process's share: the loss over the step's count, FIGURES of each unrolled step [K, 7], operations."""

    loss: Tensor
    told: Tensor
    flops: float = 0.0


@dataclass
class Gradients:
    """Adds the gradients of batches to `optimizer`'s."""

    draft: Draft
    target: Target
    objective: Objective
    settings: Train
    optimizer: MasterAdamW
    team: Team
    micro_tokens: int = field(init=False)

    def __post_init__(self):
        device, moments = self.team.device, 8 * len(self.optimizer.master)
        fitting = fitting_tokens(self.draft.config, self.settings, device, moments)
        self.micro_tokens = self.settings.micro_tokens or self.team.least(fitting)

    def add(self, rows: dict[str, Any], step: int, count: float, logged: bool) -> Sums:
        """Of the whole batch `rows`, divided by `count`. FIGURES only where `logged`, else zero.

        Where memory does not suffice, micro-batches are halved from then on. Raises UserError where one sequence alone
        is too much.
        """
        while True:
            try:
                return self._add(rows, step, count, logged)
            except torch.OutOfMemoryError:
                longest = max(map(len, rows["input_ids"]))
                if self.settings.target_tp > 1 or self.micro_tokens <= longest:
                    raise UserError(
                        f"Micro-batches of {self.micro_tokens} tokens do not fit this GPU's memory; lower "
                        "train.micro_tokens, max_length, train.ttt_length or preprocess.draft_vocab_size."
                    ) from None
            self.micro_tokens = max(longest, self.micro_tokens // 2)
            self.optimizer.drop_gradients()
            torch.cuda.empty_cache()
            log.warning("out of memory; going on with micro-batches of %d tokens", self.micro_tokens)

    def _add(self, rows: dict[str, Any], step: int, count: float, logged: bool) -> Sums:
        device = self.team.device
        sums = Sums(torch.zeros((), device=device), torch.zeros(self.objective.ttt_length, len(FIGURES), device=device))
        for batch, plan, observed, squares, draws in self._observed(rows, logged, step):
            told: list[Tensor] | None = [] if logged else None
            loss = self._loss(batch, plan, observed, draws, told)
            loss.backward()  # a sum; the optimizer divides
            sums.loss += loss.detach() / count
            if told:
                sums.told += torch.stack(told)
            work = Work(len(batch.ids), len(plan.places.index), plan.states, len(plan.taught), squares)
            sums.flops += draft_flops(self.draft.config, self.target.vocab_size, work, self.objective.ttt_length)
        return sums

    def _observed(
        self, rows: dict[str, Any], logged: bool, step: int
    ) -> Iterator[tuple[Batch, Plan, Observed | None, int, Draws | None]]:
        """This process's micro-batches on its device, with what the target says of each, where a loss needs it; the
        lengths squared and summed; what a rollout draws.

        Where the target is spread over the team, all of it takes part in every member's passes.
        """
        ranks = range(self.team.size) if self.settings.target_tp > 1 else [self.team.rank]
        for pieces in zip_longest(*(self._pieces(rows, rank) for rank in ranks)):
            mine = None
            for rank, piece in zip(ranks, pieces, strict=True):
                if piece is None:
                    continue
                batch, plan = placed(piece, self.objective, self.team.device)
                if not plan.states:  # a shifted mask may leave a sequence nothing to learn
                    continue
                observed = None
                if logged or self._forced.terms():
                    observed = observe(self.target, batch, plan, self.draft.target_ids, self.objective.temperature)
                if rank == self.team.rank:
                    squares = int(piece.packing.starts.diff().long().square().sum())
                    mine = batch, plan, observed, squares, self._draws(piece, step)
            if mine:
                yield mine

    def _draws(self, piece: Batch, step: int) -> Draws | None:
        objective, settings = self.objective, self.settings
        if settings.rollout != "on_policy" or not on_policy(objective.weights).terms():
            return None
        plan = Plan.of(piece, objective.ttt_length, objective.mask_shift)
        return Draws.of(piece, plan, settings.rollout_share, digest(settings.seed, step)).to(self.team.device)

    def _pieces(self, rows: dict[str, Any], rank: int) -> list[Batch]:
        """The micro-batches of process `rank`."""
        lengths = list(map(len, rows["input_ids"]))
        share = share_of(range(len(lengths)), lengths, rank, self.team.size)
        return [pack_rows(rows, piece) for piece in micro_batches(share, lengths, self.micro_tokens)]

    @property
    def _forced(self):
        weights = self.objective.weights
        return teacher_forced(weights) if self.settings.rollout == "on_policy" else weights

    def _loss(
        self, batch: Batch, plan: Plan, observed: Observed | None, draws: Draws | None, told: list[Tensor] | None
    ) -> Tensor:
        """The weighted loss of a micro-batch, a sum."""
        objective = self.objective
        loss = torch.zeros((), device=self.team.device)
        if observed is not None:
            forced = replace(objective, weights=self._forced)
            with torch.set_grad_enabled(bool(self._forced.terms())):
                loss = unrolled_loss(self.draft, self.target.embed, batch, plan, observed, forced, told)
        if draws is not None:
            loss = loss + rollout_loss(self.draft, self.target, batch, draws, objective)
        return loss
