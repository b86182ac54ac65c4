"""The wording of a query: when two count as the same, and how much of one stands in a passage."""

from __future__ import annotations

import re
import unicodedata

from acme_rag_pipeline.pairs.analyzer import analyzer_of
from acme_rag_pipeline.pairs.languages import ENGLISH, language_of
from acme_rag_pipeline.pairs.plain_text import words

# "C", "C++" and "C#" are three things, as are 5 €, 5 % and ±5; sentence punctuation says nothing.
_TELLING = frozenset("#%+<=>±×÷−")
# A hyphen before a number, after neither a letter nor a digit, is its sign.
_MINUS = re.compile(r"(?<!\S)[-‐‑–](?=\d)")
_WORD_LENGTH = 4


def query_key(query: str) -> str:
    """The form in which two wordings of a query count as the same: case, whitespace and punctuation are folded.

    Letters, digits and the marks that belong to letters (vowel signs, accents) stay, and so do currencies and the
    symbols that make another word of one.
    """
    return " ".join(_folded(query).split())


def word_overlap(query: str, passage: str) -> float:
    """Share of the query's distinct words of four characters or more that stand in the passage, 0 to 1.

    Where the passage is in another language than English, of the query's words that carry a topic in that language:
    the length of a word says as much of it only in English.
    """
    language = language_of([word.lower() for word in words(passage)]) or ENGLISH
    if language == ENGLISH:
        asked, there = _long_words(query), _long_words(passage)
    else:
        analyzer = analyzer_of(language, f"{query}\n{passage}")
        asked, there = set(analyzer.content_words(query)), set(analyzer.content_words(passage))
    return round(len(asked & there) / len(asked), 4) if asked else 0.0


class _Fold(dict[int, str]):
    """Code point to what stands for it; filled as characters are met."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        if category[0] in "LMN" or character == "_":
            kept = character
        elif category == "Sc" or character in _TELLING:
            kept = f" {character} "
        else:
            # Joiners and soft hyphens stand inside words.
            kept = "" if category == "Cf" else " "
        self[code] = kept
        return kept


_FOLD = _Fold()


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", _MINUS.sub("−", text).casefold()).translate(_FOLD)


def _long_words(text: str) -> set[str]:
    return {word for word in _folded(text).split() if len(word) >= _WORD_LENGTH}
