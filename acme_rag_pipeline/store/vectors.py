"""LanceDB tables: one per passage encoder, a derived target that is reconciled row by row with the wanted passages.

LlamaIndex (`LanceDBVectorStore`) and langchain-community (`LanceDB`) read the tables as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa

from acme_rag_pipeline.store.fingerprints import content_hash, sha256_text
from acme_rag_pipeline.store.folding import fold
from acme_rag_pipeline.store.lance_import import without_rest_client
from acme_rag_pipeline.store.passages import LivePassage, PassagePrefix
from acme_rag_pipeline.store.unreadable_table import Damage, built_anew_if_unreadable, is_of_lance, reading
from acme_rag_pipeline.store.warehouse import Counts

if TYPE_CHECKING:
    from lancedb.db import DBConnection
    from lancedb.table import LanceTable, Table

# Below that an exact scan answers in milliseconds; from there on IVF_FLAT trades no measurable recall (0.999) for speed.
EXACT_SEARCH_ROWS = 50_000
SEARCH_COLUMN = "search_text"
SENTENCES_COLUMN = "sentence_vectors"
EXPANDED_COLUMN = "expanded_text"
SHIFT_COLUMN = "query_shift"
logger = logging.getLogger(__name__)
_STRUCT = pa.struct(
    [("doc_path", pa.string()), ("start_char", pa.int64()), ("end_char", pa.int64()), ("heading_path", pa.string())]
)


class VersionGone(RuntimeError):
    """The table no longer has that version."""


@dataclass(frozen=True)
class Reconciled:
    """What one reconciliation did to a table.

    Attributes:
        damage: of the table, for which it was built again.
        sentences_embedded: of the sentences, how many had to be encoded.
        queries_embedded: of the queries that were written for the passages, how many had to be encoded.
    """

    counts: Counts
    embedded: int
    version: int
    rows: int
    content: str
    damage: Damage = field(default_factory=Damage)
    sentences_embedded: int = 0
    queries_embedded: int = 0


def is_ours(name: str) -> bool:
    """Whether a table is one of those that the index stages make; people may keep their own beside them."""
    return name.startswith("passages_")


def table_name(encoder_digest: str, prefix: PassagePrefix) -> str:
    """One table per passage encoder; the prefix is part of what the encoder sees."""
    return f"passages_{encoder_digest[:16]}{'_headings' if prefix == 'heading_path' else ''}"


@dataclass(frozen=True)
class Expanded:
    """What makes of a table of passages one of passages with the queries that were written for them.

    Attributes:
        texts: by chunk id what BM25 reads behind the headings; a passage that is not named has none but its lead and text.
        keys: by chunk id, to be appended to the row's input hash.
        shifts_of: chunk ids to where their queries move them, packed, and how many queries had to be encoded.
    """

    texts: Mapping[str, str]
    keys: Mapping[str, str]
    shifts_of: Callable[[Sequence[str]], tuple[Sequence[bytes | None], int]]


def connect(folder: Path) -> DBConnection:
    """Open the LanceDB folder of a store."""
    without_rest_client()
    import lancedb  # 0.7 s

    return lancedb.connect(str(folder))


def names(db: DBConnection) -> list[str]:
    """All tables of the folder."""
    found: list[str] = []
    while page := list(db.table_names(page_token=found[-1] if found else None, limit=100)):
        found.extend(page)
    return found


def open_table(db: DBConnection, name: str, version: int | None = None) -> Table | None:
    """A table, pinned to a version where one is given; None if there is no such table.

    Raises:
        VersionGone: it has no such version, never had or no longer.
        TableUnreadable: its manifest cannot be read.
    """
    with reading(Path(db.uri), name):
        try:
            table = db.open_table(name)
        except (ValueError, FileNotFoundError) as error:
            if is_of_lance(error):
                raise
            return None
        if version is not None:
            try:
                table.checkout(version)
            except ValueError as error:
                if "no longer exists" not in str(error):
                    raise
                raise VersionGone(f"table {name} has no version {version}") from error
        return table


def reconcile_table(
    db: DBConnection,
    name: str,
    passages: Sequence[LivePassage],
    prefix: PassagePrefix,
    dimension: Callable[[], int],
    vectors_of: Callable[[Sequence[str]], tuple[np.ndarray, int]],
    *,
    model_name: str,
    input_hash: Callable[[str], str] = sha256_text,
    sentences_of: Callable[[Sequence[str]], tuple[Sequence[bytes], int]] | None = None,
    expanded: Expanded | None = None,
) -> Reconciled:
    """Make a table hold exactly one row per passage, writing and encoding only the difference.

    A table of which files are lost or cannot be read is built again; of those that have their size the rows are read here, but not
    the vectors, which have no structure that other bytes would break.

    Args:
        db: the LanceDB folder.
        name: the table; created when missing.
        passages: the wanted rows, distinct chunk ids.
        prefix: how passages are rendered for the encoder.
        dimension: vector length; asked only when the table must be created.
        vectors_of: rendered inputs to (unit vectors, how many had to be encoded).
        model_name: recorded in the schema metadata as the default of the embedding function's model, no machine path.
        input_hash: of a rendered input; a row whose hash is another one is encoded again.
        sentences_of: passages' texts to the packed vectors of their sentences, and how many had to be encoded; None: rows
            hold none. A change needs another `input_hash`.
        expanded: the queries that were written for the passages; None: the table knows none, in any of its rows.

    Raises:
        RuntimeError: the written table does not hold the wanted rows (never promoted then).
        TableUnreadable: the operating system refuses the table's files, or they cannot be read when all is built again.
    """
    wanted = {passage.chunk_id: _row(passage, prefix, input_hash, expanded) for passage in passages}
    by_id = {passage.chunk_id: passage for passage in passages}

    def build(damage: Damage) -> Reconciled:
        table = None if damage else open_table(db, name)
        if table is not None and SENTENCES_COLUMN not in table.schema.names:
            # Of an earlier version. Readers keep theirs: the new table is its next version.
            table = None
        held = _held_rows(table) if table is not None else {}
        added = [i for i in wanted if i not in held]
        changed = [i for i in wanted if i in held and held[i] != wanted[i]]
        removed = [i for i in held if i not in wanted]
        embedded = sentences_embedded = queries_embedded = 0
        if table is None:
            table = _created(db, name, _schema(dimension(), model_name, expanded=expanded is not None), damage)
        if not any(b"primary-key" in key for key in table.schema.field("id").metadata or ()):
            # Without it two writers of the same new ids would double rows silently (lancedb#3377).
            cast("LanceTable", table).set_unenforced_primary_key("id")
        if added or changed:
            writes = [by_id[i] for i in (*changed, *added)]
            vectors, embedded = vectors_of([passage.rendered(prefix) for passage in writes])
            packs: Sequence[bytes | None] = [None] * len(writes)
            if sentences_of is not None:
                packs, sentences_embedded = sentences_of([passage.text for passage in writes])
            shifts: Sequence[bytes | None] = [None] * len(writes)
            if expanded is not None:
                shifts, queries_embedded = expanded.shifts_of([passage.chunk_id for passage in writes])
            rows = pa.Table.from_pylist(
                [
                    wanted[passage.chunk_id]
                    | {"vector": vector, SENTENCES_COLUMN: pack}
                    | ({} if expanded is None else {SHIFT_COLUMN: shift, EXPANDED_COLUMN: _text(passage, expanded)})
                    for passage, vector, pack, shift in zip(writes, vectors.tolist(), packs, shifts, strict=True)
                ],
                schema=table.schema,
            )
            table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)
        delete_rows(table, removed)
        if added or changed or removed or _unindexed(table):
            _index(table, len(wanted))
        # Also without a difference: a run that was killed between its rows and this left a version that the clean-up would fold
        # into a newer one, and delete while the pointer names it.
        fold(table)
        found = table.count_rows()
        if found != len(wanted):
            raise RuntimeError(
                f"table {name} holds {found} rows instead of {len(wanted)}: run again, nothing is promoted"
            )
        _read_words(table, next(iter(wanted.values()), None))
        counts = Counts(len(added), len(changed), len(removed), len(wanted) - len(added) - len(changed))
        content = content_hash((i, *(str(v) for v in row.values())) for i, row in wanted.items())
        return Reconciled(
            counts, embedded, int(table.version), len(wanted), content, damage, sentences_embedded, queries_embedded
        )

    return built_anew_if_unreadable(Path(db.uri), name, build)


def table_of_words(db: DBConnection, passages: Sequence[LivePassage], texts: Mapping[str, str]) -> Table:
    """A table for BM25 alone, with the full-text index of the others.

    Args:
        db: a folder of its own.
        passages: its rows.
        texts: by chunk id what BM25 reads of it behind its headings.
    """
    expanded = Expanded(texts, {}, lambda ids: ([None] * len(ids), 0))
    rows = [_row(p, "none", sha256_text, None) | {SEARCH_COLUMN: _text(p, expanded)} for p in passages]
    columns = [("id", pa.string()), ("text", pa.string()), ("metadata", _STRUCT), (SEARCH_COLUMN, pa.string())]
    table = db.create_table("words", pa.Table.from_pylist(rows, schema=pa.schema(columns)))
    _index(table, 0)
    return table


def _created(db: DBConnection, name: str, schema: pa.Schema, damage: Damage) -> LanceTable:
    """An empty table; in the place of a damaged one, whose readers keep the versions that are whole."""
    if damage:
        logger.warning("table %s is built again: %s", name, damage.in_words)
    if damage.throughout:
        db.drop_table(name)
    return cast("LanceTable", db.create_table(name, schema=schema, mode="overwrite"))


def _row(
    passage: LivePassage, prefix: PassagePrefix, input_hash: Callable[[str], str], expanded: Expanded | None
) -> dict[str, Any]:
    headings = passage.headings()
    key = "" if expanded is None else expanded.keys.get(passage.chunk_id, "")
    return {
        "id": passage.chunk_id,
        "doc_id": passage.doc_path,
        "text": passage.text,
        "metadata": {
            "doc_path": passage.doc_path,
            "start_char": passage.start_char,
            "end_char": passage.end_char,
            "heading_path": headings,
        },
        SEARCH_COLUMN: _text(passage, None),
        "input_hash": input_hash(passage.rendered(prefix)) + key,
    }


def _text(passage: LivePassage, expanded: Expanded | None) -> str:
    read = passage.rendered("none")
    return f"{passage.headings()}\n{read if expanded is None else expanded.texts.get(passage.chunk_id, read)}"


def _held_rows(table: Table) -> dict[str, dict[str, Any]]:
    columns = ["id", "doc_id", "text", "metadata", SEARCH_COLUMN, "input_hash"]
    rows = table.search().select(columns).limit(max(1, table.count_rows())).to_arrow().select(columns).to_pylist()
    held = {row["id"]: row for row in rows}
    if len(held) != len(rows):
        # Two writers once raced on this table: every duplicated id must be rewritten.
        counted: dict[str, int] = {}
        for row in rows:
            counted[row["id"]] = counted.get(row["id"], 0) + 1
        delete_rows(table, [i for i, n in counted.items() if n > 1])
        held = {i: row for i, row in held.items() if counted[i] == 1}
    return held


def _schema(dimension: int, model_name: str, *, expanded: bool) -> pa.Schema:
    from lancedb.embeddings import EmbeddingFunctionConfig, get_registry

    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("doc_id", pa.string()),
        pa.field("text", pa.string()),
        pa.field("vector", pa.list_(pa.float32(), dimension)),
        pa.field("metadata", _STRUCT),
        pa.field(SEARCH_COLUMN, pa.string()),
        pa.field("input_hash", pa.string()),
        pa.field(SENTENCES_COLUMN, pa.binary()),
    ]
    if expanded:
        fields += [pa.field(SHIFT_COLUMN, pa.binary()), pa.field(EXPANDED_COLUMN, pa.string())]
    function = (
        get_registry()
        .get("sentence-transformers")
        .create(name=f"$var:rag_model_dir:{model_name}", trust_remote_code=False, normalize=True, device="cpu")
    )
    metadata = get_registry().get_table_metadata(
        [EmbeddingFunctionConfig(source_column="text", vector_column="vector", function=function)]
    )
    return pa.schema(fields, metadata=metadata)


def _unindexed(table: Table) -> list[str]:
    known = [list(index.columns) for index in table.list_indices()]
    return [name for name in (SEARCH_COLUMN, EXPANDED_COLUMN) if name in table.schema.names and [name] not in known]


def _index(table: Table, rows: int) -> None:
    from lancedb.index import FTS, IvfFlat

    for name in _unindexed(table):
        table.create_index(
            name,
            config=FTS(base_tokenizer="icu/split", stem=True, remove_stop_words=True, ascii_folding=True),
        )
    if rows >= EXACT_SEARCH_ROWS:
        vector = [index for index in table.list_indices() if list(index.columns) == ["vector"]]
        # Each optimize() adds a segment to a vector index; many segments slow every search down.
        if not vector or (vector[0].num_segments or 0) > 8:
            table.create_index("vector", config=IvfFlat(distance_type="cosine"), replace=True)


def _read_words(table: Table, row: Mapping[str, Any] | None) -> None:
    """Have the full-text indexes read: what cannot be read of them is passed over when new rows are folded into them."""
    from lancedb.query import MatchQuery

    for name in (SEARCH_COLUMN, EXPANDED_COLUMN):
        if row is not None and name in table.schema.names:
            asked = MatchQuery(row["text"][:100], name)  # type: ignore[call-arg]
            table.search(asked).select(["id", "_score"]).limit(1).to_arrow()


def delete_rows(table: Table, ids: Sequence[str]) -> None:
    """Delete the rows of these ids."""
    from lancedb.expr import col

    for first in range(0, len(ids), 10_000):
        table.delete(col("id").isin(ids[first : first + 10_000]))
