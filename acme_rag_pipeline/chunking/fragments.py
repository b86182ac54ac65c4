"""Cutting a block that is too large for one chunk: into stanzas or rows, sentences, lines, words, characters, in that order."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import pairwise

from acme_rag_pipeline.chunking.blocks import stanzas
from acme_rag_pipeline.documents.lines import line_starts

_CHARACTERS_PER_CUT = 32  # pieces of a "word" without end, e.g. base64

# A full stop after a single letter or digit ("U.S. Government", "1. First") ends no sentence; nor does one before a
# lower-case letter ("e.g. this").
_SENTENCE_END = re.compile(
    r"(?<![.\s(][A-Za-z0-9])(?<![.!?…])[.!?…]+[\"'”’»)\]*_]*\s+(?=[^\sa-z])|[。！？]+[”’」』）]*"
)
_WORD = re.compile(r"\S+\s*")
_JOINERS = frozenset("\u200d\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff")

# What a fragment of each kind is cut into when it is itself too large.
_FINER = {
    "paragraph": "sentence",
    "heading": "sentence",
    "item": "sentence",
    "sentence": "line",
    "table": "row",
    "row": "sentence",
    "fence": "stanza",
    "code": "stanza",
    "html": "stanza",
    "other": "stanza",
    "list": "stanza",
    "quote": "stanza",
    "rule": "line",
    "stanza": "line",
    "line": "word",
    "word": "character",
}


def fragments(text: str, start: int, end: int, kind: str) -> tuple[str, list[tuple[int, int]]]:
    """Cut `text[start:end]` one step finer than its kind.

    Args:
        text: The document.
        start: First character of the block or fragment.
        end: One past its last character.
        kind: Kind of a block (`blocks.Block`) or of a fragment returned by this function.

    Returns:
        The kind of the fragments and their ranges, in order, covering `start..end` without a gap. The finest kind,
        `character`, is never longer than 32 characters.
    """
    finer = _FINER[kind]
    cuts = list(_cuts(text, start, end, finer))
    while not cuts and finer != "character":
        finer = _FINER[finer]
        cuts = list(_cuts(text, start, end, finer))
    edges = [start, *cuts, end]
    return finer, list(pairwise(edges))


def torn(text: str, cut: int) -> bool:
    """Say whether a cut before `text[cut]` tears a character from its combining marks or an emoji sequence apart."""
    return text[cut] in _JOINERS or text[cut - 1] == "\u200d" or unicodedata.category(text[cut]).startswith("M")


def _cuts(text: str, start: int, end: int, kind: str) -> Iterator[int]:
    if kind == "character":
        yield from _character_cuts(text, start, end)
        return
    found: Iterable[int]
    if kind == "sentence":
        found = (match.end() for match in _SENTENCE_END.finditer(text, start, end))
    elif kind == "stanza":
        found = (first for first, _ in stanzas(text, start, end))
    elif kind in ("line", "row"):
        found = line_starts(text, start, end)
    else:
        found = (match.start() for match in _WORD.finditer(text, start, end))
    yield from (cut for cut in found if start < cut < end and not torn(text, cut))


def _character_cuts(text: str, start: int, end: int) -> Iterator[int]:
    last = start
    while end - last > _CHARACTERS_PER_CUT:
        cut = last + _CHARACTERS_PER_CUT
        while cut > last and torn(text, cut):
            cut -= 1
        last = cut if cut > last else last + _CHARACTERS_PER_CUT  # nothing but combining marks: cut all the same
        yield last
