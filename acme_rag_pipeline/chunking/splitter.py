"""Splitting a document into chunks that survive edits elsewhere in it.

Method: the document is cut into pieces (its Markdown blocks; a block that is too large is cut further), and neighbours
are joined, the weakest boundary first, while they fit into a chunk together. How weak a boundary is, is a matter of the
text right behind it alone: its depth in the block structure, then a hash. So an edit changes the order of the joins
around it and nowhere else, and its effect fades within a chunk or two, where a greedy packing from the top moves every
later chunk. (It is random sequential packing: measured on random blocks, chunks are 71 % full in the mean.)
Chunks of different sections are joined only if one of them is very small and they are neighbours in the outline.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from acme_rag_pipeline.chunking.blocks import Block, markdown_blocks, plain_blocks
from acme_rag_pipeline.chunking.fragments import fragments, torn
from acme_rag_pipeline.chunking.packing import pack
from acme_rag_pipeline.chunking.tokens import TokenCounter

SPLITTER_VERSION = "splitter-1"  # bump with every change that moves a span

_SMALL_SECTION_TOKENS = 60
_HEAD_TOKENS = 64
_MAX_INDENTATION = 40  # of code; deeper is as deep
_CHARACTERS_PER_TOKEN = 10  # a word without end is one unknown token: characters bound the length of a chunk, too
_MIN_MAX_TOKENS = 16

# The strength of the boundary before a piece; weaker boundaries are joined first. Inside a block: minus its depth.
_IN_TABLE_HEAD = -1000.0
_AFTER_LEAD_IN = -0.5  # "The steps are:" and its list
_BETWEEN_BLOCKS = 0.0
_BEFORE_HEADING = 10.0  # minus the level: deeper sections are joined first


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
    """

    start: int
    end: int
    heading_path: tuple[str, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class _Section:
    parent: int | None
    level: int
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Piece:
    start: int
    end: int
    weight: int
    strength: float
    section: int
    is_heading: bool
    opens_section: bool = False


def split(text: str, counter: TokenCounter, *, max_tokens: int = 224, markdown: bool = True) -> list[Span]:
    """Split a document into chunks.

    The spans are ordered, disjoint and not blank, and hold every visible character of the text but YAML front matter.

    Args:
        text: The parsed text of the document.
        counter: Counts tokens as the passage encoder does.
        max_tokens: No span is longer, special tokens left out.
        markdown: False for plain text: no headings, no front matter, paragraphs only.

    Raises:
        ValueError: `max_tokens` is below 16.
    """
    if max_tokens < _MIN_MAX_TOKENS:
        raise ValueError(f"max_tokens must be at least {_MIN_MAX_TOKENS}, got {max_tokens}")
    blocks = markdown_blocks(text) if markdown else plain_blocks(text)
    sections = [_Section(None, 0, ())]
    pieces = list(_Cutter(text, counter, blocks, max_tokens).pieces(blocks, sections))
    spans: list[tuple[int, int, tuple[str, ...]]] = []
    for first, last in _groups(text, pieces, sections, max_tokens):
        members = pieces[first : last + 1]
        section = next((piece.section for piece in members if not piece.is_heading), members[-1].section)
        spans.append((*_trimmed(text, members[0].start, members[-1].end), sections[section].path))
    return list(_within(text, counter, spans, max_tokens))


class _Cutter:
    """Cuts blocks into pieces that fit into a chunk."""

    def __init__(self, text: str, counter: TokenCounter, blocks: Sequence[Block], max_tokens: int) -> None:
        self._text = text
        self._counter = counter
        self._max_tokens = max_tokens
        offsets = counter.token_offsets([text[block.start : block.end] for block in blocks])
        self._token_starts = [
            block.start + start for block, tokens in zip(blocks, offsets, strict=True) for start, _ in tokens
        ]

    def pieces(self, blocks: Sequence[Block], sections: list[_Section]) -> Iterator[_Piece]:
        """Yield the pieces of all blocks in order; append the sections that the headings open to `sections`."""
        previous: Block | None = None
        head_weight = 0  # of the section so far
        for block in blocks:
            strength, opens_section, limit = _BETWEEN_BLOCKS, False, self._max_tokens
            weight = self._weight(block.start, block.end)
            if block.level:
                sections.append(_open_section(sections, block))
                opens_section = not (previous and 0 < previous.level < block.level)
                if opens_section:
                    strength, head_weight = _BEFORE_HEADING - block.level, 0
            elif len(sections) > 1 and head_weight <= _HEAD_TOKENS and block.kind not in ("table", "fence"):
                limit = max(1, limit - head_weight)  # or the heading would be left alone
            if previous and self._leads_in(previous, block):
                strength = _AFTER_LEAD_IN
            head_weight += weight
            previous = block
            for number, (start, end, weight, inner_strength) in enumerate(self._cut(block, limit)):
                yield _Piece(
                    start=start,
                    end=end,
                    weight=weight,
                    strength=inner_strength if number else strength,
                    section=len(sections) - 1,
                    is_heading=block.level > 0,
                    opens_section=opens_section and not number,
                )

    def _leads_in(self, block: Block, following: Block) -> bool:
        text = self._text[block.start : block.end].rstrip()
        return block.kind == "paragraph" and following.kind != "paragraph" and text.endswith((":", "："))

    def _weight(self, start: int, end: int) -> int:
        tokens = bisect_left(self._token_starts, end) - bisect_left(self._token_starts, start)
        if end - start <= tokens * _CHARACTERS_PER_TOKEN:
            return tokens
        visible = sum(map(len, self._text[start:end].split()))
        return max(tokens, visible // _CHARACTERS_PER_TOKEN)

    def _cut(self, block: Block, limit: int) -> Iterator[tuple[int, int, int, float]]:
        """Yield (start, end, weight, strength of the boundary before it) of the pieces of a block."""
        todo: list[tuple[Block, float, int]] = [(block, 0.0, 0)]
        while todo:
            part, strength, depth = todo.pop()
            if not self._text[part.start : part.end].strip():
                continue
            weight = self._weight(part.start, part.end)
            if weight <= (limit if part is block else self._max_tokens):
                yield part.start, part.end, weight, strength
                continue
            children: Sequence[Block] = part.children
            if not children:
                kind, ranges = fragments(self._text, part.start, part.end, part.kind)
                if kind == "character":
                    # Cut off from its word, a fragment has other tokens than it had inside.
                    counts = self._counter.counts([self._text[start:end] for start, end in ranges])
                    for number, ((start, end), count) in enumerate(zip(ranges, counts, strict=True)):
                        yield start, end, count, -(depth + 1.0) if number else strength
                    continue
                children = [Block(start, end, kind) for start, end in ranges]
            for number in range(len(children) - 1, -1, -1):
                inner = self._strength_inside(part, number, children[number]) - depth
                todo.append((children[number], inner if number else strength, depth + 1))

    def _strength_inside(self, parent: Block, number: int, child: Block) -> float:
        if parent.kind == "table" and number in (1, 2):
            return _IN_TABLE_HEAD  # the head of a table, the line below it and the first row stay together
        if child.kind == "line" and parent.kind == "stanza":
            line = self._text[child.start : child.end]
            code = line.lstrip()
            indentation = min(len(line) - len(code), _MAX_INDENTATION) + (
                _MAX_INDENTATION if code[:1] in "})]" or code.startswith("</") else 0
            )
            return -1.0 - indentation / (3 * _MAX_INDENTATION)
        return -1.0


def _open_section(sections: Sequence[_Section], heading: Block) -> _Section:
    parent = len(sections) - 1
    while sections[parent].level >= heading.level:
        above = sections[parent].parent
        assert above is not None  # the root has level 0
        parent = above
    path = sections[parent].path
    return _Section(parent, heading.level, (*path, heading.title) if heading.title else path)


def _groups(text: str, pieces: Sequence[_Piece], sections: Sequence[_Section], limit: int) -> list[tuple[int, int]]:
    """Return the (first, last) pieces of each chunk: first within the sections, then very small sections together."""
    opening = [number for number, piece in enumerate(pieces) if piece.opens_section or number == 0]
    groups = [
        (start + first, start + last)
        for start, end in pairwise([*opening, len(pieces)])
        for first, last in _groups_of_section(text, pieces[start:end], limit)
    ]
    heads = [number for number, (first, _) in enumerate(groups) if number and pieces[first].opens_section]
    heads.sort(key=lambda number: _join_order(text, pieces[groups[number][0]]))

    def are_small_neighbours(number: int, left_weight: int, right_weight: int) -> bool:
        before, after = pieces[groups[number - 1][1]].section, pieces[groups[number][0]].section
        is_child_or_sibling = sections[after].parent in (before, sections[before].parent)
        return is_child_or_sibling and min(left_weight, right_weight) < _SMALL_SECTION_TOKENS

    weights = [sum(piece.weight for piece in pieces[first : last + 1]) for first, last in groups]
    joined = pack(weights, heads, limit, are_small_neighbours)
    return [(groups[first][0], groups[last][1]) for first, last in joined]


def _groups_of_section(text: str, pieces: Sequence[_Piece], limit: int) -> list[tuple[int, int]]:
    """Return the (first, last) pieces of each chunk of a section.

    The head of the section (its heading and what small pieces follow) takes no part in the packing: a line that is
    inserted at the top goes there, and at most the first chunk is halved for it.
    """
    weights = [piece.weight for piece in pieces]
    orders = [_join_order(text, piece) for piece in pieces]
    head = _head(pieces, weights, orders, limit)
    order = sorted(range(1, len(pieces) - head), key=lambda number: (orders[head + number], number))
    groups = [(head + first, head + last) for first, last in pack(weights[head:], order, limit)]
    if not head:
        return groups
    if not groups:
        return [(0, head - 1)]
    last = groups[0][1]
    if sum(weights[: last + 1]) <= limit:
        return [(0, last), *groups[1:]]
    cuts = [cut for cut in range(head + 1, last + 1) if sum(weights[:cut]) <= limit]
    cuts = [cut for cut in cuts if sum(weights[cut : last + 1]) >= _HEAD_TOKENS] or cuts or [head]
    cut = max(cuts, key=lambda number: (orders[number], number))
    return [(0, cut - 1), (cut, last), *groups[1:]]


def _head(pieces: Sequence[_Piece], weights: Sequence[int], orders: Sequence[_Order], limit: int) -> int:
    """Return how many pieces are the head of a section: the headings, and on to the strongest boundary close by."""
    heading = next((number for number, piece in enumerate(pieces) if not piece.is_heading), len(pieces))
    if heading == len(pieces) or sum(weights[:heading]) > limit:
        return 0
    ends, weight = [heading], sum(weights[:heading])
    while ends[-1] + 1 < len(pieces) and weight + weights[ends[-1]] <= _HEAD_TOKENS:
        weight += weights[ends[-1]]
        ends.append(ends[-1] + 1)
    return max(ends, key=lambda end: (orders[end], end))


def _join_order(text: str, piece: _Piece) -> _Order:
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
