"""Questions that an LLM did not write, to choose by: the authors' own headings on the validation side.

A model that learned from an LLM's questions is flattered by more of them: they prefer to go further from the base than
questions of people do. The headings, as the embedded generator turns them into queries, were worded by the documents' authors
(docs/training.md). They are never trained on where the LLM writes.
"""

from __future__ import annotations

from collections.abc import Sequence

from acme_rag_pipeline.pairs import offline
from acme_rag_pipeline.pairs.corpus_statistics import CorpusStatistics
from acme_rag_pipeline.pairs.passage import Passage
from acme_rag_pipeline.pairs.wording import query_key
from acme_rag_pipeline.store.fingerprints import sha256_text
from acme_rag_pipeline.store.passages import LivePassage

# Methods of the embedded generator whose queries are made of headings, by the document's author and not from the passage's text.
HEADING_METHODS = frozenset({"heading", "heading_pair", "faq"})


def heading_queries(passages: Sequence[LivePassage], queries_per_chunk: int) -> list[dict[str, str]]:
    """Rows of `heading_queries`: the embedded generator's queries from headings for the passages of the validation side.

    A wording that belongs to different passages, of whatever side, is left out: one of them would count as the only answer.
    Passages that nearly repeat each other are one answer, and their wording counts once.

    Args:
        passages: all live ones; what is a telling heading depends on the whole collection. Those under no heading get none.
        queries_per_chunk: how many queries the generator writes for a passage, those of other kinds included.
    """
    known = {p.chunk_id: Passage(p.chunk_id, p.doc_path, p.title, p.heading_path, p.text, p.lead) for p in passages}
    statistics = CorpusStatistics.from_passages(list(known.values()))
    parameters = offline.OfflineParameters(queries_per_chunk=queries_per_chunk)
    rows: list[dict[str, str]] = []
    groups: dict[str, set[str]] = {}
    for passage in passages:
        for written in offline.write(offline.render(known[passage.chunk_id], statistics, parameters)):
            if written.method in HEADING_METHODS:
                groups.setdefault(query_key(written.query), set()).add(passage.near_duplicate_group)
                # Without a heading the title stands for it: often the file's name, and one for all passages of a document.
                if passage.side == "validation" and passage.heading_path:
                    rows.append(
                        {
                            "query_id": sha256_text(f"{written.query}\0{passage.chunk_id}"),
                            "query": written.query,
                            "chunk_id": passage.chunk_id,
                            "method": written.method,
                        }
                    )
    first: dict[str, dict[str, str]] = {}
    for row in sorted(rows, key=lambda row: (row["chunk_id"], row["query_id"])):
        if len(groups[query_key(row["query"])]) == 1:
            first.setdefault(query_key(row["query"]), row)
    return list(first.values())
