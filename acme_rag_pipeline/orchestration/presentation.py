"""How a stage's result looks in the Dagster UI: numbers to plot, tables to read, the report's picture.

Everything here comes from documents or people and is shown as data: tables are records, text is never HTML.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.schema import columns_of
from acme_rag_pipeline.store.stages import StageResult
from acme_rag_pipeline.store.warehouse import records

PREVIEW_ROWS = 24
CELL_CHARACTERS = 300
PREVIEW_CHARACTERS = 120
# Dagster stores the metadata of each run three times and for good, and a run with nothing to do has nothing new to show.
PREVIEW_ROWS_UNCHANGED = 3
CELL_CHARACTERS_UNCHANGED = 80
_PREVIEWS = {
    "documents": "SELECT doc_path, title, status, reason, format FROM documents WHERE status <> 'deleted' "
    "ORDER BY status DESC, doc_path",
    "chunks": "SELECT doc_path, heading_path, text, tokens, side FROM chunks ORDER BY hash(chunk_id)",
    "curated_pairs": "SELECT p.query, p.status, p.reason, p.doc_path, p.quote, n.doc_path AS nearest_document, "
    "n.start_char || '-' || n.end_char AS nearest_span, n.text AS nearest_passage FROM curated_pairs p LEFT JOIN chunks n ON n.chunk_id = p.nearest_chunk_id ORDER BY p.status DESC, p.reason IS NULL, hash(p.curated_id)",
    # A few of each origin and style.
    "synthetic_pairs": "SELECT p.query, c.text AS passage, p.style, p.origin, p.method, c.doc_path FROM pairs p "
    "JOIN chunks c USING (chunk_id) WHERE p.origin <> 'curated' "
    "QUALIFY row_number() OVER (PARTITION BY p.origin, p.style ORDER BY p.pair_id) <= 4 "
    "ORDER BY p.origin, p.style, p.pair_id",
    "training_set": "SELECT query, dropped_because, side, overlap, origin, method FROM training_pairs ORDER BY hash(pair_id)",
    "golden_queries": "SELECT q.query, q.style, j.doc_path, j.quote FROM golden_queries q JOIN golden_judgements j "
    "USING (query_id) ORDER BY hash(q.query_id)",
    # By its id: an evaluation without any judged question has no rows, and those of the one before are not its own.
    "evaluation_report": "SELECT query_set, arm, metric, value, low, high, queries, units FROM evaluations WHERE "
    "evaluation_id = (SELECT summary->>'$.details.evaluation_id' FROM stages WHERE stage = 'evaluation_report') "
    "AND metric IN ('ndcg@10', 'recall@10') "
    "ORDER BY query_set, metric, value DESC",
    "promoted_retriever": "SELECT decided_at, verdict, reason, recipe, left(model_digest, 12) AS model_digest FROM promotions ORDER BY decision DESC",
}

_PICTURES = {
    "synthetic_pairs": "query lengths, pairs per document",
    "training_set": "filters, query lengths, overlap with the passage",
    "evaluation_report": "arms with intervals, similarities before and after, training curve",
}
# What a person looks for comes first, what only a program compares comes last.
_SENTENCES = ("verdict", "reason", "outcome")
_FOR_THE_NEXT_RUN = ("model_files", "expanded_arms", "settings_key", "made_with")
# What they leave is a model, a report or a decision: there are no rows to count.
WITHOUT_ROWS = {"fine_tuned_model", "evaluation_report", "promoted_retriever"}
_FOR_PROGRAMS = ("_digest", "_key", "_version", "evaluation_id", "content", "sources", "training_set", "table")


def metadata_of(store: Store, result: StageResult) -> dict[str, Any]:
    """The metadata of one materialisation."""
    counts = result.counts
    details = {name: value for name, value in result.details.items() if name not in _FOR_THE_NEXT_RUN}
    shown: dict[str, Any] = {}
    if picture := details.pop("picture", None):
        shown["picture"] = (
            "unchanged: that of the last run that had something to do"
            if result.unchanged
            else dg.MetadataValue.md(f"![{_PICTURES.get(result.stage, 'picture')}](data:image/png;base64,{picture})")
        )
    if report := details.pop("report", None):
        shown["report"] = dg.MetadataValue.path(str(store.root / report))
    shown |= {name: details.pop(name) for name in _SENTENCES if details.get(name)}
    if shown.get("outcome") == shown.get("reason"):
        shown.pop("outcome", None)
    shown["status"] = "unchanged: nothing to do" if result.unchanged else "done"
    if result.stage not in WITHOUT_ROWS:
        shown |= vars(counts)
        # That a table is empty is a number to plot, too.
        shown["dagster/row_count"] = counts.added + counts.changed + counts.reused
    shown["store"] = store_path(store)
    if result.seconds is not None:
        shown["wall_seconds"] = result.seconds
    for name, value in sorted(details.items(), key=lambda item: item[0].endswith(_FOR_PROGRAMS)):
        shown |= _entries(name, value)
    if query := _PREVIEWS.get(result.stage):
        most = PREVIEW_ROWS_UNCHANGED if result.unchanged else PREVIEW_ROWS
        with store.warehouse.read() as connection:
            found = records(connection, f"{query} LIMIT {most}")
        shown["preview"] = table(found, CELL_CHARACTERS_UNCHANGED if result.unchanged else PREVIEW_CHARACTERS)
    return shown


def table_of(name: str) -> dict[str, Any]:
    """The metadata of an asset that is a table of the warehouse: its name there, and its columns."""
    columns = [
        dg.TableColumn(
            column.name,
            column.type,
            constraints=dg.TableColumnConstraints(nullable=column.nullable, unique=column.unique),
        )
        for column in columns_of(name)
    ]
    return {"dagster/table_name": f"warehouse.main.{name}", "dagster/column_schema": dg.TableSchema(columns)}


def store_path(store: Store) -> dg.PathMetadataValue:
    """Which store an event is about: one Dagster instance may see runs over several."""
    return dg.MetadataValue.path(str(store.root.absolute()))


def table(rows: Sequence[Mapping[str, Any]], longest: int = CELL_CHARACTERS) -> dg.TableMetadataValue | str:
    """Rows as a table; cells are numbers, or text of so many characters at most."""
    if not rows:
        return "no rows"
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [{name: _cell(row.get(name), longest) for name in columns} for row in rows]
    kinds = {name: _kind([cell[name] for cell in cells]) for name in columns}
    for cell in cells:
        for name, kind in kinds.items():
            if kind == "string":
                cell[name] = str(cell[name])
    schema = dg.TableSchema([dg.TableColumn(name, kinds[name]) for name in columns])
    return dg.MetadataValue.table([dg.TableRecord(cell) for cell in cells], schema)


def _entries(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, list):
        rows = [row if isinstance(row, dict) else {"value": row} for row in value]
        return {name: table(rows)} if rows else {}
    if name == "curve":
        return {
            "training_curve": table(
                [
                    {k: round(v, 4) for k, v in row.items()}
                    for row in value["steps"][:: max(1, len(value["steps"]) // 20)]
                ]
            ),
            "validation_curve": table(value["epochs"]),
        }
    if isinstance(value, dict):
        numbers = {f"{name}/{key}": v for key, v in value.items() if isinstance(v, int | float)}
        rest = {key: v for key, v in value.items() if not isinstance(v, int | float)}
        return numbers | ({name: dg.MetadataValue.json(rest)} if rest else {})
    if value is None:
        return {}
    return {name: value}


def _cell(value: Any, longest: int) -> Any:
    if isinstance(value, bool) or value is None:
        return str(value) if value is not None else ""
    if isinstance(value, int | float):
        return value
    if isinstance(value, list | tuple):
        value = " > ".join(str(part) for part in value)
    text = str(value)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _kind(values: Sequence[Any]) -> str:
    if all(isinstance(value, int) for value in values):
        return "int"
    if all(isinstance(value, int | float) for value in values):
        return "float"
    return "string"
