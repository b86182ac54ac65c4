"""The `evaluation_report` stage: every arm on every query set, the gate's verdict on the candidate, and the report."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from acme_rag_pipeline.evaluation.arms import BASE, CHAMPION, FINE_TUNED, FINE_TUNED_HYBRID, metric_rows
from acme_rag_pipeline.evaluation.card import write_on_card
from acme_rag_pipeline.evaluation.contest import Evaluation, run
from acme_rag_pipeline.evaluation.contestants import arms_for, champion_arm, contest
from acme_rag_pipeline.evaluation.golden import follow_documents
from acme_rag_pipeline.evaluation.metrics import PRIMARY
from acme_rag_pipeline.evaluation.query_sets import HELD_OUT
from acme_rag_pipeline.evaluation.report_content import is_latest, show_latest, write_report
from acme_rag_pipeline.evaluation.standing import standing_of
from acme_rag_pipeline.serving import decisions
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.fingerprints import fingerprint
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.made_with import SETTINGS_KEY
from acme_rag_pipeline.store.stages import StageResult, data_versions, overtaken, record, recorded
from acme_rag_pipeline.store.warehouse import reconcile

STAGE = "evaluation_report"
CODE_VERSION = "15"
PLOTTED = ("mrr@10", "recall@10")


def evaluate(store: Store, settings: Settings) -> StageResult:
    """Bring `evaluations`, `query_scores`, `verdicts` and the report to the candidate and the passages of today.

    First golden queries follow the documents (`follow_documents` runs the stage `golden_queries` and records it where it had run
    on others); what readers use is recorded where nothing was ever decided; then the candidate's model card is told the verdict.

    Raises:
        UpstreamMissing: a stage it reads from has never run.
    """
    follow_documents(store, settings)
    upstream = data_versions(
        store.warehouse,
        "chunks",
        "training_set",
        "golden_queries",
        "fine_tuned_model",
        "base_index",
        "fine_tuned_index",
    )
    # Recorded before anybody is compared with it: its time tells old documents from new ones.
    decisions.champion(store, settings)
    who = contest(store, settings)
    standing = decisions.decision_on(store, who.candidate_key)
    now = decisions.champion_unrecorded(store, settings).retriever
    known = (standing or who.champion).retriever
    made_from = fingerprint(
        STAGE,
        CODE_VERSION,
        upstream,
        who.candidate_key,
        who.champion.decision,
        who.golden_decides,
        settings.gate,
        settings.retrieval,
        # The report must not go on saying that readers get what a person went back from, or what another promotion replaced.
        *(
            [standing.verdict]
            if standing is not None and standing.verdict in (decisions.ROLLED_BACK, decisions.REPLACED)
            else []
        ),
        # Nor of what readers got when it was written, once a person went to something else.
        *([now] if now != known else []),
    )
    if (unchanged := recorded(store.warehouse, STAGE, made_from)) is not None and _report_there(store, unchanged):
        if not is_latest(store, unchanged.details["report"]):
            with store.writer(STAGE):
                # Another run may have recorded a newer one since.
                if recorded(store.warehouse, STAGE, made_from) is None:
                    return evaluate(store, settings)
                show_latest(store, unchanged.details["report"])
        # What it cost is that of the comparison, not of this look.
        return replace(unchanged, details={n: v for n, v in unchanged.details.items() if n != "seconds"})
    with store.writer(STAGE):
        if overtaken(store.warehouse, upstream) or contest(store, settings) != who:
            return evaluate(store, settings)
        done = run(store, settings, who, made_from)
        holds = standing_of(store, done)
        report, picture = write_report(store, settings, done, holds)
        write_on_card(store, done, holds.verdict)
        rows = _evaluation_rows(done)
        details: dict[str, Any] = {
            "evaluation_id": done.evaluation_id,
            "verdict": holds.verdict,
            "reason": holds.reason,
            "evidence": who.deciding_set,
            "queries": {name: len(queries) for name, queries in done.queries.items()},
            "report": report,
            "picture": picture,
            PRIMARY: _primary(rows),
            **_plotted(done, rows),
            "seconds": round(done.seconds, 1),
            SETTINGS_KEY: settings_key(settings),
        }
        if done.bm25_ahead:
            details["bm25_ahead"] = done.bm25_ahead
        if done.forgetting is not None:
            details |= {"forgetting": done.forgetting.sentence, **done.forgetting.floats()}
        with store.warehouse.write() as connection:
            _insert_all(connection, done, rows)
            result = StageResult(
                STAGE, fingerprint(made_from, [asdict(c) for c in done.decision.comparisons]), details=details
            )
            recorded_result = record(connection, result, made_from)
        show_latest(store, report)
        return recorded_result


def settings_key(settings: Settings) -> str:
    """Hash of the settings and the code that decide what is compared; the gate's are for the next candidate."""
    return fingerprint(CODE_VERSION, settings.retrieval)


def _evaluation_rows(done: Evaluation) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, results in done.results.items():
        units = {query.query_id: query.unit for query in done.queries[name]}
        for result in results:
            rows += [row | {"query_set": name} for row in metric_rows(result, units)]
    return rows


def _insert_all(connection: Any, done: Evaluation, rows: list[dict[str, Any]]) -> None:
    now, who = datetime.now(UTC), done.contest
    digests = {CHAMPION: who.champion.model_digest}
    if who.candidate is not None:
        digests |= {FINE_TUNED: who.candidate.model_digest, FINE_TUNED_HYBRID: who.candidate.model_digest}
    measured = {
        (name, arm.name): arm.encoder.model_digest if arm.encoder else None
        for name in done.results
        for arm in arms_for(who, held_out=name == HELD_OUT)
    }
    with_keys = [
        row
        | {
            "evaluation_id": done.evaluation_id,
            "model_digest": digests.get(row["arm"], who.base.model_digest),
            "measured_digest": measured[row["query_set"], row["arm"]],
            "evaluated_at": now,
            "row_key": f"{row['arm']}/{row['query_set']}/{row['metric']}",
        }
        for row in rows
    ]
    scores = [
        {
            "row_key": f"{name}/{result.arm}/{query.query_id}",
            "evaluation_id": done.evaluation_id,
            "query_set": name,
            "query_id": query.query_id,
            "arm": result.arm,
            "unit": query.unit,
            "scores": json.dumps(result.scores[query.query_id]),
        }
        for name, results in done.results.items()
        for result in results
        for query in done.queries[name]
    ]
    verdict = {
        "evaluation_id": done.evaluation_id,
        "candidate_digest": who.candidate.model_digest if who.candidate else None,
        "candidate_key": who.candidate_key,
        "champion_digest": who.champion.model_digest,
        "champion_recipe": who.champion.recipe,
        "champion_fusion": json.dumps(who.champion.fusion),
        "verdict": done.decision.verdict,
        "reason": done.decision.reason,
        "winner_digest": done.winner[0].model_digest if done.winner else None,
        "winner_prefix": done.winner[0].prefix if done.winner else None,
        "winner_passage_digest": done.winner[0].passage_digest if done.winner else None,
        "winner_recipe": done.winner[1] if done.winner else None,
        "winner_fusion": json.dumps(done.fusion.model_dump()) if done.winner and done.winner[1] == "hybrid" else None,
        "evidence": who.deciding_set,
        "details": json.dumps(asdict(done.decision) | {"bm25_ahead": done.bm25_ahead}),
        "evaluated_at": now,
    }
    scope = f"evaluation_id = '{done.evaluation_id}'"
    reconcile(connection, "evaluations", "row_key", with_keys, scope=scope)
    reconcile(connection, "query_scores", "row_key", scores, scope=scope)
    reconcile(connection, "verdicts", "evaluation_id", [verdict], scope=scope)


def _primary(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {f"{r['query_set']}/{r['arm']}": round(r["value"], 4) for r in rows if r["metric"] == PRIMARY}


def _plotted(done: Evaluation, rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The other measures that people follow over time: of the base, of what readers use, and of the best challenger."""
    best = max(done.decision.comparisons, key=lambda comparison: comparison.challenger_mean, default=None)
    arms = {
        name: {BASE, champion_arm(done.contest, held_out=name == HELD_OUT), *([best.arm] if best else [])}
        for name in done.results
    }
    return {
        metric: {
            f"{r['query_set']}/{r['arm']}": round(r["value"], 4)
            for r in rows
            if r["metric"] == metric and r["arm"] in arms[r["query_set"]]
        }
        for metric in PLOTTED
    }


def _report_there(store: Store, result: StageResult) -> bool:
    return (store.root / result.details["report"]).exists()
