"""What a training run reads: which negatives join a batch, and which passages answer a wording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from acme_rag_pipeline.setting_groups import TrainingSettings
from acme_rag_pipeline.store.fingerprints import sha256_text
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import LivePassage
from acme_rag_pipeline.store.warehouse import insert
from acme_rag_pipeline.training.rows import (
    KeptPair,
    answers_of,
    heading_pairs,
    kept_pairs,
    mined_negatives,
    negatives_used,
    rows_fingerprint,
    searchable_passages,
)

A, B, C, D, E = (
    LivePassage(name, f"{name}.md", 0, 9, name, (), f"text of {name}", name, f"{name}.md", "train") for name in "abcde"
)


def pair(
    query: str, passage: LivePassage, *negatives: LivePassage, origin: str = "openai", named: str = ""
) -> KeptPair:
    return KeptPair(f"{query} {passage.chunk_id}", query, passage, origin, "llm", negatives, frozenset(named))


def test_a_passage_s_queries_agree_on_its_mined_negatives_and_the_first_brings_them() -> None:
    pairs = [pair("one", A, B, C), pair("two", A, D, C), pair("three", A, C), pair("four", E, B)]
    assert negatives_used(pairs, 1) == [[C], [], [], [B]]
    # Of equal votes the hash of the text decides.
    assert negatives_used(pairs, 2) == [[C, D], [], [], [B]]
    assert negatives_used(pairs, 0) == [[], [], [], []]
    assert negatives_used(pairs[::-1], 1) == [[B], [C], [], []]


def test_what_people_named_joins_always_and_takes_no_mined_one_s_place() -> None:
    pairs = [pair("one", A, B, C), pair("two", A, D, C, named="d")]
    assert negatives_used(pairs, 0) == [[], [D]]
    assert negatives_used(pairs, 1) == [[C], [D]]


@pytest.mark.parametrize(
    ("origins", "chosen", "mined"),
    [
        (["openai", "offline"], None, 1),
        (["openai", "offline", "offline"], None, 0),
        (["curated", "openai"], None, 1),
        (["openai"], 0, 0),
        (["offline"], 3, 3),
    ],
)
def test_templates_join_without_mined_negatives_unless_somebody_chose(
    origins: list[str], chosen: int | None, mined: int
) -> None:
    pairs = [pair(str(i), A, B, origin=origin) for i, origin in enumerate(origins)]
    assert mined_negatives(pairs, TrainingSettings(train_hard_negatives=chosen)) == mined
    assert mined_negatives(pairs, TrainingSettings(train_hard_negatives=chosen, strategy="query_only")) == 0
    drawn_afterwards = TrainingSettings(train_hard_negatives=chosen, expansion_epochs=6)
    assert mined_negatives(pairs, drawn_afterwards) == (chosen or 0)


def test_a_wording_of_several_passages_has_several_answers() -> None:
    wide = [pair("How long does it take?", A), pair("how long does it take", B), pair("Who pays?", A)]
    assert answers_of(wide, [0, 1, 0]) == [{0, 1}, {0, 1}, set()]
    assert answers_of([pair("Who pays?", A), pair("who pays", A)], [0, 0]) is None


def test_training_reads_no_passage_that_nearly_repeats_one_of_another_side() -> None:
    copy = replace(B, near_duplicate_group="of a test unit")
    held_out = replace(C, side="test", near_duplicate_group="of a test unit")
    passages = [A, copy, held_out, replace(D, side="validation"), E]
    assert searchable_passages(passages, ("train",)) == [A, E]
    assert searchable_passages(passages, ("train", "test")) == [A, copy, held_out, E]


def stored(store: Store, folder: str) -> list[KeptPair]:
    """Twelve pairs of six passages with mined negatives, and their headings, as read from a warehouse."""
    passages = [
        replace(A, chunk_id=sha256_text(f"{folder}/{n}"), doc_path=f"{folder}/{n}.md", text=f"text {n}", unit=f"{n}")
        for n in range(6)
    ]
    pairs = [
        {
            "pair_id": sha256_text(f"{passages[n % 6].chunk_id} {n}"), "side": "train", "query": f"query {n % 9}",
            "chunk_id": passages[n % 6].chunk_id, "origin": "openai", "style": "question", "method": "llm",
            "unit": "u", "overlap": 0.5, "negatives": [passages[(n + step) % 6].chunk_id for step in (1, 2)],
        }
        for n in range(12)
    ]  # fmt: skip
    headings = [
        {"query_id": sha256_text(f"heading of {p.chunk_id}"), "query": p.text, "chunk_id": p.chunk_id, "method": "h"}
        for p in passages
    ]
    chunks = [asdict(p) | {"ordinal": 0, "text_hash": sha256_text(p.text), "tokens": 3} for p in passages]
    with store.writer("test"), store.warehouse.write() as connection:
        insert(connection, "chunks", chunks)
        insert(connection, "training_pairs", pairs)
        insert(connection, "heading_queries", headings)
    read = [*kept_pairs(store.warehouse, passages), *heading_pairs(store.warehouse, passages)]
    assert len(read) == 18
    return read


def texts_of(pairs: Sequence[KeptPair]) -> list[tuple[str, str, list[str]]]:
    used = negatives_used(pairs, 1)
    return [(p.query, p.passage.text, [n.text for n in u]) for p, u in zip(pairs, used, strict=True)]


@pytest.mark.parametrize("folder", ["b", "c", "d"])
def test_a_rename_changes_neither_the_order_of_a_training_nor_its_key(folder: str, tmp_path: Path) -> None:
    before, after = (stored(Store(tmp_path / name), name) for name in ("a", folder))
    assert texts_of(before) == texts_of(after)
    assert rows_fingerprint(before, 1) == rows_fingerprint(after, 1)


def test_another_order_and_other_passages_of_equal_text_are_another_training_set() -> None:
    pairs = [pair("one", A), pair("two", A), pair("three", B)]
    key = rows_fingerprint(pairs, 0)
    assert key != rows_fingerprint(pairs[::-1], 0)
    copy = replace(A, chunk_id="copy")
    assert key != rows_fingerprint([pairs[0], replace(pairs[1], passage=copy), pairs[2]], 0)
