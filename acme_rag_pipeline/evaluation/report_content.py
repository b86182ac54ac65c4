"""What the report shows: gathered from an evaluation and the store, then rendered and written to `reports/`."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from acme_rag_pipeline.evaluation.arms import BASE, BM25, FINE_TUNED
from acme_rag_pipeline.evaluation.comparison import (
    ArmScores,
    Comparison,
    GateSettings,
    compare,
    compare_segments,
    percent,
    units_needed,
)
from acme_rag_pipeline.evaluation.contest import Evaluation, arm_of_readers, segments_of
from acme_rag_pipeline.evaluation.contestants import Contest, champion_arm, measured_candidate
from acme_rag_pipeline.evaluation.gate import CANNOT_TELL, NOT_BETTER, PEOPLE, Decision
from acme_rag_pipeline.evaluation.metrics import PRIMARY
from acme_rag_pipeline.evaluation.picture import report_picture
from acme_rag_pipeline.evaluation.provenance import (
    funnel,
    lineage,
    samples,
    seconds_by_stage,
    stage_details,
    tokens,
    trail,
)
from acme_rag_pipeline.evaluation.query_sets import GOLDEN, HELD_OUT
from acme_rag_pipeline.evaluation.report import (
    DrawnToQueries,
    QuerySetReport,
    Report,
    Similarities,
    SweepPoint,
    TrainingPoint,
    render_report,
)
from acme_rag_pipeline.evaluation.report_parts import (
    DESCRIPTIONS,
    arm_rows,
    query_changes,
    similarity_histograms,
    unit_noun,
)
from acme_rag_pipeline.evaluation.standing import Standing
from acme_rag_pipeline.evaluation.words import counted
from acme_rag_pipeline.serving import decisions
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store, write_atomically
from acme_rag_pipeline.store.written_queries import written_queries

LATEST = "reports/latest.html"
_TRAINING_POINTS = 60


def write_report(store: Store, settings: Settings, done: Evaluation, standing: Standing) -> tuple[str, str]:
    """Write `reports/<evaluation id>.html`; `latest.html` follows when the evaluation is recorded (`show_latest`).

    Returns:
        The report's path relative to the store, and the picture for the Dagster UI as base64 PNG.
    """
    report = report_of(store, settings, done, standing)
    name = f"reports/{done.evaluation_id[:16]}.html"
    write_atomically(store.root / name, render_report(report))
    return name, base64.b64encode(report_picture(report)).decode("ascii")


def show_latest(store: Store, name: str) -> None:
    """Make `reports/latest.html` a copy of a report; its path is relative to the store."""
    write_atomically(store.root / LATEST, (store.root / name).read_text(encoding="utf-8"))


def is_latest(store: Store, name: str) -> bool:
    """Whether `reports/latest.html` is a copy of a report; its path is relative to the store."""
    latest = store.root / LATEST
    return latest.is_file() and latest.read_bytes() == (store.root / name).read_bytes()


def report_of(store: Store, settings: Settings, done: Evaluation, standing: Standing) -> Report:
    """Gather everything the page shows."""
    details = stage_details(store)
    who = done.contest
    incumbent = champion_arm(who, held_out=not who.golden_decides)
    subject = done.decision.subject or (FINE_TUNED if who.candidate is not None else "none")
    trained = details.get("fine_tuned_model", {})
    query_sets = [_query_set(store, settings, done, standing, name, subject) for name in done.queries]
    return Report(
        headline=_headline(done.decision, standing),
        verdict=standing.verdict,
        reason=standing.reason,
        champion=incumbent,
        champion_digest=who.champion.model_digest,
        candidate=subject,
        candidate_digest=_digest_of(who, subject),
        created_at=datetime.now(UTC),
        query_sets=query_sets,
        ahead=" ".join(filter(None, (_ahead(shown) for shown in query_sets if not _flatters(shown.name, done)))),
        corpus={
            "documents": details.get("documents", {}).get("readable", 0),
            "unreadable files": details.get("documents", {}).get("unreadable", 0),
            "words": details.get("documents", {}).get("words", 0),
            "chunks": details.get("chunks", {}).get("chunks", 0),
            "raw pairs": details.get("training_set", {}).get("raw", 0),
            "kept pairs": details.get("training_set", {}).get("kept", 0),
        },
        training=_training(trained),
        sweep=[
            SweepPoint(
                row["share"],
                row["ndcg@10"],
                _chosen(row, trained),
                row.get("whitening", 0.0),
                row.get("unlike_training"),
            )
            for row in trained.get("interpolation", [])
        ],
        drawn=DrawnToQueries(**trained["drawn_to_queries"]) if trained.get("drawn_to_queries") else None,
        funnel=funnel(store, details.get("training_set", {})),
        samples=samples(store),
        similarities=_similarities(store, settings, done),
        stages=seconds_by_stage(store, done, trained),
        tokens=tokens(store, settings),
        lineage=lineage(store, done, details),
        trail=trail(store, done, details),
        forgetting=done.forgetting,
        caveats=_caveats(done, trained, written_queries(store.warehouse)),
        candidate_label="challenger" if subject.startswith(BASE) else "candidate",
        units_needed=units_needed(len(done.decision.comparisons), GateSettings(**settings.gate.model_dump())),
    )


def _digest_of(who: Contest, subject: str) -> str:
    """The model behind the arm that the verdict is about."""
    if subject.startswith(BASE):
        return who.base.model_digest
    return who.candidate.model_digest if who.candidate else ""


def _headline(found: Decision, standing: Standing) -> str:
    """What readers get, for a person who reads nothing else."""
    if standing.verdict == decisions.KEPT_BY_A_PERSON:
        return "Kept as it is: a person rolled back from the winner"
    if not standing.of_today:
        return f"Decided before, and that stands: {standing.verdict}"
    if found.winner is not None:
        return f"Promoted: readers now get {DESCRIPTIONS[found.winner]}"
    if not found.queries:
        return "Kept as it is: there are no questions to judge by"
    if not found.comparisons:
        return "Kept as it is: there is no candidate"
    if found.verdict == NOT_BETTER:
        return "Kept as it is: no challenger is better"
    if found.verdict == CANNOT_TELL:
        return "Kept as it is: the evidence cannot tell"
    return "Kept as it is: a group of questions gets worse"


def _query_set(
    store: Store, settings: Settings, done: Evaluation, standing: Standing, name: str, subject: str
) -> QuerySetReport:
    incumbent = champion_arm(done.contest, held_out=name == HELD_OUT)
    queries, results = done.queries[name], done.results[name]
    units = {query.query_id: query.unit for query in queries}
    gate = GateSettings(**settings.gate.model_dump())
    decides = name == done.contest.deciding_set
    segments = segments_of(queries)
    scores = {r.arm: ArmScores(r.arm, r.metric(PRIMARY)) for r in results}

    def against(reference: str, *left_out: str) -> list[Comparison]:
        others = [arm for arm in scores.values() if arm.arm not in (reference, *left_out)]
        return list(compare(scores[reference], others, units, gate)) if reference in scores else []

    before, after, base = (done.result(name, arm) for arm in (incumbent, subject, BASE))
    readers = _readers(store, settings, done, standing, held_out=name == HELD_OUT)
    segment_rows = list(done.decision.segments) if decides else []
    if not decides and incumbent in scores and subject in scores and subject != incumbent:
        segment_rows = list(compare_segments(scores[incumbent], scores[subject], units, segments, gate))
    return QuerySetReport(
        name=name,
        queries=len(queries),
        units=len(set(units.values())),
        arms=arm_rows(results, units),
        versus_champion=list(done.decision.comparisons) if decides else against(incumbent, BM25),
        versus_base=against(BASE, BM25) if incumbent != BASE else [],
        segments=segment_rows,
        changes=query_changes(store, settings, queries, before, after, base) if before and after else [],
        readers=readers,
        versus_readers=against(readers),
        unit_noun=unit_noun(units.values()),
        note=_note(name, done),
        decides=decides,
        title="Validation questions (chose the weights)" if _flatters(name, done) else "",
    )


def _readers(store: Store, settings: Settings, done: Evaluation, standing: Standing, *, held_out: bool) -> str:
    """The arm of a query set that readers get after the decision; empty where none of the arms is it."""
    undecided = decisions.decision_on(store, done.contest.candidate_key) is None
    if standing.verdict == decisions.KEPT_BY_A_PERSON and undecided:
        return champion_arm(done.contest, held_out=held_out)
    return arm_of_readers(store, settings, done.contest, done.decision, done.fusion, held_out=held_out)


def _flatters(name: str, done: Evaluation) -> bool:
    """Whether a query set chose the candidate's weights."""
    return name == HELD_OUT and done.contest.golden_decides


def _ahead(shown: QuerySetReport) -> str:
    """A sentence on arms that are significantly ahead of what readers get; empty without any."""
    ahead = [row for row in shown.versus_readers if row.significant]
    if not ahead:
        return ""
    arms = " and ".join(
        f"{row.arm} ({row.difference:+.3f} nDCG@10, {row.low:+.3f} to {row.high:+.3f} with {percent(row.level)} % confidence)"
        for row in ahead
    )
    return (
        f"On the {shown.name.replace('_', '-')} questions {arms} {'is' if len(ahead) == 1 else 'are'} significantly ahead of "
        f"{shown.readers}, which readers get; adjusted by Holm's steps for {counted(len(shown.versus_readers), 'arms')}."
    )


def _note(name: str, done: Evaluation) -> str:
    if name == GOLDEN:
        return "The judged questions in ACME_RAG_GOLDEN."
    if _flatters(name, done):
        return "Pairs of the validation share: the candidate's weights were chosen on them, so they flatter it."
    written = f"{_machine_written(done)} of {len(done.queries[name])} are machine-written."
    if done.contest.champion_twin_lost or done.contest.champion_without_twin:
        return f"Pairs of units that the candidate's twin never saw, but the champion did; {written}"
    return f"Pairs of units that the measured model never saw; {written}"


def _machine_written(done: Evaluation) -> int:
    return sum(query.segments.get("origin") != PEOPLE for query in done.queries.get(HELD_OUT, ()))


def _chosen(row: dict[str, Any], trained: dict[str, Any]) -> bool:
    return all(row.get(name, 0) == trained.get(name, 0) for name in ("share", "whitening"))


def _training(trained: dict[str, Any]) -> list[TrainingPoint]:
    curve = trained.get("curve") or {"steps": [], "epochs": []}
    steps = curve["steps"]
    width = max(1, len(steps) // _TRAINING_POINTS)
    points = []
    for first in range(0, len(steps), width):
        window = steps[first : first + width]
        loss = sum(row["loss"] for row in window) / len(window)
        points.append(TrainingPoint(int(window[-1]["step"]), window[-1]["epoch"], loss=loss))
    last = int(steps[-1]["step"]) if steps else 0
    epochs = curve["epochs"]
    # With a whitening training starts behind it, also where the plain base won in the end.
    started_with = max((row.get("whitening", 0) for row in trained.get("interpolation", [])), default=0)
    if epochs:
        points += [
            TrainingPoint(0, 0.0, validation_ndcg=row["ndcg@10"])
            for row in trained.get("interpolation", [])
            if row["share"] == 0 and row.get("whitening", 0) == started_with
        ]
    for row in epochs:
        points.append(
            TrainingPoint(round(last * row["epoch"] / len(epochs)), row["epoch"], validation_ndcg=row["ndcg@10"])
        )
    return sorted(points, key=lambda point: point.epoch)


def _similarities(store: Store, settings: Settings, done: Evaluation) -> list[Similarities]:
    """Of the deciding query set, base and candidate; nothing where the candidate is the base."""
    who, name = done.contest, done.contest.deciding_set
    measured = measured_candidate(who, held_out=name == HELD_OUT)
    if measured is None or measured == who.base:
        return []
    pair = {"base": who.base, "candidate": measured}
    return similarity_histograms(store, settings, pair, done.queries.get(name, ()))


def _caveats(done: Evaluation, trained: dict[str, Any], written: Mapping[str, Sequence[str]]) -> list[str]:
    caveats = []
    if not done.contest.golden_decides and (asked := len(done.queries.get(HELD_OUT, ()))):
        machine = _machine_written(done)
        caveats.append(
            f"Synthetic evidence: without enough golden queries the verdict rests on held-out pairs, {machine} of {asked} of them "
            "written by the generator of the training pairs. Such questions flatter the model that was trained on them."
            if 2 * machine > asked
            else f"Without enough golden queries the verdict rests on held-out pairs; a machine wrote {machine} of {asked} of them."
        )
    if done.contest.champion_twin_lost and not done.contest.golden_decides:
        caveats.append(
            "The champion's twin is gone from the store. On held-out questions the champion itself was measured, which was "
            "trained on their documents: that flatters it and makes a promotion less likely."
        )
    if done.contest.champion_without_twin and not done.contest.golden_decides:
        caveats.append(
            "The champion has no twin, since golden queries decided when it was trained. On held-out questions the champion itself "
            "was measured, which was trained on their documents: that flatters it and makes a promotion less likely."
        )
    if HELD_OUT in done.queries and done.contest.golden_decides:
        caveats.append(
            "The validation questions are the share that chose the weights, so they flatter the candidate; golden queries decide."
        )
    if done.contest.fusion.expansion_weight:
        queries = counted(sum(map(len, written.values())), "queries")
        caveats.append(
            f"The hybrid arms know {queries} that people or an LLM wrote for {counted(len(written), 'passages')}. None lies near "
            "a golden query, but where the same people wrote both they flatter these arms."
        )
    if done.bm25_ahead:
        caveats.append(done.bm25_ahead)
    if done.contest.candidate is None:
        caveats.append(f"There is no candidate: {trained.get('outcome', 'nothing was trained')}.")
    if done.contest.candidate == done.contest.base:
        caveats.append("Validation liked the base's own weights best, so the candidate is the base.")
    return caveats
