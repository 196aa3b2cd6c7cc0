"""report: every run's numbers on one page, in one table and in figures."""

import csv as csv_module
import io
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from specforge.config.rates import rate_tag
from specforge.errors import UserError
from specforge.files import read_json, read_jsonl, write_text
from specforge.report.figures import Curves, draw
from specforge.report.page import Cache, Experiment, Manifest, Prep, Regeneration, render
from specforge.report.rank import Evaluation, Ranked, Ranking, RunName, Scores, Standing, conclusion, rank

FIGURES = ("accept_length_by_rate", "accept_rate_by_position", "training_curves", "ranking")
log = logging.getLogger("specforge")
COMPARABLE = ("target", "num_draft_tokens", "max_new_tokens", "dtype", "seed", "num_prompts")
WEIGHTS = ("lambda_ce", "lambda_rkl", "beta_hinge", "lambda_tv", "lambda_lk_alpha", "lambda_lk_lambda")


def report(
    *,
    evaluations: list[str],
    manifests: list[str],
    metrics: list[str],
    prep: str,
    regenerate: str,
    cache: str,
    config: dict,
    html: str,
    csv: str,
    figures: dict[str, str],
) -> dict:
    """Writes the page, the table and the figures; returns the conclusion and the ranked runs.

    `metrics` are in the order of `manifests`; `figures` maps each name of FIGURES to its SVG file.
    Equal inputs give equal bytes.
    """
    _check_calls(evaluations, manifests, metrics, figures)
    evaluated = _evaluations(evaluations)
    trained, curves = _trainings(manifests, metrics)
    for run, path in zip((e.run for e in evaluated), evaluations, strict=True):
        if run not in trained:
            raise UserError(f"{path} evaluates {run}, but there is no manifest of that run; give it too.")
    settings = config.get("evaluate", {})
    ranking = rank(evaluated, samples=settings.get("bootstrap_samples", 2000), seed=settings.get("seed", 0))
    experiment = Experiment(
        ranking=ranking,
        manifests=trained,
        prep=_read(prep, Prep),
        regeneration=_regeneration(regenerate),
        cache=_read(cache, Cache),
        config=config,
    )
    drawn = draw(ranking, curves)
    for name, path in figures.items():
        write_text(Path(path), drawn[name])
    write_text(Path(csv), _table(ranking, trained))
    write_text(Path(html), render(experiment, drawn))
    log.info("%s The page: %s", conclusion(ranking)[0], html)
    return {"conclusion": conclusion(ranking), "ranking": [str(row.run) for row in ranking.rows]}


def _check_calls(evaluations: list[str], manifests: list[str], metrics: list[str], figures: dict) -> None:
    if not evaluations:
        raise UserError("The report has no evaluation to show; choose at least one ablation and rate.")
    if len(metrics) != len(manifests):
        raise UserError(
            f"The report got {len(manifests)} manifests but {len(metrics)} metrics files; a run needs both."
        )
    if unknown := sorted(set(figures) - set(FIGURES)):
        raise UserError(f"The report has no figure {unknown[0]!r}; its figures are {', '.join(FIGURES)}.")


def _valid(path: str, value: Any, kind: type) -> Any:
    """`value` as `kind`; extra keys are let pass, so that a step may say more than the report shows."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        problem = "is missing" if first["type"] == "missing" else f"is wrong ({first['msg']})"
        raise UserError(f"{path}: {where} {problem}; delete the file and run the rule that makes it.") from None


def _read(path: str, kind: type) -> Any:
    return _valid(path, read_json(Path(path)), kind)


def _regeneration(path: str) -> Regeneration | None:
    """None where regeneration was off, which its summary says by `settings: false` or `skipped: true`."""
    value = read_json(Path(path))
    off = isinstance(value, dict) and (value.get("skipped") or value.get("settings") is False)
    return None if off else _valid(path, value, Regeneration)


def _evaluations(paths: list[str]) -> list[Evaluation]:
    """Evaluations that can be compared: different runs, the same prompts and settings."""
    evaluations = [_read(path, Evaluation) for path in paths]
    seen: dict[RunName, str] = {}
    for path, evaluation in zip(paths, evaluations, strict=True):
        if evaluation.run in seen:
            raise UserError(f"{path} and {seen[evaluation.run]} both evaluate {evaluation.run}; give one of them.")
        seen[evaluation.run] = path
        _check_names(path, evaluation)
        _check_prompts(path, evaluation)
        _check_comparable(path, evaluation, paths[0], evaluations[0])
    return evaluations


def _check_names(path: str, evaluation: Evaluation) -> None:
    if not evaluation.temperatures:
        raise UserError(f"{path}: temperatures is empty; evaluate the run at one temperature or more.")
    try:
        rate_tag(evaluation.run.lr)
        [float(name) for name in evaluation.temperatures]
    except ValueError as error:
        raise UserError(f"{path}: run.lr and temperatures must be numbers ({error}); evaluate again.") from None


def _check_prompts(path: str, evaluation: Evaluation) -> None:
    for name, scores in evaluation.temperatures.items():
        where = f"{path}: temperatures.{name}.prompts"
        if not scores.prompts or any(prompt.rounds < 1 for prompt in scores.prompts):
            raise UserError(f"{where} needs prompts of one round or more; evaluate the run again.")
        if len({prompt.id for prompt in scores.prompts}) < len(scores.prompts):
            raise UserError(f"{where} names a prompt twice; give each test conversation an id of its own.")


def _check_comparable(path: str, one: Evaluation, other_path: str, other: Evaluation) -> None:
    """Pairing by prompt needs the same prompts under the same conditions."""
    for key in COMPARABLE:
        if getattr(one, key) != getattr(other, key):
            raise UserError(
                f"{path} was evaluated with {key} {getattr(one, key)!r}, but {other_path} with "
                f"{getattr(other, key)!r}; evaluate both alike."
            )
    if set(one.temperatures) != set(other.temperatures):
        raise UserError(f"{path} and {other_path} differ in their temperatures; evaluate both alike.")
    for name, scores in one.temperatures.items():
        if {p.id for p in scores.prompts} != {p.id for p in other.temperatures[name].prompts}:
            raise UserError(f"{path} and {other_path} differ in their prompts at T={name}; evaluate both alike.")


def _trainings(manifests: list[str], metrics: list[str]) -> tuple[dict[RunName, Manifest], Curves]:
    trained: dict[RunName, Manifest] = {}
    curves: Curves = {}
    for path, rows in zip(manifests, metrics, strict=True):
        manifest = _read(path, Manifest)
        run = RunName(manifest.run.ablation, manifest.run.lr)
        if run in trained:
            raise UserError(f"{path} is a second manifest of {run}; give the report each run once.")
        curves[run] = list(read_jsonl(Path(rows)))
        for number, row in enumerate(curves[run], 1):
            if not isinstance(row, dict) or "step" not in row:
                raise UserError(f"{rows}, line {number} has no step; delete the file and train {run} again.")
        trained[run] = manifest if manifest.final or not curves[run] else replace(manifest, final=curves[run][-1])
    return trained, curves


def _table(ranking: Ranking, manifests: dict[RunName, Manifest]) -> str:
    """summary.csv: one row a run, in ranking order."""
    rows = [dict(_cells(row, manifests[row.run])) for row in ranking.rows]
    columns = dict.fromkeys(column for row in rows for column in row)
    buffer = io.StringIO()
    writer = csv_module.DictWriter(buffer, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _cells(row: Ranked, manifest: Manifest) -> Iterator[tuple[str, object]]:
    yield from (("rank", row.rank), ("ablation", row.run.ablation), ("lr", row.run.lr))
    yield from ((name, _number(manifest.run.weights.get(name, 0.0))) for name in WEIGHTS)
    for temperature, standing in row.standings.items():
        yield from _scores(temperature, row.evaluation.temperatures[temperature], standing)
    yield "lossless_checked", row.evaluation.lossless.checked
    yield "lossless_mismatches", len(row.evaluation.lossless.mismatches)
    yield from ((name, getattr(manifest, name)) for name in ("steps", "tokens", "draft_parameters"))
    yield "seconds", _number(manifest.seconds)
    yield "final_loss", _number(manifest.final.get("loss"))


def _scores(temperature: str, scores: Scores, standing: Standing) -> Iterator[tuple[str, object]]:
    values = {
        "accept_length": scores.accept_length,
        "diff_to_best": standing.difference,
        "speedup": scores.speedup,
    }
    for name, interval in values.items():
        for suffix, part in (("", "mean"), ("_low", "low"), ("_high", "high")):
            yield f"{name}_T{temperature}{suffix}", _number(interval and getattr(interval, part))
    yield f"standing_T{temperature}", standing.mark
    for position, rate in enumerate(scores.accept_rate_by_position, 1):
        yield f"accept_rate_T{temperature}_pos{position}", _number(rate)
