"""`acme-rag evaluate`: all arms on any judged set, without writing to the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from acme_rag_pipeline.evaluation.arms import BASE, ArmRunner, metric_rows
from acme_rag_pipeline.evaluation.contest import arms_for, contest
from acme_rag_pipeline.evaluation.golden import JudgedQuery, golden_queries, judged_queries
from acme_rag_pipeline.evaluation.intervals import paired_interval
from acme_rag_pipeline.evaluation.metrics import PRIMARY
from acme_rag_pipeline.settings import Settings, SettingsError
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.stages import data_versions


def compare_arms(store: Store, settings: Settings, folder: Path | None) -> dict[str, Any]:
    """Score every arm.

    Args:
        store, settings: what is compared.
        folder: `queries.jsonl` and `qrels.jsonl`; default the golden set of the store.

    Raises:
        UpstreamMissing: the store has no base index yet.
        SettingsError: no query can be used.
    """
    data_versions(store.warehouse, "chunks", "base_index")
    note = ""
    if folder is None:
        queries: list[JudgedQuery] = golden_queries(store)
    else:
        queries, note = judged_queries(store, folder)
    if not queries:
        raise SettingsError(
            "ACME_RAG_GOLDEN: no judged query can be used; give `--golden DIR` with queries.jsonl and qrels.jsonl"
            + (f". {note}" if note else "")
        )
    units = {query.query_id: query.unit for query in queries}
    runner = ArmRunner(store, settings)
    results = [runner.run(arm, queries) for arm in arms_for(contest(store, settings), held_out=False)]
    ids = sorted(units)
    base = next(result for result in results if result.arm == BASE).metric(PRIMARY)
    arms = []
    for result in results:
        row: dict[str, Any] = {"arm": result.arm, "gain": None}
        for metric in metric_rows(result, units):
            row[str(metric["metric"])] = {name: metric[name] for name in ("value", "low", "high")}
        if result.arm != BASE:
            mine = result.metric(PRIMARY)
            gain = paired_interval([base[i] for i in ids], [mine[i] for i in ids], [units[i] for i in ids])
            # A difference of two nDCGs lies within -1 and 1, whatever few units say; JSON knows no infinity.
            row["gain"] = {"difference": gain.mean, "low": max(-1.0, gain.low), "high": min(1.0, gain.high)}
        arms.append(row)
    arms.sort(key=lambda row: -row[PRIMARY]["value"])
    return {"queries": len(queries), "units": len(set(units.values())), "note": note, "arms": arms}
