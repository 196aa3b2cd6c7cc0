import pytest

from specforge.eval.stats import accept_rate_by_position, ratio_interval


def test_the_mean_is_the_ratio_of_sums_not_the_mean_of_ratios():
    assert ratio_interval([1, 9], [1, 3], 100, 0)["mean"] == 2.5


def test_prompts_that_agree_leave_no_uncertainty():
    assert ratio_interval([2, 4, 6], [1, 2, 3], 100, 0) == {"mean": 2.0, "low": 2.0, "high": 2.0}


def test_the_interval_of_a_mean_is_the_normal_one_when_prompts_are_many():
    interval = ratio_interval([0, 2] * 200, [1] * 400, 4000, 0)  # standard error 1 / sqrt(400)
    assert interval["low"] == pytest.approx(1 - 1.96 * 0.05, abs=0.01)
    assert interval["high"] == pytest.approx(1 + 1.96 * 0.05, abs=0.01)


def test_a_prompts_numerator_and_denominator_are_drawn_together():
    interval = ratio_interval([1, 1000], [1, 1000], 1000, 0)
    assert interval["low"] == interval["high"] == 1


def test_the_interval_depends_on_the_seed_alone():
    case = ([1, 2, 3, 5, 8, 13], [1, 1, 2, 2, 3, 3], 100)
    assert ratio_interval(*case, seed=1) == ratio_interval(*case, seed=1) != ratio_interval(*case, seed=2)


def test_accept_rate_counts_only_positions_that_were_judged():
    rounds = [(2, 3), (0, 1), (3, 3)]
    assert accept_rate_by_position(rounds, 4) == [pytest.approx(2 / 3), 1.0, 0.5, None]


def test_accept_rate_of_no_round_is_unknown():
    assert accept_rate_by_position([], 2) == [None, None]
