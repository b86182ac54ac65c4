"""Validation during training: a model that says the same of everything has found nothing."""

from __future__ import annotations

import numpy as np
import pytest

from acme_rag_pipeline.store.passages import LivePassage
from acme_rag_pipeline.training.rows import KeptPair
from acme_rag_pipeline.training.validation import MINIMUM_QUERIES, Validation


def passage(number: int) -> LivePassage:
    return LivePassage(
        chunk_id=f"c{number:03}", doc_path=f"{number}.md", title="", heading_path=(), text=f"text {number}",
        start_char=0, end_char=6, side="validation", near_duplicate_group=f"g{number:03}", unit=f"{number}.md",
    )  # fmt: skip


@pytest.fixture
def validation() -> Validation:
    passages = [passage(i) for i in range(MINIMUM_QUERIES)]
    pairs = [KeptPair(f"p{i}", f"query {i}", passages[i], "curated", "", ()) for i in range(MINIMUM_QUERIES)]
    return Validation(pairs, passages)


def test_equal_scores_are_no_find(validation: Validation) -> None:
    apart, same = np.eye(MINIMUM_QUERIES), np.ones((MINIMUM_QUERIES, 3))
    assert validation._ndcg(apart, apart, validation.pairs) == 1.0
    assert validation._ndcg(same, same, validation.pairs) == 0.0


def test_what_a_person_asked_about_several_passages_is_answered_by_each() -> None:
    passages = [passage(i) for i in range(MINIMUM_QUERIES)]
    asked = ["who pays?", "Who pays", *(f"query {i}" for i in range(2, MINIMUM_QUERIES))]
    vectors = np.eye(MINIMUM_QUERIES)
    for origin, perfect in (("curated", True), ("openai", False)):
        pairs = [KeptPair(f"p{i}", query, passages[i], origin, "", ()) for i, query in enumerate(asked)]
        # Both wordings find the first passage, which one of them names.
        found = Validation(pairs, passages)._ndcg(vectors[[0, 0, *range(2, MINIMUM_QUERIES)]], vectors, pairs)
        assert (found == 1.0) is perfect
