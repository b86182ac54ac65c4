"""Finding a quoted piece of text again after the document around it, or its typography, has changed."""

from __future__ import annotations

import html
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

# Below this share of matching characters a quote counts as gone; one changed number in a sentence stays above it.
FUZZY_SCORE = 88.0
# The time of an alignment grows with the square of the quote's length: this one takes 0.06 s in 240,000 characters.
_LONGEST_ALIGNED = 1500
# A long quote may have gained or lost sentences: those that are left count, where they stand close together.
_SHORTEST_IN_PIECES = 200
_SHORTEST_PIECE = 20
_PIECES_SHARE = 0.6
_PIECES_STRETCH = 1.6
_STRETCHES = 20
_SPACES = re.compile(r"\s+")
_PIECE_END = re.compile(r"(?<=[.!?:;|])\s+|(?<=[。！？；：])|\n")
_TYPOGRAPHY = str.maketrans(
    {"‘": "'", "’": "'", "‚": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"',
     "‐": "-", "‑": "-", "‒": "-", "–": "-", "—": "-", "−": "-", "\u00ad": "", "*": "", "_": "", "`": "", "\\": ""}
)  # fmt: skip


_ENTITY = re.compile(r"&(?:\#\d{1,7}|\#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
# What a reader does not see: the target of a link, brackets, marks of footnotes, bars and rules of tables, and the marks of
# lists, quotations and headings at the beginning of a line (not of a text, which may begin anywhere). Every repetition is
# bounded or possessive: documents are data from anywhere.
_MARKUP = re.compile(
    r"\[\^[^\[\]\s]{1,40}\]"
    r"|!?\["
    r"|\](?:\[[^\[\]\n]{0,200}\]"
    r"|\((?:\{[{%][^{}\n]{0,300}[%}]\}|[^()\s{]|\{(?![{%])|\([^()\s]{0,200}\)){0,600}+"
    r"(?:[ \t\n]{1,4}(?:\"[^\"\n]{0,300}\"|'[^'\n]{0,300}'))?\))?"
    r"|\|"
    rf"|{_ENTITY.pattern}"
    r"|\n(?:[ \t:]{0,40}[|-][ \t|:-]{0,1000}+(?=\n)"
    r"|(?:[ \t]{0,40}(?:>|[-*+•](?=[ \t])|\#{1,6}(?=[ \t])|\d{1,3}[.)](?=[ \t]))){1,8}+[ \t]{0,40})"
)
# Of scripts with spaces: in others a word begins anywhere.
_WORD_CHARACTER = re.compile(
    r"(?![\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])[^\W_]"
)
_MARKS = "".join(map(chr, range(0x300, 0x370)))


class _Folded(dict[int, str]):
    """Each character's folded form, as `str.translate` asks for it: taken apart, so that "ü" is "u" with two dots, as macOS has it."""

    def __missing__(self, code: int) -> str:
        self[code] = unicodedata.normalize("NFKD", chr(code)).translate(_TYPOGRAPHY).casefold()
        return self[code]


_FOLDED_CHARACTERS = _Folded()


@dataclass(frozen=True)
class QuotableText:
    """A document's text prepared for finding quotes: folded, with the way back to the original offsets.

    Attributes:
        text: as it was parsed.
        folded: without case, typography, Markdown emphasis, and, where it is `as_shown`, other markup.
        as_shown: as a reader of the page sees it: links by their titles, entities as what they stand for.
    """

    text: str
    folded: str
    as_shown: bool = True

    @classmethod
    def of(cls, text: str, *, as_shown: bool = True) -> QuotableText:
        """Fold case, typography, markup and whitespace."""
        shown = _MARKUP.sub(_shown, text) if as_shown else text
        return cls(text, _SPACES.sub(" ", shown.translate(_FOLDED_CHARACTERS)).removeprefix(" "), as_shown)

    @cached_property
    def _as_written(self) -> QuotableText:
        """The same text with its markup; itself where it has none."""
        return QuotableText.of(self.text, as_shown=False) if _MARKUP.search(self.text) else self

    @cached_property
    def offsets(self) -> array[int]:
        """Where each folded character stands in the text; worked out for documents in which something was found."""
        offsets = array("I")
        after_space = True
        for position, original in _characters(self.text) if self.as_shown else enumerate(self.text):
            for character in _FOLDED_CHARACTERS[ord(original)]:
                space = character.isspace()
                if not (space and after_space):
                    offsets.append(position)
                after_space = space
        return offsets

    def find(self, quote: str, near: int | None = None) -> tuple[int, int] | None:
        """Span of the quote in the original text, or None.

        Args:
            quote: a piece of the document, perhaps with other typography, line breaks or small edits; of a long one
                (200 characters) sentences may be missing, or others stand between them.
            near: where it stood before; decides between several equal places.
        """
        places = self.find_all(quote)
        if places:
            return places[0] if near is None else min(places, key=lambda place: abs(place[0] - near))
        wanted = _folded(quote)
        similar = self._find_similar(wanted)
        found = [*([similar] if similar else []), *self._find_pieces(quote, len(wanted), near or 0)]
        if not found:
            return None
        # A section that is like the quote must not win over the quote's own, which gained a sentence.
        return self._original(*max(found, key=lambda place: self._shared(wanted, *place)))

    def _shared(self, wanted: str, start: int, end: int) -> tuple[int, int]:
        """Characters of the quote that stand in a stretch, in their order: with its surroundings, and in itself."""
        from rapidfuzz.distance import LCSseq

        # A changed sentence at its end is not in the stretch.
        margin = len(wanted) // 5
        around = self.folded[max(0, start - margin) : end + margin]
        return LCSseq.similarity(wanted, around), LCSseq.similarity(wanted, self.folded[start:end])

    def find_all(self, quote: str, most: int | None = None) -> list[tuple[int, int]]:
        """The spans at which the quote stands word for word, typography and markup aside, in the order of the text.

        Args:
            quote: a piece of the document, copied from it or from the page that is made of it.
            most: as many are enough; None: all of them.
        """
        return self.find_shown(quote, most) or self.find_written(quote, most)

    def find_written(self, quote: str, most: int | None = None) -> list[tuple[int, int]]:
        """Those of a quote that is not found as shown: cut within a link, its target, or with the mark of its line before it."""
        if self._as_written is self:
            return []
        if found := self._as_written._find(_folded(quote, as_shown=False), most):
            return found
        return self._find(without, most) if (without := _folded(f"\n{quote}")) != _folded(quote) else []

    def find_shown(self, quote: str, most: int | None = None) -> list[tuple[int, int]]:
        """Those at which a reader sees the quote."""
        return self._find(_folded(quote), most)

    def _find(self, wanted: str, most: int | None) -> list[tuple[int, int]]:
        # "limit is 10" stands in "limit is 100" only where it stands nowhere else.
        whole: list[int] = []
        cut: list[int] = []
        for at in _positions(wanted, self.folded) if wanted else ():
            (cut if self._cuts_a_word(at) or self._cuts_a_word(at + len(wanted)) else whole).append(at)
            if len(whole) == most:
                break
        return [self._original(at, at + len(wanted)) for at in (whole or cut)[:most]]

    def _cuts_a_word(self, at: int) -> bool:
        before, after = self.folded[max(0, at - 4) : at].rstrip(_MARKS), self.folded[at : at + 1]
        return (
            bool(_WORD_CHARACTER.fullmatch(before[-1:]))
            and (after in _MARKS or bool(_WORD_CHARACTER.fullmatch(after)))
            and bool(after)
        )

    def _original(self, start: int, end: int) -> tuple[int, int]:
        first, last = self.offsets[start], self.offsets[end - 1]
        entity = _ENTITY.match(self.text, last) if self.as_shown and self.text[last] == "&" else None
        return first, entity.end() if entity else last + 1

    def _find_similar(self, wanted: str) -> tuple[int, int] | None:
        from rapidfuzz import fuzz

        if len(wanted) < 20 or len(wanted) > min(len(self.folded) * 1.1, _LONGEST_ALIGNED):
            return None
        match = fuzz.partial_ratio_alignment(wanted, self.folded, score_cutoff=FUZZY_SCORE)
        if match is None or match.dest_end <= match.dest_start:
            return None
        return match.dest_start, match.dest_end

    def _find_pieces(self, quote: str, length: int, near: int) -> list[tuple[int, int]]:
        """The stretches that hold most of the quote's sentences word for word, if that is enough; nearest first."""
        if length < _SHORTEST_IN_PIECES:
            return []
        pieces = (_folded(f"\n{piece}") for piece in _PIECE_END.split(quote))
        wanted = Counter(piece for piece in pieces if len(piece) >= _SHORTEST_PIECE)
        places = sorted((at, at + len(piece), piece) for piece in wanted for at in _positions(piece, self.folded))
        best, longest = _PIECES_SHARE * length, _PIECES_STRETCH * length
        found: list[tuple[int, int]] = []
        there: Counter[str] = Counter()
        first = held = 0
        for _, end, piece in places:
            held += len(piece) if there[piece] < wanted[piece] else 0
            there[piece] += 1
            # A piece more than the quote has of its kind only widens the stretch.
            while end - places[first][0] > longest or there[places[first][2]] > wanted[places[first][2]]:
                left = places[first][2]
                there[left] -= 1
                held -= len(left) if there[left] < wanted[left] else 0
                first += 1
            if held > best:
                best, found = held, []
            start = places[first][0]
            if held == best and (not found or found[-1][0] != start):
                found.append((start, end))
        return sorted(found, key=lambda place: abs(self.offsets[place[0]] - near))[:_STRETCHES]


# A quote is looked for in many documents.
@lru_cache(maxsize=256)
def _folded(text: str, *, as_shown: bool = True) -> str:
    return QuotableText.of(text, as_shown=as_shown).folded.strip()


def _shown(markup: re.Match[str]) -> str:
    """What a reader sees of a piece of markup."""
    found = markup[0]
    if found[0] == "&":
        return html.unescape(found)
    return " " if found[0] in "|\n" else ""


def _characters(text: str) -> Iterator[tuple[int, str]]:
    """The characters that a reader sees, each with the position of what it is made of."""
    at = 0
    for markup in _MARKUP.finditer(text):
        yield from enumerate(text[at : markup.start()], start=at)
        yield from ((markup.start(), character) for character in _shown(markup))
        at = markup.end()
    yield from enumerate(text[at:], start=at)


def _positions(piece: str, text: str) -> Iterator[int]:
    at = text.find(piece)
    while at != -1:
        yield at
        at = text.find(piece, at + len(piece))
