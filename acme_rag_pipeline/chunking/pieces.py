"""The pieces that chunks are made of: the blocks of a document, cut where they are too large for one chunk."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from acme_rag_pipeline.chunking.blocks import Block
from acme_rag_pipeline.chunking.fragments import fragments
from acme_rag_pipeline.chunking.tokens import TokenCounter

HEAD_TOKENS = 64  # about what may stand at the top of a section before its body begins

_CHARACTERS_PER_TOKEN = 10  # a word without end is one unknown token: characters bound the length of a chunk, too
_MAX_INDENTATION = 40  # of a line of code; deeper is as deep

_CODE = {"fence", "code", "html", "stanza"}

_MAX_HEADLINE = 200  # characters of a paragraph that stands above a text as a heading does
_BOLD = re.compile(r"(\*\*|__)(?!\s)(?:(?!\1).)+\1[:：.]?")

# The strength of the boundary before a piece; weaker boundaries are joined first. Inside a block: minus its depth.
_IN_TABLE_HEAD = -1000.0
_AFTER_LEAD_IN = -500.0  # "The steps are:" and its list, "**May I ...?**" and its answer
_BETWEEN_BLOCKS = 0.0
_BEFORE_HEADING = 10.0  # minus the level: deeper sections are joined first


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the outline.

    Attributes:
        parent: Number of the section it stands in; None for the root, which holds what precedes the first heading.
        level: Level of its heading; 0 for the root.
        path: Titles from the outermost heading down to its own.
    """

    parent: int | None
    level: int
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the document that is not cut any further: `text[start:end]`, with its trailing whitespace.

    Attributes:
        start: First character.
        end: One past the last character.
        weight: Tokens, or more where the text is long for its tokens.
        strength: Of the boundary before the piece; the weaker, the sooner it is joined to what precedes it.
        section: Number of the section it stands in.
        is_heading: It is a heading, or a part of one.
        opens_section: A heading that begins a section, and does not directly follow the heading of its parent.
    """

    start: int
    end: int
    weight: int
    strength: float
    section: int
    is_heading: bool
    opens_section: bool


def cut_pieces(
    text: str, blocks: Sequence[Block], counter: TokenCounter, max_tokens: int
) -> tuple[list[Piece], list[Section]]:
    """Cut the blocks of a document into pieces of at most `max_tokens`.

    Returns:
        The pieces that are not blank, in order, and the sections that they refer to by number.
    """
    cutter = _Cutter(text, blocks, counter, max_tokens)
    sections = [Section(None, 0, ())]
    pieces: list[Piece] = []
    previous: Block | None = None
    heading_weight = 0  # of the headings directly before the block
    for block in blocks:
        strength, opens_section, limit = _BETWEEN_BLOCKS, False, max_tokens
        follows_heading = previous is not None and previous.level > 0
        if block.level:
            sections.append(_open_section(sections, block))
            opens_section = not (previous and 0 < previous.level < block.level)
            if opens_section:
                strength, heading_weight = _BEFORE_HEADING - block.level, 0
            heading_weight += cutter.weigh(block.start, block.end)
        elif follows_heading and heading_weight <= HEAD_TOKENS and block.kind not in ("table", "fence"):
            limit = max(1, max_tokens - heading_weight)  # or the heading would be left alone
        elif previous and _leads_in(text, previous, block):
            strength = _AFTER_LEAD_IN
        previous = block
        for number, (start, end, weight, inner_strength) in enumerate(cutter.cut(block, limit)):
            pieces.append(
                Piece(
                    start=start,
                    end=end,
                    weight=weight,
                    strength=inner_strength if number else strength,
                    section=len(sections) - 1,
                    is_heading=block.level > 0,
                    opens_section=opens_section and not number,
                )
            )
    return pieces, sections


class _Cutter:
    """Weighs parts of a document and cuts its blocks, after one tokenisation of all of them."""

    def __init__(self, text: str, blocks: Sequence[Block], counter: TokenCounter, max_tokens: int) -> None:
        self._text = text
        self._counter = counter
        self._max_tokens = max_tokens
        offsets = counter.token_offsets([text[block.start : block.end] for block in blocks])
        self._token_starts = [
            block.start + start for block, tokens in zip(blocks, offsets, strict=True) for start, _ in tokens
        ]

    def weigh(self, start: int, end: int) -> int:
        """Return the tokens of `text[start:end]` inside its block, or a tenth of its visible characters if more."""
        tokens = bisect_left(self._token_starts, end) - bisect_left(self._token_starts, start)
        if end - start <= tokens * _CHARACTERS_PER_TOKEN:
            return tokens
        visible = sum(map(len, self._text[start:end].split()))
        return max(tokens, visible // _CHARACTERS_PER_TOKEN)

    def cut(self, block: Block, limit: int) -> Iterator[tuple[int, int, int, float]]:
        """Yield (start, end, weight, strength of the boundary before it) of each piece of a block.

        A block within the limit is one piece. A larger one is cut into its children, or a step finer by
        `fragments`, and so on while a part is larger than a chunk.
        """
        todo: list[tuple[Block, float, int]] = [(block, 0.0, 0)]
        while todo:
            part, strength, depth = todo.pop()
            if not self._text[part.start : part.end].strip():
                continue
            weight = self.weigh(part.start, part.end)
            if weight <= (limit if part is block else self._max_tokens):
                yield part.start, part.end, weight, strength
                continue
            children: Sequence[Block] = part.children
            if not children:
                kind, ranges = fragments(self._text, part.start, part.end, part.kind)
                children = [Block(start, end, kind) for start, end in ranges]
                if kind == "character":
                    yield from self._characters(children, strength, depth)
                    continue
            for number in range(len(children) - 1, -1, -1):
                inner = self._strength_inside(part, number, children[number]) - depth
                todo.append((children[number], inner if number else strength, depth + 1))

    def _characters(self, parts: Sequence[Block], strength: float, depth: int) -> Iterator[tuple[int, int, int, float]]:
        # Cut off from its word, a fragment has other tokens than it had inside.
        counts = self._counter.counts([self._text[part.start : part.end] for part in parts])
        for number, (part, count) in enumerate(zip(parts, counts, strict=True)):
            if not self._text[part.start : part.end].strip():
                continue
            weight = max(count, (part.end - part.start) // _CHARACTERS_PER_TOKEN)
            yield part.start, part.end, weight, -1.0 - depth if number else strength

    def _strength_inside(self, parent: Block, number: int, child: Block) -> float:
        if parent.kind == "table" and number in (1, 2):
            return _IN_TABLE_HEAD  # the head of a table, the line below it and the first row stay together
        if child.kind == "line" and parent.kind in _CODE:
            return -1.0 - _line_depth(self._text[child.start : child.end])
        return -1.0


def _open_section(sections: Sequence[Section], heading: Block) -> Section:
    parent = len(sections) - 1
    while sections[parent].level >= heading.level:
        above = sections[parent].parent
        assert above is not None  # the root has level 0
        parent = above
    path = sections[parent].path
    return Section(parent, heading.level, (*path, heading.title))


def _leads_in(text: str, block: Block, following: Block) -> bool:
    """Whether a paragraph says nothing without what follows: an announcement, a question or a line in bold above its text."""
    if block.kind != "paragraph" or following.kind == "rule":
        return False
    content = text[block.start : block.end].strip()
    if content.endswith((":", "：")) and following.kind != "paragraph":
        return True
    if len(content) > _MAX_HEADLINE or len(content.splitlines()) > 1:
        return False
    return bool(_BOLD.fullmatch(content)) or content.rstrip("*_").endswith(("?", "？"))


def _line_depth(line: str) -> float:
    """Return how deep a line of code or HTML is nested, from 0 to 2/3; a line that closes something is deeper."""
    code = line.lstrip()
    depth = min(len(line) - len(code), _MAX_INDENTATION)
    if code.startswith(("}", ")", "]", "</")):
        depth += _MAX_INDENTATION
    return depth / (3 * _MAX_INDENTATION)
