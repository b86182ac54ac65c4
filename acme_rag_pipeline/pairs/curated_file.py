"""The curated file as lines, which a review is merged into."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acme_rag_pipeline.documents.doc_paths import plain_doc_path
from acme_rag_pipeline.errors import UserError
from acme_rag_pipeline.llm.text import one_line
from acme_rag_pipeline.pairs.curated_formats import (
    EXPORTED,
    NOT_LINES,
    NotTheFormat,
    as_verdict,
    decoded,
    position,
    raw_rows,
    read_json,
)
from acme_rag_pipeline.store.fingerprints import normalised

Line = dict[str, Any]


class ReviewUnusable(UserError, ValueError):
    """A reviewed file that cannot be taken in; the message names the line, and nothing was written."""


def text_of(path: Path) -> str | None:
    """The text of a file of lines; None: there is no file.

    Raises:
        ReviewUnusable: it cannot be read.
    """
    try:
        # Other line ends stay: a line that is not touched is kept character for character.
        return re.sub(r"\r(?!\n)", "\n", decoded(path.read_bytes())) if path.exists() else None
    except (OSError, NotTheFormat) as error:
        raise ReviewUnusable(f"{path} cannot be read: {error}") from error


@dataclass
class CuratedFile:
    """The lines of a curated file: what the review does not touch stays character for character."""

    lines: list[str] = field(default_factory=list)
    rows: list[Line | None] = field(default_factory=list)  # None: not a pair, kept as it is
    _places: dict[str, list[int]] = field(default_factory=dict)  # wording to the rows that have or had it

    @classmethod
    def of(cls, text: str | None, seed: Path | None) -> CuratedFile:
        """The file with this text; where there is none yet, with the pairs of another one.

        Raises:
            ReviewUnusable: a line of that one would be lost.
        """
        file = cls()
        # Other lines of JSON Lines, comments for instance, are carried over as they are.
        if text is None and seed is not None and seed.suffix.lower() not in NOT_LINES:
            text = text_of(seed)
        if text is not None:
            for line in text.removesuffix("\n").split("\n") if text else []:
                file._append(line, _pair(line))
        elif seed is not None:
            for where, row in raw_rows(seed):
                # LlamaIndex's queries without a passage are no pairs; a broken line of a CSV is one that would be lost.
                if isinstance(row, str) and seed.suffix.lower() != ".json":
                    raise ReviewUnusable(f"{seed.name} {where}: {row}; mend it first, so that it can be carried over")
                if isinstance(row, dict) and EXPORTED not in row:
                    known = {name: value for name, value in row.items() if name is not None and value not in (None, "")}
                    file._append(_json(_row(known)), _row(known))
        return file

    def take(self, judged: Line) -> None:
        """Put in a judged pair: in place of the line about it, or at the end.

        `origin` says whether a generator wrote what was edited, and is not written; nor is `end` beside a quote.
        """
        there = self._about(judged, judged["query"])
        generated = judged.pop("origin", None) != "curated"
        if "replaces" in judged:
            there = sorted(
                {*there, *self._about(judged, judged["replaces"]), *self._about(judged, judged["replaces"], "replaces")}
            )
        elif judged["verdict"] == "rejected" and not there and self._about(judged, judged["query"], "replaces"):
            return  # edited before, which keeps the wording out already
        for i in there:
            self._judge(i, judged)
        # A line that has the new wording already may keep another one out: then a generator's needs a line of its own.
        if not there or (
            generated and "replaces" in judged and not self._about(judged, judged["replaces"], "replaces")
        ):
            written = {name: value for name, value in judged.items() if name != "end" or judged["quote"] is None}
            self._append(_json(written), written)

    def text(self) -> str:
        """The whole file."""
        return "".join(f"{line}\n" for line in self.lines)

    def _judge(self, i: int, judged: Line) -> None:
        row = self.rows[i] or {}
        rejected = judged["verdict"] == "rejected"
        replaced = row.get("replaces") or judged.get("replaces")
        same = one_line(row["query"]) == judged["query"] and (row.get("verdict") == "rejected") == rejected
        # With the text of its span a line is found again after the document is edited, with the file's hash it is no other.
        found_by = "quote" if judged["quote"] is not None else "sha256"
        quoted = (
            {found_by: judged[found_by]} if judged.get(found_by) and not (row.get("quote") or row.get(found_by)) else {}
        )
        # Without a verdict of its own an accepted line would go with another wording that is rejected (`curated_pairs`).
        if same and replaced == row.get("replaces") and not quoted and row.get("verdict"):
            return
        wanted = row | quoted | {"query": judged["query"], "verdict": judged["verdict"]}
        if replaced:
            # The first wording is the generator's, which has to stay out; later ones are people's.
            wanted["replaces"] = replaced
        self.rows[i], self.lines[i] = wanted, _json(wanted)
        self._note(i)

    def _about(self, judged: Line, query: str, name: str = "query") -> list[int]:
        found = []
        for i in self._places.get(query, []):
            row = self.rows[i] or {}
            if isinstance(row.get(name), str) and one_line(row[name]) == query and _same_passage(row, judged):
                found.append(i)
        return found

    def _append(self, line: str, row: Line | None) -> None:
        self.lines.append(line)
        self.rows.append(row)
        self._note(len(self.rows) - 1)

    def _note(self, i: int) -> None:
        row = self.rows[i] or {}
        for wording in {one_line(row[name]) for name in ("query", "replaces") if isinstance(row.get(name), str)}:
            if i not in self._places.setdefault(wording, []):
                self._places[wording].append(i)


def _same_passage(row: Line, judged: Line) -> bool:
    doc_path = row.get("doc_path")
    if doc_path and not (isinstance(doc_path, str) and plain_doc_path(doc_path) == plain_doc_path(judged["doc_path"])):
        return False
    quote = row.get("quote")
    if quote and judged["quote"] is not None:
        return isinstance(quote, str) and normalised(quote) == normalised(judged["quote"])
    hashes = [str(of_one["sha256"]).strip().lower() for of_one in (row, judged) if of_one.get("sha256")]
    if len({*hashes}) > 1:
        return False
    # A line without a quote, or one that got the text of its span since it was exported.
    try:
        return all(position(row.get(name)) == judged[name] for name in ("start", "end"))
    except (TypeError, ValueError, OverflowError):
        return False


def _pair(line: str) -> Line | None:
    try:
        row = read_json(line)
    except (ValueError, RecursionError):
        return None
    return _row(row) if isinstance(row, dict) and isinstance(row.get("query"), str) and EXPORTED not in row else None


def _row(row: Line) -> Line:
    return row | {"verdict": as_verdict(row["verdict"])} if "verdict" in row else row


def _json(row: Line) -> str:
    return json.dumps({name: value for name, value in row.items() if value is not None}, ensure_ascii=False)
