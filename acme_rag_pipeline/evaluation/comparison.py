"""A champion against its challengers on the same questions: overall, and segment by segment.

Both adjust for the number of looks with Holm's (1979) steps: over the challengers, and over a challenger's segments.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from acme_rag_pipeline.evaluation.estimate import estimate_mean
from acme_rag_pipeline.evaluation.intervals import (
    gain_p,
    mean_interval,
    paired_interval,
    rare_loss_p,
    sign_flip_p,
)


@dataclass(frozen=True)
class GateSettings:
    """What the gate asks for; all but ``level`` and the counts are in nDCG@10, between 0 and 1.

    Attributes:
        level: Confidence of the two-sided interval; its lower tail ``(1 - level) / 2`` bounds false promotions.
        minimum_effect: Smallest mean gain worth a change.
        minimum_units: Below it the reason warns that few units decided.
        segment_minimum_queries: Segments with fewer questions are shown but not tested.
        segment_margin: A fall up to this size is tolerated in a segment.
        segment_alpha: One-sided level of "no segment falls", for all segments of a challenger together. It is no part of
            ``level``: whoever asks for more evidence of a gain does not want to see fewer losses.
        simplicity_margin: A simpler recipe is preferred when it gains at most this much less.
        synthetic_handicap: Taken off the gain on each question that flatters the challenger and not the champion.
    """

    level: float = 0.95
    minimum_effect: float = 0.01
    minimum_units: int = 30
    segment_minimum_queries: int = 20
    segment_margin: float = 0.03
    segment_alpha: float = 0.05
    simplicity_margin: float = 0.002
    synthetic_handicap: float = 0.05

    @property
    def tail(self) -> float:
        """Probability below the interval: the allowed rate of false promotions."""
        return (1 - self.level) / 2


@dataclass(frozen=True)
class ArmScores:
    """An arm's nDCG@10 for each query id.

    Attributes:
        flattered: its model learned from questions of the generator that writes questions here.
    """

    arm: str
    ndcg: Mapping[str, float]
    flattered: bool = False


@dataclass(frozen=True)
class Comparison:
    """A challenger against the champion on all questions.

    ``low`` and ``high`` hold at ``level``, adjusted for the number of challengers; ``p_value`` is one-sided and not
    adjusted, the largest of three: the interval's with caution about skewness, the sign-flip test's, and that of a loss in
    units of a kind that the sample does not hold, or hardly. ``relative_gain`` is None for a champion at 0.

    ``taken_off`` is the mean that ``p_value`` and ``significant`` leave out of the difference because questions flatter the
    challenger; means, ``difference`` and interval are as measured.
    """

    arm: str
    queries: int
    units: int
    champion_mean: float
    challenger_mean: float
    difference: float
    low: float
    high: float
    level: float
    p_value: float
    significant: bool
    relative_gain: float | None
    taken_off: float = 0.0

    @property
    def remaining(self) -> float:
        """The difference without what flatters the challenger."""
        return self.difference - self.taken_off


@dataclass(frozen=True)
class SegmentRow:
    """A challenger against the champion on one segment.

    ``p_value`` of a fall is Holm-adjusted, None: not tested. ``visible_fall`` is about the true fall that 4 of 5 such segments
    would show at the first of Holm's steps.
    """

    arm: str
    kind: str
    value: str
    queries: int
    units: int
    champion_mean: float
    challenger_mean: float
    difference: float
    p_value: float | None
    falls: bool
    visible_fall: float | None = None


def compare(
    champion: ArmScores,
    challengers: Sequence[ArmScores],
    units: Mapping[str, str],
    settings: GateSettings,
    by_machine: Collection[str] = (),
) -> tuple[Comparison, ...]:
    """Compare each challenger with the champion over all questions.

    A challenger is significant when the paired interval (units resampled) lies above 0, with a margin for the error of
    the skewness, the sign-flip test agrees, and the gain is too large for an unseen or rare kind of unit to undo it: all at the
    tail of its step of Holm's procedure, and after what its questions flatter it by is taken off.

    Args:
        champion: Scores of what readers use today.
        challengers: Scores on the same queries.
        units: The unit of each query.
        settings: Levels and margins.
        by_machine: Queries that flatter an arm with ``flattered``: on each, the handicap is taken off its gain over a
            champion without.

    Returns:
        A row per challenger in the given order; none when there are no queries.

    Raises:
        ValueError: Arms of one name, queries that differ between arms or lack a unit, scores that are no numbers.
    """
    check_scores(champion, challengers, units)
    ids = sorted(champion.ndcg)
    if not ids:
        return ()
    labels, before = [units[i] for i in ids], [champion.ndcg[i] for i in ids]
    p_values: dict[str, float] = {}
    remaining: dict[str, list[float]] = {}
    taken_off: dict[str, float] = {}
    for arm in challengers:
        less = settings.synthetic_handicap if arm.flattered and not champion.flattered else 0.0
        gains = [arm.ndcg[i] - champion.ndcg[i] - (less if i in by_machine else 0.0) for i in ids]
        remaining[arm.arm], taken_off[arm.arm] = gains, less * sum(i in by_machine for i in ids) / len(ids)
        p_values[arm.arm] = max(
            gain_p(gains, labels, cautious=True),
            sign_flip_p(gains, labels),
            rare_loss_p(gains, labels),
        )

    rows: dict[str, Comparison] = {}
    left, rejecting = len(challengers), True
    for arm in sorted(challengers, key=lambda arm: p_values[arm.arm]):
        tail = settings.tail / left
        rejecting = rejecting and p_values[arm.arm] <= tail
        # Where Holm stops, it stops for all that follow: they share the level of that step.
        left -= rejecting
        after = [arm.ndcg[i] for i in ids]
        interval = paired_interval(before, after, labels, 1 - 2 * tail)
        of_rest = mean_interval(remaining[arm.arm], labels, 1 - 2 * tail, lowest=-1.0)
        mean = sum(before) / len(ids)
        rows[arm.arm] = Comparison(
            arm=arm.arm,
            queries=len(ids),
            units=interval.units,
            champion_mean=mean,
            challenger_mean=sum(after) / len(ids),
            difference=interval.mean,
            # A mean over queries has no such limits; a difference of two nDCG has.
            low=max(-1.0, interval.low),
            high=min(1.0, interval.high),
            level=1 - 2 * tail,
            p_value=p_values[arm.arm],
            significant=rejecting and of_rest.low > 0,
            relative_gain=interval.mean / mean if mean > 0 else None,
            taken_off=taken_off[arm.arm],
        )
    return tuple(rows[arm.arm] for arm in challengers)


def compare_segments(
    champion: ArmScores,
    challenger: ArmScores,
    units: Mapping[str, str],
    segments: Mapping[str, Mapping[str, str]],
    settings: GateSettings,
) -> tuple[SegmentRow, ...]:
    """Compare a challenger with the champion on each segment and test each for a fall.

    A segment falls when its mean difference is below 0 with a Holm-adjusted one-sided p-value of at most
    ``settings.segment_alpha`` and the loss is larger than the margin. Segments that hold every question are left out:
    they are the whole comparison. One of fewer units than ``fewest_units`` does not show how much units differ: its error is
    that of so many units like those of all other questions, or that over its own questions if that is larger. Where the others
    are of too few units too, it is not tested.
    """
    enough = fewest_units(settings)
    rows: list[SegmentRow] = []
    errors: list[tuple[float, float]] = []
    losses = {i: champion.ndcg[i] - challenger.ndcg[i] for i in champion.ndcg}
    for kind, segment_of in segments.items():
        members: dict[str, list[str]] = {}
        for i in sorted(champion.ndcg):
            if i in segment_of:
                members.setdefault(segment_of[i], []).append(i)
        for value, ids in sorted(members.items()):
            if len(ids) == len(champion.ndcg):
                continue
            labels = [units[i] for i in ids]
            tested = None
            if len(ids) >= settings.segment_minimum_queries:
                if len(set(labels)) >= enough:
                    own = [losses[i] for i in ids]
                    estimate = estimate_mean(own, labels)
                    tested = gain_p(own, labels), estimate.error, estimate.freedom
                else:
                    tested = _fall_in_few_units(losses, ids, units, enough)
            errors.append(tested[1:] if tested else (0.0, 1.0))
            rows.append(
                SegmentRow(
                    arm=challenger.arm,
                    kind=kind,
                    value=value,
                    queries=len(ids),
                    units=len(set(labels)),
                    champion_mean=sum(champion.ndcg[i] for i in ids) / len(ids),
                    challenger_mean=sum(challenger.ndcg[i] for i in ids) / len(ids),
                    difference=-sum(losses[i] for i in ids) / len(ids),
                    p_value=tested[0] if tested else None,
                    falls=False,
                )
            )
    ordered = sorted((row.p_value, index) for index, row in enumerate(rows) if row.p_value is not None)
    largest = 0.0
    for rank, (p, index) in enumerate(ordered):
        largest = max(largest, min(1.0, p * (len(ordered) - rank)))
        falls = largest <= settings.segment_alpha and rows[index].difference < -settings.segment_margin
        visible = _visible_fall(*errors[index], settings.segment_alpha / len(ordered), settings.segment_margin)
        rows[index] = replace(rows[index], p_value=largest, falls=falls, visible_fall=visible)
    return tuple(rows)


def _fall_in_few_units(
    losses: Mapping[str, float], ids: Sequence[str], units: Mapping[str, str], enough: int
) -> tuple[float, float, float] | None:
    """One-sided p-value of a fall of a segment of few units, its error, and the error's degrees of freedom.

    Questions of one document rise and fall together. One document alone cannot show by how much, so spread and intra-unit
    correlation are those of all questions outside the segment: its own mean, which may have fallen, is no part of them.

    Returns:
        None where the other questions are of too few units.
    """
    from scipy import stats

    inside = set(ids)
    others = [i for i in losses if i not in inside]
    if len({units[i] for i in others}) < enough:
        return None
    rest = estimate_mean([losses[i] for i in others], [units[i] for i in others])
    sizes = Counter(units[i] for i in ids).values()
    like = sum(size * (1 + (size - 1) * rest.correlation) for size in sizes) / len(ids) ** 2
    per_question = sum(size * (1 + (size - 1) * rest.correlation) for size in rest.sizes) / rest.queries**2
    error = rest.error * math.sqrt(like / per_question)
    own = [losses[i] for i in ids]
    mean = sum(own) / len(own)
    if error == 0:
        return gain_p(own, ids), error, rest.freedom
    return max(gain_p(own, ids), float(stats.t.sf(mean / error, rest.freedom))), error, rest.freedom


def _visible_fall(error: float, freedom: float, alpha: float, margin: float) -> float:
    """The true fall of which 4 of 5 are significant at the level and larger than the margin."""
    from scipy import stats

    missed = float(stats.t.isf(0.2, freedom)) * error
    return max(float(stats.t.isf(alpha, freedom)) * error, margin) + missed


def percent(level: float) -> str:
    """A confidence level in percent, to three digits, and more where they would round it up to 100."""
    texts = (f"{100 * level:.{digits}g}" for digits in range(3, 17))
    return next((text for text in texts if float(text) < 100), "nearly 100")


def units_needed(challengers: int, settings: GateSettings) -> int:
    """Fewest units with which a sign-flip test, whose smallest p-value is ``2 ** -units``, can favour a challenger."""
    return math.ceil(math.log2(max(1, challengers) / settings.tail))


def fewest_units(settings: GateSettings) -> int:
    """Fewest units over which a segment is tested by itself; fewer do not show how much units differ."""
    return math.ceil(math.log2(1 / settings.segment_alpha))


def check_scores(champion: ArmScores, challengers: Sequence[ArmScores], units: Mapping[str, str]) -> None:
    """Refuse arms that cannot be paired.

    Raises:
        ValueError: As ``compare``; the message names the arm and the query ids.
    """
    names = [champion.arm, *(arm.arm for arm in challengers)]
    if len(set(names)) < len(names):
        raise ValueError(f"each arm needs a name of its own: {', '.join(names)}")
    for arm in (champion, *challengers):
        if missing := champion.ndcg.keys() - arm.ndcg.keys():
            raise ValueError(f"{arm.arm} has no score for {_named(missing)}")
        if extra := arm.ndcg.keys() - champion.ndcg.keys():
            raise ValueError(f"{arm.arm} has scores that {champion.arm} lacks, for {_named(extra)}")
        if wrong := [i for i, score in arm.ndcg.items() if not math.isfinite(score)]:
            raise ValueError(f"{arm.arm} has scores that are no numbers, for {_named(wrong)}")
    if homeless := champion.ndcg.keys() - units.keys():
        raise ValueError(f"no unit is known for {_named(homeless)}")


def _named(ids: Iterable[str], shown: int = 10) -> str:
    names = sorted(ids)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ("query " if len(names) == 1 else "queries ") + ", ".join(names[:shown]) + more
