"""The user's own example queries, which show an LLM in what tone people search; never queries that judge a model."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

from acme_rag_pipeline.llm.text import clean_line
from acme_rag_pipeline.pairs.curated_formats import TOLD_DELIMITER, NotTheFormat, decoded
from acme_rag_pipeline.pairs.plain_text import words
from acme_rag_pipeline.pairs.prompt import MAX_EXAMPLES, MAX_QUERY_CHARS
from acme_rag_pipeline.pairs.wording import query_key
from acme_rag_pipeline.settings import Settings, SettingsError
from acme_rag_pipeline.store.text_files import NOT_UTF8, holds_raw_bytes, with_raw_bytes

VARIABLE = "ACME_RAG_PAIRS__EXAMPLES"
# Wordings more alike than this (share of characters, words in any order) count as the golden query itself.
_SAME_QUERY = 80.0
# A query with as many words that stands in another one counts as it, too.
_QUESTION_WORDS = 4


def example_queries(settings: Settings) -> tuple[tuple[str, ...], list[str]]:
    """The first usable examples of the user's file, and a warning for what is left out.

    A file of lines: each a query, or JSON with `query`; or a CSV file with a column `query`. A line that begins with a
    number sign and a space is a comment. Examples whose wording is near a golden query, or that hold one, are left out:
    the questions that the model is trained on must not be modelled on those that judge it.

    Raises:
        SettingsError: the file cannot be read, or belongs to the golden set.
    """
    if settings.pairs.examples is None:
        return (), []
    path = (settings.root / settings.pairs.examples.expanduser()).absolute()
    text = _text_of(_read(VARIABLE, path))
    golden = _golden_queries(settings, path, text)
    usable: list[str] = []
    near = unusable = damaged = 0
    for line in _lines(text):
        query = _query(line)
        if holds_raw_bytes(line):
            damaged += 1
        elif query is None:
            unusable += bool(line.strip())
        elif _near(query, golden):
            near += 1
        elif query not in usable:
            usable.append(query)
    warnings = []
    if near:
        warnings.append(f"{VARIABLE}: {near} examples are near golden queries and were left out")
    if unusable:
        warnings.append(
            f"{VARIABLE}: {unusable} lines are neither a query of at most {MAX_QUERY_CHARS} characters nor JSON with one "
            "as `query`"
        )
    if damaged:
        warnings.append(f"{VARIABLE}: {damaged} lines are left out, since they are {NOT_UTF8}")
    if len(usable) > MAX_EXAMPLES:
        warnings.append(f"{VARIABLE}: the first {MAX_EXAMPLES} of {len(usable)} examples are used")
    return tuple(usable[:MAX_EXAMPLES]), warnings


def _read(variable: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{variable}: {path} cannot be read: {error}") from error


def _text_of(data: bytes) -> str:
    """As curated files are decoded: UTF-8 or UTF-16; another encoding costs the lines that differ in it."""
    try:
        return decoded(data)
    except NotTheFormat:
        return with_raw_bytes(data)


def _lines(text: str) -> list[str]:
    """What may be queries: the lines without comments, or the cells of a CSV file's column `query`."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if told := TOLD_DELIMITER.match(text):
        text = text[told.end() :]
    lines = text.split("\n")
    header = next((line for line in lines if line.strip()), "")
    delimiter = told[1] if told else max(",;\t", key=header.count)
    columns = [cell.strip().strip('"').lower() for cell in header.split(delimiter)]
    if "query" not in columns:
        return [line for line in lines if not re.match(r"\s*#(?:\s|$)", line)]
    column = columns.index("query")
    try:
        rows = [row for row in csv.reader(io.StringIO(text.lstrip()), delimiter=delimiter) if row]
    except csv.Error as error:
        raise SettingsError(f"{VARIABLE}: the CSV file cannot be read: {error}") from error
    return [row[column] for row in rows[1:] if len(row) > column]


def _golden_queries(settings: Settings, path: Path, text: str) -> list[str]:
    if settings.golden is None:
        return []
    golden = settings.golden / "queries.jsonl"
    refusal = (
        f"{VARIABLE}: {path} belongs to the golden set, which must not shape training; give examples of other queries"
    )
    if path.resolve().is_relative_to(settings.golden.resolve()):
        raise SettingsError(refusal)
    # As the golden stage reads it: a line that it does not judge by keeps no example out.
    judged = with_raw_bytes(_read("ACME_RAG_GOLDEN", golden))
    if judged.strip() and judged.strip() == text.strip():
        raise SettingsError(refusal)
    return [folded for line in judged.split("\n") if (query := _query(line)) and (folded := query_key(query))]


def _query(line: str) -> str | None:
    line = line.strip()
    if holds_raw_bytes(line):
        return None
    if line.startswith(("{", "[")):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            # "[Outlook] no new mail" is a query.
            row = line if line.startswith("[") else None
        if isinstance(row, dict):
            row = row.get("query")
        if not isinstance(row, str):
            return None
        line = row
    query = clean_line(line)
    fits = len(query) <= MAX_QUERY_CHARS and any(character.isalnum() for character in query)
    return query if fits else None


def _near(query: str, golden: Sequence[str]) -> bool:
    from rapidfuzz import fuzz, process

    key = query_key(query)
    if any(_holds(key, judging) or _holds(judging, key) for judging in golden):
        return True
    return process.extractOne(key, golden, scorer=fuzz.token_sort_ratio, score_cutoff=_SAME_QUERY) is not None


def _holds(longer: str, shorter: str) -> bool:
    # Fewer words ("travel card") are the same topic, not the same question.
    return f" {shorter} " in f" {longer} " and len(words(shorter)) >= _QUESTION_WORDS
