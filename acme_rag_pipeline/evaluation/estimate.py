"""What the units at hand say about a mean over queries: its error, degrees of freedom, and skewness.

The linearised variance of a ratio mean over units with the CR2 correction (Bell and McCaffrey 2002), and Satterthwaite
degrees of freedom under a working model with the estimated intra-unit correlation (Imbens and Kolesár 2016).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """What the units at hand say about the mean.

    Attributes:
        mean: Over queries.
        error: Its standard error; infinite with one unit.
        freedom: Degrees of freedom of the error.
        skewness: Of the units' contributions.
        sizes: Queries of each unit.
        correlation: Of two queries of a unit.
    """

    mean: float
    error: float
    freedom: float
    skewness: float
    units: int
    queries: int
    sizes: Array
    correlation: float = 0.0


def checked(values: Sequence[float], units: Sequence[str]) -> tuple[Array, NDArray[np.intp]]:
    """The values and the number of each one's unit.

    Raises:
        ValueError: No values, values that are not finite, or lengths that differ.
    """
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or array.size == 0:
        raise ValueError("an interval needs at least one query")
    if array.size != len(units):
        raise ValueError(f"{array.size} values but {len(units)} unit labels")
    if not np.isfinite(array).all():
        raise ValueError(f"{int((~np.isfinite(array)).sum())} of {array.size} values are not finite numbers")
    _, index = np.unique(np.asarray(units, dtype=object).astype(str), return_inverse=True)
    return array, index


def estimate_mean(values: Sequence[float], units: Sequence[str]) -> Estimate:
    """Mean, error and what else the intervals are made of.

    Raises:
        ValueError: As ``mean_interval``.
    """
    array, index = checked(values, units)
    sizes = np.bincount(index).astype(float)
    mean, count = float(array.mean()), len(sizes)
    if count == 1:
        return Estimate(mean, math.inf, 1.0, 0.0, 1, array.size, sizes)
    # Grouping identical values must not leave rounding noise that passes for spread.
    residuals = np.bincount(index, array - mean)
    residuals[np.abs(residuals) <= 1e-12 * max(1e-300, float(np.abs(array).max())) * sizes] = 0.0
    weights = 1 / np.sqrt(1 - sizes / array.size)
    contributions = residuals * weights
    square = float((contributions**2).mean())
    if square == 0:
        return Estimate(mean, 0.0, count - 1.0, 0.0, count, array.size, sizes)
    correlation = _intra_unit_correlation(array, index, sizes)
    return Estimate(
        mean=mean,
        error=math.sqrt(square * count) / array.size,
        freedom=_satterthwaite(sizes * (1 + (sizes - 1) * correlation), weights, sizes / array.size),
        skewness=float((contributions**3).mean()) / square**1.5,
        units=count,
        queries=array.size,
        sizes=sizes,
        correlation=correlation,
    )


def _intra_unit_correlation(values: Array, index: NDArray[np.intp], sizes: Array) -> float:
    """One-way analysis-of-variance estimate, cut to [0, 1].

    1 when every unit has one query: there it has no effect, and it must promise nothing of units with more.
    """
    inside_freedom = values.size - sizes.size
    if inside_freedom == 0:
        return 1.0
    means = np.bincount(index, values) / sizes
    inside = float(((values - means[index]) ** 2).sum()) / inside_freedom
    between = float((sizes * (means - values.mean()) ** 2).sum()) / (sizes.size - 1)
    typical_size = (values.size - float((sizes**2).sum()) / values.size) / (sizes.size - 1)
    total = between + (typical_size - 1) * inside
    return min(1.0, max(0.0, (between - inside) / total)) if total > 0 else 0.0


def _satterthwaite(variances: Array, weights: Array, shares: Array) -> float:
    """Degrees of freedom ``trace(V)^2 / trace(V^2)`` of the variance estimate under the working model.

    ``V`` is the covariance of the weighted residual sums; it is a diagonal plus a matrix of rank two, so both traces
    have closed forms and no units-by-units matrix is built.
    """
    total = float(variances.sum())
    diagonal, p, q = weights**2 * variances, weights * shares, weights * variances
    pp, qq, pq = float(p @ p), float(q @ q), float(p @ q)
    correction = total * p * p - 2 * p * q
    trace = float((diagonal + correction).sum())
    square = float((diagonal**2 + 2 * diagonal * correction).sum())
    square += total**2 * pp**2 - 4 * total * pp * pq + 2 * pq**2 + 2 * pp * qq
    return max(1.0, trace**2 / square)
