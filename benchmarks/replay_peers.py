"""Other systems' incremental indexing on the same commits, with an embedder that only counts.

- LlamaIndex: `IngestionPipeline` with a document store, a vector store and `DocstoreStrategy.UPSERTS_AND_DELETE`,
  `SentenceSplitter`.
- LangChain: `index()` with `SQLRecordManager` (SQLite) and `cleanup="incremental"` or `"full"`,
  `RecursiveCharacterTextSplitter` for Markdown.

Both cut into at most as many tokens as we do, counted by the same tokenizer, without overlap, and get every document at
every commit, as a loader would hand them over. Needs the extra `benchmarks`.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from langchain_classic.indexes import SQLRecordManager, index
from langchain_core.documents import Document as LangChainDocument
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_text_splitters import Language, RecursiveCharacterTextSplitter
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document as LlamaDocument
from llama_index.core.schema import MetadataMode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore
from pydantic import PrivateAttr

Row = tuple[str, tuple[float, ...]]  # document, vector: the vector stands for the text


class Peer(Protocol):
    """A system under comparison."""

    name: str

    def update(self, documents: Mapping[str, str]) -> float:
        """Bring the index to these documents (path to text). Returns the seconds it took, all but encoding."""

    def embedded(self) -> int:
        """Texts embedded so far."""

    def stale(self, documents: Mapping[str, str]) -> tuple[int, int]:
        """Rows that a fresh split of the documents does not give, and rows of a fresh split that are missing."""


def fake_vector(text: str) -> list[float]:
    """Eight numbers that tell texts apart."""
    return [float(byte) for byte in hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8]]


class LlamaIndexPeer:
    """LlamaIndex's pipeline.

    Args:
        count: tokens of a text.
        max_tokens: of a chunk.
    """

    name = "LlamaIndex IngestionPipeline, UPSERTS_AND_DELETE"

    def __init__(self, count: Callable[[str], int], max_tokens: int) -> None:
        self._splitter = SentenceSplitter(
            chunk_size=max_tokens, chunk_overlap=0, tokenizer=lambda text: [0] * count(text)
        )
        self._vectors = SimpleVectorStore()
        self._embedder = _LlamaEmbedder()
        self._pipeline = IngestionPipeline(
            transformations=[self._splitter, self._embedder],
            docstore=SimpleDocumentStore(),
            vector_store=self._vectors,
            docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
        )
        self._fresh: dict[tuple[str, str], list[Row]] = {}

    def update(self, documents: Mapping[str, str]) -> float:
        started = time.perf_counter()
        self._pipeline.run(documents=[LlamaDocument(id_=path, text=text) for path, text in documents.items()])
        return time.perf_counter() - started

    def embedded(self) -> int:
        return self._embedder.texts

    def stale(self, documents: Mapping[str, str]) -> tuple[int, int]:
        data = self._vectors.data
        held = Counter((data.text_id_to_ref_doc_id[i], tuple(vector)) for i, vector in data.embedding_dict.items())
        fresh = Counter(row for path, text in documents.items() for row in self._split(path, text))
        return (held - fresh).total(), (fresh - held).total()

    def _split(self, path: str, text: str) -> list[Row]:
        if (path, text) not in self._fresh:
            nodes = self._splitter.get_nodes_from_documents([LlamaDocument(id_=path, text=text)])
            self._fresh[path, text] = [
                (path, tuple(fake_vector(node.get_content(metadata_mode=MetadataMode.EMBED)))) for node in nodes
            ]
        return self._fresh[path, text]


class LangChainPeer:
    """LangChain's `index()`.

    Args:
        count, max_tokens: as for LlamaIndex.
        cleanup: `incremental` or `full`.
        folder: for the record manager's SQLite file.
    """

    def __init__(self, count: Callable[[str], int], max_tokens: int, cleanup: Any, folder: Path) -> None:
        self.name = f"LangChain index(), cleanup={cleanup}"
        self._cleanup = cleanup
        self._splitter = RecursiveCharacterTextSplitter.from_language(
            Language.MARKDOWN, chunk_size=max_tokens, chunk_overlap=0, length_function=count
        )
        self._embedder = _LangChainEmbedder()
        self._vectors = InMemoryVectorStore(self._embedder)
        self._records = SQLRecordManager(cleanup, db_url=f"sqlite:///{folder / f'{cleanup}.sqlite'}")
        self._records.create_schema()
        self._fresh: dict[tuple[str, str], list[str]] = {}

    def update(self, documents: Mapping[str, str]) -> float:
        started = time.perf_counter()
        # What is split already is taken from memory: the time is that of the bookkeeping.
        chunks = [
            LangChainDocument(page_content=chunk, metadata={"source": path})
            for path, text in documents.items()
            for chunk in self._split(path, text)
        ]
        index(
            chunks,
            self._records,
            self._vectors,
            cleanup=self._cleanup,
            source_id_key="source",
            key_encoder="sha256",
        )
        return time.perf_counter() - started

    def embedded(self) -> int:
        return self._embedder.texts

    def stale(self, documents: Mapping[str, str]) -> tuple[int, int]:
        held = {(row["metadata"]["source"], row["text"]) for row in self._vectors.store.values()}
        # It keeps equal texts of one document once.
        fresh = {(path, chunk) for path, text in documents.items() for chunk in self._split(path, text)}
        return len(held - fresh), len(fresh - held)

    def _split(self, path: str, text: str) -> list[str]:
        if (path, text) not in self._fresh:
            self._fresh[path, text] = self._splitter.split_text(text)
        return self._fresh[path, text]


class _LangChainEmbedder(Embeddings):
    def __init__(self) -> None:
        self.texts = 0

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.texts += len(texts)
        return [fake_vector(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return fake_vector(text)


class _LlamaEmbedder(BaseEmbedding):
    _texts: int = PrivateAttr(default=0)

    @property
    def texts(self) -> int:
        return self._texts

    def _get_text_embedding(self, text: str) -> list[float]:
        self._texts += 1
        return fake_vector(text)

    def _get_query_embedding(self, query: str) -> list[float]:
        return fake_vector(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return fake_vector(query)


def peers(count: Callable[[str], int], max_tokens: int, folder: Path) -> list[Peer]:
    """All of them, empty."""
    return [
        LlamaIndexPeer(count, max_tokens),
        LangChainPeer(count, max_tokens, "incremental", folder),
        LangChainPeer(count, max_tokens, "full", folder),
    ]
