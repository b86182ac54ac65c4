"""What a question generator reads and what it writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Style = Literal["question", "keywords", "situation"]


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk as a question generator sees it; `lead` is the header row of the table that the text begins inside of."""

    chunk_id: str
    doc_path: str
    title: str
    heading_path: tuple[str, ...]
    text: str
    lead: str = ""


@dataclass(frozen=True, slots=True)
class WrittenQuery:
    """One training query for a passage.

    `style` is the style of the LLM protocol (docs/llm.md), so that queries of every generator can be compared
    by style; `method` names how the offline generator made the query, so that each method can be ablated.
    """

    query: str
    style: Style
    method: str
