"""Pictures that are written out in Markdown: base64, and the paths of an SVG drawing."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from operator import itemgetter

# A picture whose bytes stand in the text, as exports of word processors write it, with the markup around the bytes. A small
# icon is shorter and may stay.
_PICTURE = re.compile(
    r"""(?:<img\b[^<>]{0,300}?["']|\[[^\[\]\r\n]{1,200}\]:[ \t]{0,8}<?|\(<?)?"""
    r"""(?P<bytes>data:image/[^\s,<>"'()]{1,100},[^\s<>"'()]{64,})"""
    r"""(?:["'][^<>]{0,300}>|>?(?:[ \t]{1,8}"[^"\r\n]{0,300}")?\)?)""",
    re.IGNORECASE,
)
# With something drawn in it: what is told of a tag ("close it with `</svg>`") must not take the text up to there along.
_DRAWING = re.compile(r"(?<!`)<svg\b[^<>]*(?<!/)>(?=\s*<)", re.IGNORECASE)
_DRAWING_END = re.compile(r"</svg\s{0,10}>", re.IGNORECASE)
_SMALL_DRAWING = 200
_LABEL = re.compile(r"<(title|desc|text)\b[^<>]{0,1000}>(?P<words>[^<>]*)</\1\s{0,10}>", re.IGNORECASE)
# Of one word they would be passages that say nothing.
_TWO_WORDS = re.compile(r"\w\s+\w")
# Also within lists and quotations.
_FENCE = re.compile(r"^[ \t>]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)?(`{3,}|~{3,})", re.MULTILINE)

Range = tuple[int, int]


def pictures(text: str, *, raw_html: bool) -> tuple[list[Range], list[Range]]:
    """Ranges of a Markdown text that say nothing, and the same with the markup around them; in order, none in another.

    Args:
        text: of the document.
        raw_html: whether a tag is a tag, as in a Markdown file, and not something that is spoken of.
    """
    drawn = list(_drawings(text)) if raw_html else []
    spelled = [picture for picture in _PICTURE.finditer(text) if not _stands_in(drawn, picture.start())]
    inside = sorted([*drawn, *(picture.span("bytes") for picture in spelled)])
    around = sorted([*drawn, *(picture.span() for picture in spelled)])
    return inside, around


def blanked(text: str, ranges: Sequence[Range]) -> str:
    """The text with spaces in the place of the ranges, which weigh nothing and leave every position as it is."""
    parts: list[str] = []
    done = 0
    for start, end in ranges:
        parts += [text[done:start], re.sub(r"[^\r\n]", " ", text[start:end])]
        done = end
    return "".join([*parts, text[done:]])


def _drawings(text: str) -> Iterator[Range]:
    """Yield what lies around the labels of the drawings that are none of a block of code."""
    done, fences = 0, _fences(text) if _DRAWING.search(text) else []
    for opening in _DRAWING.finditer(text):
        start = opening.start()
        if start < done or _stands_in(fences, start):
            continue
        closing = _DRAWING_END.search(text, start)
        if closing is None:
            return
        done = closing.end()
        if done - start < _SMALL_DRAWING:
            continue
        found = [label.span("words") for label in _LABEL.finditer(text, start, done)]
        labels = [label for label in found if _TWO_WORDS.search(text, *label)]
        edges = [start, *(edge for label in labels for edge in label), done]
        yield from list(pairwise(edges))[::2]


def _stands_in(ranges: Sequence[Range], position: int) -> bool:
    """Whether a position is in one of the ranges, which are in order and do not overlap."""
    number = bisect_right(ranges, position, key=itemgetter(0)) - 1
    return number >= 0 and position < ranges[number][1]


def _fences(text: str) -> list[Range]:
    found: list[Range] = []
    mark, start = "", 0
    for fence in _FENCE.finditer(text):
        if not mark:
            mark, start = fence[1], fence.start()
        elif fence[1].startswith(mark):
            found.append((start, fence.end()))
            mark = ""
    return [*found, (start, len(text))] if mark else found
