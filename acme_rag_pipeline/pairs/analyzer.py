"""Words and sentences of a passage by the rules of its language: English, or any other given its function words."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property

from acme_rag_pipeline.pairs import plain_text
from acme_rag_pipeline.pairs.languages import ENGLISH, function_words, short_words
from acme_rag_pipeline.pairs.plain_text import Block

_HIRAGANA, _KATAKANA, _HAN, _THAI = "\u3041-\u309f", "\u30a0-\u30ff", "\u3400-\u9fff\uf900-\ufaff々", "\u0e00-\u0e7f"
_UNSPACED = f"{_HIRAGANA}{_KATAKANA}{_HAN}{_THAI}"
# Accents and vowel signs belong to a word, which `\w` does not know. U+0964 and U+0965 end sentences.
_MARKS = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u064b-\u065f\u0670\u0900-\u0903\u093a-\u094f\u0951-\u0957"
    "\u0962\u0963\u0981-\u0983\u09bc-\u09cd\u0a01-\u0a03\u0a3c-\u0a4d\u0a81-\u0a83\u0abc-\u0acd\u0b82\u0bbe-\u0bcd"
    "\u0c00-\u0c04\u0c3e-\u0c56\u0c81-\u0c83\u0cbc-\u0cd6\u0d00-\u0d03\u0d3b-\u0d4d"
)
_LETTER = rf"(?:(?![{_UNSPACED}])[^\W_]|[{_MARKS}])"
# "l'entreprise", "dell'azienda": the article is no part of the word.
_ELISION = re.compile(r"(?<![^\W_])([A-Za-z]{1,8})['’](?=[^\W\d_])")
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"”’»)]?\s+|(?<=[。！？।؟۔])\s*")
# Also the day before a month ("am 31. Dezember"): two sentences taken for one do less harm than half a sentence.
_NO_END = re.compile(
    r"\b(?:abs|art|b|bijv|bzw|ca|cf|d|dott|ecc|etc|ev|evtl|ex|ggf|godz|gosp|h|inkl|m|mme|mr|max|min|mind|nl|np|nr|p|pág"
    r"|pkt|r|s|sig|sog|sr|sra|st|std|str|tel|tj|tzn|tzw|u|ul|usw|v|vgl|z|zł|г|д|е|им|руб|т|тел|ул|[^\W\d_]|\d{1,2})\.$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Analyzer:
    """How a text is taken apart.

    Attributes:
        function_words: Lower-case words that carry no topic, of a language other than English; None for English,
            which has its own list and rules.
    """

    function_words: frozenset[str] | None = None

    @property
    def is_english(self) -> bool:
        """Whether the rules that write English may be used."""
        return self.function_words is None

    def words(self, text: str) -> list[str]:
        """Words of `text`, in order; of scripts without spaces runs of a syllabary and pairs of Han characters."""
        if self.is_english:
            return plain_text.words(text)
        return self._word.findall(_ELISION.sub(r"\1 ", unicodedata.normalize("NFC", text)))

    def is_content(self, word: str) -> bool:
        """Whether a lower-case word can carry a topic."""
        if self.function_words is None:
            return plain_text.is_content(word)
        # Japanese writes its grammar in hiragana.
        grammar = all("\u3041" <= character <= "\u309f" for character in word)
        return len(word) > 1 and word not in self.function_words and not word.isnumeric() and not grammar

    def content_words(self, text: str) -> list[str]:
        """Lower-case words of `text` that can carry a topic, in order."""
        return [word for word in (found.lower() for found in self.words(text)) if self.is_content(word)]

    def sentences(self, block: Block) -> list[str]:
        """Sentences of a prose block or list item; other kinds have none."""
        if self.is_english:
            return plain_text.sentences(block)
        return plain_text.sentences(block, _SENTENCE_END, _NO_END)

    def pieces(self, text: str) -> list[str]:
        """What can be left out of `text` singly: words with their punctuation and the space after them."""
        if self.is_english:
            return [f"{part} " for part in text.split()]
        return self._piece.findall(" ".join(unicodedata.normalize("NFC", text).split()))

    def up_to_content(self, text: str) -> str:
        """`text` without the words at its end that carry no topic, which nothing follows any more."""
        parts = self.pieces(text)
        while parts and not self.content_words(parts[-1]) and not any(map(str.isdigit, parts[-1])):
            parts.pop()
        return "".join(parts).strip()

    def initial(self, word: str) -> str:
        """The lower-case first letter of a word as an acronym has it: "é" is "e" in French, and stays in English."""
        first = word[0].lower()
        return first if self.is_english else unicodedata.normalize("NFD", first)[0]

    @cached_property
    def _unspaced(self) -> str:
        single = "".join(
            sorted(word for word in self.function_words or () if len(word) == 1 and "\u3400" <= word <= "\u9fff")
        )
        # Chinese words have two characters more often than not; they are counted from the last particle on.
        han = f"[{single}]|(?:(?![{single}])[{_HAN}]){{1,2}}" if single else f"[{_HAN}]{{1,2}}"
        return f"[{_KATAKANA}]+|[{_HIRAGANA}]+|[{_THAI}]+|{han}"

    @cached_property
    def _word(self) -> re.Pattern[str]:
        return re.compile(rf"{self._unspaced}|{_LETTER}+(?:['’&./_+-]{_LETTER}+)*")

    @cached_property
    def _piece(self) -> re.Pattern[str]:
        return re.compile(rf"(?:{self._unspaced})\s?|[^\s{_UNSPACED}]+\s?|\s")


ENGLISH_ANALYZER = Analyzer()


def analyzer_of(language: str, text: str) -> Analyzer:
    """The analyzer of one text, which knows those function words of the language that stand in it."""
    if language == ENGLISH:
        return ENGLISH_ANALYZER
    listed = function_words(language)
    words = {word.lower() for word in Analyzer(listed or frozenset()).words(text)}
    return Analyzer(short_words(words) if listed is None else listed & words)
