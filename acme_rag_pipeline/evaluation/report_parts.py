"""Parts of a report that need arms and judged queries only, so that any judged set can be shown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from acme_rag_pipeline.evaluation.arms import DEPTH, ArmResult, ArmRunner
from acme_rag_pipeline.evaluation.golden import JudgedQuery
from acme_rag_pipeline.evaluation.metrics import METRICS, PRIMARY, Evidence, Hit, finds
from acme_rag_pipeline.evaluation.query_change import FoundEvidence, Passage, QueryChange
from acme_rag_pipeline.evaluation.report import ArmRow, Similarities
from acme_rag_pipeline.evaluation.similarity import similarities
from acme_rag_pipeline.retrieval.passage_encoder import PassageEncoder
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store

DESCRIPTIONS = {
    "bm25": "words alone, no model",
    "base": "the base model",
    "base_hybrid": "the base model as a hybrid",
    "fine_tuned": "the candidate",
    "fine_tuned_hybrid": "the candidate as a hybrid",
    "champion": "what readers use today",
}


def arm_rows(results: Iterable[ArmResult], units: Mapping[str, str]) -> list[ArmRow]:
    """Every metric of every arm with its interval."""
    return [ArmRow(r.arm, {m: r.interval(m, units) for m in METRICS}, DESCRIPTIONS[r.arm]) for r in results]


def unit_noun(units: Iterable[str]) -> str:
    """What the units are called."""
    return "document sections" if any(" # " in unit for unit in units) else "documents"


def query_changes(
    store: Store,
    settings: Settings,
    queries: Sequence[JudgedQuery],
    before: ArmResult,
    after: ArmResult,
    base: ArmResult | None = None,
) -> list[QueryChange]:
    """The queries whose nDCG@10 differs between two arms, with the evidence, its ranks, and what each found first.

    Args:
        store, settings: where the passages are.
        queries: the judged ones.
        before: the reference.
        after: what is compared with it.
        base: the base model, to be named beside a reference that is another arm.
    """
    if before is after:
        return []
    runner = ArmRunner(store, settings)
    with store.warehouse.read() as connection:
        texts = dict(connection.execute("SELECT doc_path, text FROM documents WHERE text IS NOT NULL").fetchall())
    changes = []
    for query in queries:
        scores = [r.scores[query.query_id][PRIMARY] for r in (before, after)]
        if scores[0] == scores[1]:
            continue
        besides = base if base is not None and base.arm not in (before.arm, after.arm) else None
        changes.append(
            QueryChange(
                query.query_id,
                query.query,
                scores[0],
                scores[1],
                _first(runner, before, query),
                _first(runner, after, query),
                same_first=list(before.best[query.query_id][:1]) == list(after.best[query.query_id][:1]),
                evidence=[
                    FoundEvidence(piece.doc_path, _quote(texts, piece), *ranks)
                    for piece, *ranks in zip(
                        query.evidence, *(_ranks(arm, query) for arm in (before, after, besides)), strict=True
                    )
                ],
                base_score=besides.scores[query.query_id][PRIMARY] if besides else None,
                depth=DEPTH,
            )
        )
    return changes


def similarity_histograms(
    store: Store, settings: Settings, models: Mapping[str, PassageEncoder], queries: Sequence[JudgedQuery]
) -> list[Similarities]:
    """For each labelled model how near the queries lie to their evidence and to the best wrong passage."""
    found = {label: similarities(store, settings, which, queries) for label, which in models.items()}
    both = [value for rows in found.values() for row in rows for value in (row.right, row.wrong)]
    if not both:
        return []
    # From one twentieth to another in bins of half that width: round ticks, and the same bins for all models.
    low, high = math.floor(20 * min(both)), math.ceil(20 * max(both) + 1e-9)
    edges = [round(n / 40, 3) for n in range(2 * low, 2 * max(high, low + 1) + 1)]
    return [
        Similarities(
            label,
            edges,
            _counts([row.right for row in rows], edges),
            _counts([row.wrong for row in rows], edges),
            sum(row.right - row.wrong for row in rows) / len(rows),
        )
        for label, rows in found.items()
        if rows
    ]


def _first(runner: ArmRunner, result: ArmResult, query: JudgedQuery) -> Passage | None:
    best = result.best[query.query_id]
    if not best:
        return None
    found = runner.passage(best[0])
    hit = Hit(found.doc_path, found.start_char, found.end_char).read()
    relevant = any(finds(hit, evidence) for evidence in query.evidence)
    return Passage(found.doc_path, found.headings(), found.text, 1, relevant)


def _ranks(result: ArmResult | None, query: JudgedQuery) -> Sequence[int | None]:
    return result.ranks[query.query_id] if result is not None else [None] * len(query.evidence)


def _quote(texts: Mapping[str, str], piece: Evidence) -> str:
    return texts.get(piece.doc_path, "")[piece.start : piece.end] if piece.start is not None else ""


def _counts(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    return [int(count) for count in np.histogram(values, edges)[0]]
