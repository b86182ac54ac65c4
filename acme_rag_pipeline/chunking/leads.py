"""What a chunk that begins inside a table needs beside its text: the row that names the table's columns."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from acme_rag_pipeline.chunking.blocks import Block
from acme_rag_pipeline.chunking.tokens import TokenCounter
from acme_rag_pipeline.documents.lines import line_starts

# With a chunk of 224 and two special tokens, all that MiniLM reads.
LEAD_TOKENS = 30


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
    known: dict[int, tuple[int, str]] = {}
    found: list[str] = []
    for start in starts:
        number = bisect_right(begins, start) - 1
        if number < 0 or start >= tables[number].end:
            found.append("")
            continue
        if number not in known:
            known[number] = _header(text, tables[number])
        end, header = known[number]
        found.append(header if start >= end else "")
    short = {header: _shortened(header, counter) for header in {*found} if header}
    return [short.get(header, "") for header in found]


def _tables(blocks: Sequence[Block]) -> Iterator[Block]:
    for block in blocks:
        if block.kind == "table":
            yield block
        else:
            yield from _tables(block.children)


def _header(text: str, table: Block) -> tuple[int, str]:
    """Return the end of the header row and what it says; empty: it names nothing."""
    end = [*line_starts(text, table.start, table.end), table.end][1]
    # A table in a quotation has its marks before each row.
    row = " ".join(text[table.start : end].lstrip("> \t").split())
    return end, row if any(map(str.isalnum, row)) else ""


def _shortened(header: str, counter: TokenCounter) -> str:
    [offsets] = counter.token_offsets([header])
    if len(offsets) <= LEAD_TOKENS:
        return header
    most = header[: offsets[LEAD_TOKENS][0]]
    words = most[: most.rfind(" ")] if " " in most else ""
    # Before the first word without end, as scripts without spaces have them, may stand nothing but a bar.
    return words if any(map(str.isalnum, words)) else most
