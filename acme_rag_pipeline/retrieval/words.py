"""BM25 over the passages of today, for what is judged or filtered by it."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from acme_rag_pipeline.retrieval.expansion import expanded_text
from acme_rag_pipeline.retrieval.table_search import SearchHit, lexical
from acme_rag_pipeline.store import vectors
from acme_rag_pipeline.store.passages import LivePassage

if TYPE_CHECKING:
    from lancedb.table import Table


class PassageWords:
    """A table of its own: the scores of one that readers search depend on its history, since a large one folds new rows late.

    Args:
        passages: its rows, at least one.
        queries: that were written for passages, by chunk id; BM25 reads them behind the text.
    """

    def __init__(self, passages: Sequence[LivePassage], queries: Mapping[str, Sequence[str]] | None = None) -> None:
        self._passages = passages
        self._queries = queries or {}

    def search(self, query: str, k: int) -> list[SearchHit]:
        """The best passages, as `lexical` orders them."""
        return lexical(self._table, query, k)

    @functools.cached_property
    def _table(self) -> Table:
        self._folder = tempfile.TemporaryDirectory()
        texts = {
            p.chunk_id: expanded_text(p.rendered("none"), self._queries.get(p.chunk_id, ())) for p in self._passages
        }
        return vectors.table_of_words(vectors.connect(Path(self._folder.name)), self._passages, texts)
