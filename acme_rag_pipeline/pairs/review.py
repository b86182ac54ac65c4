"""A person's review of the pairs: out as a file, and back into the curated pairs that every later run starts from."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acme_rag_pipeline.llm.text import clean_line, one_line
from acme_rag_pipeline.pairs.curated_file import CuratedFile, Line, ReviewUnusable, text_of
from acme_rag_pipeline.pairs.curated_formats import EXPORTED, NOT_LINES, VERDICTS, as_verdict, position
from acme_rag_pipeline.pairs.curated_places import span_key
from acme_rag_pipeline.pairs.prompt import MAX_QUERY_CHARS
from acme_rag_pipeline.pairs.review_files import VARIABLE, reviewed_rows
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.fingerprints import normalised
from acme_rag_pipeline.store.layout import Store, write_atomically
from acme_rag_pipeline.store.passages import heading_line
from acme_rag_pipeline.store.stages import UpstreamMissing, data_versions
from acme_rag_pipeline.store.warehouse import records

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def review_rows(
    store: Store, origins: Sequence[str] = (), *, dropped_too: bool = False, sample: int | None = None
) -> list[dict[str, Any]]:
    """The pairs of today for a person to judge, in the order of the documents.

    Args:
        origins: `curated`, `openai`, `offline`; empty: all.
        dropped_too: Also pairs that the filters dropped; `dropped_because` says why.
        sample: At most so many of each origin, style and method, the same each time; None: all.

    Raises:
        UpstreamMissing: no pairs were ever written.
    """
    if not store.warehouse.path.exists():  # a reader would create it
        raise UpstreamMissing(f"{store.root} holds no pairs yet: run `retrain` first")
    data_versions(store.warehouse, "synthetic_pairs")
    with store.warehouse.read() as connection:
        rows = records(
            connection,
            "SELECT p.pair_id, p.query, c.text AS passage, c.doc_path, q.quote, "
            'coalesce(q.start_char, c.start_char) AS start, coalesce(q.end_char, c.end_char) AS "end", '
            "c.heading_path, c.title, p.origin, p.style, p.method, t.side, t.dropped_because, q.sha256 AS of_file, "
            # The file that the numbers hold for; a refresh may have read another one since it cut the chunks.
            "CASE WHEN array_slice(d.text, c.start_char + 1, c.end_char) = c.text THEN d.sha256 END AS sha256, "
            "CASE WHEN q.quote IS NULL THEN array_slice(d.text, q.start_char + 1, q.end_char) END AS of_span "
            "FROM pairs p JOIN chunks c USING (chunk_id) LEFT JOIN training_pairs t USING (pair_id) "
            "LEFT JOIN (SELECT * FROM curated_pairs WHERE status = 'resolved' QUALIFY row_number() OVER "
            "(PARTITION BY query, chunk_id ORDER BY curated_id) = 1) q "
            "ON p.origin = 'curated' AND q.query = p.query AND q.chunk_id = p.chunk_id "
            "LEFT JOIN documents d ON d.doc_path = c.doc_path "
            "ORDER BY c.doc_path, c.start_char, p.origin, p.query, p.pair_id",
        )
        seen = dict(connection.execute("SELECT curated_id, sha256 FROM curated_seen").fetchall())
    chosen = []
    for row in rows:
        of_span, of_file, sha256 = row.pop("of_span"), row.pop("of_file"), row["sha256"]
        # With its text a reviewed line no longer depends on numbers; an edited document has another text there.
        held_for = of_file or seen.get(span_key(row["doc_path"], row["start"], row["end"]))
        if of_span and of_span.strip() and held_for == sha256:
            row["quote"] = of_span
        if (origins and row["origin"] not in origins) or (row["dropped_because"] and not dropped_too):
            continue
        heading = heading_line(row.pop("title"), row.pop("heading_path"))
        names = ("pair_id", "query", "passage", "doc_path", "quote", "start", "end", "sha256")
        shown = {name: row.pop(name) for name in names} | {"heading": heading} | row
        chosen.append(shown | {"verdict": "", EXPORTED: ""})
    return chosen if sample is None else _sampled(chosen, sample)


def _sampled(rows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    taken: Counter[tuple[str, ...]] = Counter()
    chosen: set[str] = set()
    # An id is a hash: the first ones are as good as drawn, and stay when others come.
    for row in sorted(rows, key=lambda row: row["pair_id"]):
        kind = (row["origin"], row["style"], row["method"])
        if taken[kind] < most:
            taken[kind] += 1
            chosen.add(row["pair_id"])
    return [row for row in rows if row["pair_id"] in chosen]


@dataclass(frozen=True)
class Imported:
    """What came of a reviewed file.

    Attributes:
        file: The curated pairs that it was merged into.
        verdicts: Lines by verdict; `none`: not judged.
        changed: Whether the file was written; False: it held all of it already.
        to_set: The file is not the one that the settings name: set the variable to it.
    """

    file: Path
    verdicts: dict[str, int]
    changed: bool
    to_set: bool


def import_review(reviewed: Path, settings: Settings, into: Path | None = None) -> Imported:
    """Merge a reviewed file into the curated pairs, all of it or nothing; a second time changes nothing.

    Accepted and edited pairs become curated pairs. Rejected ones are kept with their verdict, so that the same query
    for the same passage is not trained on when a generator writes it again; so is the wording that an edit replaced.

    Args:
        reviewed: JSONL, CSV or TSV with what `review_rows` gives, and `verdict` filled in.
        settings: Name the curated pairs, whose lines stay as they are where the review says nothing about them.
        into: Another file; where it is new it starts with the pairs of the settings' file.

    Raises:
        ReviewUnusable: a line cannot be used, or there is no file to merge into.
    """
    judged, verdicts = _judged(reviewed)
    target = (into or settings.curated_pairs or Path()).absolute()
    if into is None and settings.curated_pairs is None:
        raise ReviewUnusable(f"{VARIABLE} is not set: name a file with --into FILE.jsonl, then set {VARIABLE} to it")
    if target.resolve() == reviewed.resolve():
        raise ReviewUnusable(f"{target} is the reviewed file itself: name another one with --into FILE.jsonl")
    if target.suffix.lower() in NOT_LINES:
        raise ReviewUnusable(
            f"{target}: verdicts are kept as JSON Lines; name a file with --into FILE.jsonl (it starts with the pairs of "
            f"{target.name}), then set {VARIABLE} to it"
        )
    before = text_of(target)
    held = settings.curated_pairs
    seed = held if before is None and held is not None and held.exists() else None
    # An export that was taken for a curated file holds no pairs to start with.
    file = CuratedFile.of(before, None if seed and seed.resolve() == reviewed.resolve() else seed)
    for line in judged:
        file.take(line)
    after = file.text()
    changed = bool(judged) and after.rstrip("\n") != (before or "").rstrip("\n")
    if changed:
        try:
            write_atomically(target.resolve(), after)
        except OSError as error:
            raise ReviewUnusable(f"{target} cannot be written: {error.strerror}") from None
    to_set = settings.curated_pairs is None or settings.curated_pairs.resolve() != target.resolve()
    return Imported(target, verdicts, changed, to_set)


def _judged(reviewed: Path) -> tuple[list[Line], dict[str, int]]:
    """Lines for the curated pairs, and how many lines have which verdict."""
    counts: Counter[str] = Counter()
    lines: list[Line] = []
    said: dict[tuple[str, str, str], tuple[str, Line]] = {}
    for where, row in reviewed_rows(reviewed):
        number = where.removeprefix("line ")
        line = _judged_line(f"{reviewed.name} {where}", row)
        counts[str(line["verdict"]) if line else "none"] += 1
        if line is None:
            continue
        key = _key(line, line.get("replaces") or line["query"])
        earlier, same = said.setdefault(key, (number, line))
        if (same["verdict"], same["query"]) != (line["verdict"], line["query"]):
            raise ReviewUnusable(
                f"{reviewed.name}: lines {earlier} and {number} judge the same query and passage differently"
            )
        if same is line:
            lines.append(line)
    _no_chains(reviewed.name, said)
    return lines, dict(counts)


def _key(line: Line, query: str) -> tuple[str, str, str]:
    """A query about a passage."""
    return query, line["doc_path"], normalised(line["quote"]) if line["quote"] else f"{line['start']}-{line['end']}"


def _no_chains(name: str, said: dict[tuple[str, str, str], tuple[str, Line]]) -> None:
    """Refuse an edit into a wording that the same file edits further or rejects: the result depended on the order."""
    for number, line in said.values():
        other, target = said.get(_key(line, line["query"]), (number, line))
        if "replaces" in line and target is not line and target["verdict"] in ("edited", "rejected"):
            does = "edits" if target["verdict"] == "edited" else "rejects"
            raise ReviewUnusable(
                f"{name}: line {number} edits a query into a wording that line {other} {does} for the same passage; "
                f"write the wording that is meant, or import line {other} on its own first"
            )


def _judged_line(where: str, row: Line) -> Line | None:
    verdict = as_verdict(row.get("verdict")) or ""
    if verdict in ("", "accepted", "rejected") and _is_edited(row):
        raise ReviewUnusable(f"{where}: edited_query is filled in, so verdict must be `edited`; or empty edited_query")
    if verdict == "":
        return None
    if verdict not in VERDICTS:
        raise ReviewUnusable(f"{where}: verdict must be one of {', '.join(VERDICTS)}, or empty")
    wrong = [name for name in ("query", "doc_path") if not isinstance(row.get(name), str) or not row[name].strip()]
    quote = row.get("quote") or None
    if quote is None and row.get("origin") != "curated":
        quote = row.get("passage") or None
    try:
        span = [position(row.get(name)) for name in ("start", "end")]
    except (TypeError, ValueError, OverflowError):
        span = [None, 0]
    sha256 = row.get("sha256") or None
    if quote is not None and not isinstance(quote, str):
        wrong.append("quote")
    # Beside a quote the numbers are a hint.
    if None in span and (quote is None or span != [None, None]):
        wrong.append("start and end")
    if sha256 is not None and not (isinstance(sha256, str) and _SHA256.fullmatch(sha256.strip())):
        wrong.append("sha256")
    if wrong:
        raise ReviewUnusable(
            f"{where}: {', '.join(wrong)} missing or of the wrong type; leave what was exported as it is"
        )
    if not (quote or row.get("passage") or sha256):
        raise ReviewUnusable(
            f"{where}: after an edit of its document the span would be another passage; keep one of the columns passage, "
            "quote and sha256 as it was exported, or export again and judge there"
        )
    line = {"query": one_line(row["query"]), "doc_path": row["doc_path"], "quote": quote}
    line |= {"start": span[0], "end": span[1]}
    if quote is None and sha256:
        line["sha256"] = sha256.strip().lower()
    if verdict != "edited":
        return line | {"verdict": verdict}
    edited = clean_line(row["edited_query"]) if isinstance(row.get("edited_query"), str) else ""
    if not any(character.isalnum() for character in edited) or len(edited) > MAX_QUERY_CHARS:
        raise ReviewUnusable(f"{where}: `edited` needs edited_query, at most {MAX_QUERY_CHARS} characters")
    if edited == line["query"]:
        return line | {"verdict": "accepted"}
    edit = {"query": edited, "verdict": "edited", "replaces": line["query"]}
    return line | edit | {"origin": row.get("origin")}


def _is_edited(row: Line) -> bool:
    said = (row.get(name) for name in ("edited_query", "query"))
    edited, query = (one_line(text) if isinstance(text, str) else text for text in said)
    return bool(edited) and edited != query
