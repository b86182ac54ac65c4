"""The promoted pointer: one small file that names the model, table and version that readers use."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from acme_rag_pipeline.store.layout import write_atomically

Recipe = Literal["dense", "hybrid"]


class NothingPromoted(RuntimeError):
    """The store has no promoted index yet."""


class PointerDamaged(RuntimeError):
    """`promoted.json` exists but cannot be read."""


@dataclass(frozen=True)
class Promoted:
    """What readers open. Paths are relative to the store, so that it can be moved or mounted elsewhere.

    ``fusion`` holds the retrieval settings that a fused recipe was judged with; None: the reader's own are used.
    """

    model_digest: str
    model_dir: str
    table: str
    lance_version: int
    recipe: Recipe
    decided_at: str
    reason: str
    passage_prefix: str = "none"
    fusion: dict[str, Any] | None = None


def read_pointer(path: Path) -> Promoted:
    """Read `promoted.json`.

    Raises:
        NothingPromoted: there is none; the message says how to get one.
        PointerDamaged: it is not what this version writes.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NothingPromoted(
            f"nothing is served yet from {path.parent}: run `make materialize` (or materialise the `refresh` job) first"
        ) from None
    try:
        known = json.loads(content)
        return Promoted(**{name: known[name] for name in Promoted.__dataclass_fields__ if name in known})
    except (ValueError, TypeError) as error:
        raise PointerDamaged(f"{path} is damaged ({error}): materialise `served_index` to write it anew") from error


def write_pointer(path: Path, promoted: Promoted) -> bool:
    """Write the pointer if it differs; the last step of a promotion. Returns whether it was written."""
    try:
        if read_pointer(path) == promoted:
            return False
    except (NothingPromoted, PointerDamaged):
        pass
    write_atomically(path, json.dumps(asdict(promoted), indent=1, ensure_ascii=False) + "\n")
    return True
