"""Confidence intervals and a test for per-query scores whose queries come in dependent units (documents).

Queries about one document succeed and fail together, so the unit, not the query, is what was sampled. A percentile
bootstrap over few units is too narrow; the intervals here are built from four corrections for few, unequal and skewed
units, each from the literature:

- the linearised variance of a ratio mean over units with the CR2 correction (Bell and McCaffrey 2002),
- Satterthwaite degrees of freedom under a working model with the estimated intra-unit correlation (Imbens and Kolesár
  2016), which fall below ``units - 1`` when a few large units carry the mean,
- Hall's (1992) transformation that removes skewness, which matters when many queries gain a little and few lose much;
  at each end the wider of the plain and the transformed limit is taken,
- an exact sign-flip test (Fisher 1935; for clusters Canay, Romano and Shaikh 2017) beside the interval.

An interval describes the units it has. A decision needs caution about those it has not: a loss in a kind of unit so rare
that a dozen units hold none or one of it can hardly be seen in them. For that ``gain_p`` has a cautious form, and
``rare_loss_p`` applies the "rule of three" for an event that was not observed, and Clopper and Pearson's (1934) limit for
one that was rarely. The rule also gives an interval its width where all units
agree exactly: that a few units show no spread does not say that there is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from acme_rag_pipeline.evaluation.estimate import Array, Estimate, checked, estimate_mean

EXACT_SIGN_FLIP_UNITS = 15
SIGN_FLIP_DRAWS = 20_000
UNSEEN_LOSS = 0.5
"""How much worse than elsewhere a kind of unit that no one has seen may be: in nDCG@10 first to third place is 0.5."""
SKEWNESS_CAUTION = 0.5
"""How far the true skewness may lie below the estimate: its standard error, ``sqrt(6 / units)`` (Fisher 1930), at 24 units.

The same at any number: with fewer units ``rare_loss_p`` is the stricter, with more it matters less and less but costs
nothing, and the error of a skewed sample's skewness is larger than that of a normal one."""
SKEWNESS_SHARE = 0.75
"""By which share of a negative estimate the true skewness may lie below it besides.

A sample of long-tailed losses rarely holds the longest ones, so the more of a tail it shows, the more of it is missing.
The smallest share, to a quarter, with which log-normal losses are promoted in at most 2.5 % at 40 and 100 units (at 60:
3.1 %; docs/evaluation.md)."""
_DRAWS_PER_BLOCK = 2_000  # a multiple of 8, so that a block is a whole number of random bytes


@dataclass(frozen=True)
class Interval:
    """A mean over queries with its confidence limits, in the unit of the values.

    ``low`` and ``high`` are minus and plus infinity when a single unit leaves the spread unknown.
    """

    mean: float
    low: float
    high: float
    units: int
    queries: int


def mean_interval(values: Sequence[float], units: Sequence[str], level: float = 0.95, lowest: float = 0.0) -> Interval:
    """Two-sided interval of the mean over queries, with units resampled (in theory, not by bootstrap).

    Without any spread between units the limits are those of the "rule of three" (Hanley and Lippman-Hand 1983): a kind of
    unit that was not seen may have as large a share as ``unseen_share`` says, and any value from ``lowest`` to 1.

    Args:
        values: A score per query.
        units: The unit (document or section) of each query, in the same order.
        level: Confidence level between 0 and 1.
        lowest: The smallest value there can be: 0 for a score, -1 for a difference of two. The largest is 1.

    Returns:
        The interval; limits are not cut to the range of the values.

    Raises:
        ValueError: No values, values that are not finite, lengths that differ, or a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    estimate = estimate_mean(values, units)
    # Differences that are all 0 are those of an arm with itself: equal, and not by the luck of the sample.
    tied = lowest < 0 and not np.any(values)
    low, high = _limits(estimate, (1 - level) / 2, estimate.mean if tied else lowest, estimate.mean if tied else 1.0)
    return Interval(estimate.mean, low, high, estimate.units, estimate.queries)


def score_interval(values: Sequence[float], units: Sequence[str], level: float = 0.95) -> Interval:
    """Interval of a mean of scores between 0 and 1, for people to read.

    As ``mean_interval``, but no limit lies beyond that of Korn and Graubard (1998): Clopper and Pearson's for a proportion,
    on the number of independent queries that would have the same error. Near 0 and 1, where few units differ from all others,
    Hall's transformation has next to no limit. No decision rests on it.

    Args:
        values: A score per query, between 0 and 1.
        units: The unit of each query.
        level: Confidence level between 0 and 1.

    Raises:
        ValueError: As ``mean_interval``.
    """
    from scipy import stats

    plain, estimate = mean_interval(values, units, level), estimate_mean(values, units)
    mean, queries = estimate.mean, estimate.queries
    if not 0 < estimate.error < math.inf or not 0 < mean < 1:
        return plain
    tail = (1 - level) / 2
    widened = stats.t.isf(tail, estimate.freedom) / stats.t.isf(tail, queries - 1)
    independent = min(queries, mean * (1 - mean) / (estimate.error * widened) ** 2)
    found, missed = mean * independent, (1 - mean) * independent
    low = max(plain.low, min(mean, float(stats.beta.ppf(tail, found, missed + 1))))
    high = min(plain.high, max(mean, float(stats.beta.isf(tail, found + 1, missed))))
    return replace(plain, low=low, high=high)


def paired_interval(a: Sequence[float], b: Sequence[float], units: Sequence[str], level: float = 0.95) -> Interval:
    """Interval of the mean of ``b - a``: a gain of ``b`` over ``a`` is positive.

    Args:
        a: The reference's score per query.
        b: The other's score for the same queries in the same order.
        units: The unit of each query.
        level: Confidence level between 0 and 1.

    Raises:
        ValueError: As ``mean_interval``, or ``a`` and ``b`` differ in length.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} scores cannot be paired with {len(b)}")
    return mean_interval(np.subtract(b, a, dtype=float).tolist(), units, level, lowest=-1.0)


def gain_p(differences: Sequence[float], units: Sequence[str], cautious: bool = False) -> float:
    """One-sided p-value of "the mean difference is above 0", the test that belongs to ``mean_interval``.

    It is below ``(1 - level) / 2`` exactly when the interval's lower end is above 0; without any spread that holds for the
    cautious form only, and the plain one, which looks for losses of a segment, takes equal differences at their word. Negate
    the differences to test "below 0".

    Args:
        differences: The difference per query.
        units: The unit of each query.
        cautious: Take the skewness lower than estimated, down to ``lowest_skewness``. A sample that holds too few of the
            rare losses has too small a spread and also looks too little skewed, so Hall's correction fails just when it
            is needed. Without any spread: as the interval, by the "rule of three". Never a smaller p-value.

    Raises:
        ValueError: As ``mean_interval``.
    """
    from scipy import stats

    estimate = estimate_mean(differences, units)
    if estimate.error == 0:
        if estimate.mean <= 0:
            return 1.0
        return float((1 + estimate.mean) ** -estimate.units) if cautious else 0.0
    if not math.isfinite(estimate.error):
        return 1.0
    plain = estimate.mean / estimate.error
    lowest = float(lowest_skewness(estimate.skewness)) if cautious else estimate.skewness
    transformed = hall(plain, lowest, estimate.skewness, estimate.units)
    return float(stats.t.sf(min(plain, transformed), estimate.freedom))


def lowest_skewness(estimated: float | Array) -> Array:
    """How low the skewness may be that a sample estimates, for one sample or many."""
    estimates = np.asarray(estimated, dtype=float)
    return estimates - SKEWNESS_CAUTION - SKEWNESS_SHARE * np.maximum(0.0, -estimates)


def unseen_share(units: int, tail: float) -> float:
    """The largest share of all units that may be of a kind of which so many units hold none, with that tail."""
    return 1 - tail ** (1 / units)


def unseen_loss_p(mean: float, units: int, loss: float = UNSEEN_LOSS) -> float:
    """Probability that the units hold none of a kind of unit that would turn the gain into a loss.

    If a kind makes up the share ``s`` of all units and does worse than the others by ``loss``, it costs ``s * loss`` of
    the mean gain; it undoes the gain from ``s = mean / loss`` on. That none of ``units`` sampled units is of such a kind
    has a probability of at most ``(1 - mean / loss) ** units``. It is small only if the gain is large or the units are
    many: the "rule of three" (Hanley and Lippman-Hand 1983: what was not seen in n trials may have a rate of 3 / n), at
    any level. No spread is involved: a dozen units that all gain about the same do not show what other units would do.

    Args:
        mean: The observed mean gain.
        units: Number of units it was observed in.
        loss: How much worse the unseen kind may be. The largest possible loss, 1 and more, would rule out every
            promotion below some hundred units.
    """
    return min(1.0, max(0.0, 1 - mean / loss)) ** units


def rare_loss_p(differences: Sequence[float], units: Sequence[str], loss: float = UNSEEN_LOSS) -> float:
    """Probability of so few units of a losing kind, if there were enough of it to turn the gain into a loss.

    With none in the sample it is ``unseen_loss_p``. With a few, the spread says little about how many there are elsewhere,
    above all where those at hand have few queries. So their share is taken as a binomial one (Clopper and Pearson 1934): the
    gain is undone where that share is so large that the others' gain only makes up for it.

    Args:
        differences: The difference per query.
        units: The unit of each query.
        loss: A unit is of the losing kind when its mean difference lies this much below the mean over queries.

    Raises:
        ValueError: As ``mean_interval``.
    """
    from scipy import stats

    values, index = checked(differences, units)
    sizes = np.bincount(index)
    sums, mean = np.bincount(index, values), float(values.mean())
    losing = sums / sizes <= mean - loss
    unseen = unseen_loss_p(mean, sizes.size, loss)
    if not losing.any():
        return unseen
    others = float(sums[~losing].sum() / sizes[~losing].sum())
    worse = others - float((sums / sizes)[losing].mean())
    share = min(1.0, max(0.0, others / worse))
    return max(unseen, float(stats.binom.cdf(int(losing.sum()), sizes.size, share)))


def sign_flip_p(differences: Sequence[float], units: Sequence[str], seed: int = 0) -> float:
    """One-sided p-value of "the mean difference is above 0" from flipping the signs of whole units.

    Exact whatever the dependence inside a unit and the units' sizes, as long as a unit's summed difference is symmetric
    about 0 when there is no true difference (then the two arms' names could be exchanged). Units that sum to 0 do not
    change under a flip and are left out. All sign patterns are enumerated for up to 15 units; above, 20,000 are drawn
    and the observed one is counted among them (Phipson and Smyth 2010), so that no p-value is 0. Where no draw reaches the
    observed sum, Chernoff's (1952) bound on the share of patterns that do stands in for the draws, if it is smaller: a
    very strict level asks for smaller p-values than 20,000 draws can give.

    Args:
        differences: The difference per query.
        units: The unit of each query.
        seed: Seed of the draws; the same input and seed give the same p-value.

    Raises:
        ValueError: As ``mean_interval``.
    """
    values, index = checked(differences, units)
    totals: Array = np.bincount(index, values).astype(float)
    scale = float(np.abs(totals).sum())
    totals = totals[np.abs(totals) > 1e-12 * scale]
    if totals.size == 0:
        return 1.0
    # Sums that are equal in exact arithmetic must count as equal.
    threshold = float(totals.sum()) - 1e-10 * scale
    if totals.size <= EXACT_SIGN_FLIP_UNITS:
        sums = np.zeros(1)
        for total in totals:
            sums = np.concatenate([sums + total, sums - total])
        return float((sums >= threshold).mean())
    rng, reached = np.random.default_rng(seed), 0
    for _ in range(SIGN_FLIP_DRAWS // _DRAWS_PER_BLOCK):
        bits = np.frombuffer(rng.bytes(_DRAWS_PER_BLOCK * totals.size // 8), dtype=np.uint8)
        kept = np.unpackbits(bits).reshape(_DRAWS_PER_BLOCK, totals.size).astype(float)
        reached += int((2.0 * (kept @ totals) - totals.sum() >= threshold).sum())
    drawn = (reached + 1) / (SIGN_FLIP_DRAWS + 1)
    # A level above 1 / (draws + 1) asks the draws alone and one below it the bound alone, so this is a p-value at every level.
    return drawn if reached else min(drawn, _pattern_bound(totals, threshold))


def _pattern_bound(totals: Array, threshold: float) -> float:
    """Upper bound on the share of sign patterns whose sum reaches the threshold: ``prod cosh(r t) / exp(r threshold)``.

    It holds for every ``r > 0``, and the smallest on a grid is taken. With equal totals that all favour one side it comes
    down to the exact ``2 ** -units``.
    """
    rates = np.geomspace(1e-2, 1e2, 200)[:, None] / np.abs(totals).mean()
    logs = (np.logaddexp(rates * totals, -rates * totals) - math.log(2)).sum(axis=1) - rates[:, 0] * threshold
    return float(np.exp(np.clip(logs.min(), -700, 0)))  # above the smallest number there is: no p-value is 0


def hall(t: float | Array, lowest: float | Array, highest: float | Array, units: int) -> Array:
    """Hall's (1992, J. R. Stat. Soc. B 54) monotone cubic transformation of a studentised mean, or of many.

    The smallest value for a skewness in the given range: for a large ``t`` the transformation does not fall all the way
    with the skewness, but is a parabola in it.
    """
    low, high = (np.asarray(skewness) / (3 * math.sqrt(units)) for skewness in (lowest, highest))
    positive = np.maximum(t, 1e-9)  # for others the smallest value is at an end
    vertex = np.clip(-1.5 / positive - 0.75 / positive**3, low, high)
    return np.min([t + s * t**2 + s**2 * t**3 / 3 + s / 2 for s in (low, high, vertex)], axis=0)


def _hall_inverse(quantile: float, skewness: float, units: int) -> float:
    """The studentised mean that ``hall`` transforms to the quantile."""
    scaled = skewness / (3 * math.sqrt(units))
    if abs(scaled) <= 1e-9:
        return quantile
    return (math.cbrt(1 + 3 * scaled * (quantile - scaled / 2)) - 1) / scaled


def _limits(estimate: Estimate, tail: float, lowest: float, highest: float) -> tuple[float, float]:
    from scipy import stats

    if not math.isfinite(estimate.error):
        return -math.inf, math.inf
    if estimate.error == 0:
        unseen = unseen_share(estimate.units, tail)
        return estimate.mean - unseen * (estimate.mean - lowest), estimate.mean + unseen * (highest - estimate.mean)
    quantile = float(stats.t.isf(tail, estimate.freedom))
    low = max(quantile, _hall_inverse(quantile, estimate.skewness, estimate.units))
    high = min(-quantile, _hall_inverse(-quantile, estimate.skewness, estimate.units))
    return estimate.mean - low * estimate.error, estimate.mean - high * estimate.error
