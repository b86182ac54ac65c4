"""Which language a passage is in, as far as the offline generator has to know, and its words without a topic.

A text is told by its function words: in prose every third word is one. That takes no library, names only the languages
that have a list (function_words.txt), and what it cannot tell (a table, a list of names) it leaves to the document.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files

from acme_rag_pipeline.pairs.plain_text import STOP_WORDS

ENGLISH = "en"
UNLISTED = "und"
"""ISO 639's code for a language that nobody has determined: not English, and without a list."""

# As many different ones: a table of "no" is not Spanish.
_EVIDENCE = 3
_SHARE = 0.1
# Of 3,830 passages in English handbooks those with fifty words in sentences had a share of 0.12 or more.
_UNLISTED_WORDS = 50
_UNLISTED_SHARE = 0.05
_MARGIN = 1.5
_SHORT = 3
_IN_OTHERS = "in-others"


def language_of(words: Sequence[str], *, of_prose: bool = False) -> str | None:
    """The language of a text.

    Args:
        words: Its words, lower-case, in order.
        of_prose: The words are those of sentences; then a text with next to no English function words is `UNLISTED`.

    Returns:
        An ISO 639-1 code of a language with a list, `UNLISTED`, or None where too little speaks for any.
    """
    if not words:
        return None
    foreign = [word for word in words if not _is_latin(word)]
    if len(foreign) > 1 and 2 * len(foreign) > len(words):
        return _by_script(foreign)
    counts = _counts(words)
    different = _counts(set(words))
    english = counts.pop(ENGLISH, 0)
    other, code = max(((count, code) for code, count in counts.items()), default=(0, UNLISTED))
    enough = _SHARE * len(words)
    if english >= max(other, enough) and different[ENGLISH] >= _EVIDENCE:
        return ENGLISH
    if other >= max(_MARGIN * english, enough) and different[code] >= _EVIDENCE:
        return code
    if of_prose and len(words) >= _UNLISTED_WORDS and english < _UNLISTED_SHARE * len(words):
        return UNLISTED
    return None


def function_words(language: str) -> frozenset[str] | None:
    """All words that carry no topic in a language other than English; None where there is no list."""
    listed = _lists().get(language)
    return None if listed is None else listed | _lists()[_IN_OTHERS]


def short_words(words: Iterable[str]) -> frozenset[str]:
    """What stands for a list where a language has none: words of an alphabet of up to three letters."""
    borrowed = _lists()[_IN_OTHERS]
    return frozenset(word for word in words if word in borrowed or (len(word) <= _SHORT and _is_alphabetic(word)))


def most_common_language(languages: Iterable[str]) -> str | None:
    """The language of most; English before others, which go by their code, where there are as many."""
    counts = Counter(languages)
    return min(counts, key=lambda code: (-counts[code], code != ENGLISH, code), default=None)


def _counts(words: Iterable[str]) -> Counter[str]:
    listing = _languages_with_word()
    return Counter(code for word in words for code in listing.get(word.replace("’", "'"), ()))


def _by_script(foreign: Sequence[str]) -> str:
    kana = sum("\u3040" <= word[0] <= "\u30ff" for word in foreign)
    if 10 * kana >= len(foreign):
        return "ja"
    if 2 * sum("\u3400" <= word[0] <= "\u9fff" for word in foreign) > len(foreign):
        return "zh"
    count, code = max(((count, code) for code, count in _counts(foreign).items()), default=(0, UNLISTED))
    return code if count >= max(1, _SHARE * len(foreign)) else UNLISTED


def _is_latin(word: str) -> bool:
    return word[0] < "\u0370" or "\u1e00" <= word[0] <= "\u1eff" or "\ufb00" <= word[0] <= "\ufb06"


def _is_alphabetic(word: str) -> bool:
    return word[0].isalpha() and (_is_latin(word) or word[0] < "\u0530")


@cache
def _lists() -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for line in files("acme_rag_pipeline.pairs").joinpath("function_words.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            code, words = line.split(":", 1)
            found.setdefault(code, set()).update(words.split())
    # Japanese grammar is written in hiragana, which no analyser takes for a topic.
    return {code: frozenset(words) for code, words in found.items()} | {"ja": frozenset()}


@cache
def _languages_with_word() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = dict.fromkeys(STOP_WORDS, (ENGLISH,))
    for code, words in sorted(_lists().items()):
        if code != _IN_OTHERS:
            for word in words:
                found[word] = (*found.get(word, ()), code)
    return found
