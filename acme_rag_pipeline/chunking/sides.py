"""Which side of the experiment a passage is on: a pure hash of its unit, so that no edit ever moves a document."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

from acme_rag_pipeline.setting_groups import EvaluationSettings

Side = Literal["train", "validation", "test"]


def units(
    doc_path: str, heading_paths: Sequence[Sequence[str]], documents: int, settings: EvaluationSettings
) -> list[str]:
    """The resampling unit of each chunk of one document.

    The document itself; in small collections the top-level section, so that there are enough units to decide on.

    Args:
        doc_path: the document.
        heading_paths: of its chunks, in order.
        documents: readable documents in the collection.
        settings: `section_units_below` is where sections end and documents begin.
    """
    if documents >= settings.section_units_below:
        return [doc_path] * len(heading_paths)
    # The first heading is the document's title as a rule; its sections are one level below. A second one beside it, an
    # appendix that somebody adds, must not make them one unit with another side.
    first = next((path[0] for path in heading_paths if path), None)
    return [" # ".join((doc_path, *path[: 2 if path and path[0] == first else 1])) for path in heading_paths]


def side_of(unit: str, settings: EvaluationSettings) -> Side:
    """`validation`, `test` or `train`, by hash."""
    share = int.from_bytes(hashlib.sha256(f"side:{unit}".encode("utf-8", "surrogatepass")).digest()[:8]) / 2**64
    if share < settings.validation_share:
        return "validation"
    return "test" if share < settings.validation_share + settings.test_share else "train"
