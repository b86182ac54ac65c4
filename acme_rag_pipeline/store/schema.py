"""The tables of `warehouse.duckdb`. Names that other programs read are listed in docs/architecture.md and never change meaning."""

from __future__ import annotations

import re
from dataclasses import dataclass

TABLES = (
    # One row a stage: what its data was made from. Kept with the data, so that a fresh DAGSTER_HOME skips too.
    """CREATE TABLE IF NOT EXISTS stages(
        stage VARCHAR PRIMARY KEY, fingerprint VARCHAR NOT NULL, data_version VARCHAR NOT NULL,
        summary JSON NOT NULL, finished_at TIMESTAMPTZ NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS documents(
        doc_path VARCHAR PRIMARY KEY, sha256 VARCHAR, status VARCHAR NOT NULL, reason VARCHAR, title VARCHAR,
        format VARCHAR, parser VARCHAR, size BIGINT, text VARCHAR, text_sha256 VARCHAR,
        mtime_ns BIGINT, scanned_at_ns BIGINT)""",
    "ALTER TABLE documents ADD COLUMN IF NOT EXISTS words BIGINT",
    """CREATE TABLE IF NOT EXISTS chunks(
        chunk_id VARCHAR PRIMARY KEY, doc_path VARCHAR NOT NULL, ordinal INTEGER NOT NULL,
        start_char INTEGER NOT NULL, end_char INTEGER NOT NULL, heading_path VARCHAR[] NOT NULL, title VARCHAR NOT NULL,
        text VARCHAR NOT NULL, text_hash VARCHAR NOT NULL, tokens INTEGER NOT NULL,
        near_duplicate_group VARCHAR NOT NULL, unit VARCHAR NOT NULL, side VARCHAR NOT NULL)""",
    # The header row of the table that the chunk begins inside of, shortened; what is read of it before the text.
    "ALTER TABLE chunks ADD COLUMN IF NOT EXISTS lead VARCHAR DEFAULT ''",
    "CREATE TABLE IF NOT EXISTS chunked_documents(doc_path VARCHAR PRIMARY KEY, fingerprint VARCHAR NOT NULL)",
    "CREATE TABLE IF NOT EXISTS minhashes(text_hash VARCHAR PRIMARY KEY, signature BLOB NOT NULL)",
    # By which permutations and words; NULL in rows of an earlier version, which are computed anew.
    "ALTER TABLE minhashes ADD COLUMN IF NOT EXISTS scheme VARCHAR",
    """CREATE TABLE IF NOT EXISTS curated_pairs(
        curated_id VARCHAR PRIMARY KEY, query VARCHAR NOT NULL, doc_path VARCHAR NOT NULL, quote VARCHAR,
        start_char INTEGER, end_char INTEGER, negative VARCHAR, status VARCHAR NOT NULL, reason VARCHAR,
        chunk_id VARCHAR, nearest_chunk_id VARCHAR)""",
    # All of the line's negatives, the first of which is `negative`, and the hash of the file that its span was taken from.
    "ALTER TABLE curated_pairs ADD COLUMN IF NOT EXISTS negatives VARCHAR[]",
    "ALTER TABLE curated_pairs ADD COLUMN IF NOT EXISTS sha256 VARCHAR",
    # As `golden_seen`, for spans without a quote: the key is the span's, in rows of an earlier version the pair's.
    "CREATE TABLE IF NOT EXISTS curated_seen(curated_id VARCHAR PRIMARY KEY, sha256 VARCHAR NOT NULL)",
    # Passages that people named as wrong for a pair's query.
    """CREATE TABLE IF NOT EXISTS curated_negatives(
        negative_id VARCHAR PRIMARY KEY, pair_id VARCHAR NOT NULL, chunk_id VARCHAR NOT NULL)""",
    # What a review rejected; `chunk_id` is NULL where the passage is gone.
    """CREATE TABLE IF NOT EXISTS rejected_pairs(
        rejection_id VARCHAR PRIMARY KEY, query VARCHAR NOT NULL, doc_path VARCHAR NOT NULL, chunk_id VARCHAR,
        reason VARCHAR NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS pairs(
        pair_id VARCHAR PRIMARY KEY, query VARCHAR NOT NULL, chunk_id VARCHAR NOT NULL, origin VARCHAR NOT NULL,
        style VARCHAR NOT NULL, method VARCHAR NOT NULL, generator VARCHAR NOT NULL, prompt_hash VARCHAR)""",
    """CREATE TABLE IF NOT EXISTS answers(
        generator VARCHAR NOT NULL, parameters_hash VARCHAR NOT NULL, prompt_hash VARCHAR NOT NULL,
        queries JSON NOT NULL, prompt_tokens INTEGER, completion_tokens INTEGER, answered_at TIMESTAMPTZ NOT NULL,
        PRIMARY KEY (generator, parameters_hash, prompt_hash))""",
    """CREATE TABLE IF NOT EXISTS llm_calls(
        called_at TIMESTAMPTZ NOT NULL, model VARCHAR NOT NULL, prompt_hash VARCHAR NOT NULL, status VARCHAR NOT NULL,
        prompt_tokens INTEGER, completion_tokens INTEGER, seconds DOUBLE, detail VARCHAR)""",
    # As in `answers`; NULL in rows of an earlier version, which count as asked without an EXTRA_BODY.
    "ALTER TABLE llm_calls ADD COLUMN IF NOT EXISTS parameters_hash VARCHAR",
    """CREATE TABLE IF NOT EXISTS training_pairs(
        pair_id VARCHAR PRIMARY KEY, side VARCHAR NOT NULL, dropped_because VARCHAR, query VARCHAR NOT NULL,
        chunk_id VARCHAR NOT NULL, origin VARCHAR NOT NULL, style VARCHAR NOT NULL, method VARCHAR NOT NULL,
        unit VARCHAR NOT NULL, overlap DOUBLE NOT NULL, negatives VARCHAR[] NOT NULL)""",
    # The authors' headings as queries for the validation side, where an LLM writes what is trained on.
    """CREATE TABLE IF NOT EXISTS heading_queries(
        query_id VARCHAR PRIMARY KEY, query VARCHAR NOT NULL, chunk_id VARCHAR NOT NULL, method VARCHAR NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS golden_queries(
        query_id VARCHAR PRIMARY KEY, query VARCHAR NOT NULL, style VARCHAR NOT NULL, unit VARCHAR,
        status VARCHAR NOT NULL, reason VARCHAR)""",
    """CREATE TABLE IF NOT EXISTS golden_judgements(
        judgement_id VARCHAR PRIMARY KEY, query_id VARCHAR NOT NULL, ordinal INTEGER NOT NULL,
        doc_path VARCHAR NOT NULL, start_char INTEGER, end_char INTEGER, quote VARCHAR, relevance INTEGER NOT NULL,
        status VARCHAR NOT NULL, reason VARCHAR)""",
    # The document that its line names, where another one has the quote now; NULL in all others.
    "ALTER TABLE golden_judgements ADD COLUMN IF NOT EXISTS moved_from VARCHAR",
    # A span without a quote holds only for the document that it was first resolved in.
    "CREATE TABLE IF NOT EXISTS golden_seen(judgement_id VARCHAR PRIMARY KEY, sha256 VARCHAR NOT NULL)",
    """CREATE TABLE IF NOT EXISTS models(
        model_digest VARCHAR NOT NULL, kind VARCHAR NOT NULL, training_key VARCHAR NOT NULL, twin_digest VARCHAR,
        passage_prefix VARCHAR NOT NULL, manifest JSON NOT NULL, created_at TIMESTAMPTZ NOT NULL,
        PRIMARY KEY (model_digest, training_key))""",
    "CREATE TABLE IF NOT EXISTS trained_pairs(training_key VARCHAR, pair_id VARCHAR, PRIMARY KEY (training_key, pair_id))",
    # The passage's side then, its text, and the negatives that people had named; NULL in rows of an earlier version.
    "ALTER TABLE trained_pairs ADD COLUMN IF NOT EXISTS side VARCHAR",
    "ALTER TABLE trained_pairs ADD COLUMN IF NOT EXISTS text_hash VARCHAR",
    "ALTER TABLE trained_pairs ADD COLUMN IF NOT EXISTS named_negatives VARCHAR[]",
    # Its wording, so that a question that people move to the golden ones is known to have been learned.
    "ALTER TABLE trained_pairs ADD COLUMN IF NOT EXISTS query_key VARCHAR",
    # The chunks that the last retrain saw, so that a schedule can tell how much changed since.
    "CREATE TABLE IF NOT EXISTS trained_chunks(chunk_id VARCHAR PRIMARY KEY)",
    # When a retrain saw the chunk first; NULL in rows of an earlier version, which count as old.
    "ALTER TABLE trained_chunks ADD COLUMN IF NOT EXISTS since TIMESTAMPTZ",
    # Gone since: its questions went too, so that it is new when it comes back.
    "ALTER TABLE trained_chunks ADD COLUMN IF NOT EXISTS retracted BOOLEAN",
    # The state of the files that people wrote, as the last retrain dealt with it.
    "CREATE TABLE IF NOT EXISTS retrained_files(stage VARCHAR PRIMARY KEY, source VARCHAR NOT NULL)",
    # With which settings and code the stages ran that the last retrain trained from.
    "CREATE TABLE IF NOT EXISTS retrained_with(stage VARCHAR PRIMARY KEY, settings_key VARCHAR NOT NULL)",
    """CREATE TABLE IF NOT EXISTS evaluations(
        evaluation_id VARCHAR NOT NULL, model_digest VARCHAR NOT NULL, arm VARCHAR NOT NULL, query_set VARCHAR NOT NULL,
        metric VARCHAR NOT NULL, value DOUBLE NOT NULL, low DOUBLE NOT NULL, high DOUBLE NOT NULL,
        queries INTEGER NOT NULL, units INTEGER NOT NULL, evaluated_at TIMESTAMPTZ NOT NULL, row_key VARCHAR NOT NULL,
        PRIMARY KEY (evaluation_id, row_key))""",
    """CREATE TABLE IF NOT EXISTS query_scores(
        evaluation_id VARCHAR NOT NULL, query_set VARCHAR NOT NULL, query_id VARCHAR NOT NULL, arm VARCHAR NOT NULL,
        unit VARCHAR NOT NULL, scores JSON NOT NULL, row_key VARCHAR NOT NULL, PRIMARY KEY (evaluation_id, row_key))""",
    """CREATE TABLE IF NOT EXISTS verdicts(
        evaluation_id VARCHAR PRIMARY KEY, candidate_digest VARCHAR, candidate_key VARCHAR NOT NULL,
        champion_digest VARCHAR NOT NULL, champion_recipe VARCHAR NOT NULL, verdict VARCHAR NOT NULL,
        reason VARCHAR NOT NULL, winner_digest VARCHAR, winner_prefix VARCHAR, winner_recipe VARCHAR,
        evidence VARCHAR NOT NULL, details JSON NOT NULL, evaluated_at TIMESTAMPTZ NOT NULL)""",
    # Table versions that the pointer named, so that clean-up knows what a reader may still hold.
    """CREATE TABLE IF NOT EXISTS served_versions(
        table_name VARCHAR NOT NULL, lance_version BIGINT NOT NULL, promoted_at TIMESTAMPTZ NOT NULL,
        superseded_at TIMESTAMPTZ, PRIMARY KEY (table_name, lance_version))""",
    """CREATE TABLE IF NOT EXISTS promotions(
        decision INTEGER PRIMARY KEY, decided_at TIMESTAMPTZ NOT NULL, model_digest VARCHAR NOT NULL,
        recipe VARCHAR NOT NULL, verdict VARCHAR NOT NULL, reason VARCHAR NOT NULL, passage_prefix VARCHAR NOT NULL,
        candidate_digest VARCHAR, candidate_key VARCHAR, evaluation_id VARCHAR)""",
    # The model whose passage vectors a query tower searches; NULL where one model encodes both.
    "ALTER TABLE promotions ADD COLUMN IF NOT EXISTS passage_digest VARCHAR",
    "ALTER TABLE verdicts ADD COLUMN IF NOT EXISTS winner_passage_digest VARCHAR",
    # The model whose numbers these are: on held-out units the twin of the served one; NULL for BM25 alone, which has none.
    "ALTER TABLE evaluations ADD COLUMN IF NOT EXISTS measured_digest VARCHAR",
    # How a fused recipe joins its two rankings, as it was judged; NULL where it is not fused or not known.
    "ALTER TABLE promotions ADD COLUMN IF NOT EXISTS fusion JSON",
    "ALTER TABLE verdicts ADD COLUMN IF NOT EXISTS winner_fusion JSON",
    # Of the champion that the candidate was compared with: `null` where it was not fused, NULL in rows of an earlier version.
    "ALTER TABLE verdicts ADD COLUMN IF NOT EXISTS champion_fusion JSON",
)


@dataclass(frozen=True)
class Column:
    """A column of a table as it is declared here."""

    name: str
    type: str
    nullable: bool
    unique: bool


def columns_of(table: str) -> list[Column]:
    """The columns of a table, read off the statements that make it: no database is opened."""
    made = re.compile(rf"CREATE TABLE IF NOT EXISTS {table}\((.*)\)$", re.DOTALL)
    added = re.compile(rf"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS (.*)$")
    declared: list[str] = []
    for statement in TABLES:
        if found := made.match(statement):
            declared += re.split(r",\s*(?![^(]*\))", found[1])
        elif found := added.match(statement):
            declared.append(found[1])
    parts = (column.split() for column in declared if not column.strip().startswith("PRIMARY KEY"))
    return [
        Column(name, kind, nullable=not {"NOT", "PRIMARY"} & {*rest}, unique="PRIMARY" in rest)
        for name, kind, *rest in parts
    ]
