"""What a run would start on Modal and what that would cost, before anything is started."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from specforge.cloud import ledger
from specforge.cloud.job import params_digest
from specforge.cloud.places import STATE
from specforge.config.cloud import HOURS, Gpus
from specforge.config.paths import Paths
from specforge.config.schema import Config
from specforge.errors import UserError
from specforge.files import read_json, read_jsonl

HISTORY = STATE / "history.jsonl"
MARGIN_HOURS = 0.05  # a container's start, weights from the volume, outputs back


class StaleJob(Protocol):
    """What a Snakemake job says of itself."""

    rule: Any
    wildcards: Any
    params: Any
    output: Iterable[str]


@dataclass(frozen=True)
class Line:
    """One stale job. `basis` says where its hours come from, `cost` is in dollars."""

    name: str
    gpus: Gpus | None
    hours: float
    basis: str
    cost: float


def plan(cfg: Config, jobs: Iterable[StaleJob], live: Callable[[str], bool] = lambda call: False) -> list[Line]:
    """`live` says whether Modal still runs a call, which is then paid for. Raises UserError for a missing price."""
    lines = [line for job in jobs if (line := _line(cfg, job, live)) is not None]
    return sorted(lines, key=lambda line: (list(HOURS).index(line.name.split()[0]), line.name))


def _line(cfg: Config, job: StaleJob, live: Callable[[str], bool]) -> Line | None:
    rule = str(job.rule)
    if rule not in HOURS:  # it runs here
        return None
    name = " ".join([rule, *(f"lr{value}" if key == "lr" else value for key, value in job.wildcards.items())])
    gpus = cfg.gpus(rule)
    if running := _running(job, live):
        return Line(name, gpus, 0.0, f"call {running} runs already", 0.0)
    hours, basis = _expected(cfg, rule, gpus)
    try:
        cost = cfg.modal.price(gpus) * hours if gpus else 0.0
    except KeyError:
        raise UserError(f"modal.prices has no price for {gpus.kind}; add the dollars of one for an hour.") from None
    return Line(name, gpus, hours, basis, cost)


def _running(job: StaleJob, live: Callable[[str], bool]) -> str | None:
    """The call that the job will attach to: of the same files and params, not one that it will cancel."""
    outputs, params = set(map(str, job.output)), params_digest(job.params)
    noted = (r["call"] for r in ledger.entries() if outputs & set(r["outputs"]) and r["params"] == params)
    return next(filter(live, noted), None)


def _expected(cfg: Config, rule: str, gpus: Gpus | None) -> tuple[float, str]:
    """Hours of one job, from what earlier ones tell or, failing that, from the configuration."""
    if rule == "run_training" and gpus and (told := _from_manifests(cfg, gpus)):
        return told + MARGIN_HOURS, "earlier runs' tokens/s"
    past = [row["seconds"] for row in _history() if (row["rule"], row["gpus"]) == (rule, str(gpus or ""))]
    if past:
        return median(past) / 3600 + MARGIN_HOURS, f"{len(past)} earlier"
    return cfg.modal.expected_hours(rule), "modal.hours"


def _from_manifests(cfg: Config, gpus: Gpus) -> float | None:
    """Hours at the median tokens/s a GPU of earlier runs on this target and GPU type, for the cache as it is."""
    paths = Paths(cfg)
    if not (Path(paths.cache["summary"]).is_file() and Path(paths.target).is_file()):
        return None
    tokens, target = read_json(Path(paths.cache["summary"]))["tokens"], read_json(Path(paths.target))["sha256"]
    manifests = (read_json(path) for path in Path("checkpoints").glob("*/*/*/manifest.json"))
    rates = [
        run["tokens"] / run["seconds"] / run["processes"]
        for run in manifests
        if run["inputs"]["target"] == target and _is_kind(gpus.kind, run.get("device", "")) and run["seconds"]
    ]
    return tokens * cfg.num_epochs / (median(rates) * gpus.count) / 3600 if rates else None


def _is_kind(kind: str, device: str) -> bool:
    """Whether a device's name, such as `NVIDIA A100-SXM4-80GB`, is of the GPU type that Modal calls `A100-80GB`."""
    words = re.split(r"[^A-Za-z0-9]+", device)
    return all(part in words for part in kind.rstrip("!").split("-"))


def remember(rule: str, gpus: str, seconds: float) -> None:
    """Notes how long a finished call worked, for later plans."""
    HISTORY.parent.mkdir(exist_ok=True)
    with HISTORY.open("a") as file:
        file.write(json.dumps({"rule": rule, "gpus": gpus, "seconds": seconds}) + "\n")


def _history() -> list[dict[str, Any]]:
    return list(read_jsonl(HISTORY)) if HISTORY.is_file() else []


def table(lines: list[Line]) -> str:
    """The plan as text, its total last."""
    width = max((len(line.name) for line in lines), default=3)
    rows = [f"{'job':{width}}  {'GPUs':>9}  {'hours':>6}  {'dollars':>8}  hours from"]
    rows += [
        f"{line.name:{width}}  {line.gpus or '-'!s:>9}  {line.hours:6.2f}  {line.cost:8.2f}  {line.basis}"
        for line in lines
    ]
    gpu_hours = sum(line.hours * line.gpus.count for line in lines if line.gpus)
    rows.append(f"{len(lines)} jobs, {gpu_hours:.1f} GPU hours, {total(lines):.2f} dollars (GPUs only)")
    return "\n".join(rows)


def total(lines: list[Line]) -> float:
    return sum(line.cost for line in lines)


def check_budget(cfg: Config, lines: list[Line]) -> None:
    """Raises UserError when the plan costs more than the budget."""
    if cfg.budget is not None and total(lines) > cfg.budget:
        raise UserError(
            f"the plan costs {total(lines):.2f} dollars, more than budget, {cfg.budget:.2f}; nothing was started. "
            "Choose fewer runs (ablations, lr_sweep) or cheaper GPUs (gpu), or raise budget."
        )
