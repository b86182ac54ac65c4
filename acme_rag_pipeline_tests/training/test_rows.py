"""What a training run reads: which negatives join a batch, and which passages answer a wording."""

from __future__ import annotations

from dataclasses import replace

import pytest

from acme_rag_pipeline.setting_groups import TrainingSettings
from acme_rag_pipeline.store.passages import LivePassage
from acme_rag_pipeline.training.rows import KeptPair, answers_of, mined_negatives, negatives_used, searchable_passages

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
    assert negatives_used(pairs, 2) == [[C, B], [], [], [B]]
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
