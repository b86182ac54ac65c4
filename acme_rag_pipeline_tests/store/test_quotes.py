"""A quote is found again through typography, line breaks and small edits, and not where it is gone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_rag_pipeline.store.quotes import QuotableText

TEXT = "Intro.\n\nEmployees may work from “another  country”\nfor **thirty** working days a year – not more.\n\nEnd."


@pytest.mark.parametrize(
    "quote",
    [
        'Employees may work from "another country" for thirty working days a year - not more.',
        "employees MAY work from “another  country”\nfor **thirty** working days",
        'Employees may work from "another country" for forty working days a year - not more.',
    ],
)
def test_it_is_found_in_the_original(quote: str) -> None:
    span = QuotableText.of(TEXT).find(quote)
    assert span is not None
    assert TEXT[span[0] : span[1]].startswith("Employees may work")


@pytest.mark.parametrize(
    "quote", ["", "   ", "The cafeteria closes at three o'clock on Fridays in Leeds.", "Intro. End."]
)
def test_what_is_not_there_is_not_found(quote: str) -> None:
    assert QuotableText.of(TEXT).find(quote) is None


def test_of_equal_places_the_nearest_is_taken() -> None:
    text = "Same sentence here. " * 3
    assert QuotableText.of(text).find("Same sentence here.", near=21) == (20, 39)


@given(st.text(min_size=1, max_size=200), st.data())
def test_every_piece_of_a_text_is_found_where_its_words_stand(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    prepared = QuotableText.of(text)
    span = prepared.find(text[start:end], near=start)
    folded = QuotableText.of(text[start:end]).folded.strip()
    if span is None:
        # Nothing but marks that folding removes, or a mark that combines with what stood before it.
        assert not folded or folded not in prepared.folded
    else:
        assert folded in QuotableText.of(text[span[0] : span[1]]).folded
