"""What a training run reads: the kept pairs of its sides, rendered, with the base's cached vectors as the guide."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from acme_rag_pipeline.embedding.cache import EmbeddingCache
from acme_rag_pipeline.embedding.encoder import Encoder
from acme_rag_pipeline.store.fingerprints import fingerprint
from acme_rag_pipeline.store.passages import LivePassage, PassagePrefix, live_passages
from acme_rag_pipeline.store.warehouse import Warehouse, records
from acme_rag_pipeline.training.finetune import TrainingRows


@dataclass(frozen=True)
class KeptPair:
    """One training pair that passed the filters."""

    pair_id: str
    query: str
    passage: LivePassage
    origin: str
    method: str
    negatives: tuple[LivePassage, ...]


def kept_pairs(warehouse: Warehouse) -> list[KeptPair]:
    """All pairs that passed the filters, in a canonical order."""
    passages = {passage.chunk_id: passage for passage in live_passages(warehouse)}
    with warehouse.read() as connection:
        rows = records(
            connection,
            "SELECT pair_id, query, chunk_id, origin, method, negatives FROM training_pairs "
            "WHERE dropped_because IS NULL ORDER BY pair_id",
        )
    return [
        KeptPair(
            row["pair_id"],
            row["query"],
            passages[row["chunk_id"]],
            row["origin"],
            row["method"],
            tuple(passages[n] for n in row["negatives"] if n in passages),
        )
        for row in rows
        if row["chunk_id"] in passages
    ]


def of_sides(pairs: Sequence[KeptPair], sides: Collection[str]) -> list[KeptPair]:
    """The pairs whose passage is on one of the sides."""
    return [pair for pair in pairs if pair.passage.side in sides]


def rows_fingerprint(pairs: Sequence[KeptPair]) -> str:
    """Hash of everything that training reads from the pairs."""
    lines: list[tuple[Any, ...]] = [
        (
            p.passage.side,
            p.query,
            p.passage.headings(),
            p.passage.text,
            p.passage.near_duplicate_group,
            [n.chunk_id for n in p.negatives],
        )
        for p in pairs
    ]
    return fingerprint(sorted(lines))


def training_rows(
    pairs: Sequence[KeptPair], prefix: PassagePrefix, base: Encoder, cache: EmbeddingCache, negatives: int
) -> TrainingRows:
    """Render the pairs and fetch the guide's vectors (from the cache: the base has encoded these texts already).

    Args:
        pairs: at least two.
        prefix: how the candidate renders passages; the guide always sees the plain text.
        base: the guide.
        cache: where its vectors lie.
        negatives: mined negatives used for each pair.
    """
    used = [pair.negatives[:negatives] for pair in pairs]
    queries, _ = cache.queries(base, [pair.query for pair in pairs])
    texts = [pair.passage.text for pair in pairs] + [n.text for row in used for n in row]
    vectors, _ = cache.passages(base, texts)
    extra = iter(vectors[len(pairs) :])
    return TrainingRows(
        queries=[pair.query for pair in pairs],
        passages=[pair.passage.rendered(prefix) for pair in pairs],
        groups=[pair.passage.near_duplicate_group for pair in pairs],
        negatives=[[n.rendered(prefix) for n in row] for row in used],
        guide_queries=queries,
        guide_passages=vectors[: len(pairs)],
        guide_negatives=[[next(extra) for _ in row] for row in used],
    )
