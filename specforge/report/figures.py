"""The report's figures as SVG text: equal inputs give equal bytes."""

import io
import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise, product

import matplotlib
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from specforge.report.rank import Interval, Ranked, Ranking, RunName

# Okabe and Ito's colours, which stay apart for colour-blind readers, then two more; (on light, on dark).
PALETTE = (
    ("#0072b2", "#5db4ee"),
    ("#d55e00", "#ff9147"),
    ("#009e73", "#3fd0a4"),
    ("#b5539c", "#e79ad2"),
    ("#c78500", "#f2c14e"),
    ("#3f9fd8", "#9bd3f7"),
    ("#6b5bd2", "#b1a6ff"),
    ("#7d6b4f", "#c9b79a"),
)
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "h", "<", ">", "p")
INK, MUTED, RULE, PAPER = "#1b2430", "#5b6676", "#dde2e9", "#fffffe"

WIDTH = 9.6
MAX_POINTS = 300
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlepad": 9,
    "axes.edgecolor": RULE,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.9,
    "lines.markersize": 6,
    "lines.solid_capstyle": "round",
}

Curves = dict[RunName, list[dict]]


def draw(ranking: Ranking, curves: Curves) -> dict[str, str]:
    """SVG text by figure name."""
    return {
        "ranking": _svg("ranking", lambda: _ranking(ranking)),
        "accept_length_by_rate": _svg("accept_length_by_rate", lambda: _length_by_rate(ranking)),
        "accept_rate_by_position": _svg("accept_rate_by_position", lambda: _rate_by_position(ranking)),
        "training_curves": _svg("training_curves", lambda: _training_curves(ranking, curves)),
    }


def series(ranking: Ranking, ablation: str) -> int:
    """The ablation's place in the experiment, which picks its colour and marker everywhere."""
    return ranking.ablations.index(ablation)


def temperature_title(temperature: str) -> str:
    return f"T = {temperature}, greedy" if float(temperature) == 0 else f"T = {temperature}, sampling"


def _svg(name: str, make: Callable[[], Figure]) -> str:
    # The salt fixes ids that are random otherwise, and keeps those of several figures in one page apart.
    with rc_context({**matplotlib.rcParamsDefault, **STYLE, "backend": "agg", "svg.hashsalt": name}):
        buffer = io.StringIO()
        make().savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    text = re.sub(r"<!DOCTYPE.*?>\n?", "", text, flags=re.DOTALL)
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)


def _look(index: int) -> dict:
    """Colour and marker; past the palette's end colours repeat, with other markers and dashes."""
    return {
        "color": PALETTE[index % len(PALETTE)][0],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": ("-", "--", ":", "-.")[index // len(PALETTE) % 4],
    }


def _panels(count: int, height: float, **shared: object) -> tuple[Figure, list[Axes]]:
    columns = min(count, 3)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(WIDTH, height * rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    axes = list(figure.subplots(rows, columns, squeeze=False, **shared).flat)
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def _legend(figure: Figure, ranking: Ranking, names: Sequence[str] | None = None, **look: object) -> None:
    """One legend a figure, of the ablations; `names` may say more, `look` overrides theirs."""
    looks = [_look(index) for index in range(len(ranking.ablations))]
    handles = [Line2D([], [], markeredgecolor=PAPER, **(each | look)) for each in looks]
    # "outside" leaves the panels their room, however many ablations there are.
    figure.legend(
        handles,
        names or ranking.ablations,
        loc="outside upper left",
        ncols=min(len(handles), 4),
        handlelength=1.8,
        columnspacing=1.8,
    )


def _bar(interval: Interval) -> list[list[float]]:
    """The interval as matplotlib's distances from the mean, which rounding must not make negative."""
    return [[max(interval.mean - interval.low, 0)], [max(interval.high - interval.mean, 0)]]


def _length_by_rate(ranking: Ranking) -> Figure:
    figure, axes = _panels(len(ranking.temperatures), 3.5, sharey=True)
    rates = sorted({row.run.lr for row in ranking.rows}, key=float)
    logs = [math.log10(float(rate)) for rate in rates]
    gap = min((b - a for a, b in pairwise(logs)), default=1.0)
    middle = (len(ranking.ablations) - 1) / 2
    for ax, temperature in zip(axes, ranking.temperatures, strict=True):
        for ablation in ranking.ablations:
            index = series(ranking, ablation)
            look = _look(index)
            # Runs at one rate are set side by side, or their bars would hide each other.
            shift = 10 ** (gap * 0.3 * (index - middle) / max(len(ranking.ablations), 4))
            runs = [row for row in ranking.rows if row.run.ablation == ablation]
            rows = sorted(runs, key=lambda row: float(row.run.lr))
            lengths = [row.evaluation.temperatures[temperature].accept_length for row in rows]
            at = [float(row.run.lr) * shift for row in rows]
            for x, length in zip(at, lengths, strict=True):
                ax.errorbar(x, length.mean, yerr=_bar(length), color=look["color"], elinewidth=1.2, zorder=2)
            ax.plot(at, [length.mean for length in lengths], markeredgecolor=PAPER, zorder=3, **look)
        ax.set_xscale("log")
        ax.set_xlim(10 ** (logs[0] - 0.4 * gap), 10 ** (logs[-1] + 0.4 * gap))
        ax.set_xticks([float(rate) for rate in rates], rates, rotation=45 if len(rates) > 6 else 0)
        ax.set_xticks([], minor=True)
        ax.grid(axis="x", visible=False)
        ax.set(title=temperature_title(temperature), xlabel="learning rate (log scale)")
    axes[0].set_ylabel("accept length (tokens a round)")
    _legend(figure, ranking)
    return figure


def _rate_by_position(ranking: Ranking) -> Figure:
    figure, axes = _panels(len(ranking.temperatures), 3.4, sharey=True)
    best = [ranking.best_of(name) for name in ranking.ablations]
    for ax, temperature in zip(axes, ranking.temperatures, strict=True):
        longest = 1
        for index, row in enumerate(best):
            rates = row.evaluation.temperatures[temperature].accept_rate_by_position
            longest = max(longest, len(rates))
            values = [math.nan if rate is None else 100 * rate for rate in rates]
            ax.plot(range(1, len(rates) + 1), values, markeredgecolor=PAPER, **_look(index))
        ax.set_xticks(range(1, longest + 1, math.ceil(longest / 12)))
        ax.yaxis.set_major_formatter("{x:.0f} %")
        ax.grid(axis="x", visible=False)
        ax.set(title=temperature_title(temperature), xlabel="position in the draft")
    axes[0].set_ylabel("accepted, of those reached")
    _legend(figure, ranking, [str(row.run) for row in best])
    return figure


def _thinned(rows: list[dict], key: str) -> tuple[list[float], list[float]]:
    """Steps and values, at most MAX_POINTS: a longer line looks the same and weighs more."""
    stride = max(1, math.ceil(len(rows) / MAX_POINTS))
    kept = [row for i, row in enumerate(rows) if i % stride == 0 or i == len(rows) - 1]
    pairs = [(row["step"], row[key]) for row in kept if row.get(key) is not None]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _training_curves(ranking: Ranking, curves: Curves) -> Figure:
    figure, axes = _panels(2, 3.4)
    best = {name: ranking.best_of(name).run for name in ranking.ablations}
    for (ax, key), row in product(zip(axes, ("loss", "acceptance"), strict=True), reversed(ranking.rows)):
        look = _look(series(ranking, row.run.ablation)) | {"marker": ""}
        steps, values = _thinned(curves[row.run], key)
        chosen = row.run == best[row.run.ablation]
        weight = {"linewidth": 1.9, "zorder": 3} if chosen else {"linewidth": 0.8, "alpha": 0.4, "zorder": 2}
        ax.plot(steps, values, **(look | weight))
    axes[0].set(title="Loss, each ablation's own", xlabel="optimizer step", ylabel="loss")
    axes[1].set(title="Acceptance on training batches", xlabel="optimizer step", ylabel="share accepted")
    _legend(figure, ranking, [str(run) for run in best.values()], marker="")
    return figure


def _dot(ax: Axes, ranking: Ranking, row: Ranked, temperature: str) -> None:
    length = row.evaluation.temperatures[temperature].accept_length
    look = _look(series(ranking, row.run.ablation))
    worse = row.standings[temperature].mark == "worse"
    ax.errorbar(
        length.mean,
        row.rank,
        xerr=_bar(length),
        fmt=look["marker"],
        color=look["color"],
        markerfacecolor=PAPER if worse else look["color"],
        markeredgewidth=1.5,
        elinewidth=1.5,
    )


def _ranking(ranking: Ranking) -> Figure:
    count = len(ranking.rows)
    figure, axes = _panels(len(ranking.temperatures), 0.95 + 0.27 * count, sharey=True)
    for ax, temperature in zip(axes, ranking.temperatures, strict=True):
        for row in ranking.rows:
            _dot(ax, ranking, row, temperature)
        best = ranking.best_at(temperature).evaluation.temperatures[temperature].accept_length.mean
        ax.axvline(best, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)), zorder=1)
        ax.set_yticks(range(1, count + 1), [str(row.run) for row in ranking.rows])
        ax.tick_params(axis="y", labelcolor=INK)
        ax.set_ylim(count + 0.6, 0.4)
        ax.grid(axis="y", visible=False)
        ax.spines["left"].set_visible(False)
        ax.set(title=temperature_title(temperature), xlabel="accept length (tokens a round)")
    return figure
