"""The report as one HTML file: no request leaves the page, and nothing in it depends on the clock."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup, escape

from specforge.pages import template
from specforge.report.figures import INK, MUTED, PALETTE, PAPER, RULE, series, temperature_title
from specforge.report.rank import Grid, Ranked, Ranking, RunName, conclusion

HERE = Path(__file__).parent
MISMATCHES_SHOWN = 12
TERMS = {
    "lambda_ce": "CE",
    "lambda_rkl": "RKL",
    "beta_hinge": "hinge",
    "lambda_tv": "TV",
    "lambda_lk_alpha": "LK alpha",
    "lambda_lk_lambda": "LK lambda",
}


@dataclass(frozen=True)
class Recipe:
    ablation: str
    lr: str
    weights: dict[str, float]


@dataclass(frozen=True)
class Manifest:
    """A training's manifest.json."""

    run: Recipe
    settings: dict[str, Any]
    inputs: dict[str, Any]
    versions: dict[str, Any]
    commit: str | None
    steps: int
    tokens: int
    draft_parameters: int
    seconds: float | None = None
    final: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prep:
    """What prep_dataset kept and why not the rest."""

    dataset: str
    read: int
    kept: int
    train: int
    test: int
    rejected: int
    rejected_by_reason: dict[str, int]
    notes: dict[str, Any]


@dataclass(frozen=True)
class Regeneration:
    """What the target wrote anew."""

    conversations: int
    regenerated: int
    failed: int
    ended_early: int
    turns: int
    finish_reasons: dict[str, int]
    excluded: dict[str, int] = field(default_factory=dict)
    ended_early_by_reason: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Cache:
    """What preprocess_dataset tokenized."""

    conversations: int
    sequences: int
    tokens: int
    supervised_tokens: int
    truncated: int
    empty: int
    draft_vocab_size: int
    target_vocab_size: int
    coverage: float
    longest: list[int]
    preview: list[tuple[str, bool]]
    chat_template: str | None
    refused: int = 0
    nothing_learnt: int = 0
    first_refusal: str | None = None
    truncated_within_an_answer: int = 0
    cut_tokens: int = 0
    tool_calls_not_learnt: int = 0
    prompts_checked: int = 0
    prompts_of_another_length: int = 0
    max_length: int | None = None
    longest_before_cut: list[dict[str, Any]] = field(default_factory=list)
    end_tokens: list[str] = field(default_factory=list)
    template: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """All that the report says; `regeneration` is None where it was off."""

    ranking: Ranking
    manifests: dict[RunName, Manifest]
    prep: Prep
    regeneration: Regeneration | None
    cache: Cache
    config: dict[str, Any]


def render(experiment: Experiment, figures: dict[str, str]) -> str:
    """The page, with `figures` (SVG text by name) set into it."""
    filters = {
        "count": _count,
        "duration": _duration,
        "percent": _percent,
        "rates": _rates,
        "signed": _signed,
        "temperature": temperature_title,
        "unbroken": _unbroken,
        "weights": _weights,
    }
    ranking = experiment.ranking
    manifests = [experiment.manifests[row.run] for row in ranking.rows]
    return template(HERE / "report.html.jinja", filters, autoescape=True).render(
        x=experiment,
        ranking=ranking,
        first=ranking.temperatures[0],
        best=ranking.rows[0],
        sentences=conclusion(ranking),
        series=lambda ablation: series(ranking, ablation) % len(PALETTE),
        palette=PALETTE,
        css=Markup((HERE / "report.css").read_text(encoding="utf-8")),
        figures={name: inline(name, svg) for name, svg in figures.items()},
        funnel=_funnel(experiment),
        mismatches=_mismatches(ranking.rows),
        mismatches_shown=MISMATCHES_SHOWN,
        versions=_distinct(manifest.versions for manifest in manifests),
        inputs=_distinct(manifest.inputs for manifest in manifests),
        commits=sorted({manifest.commit or "not a git checkout" for manifest in manifests}),
        config_yaml=_yaml(experiment.config),
    )


def inline(name: str, svg: str) -> Markup:
    """An SVG file's text made part of a page: ids of its own, sized by CSS, colours that follow the theme."""
    text = svg[svg.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    theme = {INK: "ink", MUTED: "muted", RULE: "rule", PAPER: "paper"}
    theme |= {light: f"series-{index}" for index, (light, _) in enumerate(PALETTE)}
    for colour, variable in theme.items():
        text = text.replace(f": {colour}", f": var(--{variable})")
    return Markup(text)


def _funnel(experiment: Experiment) -> list[tuple[str, int, str]]:
    """Conversations left after each step: name, count, what became of the others."""
    prep, cache = experiment.prep, experiment.cache
    steps = [
        ("read", prep.read, prep.dataset),
        ("kept", prep.kept, f"{_count(prep.rejected)} rejected"),
        ("for training", prep.train, f"{_count(prep.test)} held out for the evaluation"),
    ]
    if regeneration := experiment.regeneration:
        lost = f"{_count(regeneration.failed)} failed, {_count(sum(regeneration.excluded.values()))} excluded"
        said = f"{_count(regeneration.ended_early)} ended early, {_count(regeneration.turns)} turns by the target"
        steps.append(("regenerated", regeneration.regenerated, f"{lost}; {said}"))
    left = cache.conversations - cache.refused - cache.nothing_learnt
    lost = f"{_count(cache.refused)} the template refused, {_count(cache.nothing_learnt)} had nothing to learn from"
    made = f"{_count(cache.sequences)} sequences, {_count(cache.truncated)} of them cut"
    return [*steps, ("tokenized", left, f"{lost}; {made}, {_count(cache.empty)} more left out as empty")]


def _mismatches(rows: Iterable[Ranked]) -> list[tuple[RunName, Any]]:
    return [(row.run, mismatch) for row in rows for mismatch in row.evaluation.lossless.mismatches]


def _distinct(records: Iterable[dict[str, Any]]) -> dict[str, list[str]]:
    """Each key's different values, so that a run made elsewhere stands out."""
    found: dict[str, set[str]] = {}
    for record in records:
        for key, value in record.items():
            found.setdefault(key, set()).add(value if isinstance(value, str) else json.dumps(value))
    return {key: sorted(values) for key, values in sorted(found.items())}


def _yaml(config: dict[str, Any]) -> str:
    plain = json.loads(json.dumps(config))  # tuples become lists, which YAML can write
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)


def _weights(weights: dict[str, float]) -> str:
    return " + ".join(f"{weights[name]:g} {label}" for name, label in TERMS.items() if weights.get(name))


def _rates(grid: Grid) -> str:
    """What the grid's verdict means for the reader."""
    tried = f"best at {grid.best}, tried from {grid.rates[0]} to {grid.rates[-1]}"
    return {
        "bracketed": f"{tried}: bracketed",
        "lowest": f"{tried}: the lower edge, so a lower rate may be better",
        "highest": f"{tried}: the upper edge, so a higher rate may be better",
        "single": f"tried at {grid.best} only, so its best rate is unknown",
    }[grid.verdict]


def _unbroken(sentence: str) -> Markup:
    """Runs and rates, such as full-opd lr6e-3, kept on one line: browsers break lines at hyphens."""
    runs = re.compile(r"(?:[\w.-]{1,24} lr)?\d[\d.]*e-?\d+")
    return Markup(runs.sub(r'<span class="rate">\g<0></span>', str(escape(sentence))))


def _count(number: float) -> str:
    return f"{number:,.0f}".replace(",", "\u202f")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _signed(number: float) -> str:
    return f"{number:+.2f}".replace("-", "\u2212")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
