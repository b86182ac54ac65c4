from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from acme_rag_pipeline.evaluation.intervals import (
    gain_p,
    lowest_skewness,
    mean_interval,
    paired_interval,
    rare_loss_p,
    score_interval,
    sign_flip_p,
    unseen_loss_p,
)

DIFFERENCES = st.integers(-20, 20).map(lambda value: value / 20)
CLUSTERED = st.lists(st.tuples(DIFFERENCES, st.sampled_from("abcdefghi")), min_size=1, max_size=30)


def misses(seed: int, units: int, repetitions: int, skew: int) -> tuple[float, float]:
    """Shares of intervals below and above a true mean of 0: unequal units, correlated, half of the values 0."""
    rng, low, high = np.random.default_rng(seed), 0, 0
    for _ in range(repetitions):
        unit = np.repeat(np.arange(units), rng.geometric(0.4, units))
        shared, own = rng.normal(size=units)[unit], rng.normal(size=unit.size)
        values = np.where(rng.random(unit.size) < 0.5, 0.0, 0.5 * shared + own)
        if skew:
            values = skew * (rng.gamma(1.5, 1, units)[unit] * rng.exponential(1, unit.size) - 1.5)
        interval = mean_interval(values.tolist(), unit.astype(str).tolist())
        low += interval.high < 0
        high += interval.low > 0
    return low / repetitions, high / repetitions


def allowed(rate: float, repetitions: int) -> float:
    """Three standard errors above a true rate: one test in 700 fails by bad luck, and the seeds are fixed."""
    return rate + 3 * math.sqrt(rate * (1 - rate) / repetitions)


@pytest.mark.parametrize("units", [8, 12, 40, 100])
def test_the_interval_covers_with_unequal_correlated_units(units: int) -> None:
    assert sum(misses(1, units, 600, skew=0)) <= allowed(0.05, 600)


@pytest.mark.parametrize("units", [40, 100])
def test_a_skewed_null_is_covered_where_plain_t_is_not(units: int) -> None:
    """Very skewed losses: about 5 % miss on the bad side instead of 2.5 % (plain t: 10 % at 40 units, 7 % at 100)."""
    assert misses(2, units, 600, skew=-1)[1] <= allowed(0.05, 600)
    assert misses(3, units, 600, skew=1)[0] <= allowed(0.05, 600)


@pytest.mark.slow
@pytest.mark.parametrize("units", [6, 12, 20, 40, 100])
def test_the_interval_covers_in_many_repetitions(units: int) -> None:
    below, above = misses(4, units, 5000, skew=0)
    assert max(below, above) <= allowed(0.025, 5000)


def test_one_query_a_unit_without_skew_is_the_t_interval() -> None:
    values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    interval = mean_interval(values, list("abcdef"))

    reference = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((reference.low, reference.high))
    assert (interval.units, interval.queries) == (6, 6)


def test_repeating_each_query_within_its_unit_adds_no_certainty() -> None:
    values, units = [0.1, -0.2, 0.4, 0.3, 0.0, 0.6, 0.2], list("abcdefg")
    once, often = mean_interval(values, units), mean_interval(values * 5, units * 5)

    assert (often.mean, often.low, often.high) == pytest.approx((once.mean, once.low, once.high))
    assert mean_interval(values * 5, [str(i) for i in range(35)]).low > often.low


def test_one_large_unit_makes_the_interval_wider_not_narrower() -> None:
    rng = np.random.default_rng(0)
    even = mean_interval(rng.normal(size=60).tolist(), [str(i % 12) for i in range(60)])
    lopsided = mean_interval(rng.normal(size=60).tolist(), [str(max(0, i - 48)) for i in range(60)])

    assert lopsided.high - lopsided.low > even.high - even.low


@settings(max_examples=200, deadline=None)
@given(CLUSTERED)
def test_the_p_value_and_the_interval_agree(pairs: list[tuple[float, str]]) -> None:
    values, units = [value for value, _ in pairs], [unit for _, unit in pairs]
    interval = mean_interval(values, units, 0.9, lowest=-1.0)
    # Without any spread only the cautious form goes with the interval.
    p = gain_p(values, units) or gain_p(values, units, cautious=True)

    assert interval.low <= interval.mean <= interval.high
    if abs(p - 0.05) > 1e-6:
        assert (interval.low > 0) == (p < 0.05)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_p_value_is_the_tail_whose_interval_ends_at_zero(sign: int) -> None:
    values = [sign * value + 0.06 for value in (0.1, 0.02, 0.03, 0.09, 0.01, 0.05, 0.04, -0.35, 0.03, -0.02)]
    units = list("aabcdefghi")

    assert mean_interval(values, units, 1 - 2 * gain_p(values, units)).low == pytest.approx(0, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(CLUSTERED)
def test_caution_never_lowers_the_p_value(pairs: list[tuple[float, str]]) -> None:
    values, units = [value for value, _ in pairs], [unit for _, unit in pairs]

    assert gain_p(values, units) <= gain_p(values, units, cautious=True) <= 1


def test_caution_matters_less_with_more_units() -> None:
    rng, ratios = np.random.default_rng(8), []
    for count in (12, 40, 200):
        values = rng.normal(size=count)
        values += 2.2 * values.std() / math.sqrt(count) - values.mean()
        units = [str(i) for i in range(count)]
        ratios.append(gain_p(values.tolist(), units, cautious=True) / gain_p(values.tolist(), units))

    assert ratios[0] > ratios[1] > ratios[2] > 1
    assert ratios[2] < 1.3


def test_unseen_losses_follow_the_rule_of_three() -> None:
    # A kind that 100 units hold none of makes up at most about 3 % (tail 5 %); where it does 0.5 worse it costs 0.015.
    assert unseen_loss_p(0.5 * 3 / 100, 100) == pytest.approx(0.05, abs=0.005)
    assert unseen_loss_p(0.1, 10) == pytest.approx(0.8**10)
    assert unseen_loss_p(0.1, 10, loss=1.0) == pytest.approx(0.9**10)
    assert [unseen_loss_p(gain, 5) for gain in (-0.2, 0.0, 0.5, 0.7)] == [1.0, 1.0, 0.0, 0.0]
    assert unseen_loss_p(0.1, 20) < unseen_loss_p(0.1, 10)


def test_a_loss_seen_once_says_little_about_how_many_there_are() -> None:
    """99 documents gain 0.04; in one, of a single question, 0.6 is lost. Of such documents 7 in 100 would undo the gain."""
    gains, units = [0.04] * 297, [str(i % 99) for i in range(297)]
    assert rare_loss_p(gains, units) == pytest.approx(unseen_loss_p(0.04, 99))

    gains, units = [*gains, -0.6], [*units, "99"]
    assert gain_p(gains, units, cautious=True) < 1e-6
    assert sign_flip_p(gains, units) < 1e-3
    assert rare_loss_p(gains, units) == pytest.approx(stats.binom.cdf(1, 100, 0.04 / 0.64))
    assert rare_loss_p(gains, units) > 0.01
    assert rare_loss_p([-gain for gain in gains], units) == 1


def test_a_sample_of_long_losses_may_miss_the_longest() -> None:
    """The more of a tail of losses is there, the lower the skewness may be; where gains have the tail it is as before."""
    rng = np.random.default_rng(1)
    losses = rng.exponential(size=60)
    units = [str(i) for i in range(60)]
    losing, gaining = (sign * (losses - losses.mean()) + 0.35 for sign in (-1, 1))
    ratios = [gain_p(v.tolist(), units, cautious=True) / gain_p(v.tolist(), units) for v in (losing, gaining)]

    assert ratios[0] > 1.8
    assert ratios[1] == 1
    assert [float(lowest_skewness(x)) for x in (-2.0, 0.0, 1.0)] == [-4.0, -0.5, 0.5]


@pytest.mark.parametrize("share", [0.8, 0.95])
def test_no_limit_of_a_score_lies_beyond_that_of_a_proportion(share: float) -> None:
    """Recall near its ceiling: Hall's transformation alone lets the lower limit fall by a half where two units differ."""
    rng, covered, lowest = np.random.default_rng([3, int(100 * share)]), 0, [1.0, 1.0]
    for _ in range(150):
        unit = np.repeat(np.arange(45), rng.geometric(1 / 1.7, 45))
        chance = rng.beta(share * 7 / 3, (1 - share) * 7 / 3, 45)[unit]
        values, units = (rng.random(unit.size) < chance).astype(float).tolist(), unit.astype(str).tolist()
        plain, shown = mean_interval(values, units), score_interval(values, units)
        assert plain.low <= shown.low <= shown.mean <= shown.high <= plain.high
        covered += shown.low <= share <= shown.high
        lowest = [min(lowest[0], plain.low), min(lowest[1], shown.low)]
    assert covered / 150 >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 150)
    assert lowest[1] > lowest[0] + 0.1

    one_wrong = [1.0] * 19 + [0.0]
    exact = stats.binomtest(19, 20).proportion_ci(0.95, "exact")
    interval = score_interval(one_wrong, [str(i) for i in range(20)])
    assert (interval.low, interval.high) == pytest.approx((exact.low, exact.high), abs=0.01)
    assert mean_interval(one_wrong, [str(i) for i in range(20)]).low < exact.low - 0.1


def test_scores_that_all_agree_keep_the_rule_of_three() -> None:
    for values in ([1.0] * 3, [0.0] * 3, [0.4] * 3, [1.0]):
        units = [str(i) for i in range(len(values))]
        assert score_interval(values, units) == mean_interval(values, units)


@settings(max_examples=100, deadline=None)
@given(CLUSTERED)
def test_the_sign_flip_test_enumerates(pairs: list[tuple[float, str]]) -> None:
    totals: dict[str, float] = {}
    for value, unit in pairs:
        totals[unit] = totals.get(unit, 0) + round(20 * value)
    sums = np.array(list(itertools.product((1, -1), repeat=len(totals)))) @ list(totals.values())
    expected = (sums >= sum(totals.values())).mean()

    assert sign_flip_p([value for value, _ in pairs], [unit for _, unit in pairs]) == pytest.approx(expected)


def test_drawn_sign_flips_agree_with_enumerated_ones_and_repeat() -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(0.25, 1, 16).tolist()
    units = [str(i) for i in range(16)]
    signs = np.array(list(itertools.product((1, -1), repeat=16)))
    exact = float((signs @ values >= sum(values) - 1e-9).mean())

    drawn = sign_flip_p(values, units)
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000))
    assert drawn == sign_flip_p(values, units) == sign_flip_p(values[::-1], units[::-1])
    assert drawn != sign_flip_p(values, units, seed=1)


def test_where_no_draw_reaches_the_sum_a_bound_on_the_exact_value_stands_in() -> None:
    units, rng = [str(i) for i in range(18)], np.random.default_rng(6)
    assert sign_flip_p([0.3] * 18, units) == pytest.approx(2**-18)
    signs = np.array(list(itertools.product((1, -1), repeat=18)), dtype=np.int8)
    for spread in (0.1, 0.3, 0.5):
        values = np.abs(rng.normal(1, spread, 18))
        values[0] *= -1
        exact = float((signs @ values >= values.sum() - 1e-9).mean())
        bounded = sign_flip_p(values.tolist(), units)
        assert exact <= bounded <= 1 / 20_001


def test_no_p_value_is_zero_and_few_units_cannot_reach_a_small_one() -> None:
    assert 0 < sign_flip_p([1.0] * 2000, [str(i) for i in range(2000)]) < 1e-100
    assert sign_flip_p([1.0] * 50, [str(i % 5) for i in range(50)]) == 1 / 32
    # Units that do not differ bring no evidence.
    assert sign_flip_p([1.0] * 3 + [0.0] * 40, [str(i) for i in range(43)]) == 1 / 8
    assert sign_flip_p([0.0, 0.0], ["a", "b"]) == 1.0
    assert sign_flip_p([0.5, -0.5], ["a", "a"]) == 1.0


def test_degenerate_samples() -> None:
    single = mean_interval([0.2, 0.4], ["a", "a"])
    assert (single.mean, single.low, single.high, single.units) == (pytest.approx(0.3), -math.inf, math.inf, 1)
    assert gain_p([0.1] * 9, list("aabbccddd")) == 0.0
    assert gain_p([0.0] * 9, list("aabbccddd")) == gain_p([5.0, 5.0], ["a", "a"]) == 1.0


@pytest.mark.parametrize(("score", "low", "high"), [(1.0, 0.398, 1.0), (0.0, 0.0, 0.602), (0.5, 0.199, 0.801)])
def test_units_that_agree_exactly_leave_room_for_a_kind_that_was_not_seen(
    score: float, low: float, high: float
) -> None:
    """Four units hold none of a kind of which 60 % of all units are with a probability of 2.5 %."""
    same = mean_interval([score] * 9, list("aabbccddd"))
    assert (same.mean, same.low, same.high) == (score, pytest.approx(low, abs=5e-4), pytest.approx(high, abs=5e-4))
    assert pytest.approx(1 - 0.025 ** (1 / 4), abs=5e-4) == 0.602


def test_equal_gains_are_no_certain_gain_and_equal_arms_are_equal() -> None:
    before, units = [0.2, 0.5, 0.1, 0.6, 0.3, 0.4], list("abcdef")
    gain = paired_interval(before, [score + 0.3 for score in before], units)
    share = 1 - 0.025 ** (1 / 6)
    assert gain.low == pytest.approx(0.3 - 1.3 * share)
    assert gain.high == pytest.approx(0.3 + 0.7 * share)
    assert gain_p([0.3] * 6, units, cautious=True) == pytest.approx(1.3**-6)
    tie = paired_interval(before, before, units)
    assert (tie.mean, tie.low, tie.high) == (0, 0, 0)
    # Gains and losses that cancel in every unit are no ties.
    even = paired_interval([0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0], list("aabb"))
    assert even.low < even.mean == 0 < even.high


def test_paired_interval_is_the_gain_of_the_second() -> None:
    a, b, units = [0.1, 0.5, 0.2, 0.9], [0.3, 0.6, 0.2, 1.0], list("abcd")

    assert paired_interval(a, b, units) == mean_interval(np.subtract(b, a).tolist(), units)
    assert paired_interval(a, b, units).mean == pytest.approx(0.1)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="at least one query"):
        mean_interval([], [])
    with pytest.raises(ValueError, match="2 values but 1 unit"):
        mean_interval([0.1, 0.2], ["a"])
    with pytest.raises(ValueError, match="1 of 2 values are not finite"):
        sign_flip_p([0.1, math.nan], ["a", "b"])
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_interval([0.1], [0.1, 0.2], ["a", "b"])
    with pytest.raises(ValueError, match="level"):
        mean_interval([0.1], ["a"], level=95)
