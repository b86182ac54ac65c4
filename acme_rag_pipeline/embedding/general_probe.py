"""120 general questions, each with its answer: what any collection's questions have in common, and what a model may forget.

`general_probe.jsonl` asks about everyday knowledge, with several passages on each topic that distract from one another.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

PROBE = Path(__file__).with_name("general_probe.jsonl")


@lru_cache
def probe_entries() -> tuple[tuple[str, str], ...]:
    """Query and passage of each shipped entry; an entry's passage is the one right answer to its query."""
    rows = [json.loads(line) for line in PROBE.read_text(encoding="utf-8").splitlines()]
    return tuple((row["query"], row["passage"]) for row in rows)
