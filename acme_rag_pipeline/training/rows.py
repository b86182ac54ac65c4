"""What a training run reads: the kept pairs of its sides, rendered, with the base's cached vectors as the guide."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from acme_rag_pipeline.embedding.cache import EmbeddingCache
from acme_rag_pipeline.embedding.encoder import Encoder
from acme_rag_pipeline.pairs.wording import query_key
from acme_rag_pipeline.setting_groups import TrainingSettings
from acme_rag_pipeline.store.fingerprints import fingerprint, sha256_text
from acme_rag_pipeline.store.passages import LivePassage, PassagePrefix, live_passages
from acme_rag_pipeline.store.warehouse import Warehouse, records

if TYPE_CHECKING:
    import numpy as np

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


@dataclass(frozen=True)
class TrainingRows:
    """What to train on.

    Attributes:
        queries: query texts.
        positives: for each query the number of its passage.
        passages: rendered passages, each once: the positives first, then mined negatives or the rest of the collection.
        groups: near-duplicate group of each passage.
        negatives: for each query the numbers of its hard negatives, possibly none.
        templates: of each query, whether the embedded generator wrote it; None: of none.
        guide_texts: the passages as the guide reads them; None: as they are rendered.
        frozen_passages: the base's unit vectors that the query tower is trained against, shape (passages, dimension);
            None where the passages are encoded by the model in training.
        unasked: rendered passages that no query belongs to; only the whitening reads them.
        answers: of each query the passages that its wording belongs to, empty if it is its own alone; None: all empty.
        mostly_templates: whether the embedded generator wrote more than half of the queries.
    """

    queries: Sequence[str]
    positives: Sequence[int]
    passages: Sequence[str]
    groups: Sequence[str]
    negatives: Sequence[Sequence[int]]
    templates: Sequence[bool] | None = None
    guide_texts: Sequence[str] | None = None
    frozen_passages: np.ndarray | None = None
    unasked: Sequence[str] = ()
    answers: Sequence[Collection[int]] | None = None
    mostly_templates: bool = False


def content_order(passage: LivePassage) -> tuple[str, ...]:
    """Sort key of a passage in which its path has no part: a rename must change no batch and no sample."""
    return sha256_text(passage.rendered("none")), passage.headings(), passage.near_duplicate_group, passage.side


def _pair_order(pair: KeptPair) -> tuple[Any, ...]:
    """The same of a pair; its id, which holds the path, decides between equal ones only."""
    negatives = [(n.chunk_id in pair.named_negatives, *content_order(n)) for n in pair.negatives]
    return pair.query, *content_order(pair.passage), pair.origin, pair.method, negatives, pair.pair_id


def kept_pairs(warehouse: Warehouse, live: Sequence[LivePassage] | None = None) -> list[KeptPair]:
    """All pairs that passed the filters, in an order that their contents decide: batches follow it.

    Args:
        warehouse: where they lie.
        live: the live passages, for a caller that has read them already.
    """
    passages = {passage.chunk_id: passage for passage in (live_passages(warehouse) if live is None else live)}
    with warehouse.read() as connection:
        rows = records(
            connection,
            "SELECT pair_id, query, chunk_id, origin, method, negatives FROM training_pairs "
            "WHERE dropped_because IS NULL",
        )
        named: dict[str, set[str]] = {}
        for row in records(connection, "SELECT pair_id, chunk_id FROM curated_negatives"):
            named.setdefault(row["pair_id"], set()).add(row["chunk_id"])
    pairs = [
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
    return sorted(pairs, key=_pair_order)


def heading_pairs(warehouse: Warehouse, live: Sequence[LivePassage]) -> list[KeptPair]:
    """The authors' headings as queries of the validation side, ordered like the pairs; none where templates are trained on."""
    passages = {passage.chunk_id: passage for passage in live}
    with warehouse.read() as connection:
        rows = records(connection, "SELECT query_id, query, chunk_id, method FROM heading_queries")
    pairs = [
        KeptPair(row["query_id"], row["query"], passages[row["chunk_id"]], "offline", row["method"], ())
        for row in rows
        if row["chunk_id"] in passages
    ]
    return sorted(pairs, key=_pair_order)


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
    free = [p for p in searchable_passages(passages, sides) if p.chunk_id not in asked]
    return sorted(free, key=content_order)


def searchable_passages(passages: Sequence[LivePassage], sides: Collection[str]) -> list[LivePassage]:
    """The passages of some sides without those that nearly repeat one of another side: what training may read."""
    held_out = {passage.near_duplicate_group for passage in passages if passage.side not in sides}
    return [p for p in passages if p.side in sides and p.near_duplicate_group not in held_out]


def mined_negatives(pairs: Sequence[KeptPair], training: TrainingSettings) -> int:
    """How many mined negatives of each passage join its batch, where nobody chose: one, but none for templates.

    They teach a lot beside an LLM's or people's questions and nothing beside templates (docs/training.md), and they double
    the passages of a step. Drawing the passages to their queries afterwards is the better use of that time. A query tower
    sees every passage in each step anyway.
    """
    if training.strategy == "query_only":
        return 0
    if training.train_hard_negatives is not None:
        return training.train_hard_negatives
    return int(not training.expansion_epochs and not mostly_templates(pairs))


def mostly_templates(pairs: Sequence[KeptPair]) -> bool:
    """Whether the embedded generator wrote more than half of the pairs."""
    return sum(pair.is_template for pair in pairs) > len(pairs) / 2


def negatives_used(pairs: Sequence[KeptPair], mined: int) -> list[list[LivePassage]]:
    """Of each pair the negatives that join its batch: those that people named, and the passage's share of the mined ones.

    All queries of a batch see them, so the first pair of a passage brings them for all of its pairs: the passages that
    stand highest in their lists.

    Args:
        pairs: all that are trained on, and perhaps others.
        mined: how many for each passage.
    """
    votes: dict[str, dict[str, float]] = {}
    first: dict[str, int] = {}
    of_id: dict[str, LivePassage] = {}
    used: list[list[LivePassage]] = []
    for number, pair in enumerate(pairs):
        used.append([n for n in pair.negatives if n.chunk_id in pair.named_negatives])
        own = pair.passage.chunk_id
        first.setdefault(own, number)
        ranked = [n for n in pair.negatives if n.chunk_id not in pair.named_negatives]
        for rank, negative in enumerate(ranked, start=1):
            of_id[negative.chunk_id] = negative
            counted = votes.setdefault(own, {})
            counted[negative.chunk_id] = counted.get(negative.chunk_id, 0) + 1 / rank
    for own, counted in votes.items():
        best = sorted(counted, key=lambda chunk_id: (-counted[chunk_id], content_order(of_id[chunk_id]), chunk_id))
        used[first[own]] += [of_id[chunk_id] for chunk_id in best[:mined]]
    return used


def rows_fingerprint(pairs: Sequence[KeptPair], negatives: int, unasked: Sequence[LivePassage] = ()) -> str:
    """Hash of everything that training reads from the pairs: what they say, their order, and which share a passage.

    Args:
        pairs: in the order in which they are trained on.
        negatives: mined negatives used for each passage; those that are not used decide nothing.
        unasked: further passages that the whitening reads, or that a query tower is trained against.
    """
    number: dict[str, int] = {}

    def read(p: LivePassage) -> tuple[Any, ...]:
        return (
            number.setdefault(p.chunk_id, len(number)),
            p.side,
            p.headings(),
            p.rendered("none"),
            p.near_duplicate_group,
        )

    lines = [
        (
            read(p.passage),
            p.query,
            p.is_template,
            # Says which questions validation chooses the headings and the whitening by.
            p.method if p.passage.side == "validation" else "",
            [read(n) for n in used],
        )
        for p, used in zip(pairs, negatives_used(pairs, negatives), strict=True)
    ]
    further = [(p.side, p.headings(), p.rendered("none"), p.near_duplicate_group) for p in unasked]
    return fingerprint(lines, sorted(further))


def training_rows(
    pairs: Sequence[KeptPair],
    prefix: PassagePrefix,
    base: Encoder,
    cache: EmbeddingCache,
    negatives: int = 0,
    corpus: Sequence[LivePassage] | None = None,
    unasked: Sequence[LivePassage] = (),
    mostly: bool | None = None,
) -> TrainingRows:
    """Render the pairs.

    Args:
        pairs: of at least two passages.
        prefix: how the candidate renders passages; the guide always sees the plain text.
        base: the encoder of the frozen vectors.
        cache: where these lie: the base has encoded the texts already.
        negatives: mined negatives used for each passage, beside those that people named.
        corpus: passages besides, for a query tower that is trained against all of their frozen vectors.
        unasked: further passages for the whitening, the ones to prefer first.
        mostly: whether the recipe is that for templates; None: as these pairs say.
    """
    used = negatives_used(pairs, negatives)
    wanted = [pair.passage for pair in pairs]
    wanted += [n for of_pair in used for n in of_pair] if corpus is None else sorted(corpus, key=content_order)
    passages = list({passage.chunk_id: passage for passage in wanted}.values())
    number = {passage.chunk_id: i for i, passage in enumerate(passages)}
    rendered = [passage.rendered(prefix) for passage in passages]
    return TrainingRows(
        queries=[pair.query for pair in pairs],
        positives=[number[pair.passage.chunk_id] for pair in pairs],
        passages=rendered,
        groups=[passage.near_duplicate_group for passage in passages],
        negatives=[[number[n.chunk_id] for n in of_pair] for of_pair in used],
        templates=[pair.is_template for pair in pairs],
        guide_texts=None if prefix == "none" else [passage.rendered("none") for passage in passages],
        frozen_passages=None if corpus is None else cache.passages(base, rendered)[0],
        unasked=[passage.rendered(prefix) for passage in unasked[: max(0, WHITENED_PASSAGES - len(passages))]],
        answers=answers_of(pairs, [number[pair.passage.chunk_id] for pair in pairs]),
        mostly_templates=mostly_templates(pairs) if mostly is None else mostly,
    )


def answers_of(pairs: Sequence[KeptPair], positives: Sequence[int]) -> list[frozenset[int]] | None:
    """Of each query the passages that its wording belongs to, empty if it is one; None if it is for all.

    Args:
        pairs: with the queries.
        positives: the number of each pair's passage.
    """
    wordings = [query_key(pair.query) for pair in pairs]
    of_wording: dict[str, set[int]] = {}
    for wording, passage in zip(wordings, positives, strict=True):
        of_wording.setdefault(wording, set()).add(passage)
    shared = {wording: frozenset(passages) for wording, passages in of_wording.items() if len(passages) > 1}
    return [shared.get(wording, frozenset()) for wording in wordings] if shared else None
