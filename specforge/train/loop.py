"""The loop: step after step from wherever the last run stopped, bit for bit the same on the CPU."""

import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specforge.config.steps import Train
from specforge.data.cache import TokenCache
from specforge.errors import UserError
from specforge.model.draft import Draft
from specforge.model.files import save_draft
from specforge.progress import Progress
from specforge.target.model import Target
from specforge.train.batches import Batch, held_out, micro_batches, pack_rows, step_batches
from specforge.train.cost import peak_rate
from specforge.train.gradients import Gradients
from specforge.train.measure import acceptance, forward, gradient_norms
from specforge.train.metrics import Metrics, Report, peak_memory, told_line
from specforge.train.optim import MasterAdamW, scheduled_lr
from specforge.train.parallel import Team
from specforge.train.preempt import Preempted, sigterm_flag
from specforge.train.prefetch import prefetched
from specforge.train.resume import ResumeFolder, State
from specforge.train.unroll import Objective, step_means, supervised

log = logging.getLogger("specforge")


def planned_steps(sequences: int, settings: Train, epochs: int) -> int:
    """Optimizer steps of a run: whole epochs, or `max_steps` when that is fewer."""
    steps = epochs * -(-sequences // settings.batch_size)
    return min(steps, settings.max_steps or steps)


def best_name(step: int | None) -> str:
    """Folder of the draft that was the best after `step`."""
    return f"best-{step}"


class Trainer:
    """One draft, one objective, one rate; on every process of a team."""

    def __init__(
        self,
        draft: Draft,
        target: Target,
        cache: TokenCache,
        objective: Objective,
        settings: Train,
        team: Team | None = None,
    ):
        self.draft, self.target, self.cache, self.objective, self.settings = draft, target, cache, objective, settings
        self.team = team or Team(device=draft.lm_head.weight.device)
        self.optimizer = MasterAdamW(draft, settings.betas, settings.weight_decay, self.team)
        self.device = draft.lm_head.weight.device
        self.held = held_out(cache.names, settings.held_out, settings.seed)
        self.rows = np.delete(np.arange(len(cache)), self.held).tolist()  # of the cache, that are trained on
        self.lengths = cache.lengths[self.rows].tolist()
        self.gradients = Gradients(draft, target, objective, settings, self.optimizer, self.team)
        self.tokens, self.seconds = 0, 0.0  # of all sessions
        self.best: dict[str, Any] = {"step": None, "accept_length": 0.0}

    def train(self, lr: float, epochs: int, resume: ResumeFolder, label: str, report: Report | None = None) -> int:
        """Trains to the last planned step and returns how many steps that is.

        Raises UserError when a loss or gradient is not finite; Preempted after SIGTERM, with the state saved.
        """
        steps = planned_steps(len(self.rows), self.settings, epochs)
        done = self._load(resume)
        metrics = Metrics(resume.folder / "metrics.jsonl", done, report) if self.team.leads else None
        progress = Progress(label, steps, "steps", done)
        if done and metrics:
            log.info("%s: continuing after step %d of %d", label, done, steps)
        with sigterm_flag() as asked:
            for step, rows in prefetched(self._feed(done, steps), self.device.type == "cuda"):
                rate = scheduled_lr(step, steps, lr, self.settings.warmup_share)
                line, stop = self._step(rows, step, rate, asked)
                finished = step + 1
                last = finished == steps
                if finished % self.settings.validate_every == 0 or last:
                    line |= self._validate(finished, resume.folder)
                if metrics:
                    if "ce" in line or "held_out" in line:
                        metrics.write({"step": finished, **line})
                    progress.advance(note=f"loss {line['loss']:.3f}")
                if finished % self.settings.save_every == 0 or last or stop:
                    self._save(finished, resume)
                if stop and not last:
                    log.warning("%s: SIGTERM, saved after step %d; run again to continue", label, finished)
                    raise Preempted(143)
        return steps

    def _feed(self, done: int, steps: int) -> Iterator[tuple[int, dict]]:
        """Each step's number and the rows of its whole batch."""
        for step, batch in step_batches(self.lengths, self.settings.batch_size, self.settings.seed, done, steps):
            yield step, self.cache[[self.rows[index] for index in batch]]

    def _load(self, resume: ResumeFolder) -> int:
        state = resume.load()
        step = state.step if state else 0
        if self.team.sum(torch.tensor(step, device=self.device)).item() != step * self.team.size:
            raise UserError(f"{resume.folder}: the processes found different states; remove the newest and run again.")
        if state is None:
            return 0
        self.optimizer.load(state.tensors)
        self.tokens, self.seconds, self.best = (state.facts[name] for name in ("tokens", "seconds", "best"))
        return state.step

    def _save(self, step: int, resume: ResumeFolder) -> None:
        tensors = self.optimizer.state()
        if self.team.leads:
            facts = {"tokens": self.tokens, "seconds": self.seconds, "best": self.best}
            resume.save(State(step, tensors, facts))
            for other in resume.folder.glob("best-*"):  # only now: the state before may have named it
                if other.name != best_name(self.best["step"]):
                    shutil.rmtree(other)

    def _step(self, rows: dict, step: int, lr: float, asked: Event) -> tuple[dict, bool]:
        """One optimizer step; its metrics, with every term's when the step is to be logged; whether to stop."""
        started = time.perf_counter()
        count = self._count(rows)
        logged = (step + 1) % self.settings.log_every == 0
        sums = self.gradients.add(rows, step, count, logged)
        signals = self.team.sum(torch.stack((sums.loss, sums.loss.new_tensor(float(asked.is_set())))))
        loss = signals[0].item()
        if not np.isfinite(loss):
            raise UserError(self._blame(rows, step, f"the {self._broken_term(rows)} is {loss}"))
        norm = self.optimizer.step(lr, self.settings.grad_clip, count).item()
        if not np.isfinite(norm):
            raise UserError(self._blame(rows, step, f"the gradient's norm is {norm}"))
        tokens = sum(map(len, rows["input_ids"]))
        seconds = time.perf_counter() - started
        self.tokens, self.seconds = self.tokens + tokens, self.seconds + seconds
        line = {"loss": loss, "lr": lr, "grad_norm": norm}
        if logged:
            line |= told_line(list(self.team.sum(sums.told)), count)
            line |= {"tokens_per_second": tokens / seconds, "memory_mib": peak_memory(self.device)}
            if peak := peak_rate(self.device):
                line["share_of_peak"] = sums.flops / seconds / peak
        return line, bool(signals[1])

    def _count(self, rows: dict) -> float:
        """What a step's sums are divided by: tokens of the whole batch, over all processes."""
        if self.settings.normaliser == "positions":
            return float(sum(map(len, rows["input_ids"])))
        whole = Batch.pack(rows)
        return max(1.0, float(supervised(whole.mask, whole.packing, self.objective.mask_shift).sum()))

    def _validate(self, step: int, folder: Path) -> dict:
        """Held-out acceptance and gradient norms by term; keeps the draft with the longest held-out accept length."""
        if not self.held:
            return {}
        rows = self.cache[self.held]
        lengths = list(map(len, rows["input_ids"]))
        # a target that is spread over the team needs all of it in every pass, so then each takes all the sequences
        team = Team(device=self.device) if self.settings.target_tp > 1 else self.team
        mine = range(len(lengths))[team.rank :: team.size]
        batches = [pack_rows(rows, piece) for piece in micro_batches(mine, lengths, self.gradients.micro_tokens)]
        measured = acceptance(self.draft, self.target, batches, self.objective, team)
        norms = gradient_norms(
            self.draft, self.target, batches, self.objective, self.optimizer, self._count(rows), team
        )
        if measured["accept_length"] > self.best["accept_length"]:
            self.best = {"step": step, "accept_length": measured["accept_length"]}
            if self.team.leads:
                save_draft(folder / best_name(step), self.draft, getattr(torch, self.settings.dtype))
        return {"held_out": measured, "grad_norm_by_term": norms}

    @torch.no_grad()
    def _broken_term(self, rows: dict) -> str:
        """Name of the first term that is not finite on these rows."""
        for at in range(len(rows["id"])):
            one = pack_rows(rows, [at])
            told: list[Tensor] = []
            forward(self.draft, self.target, one, self.objective, told)
            if not told:
                continue
            for name, values in step_means(told, 1.0).items():
                if not np.isfinite(values).all():
                    return f"term {name} (conversation {one.names[0]})"
        return "loss"

    def _blame(self, rows: dict, step: int, what: str) -> str:
        return (
            f"step {step + 1}: {what} on the conversations {', '.join(map(str, rows['id']))}; "
            "lower the learning rate or look at these conversations."
        )
