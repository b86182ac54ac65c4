"""What a chunk that begins inside a table needs beside its text: the row that names the table's columns."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from acme_rag_pipeline.chunking.blocks import Block
from acme_rag_pipeline.chunking.tokens import TokenCounter

# With a chunk of 224 and two special tokens, all that MiniLM reads.
LEAD_TOKENS = 30
_QUOTED = re.compile(r"[>\s]*")


def leads(text: str, blocks: Sequence[Block], counter: TokenCounter, starts: Iterable[int]) -> list[str]:
    """Return for each start of a chunk the header row of the table that it begins inside of; empty: of none.

    The row stands on one line, is cut behind a word where it has more than `LEAD_TOKENS`, and is empty where it names nothing.

    Args:
        text: The document.
        blocks: Of the document.
        counter: Counts tokens as the passage encoder does.
        starts: First characters of chunks.
    """
    tables = list(_tables(blocks))
    begins = [table.start for table in tables]
    known: dict[int, str] = {}
    found: list[str] = []
    for start in starts:
        number = bisect_right(begins, start) - 1
        if number < 0 or start >= tables[number].end:
            found.append("")
            continue
        if number not in known:
            known[number] = _header(text, tables[number])
        found.append(known[number] if start >= _behind_header(text, tables[number]) else "")
    short = {header: _shortened(header, counter) for header in {*found} if header}
    return [short.get(header, "") for header in found]


def _tables(blocks: Sequence[Block]) -> Iterator[Block]:
    for block in blocks:
        if block.kind == "table":
            yield block
        else:
            yield from _tables(block.children)


def _behind_header(text: str, table: Block) -> int:
    lines = text[table.start : table.end].splitlines(keepends=True)
    return table.start + len(lines[0])


def _header(text: str, table: Block) -> str:
    # A table in a quotation has its marks before each row.
    row = text[table.start : _behind_header(text, table)]
    row = " ".join(row[_QUOTED.match(row).end() :].split())  # type: ignore[union-attr]
    return row if any(map(str.isalnum, row)) else ""


def _shortened(header: str, counter: TokenCounter) -> str:
    [offsets] = counter.token_offsets([header])
    if len(offsets) <= LEAD_TOKENS:
        return header
    end = offsets[LEAD_TOKENS][0]
    return header[: header.rfind(" ", 0, end)] if " " in header[:end] else header[:end]
