"""Which gain a set of judged questions can show: the power of everything that the gate asks for, in one number.

A formula with t quantiles would promise too much: with few units the spread itself is uncertain, the sign-flip test takes
only a few values, and a promotion needs all conditions at once. So samples like the one at hand are drawn, and for each the
true gain is computed that would just have been promoted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from acme_rag_pipeline.evaluation.comparison import ArmScores, GateSettings, units_needed
from acme_rag_pipeline.evaluation.estimate import Estimate, estimate_mean
from acme_rag_pipeline.evaluation.intervals import UNSEEN_LOSS, hall, lowest_skewness, unseen_share

DRAWS = 1_000
# Above so many units the sign-flip test asks for no more than the interval does.
SIGN_FLIP_UNITS = 12
_STEPS = 40

Array = NDArray[np.float64]


def detectable_gain(
    champion: ArmScores,
    challenger: ArmScores,
    units: Mapping[str, str],
    challengers: int,
    settings: GateSettings,
    at_least: float,
) -> float | None:
    """The true gain of this challenger that 4 of 5 such comparisons would promote.

    Args:
        champion, challenger: their scores; only the spread of the differences is used, not their mean.
        units: The unit of each query.
        challengers: How many are compared; the level is that of Holm's first step.
        settings: Levels and margins.
        at_least: Observed gain that is asked for whatever the spread.

    Returns:
        A gain in nDCG@10; None when there are too few units for any.
    """
    ids = sorted(champion.ndcg)
    labels = [units[i] for i in ids]
    if len(set(labels)) < units_needed(challengers, settings):
        return None
    differences = [challenger.ndcg[i] - champion.ndcg[i] for i in ids]
    return gain_with_power(differences, labels, settings.tail / max(1, challengers), at_least)


def gain_with_power(
    differences: Sequence[float], units: Sequence[str], tail: float, at_least: float = 0.0, power: float = 0.8
) -> float:
    """The true mean gain that passes the gate's tests with the given probability.

    Samples are drawn with the units' sizes, spread and intra-unit correlation of the one at hand, normally distributed.

    Args:
        differences: The observed difference per query.
        units: The unit of each query.
        tail: One-sided level of each test.
        at_least: Observed mean gain that is asked for whatever the spread.
        power: Wanted probability.

    Raises:
        ValueError: As ``mean_interval``.
    """
    sample = estimate_mean(differences, units)
    if not math.isfinite(sample.error):
        return math.inf
    unseen = unseen_share(sample.units, tail)
    at_least = max(at_least, UNSEEN_LOSS * unseen)
    if sample.error == 0:
        # Where the widened interval of equal gains ends at 0.
        return max(at_least, unseen / (1 - unseen))
    sums = _drawn_sums(sample)
    means = sums.sum(axis=1) / sample.queries
    errors, skewness = _errors(sums, means, sample)
    needed = np.maximum(at_least, _studentised_needed(skewness, tail, sample) * errors) - means
    if sample.units <= SIGN_FLIP_UNITS:
        needed = np.maximum(needed, _sign_flip_needed(sums, sample.sizes, tail))
    return float(np.quantile(needed, power))


def _drawn_sums(sample: Estimate) -> Array:
    """Differences summed by unit around a true mean of 0, one drawn sample a row."""
    variances = sample.sizes * (1 + (sample.sizes - 1) * sample.correlation)
    spread = sample.error * sample.queries * np.sqrt(variances / variances.sum())
    return np.random.default_rng(0).normal(size=(DRAWS, sample.units)) * spread


def _errors(sums: Array, means: Array, sample: Estimate) -> tuple[Array, Array]:
    """Standard error and skewness that ``estimate_mean`` would find in each drawn sample."""
    contributions = (sums - means[:, None] * sample.sizes) / np.sqrt(1 - sample.sizes / sample.queries)
    square = (contributions**2).mean(axis=1)
    return np.sqrt(square * sample.units) / sample.queries, (contributions**3).mean(axis=1) / square**1.5


def _studentised_needed(skewness: Array, tail: float, sample: Estimate) -> Array:
    """The smallest studentised mean whose cautious p-value is at most ``tail``: by halving, it grows with the mean."""
    from scipy import stats

    quantile = float(stats.t.isf(tail, sample.freedom))
    low, high = np.full(len(skewness), quantile), np.full(len(skewness), 100 * quantile)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        passes = hall(middle, lowest_skewness(skewness), skewness, sample.units) >= quantile
        low, high = np.where(passes, low, middle), np.where(passes, middle, high)
    return high


def _sign_flip_needed(sums: Array, sizes: Array, tail: float) -> Array:
    """The gain above which the exact sign-flip test's p-value is at most ``tail``.

    With a gain g a pattern reaches the observed sum when the units that it flips sum to at most 0 with g added to each of
    their queries, so for each pattern up to one g.
    """
    count = len(sizes)
    flipped = ((np.arange(1, 2**count)[:, None] >> np.arange(count)) & 1).astype(float)
    reaches_up_to = -(sums @ flipped.T) / (flipped @ sizes)
    # The observed pattern always reaches itself.
    allowed = math.floor(tail * 2**count + 1e-9) - 1
    return np.partition(reaches_up_to, -1 - allowed, axis=1)[:, -1 - allowed]
