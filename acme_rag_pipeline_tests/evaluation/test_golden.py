"""Golden files as people and other programs write them: a bad line costs that line, and says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from acme_rag_pipeline.chunking.chunks import split_documents
from acme_rag_pipeline.documents.ingest import ingest_documents
from acme_rag_pipeline.evaluation.contestants import contest
from acme_rag_pipeline.evaluation.golden import follow_documents, golden_queries, judged_queries, resolve_golden_queries
from acme_rag_pipeline.evaluation.golden_files import read_golden
from acme_rag_pipeline.orchestration.checks import golden_queries_resolve
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.stages import StageResult, record


def written(folder: Path, queries: list[dict[str, Any]], qrels: list[dict[str, Any]]) -> Path:
    for name, lines in (("queries", queries), ("qrels", qrels)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_ids_and_grades_may_be_numbers(tmp_path: Path) -> None:
    folder = written(
        tmp_path,
        [{"query_id": 7, "query": "who  pays?"}, {"query_id": "b", "query": "when?"}],
        [{"query_id": 7, "doc_path": "a.md", "relevance": 2.0}, {"query_id": "b", "doc_path": "b.md"}],
    )
    queries, qrels, problems = read_golden(folder)
    assert queries == {"7": {"query": "who pays?", "style": None}, "b": {"query": "when?", "style": None}}
    assert [(line["query_id"], line["relevance"]) for line in qrels] == [("7", 2), ("b", 1)]
    assert not problems


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("queries", {"query_id": [1], "query": "a list?"}),
        ("queries", {"query_id": "c", "query": "half a character \ud800"}),
        ("queries", {"query_id": "c", "query": "a style?", "style": 3}),
        ("qrels", {"query_id": [1], "doc_path": "a.md"}),
        ("qrels", {"query_id": "a", "doc_path": "a.md", "quote": 5}),
        ("qrels", {"query_id": "a", "doc_path": "a.md", "relevance": 10**30}),
        ("qrels", {"query_id": "a", "doc_path": "a.md", "relevance": 0.5}),
        ("qrels", {"query_id": "a", "doc_path": "a.md", "relevance": True}),
        ("qrels", {"query_id": "a", "doc_path": "a.md", "start": 0, "end": 10**12}),
    ],
)
def test_a_bad_line_costs_that_line_and_is_named(tmp_path: Path, name: str, line: dict[str, Any]) -> None:
    good = {"queries": [{"query_id": "a", "query": "who?"}], "qrels": [{"query_id": "a", "doc_path": "a.md"}]}
    good[name] = [*good[name], line]
    queries, qrels, problems = read_golden(written(tmp_path, good["queries"], good["qrels"]))
    assert list(queries) == ["a"]
    assert len(qrels) == 1
    assert len(problems) == 1
    assert problems[0].startswith(f"{name}.jsonl line 2")


def test_a_line_in_another_encoding_costs_that_line(tmp_path: Path) -> None:
    folder = written(tmp_path, [{"query_id": "a", "query": "who?"}], [{"query_id": "a", "doc_path": "a.md"}])
    with (folder / "queries.jsonl").open("ab") as file:
        file.write('{"query_id": "b", "query": "where is the café?"}\n'.encode("latin-1"))
    queries, _, problems = read_golden(folder)
    assert list(queries) == ["a"]
    assert [problem for problem in problems if "save the file as UTF-8" in problem] == problems
    assert problems[0].startswith("queries.jsonl line 2")


def test_a_judgement_that_stands_twice_is_one_piece_of_evidence(tmp_path: Path) -> None:
    line = {"query_id": "a", "doc_path": "a.md", "quote": "They pay.", "relevance": 1}
    others = [line | {"quote": "They do not."}, line | {"doc_path": "b.md"}, line | {"start": 3, "end": 9}]
    folder = written(tmp_path, [{"query_id": "a", "query": "who?"}], [line, *others, line | {"relevance": 3}, line])
    _, qrels, problems = read_golden(folder)
    assert [(q["doc_path"], q["quote"], q["relevance"]) for q in qrels] == [
        ("a.md", "They pay.", 3),
        ("a.md", "They do not.", 1),
        ("b.md", "They pay.", 1),
        ("a.md", "They pay.", 1),
    ]
    said = "this judgement of a is there twice, the larger relevance is used"
    assert problems == [f"qrels.jsonl line 5: {said}", f"qrels.jsonl line 6: {said}"]


def resolved(
    store: Store, settings_for: Callable[..., Settings], folder: Path, qrels: list[dict[str, Any]]
) -> dict[str, Any]:
    """One query with these judgements over the small company; the stage's details."""
    folder.mkdir()
    settings = settings_for(golden=str(written(folder, [{"query_id": "a", "query": "who?"}], qrels)))
    ingest_documents(store, settings)
    split_documents(store, settings)
    return resolve_golden_queries(store, settings).details


@pytest.mark.usefixtures("documents")
def test_two_quotes_of_one_place_are_one_piece_of_evidence(
    store: Store, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    line = {"query_id": "a", "doc_path": "travel.md", "quote": "hotels in London 210 euros"}
    qrels = [line, line | {"start": 5, "end": 9, "relevance": 3}, line | {"quote": "Hotels in **London** 210 euros"}]
    details = resolved(store, settings_for, tmp_path / "golden", [*qrels, line | {"doc_path": "./travel.md"}])
    (query,) = golden_queries(store)
    assert [(piece.doc_path, piece.relevance) for piece in query.evidence] == [("travel.md", 3)]
    said = {"query": "who?", "reason": "the same place of travel.md is judged twice"}
    assert details["unused_evidence"] == [said] * 3


@pytest.mark.usefixtures("documents")
def test_a_query_that_lost_a_piece_of_its_evidence_says_so(
    store: Store, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    line = {"query_id": "a", "doc_path": "travel.md", "quote": "hotels in London 210 euros"}
    gone = [
        line | {"doc_path": "gone.md", "quote": "no such words anywhere", "relevance": 3},
        line | {"doc_path": "nothing.md", "relevance": 0},
    ]
    details = resolved(store, settings_for, tmp_path / "golden", [line, *gone])
    assert (details["resolved"], details["unresolved"]) == (1, [])
    reason = "gone.md is not among the readable documents"
    assert details["unused_evidence"] == [{"query": "who?", "reason": reason}]
    usable, note = judged_queries(store, tmp_path / "golden")
    assert len(usable) == 1
    assert note == f"1 piece of evidence could not be found and counts for nothing (who?: {reason})"
    check = golden_queries_resolve(store, settings_for())
    assert not check.passed
    assert check.metadata["unresolved"].value == 1


@pytest.mark.usefixtures("documents")
def test_evidence_follows_its_document_under_another_name_where_one_alone_has_it(
    store: Store, settings_for: Callable[..., Settings], tmp_path: Path, documents: Path
) -> None:
    quote = "hotels in London 210 euros"
    lines = [
        {"query_id": "a", "doc_path": "travel.md", "quote": quote},
        {"query_id": "a", "doc_path": "travel.md", "quote": "210 euros"},
        {"query_id": "a", "doc_path": "travel.md"},
    ]
    (documents / "travel.md").rename(documents / "trips.md")
    details = resolved(store, settings_for, tmp_path / "golden", lines)
    note = {"query": "who?", "reason": "moved: travel.md is gone, and trips.md has the quote"}
    assert details["moved"] == [note]
    (query,) = golden_queries(store)
    (piece,) = query.evidence
    text = (documents / "trips.md").read_text(encoding="utf-8")
    assert (piece.doc_path, text[piece.start : piece.end]) == ("trips.md", quote)
    check = golden_queries_resolve(store, settings_for(golden=str(tmp_path / "golden")))
    assert [record.data for record in check.metadata["moved"].value.records] == [note]
    # Of two that have it none is taken.
    (documents / "copy.md").write_text(text, encoding="utf-8")
    details = resolved(store, settings_for, tmp_path / "again", lines[:1])
    assert (details["resolved"], details["moved"]) == (0, [])


@pytest.mark.usefixtures("documents")
def test_a_query_whose_judgements_are_all_0_is_told_so(
    store: Store, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    details = resolved(
        store, settings_for, tmp_path / "golden", [{"query_id": "a", "doc_path": "travel.md", "relevance": 0}]
    )
    assert details["unresolved"] == [{"query": "who?", "reason": "no judgement of it has a relevance above 0"}]


@pytest.mark.usefixtures("documents")
def test_what_is_said_of_a_judged_set_is_no_flood_and_moves_no_cursor(
    store: Store, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    resolved(store, settings_for, tmp_path / "golden", [])
    query = {"query_id": "a", "query": "\x1b[2Jwho? " + "and who else? " * 3000}
    lines = [{"query_id": "a", "doc_path": "\x1b[31mgone.md"}, {"query_id": "\x1b[0m" * 3000, "doc_path": "travel.md"}]
    queries = [query, query | {"query_id": "\x1b[1m" * 3000}, query | {"query_id": "\x1b[1m" * 3000}]
    _, note = judged_queries(store, written(tmp_path / "golden", queries, lines))
    assert "could not be resolved ([2Jwho? and who else?" in note
    assert note.isprintable()
    assert len(note) < 1000


def test_a_span_of_an_edited_document_stays_unresolved_whatever_happens_to_the_lines_beside_it(
    store: Store, settings_for: Callable[..., Settings], documents: Path, tmp_path: Path
) -> None:
    lines = [{"query_id": "a", "doc_path": "travel.md", "start": n, "end": n + 17} for n in (0, 40)]

    def unresolved(name: str, judged: list[dict[str, Any]]) -> list[int]:
        resolved(store, settings_for, tmp_path / name, judged)
        with store.warehouse.read() as connection:
            query = "SELECT ordinal FROM golden_judgements WHERE status = 'unresolved' ORDER BY ordinal"
            return [row[0] for row in connection.execute(query).fetchall()]

    assert unresolved("first", lines) == []
    (documents / "travel.md").write_text("# Travel\n\n" + "Everything is another text by now. " * 20)
    assert unresolved("edited", lines) == [0, 1]
    assert unresolved("without the first", lines[1:]) == [0]
    assert unresolved("another grade", [line | {"relevance": 2} for line in lines]) == [0, 1]
    assert unresolved("a new span", [lines[0], {"query_id": "a", "doc_path": "travel.md", "start": 5, "end": 30}]) == [
        0
    ]


def test_a_line_of_brackets_costs_that_line(tmp_path: Path) -> None:
    folder = written(tmp_path, [{"query_id": "a", "query": "who?"}], [{"query_id": "a", "doc_path": "a.md"}])
    with (folder / "qrels.jsonl").open("a") as file:
        file.write("[" * 100_000 + "\n")
    _, qrels, problems = read_golden(folder)
    assert len(qrels) == 1
    assert [problem.startswith("qrels.jsonl line 2: not JSON") for problem in problems] == [True]


@pytest.mark.usefixtures("documents")
@pytest.mark.parametrize("whole", [True, False])
def test_a_document_and_its_sections_are_no_two_units(
    store: Store, settings_for: Callable[..., Settings], tmp_path: Path, whole: bool
) -> None:
    quotes = ["hotels in London 210 euros", "Book trains and flights in Wayfare"]
    queries = [{"query_id": n, "query": f"question {n}?"} for n in range(3)]
    qrels = [{"query_id": n, "doc_path": "travel.md", "quote": quote} for n, quote in enumerate(quotes)]
    qrels += [{"query_id": 2, "doc_path": "travel.md"}] if whole else []
    (tmp_path / "golden").mkdir()
    settings = settings_for(golden=str(written(tmp_path / "golden", queries, qrels)))
    ingest_documents(store, settings)
    split_documents(store, settings)
    resolve_golden_queries(store, settings)
    units = {query.query_id: query.unit for query in golden_queries(store)}
    assert len(set(units.values())) == (1 if whole else 2), units
    assert (set(units.values()) == {"travel.md"}) is whole


@pytest.mark.usefixtures("documents")
def test_the_order_of_judgements_and_those_of_no_relevance_are_no_evidence(
    store: Store, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    (tmp_path / "golden").mkdir()
    queries = [{"query_id": "a", "query": "who?"}]
    qrels = [{"query_id": "a", "doc_path": "travel.md", "start": n, "end": n + 40} for n in (0, 100)]
    written(tmp_path / "golden", queries, qrels)
    settings = settings_for(
        golden=str(tmp_path / "golden"), evaluation={"golden_minimum_queries": 1, "golden_minimum_units": 1}
    )
    keys = []
    for lines in (qrels, qrels[::-1], [{"query_id": "a", "doc_path": "leave.md", "relevance": 0}, *qrels], qrels[:1]):
        written(tmp_path / "golden", queries, lines)
        ingest_documents(store, settings)
        split_documents(store, settings)
        resolve_golden_queries(store, settings)
        with store.warehouse.write() as connection:
            record(connection, StageResult("training_set", "v", details={"judged_by": "golden queries"}), "f")
        keys.append(contest(store, settings).candidate_key)
    assert keys[0] == keys[1] == keys[2] != keys[3]


def test_places_follow_a_document_that_was_edited_after_they_were_resolved(
    store: Store, settings_for: Callable[..., Settings], documents: Path, tmp_path: Path
) -> None:
    (tmp_path / "golden").mkdir()
    qrels = [{"query_id": "a", "doc_path": "travel.md", "quote": "hotels in London 210 euros"}]
    written(tmp_path / "golden", [{"query_id": "a", "query": "who?"}], qrels)
    settings = settings_for(golden=str(tmp_path / "golden"))
    ingest_documents(store, settings)
    split_documents(store, settings)
    resolve_golden_queries(store, settings)
    before = golden_queries(store)[0].evidence[0]
    travel = documents / "travel.md"
    travel.write_text(f"A new beginning.\n\n{travel.read_text('utf-8')}", encoding="utf-8")
    ingest_documents(store, settings)
    split_documents(store, settings)
    follow_documents(store, settings)
    after = golden_queries(store)[0].evidence[0]
    assert (after.start, after.end) == (before.start + 18, before.end + 18)  # type: ignore[operator]


@pytest.mark.usefixtures("documents")
@pytest.mark.parametrize(("second", "decides"), [("How many days are FLEX?", False), ("who books?", True)])
def test_a_question_that_is_listed_twice_counts_once_towards_deciding(
    store: Store, settings_for: Callable[..., Settings], tmp_path: Path, second: str, decides: bool
) -> None:
    (tmp_path / "golden").mkdir()
    queries = [{"query_id": "a", "query": "how many days are flex"}, {"query_id": "b", "query": second}]
    qrels = [{"query_id": "a", "doc_path": "hr/leave.md"}, {"query_id": "b", "doc_path": "travel.md"}]
    written(tmp_path / "golden", queries, qrels)
    settings = settings_for(
        golden=str(tmp_path / "golden"), evaluation={"golden_minimum_queries": 2, "golden_minimum_units": 2}
    )
    ingest_documents(store, settings)
    split_documents(store, settings)
    found = resolve_golden_queries(store, settings).details
    assert (found["resolved"], found["repeated_wordings"], found["decides"]) == (2, 0 if decides else 1, decides)
