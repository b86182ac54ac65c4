"""The block structure of a document: headings, paragraphs, lists, tables, fences as exact character ranges.

Markdown is read by a CommonMark parser (markdown-it-py, with GitHub tables), of which only the line ranges are used:
every range is a slice of the original text. What the parser leaves out (link definitions, levels nested too deeply)
becomes a block of kind `other`, so that no text is lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from acme_rag_pipeline.documents.headings import headings
from acme_rag_pipeline.documents.lines import front_matter_end, line_starts
from acme_rag_pipeline.documents.titles import plain_title

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

# Of code, examples, side notes, quotes and tables in AsciiDoc.
_DELIMITER = re.compile(r"(?:([-.+/=*_])\1{3,}|[|,:!]={3,}|--)")

# Characters. A paragraph in the style of a heading says more, and would be the context of all that follows it.
_LONGEST_TITLE = 200

_KINDS = {
    "heading_open": "heading",
    "paragraph_open": "paragraph",
    "bullet_list_open": "list",
    "ordered_list_open": "list",
    "list_item_open": "item",
    "blockquote_open": "quote",
    "table_open": "table",
    "fence": "fence",
    "code_block": "code",
    "html_block": "html",
    "hr": "rule",
}
_CONTAINERS = {"list", "item", "quote"}


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a document: `text[start:end]`, with the blocks inside it.

    Attributes:
        start: First character (index into the text).
        end: One past the last character; may include trailing blank lines.
        kind: heading, paragraph, list, item, quote, table, fence, code, html, rule or other.
        level: 1 to 6 for a heading that opens a section (one with a title of at most 200 characters, at the top level of the
            document), else 0.
        title: The plain text of such a heading.
        children: The blocks of a list, list item or quote, which together cover it, or the paragraphs that belong together.
    """

    start: int
    end: int
    kind: str
    level: int = 0
    title: str = ""
    children: tuple[Block, ...] = ()


def markdown_blocks(text: str, *, raw_html: bool = True) -> list[Block]:
    """Return the top-level blocks of a Markdown document in order, the front matter of a Markdown file left out.

    Args:
        text: of the document.
        raw_html: whether it is a Markdown file, where a tag may begin a block of HTML. In what became Markdown from HTML or DOCX
            a tag is something that is spoken of, and what stands between two rules at the top is text.
    """
    start = front_matter_end(text) if raw_html else 0
    # A byte order mark would hide a heading in the first line from the parser.
    bom = 1 if start == 0 and text.startswith("\ufeff") else 0
    tokens = _block_parser(raw_html).parse(text[start + bom :])
    lines = [start, *line_starts(text, start + bom, len(text))[1:], len(text)]
    children, _ = _read_nodes(tokens, 0, lines)
    return list(_cover(text, start, len(text), children))


def plain_blocks(text: str, format: str = "text") -> list[Block]:
    """Return the blocks of a text that is not Markdown: paragraphs, which blank lines separate.

    In reStructuredText and AsciiDoc headings too; a paragraph there holds the indented ones below it, as a directive or the
    end of a sentence with `::` has them, or all up to the line that closes a delimited block.

    Args:
        format: 'rst', 'asciidoc', or any other that is no Markdown.
    """
    found: list[Block] = []
    cursor = 0
    for heading in headings(text, format):
        found += _paragraphs(text, cursor, heading.start, format)
        level = heading.level if len(heading.title) <= _LONGEST_TITLE else 0
        found.append(Block(heading.start, heading.end, "heading", level, heading.title))
        cursor = heading.end
    return [*found, *_paragraphs(text, cursor, len(text), format)]


def _paragraphs(text: str, start: int, end: int, format: str) -> Iterator[Block]:
    parts: list[Block] = []
    delimiter = ""
    for first, last in stanzas(text, start, end):
        goes_on = bool(delimiter) or (format == "rst" and text[first].isspace())
        if parts and not goes_on:
            yield _joined(parts)
            parts = []
        parts.append(Block(first, last, "paragraph"))
        if format == "asciidoc":
            delimiter = _open_delimiter(text[first:last], delimiter)
    if parts:
        yield _joined(parts)


def _joined(parts: Sequence[Block]) -> Block:
    return parts[0] if len(parts) == 1 else Block(parts[0].start, parts[-1].end, "other", children=tuple(parts))


def _open_delimiter(stanza: str, delimiter: str) -> str:
    """Return the line that closes the delimited block that is open after a stanza; empty: none is open."""
    for line in map(str.rstrip, stanza.splitlines()):
        if delimiter:
            delimiter = "" if line == delimiter else delimiter
        elif _DELIMITER.fullmatch(line):
            delimiter = line
    return delimiter


def stanzas(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of `text[start:end]` that blank lines separate."""
    first: int | None = None
    lines = [*line_starts(text, start, end), end]
    for line, following in pairwise(lines):
        if not text[line:following].strip():
            if first is not None:
                yield first, line
            first = None
        elif first is None:
            first = line
    if first is not None:
        yield first, end


@lru_cache(maxsize=2)
def _block_parser(raw_html: bool) -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark").enable("table")
    if not raw_html:
        parser.disable("html_block")
    parser.core.ruler.enableOnly(["normalize", "block"])
    return parser


def _read_nodes(tokens: Sequence[Token], index: int, lines: list[int]) -> tuple[list[Block], int]:
    """Read sibling blocks from `tokens[index]` to the end of their parent; return them and the index after it."""
    nodes: list[Block] = []
    while index < len(tokens):
        token = tokens[index]
        if token.nesting == -1:
            return nodes, index + 1
        kind = _KINDS.get(token.type)
        index += 1
        if kind is None or token.map is None:
            continue
        start, end = lines[token.map[0]], lines[min(token.map[1], len(lines) - 1)]
        children: list[Block] = []
        level, title = 0, ""
        if kind in _CONTAINERS:
            children, index = _read_nodes(tokens, index, lines)
        elif token.nesting == 1:
            if kind == "heading" and token.level == 0:
                title = plain_title(tokens[index].content)
                # An empty line in the style of a heading opens no section, or it would end the one that it stands in.
                level = int(token.tag[1]) if 0 < len(title) <= _LONGEST_TITLE else 0
            while not (tokens[index].nesting == -1 and tokens[index].level == token.level):
                index += 1
            index += 1
        nodes.append(Block(start, end, kind, level, title, tuple(children)))
    return nodes, index


def _cover(text: str, start: int, end: int, nodes: Sequence[Block]) -> Iterator[Block]:
    """Yield the nodes, trimmed to `start..end`, with blocks of kind `other` for the text between them."""
    cursor = start
    for node in nodes:
        first, last = max(node.start, cursor), min(node.end, end)
        if last <= first:
            continue
        if text[cursor:first].strip():
            yield Block(cursor, first, "other")
        children = tuple(_cover(text, first, last, node.children)) if node.children else ()
        yield Block(first, last, node.kind, node.level, node.title, children)
        cursor = last
    if text[cursor:end].strip():
        yield Block(cursor, end, "other")
