"""Which drafts are better, and which cannot be told apart: a paired bootstrap over prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

COVERAGE = (2.5, 97.5)
FEW_PROMPTS = 20
MOST_NAMED = 4

Mark = Literal["best", "tied", "worse"]
Verdict = Literal["bracketed", "lowest", "highest", "single"]


@dataclass(frozen=True)
class RunName:
    ablation: str
    lr: str

    def __str__(self) -> str:
        return f"{self.ablation} lr{self.lr}"


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f}, 95 % interval {self.low:.2f} to {self.high:.2f}"


@dataclass(frozen=True)
class Prompt:
    id: str
    tokens: int
    rounds: int


@dataclass(frozen=True)
class Scores:
    """One run at one temperature."""

    accept_length: Interval
    accept_rate_by_position: list[float | None]
    speedup: Interval
    prompts: list[Prompt]


@dataclass(frozen=True)
class Mismatch:
    prompt: str
    position: int
    logit_gap: float | None


@dataclass(frozen=True)
class Lossless:
    checked: int
    mismatches: list[Mismatch]


@dataclass(frozen=True)
class Evaluation:
    """An eval.json."""

    run: RunName
    target: str
    num_draft_tokens: int
    max_new_tokens: int
    dtype: str
    seed: int
    num_prompts: int
    lossless: Lossless
    temperatures: dict[str, Scores]


@dataclass(frozen=True)
class Standing:
    """A run beside the best one of a temperature; the best has no difference to itself."""

    mark: Mark
    difference: Interval | None


@dataclass(frozen=True)
class Ranked:
    rank: int
    evaluation: Evaluation
    standings: dict[str, Standing]

    @property
    def run(self) -> RunName:
        return self.evaluation.run


@dataclass(frozen=True)
class Grid:
    """The rates tried for an ablation, ascending, and where among them its best lies."""

    ablation: str
    rates: list[str]
    best: str
    verdict: Verdict


@dataclass(frozen=True)
class Ranking:
    """All runs, longest accepted drafts first, at the lowest temperature."""

    temperatures: list[str]
    rows: list[Ranked]
    ablations: list[str]
    grids: list[Grid]

    def best_of(self, ablation: str) -> Ranked:
        return next(row for row in self.rows if row.run.ablation == ablation)

    def best_at(self, temperature: str) -> Ranked:
        return next(row for row in self.rows if row.standings[temperature].mark == "best")


def rank(evaluations: Sequence[Evaluation], *, samples: int = 2000, seed: int = 0) -> Ranking:
    """Ranks runs that were evaluated on the same prompts; `seed` fixes the bootstrap's draws.

    Ties of the mean keep the order of `evaluations`, and so do the ablations.
    """
    temperatures = sorted(evaluations[0].temperatures, key=float)
    standings = {t: _standings([e.temperatures[t] for e in evaluations], samples, seed) for t in temperatures}
    lengths = [e.temperatures[temperatures[0]].accept_length.mean for e in evaluations]
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    rows = [
        Ranked(place, evaluations[i], {t: standings[t][i] for t in temperatures}) for place, i in enumerate(order, 1)
    ]
    ablations = list(dict.fromkeys(e.run.ablation for e in evaluations))
    return Ranking(temperatures, rows, ablations, [_grid(name, rows) for name in ablations])


def paired_differences(runs: Sequence[Sequence[Prompt]], best: int, *, samples: int, seed: int) -> np.ndarray:
    """(runs, 2): 95 % interval of each run's accept length minus that of run `best`.

    Each draw takes the same prompts in all runs, so that hard prompts cancel out. Sums are of integers,
    hence the same to the last bit on any machine.
    """
    ids = sorted(prompt.id for prompt in runs[best])
    by_id = [{prompt.id: prompt for prompt in run} for run in runs]
    tokens_np = np.array([[run[i].tokens for run in by_id] for i in ids], dtype=np.int64)
    rounds_np = np.array([[run[i].rounds for run in by_id] for i in ids], dtype=np.int64)
    draws = np.random.default_rng(seed).multinomial(len(ids), np.full(len(ids), 1 / len(ids)), size=samples)
    lengths = (draws @ tokens_np) / (draws @ rounds_np)
    return np.percentile(lengths - lengths[:, [best]], COVERAGE, axis=0).T


def _standings(scores: Sequence[Scores], samples: int, seed: int) -> list[Standing]:
    means = [s.accept_length.mean for s in scores]
    best = means.index(max(means))
    bounds = paired_differences([s.prompts for s in scores], best, samples=samples, seed=seed)
    found = []
    for index, (low, high) in enumerate(bounds.tolist()):
        if index == best:
            found.append(Standing("best", None))
        else:
            mark: Mark = "tied" if low <= 0 <= high else "worse"
            found.append(Standing(mark, Interval(means[index] - means[best], low, high)))
    return found


def _grid(ablation: str, rows: Sequence[Ranked]) -> Grid:
    tried = [row.run.lr for row in rows if row.run.ablation == ablation]
    rates, best = sorted(tried, key=float), tried[0]
    verdict: Verdict = "bracketed"
    if len(rates) == 1:
        verdict = "single"
    elif best in (rates[0], rates[-1]):
        verdict = "lowest" if best == rates[0] else "highest"
    return Grid(ablation, rates, best, verdict)


def conclusion(ranking: Ranking) -> list[str]:
    """Sentences for a reader in a hurry, the headline first: what can be told apart, and what cannot."""
    first, *others = ranking.temperatures
    sentences = [_headline(ranking, first)]
    if len(ranking.rows) > 1:
        sentences += [_worse_ablations(ranking, first), *(_elsewhere(ranking, t) for t in others)]
    sentences += [_speed(ranking, first), _lossless(ranking), *_edges(ranking)]
    prompts = ranking.rows[0].evaluation.num_prompts
    if prompts < FEW_PROMPTS:
        sentences.append(f"With only {prompts} prompts the intervals are rough.")
    sentences.append("One training seed a run: differences between seeds are not in these intervals.")
    return [sentence for sentence in sentences if sentence]


def _headline(ranking: Ranking, temperature: str) -> str:
    best = ranking.best_at(temperature)
    length = best.evaluation.temperatures[temperature].accept_length
    prompts = best.evaluation.num_prompts
    if len(ranking.rows) == 1:
        return f"{best.run} gains {length.mean:.2f} tokens a round at T={temperature} " + (
            f"(95 % interval {length.low:.2f} to {length.high:.2f}, {prompts} prompts); "
            "it is the only run, so nothing is compared."
        )
    start = f"{best.run} has the longest accepted drafts at T={temperature} ({length})"
    if named := _tied(ranking, temperature):
        return f"{start}, but {named} cannot be told apart from it on these {prompts} prompts."
    return f"{start}, and every other run is clearly worse on these {prompts} prompts."


def _tied(ranking: Ranking, temperature: str) -> str:
    tied = [row.run for row in ranking.rows if row.standings[temperature].mark == "tied"]
    if len(tied) > MOST_NAMED:
        return f"{len(tied)} other runs, among them {join(tied[:MOST_NAMED])},"
    return join(tied) if tied else ""


def _worse_ablations(ranking: Ranking, temperature: str) -> str:
    """Ablations none of whose rates comes near the best; unsaid where the headline said so of every run."""
    marks = {name: set() for name in ranking.ablations}
    for row in ranking.rows:
        marks[row.run.ablation].add(row.standings[temperature].mark)
    worse = [name for name, found in marks.items() if found == {"worse"}]
    if not worse or not any("tied" in found for found in marks.values()):
        return ""
    verb = "is" if len(worse) == 1 else "are"
    return f"At T={temperature} {join(worse)} {verb} clearly worse at every rate tried."


def _elsewhere(ranking: Ranking, temperature: str) -> str:
    winner, best = ranking.rows[0], ranking.best_at(temperature)
    level = f"At T={temperature}"
    length = best.evaluation.temperatures[temperature].accept_length
    if best is winner:
        named = _tied(ranking, temperature)
        rest = f"{named} cannot be told apart from it" if named else "every other run is clearly worse"
        return f"{level} the same run leads ({length}); {rest}."
    if winner.standings[temperature].mark == "tied":
        return f"{level} {best.run} leads ({length}), not distinguishably from {winner.run}."
    return f"{level} {best.run} leads ({length}), and {winner.run} is clearly worse there."


def _speed(ranking: Ranking, temperature: str) -> str:
    best = ranking.best_at(temperature)
    gain = best.evaluation.temperatures[temperature].speedup
    if gain.low > 1:
        word = "faster than"
    else:
        word = "slower than" if gain.high < 1 else "not measurably faster or slower than"
    return (
        f"On the machine of the evaluation {best.run} is {word} plain decoding at T={temperature}: "
        f"{gain.mean:.2f}× its speed ({gain.low:.2f} to {gain.high:.2f})."
    )


def _lossless(ranking: Ranking) -> str:
    losses = [row.evaluation.lossless for row in ranking.rows]
    checked, differing = sum(x.checked for x in losses), [m for x in losses for m in x.mismatches]
    if not checked:
        return "No greedy output was compared with the target's own."
    if not differing:
        return f"Greedy output equals the target's own in all {checked} comparisons."
    gaps = [mismatch.logit_gap for mismatch in differing if mismatch.logit_gap is not None]
    gap = f", at a logit gap of {max(gaps):.2g} or less" if gaps else ""
    return f"Greedy output differs from the target's own in {len(differing)} of {checked} comparisons{gap}."


def _edges(ranking: Ranking) -> list[str]:
    """What the grids leave open: an optimum at an edge may lie beyond it."""
    sentences = []
    for verdict, beyond in (("lowest", "lower"), ("highest", "higher")):
        open_grids = [f"{g.ablation} ({g.best})" for g in ranking.grids if g.verdict == verdict]
        if open_grids:
            sentences.append(
                f"The best rate of {join(open_grids)} is the {verdict} tried; a {beyond} one may be better."
            )
    if all(grid.verdict == "bracketed" for grid in ranking.grids):
        sentences.append("The best rate of every ablation lies between others that were tried.")
    return sentences


def join(parts: Sequence[object]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    words = [str(part) for part in parts]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
