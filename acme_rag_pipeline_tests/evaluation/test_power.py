"""The gain that a set of questions can show: 4 of 5 comparisons with it are promoted, by everything the gate asks for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from acme_rag_pipeline.evaluation.comparison import ArmScores, GateSettings, compare
from acme_rag_pipeline.evaluation.power import detectable_gain, gain_with_power
from benchmarks.gate_simulation import gaussian, geometric

SETTINGS = GateSettings()


def drawn(
    rng: np.random.Generator, units: int, challengers: int, spread: float, gain: float
) -> tuple[list[ArmScores], dict[str, str]]:
    """A champion, a challenger with the gain, others without; questions of a unit correlate with 0.3."""
    unit = np.repeat(np.arange(units), geometric(rng, units))
    scores = gaussian(rng, unit, challengers, spread, correlation=0.3)
    scores[1] += gain
    ids = [f"q{i:04d}" for i in range(unit.size)]
    arms = [ArmScores(f"arm{i}", dict(zip(ids, row.tolist(), strict=True))) for i, row in enumerate(scores)]
    return arms, {i: f"d{u:03d}" for i, u in zip(ids, unit.tolist(), strict=True)}


@pytest.mark.parametrize("units", [8, 12, 40, 100])
@pytest.mark.parametrize(
    ("challengers", "at_least", "spread"),
    [(1, 0.01, 0.2), (3, 0.01, 0.2), (1, 0.06, 0.05)],
    ids=["one", "three", "large effect asked for"],
)
def test_four_of_five_comparisons_with_the_stated_gain_promote(
    units: int, challengers: int, at_least: float, spread: float
) -> None:
    """The mean of the gains stated for 40 samples, then 150 comparisons with that true gain.

    Tolerance: 10 points, three standard errors of such a share. A formula with t quantiles alone is at 44 % with 8 units.
    """
    rng = np.random.default_rng([units, challengers])
    stated = []
    for _ in range(40):
        arms, unit_of = drawn(rng, units, challengers, spread, 0.0)
        gain = detectable_gain(arms[0], arms[1], unit_of, challengers, SETTINGS, at_least)
        assert gain is not None
        stated.append(gain)
    promoted = 0
    for _ in range(150):
        arms, unit_of = drawn(rng, units, challengers, spread, float(np.mean(stated)))
        row = compare(arms[0], arms[1:], unit_of, SETTINGS)[0]
        promoted += row.significant and row.difference >= at_least
    assert abs(promoted / 150 - 0.8) <= 0.1


def test_more_units_less_spread_and_fewer_conditions_show_smaller_gains() -> None:
    values = np.random.default_rng(7).normal(size=200)
    few, many = [str(i % 10) for i in range(200)], [str(i) for i in range(200)]
    plain = gain_with_power(values.tolist(), many, 0.025)

    assert plain == gain_with_power(values.tolist(), many, 0.025), "the draws are seeded"
    assert plain < gain_with_power(values.tolist(), many, 0.005)
    assert gain_with_power(values.tolist(), many, 0.025, power=0.5) < plain
    assert gain_with_power(values.tolist(), few, 0.025) > plain
    assert gain_with_power((values / 4).tolist(), many, 0.025) == pytest.approx(plain / 4, abs=0.02)
    # It is the observed gain that must reach what is asked for, so the true one must lie above it.
    assert gain_with_power(values.tolist(), many, 0.025, at_least=9.0) > 9
    assert gain_with_power(values.tolist(), ["one"] * 200, 0.025) == math.inf
    assert gain_with_power([0.0] * 200, many, 0.025, at_least=0.1) == 0.1


def test_no_gain_is_stated_where_no_test_can_reach_the_level() -> None:
    arms, unit_of = drawn(np.random.default_rng(0), 6, 1, 0.1, 0.0)
    assert detectable_gain(arms[0], arms[1], unit_of, 1, SETTINGS, 0.01) is not None
    assert detectable_gain(arms[0], arms[1], unit_of, 2, SETTINGS, 0.01) is None
