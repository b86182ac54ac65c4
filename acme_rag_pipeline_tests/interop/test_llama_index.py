"""LlamaIndex opens the promoted model and searches the served table as it is."""

from __future__ import annotations

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from llama_index.vector_stores.lancedb import LanceDBVectorStore

from acme_rag_pipeline.embedding.encoder import Encoder
from acme_rag_pipeline_tests.conftest import files_of
from acme_rag_pipeline_tests.interop.conftest import QUESTIONS, Served, least_cosine

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def embedding(served: Served) -> HuggingFaceEmbedding:
    return HuggingFaceEmbedding(model_name=str(served.model_dir), device="cpu")


@pytest.fixture(scope="module")
def index(served: Served, embedding: HuggingFaceEmbedding) -> VectorStoreIndex:
    # The default mode, "overwrite", would replace the table as soon as somebody adds a node.
    store = LanceDBVectorStore(uri=str(served.store.lancedb), table=served.table(), mode="append")
    return VectorStoreIndex.from_vector_store(store, embed_model=embedding)


def test_the_model_gives_the_vectors_of_the_table(served: Served, embedding: HuggingFaceEmbedding) -> None:
    rows = served.rows()
    theirs = embedding.get_text_embedding_batch([row["text"] for row in rows])
    assert least_cosine([row["vector"] for row in rows], theirs) >= 0.9999


def test_the_model_encodes_queries_as_ours(served: Served, embedding: HuggingFaceEmbedding) -> None:
    ours = Encoder(served.model_dir, served.pointer.model_digest, "fp32").encode_queries(list(QUESTIONS))
    assert least_cosine(ours, [embedding.get_query_embedding(question) for question in QUESTIONS]) >= 0.9999


@pytest.mark.parametrize(("question", "doc_path"), QUESTIONS.items())
def test_the_table_answers_as_our_retriever(
    served: Served, index: VectorStoreIndex, question: str, doc_path: str
) -> None:
    ours = served.search(question, k=4)
    theirs = [found.node for found in index.as_retriever(similarity_top_k=4).retrieve(question)]
    assert [node.node_id for node in theirs] == [hit.chunk_id for hit in ours]
    assert theirs[0].metadata["doc_path"] == theirs[0].ref_doc_id == doc_path
    for node, hit in zip(theirs, ours, strict=True):
        assert node.get_content() == hit.text
        assert (node.metadata["start_char"], node.metadata["end_char"]) == (hit.start, hit.end)
        assert node.metadata["heading_path"] == hit.heading


def test_a_filter_on_the_document_holds(index: VectorStoreIndex) -> None:
    only = MetadataFilters(filters=[MetadataFilter(key="doc_path", value="travel.md", operator=FilterOperator.EQ)])
    found = index.as_retriever(similarity_top_k=10, filters=only).retrieve("paid sabbatical")
    assert {node.node.metadata["doc_path"] for node in found} == {"travel.md"}


def test_reading_changes_no_byte_of_the_store(served: Served, index: VectorStoreIndex) -> None:
    before = files_of(served.store)
    assert index.as_retriever(similarity_top_k=2).retrieve("FLEX days")
    assert files_of(served.store) == before


def test_a_pinned_table_cannot_be_damaged_by_a_keyword_query(served: Served, embedding: HuggingFaceEmbedding) -> None:
    # LlamaIndex rebuilds the full-text index, with settings of its own, before the first such query of a process.
    store = LanceDBVectorStore(uri=str(served.store.lancedb), table=served.table(), mode="append", query_type="hybrid")
    retriever = VectorStoreIndex.from_vector_store(store, embed_model=embedding).as_retriever(
        vector_store_query_mode="hybrid"
    )
    before = files_of(served.store)
    with pytest.raises(ValueError, match="checked out"):
        retriever.retrieve("FLEX days")
    assert files_of(served.store) == before
