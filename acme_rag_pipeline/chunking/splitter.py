"""Splitting a document into chunks that survive edits elsewhere in it.

Method: the document is cut into pieces (its Markdown blocks; a block that is too large is cut further), and neighbours
are joined, the weakest boundary first, while they fit into a chunk together (`packing`). How weak a boundary is, is a
matter of the text right behind it alone: its depth in the block structure, then a hash. So an edit changes the order of
the joins around it and nowhere else. Chunks of different sections are joined only if one of them is very small and the
sections are neighbours in the outline.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import itemgetter

from acme_rag_pipeline.chunking.blocks import markdown_blocks, plain_blocks
from acme_rag_pipeline.chunking.fragments import torn
from acme_rag_pipeline.chunking.leads import leads
from acme_rag_pipeline.chunking.packing import pack
from acme_rag_pipeline.chunking.pictures import blanked, pictures
from acme_rag_pipeline.chunking.pieces import HEAD_TOKENS, Piece, Section, cut_pieces
from acme_rag_pipeline.chunking.tokens import TokenCounter

SPLITTER_VERSION = "splitter-8"  # bump with every change of a span

# Their text is Markdown; in the others a `#` or an indentation means nothing.
MARKDOWN_FORMATS = {"markdown", "html", "docx"}

_SMALL_SECTION_TOKENS = 100
_TINY_TOKENS = 40
LEAST_TOKENS = 16

_Order = tuple[float, bytes, bytes]


@dataclass(frozen=True, slots=True)
class Span:
    """A chunk: `text[start:end]`, exact, without surrounding whitespace.

    Attributes:
        start: First character (index into the parsed text).
        end: One past the last character.
        heading_path: Titles from the outermost heading down to the section of the chunk's first block that is not a
            heading; plain text without markup; empty above the first heading.
        tokens: Length of `text[start:end]`, special tokens left out.
        lead: The header row of the table that the chunk begins inside of; else empty.
    """

    start: int
    end: int
    heading_path: tuple[str, ...]
    tokens: int
    lead: str = ""


def split(text: str, counter: TokenCounter, *, max_tokens: int = 224, format: str = "markdown") -> list[Span]:
    """Split a document into chunks.

    The spans are ordered, disjoint and not blank, and hold every visible character of the text but front matter and, in
    Markdown, pictures that are written out as base64 or SVG.

    Args:
        text: The parsed text of the document.
        counter: Counts tokens as the passage encoder does.
        max_tokens: No span is longer, special tokens left out.
        format: Of the document. In 'rst' and 'asciidoc' only headings are known, in plain text and PDF nothing but paragraphs.

    Raises:
        ValueError: `max_tokens` is below 16.
    """
    if max_tokens < LEAST_TOKENS:
        raise ValueError(f"max_tokens must be at least {LEAST_TOKENS}, got {max_tokens}")
    markdown = format in MARKDOWN_FORMATS
    inside, around = pictures(text, raw_html=format == "markdown") if markdown else ([], [])
    seen = blanked(text, inside)
    blocks = markdown_blocks(seen, raw_html=format == "markdown") if markdown else plain_blocks(seen, format)
    pieces, sections = cut_pieces(seen, blocks, counter, max_tokens)
    spans: list[tuple[int, int, tuple[str, ...]]] = []
    for first, last in _groups(seen, pieces, sections, max_tokens):
        members = pieces[first : last + 1]
        section = next((piece.section for piece in members if not piece.is_heading), members[-1].section)
        start, end = _trimmed(seen, members[0].start, members[-1].end)
        spans += [(*part, sections[section].path) for part in _around(text, start, end, around)]
    found = list(_within(text, counter, spans, max_tokens))
    of_chunks = leads(seen, blocks, counter, [span.start for span in found])
    return [replace(span, lead=lead) for span, lead in zip(found, of_chunks, strict=True)]


def _around(text: str, start: int, end: int, around: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield what of `start..end` stands between the pictures, if it says anything."""
    inside = around[bisect_right(around, start, key=itemgetter(1)) : bisect_left(around, end, key=itemgetter(0))]
    if not inside:
        yield start, end
        return
    for first, last in [*inside, (end, end)]:
        if any(map(str.isalnum, text[start:first])):
            yield _trimmed(text, start, first)
        start = max(start, last)


def _groups(text: str, pieces: Sequence[Piece], sections: Sequence[Section], limit: int) -> list[tuple[int, int]]:
    """Return the (first, last) pieces of each chunk: first within the sections, then very small sections together."""
    opening = [number for number, piece in enumerate(pieces) if piece.opens_section or number == 0]
    groups = [
        (start + first, start + last)
        for start, end in pairwise([*opening, len(pieces)])
        for first, last in _groups_of_section(text, pieces[start:end], limit)
    ]
    heads = [number for number, (first, _) in enumerate(groups) if number and pieces[first].opens_section]
    heads.sort(key=lambda number: _join_order(text, pieces[groups[number][0]]))

    whole = [
        (first == 0 or pieces[first].opens_section) and (last + 1 == len(pieces) or pieces[last + 1].opens_section)
        for first, last in groups
    ]

    def is_small_neighbour(number: int, left_weight: int, right_weight: int) -> bool:
        before, after = pieces[groups[number - 1][1]].section, pieces[groups[number][0]].section
        is_child_or_sibling = sections[after].parent in (before, sections[before].parent)
        return is_child_or_sibling and (
            (left_weight < _SMALL_SECTION_TOKENS and whole[number - 1])
            or (right_weight < _SMALL_SECTION_TOKENS and whole[number])
        )

    weights = [sum(piece.weight for piece in pieces[first : last + 1]) for first, last in groups]
    joined = pack(weights, heads, limit, is_small_neighbour)
    return [(groups[first][0], groups[last][1]) for first, last in joined]


def _groups_of_section(text: str, pieces: Sequence[Piece], limit: int) -> list[tuple[int, int]]:
    """Return the (first, last) pieces of each chunk of a section.

    The head of the section (its heading and what small pieces follow) takes no part in the packing: a line that is
    inserted at the top goes there, and at most the first chunk is halved for it.
    """
    weights = [piece.weight for piece in pieces]
    orders = [_join_order(text, piece) for piece in pieces]
    head = _head(pieces, weights, orders, limit)
    order = sorted(range(1, len(pieces) - head), key=lambda number: (orders[head + number], number))
    groups = [(head + first, head + last) for first, last in pack(weights[head:], order, limit)]

    def halves(first: int, last: int, start: int) -> list[tuple[int, int]]:
        """Cut at the strongest boundary from `start` on that leaves two groups, if possible none of them tiny."""
        total, left, cuts, even = sum(weights[first : last + 1]), sum(weights[first:start]), [], []
        for cut in range(start, last + 1):
            if left <= limit and total - left <= limit:
                cuts.append(cut)
                if min(left, total - left) >= HEAD_TOKENS:
                    even.append(cut)
            left += weights[cut]
        cut = max(even or cuts, key=lambda number: (orders[number], number), default=0)
        return [(first, cut - 1), (cut, last)] if cut else []

    for number, (first, last) in enumerate(groups):
        if len(groups) > 1 and sum(weights[first : last + 1]) < _TINY_TOKENS:
            # It fits to neither neighbour; a neighbour gives it something.
            left = max(number - 1, 0)
            pair = groups[left][0], groups[left + 1][1]
            groups[left : left + 2] = halves(*pair, pair[0] + 1) or groups[left : left + 2]
    if not head:
        return groups
    if not groups:
        return [(0, head - 1)]
    last = groups[0][1]
    if sum(weights[: last + 1]) <= limit:
        return [(0, last), *groups[1:]]
    return [*(halves(0, last, head + 1) or [(0, head - 1), groups[0]]), *groups[1:]]


def _head(pieces: Sequence[Piece], weights: Sequence[int], orders: Sequence[_Order], limit: int) -> int:
    """Return how many pieces are the head of a section: the headings, and on to the strongest boundary close by."""
    heading = next((number for number, piece in enumerate(pieces) if not piece.is_heading), len(pieces))
    if heading == len(pieces) or sum(weights[:heading]) > limit:
        return 0
    ends, weight = [heading], sum(weights[:heading])
    while ends[-1] + 1 < len(pieces) and weight + weights[ends[-1]] <= HEAD_TOKENS:
        weight += weights[ends[-1]]
        ends.append(ends[-1] + 1)
    return max(ends, key=lambda end: (orders[end], end))


def _join_order(text: str, piece: Piece) -> _Order:
    """Order the boundaries before pieces: by strength, then by a hash of what follows.

    First its opening words, which survive edits further on; then more, to tell repeated openings apart.
    """
    opening, more = (
        hashlib.sha256(text[piece.start : piece.start + length].encode("utf-8", "surrogatepass")).digest()[:8]
        for length in (32, 256)
    )
    return piece.strength, opening, more


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    content = text[start:end]
    return start + len(content) - len(content.lstrip()), end - len(content) + len(content.rstrip())


def _within(
    text: str, counter: TokenCounter, spans: Sequence[tuple[int, int, tuple[str, ...]]], max_tokens: int
) -> Iterator[Span]:
    """Yield the spans with their exact length; halve those whose tokens were more than the sum of their pieces'."""
    counts = counter.counts([text[start:end] for start, end, _ in spans])
    for (start, end, path), count in zip(spans, counts, strict=True):
        if count <= max_tokens or end - start < 2:
            yield Span(start, end, path, count)
            continue
        [offsets] = counter.token_offsets([text[start:end]])
        middle = start + offsets[len(offsets) // 2][0]
        cut = next((i for i in range(middle, start, -1) if not torn(text, i)), (start + end) // 2)
        halves = [_trimmed(text, a, b) for a, b in ((start, cut), (cut, end)) if text[a:b].strip()]
        yield from _within(text, counter, [(a, b, path) for a, b in halves], max_tokens)
