"""The `chunks` stage: passages of every readable document, split again only where the document's text changed."""

from __future__ import annotations

import logging
import statistics
from collections import Counter
from typing import Any

import duckdb

from acme_rag_pipeline.chunking.near_duplicates import STORED_AS, groups, signature
from acme_rag_pipeline.chunking.sides import side_of, units
from acme_rag_pipeline.chunking.splitter import LEAST_TOKENS, SPLITTER_VERSION, split
from acme_rag_pipeline.chunking.tokens import TokenCounter
from acme_rag_pipeline.embedding.base_model import BaseModelFiles, resolve_base_model
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.fingerprints import content_hash, fingerprint, normalised, sha256_text
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.made_with import SETTINGS_KEY, note_key
from acme_rag_pipeline.store.stages import StageResult, data_versions, distrust, overtaken, record, recorded
from acme_rag_pipeline.store.warehouse import insert, reconcile, records

STAGE = "chunks"
# That a BERT-like model puts around a text.
SPECIAL_TOKENS = 2
logger = logging.getLogger(__name__)
# How many golden queries decide is no business of the chunks.
_SIDE_SETTINGS = {"validation_share", "test_share", "section_units_below"}
CODE_VERSION = "3"
_SPAN_COLUMNS = (
    "chunk_id",
    "doc_path",
    "ordinal",
    "start_char",
    "end_char",
    "heading_path",
    "title",
    "text",
    "text_hash",
    "tokens",
    "lead",
)


def split_documents(store: Store, settings: Settings) -> StageResult:
    """Bring the `chunks` table to the documents of today.

    Raises:
        UpstreamMissing: `documents` has never run.
    """
    upstream = data_versions(store.warehouse, "documents")
    base = resolve_base_model(settings.base_model, settings.root)
    tokenizer = base.tokenizer
    max_tokens = _max_tokens(settings, base)
    shorter = max_tokens < settings.chunking.max_tokens
    how = _how(settings, base)
    made_from = fingerprint(STAGE, upstream, how, settings.evaluation.model_dump(include=_SIDE_SETTINGS))
    if (unchanged := recorded(store.warehouse, STAGE, made_from)) is not None:
        return note_key(store, unchanged, made_from, settings_key(settings, base))
    with store.writer(STAGE):
        if overtaken(store.warehouse, upstream):
            return split_documents(store, settings)
        if shorter:
            logger.warning(
                "%s reads %d tokens of a text: passages have %d at most (ACME_RAG_CHUNKING__MAX_TOKENS: %d)",
                base.name, base.most_tokens(), max_tokens, settings.chunking.max_tokens,
            )  # fmt: skip
        rows, split_again = _split_rows(store, how, tokenizer, max_tokens)
        texts = {row["text_hash"]: row["text"] for row in rows}
        group_of = groups(texts, _signatures(store, texts), settings.chunking.near_duplicate_similarity)
        _place(rows, group_of, settings)
        data_version = content_hash(
            (r["chunk_id"], r["doc_path"], r["start_char"], r["end_char"], *r["heading_path"], r["title"],
             r["text"], r["lead"], r["near_duplicate_group"], r["unit"], r["side"])
            for r in rows
        )  # fmt: skip
        with store.warehouse.write() as connection:
            counts = reconcile(connection, "chunks", "chunk_id", rows)
            reconcile(
                connection,
                "chunked_documents",
                "doc_path",
                [{"doc_path": path, "fingerprint": made} for path, made in split_again.items()],
            )
            connection.execute("DELETE FROM minhashes WHERE text_hash NOT IN (SELECT text_hash FROM chunks)")
            retract(connection)
            # So that nobody takes chunks of yesterday for those of the documents of today.
            details = _details(rows) | {"documents_version": upstream["documents"], "max_tokens": max_tokens}
            details[SETTINGS_KEY] = settings_key(settings, base)
            return record(connection, StageResult(STAGE, data_version, counts, details=details), made_from)


def settings_key(settings: Settings, base: BaseModelFiles) -> str:
    """Hash of the settings and the code that decide the chunks of given documents."""
    return fingerprint(_how(settings, base), settings.evaluation.model_dump(include=_SIDE_SETTINGS))


def _max_tokens(settings: Settings, base: BaseModelFiles) -> int:
    # What a model does not read of a passage, nobody finds.
    read = (base.most_tokens() or 10**6) - SPECIAL_TOKENS
    return max(LEAST_TOKENS, min(settings.chunking.max_tokens, read))


def _how(settings: Settings, base: BaseModelFiles) -> str:
    """Hash of what decides the spans of a given text."""
    max_tokens = _max_tokens(settings, base)
    shorter = [max_tokens] if max_tokens < settings.chunking.max_tokens else []
    return fingerprint(CODE_VERSION, SPLITTER_VERSION, settings.chunking, base.tokenizer_digest, *shorter)


def _split_rows(store: Store, how: str, tokenizer: Any, max_tokens: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    with store.warehouse.read() as connection:
        documents = records(
            connection,
            "SELECT doc_path, title, format, text_sha256 FROM documents WHERE text IS NOT NULL ORDER BY doc_path",
        )
        made = {
            document["doc_path"]: fingerprint(how, document["text_sha256"], document["title"], document["format"])
            for document in documents
        }
        done = dict(connection.execute("SELECT doc_path, fingerprint FROM chunked_documents").fetchall())
        kept: dict[str, list[dict[str, Any]]] = {}
        for row in records(connection, f"SELECT {', '.join(_SPAN_COLUMNS)} FROM chunks ORDER BY doc_path, ordinal"):
            kept.setdefault(row["doc_path"], []).append(row)
        to_split = [path for path, of_today in made.items() if done.get(path) != of_today]
        texts = "SELECT doc_path, text FROM documents WHERE list_contains(?, doc_path)"
        text_of = dict(connection.execute(texts, [to_split]).fetchall()) if to_split else {}
    counter: TokenCounter | None = None
    rows: list[dict[str, Any]] = []
    for document in documents:
        path = document["doc_path"]
        if path not in text_of:
            rows.extend(kept.get(path, []))
            continue
        counter = counter or TokenCounter(tokenizer)
        rows.extend(_chunks_of(document | {"text": text_of[path]}, counter, max_tokens))
    return rows, made


def _chunks_of(document: dict[str, Any], counter: TokenCounter, max_tokens: int) -> list[dict[str, Any]]:
    seen: Counter[str] = Counter()
    rows = []
    spans = split(document["text"], counter, max_tokens=max_tokens, format=document["format"])
    for ordinal, span in enumerate(spans):
        text = document["text"][span.start : span.end]
        text_hash = sha256_text(normalised(text))
        # Equal texts of one document are told apart by their order among equals, so that a moved chunk keeps its id.
        equal = seen[text_hash]
        seen[text_hash] += 1
        rows.append(
            {
                "chunk_id": sha256_text(f"{document['doc_path']}\0{text_hash}\0{equal}"),
                "doc_path": document["doc_path"],
                "ordinal": ordinal,
                "start_char": span.start,
                "end_char": span.end,
                "heading_path": list(span.heading_path),
                "title": document["title"] or "",
                "text": text,
                "text_hash": text_hash,
                "tokens": span.tokens,
                "lead": span.lead,
            }
        )
    return rows


def _signatures(store: Store, texts: dict[str, str]) -> dict[str, bytes]:
    with store.warehouse.read() as connection:
        of_scheme = "SELECT text_hash, signature FROM minhashes WHERE scheme = ?"
        known = dict(connection.execute(of_scheme, [STORED_AS]).fetchall())
    new = {text_hash: signature(text) for text_hash, text in texts.items() if text_hash not in known}
    if new:
        with store.warehouse.write() as connection:
            connection.execute("DELETE FROM minhashes WHERE scheme IS DISTINCT FROM ?", [STORED_AS])
            rows = [{"text_hash": h, "signature": s, "scheme": STORED_AS} for h, s in new.items()]
            insert(connection, "minhashes", rows)
    return {text_hash: new.get(text_hash) or known[text_hash] for text_hash in texts}


def _place(rows: list[dict[str, Any]], group_of: dict[str, str], settings: Settings) -> None:
    by_document: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_document.setdefault(row["doc_path"], []).append(row)
    for path, mine in by_document.items():
        placed = units(path, [row["heading_path"] for row in mine], len(by_document), settings.evaluation)
        for row, unit in zip(mine, placed, strict=True):
            row["near_duplicate_group"] = group_of[row["text_hash"]]
            row["unit"] = unit
            row["side"] = side_of(unit, settings.evaluation)


def retract(connection: duckdb.DuckDBPyConnection) -> None:
    """Text that is gone takes its questions along at once, and not only at the next retrain.

    Args:
        connection: to write with, in the transaction that wrote the chunks of today.
    """
    retracted = 0
    for statement in (
        "DELETE FROM pairs WHERE chunk_id NOT IN (SELECT chunk_id FROM chunks)",
        "DELETE FROM training_pairs WHERE chunk_id NOT IN (SELECT chunk_id FROM chunks)",
        "DELETE FROM heading_queries WHERE chunk_id NOT IN (SELECT chunk_id FROM chunks)",
        "DELETE FROM curated_negatives WHERE chunk_id NOT IN (SELECT chunk_id FROM chunks)",
        "UPDATE training_pairs SET negatives = left_over.negatives FROM ("
        "SELECT pair_id, coalesce(list(named.chunk_id ORDER BY place) FILTER (chunks.chunk_id IS NOT NULL), []) AS negatives FROM ("
        "SELECT pair_id, unnest(negatives) AS chunk_id, generate_subscripts(negatives, 1) AS place FROM training_pairs) named "
        "LEFT JOIN chunks USING (chunk_id) GROUP BY pair_id HAVING count(chunks.chunk_id) < count(*)) left_over "
        "WHERE training_pairs.pair_id = left_over.pair_id",
    ):
        retracted += connection.execute(statement).fetchall()[0][0]
    connection.execute(
        "UPDATE trained_chunks SET retracted = TRUE WHERE chunk_id NOT IN (SELECT chunk_id FROM chunks) AND retracted IS NOT TRUE"
    )
    if retracted:
        distrust(connection, "curated_pairs", "synthetic_pairs", "training_set")


def _details(rows: list[dict[str, Any]]) -> dict[str, Any]:
    tokens = sorted(row["tokens"] for row in rows)
    group_sizes = Counter(row["near_duplicate_group"] for row in rows)
    return {
        "chunks": len(rows),
        "documents": len({row["doc_path"] for row in rows}),
        "median_tokens": statistics.median(tokens) if tokens else 0,
        "longest_tokens": tokens[-1] if tokens else 0,
        "near_duplicate_chunks": sum(size for size in group_sizes.values() if size > 1),
        "units": len({row["unit"] for row in rows}),
        "sides": dict(sorted(Counter(row["side"] for row in rows).items())),
    }
