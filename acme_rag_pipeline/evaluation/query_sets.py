"""The questions an evaluation asks: golden ones from people, held-out ones from units the judged model never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from acme_rag_pipeline.evaluation.golden import JudgedQuery, folder_of, golden_queries
from acme_rag_pipeline.evaluation.metrics import Evidence
from acme_rag_pipeline.pairs.wording import query_key
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import LivePassage, live_passages
from acme_rag_pipeline.store.warehouse import records

GOLDEN = "golden"
HELD_OUT = "held_out"
# Passages that nearly repeat the source are as good an answer; a group of boilerplate would drown the ideal ranking.
LARGEST_EVIDENCE = 5


def query_sets(store: Store, held_out_side: str) -> dict[str, list[JudgedQuery]]:
    """The non-empty query sets by name.

    Args:
        store: where the golden and training pairs are.
        held_out_side: `test` where a twin is judged; `validation` where the candidate trained on everything else.
    """
    sets = {GOLDEN: golden_queries(store), HELD_OUT: held_out_queries(store, held_out_side)}
    return {name: queries for name, queries in sets.items() if queries}


def held_out_queries(store: Store, side: str) -> list[JudgedQuery]:
    """The kept pairs of one side as judged queries: the source passage, and those that nearly repeat it, answer them.

    What a person asked about several passages is one query that all of them answer, on whatever side they lie.
    """
    with store.warehouse.read() as connection:
        rows = records(
            connection,
            "SELECT pair_id AS query_id, query, chunk_id, origin, style, method FROM training_pairs "
            "WHERE side = ? AND dropped_because IS NULL ORDER BY pair_id",
            [side],
        )
        of_people = connection.execute("SELECT query, chunk_id FROM training_pairs WHERE origin = 'curated'").fetchall()
    answers: dict[str, list[str]] = {}
    for query, chunk_id in of_people:
        answers.setdefault(query_key(query), []).append(chunk_id)
    asked: set[str] = set()
    once = []
    for row in rows:
        wording = query_key(row["query"])
        if row["origin"] == "curated":
            if wording in asked:
                continue
            asked.add(wording)
        once.append(row)
    return _judged(store, once, answers)


def heading_questions(store: Store) -> list[JudgedQuery]:
    """The authors' headings of the validation side as judged queries; none where the embedded generator writes the pairs."""
    with store.warehouse.read() as connection:
        rows = records(
            connection,
            "SELECT query_id, query, chunk_id, 'offline' AS origin, 'keywords' AS style, method FROM heading_queries "
            "ORDER BY query_id",
        )
    return _judged(store, rows)


def _judged(
    store: Store, rows: Sequence[Mapping[str, str]], of_people: Mapping[str, Sequence[str]] | None = None
) -> list[JudgedQuery]:
    passages = live_passages(store.warehouse)
    by_id = {passage.chunk_id: passage for passage in passages}
    by_group: dict[str, list[LivePassage]] = {}
    for passage in passages:
        by_group.setdefault(passage.near_duplicate_group, []).append(passage)
    queries = []
    for row in rows:
        source = by_id.get(row["chunk_id"])
        if source is None:
            continue
        named = (of_people or {}).get(query_key(row["query"]), ()) if row["origin"] == "curated" else ()
        answering = [source, *(by_id[chunk_id] for chunk_id in sorted(named) if chunk_id in by_id)]
        evidence: dict[str, LivePassage] = {}
        for passage in answering:
            alike = by_group[passage.near_duplicate_group]
            evidence |= {p.chunk_id: p for p in (passage, *(alike if len(alike) <= LARGEST_EVIDENCE else ()))}
        segments = {
            "style": row["style"],
            "folder": folder_of(source.doc_path),
            "origin": row["origin"],
            "method": row["method"],
        }
        spans = tuple(Evidence(p.doc_path, p.start_char, p.end_char) for p in evidence.values())
        queries.append(JudgedQuery(row["query_id"], row["query"], spans, source.unit, segments))
    return queries
