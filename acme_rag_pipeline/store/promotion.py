"""The promoted pointer: one small file that names the model, table and version that readers use."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from acme_rag_pipeline.errors import UserError
from acme_rag_pipeline.store.layout import write_atomically
from acme_rag_pipeline.store.passages import PassagePrefix

Recipe = Literal["dense", "hybrid"]


class NothingPromoted(UserError, RuntimeError):
    """The store has no promoted index yet."""


class PointerDamaged(UserError, RuntimeError):
    """`promoted.json` exists but cannot be used: damaged, of another version, or naming what is no longer there."""


@dataclass(frozen=True)
class Promoted:
    """What readers open. Paths are relative to the store, so that it can be moved or mounted elsewhere.

    ``fusion`` holds the retrieval settings that a fused recipe was judged with; None: the reader's own are used.
    """

    model_digest: str
    model_dir: str
    table: str
    lance_version: Annotated[int, Field(ge=0, lt=2**64)]
    recipe: Recipe
    decided_at: str
    reason: str
    passage_prefix: PassagePrefix = "none"
    fusion: dict[str, Any] | None = None


def read_pointer(path: Path) -> Promoted:
    """Read `promoted.json`. Fields that only a later version knows are passed over.

    Raises:
        NothingPromoted: there is none; the message says how to get one.
        PointerDamaged: it cannot be read, or a field has no value that this version can use.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise NothingPromoted(
            f"nothing is served yet from {path.parent}: run `make materialize` (or run the job `refresh`) first, "
            "or point to your store: `--store`, ACME_RAG_STORE or ACME_RAG_ROOT"
        ) from None
    except OSError as error:
        raise PointerDamaged(
            f"{path} cannot be read ({error.strerror}): make it readable, or take it away and materialise `served_index`"
        ) from error
    try:
        return _promoted().validate_json(content, strict=True)
    except ValidationError as error:
        raise PointerDamaged(
            f"{path} is damaged or of another version ({in_words(error)}): materialise `served_index` to write it anew"
        ) from error


@functools.cache
def _promoted() -> TypeAdapter[Promoted]:
    return TypeAdapter(Promoted)


def in_words(error: ValidationError) -> str:
    """What is wrong with which field, on one line."""
    found = ((".".join(map(str, problem["loc"])), problem["msg"]) for problem in error.errors(include_url=False))
    return "; ".join(f"{name}: {said}" if name else said for name, said in found)


def write_pointer(path: Path, promoted: Promoted) -> bool:
    """Write the pointer if it differs; the last step of a promotion. Returns whether it was written."""
    try:
        if read_pointer(path) == promoted:
            return False
    except (NothingPromoted, PointerDamaged):
        pass
    write_atomically(path, json.dumps(asdict(promoted), indent=1, ensure_ascii=False) + "\n")
    return True
