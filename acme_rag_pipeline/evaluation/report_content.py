"""What the report shows: gathered from an evaluation and the store, then rendered and written to `reports/`."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from acme_rag_pipeline.evaluation.arms import BASE, CHAMPION, ArmResult, ArmRunner
from acme_rag_pipeline.evaluation.comparison import ArmScores, GateSettings, compare, compare_segments
from acme_rag_pipeline.evaluation.contest import Evaluation, champion_arm, segments_of
from acme_rag_pipeline.evaluation.golden import JudgedQuery
from acme_rag_pipeline.evaluation.metrics import METRICS, PRIMARY, Hit, finds
from acme_rag_pipeline.evaluation.query_sets import GOLDEN, HELD_OUT
from acme_rag_pipeline.evaluation.report import (
    ArmRow,
    Funnel,
    PairCount,
    Passage,
    QueryChange,
    QuerySetReport,
    Report,
    SamplePair,
    SweepPoint,
    TrainingPoint,
    arms_chart_png,
    render_report,
)
from acme_rag_pipeline.retrieval.index import now
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store, write_atomically
from acme_rag_pipeline.store.warehouse import records

_HEADLINES = {
    "promoted": "Promoted: readers now get {winner}",
    "kept: not better": "Kept as it is: no challenger is better",
    "kept: cannot tell": "Kept as it is: the evidence cannot tell",
}
_DESCRIPTIONS = {
    "bm25": "words alone, no model",
    "base": "the base model",
    "base_hybrid": "the base model fused with BM25",
    "fine_tuned": "the candidate",
    "fine_tuned_hybrid": "the candidate fused with BM25",
    "champion": "what readers use today",
}
_TRAINING_POINTS = 60


def write_report(store: Store, settings: Settings, done: Evaluation) -> tuple[str, str]:
    """Write `reports/<evaluation id>.html` and `reports/latest.html`.

    Returns:
        The report's path relative to the store, and the arms' picture as base64 PNG.
    """
    report = report_of(store, settings, done)
    page = render_report(report)
    name = f"reports/{done.evaluation_id[:16]}.html"
    write_atomically(store.root / name, page)
    write_atomically(store.root / "reports/latest.html", page)
    return name, base64.b64encode(arms_chart_png(report)).decode("ascii")


def report_of(store: Store, settings: Settings, done: Evaluation) -> Report:
    """Gather everything the page shows."""
    details = _stage_details(store)
    who = done.contest
    incumbent = champion_arm(who)
    subject = done.decision.winner or _closest(done)
    verdict = done.decision.verdict
    headline = _HEADLINES.get(verdict, "Kept as it is: {verdict}").format(
        winner=_DESCRIPTIONS.get(done.decision.winner or "", ""), verdict=verdict.removeprefix("kept: ")
    )
    trained = details.get("fine_tuned_model", {})
    asked = details.get("synthetic_pairs", {})
    return Report(
        headline=headline,
        verdict=verdict,
        reason=done.decision.reason,
        champion=incumbent,
        champion_digest=who.champion.model_digest,
        candidate=subject,
        candidate_digest=who.candidate.model_digest if who.candidate else "",
        created_at=now(),
        query_sets=[_query_set(store, settings, done, name, incumbent, subject) for name in done.queries],
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
            SweepPoint(row["share"], row["ndcg@10"], row["share"] == trained.get("share"))
            for row in trained.get("interpolation", [])
        ],
        funnel=_funnel(store),
        samples=_samples(store),
        stages={"training": float(trained.get("seconds", 0)), "evaluation": done.seconds}
        if trained.get("seconds")
        else {},
        tokens={k: asked[k] for k in ("llm_calls", "prompt_tokens", "completion_tokens") if asked.get(k)},
        lineage=_lineage(store, done),
        caveats=_caveats(done, trained),
    )


def _query_set(
    store: Store, settings: Settings, done: Evaluation, name: str, incumbent: str, subject: str
) -> QuerySetReport:
    queries, results = done.queries[name], done.results[name]
    units = {query.query_id: query.unit for query in queries}
    gate = GateSettings(**settings.gate.model_dump())
    decides = name == done.contest.deciding_set
    segments = segments_of(queries)
    scores = {r.arm: ArmScores(r.arm, r.metric(PRIMARY)) for r in results}

    def against(reference: str) -> list[Any]:
        others = [arm for arm in scores.values() if arm.arm not in (reference, "bm25")]
        return list(compare(scores[reference], others, units, gate)) if reference in scores else []

    rows = [ArmRow(r.arm, {m: r.interval(m, units) for m in METRICS}, _DESCRIPTIONS[r.arm]) for r in results]
    segment_rows = list(done.decision.segments) if decides else []
    if not decides and incumbent in scores and subject in scores and subject != incumbent:
        segment_rows = list(compare_segments(scores[incumbent], scores[subject], units, segments, gate))
    return QuerySetReport(
        name=name,
        queries=len(queries),
        units=len(set(units.values())),
        arms=rows,
        versus_champion=list(done.decision.comparisons) if decides else against(incumbent),
        versus_base=against(BASE) if incumbent != BASE else [],
        segments=segment_rows,
        changes=_changes(store, settings, queries, done, name, incumbent, subject),
        unit_noun="document sections" if any(" # " in unit for unit in units.values()) else "documents",
        note=_note(name, done),
        decides=decides,
    )


def _note(name: str, done: Evaluation) -> str:
    if name == GOLDEN:
        return "Written and judged by people."
    if done.contest.golden_decides:
        return "Pairs of the validation share: the candidate's weights were chosen on them, so they flatter it."
    return "Pairs of units that the measured model never saw; most are machine-written."


def _changes(
    store: Store,
    settings: Settings,
    queries: Sequence[JudgedQuery],
    done: Evaluation,
    name: str,
    incumbent: str,
    subject: str,
) -> list[QueryChange]:
    before, after = done.result(name, incumbent), done.result(name, subject)
    if before is None or after is None or before is after:
        return []
    runner = ArmRunner(store, settings)
    with store.warehouse.read() as connection:
        texts = dict(connection.execute("SELECT doc_path, text FROM documents WHERE text IS NOT NULL").fetchall())
    changes = []
    for query in queries:
        scores = [r.scores[query.query_id][PRIMARY] for r in (before, after)]
        if scores[0] == scores[1]:
            continue
        evidence = query.evidence[0]
        quote = texts.get(evidence.doc_path, "")[evidence.start : evidence.end] if evidence.start is not None else ""
        changes.append(
            QueryChange(
                query.query_id,
                query.query,
                scores[0],
                scores[1],
                _first(runner, before, query),
                _first(runner, after, query),
                evidence.doc_path,
                quote,
            )
        )
    return changes


def _first(runner: ArmRunner, result: ArmResult, query: JudgedQuery) -> Passage | None:
    best = result.best[query.query_id]
    if not best:
        return None
    found = runner.passage(best[0])
    hit = Hit(found.doc_path, found.start_char, found.end_char)
    relevant = any(finds(hit, evidence) for evidence in query.evidence)
    return Passage(found.doc_path, found.headings(), found.text, 1, relevant)


def _closest(done: Evaluation) -> str:
    """The challenger that came nearest to a promotion: what a reader wants to see compared."""
    best = max(done.decision.comparisons, key=lambda row: row.difference, default=None)
    return best.arm if best else CHAMPION


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
    for row in epochs:
        points.append(
            TrainingPoint(round(last * row["epoch"] / len(epochs)), row["epoch"], validation_ndcg=row["ndcg@10"])
        )
    return sorted(points, key=lambda point: point.epoch)


def _funnel(store: Store) -> Funnel:
    with store.warehouse.read() as connection:
        raw = records(
            connection, "SELECT origin, style, count(*) AS pairs FROM training_pairs GROUP BY ALL ORDER BY 1, 2"
        )
        dropped = connection.execute(
            "SELECT dropped_because, count(*) FROM training_pairs WHERE dropped_because IS NOT NULL GROUP BY 1 ORDER BY 2 DESC"
        ).fetchall()
        kept = connection.execute(
            "SELECT side, count(*) FROM training_pairs WHERE dropped_because IS NULL GROUP BY 1 ORDER BY 1"
        ).fetchall()
    return Funnel([PairCount(**row) for row in raw], dict(dropped), dict(kept))


def _samples(store: Store) -> list[SamplePair]:
    with store.warehouse.read() as connection:
        rows = records(
            connection,
            "SELECT t.origin, t.style, t.query, c.text AS passage, c.doc_path FROM training_pairs t "
            "JOIN chunks c USING (chunk_id) WHERE t.dropped_because IS NULL "
            "QUALIFY row_number() OVER (PARTITION BY t.origin, t.method ORDER BY t.pair_id) = 1 ORDER BY t.origin, t.method",
        )
    return [SamplePair(**row) for row in rows]


def _stage_details(store: Store) -> dict[str, dict[str, Any]]:
    with store.warehouse.read() as connection:
        rows = records(connection, "SELECT stage, summary FROM stages")
    return {row["stage"]: json.loads(row["summary"])["details"] for row in rows}


def _lineage(store: Store, done: Evaluation) -> dict[str, str]:
    with store.warehouse.read() as connection:
        versions = dict(connection.execute("SELECT stage, data_version FROM stages").fetchall())
    who = done.contest
    known = {
        "documents": versions.get("documents", ""),
        "chunks": versions.get("chunks", ""),
        "training set": versions.get("training_set", ""),
        "golden queries": versions.get("golden_queries", ""),
        "base model": who.base.model_digest,
        "candidate": who.candidate.model_digest if who.candidate else "",
        "measured twin": who.twin.model_digest if who.twin else "",
        "champion": f"{who.champion.model_digest} ({who.champion.recipe})",
        "evaluation": done.evaluation_id,
    }
    return {name: value for name, value in known.items() if value}


def _caveats(done: Evaluation, trained: dict[str, Any]) -> list[str]:
    caveats = []
    if not done.contest.golden_decides:
        caveats.append(
            "Synthetic evidence: without enough golden queries the verdict rests on held-out pairs, most of them written "
            "by the same generator as the training pairs. Such questions flatter the model that was trained on them."
        )
    if HELD_OUT in done.queries and done.contest.golden_decides:
        caveats.append(
            "The held-out numbers here are the validation share, which chose the weights; golden queries decide."
        )
    if done.contest.candidate is None:
        caveats.append(f"There is no candidate: {trained.get('outcome', 'nothing was trained')}.")
    if done.contest.candidate == done.contest.base:
        caveats.append("Validation liked the base's own weights best, so the candidate is the base.")
    return caveats
