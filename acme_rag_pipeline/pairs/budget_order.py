"""The order in which passages are asked about when the budget may not reach all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import PurePosixPath
from typing import TypeVar

from acme_rag_pipeline.pairs.passage import Passage

_T = TypeVar("_T")


def diverse_order(passages: Iterable[Passage]) -> list[Passage]:
    """The passages so ordered that every prefix covers as many documents, and of those as many folders, as it can.

    Each round takes one passage of every document that has one left; within a round the folders take turns. Folders
    and documents come in the order of their hashes: alphabetical order would favour what somebody named first, and
    the order of the others stays when a document is added.

    Args:
        passages: Those of one document in reading order; how documents are interleaved does not matter.
    """
    folders: dict[str, dict[str, list[Passage]]] = {}
    for passage in passages:
        folder = str(PurePosixPath(passage.doc_path).parent)
        folders.setdefault(folder, {}).setdefault(passage.doc_path, []).append(passage)
    documents = _take_turns(
        [
            [_spread(folders[folder][path]) for path in sorted(folders[folder], key=_hash)]
            for folder in sorted(folders, key=_hash)
        ]
    )
    return _take_turns(documents)


def _take_turns(rows: Sequence[Sequence[_T]]) -> list[_T]:
    """The first of each row, then the second of each, and so on."""
    missing = object()
    return [item for turn in zip_longest(*rows, fillvalue=missing) for item in turn if item is not missing]  # type: ignore[misc]


def _spread(items: Sequence[Passage]) -> list[Passage]:
    """Middle, quarters, eighths, ...: every prefix lies spread over the whole (a van der Corput sequence)."""
    order: dict[int, None] = {}
    depth = 1
    while len(order) < len(items):
        for numerator in range(1, 2**depth, 2):
            order.setdefault(numerator * len(items) >> depth)
        depth += 1
    return [items[position] for position in order]


def _hash(path: str) -> bytes:
    return hashlib.sha256(path.encode("utf-8", "surrogatepass")).digest()
