"""A quote is found again through typography, line breaks and small edits, and not where it is gone."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz import fuzz

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


def passage(subject: str) -> str:
    return (
        f"Requests for {subject} go to the desk of {subject} first. Whoever is asked there answers within three days.\n"
        f"- No {subject} is granted without a reason; name yours in the form.\n- The form of {subject} is in Tern"
        f"\nA second request for {subject} can be made after five years. Laptop and badge stay at home meanwhile."
    )


ADDED = " Before it you agree with People on the dates, and they are put into Tern by the team there every spring. "


@pytest.mark.parametrize(
    "edited",
    [
        passage("leave").replace("without a reason;", "without a reason;" + ADDED),
        passage("leave").replace("first. Whoever", "first." + ADDED + "Whoever").replace("Laptop", "Laptop, phone"),
    ],
)
def test_a_long_quote_is_found_when_its_passage_gained_a_sentence(edited: str) -> None:
    before, after = passage("parking") + "\n\n", "\n\n" + passage("travel")
    text = before + edited + after
    span = QuotableText.of(text).find(passage("leave"), near=0)
    assert span is not None
    # The section before ends with the same sentence.
    assert len(before) - 50 < span[0] <= len(before)
    assert len(before) + 0.8 * len(edited) < span[1] <= len(before) + len(edited)


def test_a_long_quote_is_found_when_its_passage_lost_a_sentence_and_its_line_breaks() -> None:
    lost = "A second request for leave can be made after five years."
    edited = passage("leave").replace(lost, "").replace("\n", " ")
    assert QuotableText.of(f"{ADDED}\n\n{edited}\n\n{ADDED}").find(passage("leave")) is not None


def test_a_long_quote_is_not_found_when_its_passage_is_gone() -> None:
    assert QuotableText.of(f"{ADDED * 3}\n\nLaptop and badge stay at home meanwhile.").find(passage("leave")) is None
    scattered = f"\n{ADDED * 8}\n".join(passage("leave").split("\n"))
    assert QuotableText.of(scattered).find(passage("leave")) is None


def test_of_equal_edited_passages_the_nearest_is_taken() -> None:
    edited = passage("leave").replace("first. Whoever", "first." + ADDED + "Whoever")
    text = QuotableText.of(f"{edited}\n\n{passage('travel')}\n\n{edited}")
    second = text.text.rindex("Requests for leave")
    for near, start in ((None, 0), (10, 0), (second + 10, second)):
        span = text.find(passage("leave"), near)
        assert span is not None
        assert span[0] == start


def test_a_very_long_quote_with_edits_is_found_without_an_alignment(monkeypatch: pytest.MonkeyPatch) -> None:
    def aligned(*_: object, **__: object) -> None:
        raise AssertionError("quadratic in the length of the quote")

    monkeypatch.setattr(fuzz, "partial_ratio_alignment", aligned)
    words = [f"word{number}{'.' if number % 12 == 0 else ''}" for number in range(4000)]
    text = QuotableText.of(" ".join(words))
    quote = " ".join("changed" if number % 60 == 30 else word for number, word in enumerate(words[500:3500]))
    assert len(quote) > 20_000
    span = text.find(quote)
    assert span is not None
    assert span[1] - span[0] > 0.9 * len(quote)
    assert text.find(" ".join(f"other{number}" for number in range(3000))) is None


@pytest.mark.parametrize(("written", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize(
    "sentence", ["Die Kündigungsfrist beträgt drei Monate.", "Nghỉ phép ba mươi ngày.", "휴가는 서른 날입니다."]
)
def test_accents_that_are_written_in_two_ways_are_the_same(written: str, stored: str, sentence: str) -> None:
    text = unicodedata.normalize(stored, f"Über uns.\n\n{sentence}\n\nEnde.")
    span = QuotableText.of(text).find_all(unicodedata.normalize(written, sentence))
    assert [text[start:end] for start, end in span] == [unicodedata.normalize(stored, sentence)]


def test_a_quote_ends_where_a_word_ends_if_it_does_anywhere() -> None:
    text = "The hotel limit is 100 euros. In Leeds the hotel limit is 10."
    assert QuotableText.of(text).find("hotel limit is 10", near=0) == (43, 60)
    # A piece that was cut within a word is found all the same.
    assert QuotableText.of("The hotel limit is 100 euros.").find_all("hotel limit is 10") == [(4, 21)]
    # Where words have no spaces between them, one may begin anywhere.
    text = "休暇は二十日。年次休暇は二十日です。"
    assert QuotableText.of(text).find_all("休暇は二十日") == [(0, 6), (9, 15)]
    assert QuotableText.of("Cafés are here. A café is there.").find("a café", near=0) == (16, 22)


def test_every_place_of_a_quote_is_found() -> None:
    assert QuotableText.of("See “it”. And see 'it'.\nSEE  \"it\"").find_all('see "it"') == [(0, 8), (24, 33)]
    assert QuotableText.of("Nothing.").find_all(" ") == []


class CopiesCounted(str):
    """A text that counts the characters that are taken out of it."""

    copied = 0

    def __getitem__(self, key: slice | int) -> str:  # type: ignore[override]
        piece = super().__getitem__(key)
        self.copied += len(piece)
        return piece


def test_a_phrase_that_stands_in_many_places_costs_its_text_once_and_no_more_places_than_are_asked_for() -> None:
    folded = CopiesCounted("see below. " * 2000)
    text = QuotableText(str(folded), folded)
    assert text.find("see below", near=11_000) == (11_000, 11_009)
    assert folded.copied < 2 * len(folded)
    folded.copied = 0
    assert text.find_all("see below", most=3) == [(0, 9), (11, 20), (22, 31)]
    assert folded.copied < 50
    # Of places that cut a word, too.
    assert text.find_all("ee belo", most=2) == [(1, 8), (12, 19)]


def test_a_long_quote_that_is_gone_costs_no_alignment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(fuzz, "partial_ratio_alignment")
    text = QuotableText.of(f"{ADDED * 30}{passage('parking')}{ADDED * 30}")
    quote = "\n".join(passage(f"{number} cars") for number in range(6))
    assert 1500 < len(quote) < 4000
    assert text.find(quote) is None


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


@given(st.text(st.one_of(st.sampled_from("ab *_`\\\n\t\u00a0ﬁ“–ẞİ\u00ad\u3000½…"), st.characters()), max_size=60))
def test_each_folded_character_knows_where_it_came_from(text: str) -> None:
    prepared = QuotableText.of(text)
    assert len(prepared.offsets) == len(prepared.folded)
    assert list(prepared.offsets) == sorted(prepared.offsets)
    for at, character in enumerate(prepared.folded):
        assert character in QuotableText.of(f"x{text[prepared.offsets[at]]}").folded[1:]


MARKUP = """# Leave

Ask for it in the [leave form][1], or see [what *the* desk](https://desk.example/a_(b)?c=d "The desk") says[^2] &mdash; R&amp;D too.

> - Managers answer within
>   three days.
1. Every [week](<{% page "/a b" %}>) you
2. report back.

| Country | Days |
|:--------|-----:|
| Germany | 30 |

![A map](map.png) shows the way.
"""


@pytest.mark.parametrize(
    ("shown", "written"),
    [
        ("Ask for it in the leave form, or see what the desk says", 'Ask for it in the [leave form][1], or see [what *the* desk](https://desk.example/a_(b)?c=d "The desk") says'),
        ("the desk says — R&D too.", 'the* desk](https://desk.example/a_(b)?c=d "The desk") says[^2] &mdash; R&amp;D too.'),
        ("says —", "says[^2] &mdash;"),
        ("Managers answer within three days.", "Managers answer within\n>   three days."),
        ("you report back", "you\n2. report back"),
        ("2. report back", "2. report back"),
        ("Country Days Germany 30", "Country | Days |\n|:--------|-----:|\n| Germany | 30"),
        ("A map shows the way", "A map](map.png) shows the way"),
        # As it is written, whole or cut within markup.
        ("see [what *the* desk](https://desk.example/a_(b)", "see [what *the* desk](https://desk.example/a_(b)"),
        ("https://desk.example/a_(b)?c=d", "https://desk.example/a_(b)?c=d"),
        ("> - Managers answer", "> - Managers answer"),
        ("| Germany | 30 |", "Germany | 30"),
    ],
)  # fmt: skip
def test_a_quote_is_found_as_a_reader_sees_it_and_as_it_is_written(shown: str, written: str) -> None:
    assert [MARKUP[slice(*span)] for span in QuotableText.of(MARKUP).find_all(shown)] == [written]


def test_a_number_that_begins_no_line_counts() -> None:
    text = QuotableText.of("The limit is 10. In Leeds\n\n[It](a.md) is 12. In Ely")
    assert text.find_all("limit is 12. In") == []
    assert text.find_all("It is 12. In Ely") != []


@pytest.mark.parametrize("piece", ["[", "](", "](a", "](a ", "[^", "&amp", "](((", "](a(b", "]({%", "](a{% ", '](a"b ', "\n- ", "\n|-", "\n" + " " * 39])  # fmt: skip
def test_markup_that_is_repeated_costs_no_more_than_its_length(piece: str) -> None:
    text = QuotableText.of(piece * (300_000 // len(piece)))
    assert text.find_all("Flights need an approval when they cost more.") == []


PIECES = ["a", "b ", "[", "]", "(", ")", "!", "|", "^", "&amp;", "&#32;", "\n", "- ", "> ", "1. ", "*"]


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join), st.data())
def test_markup_knows_where_its_words_came_from(text: str, data: st.DataObject) -> None:
    prepared = QuotableText.of(text)
    assert len(prepared.offsets) == len(prepared.folded)
    assert list(prepared.offsets) == sorted(prepared.offsets)
    start = data.draw(st.integers(0, len(text)))
    quote = text[start : data.draw(st.integers(start, len(text)))]
    for begin, end in prepared.find_all(quote):
        assert 0 <= begin < end <= len(text)
        there = QuotableText.of(text[begin:end])
        assert any(QuotableText.of(one).folded.strip() in there.folded for one in (quote, f"\n{quote}"))
