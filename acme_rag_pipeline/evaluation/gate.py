"""The promotion gate: may a challenger replace the champion, given the nDCG@10 of both on the same questions?

A challenger is promoted when all of this holds, each against a different way of being fooled:

- the lower end of the paired interval, units resampled, is above 0, with a margin for the error of the skewness, and the
  exact sign-flip test over units agrees. The two hold for few units too: no percentile bootstrap, which promotes 10 to
  49 % of equal arms below 30 units;
- the gain would survive a loss in units of a kind that the sample is too small to hold (the "rule of three"), or to hold
  as many of as there are;
- these hold at the level of the challenger's step in Holm's (1979) procedure over all challengers, and after what questions
  of the generator that trained its model flatter it by is taken off;
- what remains of the gain is at least the minimum effect;
- no segment with enough questions falls significantly, and by more than the margin.

Too little evidence is an outcome (``kept: cannot tell``), not an exception; only contradictory input is an exception.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from acme_rag_pipeline.evaluation.comparison import (
    ArmScores,
    Comparison,
    GateSettings,
    SegmentRow,
    compare,
    compare_segments,
    fewest_units,
    percent,
    units_needed,
)
from acme_rag_pipeline.evaluation.intervals import UNSEEN_LOSS, unseen_loss_p, unseen_share
from acme_rag_pipeline.evaluation.power import detectable_gain
from acme_rag_pipeline.evaluation.words import counted

__all__ = ["ArmScores", "Comparison", "Decision", "GateSettings", "SegmentRow", "compare", "decide"]

PROMOTED = "promoted"
NOT_BETTER = "kept: not better"
CANNOT_TELL = "kept: cannot tell"
PEOPLE = "curated"

EvidenceKind = Literal["golden", "held_out"]


@dataclass(frozen=True)
class Decision:
    """The gate's answer.

    Attributes:
        verdict: ``promoted``, ``kept: not better``, ``kept: cannot tell`` or ``kept: segment <kind>=<value> falls``.
        winner: The promoted arm, None when the champion stays.
        champion: The arm readers use today.
        reason: What was found, in words for the person who owns the search.
        evidence_kind: ``golden`` or ``held_out``.
        comparisons: A row per challenger, in the order given.
        segments: Rows of every challenger.
        queries: Number of questions.
        units: Number of units they come from.
        detectable_gain: The nDCG@10 gain that 4 of 5 such comparisons would promote; None when none can be.
        subject: The challenger that the verdict and the reason are about; None when there is none.
    """

    verdict: str
    winner: str | None
    champion: str
    reason: str
    evidence_kind: EvidenceKind
    comparisons: tuple[Comparison, ...]
    segments: tuple[SegmentRow, ...]
    queries: int
    units: int
    detectable_gain: float | None
    subject: str | None = None


def decide(
    champion: ArmScores,
    challengers: Sequence[ArmScores],
    units: Mapping[str, str],
    segments: Mapping[str, Mapping[str, str]],
    settings: GateSettings,
    evidence_kind: EvidenceKind,
    unit_noun: str = "units",
) -> Decision:
    """Decide whether one of the challengers replaces the champion.

    Among those that pass the largest mean gain wins, or the simplest recipe within ``simplicity_margin`` of it.

    Args:
        champion: Scores of what readers use today.
        challengers: Scores on the same queries, the simplest recipe first.
        units: The unit of each query; queries of one unit stand or fall together.
        segments: Segment kind (``folder``, ``style``, ``origin``, ...) -> query id -> segment; gaps are allowed.
        settings: Levels and margins.
        evidence_kind: ``golden`` for people's judged questions; ``held_out`` questions count as machine-written unless
            the segment kind ``origin`` says ``curated``.
        unit_noun: What the reason calls units, for instance ``documents``.

    Raises:
        ValueError: Query ids that differ between arms, lack a unit or have a score that is no number (all named), two
            arms of one name, or an unknown kind of evidence.
    """
    if evidence_kind not in ("golden", "held_out"):
        raise ValueError(f"evidence_kind must be golden or held_out, not {evidence_kind!r}")
    origin = segments.get("origin", {})
    by_machine = {i for i in champion.ndcg if evidence_kind == "held_out" and origin.get(i) != PEOPLE}
    comparisons = compare(champion, challengers, units, settings, by_machine)
    by_arm = {arm.arm: compare_segments(champion, arm, units, segments, settings) for arm in challengers}
    eligible = [row for row in comparisons if row.significant and row.remaining >= settings.minimum_effect]
    passing = [row for row in eligible if not any(segment.falls for segment in by_arm[row.arm])]
    n_units = len({units[i] for i in champion.ndcg})
    open_ended = [row for row in comparisons if not _not_better(row, settings)]
    # The verdict is about this one: where some may be better, the best of those.
    subject = max(open_ended or comparisons, key=lambda row: row.difference, default=None)

    verdict, winner = CANNOT_TELL, None
    if passing:
        top = max(row.remaining for row in passing)
        subject = next(row for row in passing if row.remaining >= top - settings.simplicity_margin)
        verdict, winner = PROMOTED, subject.arm
    elif eligible:
        subject = max(eligible, key=lambda row: row.remaining)
        worst = _worst(by_arm[subject.arm])
        verdict = f"kept: segment {worst.kind}={worst.value} falls"
    elif comparisons and not open_ended and n_units >= units_needed(len(comparisons), settings):
        verdict = NOT_BETTER

    detectable = None
    if subject is not None:
        shown = next(arm for arm in challengers if arm.arm == subject.arm)
        detectable = detectable_gain(champion, shown, units, len(challengers), settings, settings.minimum_effect)
        detectable = None if detectable is None else detectable + subject.taken_off
    decision = Decision(
        verdict=verdict,
        winner=winner,
        champion=champion.arm,
        reason="",
        evidence_kind=evidence_kind,
        comparisons=comparisons,
        segments=tuple(row for rows in by_arm.values() for row in rows),
        queries=len(champion.ndcg),
        units=n_units,
        detectable_gain=detectable,
        subject=subject.arm if subject is not None else None,
    )
    sentences = [
        _finding(decision, subject, settings, unit_noun),
        _others(decision, subject, settings) if winner is not None else "",
        _power(decision, settings, unit_noun),
        _evidence(len(by_machine), len(champion.ndcg)),
        _uncredited(champion, challengers) if by_machine and winner is None else "",
    ]
    return replace(decision, reason=" ".join(filter(None, sentences)))


def _not_better(row: Comparison, settings: GateSettings) -> bool:
    """Whether a gain that is worth a change can be ruled out, not merely was not seen."""
    return row.high < settings.minimum_effect


def _worst(rows: Sequence[SegmentRow]) -> SegmentRow:
    return min((row for row in rows if row.falls), key=lambda row: row.difference)


def _finding(decision: Decision, subject: Comparison | None, settings: GateSettings, noun: str) -> str:
    """What was found about the arm that decided the verdict."""
    stays = f"{decision.champion} stays"
    scope = f"{counted(decision.queries, 'questions')} over {counted(decision.units, noun)}"
    if not decision.queries:
        return f"{stays}: there are no judged questions to compare with."
    if subject is None:
        return f"{stays}: there was no candidate to compare it with."
    relative = "" if subject.relative_gain is None else f", {100 * subject.relative_gain:+.1f} %"
    change = f"from {subject.champion_mean:.3f} to {subject.challenger_mean:.3f} ({subject.difference:+.3f}{relative})"
    rises, goes = (f"search quality (nDCG@10) {verb} {change}" for verb in ("rises", "goes"))
    between = f"between {subject.low:+.3f} and {subject.high:+.3f} with {percent(subject.level)} % confidence"

    if decision.winner is not None:
        visible = [
            row.visible_fall for row in decision.segments if row.arm == subject.arm and row.visible_fall is not None
        ]
        segments = f"gets clearly worse{_unseen_falls(max(visible))}" if visible else "is large enough to check alone"
        rivals = len(decision.comparisons)
        joint = (
            f" (so that of {rivals} candidates that are no better one is promoted in at most {100 * settings.tail:.2g} % of "
            "such decisions, or little more where losses are rare and large)"
            if rivals > 1
            else ""
        )
        less = f" {_flattered(subject)} {_rest(subject)}, is more than chance explains." if subject.taken_off else ""
        return (
            f"{subject.arm} replaces {decision.champion}: {rises} on {scope}. The true gain lies {between}{joint}, and no "
            f"group of questions {segments}.{less}"
        )
    if decision.detectable_gain is None:
        needed = units_needed(len(decision.comparisons), settings)
        return (
            f"{stays}: {goes} with {subject.arm}, but with {scope} no gain, however large, can be "
            f"told from chance; at least {needed} {noun} are needed."
        )
    if decision.verdict.startswith("kept: segment"):
        worst = _worst([row for row in decision.segments if row.arm == subject.arm])
        return (
            f"{stays}: {subject.arm} is better overall, {rises}, but it falls from "
            f"{worst.champion_mean:.3f} to {worst.challenger_mean:.3f} ({worst.difference:+.3f}) on the "
            f"{worst.queries} questions with {worst.kind} {worst.value}, more than chance explains"
            + (f" in these {counted(worst.units, noun)}." if worst.units < fewest_units(settings) else ".")
        )
    if subject.difference == 0 == subject.low == subject.high:
        return f"{stays}: {subject.arm} answers every question exactly as well."
    if subject.difference <= 0:
        ruled_out = _not_better(subject, settings)
        rest = "" if ruled_out else f" The true difference may lie anywhere {between}: it may be better all the same."
        higher = max(decision.comparisons, key=lambda row: row.difference)
        if higher.difference <= 0:
            return f"{stays}: no candidate scores higher. With the best, {subject.arm}, {goes}.{rest}"
        return (
            f"{stays}: {higher.arm} gains {higher.difference:.2g}, less than the {settings.minimum_effect:g} that a change must "
            f"bring. With {subject.arm} {goes}.{rest}"
        )
    if _not_better(subject, settings):
        return (
            f"{stays}: with {subject.arm} {goes}; the true gain lies {between}, "
            f"less than the {settings.minimum_effect:g} that a change must bring."
        )
    return f"{stays}: with {subject.arm} {rises}, {_doubt(subject, settings, noun, between)}"


def _unseen_falls(visible: float) -> str:
    """How much a group may have lost all the same: what its questions could not show."""
    seen = f"a fall below {visible:.2g} could not be seen reliably" if visible < 1 else "hardly any fall could be seen"
    return f": none falls by more than chance explains (in the group that shows least, {seen})"


def _flattered(row: Comparison) -> str:
    return f"Its model learned from questions of the kind that judge it, for which {row.taken_off:.2g} is taken off:"


def _rest(row: Comparison) -> str:
    return f"what remains, {row.remaining:+.3f}"


def _doubt(subject: Comparison, settings: GateSettings, noun: str, between: str) -> str:
    """Why a gain that was seen is not enough: what cannot be told."""
    tail = (1 - subject.level) / 2
    if subject.taken_off and subject.low > 0:
        too_little = subject.remaining < settings.minimum_effect
        less = (
            f"less than the {settings.minimum_effect:g} that a change must bring"
            if too_little
            else "no more than chance may do"
        )
        flattered = _flattered(subject)
        return f"but {flattered[0].lower()}{flattered[1:]} {_rest(subject)}, is {less}. Whether people would see a gain cannot be told."
    if subject.significant:
        return (
            f"a gain that is real, but whether it reaches the {settings.minimum_effect:g} that a change must bring cannot be "
            f"told: it lies {between}."
        )
    if subject.low > 0 and unseen_loss_p(subject.difference, subject.units) > tail:
        return (
            f"but so few {noun} need not show every kind: up to {100 * unseen_share(subject.units, tail):.0f} % of all "
            f"{noun} may be of a kind that is not among these {subject.units}, and if {subject.arm} does {UNSEEN_LOSS:g} "
            f"worse there, nothing of the gain remains."
        )
    if subject.low > 0:
        return (
            f"but chance alone does as well too often (p = {subject.p_value:.2g}, at most {tail:.2g} is asked for): "
            "it may be chance."
        )
    return f"but the true difference may lie anywhere {between}: it may be chance."


def _others(decision: Decision, winner: Comparison | None, settings: GateSettings) -> str:
    """Why an arm with a larger gain than the winner's was passed over."""
    sentences = []
    for row in decision.comparisons:
        if winner is None or row.difference <= winner.difference:
            continue
        more = f"{row.arm} gains {row.difference - winner.difference:.2g} more"
        fallen = [segment for segment in decision.segments if segment.arm == row.arm and segment.falls]
        passes = row.significant and row.remaining >= settings.minimum_effect
        if row.taken_off and row.low > 0 and (not passes or (not fallen and row.taken_off > winner.taken_off)):
            sentences.append(
                f"{more}, but its model learned from questions of the kind that judge it, which flatters it: "
                f"{row.taken_off:.2g} is taken off."
            )
        elif not row.significant:
            sentences.append(f"{more}, but its gain over {decision.champion} may be chance.")
        elif fallen:
            worst = _worst(fallen)
            sentences.append(f"{more}, but falls on {worst.kind} {worst.value}.")
        else:
            sentences.append(f"{more}, which is so little that the simpler recipe is preferred.")
    return " ".join(sentences)


def _power(decision: Decision, settings: GateSettings, noun: str) -> str:
    """What these questions could and could not show."""
    gain = decision.detectable_gain
    if gain is None:
        return ""
    few = ""
    if decision.units < settings.minimum_units:
        few = f"With fewer than {settings.minimum_units} {noun} the answer rests on an exact test over {noun}."
    if decision.winner is not None:
        return few
    scope = f"{counted(decision.queries, 'questions')} over {counted(decision.units, noun)}"
    if gain > 1 - decision.comparisons[0].champion_mean:
        return (
            f"With {scope} hardly any gain can be seen: even a perfect candidate might not be promoted. {few}".strip()
        )
    return (
        f"With {scope} a gain below {gain:.2g} cannot be seen reliably: fewer than 4 of 5 such comparisons would promote "
        f"it. {few}"
    ).strip()


def _evidence(machine: int, queries: int) -> str:
    if not machine:
        return ""
    if machine == queries:
        return (
            "This is synthetic evidence: a machine wrote all the questions, so judged questions of people may disagree."
        )
    return f"This is partly synthetic evidence: a machine wrote {machine} of the {queries} questions."


def _uncredited(champion: ArmScores, challengers: Sequence[ArmScores]) -> str:
    """That flattery which keeps a champion is not taken off: the burden of proof is the challenger's."""
    if not champion.flattered or all(arm.flattered for arm in challengers):
        return ""
    return f"The model of {champion.arm} learned from such questions, which may flatter it; no challenger is credited for that."
