import numpy as np
import pytest

from specforge.report.rank import (
    Evaluation,
    Interval,
    Lossless,
    Mismatch,
    Prompt,
    RunName,
    Scores,
    conclusion,
    join,
    paired_differences,
    rank,
)

HARDNESS = np.random.default_rng(1).integers(-8, 9, 48)


def prompts(rounds, noise_seed=None, count=48):
    """64 tokens each, in about `rounds` rounds; all runs find the same prompts hard."""
    noise = 0 if noise_seed is None else np.random.default_rng(noise_seed).integers(-3, 4, count)
    return [Prompt(f"p{i}", 64, int(n)) for i, n in enumerate(rounds + HARDNESS[:count] + noise)]


def length(run):
    return sum(p.tokens for p in run) / sum(p.rounds for p in run)


def evaluation(ablation, lr, runs, mismatches=(), speedup=(1.5, 1.4, 1.6)):
    """`runs`: prompts by temperature."""
    scores = {}
    for temperature, run in runs.items():
        mean = length(run)
        scores[temperature] = Scores(Interval(mean, mean - 0.2, mean + 0.2), [0.9], Interval(*speedup), run)
    count = len(next(iter(runs.values())))
    name = RunName(ablation, lr)
    return Evaluation(name, "tiny", 7, 64, "float32", 0, count, Lossless(count, list(mismatches)), scores)


def greedy(ablation, lr, rounds, noise_seed=None, **options):
    return evaluation(ablation, lr, {"0": prompts(rounds, noise_seed)}, **options)


def test_constant_difference_has_an_interval_of_no_width():
    best = [Prompt(f"p{i}", 60, 10) for i in range(20)]
    worse = [Prompt(f"p{i}", 60, 20) for i in range(20)]
    bounds = paired_differences([best, worse], 0, samples=200, seed=0)
    assert bounds.tolist() == [[0, 0], [-3, -3]]


def test_matches_a_plain_bootstrap():
    best, other = prompts(15, 2), prompts(16, 3)
    draws = np.random.default_rng(9).integers(0, 48, (4000, 48))
    found = [length([other[i] for i in d]) - length([best[i] for i in d]) for d in draws]
    bounds = paired_differences([best, other], 0, samples=4000, seed=0)[1]
    assert bounds == pytest.approx(np.percentile(found, [2.5, 97.5]), abs=0.02)


def test_pairs_by_id_not_by_place():
    best, other = prompts(15), prompts(16, 3)
    straight = paired_differences([best, other], 0, samples=300, seed=0)
    shuffled = paired_differences([best, other[::-1]], 0, samples=300, seed=0)
    assert straight.tolist() == shuffled.tolist()


def test_pairing_sees_what_separate_intervals_cannot():
    best, other = prompts(15), prompts(16)
    low, high = paired_differences([best, other], 0, samples=1000, seed=0)[1]
    assert high < 0
    alone = [length([run[i] for i in np.random.default_rng(5).integers(0, 48, 48)]) for run in (best, other)]
    assert high - low < abs(alone[0]) / 10


def test_seed_decides_the_draws():
    runs = [prompts(15, 1), prompts(15, 2)]
    first, again, other = (paired_differences(runs, 0, samples=200, seed=s) for s in (0, 0, 1))
    assert first.tolist() == again.tolist() != other.tolist()


def test_ranks_by_the_lowest_temperature_and_marks_each():
    fast, slow = prompts(14), prompts(22)
    ranking = rank(
        [
            evaluation("b", "1e-3", {"1": fast, "0.2": slow}),
            evaluation("a", "1e-3", {"1": slow, "0.2": fast}),
        ]
    )
    assert ranking.temperatures == ["0.2", "1"]
    assert [(row.rank, str(row.run)) for row in ranking.rows] == [(1, "a lr1e-3"), (2, "b lr1e-3")]
    assert ranking.ablations == ["b", "a"]
    assert [row.standings["0.2"].mark for row in ranking.rows] == ["best", "worse"]
    assert [row.standings["1"].mark for row in ranking.rows] == ["worse", "best"]
    assert ranking.rows[0].standings["0.2"].difference is None
    difference = ranking.rows[1].standings["0.2"].difference
    assert difference.mean == pytest.approx(length(slow) - length(fast))
    assert difference.low <= difference.mean <= difference.high


def test_equal_runs_cannot_be_told_apart():
    ranking = rank([greedy("a", "1e-3", 15), greedy("b", "1e-3", 15)])
    assert [row.standings["0"].mark for row in ranking.rows] == ["best", "tied"]
    assert [str(row.run) for row in ranking.rows] == ["a lr1e-3", "b lr1e-3"]


@pytest.mark.parametrize(
    ("rounds", "best", "verdict"),
    [
        ({"1e-2": 18, "3e-3": 19, "6e-3": 14}, "6e-3", "bracketed"),
        ({"1e-2": 14, "3e-3": 19, "6e-3": 18}, "1e-2", "highest"),
        ({"1e-2": 19, "3e-3": 14, "6e-3": 18}, "3e-3", "lowest"),
        ({"5e-5": 14}, "5e-5", "single"),
    ],
)
def test_grid_verdict(rounds, best, verdict):
    (grid,) = rank([greedy("a", lr, n) for lr, n in rounds.items()]).grids
    assert (grid.best, grid.verdict) == (best, verdict)
    assert grid.rates == sorted(rounds, key=float)


def test_conclusion_names_ties_worse_ablations_and_open_grids():
    text = conclusion(
        rank(
            [
                greedy("baseline", "3e-3", 14, 1),
                greedy("baseline", "6e-3", 18, 1),
                greedy("mixed", "6e-3", 14, 2),
                greedy("rkl-only", "6e-3", 24),
            ]
        )
    )
    assert "has the longest accepted drafts at T=0" in text[0]
    assert text[0].endswith("cannot be told apart from it on these 48 prompts.")
    assert "At T=0 rkl-only is clearly worse at every rate tried." in text
    assert "The best rate of baseline (3e-3) is the lowest tried; a lower one may be better." in text
    assert text[-1].startswith("One training seed a run")


def test_conclusion_where_everything_differs():
    text = conclusion(rank([greedy("a", "1e-3", 14), greedy("b", "1e-3", 20)]))
    assert text[0].endswith("and every other run is clearly worse on these 48 prompts.")
    assert not any("every rate tried" in sentence for sentence in text)


def test_conclusion_counts_many_ties():
    text = conclusion(rank([greedy(f"a{i}", "1e-3", 15) for i in range(8)]))
    assert "7 other runs, among them a1 lr1e-3, a2 lr1e-3, a3 lr1e-3 and a4 lr1e-3, cannot" in text[0]


def test_conclusion_of_another_temperature():
    fast, slow = prompts(14), prompts(22)
    pair = [
        evaluation("a", "1e-3", {"0": fast, "1": slow}),
        evaluation("b", "1e-3", {"0": slow, "1": fast}),
    ]
    assert any(s.startswith("At T=1 b lr1e-3 leads") and "clearly worse there" in s for s in conclusion(rank(pair)))


def test_conclusion_of_one_run_compares_nothing():
    text = conclusion(rank([greedy("a", "1e-3", 15)]))
    assert "it is the only run, so nothing is compared" in text[0]


@pytest.mark.parametrize(
    ("speedup", "words"),
    [
        ((1.5, 1.4, 1.6), "is faster than plain"),
        ((0.8, 0.7, 0.9), "is slower than plain"),
        ((1.0, 0.9, 1.1), "is not measurably faster or slower than plain"),
    ],
)
def test_conclusion_of_speed(speedup, words):
    assert any(words in sentence for sentence in conclusion(rank([greedy("a", "1e-3", 15, speedup=speedup)])))


def test_conclusion_says_when_output_differs_and_when_prompts_are_few():
    few = {"0": prompts(15, count=6)}
    mismatches = [Mismatch("p1", 3, 0.002), Mismatch("p2", 4, None)]
    text = conclusion(rank([evaluation("a", "1e-3", few, mismatches)]))
    assert any("differs from the target's own in 2 of 6" in s and "0.002 or less" in s for s in text)
    assert "With only 6 prompts the intervals are rough." in text


def test_join():
    assert [join(["a"]), join(["a", "b"]), join("abc")] == ["a", "a and b", "a, b and c"]
