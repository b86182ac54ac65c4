"""Validation during training: a model that says the same of everything has found nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from acme_rag_pipeline.store.fingerprints import sha256_text
from acme_rag_pipeline.store.passages import LivePassage
from acme_rag_pipeline.training.rows import KeptPair, content_order
from acme_rag_pipeline.training.validation import LARGEST_HAYSTACK, MINIMUM_QUERIES, Validation


def passage(number: int) -> LivePassage:
    return LivePassage(
        chunk_id=f"c{number:03}", doc_path=f"{number}.md", title="", heading_path=(), text=f"text {number}",
        start_char=0, end_char=6, side="validation", near_duplicate_group=f"g{number:03}", unit=f"{number}.md",
    )  # fmt: skip


def ordered(count: int) -> list[LivePassage]:
    """Passages in the order in which they are searched."""
    return sorted(map(passage, range(count)), key=content_order)


@pytest.fixture
def validation() -> Validation:
    passages = ordered(MINIMUM_QUERIES)
    pairs = [KeptPair(f"p{i}", f"query {i}", passages[i], "curated", "", ()) for i in range(MINIMUM_QUERIES)]
    return Validation(pairs, passages)


def test_equal_scores_are_no_find(validation: Validation) -> None:
    apart, same = np.eye(MINIMUM_QUERIES), np.ones((MINIMUM_QUERIES, 3))
    assert validation._ndcg(apart, apart, validation.pairs) == 1.0
    assert validation._ndcg(same, same, validation.pairs) == 0.0


def test_what_a_person_asked_about_several_passages_is_answered_by_each() -> None:
    passages = ordered(MINIMUM_QUERIES)
    asked = ["who pays?", "Who pays", *(f"query {i}" for i in range(2, MINIMUM_QUERIES))]
    vectors = np.eye(MINIMUM_QUERIES)
    for origin, perfect in (("curated", True), ("openai", False)):
        pairs = [KeptPair(f"p{i}", query, passages[i], origin, "", ()) for i, query in enumerate(asked)]
        # Both wordings find the first passage, which one of them names.
        found = Validation(pairs, passages)._ndcg(vectors[[0, 0, *range(2, MINIMUM_QUERIES)]], vectors, pairs)
        assert (found == 1.0) is perfect


def test_the_sample_that_is_searched_follows_the_texts_and_no_path(validation: Validation) -> None:
    passages = [passage(i) for i in range(LARGEST_HAYSTACK + 200)]
    # Their ids, and so their order, say nothing any more.
    renamed = [replace(p, chunk_id=sha256_text(p.text), doc_path=sha256_text(p.text)) for p in passages][::-1]
    of_text = {p.text: p for p in renamed}
    moved = [replace(pair, passage=of_text[pair.passage.text]) for pair in validation.pairs]
    before, after = Validation(validation.pairs, passages), Validation(moved, renamed)
    assert len(before.passages) == LARGEST_HAYSTACK
    assert [p.text for p in after.passages] == [p.text for p in before.passages]
    assert after.searched() == before.searched()
    unasked = next(p for p in reversed(before.passages) if p.text not in {x.passage.text for x in before.pairs})
    edited = [replace(p, heading_path=("New",)) if p == unasked else p for p in passages]
    assert Validation(validation.pairs, edited).searched() != before.searched()
    assert not Validation(validation.pairs[1:], passages).searched(), "what chooses nothing is part of nothing"
