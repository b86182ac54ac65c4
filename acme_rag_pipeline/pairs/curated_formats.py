"""The files in which people keep their (query, passage) pairs: JSONL, CSV, and LlamaIndex's fine-tuning dataset."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from acme_rag_pipeline.llm.text import one_line
from acme_rag_pipeline.settings import SettingsError
from acme_rag_pipeline.store.fingerprints import fingerprint
from acme_rag_pipeline.store.text_files import NOT_UTF8, holds_raw_bytes, with_raw_bytes

Verdict = Literal["accepted", "edited", "rejected"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
# The field that only a line of an export for review has.
EXPORTED = "edited_query"
# A first line `sep=;` tells Excel the delimiter; without it spreadsheets of many countries write semicolons.
TOLD_DELIMITER = re.compile(r'\s*"?sep=([,;\t])"?[ \t]*\n', re.IGNORECASE)
# Endings of files that are no JSON Lines.
NOT_LINES = (".csv", ".tsv", ".json")
_LLAMA_INDEX = ("queries", "corpus", "relevant_docs")


@dataclass(frozen=True)
class CuratedPair:
    """One pair of the user's file.

    Attributes:
        query: One line without control characters.
        doc_path: Where the passage stands; None: wherever the quote is found.
        quote: A piece of the passage, or all of it.
        start: First character; beside a quote only a hint where to look.
        end: After the last character.
        negatives: Texts of passages that do not answer the query.
        verdict: What a review said; None: not reviewed. A rejected pair keeps the same pair of a generator out.
        replaces: The generator's wording that a reviewer edited into `query`; it is kept out like a rejected one.
        sha256: Of the bytes of the document that a span without a quote was taken from, the only one it holds for.
    """

    query: str
    doc_path: str | None
    quote: str | None
    start: int | None
    end: int | None
    negatives: tuple[str, ...] = ()
    verdict: Verdict | None = None
    replaces: str | None = None
    sha256: str | None = None

    @property
    def curated_id(self) -> str:
        """Content-addressed: equal lines are one pair."""
        negatives = self.negatives if len(self.negatives) > 1 else next(iter(self.negatives), None)
        reviewed = (self.verdict, self.replaces) if self.verdict or self.replaces else ()
        # Nothing for what a line does not have, so that it stays the pair that an earlier version knew.
        file = (self.sha256,) if self.sha256 else ()
        return fingerprint(self.query, self.doc_path, self.quote, self.start, self.end, negatives, *reviewed, *file)


def read_curated_pairs(path: Path) -> tuple[list[CuratedPair], list[str]]:
    """Read the pairs of a file; its name's ending says how: `.csv` or `.tsv`, `.json` (LlamaIndex), anything else JSONL.

    JSONL and CSV hold {query, doc_path?, quote | start + end, sha256?, negative?, verdict?, replaces?}, JSONL also a list
    of texts as `negative`; LlamaIndex's `EmbeddingQAFinetuneDataset` holds {queries: {id: text}, corpus: {id: text},
    relevant_docs: {query id: [corpus id]}}.

    Returns:
        The pairs, and one sentence for each line that is none, or of which a part is left out (the others are used).

    Raises:
        SettingsError: the file cannot be read at all.
    """
    pairs: dict[str, CuratedPair] = {}
    problems: list[str] = []
    for where, raw in raw_rows(path):
        pair, problem = _checked(raw)
        if problem:
            problems.append(f"{where}: {problem}")
        if pair is not None:
            pairs.setdefault(pair.curated_id, pair)
    return list(pairs.values()), problems


def raw_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Each row of the file with the place it stands at, unchecked; a sentence in place of a row that is none.

    Raises:
        SettingsError: the file cannot be read at all.
    """
    damaged = False
    try:
        data = path.read_bytes()
        try:
            text = decoded(data)
        except NotTheFormat:
            # A spreadsheet that saves in its country's encoding spoils a few lines, and not the others.
            text, damaged = with_raw_bytes(data), True
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        if not text.strip():
            return
        read = _READERS.get(path.suffix.lower(), _jsonl_rows)
        for where, row in read(text):
            spoilt = damaged and holds_raw_bytes(json.dumps(row, ensure_ascii=False))
            yield where, NOT_UTF8 if spoilt else row
    except (OSError, csv.Error, NotTheFormat) as error:
        why = NOT_UTF8 if damaged else error
        raise SettingsError(f"ACME_RAG_CURATED_PAIRS: {path} cannot be read: {why}") from error


class NotTheFormat(ValueError):
    """A file that is not what its name says, or a line that is no pair; the message says why."""


def _jsonl_rows(text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f"line {number}", read_json(line)
            except (ValueError, RecursionError) as error:
                yield f"line {number}", f"not JSON ({error})"


def read_json(text: str) -> Any:
    """A JSON value as Python programs write it: `NaN` is what pandas puts where a row has nothing.

    Raises:
        ValueError, RecursionError: it is none.
    """
    return json.loads(text, parse_constant=lambda name: None if name == "NaN" else float(name))


def decoded(data: bytes) -> str:
    """The text of a file as spreadsheets save it: UTF-8, or UTF-16 with its mark.

    Raises:
        NotTheFormat: it is neither.
    """
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotTheFormat(f"not UTF-8 ({error}); in a spreadsheet save it as `CSV UTF-8`") from None


def _csv_rows(text: str) -> Iterator[tuple[str, Any]]:
    told = TOLD_DELIMITER.match(text)
    body = text[told.end() :] if told else text.lstrip("\n")
    header = body.partition("\n")[0]
    above = text[: len(text) - len(body)].count("\n") + 1
    names: list[str] = []
    for first, cells in _csv_records(body, told[1] if told else max(",;\t", key=header.count)):
        if isinstance(cells, str):
            yield f"line {above + first}", cells
        elif any(cell.strip() for cell in cells[len(names) :] if names):
            problem = "more cells than columns: put a cell that holds the delimiter in quotation marks"
            yield f"line {above + first}", problem
        elif names:
            yield f"line {above + first}", {name: _cell(name, value) for name, value in zip(names, cells, strict=False)}
        else:
            names = [name.strip().casefold() for name in cells]
            if "query" not in names:
                columns = ", ".join(names)[:200]
                raise NotTheFormat(f"its first line names the columns, and none of them is `query`: {columns}")


def _csv_records(body: str, delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """The cells of each record that is not empty, with the index of its first line; a sentence in place of broken ones.

    A quoted cell may hold line breaks, so a quotation mark that nothing closes would take the rest of the file into one
    cell. Where that happens the line is given up and reading goes on with the next one.
    """
    # Not splitlines: a cell may hold what that takes for the end of a line.
    lines = [f"{line}\n" for line in body.split("\n")]
    position = 0

    def following() -> Iterator[str]:
        nonlocal position
        while position < len(lines):
            position += 1
            yield lines[position - 1]

    reader = csv.reader(following(), delimiter=delimiter, strict=True)
    while position < len(lines):
        first = position
        try:
            cells = next(reader, [])
        except csv.Error:
            one_line = position == first + 1
            position = first + 1
            reader = csv.reader(following(), delimiter=delimiter, strict=True)
            try:
                # Text after a closing mark ('"Who" asks') is no harm within a line.
                cells = next(csv.reader(lines[first : first + 1], delimiter=delimiter))
            except csv.Error as error:
                yield first, f"not CSV ({error})"
                continue
            # Only a cell that is still open holds the end of the line.
            if not one_line or any(cell.endswith("\n") for cell in cells):
                yield first, 'a cell begins with a quotation mark (") and does not end with one'
                continue
        # A spreadsheet pads the rows that people left empty.
        if any(cell.strip() for cell in cells):
            yield first, cells


def _cell(name: str | None, value: Any) -> Any:
    return value.strip() if isinstance(value, str) and name in ("doc_path", "start", "end") else value


def _llama_index_rows(text: str) -> Iterator[tuple[str, Any]]:
    try:
        dataset = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotTheFormat(f"not JSON ({error}); JSON Lines need the ending .jsonl") from None
    if not isinstance(dataset, dict) or not all(isinstance(dataset.get(name), dict) for name in _LLAMA_INDEX):
        raise NotTheFormat(
            "not a LlamaIndex dataset {queries, corpus, relevant_docs}; JSON Lines need the ending .jsonl"
        )
    queries, corpus, relevant = (dataset[name] for name in _LLAMA_INDEX)
    for query_id, query in queries.items():
        passages = relevant.get(query_id)
        if not isinstance(passages, list) or not passages:
            yield f"query {query_id}", "no relevant_docs"
            continue
        for passage_id in passages:
            quote = corpus.get(passage_id) if isinstance(passage_id, str) else None
            if not isinstance(quote, str) or not quote.strip():
                yield f"query {query_id}", "a relevant document is not in the corpus"
            else:
                yield f"query {query_id}", {"query": query, "quote": quote}


_READERS = {".csv": _csv_rows, ".tsv": _csv_rows, ".json": _llama_index_rows}


def _checked(raw: Any) -> tuple[CuratedPair | None, str]:
    """The pair of a row, and what is wrong with it."""
    try:
        return _pair(raw)
    except NotTheFormat as error:
        return None, str(error)


def _pair(raw: Any) -> tuple[CuratedPair, str]:
    if isinstance(raw, str):
        raise NotTheFormat(raw)
    if not isinstance(raw, dict):
        raise NotTheFormat("not an object")
    if EXPORTED in raw:
        # As a pair it would make a person's of every question that nobody judged, and keep the wording that was edited.
        raise NotTheFormat("a line of an export for review, which `acme-rag pairs import` takes in")
    names = ("query", "doc_path", "quote", "verdict", "replaces", "sha256")
    query, doc_path, quote, verdict, replaces, sha256 = (raw.get(name) or None for name in names)
    if not isinstance(query, str) or not one_line(query):
        raise NotTheFormat("no query")
    for name, value in (("doc_path", doc_path), ("quote", quote), ("replaces", replaces), ("sha256", sha256)):
        if value is not None and not isinstance(value, str):
            raise NotTheFormat(f"{name} is not a text")
    if any(_is_broken(text) for text in (query, doc_path, quote, replaces, sha256) if text):
        raise NotTheFormat("a text holds half a character (a lone surrogate): it was cut in the middle of one")
    verdict = as_verdict(verdict) or None
    if verdict is not None and verdict not in VERDICTS:
        raise NotTheFormat(f"verdict must be one of {', '.join(VERDICTS)}, or be left out")
    try:
        start, end = (position(raw.get(name)) for name in ("start", "end"))
    except (TypeError, ValueError, OverflowError):
        raise NotTheFormat("start and end must be character positions") from None
    if any(position is not None and not 0 <= position < 2**31 for position in (start, end)):
        raise NotTheFormat("start and end must be character positions")
    if quote is None and (start is None or end is None or not 0 <= start < end):
        raise NotTheFormat("neither a quote nor a span (start, end)")
    if quote is None and doc_path is None:
        raise NotTheFormat("no doc_path: a span needs one")
    negatives, problem = _negatives(raw.get("negative"))
    replaced = one_line(replaces or "") or None
    file = sha256.strip().lower() or None if sha256 else None
    return CuratedPair(one_line(query), doc_path, quote, start, end, negatives, verdict, replaced, file), problem


def _negatives(value: Any) -> tuple[tuple[str, ...], str]:
    """The texts of a field `negative`, and what is said of those that cannot be used, which cost no pair."""
    named = [text for text in (value if isinstance(value, list) else [value]) if text]
    usable = [text for text in named if isinstance(text, str) and not _is_broken(text)]
    problem = (
        "" if len(usable) == len(named) else "a negative is left out: not a text, or one that holds half a character"
    )
    return tuple(dict.fromkeys(usable)), problem


def as_verdict(value: Any) -> Any:
    """A verdict as people write it, without spaces around it and in small letters."""
    return value.strip().lower() if isinstance(value, str) else value


def _is_broken(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def position(value: Any) -> int | None:
    """The character position that a cell or a JSON value means; None: it is empty.

    Raises:
        TypeError, ValueError, OverflowError: it is none.
    """
    if value is None or value == "":
        return None
    # What int() takes besides: True is 1, 1.9 is 1, "1_0" is 10.
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()) or "_" in str(value):
        raise ValueError(value)
    # pandas writes whole numbers so in a column that has empty cells.
    return int(value.removesuffix(".0") if isinstance(value, str) else value)
