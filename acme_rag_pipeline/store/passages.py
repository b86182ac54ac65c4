"""The live passages: the chunks of today as indexes, training and evaluation read them, and how an encoder sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from acme_rag_pipeline.store.warehouse import Warehouse, records

PassagePrefix = Literal["none", "heading_path"]

# Characters: some forty tokens, which stand before the text where a model reads both.
MAX_HEADING_LINE = 200
_SEPARATOR = " > "


@dataclass(frozen=True, slots=True)
class LivePassage:
    """One chunk of today, with its place in the document and its place in the experiment.

    `lead` is the header row of the table that the text begins inside of: encoders and BM25 read it before the text.
    """

    chunk_id: str
    doc_path: str
    start_char: int
    end_char: int
    title: str
    heading_path: tuple[str, ...]
    text: str
    near_duplicate_group: str
    unit: str
    side: str
    lead: str = ""

    def rendered(self, prefix: PassagePrefix) -> str:
        """The input of the passage encoder; its hash is the key of its vector."""
        text = f"{self.lead}\n{self.text}" if self.lead else self.text
        return f"{self.headings()}\n{text}" if prefix == "heading_path" else text

    def headings(self) -> str:
        """`Title > Heading > Sub-heading`."""
        return heading_line(self.title, self.heading_path)


def heading_line(title: str, heading_path: Sequence[str]) -> str:
    """The headings joined by ` > `, led by the title where they do not begin with it.

    Where they are longer than `MAX_HEADING_LINE`, the outer ones behind the first are left out, and then the end of the line.
    """
    parts = list(heading_path)
    if title and (not parts or parts[0] != title):
        parts.insert(0, title)
    while len(parts) > 1 and len(_SEPARATOR.join(parts)) > MAX_HEADING_LINE:
        # The innermost says most.
        del parts[1 if len(parts) > 2 else 0]
    return _SEPARATOR.join(parts)[:MAX_HEADING_LINE].strip()


def live_passages(warehouse: Warehouse) -> list[LivePassage]:
    """All chunks of today in a canonical order (document, position)."""
    with warehouse.read() as connection:
        rows = records(
            connection,
            "SELECT chunk_id, doc_path, start_char, end_char, title, heading_path, text, near_duplicate_group, unit, side, "
            "coalesce(lead, '') AS lead "
            "FROM chunks ORDER BY doc_path, start_char, chunk_id",
        )
    return [LivePassage(**(row | {"heading_path": tuple(row["heading_path"])})) for row in rows]
