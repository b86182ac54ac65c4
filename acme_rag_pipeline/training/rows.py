"""What a training run reads: the kept pairs of its sides, rendered, with the base's cached vectors as the guide."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from acme_rag_pipeline.embedding.cache import EmbeddingCache
from acme_rag_pipeline.embedding.encoder import Encoder
from acme_rag_pipeline.store.fingerprints import fingerprint, sha256_text
from acme_rag_pipeline.store.passages import LivePassage, PassagePrefix, live_passages
from acme_rag_pipeline.store.warehouse import Warehouse, records
from acme_rag_pipeline.training.finetune import TrainingRows

# So many passages settle a matrix of 384 x 384 to the third digit; more would only cost time where few have a query.
WHITENED_PASSAGES = 2_000


@dataclass(frozen=True)
class KeptPair:
    """One training pair that passed the filters."""

    pair_id: str
    query: str
    passage: LivePassage
    origin: str
    method: str
    negatives: tuple[LivePassage, ...]
    named_negatives: frozenset[str] = frozenset()

    @property
    def is_template(self) -> bool:
        """Whether the embedded generator wrote it."""
        return self.origin == "offline"

    def negatives_used(self, mined: int) -> list[LivePassage]:
        """Those that people named, and so many of the mined ones."""
        named = [n for n in self.negatives if n.chunk_id in self.named_negatives]
        return named + [n for n in self.negatives if n.chunk_id not in self.named_negatives][:mined]


def kept_pairs(warehouse: Warehouse, live: Sequence[LivePassage] | None = None) -> list[KeptPair]:
    """All pairs that passed the filters, in a canonical order.

    Args:
        warehouse: where they lie.
        live: the live passages, for a caller that has read them already.
    """
    passages = {passage.chunk_id: passage for passage in (live_passages(warehouse) if live is None else live)}
    with warehouse.read() as connection:
        rows = records(
            connection,
            "SELECT pair_id, query, chunk_id, origin, method, negatives FROM training_pairs "
            "WHERE dropped_because IS NULL ORDER BY pair_id",
        )
        named: dict[str, set[str]] = {}
        for row in records(connection, "SELECT pair_id, chunk_id FROM curated_negatives"):
            named.setdefault(row["pair_id"], set()).add(row["chunk_id"])
    return [
        KeptPair(
            row["pair_id"],
            row["query"],
            passages[row["chunk_id"]],
            row["origin"],
            row["method"],
            tuple(passages[n] for n in row["negatives"] if n in passages),
            frozenset(named.get(row["pair_id"], ())),
        )
        for row in rows
        if row["chunk_id"] in passages
    ]


def of_sides(pairs: Sequence[KeptPair], sides: Collection[str]) -> list[KeptPair]:
    """The pairs whose passage is on one of the sides."""
    return [pair for pair in pairs if pair.passage.side in sides]


def unasked_passages(
    passages: Sequence[LivePassage], pairs: Sequence[KeptPair], sides: Collection[str]
) -> list[LivePassage]:
    """Passages that may be trained on and that no pair belongs to, in an order that only their texts decide.

    An LLM with a budget asks about a part of the collection; the whitening must know the directions of all of it.

    Args:
        passages: the live ones.
        pairs: those to train on.
        sides: those to train on; what nearly repeats a passage of another side is left out.
    """
    asked = {pair.passage.chunk_id for pair in pairs}
    held_out = {passage.near_duplicate_group for passage in passages if passage.side not in sides}
    free = [
        p for p in passages if p.side in sides and p.chunk_id not in asked and p.near_duplicate_group not in held_out
    ]
    return sorted(free, key=lambda passage: (sha256_text(passage.text), passage.headings()))


def rows_fingerprint(pairs: Sequence[KeptPair], negatives: int, unasked: Sequence[LivePassage] = ()) -> str:
    """Hash of everything that training reads from the pairs.

    Args:
        negatives: mined negatives used for each pair; those that are not used decide nothing.
        unasked: further passages that the whitening reads.
    """
    lines: list[tuple[Any, ...]] = [
        (
            p.passage.side,
            p.query,
            p.passage.headings(),
            p.passage.text,
            p.passage.near_duplicate_group,
            p.is_template,
            # Says which questions validation chooses the headings and the whitening by.
            p.method if p.passage.side == "validation" else "",
            [n.chunk_id for n in p.negatives_used(negatives)],
        )
        for p in pairs
    ]
    read = [(p.side, p.headings(), p.text, p.near_duplicate_group) for p in unasked]
    return fingerprint(sorted(lines), sorted(read))


def training_rows(
    pairs: Sequence[KeptPair],
    prefix: PassagePrefix,
    base: Encoder,
    cache: EmbeddingCache,
    negatives: int = 0,
    corpus: Sequence[LivePassage] | None = None,
    unasked: Sequence[LivePassage] = (),
) -> TrainingRows:
    """Render the pairs.

    Args:
        pairs: of at least two passages.
        prefix: how the candidate renders passages; the guide always sees the plain text.
        base: the encoder of the frozen vectors.
        cache: where these lie: the base has encoded the texts already.
        negatives: mined negatives used for each pair, beside those that people named.
        corpus: all passages, for a query tower that is trained against their frozen vectors.
        unasked: further passages for the whitening, the ones to prefer first.
    """
    wanted = [pair.passage for pair in pairs]
    wanted += corpus if corpus is not None else [n for pair in pairs for n in pair.negatives_used(negatives)]
    passages = list({passage.chunk_id: passage for passage in wanted}.values())
    number = {passage.chunk_id: i for i, passage in enumerate(passages)}
    rendered = [passage.rendered(prefix) for passage in passages]
    return TrainingRows(
        queries=[pair.query for pair in pairs],
        positives=[number[pair.passage.chunk_id] for pair in pairs],
        passages=rendered,
        groups=[passage.near_duplicate_group for passage in passages],
        negatives=[[number[n.chunk_id] for n in pair.negatives_used(negatives)] for pair in pairs],
        templates=[pair.is_template for pair in pairs],
        guide_texts=None if prefix == "none" else [passage.text for passage in passages],
        frozen_passages=None if corpus is None else cache.passages(base, rendered)[0],
        unasked=[passage.rendered(prefix) for passage in unasked[: max(0, WHITENED_PASSAGES - len(passages))]],
    )
