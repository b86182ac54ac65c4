"""What a store must hold, found without the store: the passages of the files of now, split afresh."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from acme_rag_pipeline.chunking.splitter import split
from acme_rag_pipeline.chunking.tokens import TokenCounter
from acme_rag_pipeline.documents.parsers import Unreadable, parse
from acme_rag_pipeline.embedding.base_model import resolve_base_model
from acme_rag_pipeline.embedding.cache import TABLE
from acme_rag_pipeline.retrieval.sentences import sentences
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import vectors
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.promotion import read_pointer
from acme_rag_pipeline.store.warehouse import Warehouse

Passage = tuple[str, int, int, str]  # document, span, text


class Oracle:
    """The passages that the files give, split without the store; unchanged files are not split again."""

    def __init__(self, counter: TokenCounter, max_tokens: int) -> None:
        self._counter = counter
        self._max_tokens = max_tokens
        self._passages: dict[str, list[Passage]] = {}
        self.texts: dict[str, str] = {}
        self.inputs: set[str] = set()

    def follow(self, folder: Path, paths: Iterable[str]) -> None:
        """Look again at these files."""
        for path in paths:
            self._passages.pop(path, None)
            self.texts.pop(path, None)
            try:
                parsed = parse(path, (folder / path).read_bytes())
            except (FileNotFoundError, Unreadable):
                continue
            text = parsed.text
            spans = split(text, self._counter, max_tokens=self._max_tokens, format=parsed.format)
            self.texts[path] = text
            self._passages[path] = [(path, span.start, span.end, text[span.start : span.end]) for span in spans]
            # Before the first promotion of a tuned model the rendered inputs are the text alone and its sentences.
            for _, _, _, passage in self._passages[path]:
                self.inputs.update((passage, *sentences(passage)))

    def passages(self) -> Counter[Passage]:
        """All passages of now."""
        return Counter(passage for passages in self._passages.values() for passage in passages)


def served_rows(store: Store) -> list[dict[str, Any]]:
    """The rows of the version that the pointer names, without their vectors' text index."""
    promoted = read_pointer(store.pointer)
    table = vectors.open_table(vectors.connect(store.lancedb), promoted.table, promoted.lance_version)
    assert table is not None
    columns = ["id", "doc_id", "text", "metadata", "search_text", "vector"]
    return table.search().select(columns).limit(table.count_rows() + 1).to_arrow().select(columns).to_pylist()


def stale_and_missing(store: Store, oracle: Oracle) -> tuple[int, int]:
    """Served rows that the files do not give, and passages of the files that are not served."""
    held = Counter(
        (row["doc_id"], row["metadata"]["start_char"], row["metadata"]["end_char"], row["text"])
        for row in served_rows(store)
    )
    wanted = oracle.passages()
    return (held - wanted).total(), (wanted - held).total()


def cached(store: Store) -> int:
    """Vectors in the embedding cache, 0 before the first."""
    if not store.embedding_cache.exists():
        return 0
    with Warehouse(store.embedding_cache, tables=(TABLE,)).read() as connection:
        return int(connection.execute("SELECT count(*) FROM embeddings").fetchall()[0][0])


def size_by_part(root: Path) -> dict[str, int]:
    """Bytes under each entry of a store."""
    parts: Counter[str] = Counter()
    for path in root.rglob("*"):
        if path.is_file():
            parts[path.relative_to(root).parts[0]] += path.stat().st_size
    return dict(sorted(parts.items()))


def token_counter(settings: Settings) -> TokenCounter:
    """The counter of the base model."""
    return TokenCounter(resolve_base_model(settings.base_model, settings.root).tokenizer)
