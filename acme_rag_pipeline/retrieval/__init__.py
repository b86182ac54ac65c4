"""Indexes and search. `Retriever` is the public entry: `from acme_rag_pipeline.retrieval import Retriever`."""

from acme_rag_pipeline.retrieval.retriever import Retriever

__all__ = ["Retriever"]
