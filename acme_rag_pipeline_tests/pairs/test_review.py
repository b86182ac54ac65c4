"""A review: out, judged, back in, and what the next training set makes of it."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from acme_rag_pipeline import cli
from acme_rag_pipeline.chunking.chunks import split_documents
from acme_rag_pipeline.documents.ingest import ingest_documents
from acme_rag_pipeline.llm.text import one_line
from acme_rag_pipeline.orchestration.checks import curated_pairs_resolve
from acme_rag_pipeline.orchestration.presentation import metadata_of
from acme_rag_pipeline.pairs.curated import resolve_curated_pairs
from acme_rag_pipeline.pairs.curated_formats import read_curated_pairs
from acme_rag_pipeline.pairs.review import ReviewUnusable, import_review, review_rows
from acme_rag_pipeline.pairs.review_files import in_form
from acme_rag_pipeline.pairs.synthetic import write_pairs
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.warehouse import records
from acme_rag_pipeline_tests.pairs.conftest import Run

# So that even three documents have held-out passages.
SIDES = {"validation_share": 0.3, "test_share": 0.2}
ROW: dict[str, Any] = {
    "pair_id": "1",
    "query": "old wording",
    "passage": "The passage as it stands in the document.",
    "doc_path": "a.md",
    "quote": None,
    "start": 3,
    "end": 40,
    "origin": "offline",
    "verdict": "",
    "edited_query": "",
}

EDIT = ROW | {"verdict": "edited", "edited_query": "new wording"}
SECOND = ROW | {"query": "new wording"}


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def kept_queries(store: Store) -> dict[str, str | None]:
    with store.warehouse.read() as connection:
        return {
            row["query"]: row["dropped_because"]
            for row in records(connection, "SELECT query, dropped_because FROM training_pairs WHERE origin = 'offline'")
        }


@pytest.mark.slow
def test_a_review_goes_out_and_comes_back_into_training(
    run_all: Run, store: Store, settings_for: Callable[..., Settings], documents: Path, tmp_path: Path
) -> None:
    def call(*arguments: str) -> Result:
        given = ["--store", str(store.root), "--documents", str(documents), "pairs", *arguments]
        return CliRunner().invoke(cli.main, given)

    assert call("export").exit_code == 1
    run_all(evaluation=SIDES)
    exported = tmp_path / "review.jsonl"
    assert call("export", "--out", str(exported), "--origin", "offline").exit_code == 0
    rows = lines_of(exported)
    assert all(row["dropped_because"] is None for row in rows)
    assert call("export", "--origin", "openai").stdout == ""
    linked = tmp_path / "linked.jsonl"
    linked.symlink_to(exported)
    exported.write_text("")
    assert call("export", "--out", str(linked), "--origin", "offline").exit_code == 0
    assert linked.is_symlink()
    assert lines_of(exported) == rows, "what the name leads to is written, be it a file, a pipe or a device"
    nowhere = call("export", "--out", str(exported / "below"))
    assert (nowhere.exit_code, nowhere.output.count("\n")) == (1, 1)
    assert "--out: cannot write" in nowhere.output
    unjudged = call("import", str(exported), "--into", str(tmp_path / "unjudged.jsonl"))
    assert "no line has a verdict" in unjudged.output
    assert "Set ACME_RAG" not in unjudged.output
    assert not (tmp_path / "unjudged.jsonl").exists()
    accepted, rejected, edited = rows[0], rows[1], rows[2]
    for row, verdict in ((accepted, "accepted"), (rejected, "rejected"), (edited, "edited")):
        row["verdict"] = verdict
    edited["edited_query"] = "what a person would rather ask"
    write(exported, *rows)
    assert "--into" in call("import", str(exported)).output
    into = tmp_path / "curated.jsonl"
    first = call("import", str(exported), "--into", str(into))
    assert first.exit_code == 0, first.output
    assert f"Set ACME_RAG_CURATED_PAIRS={into}" in first.output
    before = into.read_bytes()
    assert "held all of it already" in call("import", str(exported), "--into", str(into)).output
    assert into.read_bytes() == before

    # People name wrong passages, too: one to train on, one that is held out, and the right one by mistake.
    with store.warehouse.read() as connection:
        chunks = records(connection, "SELECT chunk_id, text, side FROM chunks ORDER BY side = 'train' DESC, chunk_id")
    right, wrong, held_out = chunks[0], chunks[1], chunks[-1]
    assert [c["side"] == "train" for c in (right, wrong, held_out)] == [True, True, False]
    with into.open("a", encoding="utf-8") as file:
        for chunk in (held_out, right, wrong):
            line = {"query": "a person's own question", "quote": right["text"], "negative": chunk["text"].upper()}
            file.write(json.dumps(line) + "\n")

    results = run_all(curated_pairs=str(into), evaluation=SIDES)
    assert results["curated_pairs"].details["negatives"] == {"named": 3, "resolved": 2}
    with store.warehouse.read() as connection:
        (own,) = records(connection, "SELECT negatives FROM training_pairs WHERE query LIKE 'a person%'")
    assert own["negatives"][0] == wrong["chunk_id"]
    assert not {right["chunk_id"], held_out["chunk_id"]} & set(own["negatives"])
    details = results["training_set"].details
    assert sum(row["offline"] for row in details["overlap"]) == details["origins"]["offline"]
    assert len(details["picture"]) < 50_000
    dropped = kept_queries(store)
    assert dropped[accepted["query"]] == "repeats another query of the passage"
    assert dropped[rejected["query"]] == "rejected in review"
    assert dropped[edited["query"]] == "replaced in review"
    funnel = results["training_set"].details["funnel"]
    assert [step["dropped"] for step in funnel if step["filter"] == "review"] == [2]
    reasons = {row["query"]: row["dropped_because"] for row in lines_of_text(call("export", "--all").stdout)}
    assert reasons[rejected["query"]] == "rejected in review"
    kept = {row["query"] for row in lines_of_text(call("export").stdout)}
    assert rejected["query"] not in kept
    assert edited["edited_query"] in kept
    again = {row["query"]: row for row in review_rows(store, ["curated"])}
    assert again.keys() == {accepted["query"], edited["edited_query"], "a person's own question"}
    # What was accepted is taken back.
    write(exported, again[accepted["query"]] | {"verdict": "rejected"})
    import_review(exported, settings_for(curated_pairs=str(into)))
    assert [row.get("verdict") for row in lines_of(into)] == ["rejected", "rejected", "edited", None, None, None]


def lines_of_text(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_the_curated_file_keeps_what_the_review_does_not_touch(tmp_path: Path, settings_for: Any) -> None:
    mine = '{"doc_path":"a.md",  "query": "mine", "quote": "The passage", "note": "keep me"}\r\nnot json at all\n'
    curated = tmp_path / "curated.jsonl"
    curated.write_bytes(mine.encode())
    reviewed = write(tmp_path / "r.jsonl", ROW | {"verdict": "rejected"}, ROW | {"query": "not judged"})
    done = import_review(reviewed, settings_for(curated_pairs=str(curated)))
    assert (done.changed, done.to_set, done.verdicts) == (True, False, {"rejected": 1, "none": 1})
    text = curated.read_bytes().decode()
    assert text.startswith(mine)
    assert json.loads(text[len(mine) :]) == {
        "query": "old wording",
        "doc_path": "a.md",
        "quote": ROW["passage"],
        "start": 3,
        "verdict": "rejected",
    }


def test_a_later_review_wins_and_a_replaced_wording_stays_out(tmp_path: Path, settings_for: Any) -> None:
    curated = write(tmp_path / "curated.jsonl", {"query": "other", "doc_path": "b.md", "quote": "text"})
    settings = settings_for(curated_pairs=str(curated))

    def review(**said: Any) -> list[dict[str, Any]]:
        import_review(write(tmp_path / "r.jsonl", ROW | said), settings)
        return lines_of(curated)[1:]

    quoted = {"origin": "curated", "quote": ROW["passage"]}
    (line,) = review(verdict="edited", edited_query="new  wording")
    assert (line["query"], line["replaces"], line["verdict"]) == ("new wording", "old wording", "edited")
    assert review(verdict="rejected") == [line]
    (newer,) = review(**quoted, query="new wording", verdict="edited", edited_query="newer wording")
    assert (newer["query"], newer["replaces"]) == ("newer wording", "old wording")
    assert review(**quoted, query="new wording", verdict="edited", edited_query="newer wording") == [newer]
    (taken_back,) = review(**quoted, query="newer wording", verdict="rejected")
    assert (taken_back["verdict"], taken_back["replaces"]) == ("rejected", "old wording")
    assert review(**quoted, query="newer wording", verdict="accepted")[0]["verdict"] == "accepted"


def test_an_edit_into_a_wording_that_is_there_already_keeps_the_old_one_out(tmp_path: Path, settings_for: Any) -> None:
    mine = {"query": "new wording", "doc_path": ".\\a.md", "quote": ROW["passage"], "note": "mine"}
    curated = write(tmp_path / "curated.jsonl", mine)
    settings = settings_for(curated_pairs=str(curated))
    second = ROW | {"query": "other wording"}
    edits = [row | {"verdict": "edited", "edited_query": "new wording"} for row in (ROW, second)]
    assert import_review(write(tmp_path / "r.jsonl", *edits), settings).changed
    first, added = lines_of(curated)
    assert first == mine | {"verdict": "edited", "replaces": "old wording"}
    assert (added["query"], added["replaces"]) == ("new wording", "other wording")
    assert not import_review(tmp_path / "r.jsonl", settings).changed


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROW | {"verdict": "yes"}], "line 1: verdict"),
        ([ROW | {"verdict": "edited"}], "line 1: `edited` needs edited_query"),
        ([ROW | {"verdict": "accepted", "start": None}], "start and end"),
        ([ROW | {"verdict": "accepted"}, ROW | {"verdict": "rejected"}], "lines 1 and 2 judge"),
        ([ROW | {"verdict": "accepted", "edited_query": "new wording"}], "line 1: edited_query is filled in"),
        ([ROW | {"verdict": "rejected", "edited_query": "new wording"}], "line 1: edited_query is filled in"),
        ([ROW | {"edited_query": "new wording"}], "line 1: edited_query is filled in"),
        ([EDIT, SECOND | {"verdict": "edited", "edited_query": "third wording"}], "line 1 edits .* line 2 edits"),
        ([SECOND | {"verdict": "edited", "edited_query": "third wording"}, EDIT], "line 2 edits .* line 1 edits"),
        ([EDIT, SECOND | {"verdict": "rejected"}], "line 1 edits .* line 2 rejects"),
        ([SECOND | {"verdict": "rejected"}, EDIT], "line 2 edits .* line 1 rejects"),
    ],
)
def test_an_unusable_review_changes_nothing(
    tmp_path: Path, settings_for: Any, rows: list[dict[str, Any]], message: str
) -> None:
    good = ROW | {"query": "good", "verdict": "accepted"}
    with pytest.raises(ReviewUnusable, match=message):
        import_review(write(tmp_path / "r.jsonl", *rows, good), settings_for(), tmp_path / "into.jsonl")
    assert not (tmp_path / "into.jsonl").exists()


@pytest.mark.parametrize("name", ["export.jsonl", "export.csv"])
def test_an_export_is_no_curated_file_and_is_not_imported_into_itself(
    tmp_path: Path, settings_for: Any, name: str
) -> None:
    rows = [ROW, ROW | {"query": "good", "verdict": "accepted"}, EDIT | {"query": "third"}]
    reviewed = write(tmp_path / "export.jsonl", *rows)
    with (tmp_path / "export.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROW))
        writer.writeheader()
        writer.writerows(rows)
    pairs, problems = read_curated_pairs(tmp_path / name)
    assert pairs == []
    assert [problem.partition(":")[2] for problem in problems] == [
        " a line of an export for review, which `acme-rag pairs import` takes in"
    ] * 3
    settings = settings_for(curated_pairs=name)
    with pytest.raises(ReviewUnusable, match="the reviewed file itself"):
        import_review(reviewed, settings, reviewed)
    done = import_review(reviewed, settings, tmp_path / "new.jsonl")
    assert [row["query"] for row in lines_of(done.file)] == ["good", "new wording"]
    assert len(read_curated_pairs(done.file)[0]) == 2
    # Nor are its lines judged where they lie in the curated file.
    into = write(tmp_path / "mixed.jsonl", *rows)
    import_review(reviewed, settings_for(curated_pairs="mixed.jsonl"))
    assert len(read_curated_pairs(into)[0]) == 2


def test_a_csv_is_carried_over_into_a_new_file(tmp_path: Path, settings_for: Any) -> None:
    (tmp_path / "mine.csv").write_text("query,doc_path,quote,negative\nmine,a.md,The passage,\n")
    settings = settings_for(curated_pairs="mine.csv")
    reviewed = write(tmp_path / "r.jsonl", ROW | {"verdict": "accepted"})
    with pytest.raises(ReviewUnusable, match="--into"):
        import_review(reviewed, settings)
    done = import_review(reviewed, settings, tmp_path / "new.jsonl")
    assert done.to_set
    assert [row["query"] for row in lines_of(done.file)] == ["mine", "old wording"]


def test_a_broken_line_of_a_csv_is_not_lost_on_the_way_into_a_new_file(tmp_path: Path, settings_for: Any) -> None:
    (tmp_path / "mine.csv").write_text('query,doc_path,quote\n"mine,a.md,The passage\nyours,a.md,The passage\n')
    reviewed = write(tmp_path / "r.jsonl", ROW | {"verdict": "accepted"})
    with pytest.raises(ReviewUnusable, match=r"mine\.csv line 2: a cell begins with a quotation mark"):
        import_review(reviewed, settings_for(curated_pairs="mine.csv"), tmp_path / "new.jsonl")
    assert not (tmp_path / "new.jsonl").exists()


def test_a_span_of_a_csv_can_be_rejected(tmp_path: Path, settings_for: Any) -> None:
    (tmp_path / "mine.csv").write_text("query,doc_path,start,end\nhow do I get paid,a.md,10,80\n")
    row = ROW | {"query": "how do I get paid", "doc_path": "a.md", "quote": None, "start": 10, "end": 80}
    reviewed = write(tmp_path / "r.jsonl", row | {"origin": "curated", "verdict": "rejected"})
    done = import_review(reviewed, settings_for(curated_pairs="mine.csv"), tmp_path / "new.jsonl")
    assert [line["verdict"] for line in lines_of(done.file)] == ["rejected"]


def test_what_a_person_accepts_stays_beside_a_rejected_wording_that_counts_as_the_same(
    chunked: Store, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    quote = "Hotels in Rotterdam may cost 165 euros"
    line = {"query": "Hotel limit?", "doc_path": "travel.md", "quote": quote}
    curated = write(tmp_path / "curated.jsonl", line)
    settings = settings_for(curated_pairs="curated.jsonl", generator="offline")
    resolve_curated_pairs(chunked, settings)
    write_pairs(chunked, settings)
    (mine,) = review_rows(chunked, ["curated"])
    written = mine | {"query": "hotel limit", "origin": "offline", "quote": None}
    judged = [mine | {"verdict": "accepted"}, written | {"verdict": "rejected"}]
    assert import_review(write(tmp_path / "r.jsonl", *judged), settings).changed
    assert lines_of(curated)[0] == line | {"verdict": "accepted"}
    assert not import_review(tmp_path / "r.jsonl", settings).changed
    resolve_curated_pairs(chunked, settings)
    assert [row["query"] for row in review_rows(chunked, ["curated"])] == ["Hotel limit?"]


@pytest.mark.parametrize("number", [float, lambda n: f"{n}.0"])
def test_a_span_is_known_by_its_numbers_however_they_are_written(
    tmp_path: Path, settings_for: Any, number: Callable[[int], Any]
) -> None:
    line = {"query": "old wording", "doc_path": "a.md", "start": number(3), "end": number(40)}
    curated = write(tmp_path / "curated.jsonl", line, line | {"end": "after"})
    edit = EDIT | {"origin": "curated", "quote": ROW["passage"]}
    import_review(write(tmp_path / "r.jsonl", edit), settings_for(curated_pairs="curated.jsonl"))
    assert [row["query"] for row in lines_of(curated)] == ["new wording", "old wording"]


def test_an_export_to_the_terminal_does_not_steer_it_and_says_the_same(
    documents: Path, store: Store, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    (documents / "badges.md").write_text("# Badges\n\nWhoever loses \u202eegdab a\u202c \x9b31m tells the desk.\n")
    settings = settings_for(generator="offline")
    for stage in (ingest_documents, split_documents, write_pairs):
        stage(store, settings)
    given = ["--store", str(store.root), "--documents", str(documents), "pairs", "export"]
    shown = CliRunner().invoke(cli.main, given).stdout
    assert not re.search("[\x7f-\x9f\u202a-\u202e]", shown)
    exported = tmp_path / "review.jsonl"
    CliRunner().invoke(cli.main, [*given, "--out", str(exported)])
    assert lines_of_text(shown) == lines_of(exported)
    assert "\u202eegdab" in exported.read_text()


def test_a_wording_that_is_repeated_is_no_edit_and_an_edit_may_meet_what_is_accepted(
    tmp_path: Path, settings_for: Any
) -> None:
    rows = [EDIT, SECOND | {"verdict": "accepted", "edited_query": "new  wording"}]
    taken = []
    for name, order in (("a.jsonl", rows), ("b.jsonl", rows[::-1])):
        import_review(write(tmp_path / "r.jsonl", *order), settings_for(), tmp_path / name)
        taken.append([(row["query"], row["verdict"], row["replaces"]) for row in lines_of(tmp_path / name)])
    assert taken == [[("new wording", "edited", "old wording")]] * 2


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_file_is_merged_into_as_it_was_read(tmp_path: Path, settings_for: Any, encoding: str, end: str) -> None:
    lines = [json.dumps({"query": query, "doc_path": "a.md", "quote": ROW["passage"]}) for query in ("Öl?", "mine")]
    (tmp_path / "curated.jsonl").write_bytes("".join(line + end for line in lines).encode(encoding))
    reviewed = write(tmp_path / "r.jsonl", ROW | {"query": "mine", "verdict": "rejected"})
    import_review(reviewed, settings_for(curated_pairs="curated.jsonl"))
    found = [(row["query"], row.get("verdict")) for row in lines_of(tmp_path / "curated.jsonl")]
    assert found == [("Öl?", None), ("mine", "rejected")]


def test_what_is_no_pair_is_carried_over_into_a_new_file(tmp_path: Path, settings_for: Any) -> None:
    mine = '# what Ann asked\n{"query": "mine", "doc_path": "a.md", "quote": "The passage"}\n{"query": "broken\n'
    (tmp_path / "mine.jsonl").write_text(mine)
    reviewed = write(tmp_path / "r.jsonl", ROW | {"verdict": "accepted"})
    done = import_review(reviewed, settings_for(curated_pairs="mine.jsonl"), tmp_path / "new.jsonl")
    assert done.file.read_text().startswith(mine)
    assert json.loads(done.file.read_text().removeprefix(mine))["query"] == "old wording"


def test_an_edited_span_stays_with_its_passage(
    chunked: Store, documents: Path, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    path = documents / "travel.md"
    passage = "Hotels in Rotterdam may cost 165 euros a night"

    def changed(text: str) -> None:
        path.write_text(text, encoding="utf-8")
        for stage in (ingest_documents, split_documents, resolve_curated_pairs, write_pairs):
            stage(chunked, settings)

    # DuckDB and Python must count the same characters.
    text = "👩‍🚀 e\u0301\n\n" + path.read_text(encoding="utf-8")
    start = text.index(passage)
    span = {"query": "hotel limit", "doc_path": "travel.md", "start": start, "end": start + len(passage)}
    curated = write(tmp_path / "curated.jsonl", span)
    settings = settings_for(curated_pairs="curated.jsonl", generator="offline")
    changed(text)
    (row,) = review_rows(chunked, ["curated"])
    assert (row["quote"], row["start"], row["end"]) == (passage, span["start"], span["end"])
    reviewed = write(tmp_path / "r.jsonl", row | {"verdict": "edited", "edited_query": "What may a hotel cost?"})
    changed("Read all of this before you leave. " * 40 + "\n\n" + text)
    # What was exported holds for the passage, the numbers only for the document of then.
    assert import_review(reviewed, settings).changed
    assert lines_of(curated) == [
        span | {"query": "What may a hotel cost?", "verdict": "edited", "replaces": "hotel limit", "quote": passage}
    ]
    assert not import_review(reviewed, settings).changed
    resolve_curated_pairs(chunked, settings)
    with chunked.warehouse.read() as connection:
        (found,) = records(connection, "SELECT status, text FROM curated_pairs LEFT JOIN chunks USING (chunk_id)")
    assert found["status"] == "resolved"
    assert passage in found["text"]


def test_a_span_with_the_hash_of_its_file_goes_out_with_its_text(
    chunked: Store, documents: Path, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    content = (documents / "travel.md").read_bytes()
    passage = "Hotels in Rotterdam may cost 165 euros a night"
    start = content.decode().index(passage)
    line = {"query": "hotel limit", "doc_path": "travel.md", "start": start, "end": start + len(passage)}
    curated = write(tmp_path / "curated.jsonl", line | {"sha256": hashlib.sha256(content).hexdigest()})
    settings = settings_for(curated_pairs="curated.jsonl", generator="offline")
    resolve_curated_pairs(chunked, settings)
    write_pairs(chunked, settings)
    (row,) = review_rows(chunked, ["curated"])
    assert row["quote"] == passage
    assert import_review(write(tmp_path / "r.jsonl", row | {"verdict": "accepted"}), settings).changed
    assert [(said["quote"], said["verdict"]) for said in lines_of(curated)] == [(passage, "accepted")]


@pytest.mark.parametrize("verdict", ["accepted", "rejected"])
def test_a_verdict_without_its_passage_holds_for_the_exported_file_alone(
    chunked: Store, settings_for: Callable[..., Settings], documents: Path, tmp_path: Path, verdict: str
) -> None:
    write(tmp_path / "curated.jsonl")
    settings = settings_for(generator="offline", curated_pairs="curated.jsonl")
    write_pairs(chunked, settings)
    path = documents / "travel.md"
    original = path.read_text(encoding="utf-8")
    exported = [row for row in review_rows(chunked) if row["doc_path"] == "travel.md"]
    assert {row["sha256"] for row in exported} == {hashlib.sha256(path.read_bytes()).hexdigest()}
    kept = {name: exported[-1][name] for name in ("query", "doc_path", "start", "end")} | {"verdict": verdict}
    # As somebody left the columns of long texts out, and somebody else edited the document meanwhile.
    path.write_text("Read all of this before you leave. " * 40 + "\n\n" + original, encoding="utf-8")
    with pytest.raises(ReviewUnusable, match=r"line 1: after an edit .* keep one of the columns"):
        import_review(write(tmp_path / "r.jsonl", kept), settings)
    judged = write(tmp_path / "r.jsonl", kept | {"sha256": exported[-1]["sha256"].upper()})
    assert import_review(judged, settings).changed
    assert not import_review(judged, settings).changed
    (line,) = lines_of(tmp_path / "curated.jsonl")
    assert line == kept | {"sha256": exported[-1]["sha256"]}

    def resolved() -> list[str | None]:
        for stage in (ingest_documents, split_documents, resolve_curated_pairs):
            stage(chunked, settings)
        with chunked.warehouse.read() as connection:
            table = "curated_pairs" if verdict == "accepted" else "rejected_pairs"
            return [row[0] for row in connection.execute(f"SELECT chunk_id FROM {table}").fetchall()]

    assert resolved() == [None]
    path.write_text(original, encoding="utf-8")
    assert [chunk_id is not None for chunk_id in resolved()] == [True]


def test_a_span_gets_the_hash_of_its_file_and_a_passage_needs_no_span(tmp_path: Path, settings_for: Any) -> None:
    curated = write(tmp_path / "curated.jsonl", {"query": "old wording", "doc_path": "a.md", "start": 3, "end": 40})
    settings = settings_for(curated_pairs="curated.jsonl")
    without = ROW | {"passage": "", "sha256": "a" * 64, "verdict": "accepted"}
    for start, verdict in (("3", "accepted"), (3, "rejected")):
        import_review(write(tmp_path / "r.jsonl", without | {"start": start, "verdict": verdict}), settings)
        (line,) = lines_of(curated)
        assert (line["sha256"], line["verdict"]) == ("a" * 64, verdict)
    # The same numbers in another file are another passage.
    import_review(write(tmp_path / "r.jsonl", without | {"sha256": "b" * 64}), settings)
    assert [line["sha256"][0] for line in lines_of(curated)] == ["a", "b"]
    import_review(write(tmp_path / "r.jsonl", ROW | {"start": "", "end": None, "verdict": "accepted"}), settings)
    assert lines_of(curated)[2] == {
        "query": "old wording",
        "doc_path": "a.md",
        "quote": ROW["passage"],
        "verdict": "accepted",
    }
    with pytest.raises(ReviewUnusable, match="sha256 missing or of the wrong type"):
        import_review(write(tmp_path / "r.jsonl", without | {"sha256": "abc"}), settings)


def test_a_review_of_an_earlier_version_finds_a_line_that_has_its_text_by_now(
    tmp_path: Path, settings_for: Any
) -> None:
    span = {"query": "old wording", "doc_path": "a.md", "start": 3, "end": 40}
    curated = write(tmp_path / "curated.jsonl", span)
    settings = settings_for(curated_pairs="curated.jsonl")
    new = ROW | {"origin": "curated", "quote": ROW["passage"], "verdict": "accepted"}
    assert import_review(write(tmp_path / "r.jsonl", new), settings).changed
    assert lines_of(curated) == [span | {"quote": ROW["passage"], "verdict": "accepted"}]
    import_review(write(tmp_path / "r.jsonl", new | {"quote": None, "verdict": "rejected"}), settings)
    assert [line["verdict"] for line in lines_of(curated)] == ["rejected"]


def test_a_pair_on_two_lines_is_rejected_with_both(
    chunked: Store, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    line = {"query": "hotel limit", "doc_path": "travel.md"}
    quotes = ("Hotels in Rotterdam may cost 165 euros", "Breakfast is included in that limit")
    write(tmp_path / "curated.jsonl", *(line | {"quote": quote} for quote in quotes))
    settings = settings_for(curated_pairs="curated.jsonl", generator="offline")
    resolve_curated_pairs(chunked, settings)
    write_pairs(chunked, settings)
    (row,) = review_rows(chunked, ["curated"])
    import_review(write(tmp_path / "r.jsonl", row | {"verdict": "rejected"}), settings)
    resolve_curated_pairs(chunked, settings)
    assert review_rows(chunked, ["curated"]) == []


def test_a_pair_on_two_lines_is_edited_with_both(
    chunked: Store, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    line = {"query": "hotel limit", "doc_path": "travel.md"}
    quotes = ("Hotels in Rotterdam may cost 165 euros", "Breakfast is included in that limit")
    # Another wording is another pair, although the filters take it for the same.
    other = line | {"query": "Hotel limit", "quote": quotes[1]}
    write(tmp_path / "curated.jsonl", *(line | {"quote": quote} for quote in quotes), other)
    settings = settings_for(curated_pairs="curated.jsonl", generator="offline")
    resolve_curated_pairs(chunked, settings)
    write_pairs(chunked, settings)
    row = next(row for row in review_rows(chunked, ["curated"]) if row["query"] == "hotel limit")
    edited = row | {"verdict": "edited", "edited_query": "What may a hotel cost?"}
    import_review(write(tmp_path / "r.jsonl", edited), settings)
    details = resolve_curated_pairs(chunked, settings).details
    assert {row["query"] for row in review_rows(chunked, ["curated"])} == {"What may a hotel cost?", "Hotel limit"}
    assert (details["statuses"], details["unresolved"]) == ({"rejected": 1, "resolved": 2}, [])


def test_a_rejected_wording_stays_out_when_its_document_is_renamed(
    run_all: Run, store: Store, documents: Path, tmp_path: Path
) -> None:
    run_all(generator="offline", curated_pairs="none")
    with store.warehouse.read() as connection:
        query = "SELECT t.query, c.doc_path, c.text AS quote FROM training_pairs t JOIN chunks c USING (chunk_id) "
        (pair,) = records(connection, query + "WHERE doc_path = 'travel.md' ORDER BY pair_id LIMIT 1")
    write(tmp_path / "curated.jsonl", pair | {"verdict": "rejected"})
    (documents / "travel.md").rename(documents / "trips.md")
    run_all(generator="offline", curated_pairs="curated.jsonl")
    assert kept_queries(store)[pair["query"]] == "rejected in review"


def test_a_rejected_wording_whose_passage_is_gone_stays_out_of_its_document(
    run_all: Run, store: Store, tmp_path: Path
) -> None:
    run_all(generator="offline", curated_pairs="none")
    with store.warehouse.read() as connection:
        query = "SELECT query, doc_path FROM training_pairs JOIN chunks USING (chunk_id) ORDER BY pair_id LIMIT 1"
        (pair,) = records(connection, query)
    gone = {"quote": "The cafeteria closes at three o'clock on Fridays, and nobody knows why.", "verdict": "rejected"}
    elsewhere = {"query": pair["query"], "doc_path": "gone.md"}
    write(tmp_path / "curated.jsonl", elsewhere | gone)
    run_all(generator="offline", curated_pairs="curated.jsonl")
    assert kept_queries(store)[pair["query"]] != "rejected in review"
    write(tmp_path / "curated.jsonl", pair | {"query": pair["query"].upper()} | gone)
    run_all(generator="offline", curated_pairs="curated.jsonl")
    assert kept_queries(store)[pair["query"]] == "rejected in review"


def test_an_export_replaces_neither_verdicts_nor_curated_pairs(
    chunked: Store,
    settings_for: Callable[..., Settings],
    documents: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_pairs(chunked, settings_for(generator="offline"))
    monkeypatch.setenv("ACME_RAG_CURATED_PAIRS", str(tmp_path / "curated.jsonl"))
    write(tmp_path / "curated.jsonl", {"query": "mine", "doc_path": "a.md", "quote": "x"})
    judged = write(tmp_path / "review.jsonl", ROW, EDIT)
    for name, said in (("review.jsonl", "holds verdicts"), ("curated.jsonl", "what people wrote")):
        before = (tmp_path / name).read_bytes()
        options = ["--store", str(chunked.root), "--documents", str(documents), "pairs", "export", "--out"]
        called = CliRunner().invoke(cli.main, [*options, str(tmp_path / name)])
        assert called.exit_code == 1
        assert said in called.output
        assert (tmp_path / name).read_bytes() == before
    for name, content in (
        ("utf-16.jsonl", json.dumps(EDIT).encode("utf-16")),
        ("sheet.csv", b"query;quote;verdict\nWho?;x;accepted\n"),
    ):
        (tmp_path / name).write_bytes(content)
        assert "holds verdicts" in CliRunner().invoke(cli.main, [*options, str(tmp_path / name)]).output
    write(judged, ROW)
    assert CliRunner().invoke(cli.main, [*options, str(judged)]).exit_code == 0


def test_the_first_import_makes_the_file_that_the_settings_name_and_a_later_one_keeps_its_mode(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curated = tmp_path / "curated.jsonl"
    monkeypatch.setenv("ACME_RAG_CURATED_PAIRS", str(curated))
    for query in ("first wording", "second wording"):
        reviewed = write(tmp_path / "r.jsonl", ROW | {"query": query, "verdict": "accepted"})
        called = CliRunner().invoke(cli.main, ["--store", str(store.root), "pairs", "import", str(reviewed)])
        assert called.exit_code == 0, called.output
        if query.startswith("first"):
            curated.chmod(0o664)
    assert [line["query"] for line in lines_of(curated)] == ["first wording", "second wording"]
    assert curated.stat().st_mode & 0o777 == 0o664


FORMULAS = [
    "=1+1",
    "+31 20 number",
    "-5 degrees",
    "@home",
    "'=quoted",
    "''-twice",
    " =late",
    "\t=tab",
    "＝wide",
    "'plain'",
    "a=b",
]


@pytest.mark.parametrize("ending", ["csv", "tsv"])
@pytest.mark.parametrize("saved", ["as written", "semicolons", "utf-16"])
def test_a_review_in_a_spreadsheet_says_the_same_as_one_in_json_lines(
    tmp_path: Path, settings_for: Any, ending: str, saved: str
) -> None:
    passage = '=HYPERLINK("x")\n- a "list", with; signs\tand\ttabs'
    queries = [one_line(text) for text in FORMULAS]
    rows = [ROW | {"query": query, "passage": passage, "doc_path": f"-{n}.md"} for n, query in enumerate(queries)]
    rows += [ROW | {"query": "mine", "quote": text, "origin": "curated", "start": n} for n, text in enumerate(FORMULAS)]
    table = tmp_path / f"review.{ending}"
    table.write_text(in_form(rows, table), encoding="utf-8")
    delimiter = {"csv": ",", "tsv": "\t"}[ending]
    with table.open(encoding="utf-8-sig", newline="") as file:
        cells = list(csv.DictReader(file, delimiter=delimiter))
    assert list(cells[0])[:3] == ["query", "verdict", "edited_query"]
    assert set(cells[0]) == set(ROW)
    assert not [cell for row in cells for cell in row.values() if re.match(r"\s*[=+@＝-]", cell)]
    for row in (*rows, *cells):
        row["verdict"] = "accepted" if row in rows else " Accepted "
    rows[0] |= {"verdict": "edited", "edited_query": "other wording"}
    cells[0] |= {"verdict": "EDITED", "edited_query": "other wording"}
    with table.open("w", encoding="utf-16" if saved == "utf-16" else "utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(cells[0]), delimiter=";" if saved == "semicolons" else delimiter)
        writer.writeheader()
        writer.writerows(cells)
    of_lines = import_review(write(tmp_path / "r.jsonl", *rows), settings_for(), tmp_path / "a.jsonl")
    of_table = import_review(table, settings_for(), tmp_path / "b.jsonl")
    assert of_table.verdicts == of_lines.verdicts == {"accepted": len(rows) - 1, "edited": 1}
    assert lines_of(of_table.file) == lines_of(of_lines.file)
    assert [line["query"] for line in lines_of(of_table.file)[: len(queries)]] == ["other wording", *queries[1:]]


def test_a_verdict_is_one_however_it_is_written(tmp_path: Path, settings_for: Any) -> None:
    nothing = float("nan")
    judged = ROW | {"verdict": " Rejected", "start": 3.0, "edited_query": nothing, "quote": nothing}
    reviewed = write(tmp_path / "r.jsonl", judged, SECOND | {"verdict": nothing})
    line = {"query": "old wording", "doc_path": "a.md", "quote": ROW["passage"], "verdict": "Accepted "}
    curated = write(tmp_path / "curated.jsonl", line)
    assert [pair.verdict for pair in read_curated_pairs(curated)[0]] == ["accepted"]
    assert import_review(reviewed, settings_for(curated_pairs="curated.jsonl")).verdicts == {"rejected": 1, "none": 1}
    assert lines_of(curated) == [line | {"verdict": "rejected"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.xlsx", b"PK", "a review ends in .jsonl, .csv or .tsv"),
        ("r.csv", b"question,verdict\nq,accepted\n", "none of them is `query`"),
        ("r.csv", b"query,verdict,doc_path\nq,accepted\n", r"r\.csv line 2: doc_path, start and end missing"),
        ("r.csv", b"query,verdict\nq,accepted,more\n", r"r\.csv line 2: more cells than columns"),
        ("r.csv", b"query,verdict\nb\xfcro,accepted\n", r"r\.csv line 2: not UTF-8"),
    ],
)
def test_a_table_that_cannot_be_taken_in_says_why(
    tmp_path: Path, settings_for: Any, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ReviewUnusable, match=message):
        import_review(tmp_path / name, settings_for(), tmp_path / "into.jsonl")
    assert not (tmp_path / "into.jsonl").exists()


def test_an_export_is_a_table_where_its_name_says_so_and_as_small_as_it_is_wanted(
    chunked: Store, settings_for: Callable[..., Settings], documents: Path, tmp_path: Path
) -> None:
    write_pairs(chunked, settings_for(generator="offline"))

    def call(*arguments: str) -> Result:
        options = ["--store", str(chunked.root), "--documents", str(documents), "pairs", *arguments]
        return CliRunner().invoke(cli.main, options)

    everything = lines_of_text(call("export").stdout)
    kinds = Counter((row["origin"], row["style"], row["method"]) for row in everything)
    assert max(kinds.values()) > 2
    few = lines_of_text(call("export", "--sample", "2").stdout)
    assert Counter((row["origin"], row["style"], row["method"]) for row in few) == {
        kind: min(2, count) for kind, count in kinds.items()
    }
    assert [row for row in everything if row in few] == few
    assert lines_of_text(call("export", "--sample", "2").stdout) == few
    table = tmp_path / "review.csv"
    assert call("export", "--sample", "2", "--out", str(table)).exit_code == 0
    with table.open(encoding="utf-8-sig", newline="") as file:
        cells = list(csv.DictReader(file))
    assert [(row["pair_id"], row["query"], row["verdict"]) for row in cells] == [
        (row["pair_id"], row["query"], "") for row in few
    ]
    assert "no line has a verdict" in call("import", str(table), "--into", str(tmp_path / "new.jsonl")).output
    table.write_text(table.read_text(encoding="utf-8-sig").replace('"",""', '"accepted",""', 1), encoding="utf-8")
    assert "holds verdicts" in call("export", "--out", str(table)).output
    assert "1 accepted" in call("import", str(table), "--into", str(tmp_path / "new.jsonl")).output
    refused = call("export", "--out", str(tmp_path / "review.xlsx"))
    assert (refused.exit_code, refused.output.count("\n")) == (1, 1)
    assert "a review ends in .jsonl, .csv or .tsv" in refused.output


def test_what_no_longer_resolves_is_shown_with_the_place_that_comes_nearest(
    chunked: Store, settings_for: Callable[..., Settings], documents: Path, tmp_path: Path
) -> None:
    gone = "The cafeteria closes at three o'clock on Fridays, and nobody knows why it does."
    hotels = "Hotels in Rotterdam may cost 165 euros a night, hotels in London 210 euros."
    lines = [
        {"query": "hotel limit", "doc_path": "hr/leave.md", "quote": hotels},
        {"query": "friday lunch", "doc_path": "travel.md", "quote": gone, "verdict": "rejected"},
        {"query": "hotels", "doc_path": "travel.md", "quote": hotels},
    ]
    write(tmp_path / "curated.jsonl", *lines)
    settings = settings_for(curated_pairs="curated.jsonl")
    given = ["--store", str(chunked.root), "--documents", str(documents)]

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(cli.main, [*given, *arguments])

    unknown = call("pairs", "export", "--unresolved")
    assert (unknown.exit_code, "`curated_pairs` has never been materialised" in unknown.output) == (1, True)
    result = resolve_curated_pairs(chunked, settings)
    rejected, lost = lines_of_text(call("pairs", "export", "--unresolved").stdout)
    with chunked.warehouse.read() as connection:
        (chunk,) = records(connection, "SELECT * FROM chunks WHERE contains(text, 'Hotels in Rotterdam')")
    assert lost == {
        "query": "hotel limit",
        "doc_path": "hr/leave.md",
        "quote": hotels,
        "start": None,
        "end": None,
        "reason": "the quote is not in the document any more; travel.md has it",
        "nearest_document": "travel.md",
        "nearest_start": chunk["start_char"],
        "nearest_end": chunk["end_char"],
        "nearest_passage": chunk["text"],
    }
    assert (rejected["query"], rejected["nearest_document"]) == ("friday lunch", None)
    assert rejected["reason"].endswith("its passage is not found, so it counts in the whole document")
    span = f"{chunk['start_char']}-{chunk['end_char']}"
    check = curated_pairs_resolve(chunked, settings)
    assert "acme-rag pairs export --unresolved" in (check.description or "")
    for shown in (check.metadata["pairs"].value, metadata_of(chunked, result)["preview"]):
        (row,) = (record.data for record in shown.records if record.data["query"] == "hotel limit")
        assert (row["nearest_document"], row["nearest_span"]) == ("travel.md", span)
    assert json.loads(call("status", "--json").stdout)["counts"]["unresolved_curated_pairs"] == 2
    assert "2 unresolved curated pairs" in call("status").stdout
    assert call("pairs", "export", "--unresolved", "--sample", "3").exit_code == 2
    table = tmp_path / "lost.csv"
    assert "2 unresolved lines" in call("pairs", "export", "--unresolved", "--out", str(table)).output
    with table.open(encoding="utf-8-sig", newline="") as file:
        assert [row["nearest_document"] for row in csv.DictReader(file)] == ["", "travel.md"]
