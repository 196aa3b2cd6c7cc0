"""The loop: step after step from wherever the last run stopped, bit for bit the same on the CPU."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from datasets import Dataset

from specforge.config.steps import Train
from specforge.errors import UserError
from specforge.files import atomic_path
from specforge.model.draft import Draft
from specforge.progress import Progress
from specforge.target.model import Target
from specforge.train.batches import collate, step_batches
from specforge.train.losses import Terms
from specforge.train.optim import MasterAdamW, scheduled_lr
from specforge.train.preempt import Preempted, sigterm_flag
from specforge.train.resume import ResumeFolder, State
from specforge.train.unroll import Objective, unrolled_loss

log = logging.getLogger("specforge")

Report = Callable[[dict], None]


class Metrics:
    """metrics.jsonl of a run: one line a logged step; a resumed run drops the lines after its state."""

    def __init__(self, path: Path, resumed_step: int, report: Report | None):
        self.path, self.report = path, report
        kept = []
        if path.is_file():
            lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            kept = [line for line in lines if json.loads(line)["step"] <= resumed_step]
        with atomic_path(path) as partial:
            partial.write_text("".join(kept))

    def write(self, line: dict) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self.report:
            self.report(line)


def planned_steps(sequences: int, settings: Train, epochs: int) -> int:
    """Optimizer steps of a run: whole epochs, or `max_steps` when that is fewer."""
    steps = epochs * -(-sequences // settings.batch_size)
    return min(steps, settings.max_steps or steps)


class Trainer:
    """One draft, one objective, one rate."""

    def __init__(self, draft: Draft, target: Target, cache: Dataset, objective: Objective, settings: Train):
        self.draft, self.target, self.cache, self.objective, self.settings = draft, target, cache, objective, settings
        self.optimizer = MasterAdamW(draft, settings.betas, settings.weight_decay)
        self.device = draft.lm_head.weight.device
        self.lengths = [len(ids) for ids in cache["input_ids"]]
        self.tokens, self.seconds = 0, 0.0  # of all sessions

    def train(self, lr: float, epochs: int, resume: ResumeFolder, label: str, report: Report | None = None) -> int:
        """Trains to the last planned step and returns how many steps that is.

        Raises UserError when a loss or gradient is not finite; Preempted after SIGTERM, with the state saved.
        """
        steps = planned_steps(len(self.cache), self.settings, epochs)
        done = self._load(resume)
        metrics = Metrics(resume.folder / "metrics.jsonl", done, report)
        progress = Progress(label, steps, "steps", done)
        if done:
            log.info("%s: continuing after step %d of %d", label, done, steps)
        with sigterm_flag() as asked:
            for step, batch in step_batches(self.lengths, self.settings.batch_size, self.settings.seed, done, steps):
                line = self._step(batch, step, scheduled_lr(step, steps, lr, self.settings.warmup_share))
                finished = step + 1
                if "ce" in line:
                    metrics.write({"step": finished, **line})
                progress.advance(note=f"loss {line['loss']:.3f}")
                if finished % self.settings.save_every == 0 or finished == steps or asked.is_set():
                    facts = {"tokens": self.tokens, "seconds": self.seconds}
                    resume.save(State(finished, self.optimizer.state(), facts))
                if asked.is_set() and finished < steps:
                    log.warning("%s: SIGTERM, saved after step %d; run again to continue", label, finished)
                    raise Preempted(143)
        return steps

    def _load(self, resume: ResumeFolder) -> int:
        state = resume.load()
        if state is None:
            return 0
        self.optimizer.load(state.tensors)
        self.tokens, self.seconds = state.facts["tokens"], state.facts["seconds"]
        return state.step

    def _step(self, batch: list[int], step: int, lr: float) -> dict:
        """One optimizer step; returns its metrics, with every term's when the step is to be logged."""
        started = time.perf_counter()
        rows = self.cache[batch]
        ids, mask = collate(rows, self.device)
        supervised = int(mask[:, 1:].sum())
        terms: list[Terms] | None = [] if (step + 1) % self.settings.log_every == 0 else None
        loss = unrolled_loss(self.draft, self.target, ids, mask, self.objective, terms) / supervised
        loss.backward()
        norm = self.optimizer.step(lr, self.settings.grad_clip)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            raise UserError(
                f"step {step + 1}: loss {loss.item()}, gradient norm {norm.item()} on the conversations "
                f"{', '.join(map(str, rows['id']))}; lower the learning rate or look at these conversations."
            )
        tokens = int(sum(self.lengths[index] for index in batch))
        self.tokens += tokens
        seconds = time.perf_counter() - started
        self.seconds += seconds
        line = {"loss": loss.item(), "lr": lr, "grad_norm": norm.item()}
        if terms is not None:
            line |= _first_step_means(terms[0], supervised)
            line["accept_by_step"] = [(t.accept_sampled / supervised).item() for t in terms]
            line["tokens_per_second"] = tokens / seconds
        return line


def _first_step_means(terms: Terms, supervised: int) -> dict[str, float]:
    """Means over supervised tokens at the first unrolled step; `acceptance` is that of sampled drafting."""
    means = {name: (value / supervised).item() for name, value in asdict(terms).items()}
    return means | {"acceptance": means["accept_sampled"]}
