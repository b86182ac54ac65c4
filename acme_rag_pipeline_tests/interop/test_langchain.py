"""LangChain opens the promoted model, and langchain-community searches the served table as it is."""

from __future__ import annotations

import lancedb
import pytest
from langchain_community.embeddings import HuggingFaceEmbeddings
from langchain_community.vectorstores import LanceDB

from acme_rag_pipeline.embedding.encoder import Encoder
from acme_rag_pipeline_tests.conftest import files_of
from acme_rag_pipeline_tests.interop.conftest import QUESTIONS, Served, least_cosine

# langchain-huggingface has the same class, but up to 1.2 it cannot be installed beside huggingface_hub 2.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The class `HuggingFaceEmbeddings` was deprecated")]


@pytest.fixture(scope="module")
def embedding(served: Served) -> HuggingFaceEmbeddings:
    return HuggingFaceEmbeddings(model_name=str(served.model_dir), model_kwargs={"device": "cpu"})


@pytest.fixture(scope="module")
def langchain(served: Served, embedding: HuggingFaceEmbeddings) -> LanceDB:
    # The default mode, "overwrite", would replace the table as soon as somebody adds a text.
    return LanceDB(
        connection=lancedb.connect(str(served.store.lancedb)),
        embedding=embedding,
        table_name=served.pointer.table,
        distance="cosine",
        mode="append",
    )


def test_the_model_gives_the_vectors_of_the_table(served: Served, embedding: HuggingFaceEmbeddings) -> None:
    rows = served.rows()
    theirs = embedding.embed_documents([row["text"] for row in rows])
    assert least_cosine([row["vector"] for row in rows], theirs) >= 0.9999


def test_the_model_encodes_queries_as_ours(served: Served, embedding: HuggingFaceEmbeddings) -> None:
    ours = Encoder(served.model_dir, served.pointer.model_digest, "fp32").encode_queries(list(QUESTIONS))
    assert least_cosine(ours, [embedding.embed_query(question) for question in QUESTIONS]) >= 0.9999


def test_the_newest_version_is_the_served_one(served: Served, langchain: LanceDB) -> None:
    # Whatever `table=` it is given, langchain-community opens the newest version of that name for every search.
    assert langchain.get_table().version == served.pointer.lance_version


@pytest.mark.parametrize(("question", "doc_path"), QUESTIONS.items())
def test_the_table_answers_as_our_retriever(served: Served, langchain: LanceDB, question: str, doc_path: str) -> None:
    ours = served.search(question, k=4)
    theirs = langchain.similarity_search(question, k=4)
    assert [document.page_content for document in theirs] == [hit.text for hit in ours]
    assert theirs[0].metadata["doc_path"] == doc_path
    for document, hit in zip(theirs, ours, strict=True):
        assert document.metadata == {
            "doc_path": hit.doc_path,
            "start_char": hit.start,
            "end_char": hit.end,
            "heading_path": hit.heading,
        }


def test_a_filter_on_the_document_holds(langchain: LanceDB) -> None:
    found = langchain.similarity_search(
        "paid sabbatical", k=10, filter="metadata.doc_path = 'travel.md'", prefilter=True
    )
    assert {document.metadata["doc_path"] for document in found} == {"travel.md"}


def test_reading_changes_no_byte_of_the_store(served: Served, langchain: LanceDB) -> None:
    before = files_of(served.store)
    assert langchain.as_retriever().invoke("FLEX days")
    assert files_of(served.store) == before
