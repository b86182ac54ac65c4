"""Curated pairs: every format that people have, resolved to the chunks of today."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rapidfuzz import fuzz

from acme_rag_pipeline.chunking.chunks import split_documents
from acme_rag_pipeline.documents.ingest import ingest_documents
from acme_rag_pipeline.evaluation.golden import golden_queries, resolve_golden_queries
from acme_rag_pipeline.orchestration.checks import curated_pairs_resolve
from acme_rag_pipeline.orchestration.presentation import metadata_of
from acme_rag_pipeline.pairs.curated import resolve_curated_pairs
from acme_rag_pipeline.pairs.curated_formats import read_curated_pairs
from acme_rag_pipeline.pairs.curated_places import Places
from acme_rag_pipeline.settings import Settings, SettingsError
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import live_passages
from acme_rag_pipeline.store.warehouse import records

HOTELS = "Hotels in Rotterdam may cost 165 euros a night, hotels in London 210 euros."
SABBATICAL = "Evergreen is a paid sabbatical of six weeks after six years of service."


def rows(store: Store, query: str) -> list[dict[str, Any]]:
    with store.warehouse.read() as connection:
        return records(connection, query)


def written(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_csv_of_a_spreadsheet_holds_line_breaks_and_semicolons(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["query", "doc_path", "quote", "negative"])
        writer.writerow(
            ["What may a hotel cost?", "travel.md", "Hotels in Rotterdam\nmay cost 165", "Meals, paid; by day"]
        )
        writer.writerow(["", "travel.md", "Hotels", ""])
    pairs, problems = read_curated_pairs(path)
    assert [(p.quote, p.negatives) for p in pairs] == [("Hotels in Rotterdam\nmay cost 165", ("Meals, paid; by day",))]
    assert problems == ["line 4: no query"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pairs.csv", "query,doc_path,quote\nWhat is a café?,travel.md,Hotels\nWho pays?,travel.md,Tips\n"),
        (
            "pairs.jsonl",
            '{"query": "What is a café?", "doc_path": "travel.md", "quote": "Hotels"}\n'
            '{"query": "Who pays?", "doc_path": "travel.md", "quote": "Tips"}\n',
        ),
    ],
)
def test_a_line_in_another_encoding_costs_that_line_and_is_named(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode("latin-1"))
    pairs, problems = read_curated_pairs(path)
    assert [pair.query for pair in pairs] == ["Who pays?"]
    assert len(problems) == 1
    assert "save the file as UTF-8" in problems[0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("told", [True, False])
def test_a_csv_is_read_as_spreadsheets_and_people_write_it(
    tmp_path: Path, encoding: str, delimiter: str, told: bool
) -> None:
    rows = [
        [" Query", "DOC_PATH ", "Start", "end", "Quote", "Verdict"],
        ["Was kostet ein Hôtel?", " travel.md ", " 3", "40 ", "", " Accepted"],
        ["", "travel.md", "", "", "Hotels", ""],
    ]
    text = "".join(delimiter.join(row) + "\r\n" for row in rows)
    (tmp_path / "pairs.csv").write_bytes(((f"sep={delimiter}\r\n" if told else "") + text).encode(encoding))
    (pair,), problems = read_curated_pairs(tmp_path / "pairs.csv")
    assert (pair.query, pair.doc_path, pair.start, pair.end) == ("Was kostet ein Hôtel?", "travel.md", 3, 40)
    assert (pair.quote, pair.verdict) == (None, "accepted")
    assert problems == [f"line {4 if told else 3}: no query"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"question,doc_path\nWho?,a.md\n", "none of them is `query`: question, doc_path"),
        ("quéry,quote\nWhat is a hotel?,x\n".encode("cp1252"), "as `CSV UTF-8`"),
    ],
)
def test_a_csv_that_cannot_be_read_says_what_to_do(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "pairs.csv").write_bytes(content)
    with pytest.raises(SettingsError, match=message):
        read_curated_pairs(tmp_path / "pairs.csv")


OPEN = 'a cell begins with a quotation mark (") and does not end with one'


@pytest.mark.parametrize(
    ("lines", "queries", "problems"),
    [
        (['"Who pays?,a.md,x', "Who asks?,b.md,y", "Who answers?,c.md,z"], ["Who asks?", "Who answers?"], {2: OPEN}),
        # The mark that opens the next row closes the open one.
        (['"Who pays?,a.md,x', '"Who asks?","b.md","y"'], ["Who asks?"], {2: OPEN}),
        (
            ["Who asks?,b.md,y", 'Who pays?,a.md,"x', *["Who sings?,c.md,z"] * 20_000],
            ["Who asks?", "Who sings?"],
            {3: OPEN},
        ),
        (["Who pays?,a.md," + "x" * 140_000, "Who asks?,b.md,y"], ["Who asks?"], {2: "not CSV (field larger"}),
        (['"Who" pays?,a.md,"x', "Who asks?,b.md,y"], ["Who asks?"], {2: OPEN}),
        (['"Who" pays?,a.md,x', '"Who ""asks""?",b.md,"two', 'lines"'], ["Who pays?", 'Who "asks"?'], {}),
        (["", "Who asks?,b.md,y", "", "Who pays?,c.md"], ["Who asks?"], {5: "neither a quote nor a span"}),
    ],
)
def test_a_csv_row_with_an_open_quotation_mark_costs_no_other_row(
    tmp_path: Path, lines: list[str], queries: list[str], problems: dict[int, str]
) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(["query,doc_path,quote", *lines]))
    pairs, found = read_curated_pairs(path)
    assert [pair.query for pair in pairs] == queries
    assert all(pair.quote in ("x", "y", "z", "two\nlines") for pair in pairs)
    assert [problem.partition(": ")[0] for problem in found] == [f"line {line}" for line in problems]
    for problem, says in zip(found, problems.values(), strict=True):
        assert says in problem


def test_a_path_may_be_written_as_on_another_system(
    chunked: Store, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    paths = ["hr/leave.md", "./hr/leave.md", ".\\hr\\leave.md", "hr//leave.md"]
    line = {"quote": SABBATICAL, "start": 0}
    written(tmp_path / "pairs.jsonl", *({"query": f"{n}?", "doc_path": path} | line for n, path in enumerate(paths)))
    golden = tmp_path / "golden"
    golden.mkdir()
    written(golden / "queries.jsonl", *({"query_id": path, "query": path} for path in paths))
    written(golden / "qrels.jsonl", *({"query_id": path, "doc_path": path} for path in paths))
    settings = settings_for(curated_pairs="pairs.jsonl", golden=str(golden))
    resolve_curated_pairs(chunked, settings)
    assert rows(chunked, "SELECT DISTINCT doc_path, status FROM curated_pairs") == [
        {"doc_path": "hr/leave.md", "status": "resolved"}
    ]
    resolve_golden_queries(chunked, settings)
    assert [e.doc_path for q in golden_queries(chunked) for e in q.evidence] == ["hr/leave.md"] * len(paths)


def test_a_llama_index_dataset_is_found_without_paths(chunked: Store, settings_for: Any, tmp_path: Path) -> None:
    edited = SABBATICAL.replace("six weeks", "eight weeks")
    dataset = {
        "queries": {"q1": "What may a hotel cost?", "q2": "Is there a sabbatical?", "q3": "Who cooks?", "q4": "x?"},
        "corpus": {
            "a": HOTELS.replace(" ", "\n", 3),
            "b": edited,
            "c": "Nobody here knows how to boil an egg for lunch.",
        },
        "relevant_docs": {"q1": ["a"], "q2": ["b"], "q3": ["c"], "q4": ["gone"]},
        "mode": "text",
    }
    (tmp_path / "pairs.json").write_text(json.dumps(dataset), encoding="utf-8")
    result = resolve_curated_pairs(chunked, settings_for(curated_pairs="pairs.json"))
    found = rows(
        chunked,
        "SELECT p.query, p.doc_path, c.text, p.reason, p.nearest_chunk_id FROM curated_pairs p "
        "LEFT JOIN chunks c USING (chunk_id) ORDER BY p.query",
    )
    assert [(r["query"], r["doc_path"]) for r in found] == [
        ("Is there a sabbatical?", "hr/leave.md"),
        ("What may a hotel cost?", "travel.md"),
        ("Who cooks?", ""),
    ]
    assert "sabbatical" in found[0]["text"]
    assert found[2]["reason"] == "the quote is in none of the documents"
    preview = metadata_of(chunked, result)["preview"].records
    (lost,) = (record.data for record in preview if record.data["query"] == "Who cooks?")
    assert len(lost["nearest_passage"]) > 50
    assert result.details["unusable_lines"] == ["query q4: a relevant document is not in the corpus"]


def test_a_passage_over_several_chunks_belongs_to_the_one_that_the_query_is_about(
    chunked: Store, settings_for: Any, tmp_path: Path
) -> None:
    (text,) = (row["text"] for row in rows(chunked, "SELECT text FROM documents WHERE doc_path = 'travel.md'"))
    dataset = {"queries": {"q": "fines and minibars in Ledgerly"}, "corpus": {"a": text}, "relevant_docs": {"q": ["a"]}}
    (tmp_path / "pairs.json").write_text(json.dumps(dataset), encoding="utf-8")
    resolve_curated_pairs(chunked, settings_for(curated_pairs="pairs.json"))
    assert len(rows(chunked, "SELECT * FROM chunks WHERE doc_path = 'travel.md'")) > 1
    assert "minibars" in rows(chunked, "SELECT text FROM curated_pairs JOIN chunks USING (chunk_id)")[0]["text"]


@pytest.mark.parametrize("content", ["[]", '{"queries": {}}', "not json"])
def test_another_json_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "pairs.json").write_text(content)
    with pytest.raises(SettingsError, match="ACME_RAG_CURATED_PAIRS"):
        read_curated_pairs(tmp_path / "pairs.json")


def test_a_pair_follows_an_edit_and_says_when_its_passage_is_gone(
    chunked: Store, documents: Path, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    written(tmp_path / "pairs.jsonl", {"query": "hotel limit", "doc_path": "travel.md", "quote": HOTELS})
    settings = settings_for(curated_pairs="pairs.jsonl")
    resolve_curated_pairs(chunked, settings)
    first = rows(chunked, "SELECT chunk_id FROM curated_pairs")[0]["chunk_id"]

    def edit(old: str, new: str) -> dict[str, Any]:
        path = documents / "travel.md"
        path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
        for stage in (ingest_documents, split_documents, resolve_curated_pairs):
            stage(chunked, settings)
        return rows(chunked, "SELECT * FROM curated_pairs")[0]

    moved = edit("165 euros a night, hotels", "175 euros each night, and hotels")
    assert moved["status"] == "resolved"
    assert moved["chunk_id"] != first
    gone = edit(
        "Hotels in Rotterdam may cost 175 euros each night, and hotels in London 210 euros.", "Hotels are free."
    )
    assert (gone["status"], gone["chunk_id"]) == ("unresolved", None)
    assert rows(chunked, f"SELECT text FROM chunks WHERE chunk_id = '{gone['nearest_chunk_id']}'")[0]["text"]
    assert rows(chunked, "SELECT * FROM pairs") == []


def test_a_passage_that_moved_to_another_document_is_shown_there(
    chunked: Store, documents: Path, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    written(tmp_path / "pairs.jsonl", {"query": "hotel limit", "doc_path": "travel.md", "quote": HOTELS})
    settings = settings_for(curated_pairs="pairs.jsonl")
    path = documents / "travel.md"
    before = path.read_text(encoding="utf-8")
    assert HOTELS in before
    path.write_text(before.replace(HOTELS, "Hotels are in the table of London and Rotterdam."), encoding="utf-8")
    (documents / "costs.md").write_text(f"# Costs\n\n{HOTELS}\n", encoding="utf-8")
    for stage in (ingest_documents, split_documents, resolve_curated_pairs):
        stage(chunked, settings)
    (moved,) = rows(chunked, "SELECT * FROM curated_pairs")
    assert (moved["status"], moved["chunk_id"]) == ("unresolved", None)
    assert moved["reason"].endswith("; costs.md has it")
    (shown,) = rows(chunked, f"SELECT doc_path, text FROM chunks WHERE chunk_id = '{moved['nearest_chunk_id']}'")
    assert shown["doc_path"] == "costs.md"
    assert HOTELS in shown["text"]


def test_a_rejected_line_is_no_pair_and_an_unknown_verdict_is_named(
    chunked: Store, settings_for: Any, tmp_path: Path
) -> None:
    line = {"query": "hotel limit", "doc_path": "travel.md", "quote": HOTELS}
    written(tmp_path / "pairs.jsonl", line | {"verdict": "rejected"}, line | {"verdict": "perhaps"})
    result = resolve_curated_pairs(chunked, settings_for(curated_pairs="pairs.jsonl"))
    assert rows(chunked, "SELECT * FROM curated_pairs") + rows(chunked, "SELECT * FROM pairs") == []
    assert [r["query"] for r in rows(chunked, "SELECT * FROM rejected_pairs WHERE chunk_id IS NOT NULL")] == [
        "hotel limit"
    ]
    assert "verdict must be one of" in result.details["unusable_lines"][0]


def test_half_a_character_and_an_endless_position_cost_their_line_only(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        '{"query": "cut \\ud83d", "quote": "x"}\n{"query": "q", "doc_path": "a.md", "start": 0, "end": 1e999}\n'
        '{"query": "whole", "quote": "x"}\n'
    )
    pairs, problems = read_curated_pairs(path)
    assert [pair.query for pair in pairs] == ["whole"]
    assert [problem.partition(":")[0] for problem in problems] == ["line 1", "line 2"]


def test_a_verbatim_quote_is_found_wherever_its_words_stand_more_often(
    store: Store, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02}.md").write_text(
            f"# Desk {number}\n\nAsk your manager for help when you need it, and contact the desk, please. Please contact "
            "payroll, or ask them. Your team can help you too.\n"
        )
    (folder / "z.md").write_text("# Broken\n\nIf it is broken: please contact your manager.\n")
    path = written(tmp_path / "pairs.jsonl", {"query": "Whom do I tell?", "quote": "please contact your manager"})
    settings = settings_for(documents=str(folder), curated_pairs=str(path))
    ingest_documents(store, settings)
    split_documents(store, settings)
    resolve_curated_pairs(store, settings)
    assert [row["doc_path"] for row in rows(store, "SELECT doc_path FROM curated_pairs")] == ["z.md"]


def test_a_span_without_a_quote_holds_only_for_the_document_it_was_first_found_in(
    chunked: Store, documents: Path, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    path = documents / "travel.md"
    original = path.read_text(encoding="utf-8")
    start = original.index(HOTELS)
    span = {"doc_path": "travel.md", "start": start, "end": start + len(HOTELS)}
    lines = [{"query": "What may a hotel cost?"} | span, {"query": "hotel limit", "verdict": "rejected"} | span]
    written(tmp_path / "pairs.jsonl", *lines)
    settings = settings_for(curated_pairs="pairs.jsonl")

    def resolved(text: str) -> tuple[dict[str, Any], str, str | None]:
        path.write_text(text, encoding="utf-8")
        for stage in (ingest_documents, split_documents, resolve_curated_pairs):
            stage(chunked, settings)
        (row,) = rows(chunked, "SELECT * FROM curated_pairs")
        place = row["chunk_id"] or row["nearest_chunk_id"]
        shown = rows(chunked, f"SELECT text FROM chunks WHERE chunk_id = '{place}'")[0]["text"]
        return row, shown, rows(chunked, "SELECT chunk_id FROM rejected_pairs")[0]["chunk_id"]

    first, passage, rejected = resolved(original)
    assert first["status"] == "resolved"
    assert HOTELS in passage
    assert rejected == first["chunk_id"]
    # The characters of the span are now in the middle of another section.
    edited = original.replace("# Travel\n", "# Travel\n\n" + "Read all of this before you leave. " * 30 + "\n", 1)
    moved, nearest, rejected = resolved(edited)
    assert (moved["status"], moved["chunk_id"]) == ("unresolved", None)
    assert moved["reason"] == "the document changed, and without a quote its span cannot be found again"
    assert HOTELS in nearest
    assert rejected is None
    assert rows(chunked, "SELECT * FROM pairs") == []
    assert resolved(original)[0] == first


def test_a_span_is_the_same_span_whatever_is_asked_about_it(
    chunked: Store, documents: Path, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    path = documents / "travel.md"
    text = path.read_text(encoding="utf-8")
    span = {"doc_path": "travel.md", "start": text.index(HOTELS), "end": text.index(HOTELS) + len(HOTELS)}
    written(tmp_path / "pairs.jsonl")
    settings = settings_for(curated_pairs="pairs.jsonl")

    def statuses(*queries: str) -> list[str]:
        written(tmp_path / "pairs.jsonl", *({"query": query} | span for query in queries))
        resolve_curated_pairs(chunked, settings)
        return [row["status"] for row in rows(chunked, "SELECT status FROM curated_pairs ORDER BY query")]

    assert statuses("What may a hotel cost?") == ["resolved"]
    path.write_text("Read all of this before you leave. " * 30 + text, encoding="utf-8")
    for stage in (ingest_documents, split_documents):
        stage(chunked, settings)
    assert statuses("What is a hotel allowed to cost?") == ["unresolved"]
    # As an earlier version kept it: for each pair.
    seen = rows(chunked, "SELECT sha256 FROM curated_seen")[0]["sha256"]
    (pair,) = read_curated_pairs(tmp_path / "pairs.jsonl")[0]
    with chunked.warehouse.write() as connection:
        connection.execute("DELETE FROM curated_seen")
        connection.execute("DELETE FROM stages WHERE stage = 'curated_pairs'")
        connection.execute("INSERT INTO curated_seen VALUES (?, ?)", [pair.curated_id, seen])
    assert statuses("What is a hotel allowed to cost?", "Where do I sleep?") == ["unresolved"] * 2


def test_a_rejection_whose_passage_is_gone_is_named(
    chunked: Store, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    gone = "The cafeteria closes at three o'clock on Fridays, and nobody knows why it does."
    line = {"doc_path": "travel.md", "quote": gone, "verdict": "rejected"}
    written(tmp_path / "pairs.jsonl", {"query": "friday lunch"} | line)
    settings = settings_for(curated_pairs="pairs.jsonl")
    details = resolve_curated_pairs(chunked, settings).details
    reason = "rejected in review; the quote is not in the document any more"
    assert details["unresolved"] == [{"query": "friday lunch", "doc_path": "travel.md", "reason": reason}]
    check = curated_pairs_resolve(chunked, settings)
    assert not check.passed
    assert check.metadata["unresolved"].value == 1
    assert "friday lunch" in str(check.metadata["pairs"].value)


def test_a_rejected_query_is_no_pair_of_its_passage_under_another_quote_either(
    chunked: Store, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    line = {"query": "hotel limit", "doc_path": "travel.md"}
    other = {"query": "Hotel limit?", "doc_path": "travel.md", "quote": HOTELS}
    written(
        tmp_path / "pairs.jsonl",
        line | {"quote": HOTELS, "verdict": "rejected"},
        line | {"quote": "Breakfast is included in that limit", "negative": SABBATICAL},
        other | {"verdict": "accepted"},
        other | {"query": "fair limit"},
    )
    settings = settings_for(curated_pairs="pairs.jsonl")
    details = resolve_curated_pairs(chunked, settings).details
    # Another wording that counts as the same may be the one that the review kept.
    assert {row["query"] for row in rows(chunked, "SELECT query FROM pairs")} == {"Hotel limit?", "fair limit"}
    assert (details["statuses"], details["unresolved"]) == ({"rejected": 1, "resolved": 2}, [])
    assert details["negatives"] == {"named": 0, "resolved": 0}
    assert curated_pairs_resolve(chunked, settings).passed


APPROVAL = "Ask your manager for approval of it."


@pytest.fixture
def departments(store: Store, settings_for: Callable[..., Settings], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Resolve pairs over documents that share a sentence; what became of the stage."""
    folder = tmp_path / "departments"
    folder.mkdir()

    def about(subject: str) -> str:
        settled = f"The {subject} desk settles what people ask about {subject}. " * 30
        return f"\n## {subject.title()}\n\n{settled}{APPROVAL}\n"

    (folder / "a.md").write_text("# Handbook\n" + about("parking") + about("catering"))
    (folder / "b.md").write_text("# Guide\n" + about("travel"))
    (folder / "c.md").write_text("# Guide\n" + about("travel"))
    written(tmp_path / "pairs.jsonl")
    settings = settings_for(documents=str(folder), curated_pairs="pairs.jsonl")
    ingest_documents(store, settings)
    split_documents(store, settings)

    def resolve(*lines: dict[str, Any]) -> dict[str, Any]:
        written(tmp_path / "pairs.jsonl", *lines)
        details = resolve_curated_pairs(store, settings).details
        found = rows(
            store, "SELECT p.query, c.heading_path[-1] AS section FROM curated_pairs p JOIN chunks c USING (chunk_id)"
        )
        sections = {row["query"]: row["section"] for row in found}
        return details | {"sections": sections, "passed": curated_pairs_resolve(store, settings).passed}

    return resolve


def test_of_several_places_of_a_quote_the_query_tells_which_is_meant(departments: Any) -> None:
    done = departments(
        {"query": "who approves catering?", "doc_path": "a.md", "quote": APPROVAL},
        {"query": "who approves travel?", "quote": APPROVAL},
        {"query": "parking rules", "doc_path": "a.md", "quote": "manager"},
    )
    assert done["sections"] == {
        "who approves catering?": "Catering",
        "who approves travel?": "Travel",
        "parking rules": "Parking",
    }
    # b.md and c.md say the same.
    assert (done["ambiguous"], done["passed"]) == ([], True)


def test_a_quote_whose_place_the_query_does_not_tell_is_named_or_where_it_is_short_refused(departments: Any) -> None:
    done = departments(
        {"query": "who approves it?", "doc_path": "a.md", "quote": APPROVAL},
        {"query": "whom do I ask?", "quote": "your manager"},
    )
    assert done["sections"] == {"who approves it?": "Parking"}
    assert [row["query"] for row in done["ambiguous"]] == ["who approves it?"]
    (refused,) = done["unresolved"]
    assert refused["reason"] == "the quote has fewer than 3 words and stands in several passages: quote more of it"
    assert not done["passed"]
    done = departments({"query": "who approves it?", "doc_path": "a.md", "quote": APPROVAL})
    assert (done["unresolved"], done["passed"]) == ([], False)


GERMANY = "Employees in Germany get 30 days of paid leave a year, and ask their manager for them two weeks ahead."
FRANCE = GERMANY.replace("Germany get 30", "France get 25")


@pytest.fixture
def countries(store: Store, settings_for: Callable[..., Settings], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Resolve pairs over these documents and no others; what became of the stage."""

    def resolve(texts: dict[str, str], *lines: dict[str, Any]) -> dict[str, Any]:
        folder = tmp_path / f"countries {sorted(texts)}"
        folder.mkdir(exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(f"# Leave\n\n{text}\n")
        written(tmp_path / "pairs.jsonl", *lines)
        settings = settings_for(documents=str(folder), curated_pairs="pairs.jsonl")
        for stage in (ingest_documents, split_documents):
            stage(store, settings)
        return resolve_curated_pairs(store, settings).details | {
            "passed": curated_pairs_resolve(store, settings).passed
        }

    return resolve


def test_a_similar_passage_is_none_where_the_quote_itself_stands_in_another_document(
    countries: Any, store: Store
) -> None:
    line = {"query": "How much leave do Germans get?", "doc_path": "leave.md", "quote": GERMANY}
    # Without another document it may be the same passage, edited.
    assert countries({"leave.md": FRANCE, "pay.md": "Paid monthly."}, line)["unresolved"] == []
    (said,) = countries({"leave.md": FRANCE, "de.md": GERMANY}, line)["unresolved"]
    assert said["reason"] == "the quote is not in the document any more; de.md has it"
    (row,) = rows(store, "SELECT c.doc_path FROM curated_pairs p JOIN chunks c ON c.chunk_id = p.nearest_chunk_id")
    assert row["doc_path"] == "de.md"


@pytest.mark.parametrize(
    ("texts", "counts_in"),
    [
        ({"people.md": GERMANY, "pay.md": "Paid monthly."}, ["people.md"]),
        # The passage moved, or it was edited and another one has its words: it is rejected in both.
        ({"leave.md": FRANCE, "de.md": GERMANY}, ["de.md", "leave.md"]),
        ({"leave.md": GERMANY, "copy.md": GERMANY}, ["leave.md"]),
    ],
)
def test_a_rejection_follows_its_passage_into_another_document(
    countries: Any, store: Store, texts: dict[str, str], counts_in: list[str]
) -> None:
    line = {"query": "leave", "doc_path": "leave.md", "quote": GERMANY, "verdict": "rejected"}
    edited = {"query": "paid leave", "doc_path": "leave.md", "quote": GERMANY, "replaces": "leave", "verdict": "edited"}
    for one in (line, edited):
        details = countries(texts, one)
        counting = rows(
            store, "SELECT r.doc_path, c.doc_path AS found FROM rejected_pairs r JOIN chunks c USING (chunk_id)"
        )
        assert sorted((row["doc_path"], row["found"]) for row in counting) == [(path, path) for path in counts_in]
        assert rows(store, "SELECT * FROM rejected_pairs WHERE chunk_id IS NULL") == []
    assert countries(texts, line)["passed"]
    # A pair follows its document alone, and not a passage out of one that is still there.
    assert details["resolved"] == ("de.md" not in texts)


@pytest.mark.parametrize("edited", [False, True])
def test_a_pair_follows_its_document_under_another_name_and_says_so(
    chunked: Store, documents: Path, settings_for: Callable[..., Settings], tmp_path: Path, edited: bool
) -> None:
    path = documents / "travel.md"
    before = path.read_text(encoding="utf-8")
    line = {"query": "hotel limit", "doc_path": "travel.md", "quote": HOTELS}
    start = before.index(HOTELS)
    span = {"doc_path": "travel.md", "start": start, "end": start + len(HOTELS)}
    span["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    written(tmp_path / "pairs.jsonl", line, {"query": "nights", **span}, line | {"verdict": "rejected", "query": "bed"})
    settings = settings_for(curated_pairs="pairs.jsonl")

    def resolved(store: Store) -> list[dict[str, Any]]:
        for stage in (ingest_documents, split_documents):
            stage(store, settings)
        result = resolve_curated_pairs(store, settings)
        assert result.details["counted"]["moved"] == len(result.details["moved"])
        return rows(store, "SELECT * FROM curated_pairs ORDER BY query")

    assert {(row["status"], row["reason"]) for row in resolved(chunked)} == {("resolved", None)}
    path.rename(documents / "trips.md")
    if edited:
        (documents / "trips.md").write_text(
            before.replace("165 euros a night", "170 euros each night"), encoding="utf-8"
        )
    limit, nights = found = resolved(chunked)
    note = "moved: travel.md is gone, and trips.md has its passage"
    assert (limit["status"], limit["doc_path"], limit["reason"]) == ("resolved", "trips.md", note)
    assert (nights["status"] == "resolved", nights["reason"] == note) == (not edited, not edited)
    (rejected,) = rows(chunked, "SELECT doc_path, chunk_id FROM rejected_pairs")
    assert rejected == {"doc_path": "trips.md", "chunk_id": limit["chunk_id"]}
    check = curated_pairs_resolve(chunked, settings)
    assert check.passed != edited
    assert [
        record.data["reason"] for record in check.metadata["moved"].value.records if record.data["query"] == "bed"
    ] == [f"rejected in review; {note}"]
    assert found == resolved(Store(tmp_path / "fresh", wait_seconds=10))
    path.write_text(before, encoding="utf-8")
    assert {(row["doc_path"], row["reason"]) for row in resolved(chunked)} == {("travel.md", None)}


def test_a_pair_of_a_document_that_is_gone_follows_nothing_uncertain(countries: Any) -> None:
    line = {"query": "How much leave is it?", "doc_path": "leave.md", "quote": GERMANY}
    italy = GERMANY.replace("Germany get 30", "Italy get 26")
    for texts, quote in (
        ({"fr.md": FRANCE, "it.md": italy}, GERMANY),
        ({"a.md": f"{GERMANY} Ask People.", "b.md": f"{GERMANY} {'Something else is told here. ' * 9}"}, GERMANY),
        ({"a.md": GERMANY}, "paid leave"),
    ):
        details = countries(texts, line | {"quote": quote})
        assert (details["resolved"], details["moved"]) == (0, [])
        assert details["unresolved"][0]["reason"].startswith("leave.md is not among the readable documents")
    # The quote itself wins over what is like it, wherever that stands.
    details = countries({"de.md": GERMANY, "fr.md": FRANCE}, line)
    assert [row["reason"] for row in details["moved"]] == ["moved: leave.md is gone, and de.md has its passage"]


def test_a_pair_of_a_document_that_cannot_be_read_today_does_not_move(
    chunked: Store, documents: Path, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    path = documents / "travel.md"
    (documents / "copy.md").write_bytes(path.read_bytes())
    path.write_bytes(b"\x00\x01\xff" * 400)
    written(tmp_path / "pairs.jsonl", {"query": "hotel limit", "doc_path": "travel.md", "quote": HOTELS})
    settings = settings_for(curated_pairs="pairs.jsonl")
    for stage in (ingest_documents, split_documents):
        stage(chunked, settings)
    details = resolve_curated_pairs(chunked, settings).details
    assert (details["resolved"], details["moved"]) == (0, [])


def test_a_rejection_does_not_follow_a_few_words_that_stand_anywhere(countries: Any, store: Store) -> None:
    texts = {"people.md": f"{GERMANY} A paid leave.", "pay.md": "Paid leave is good."}
    line = {"query": "leave", "doc_path": "leave.md", "quote": "paid leave", "verdict": "rejected"}
    assert not countries(texts, line)["passed"]
    (row,) = rows(store, "SELECT doc_path, chunk_id FROM rejected_pairs")
    assert row == {"doc_path": "leave.md", "chunk_id": None}


@pytest.mark.parametrize("negative", [FRANCE, FRANCE.replace("25 days", "26 days")])
@pytest.mark.parametrize("other", [GERMANY, GERMANY + " " + FRANCE])
def test_a_negative_that_resembles_the_passage_is_looked_for_outside_of_it(
    countries: Any, store: Store, negative: str, other: str
) -> None:
    line = {"query": "How much leave do Germans get?", "doc_path": "leave.md", "quote": GERMANY, "negative": negative}
    details = countries({"leave.md": other, "fr.md": FRANCE}, line)
    assert (details["negatives"], details["negatives_not_found"]) == ({"named": 1, "resolved": 1}, [])
    (row,) = rows(store, "SELECT doc_path FROM curated_negatives JOIN chunks USING (chunk_id)")
    assert row["doc_path"] == "fr.md"


@pytest.mark.parametrize("negative", ["and ask their manager for them", GERMANY.replace("30 days", "31 days")])
def test_a_negative_that_is_the_passage_itself_is_named(countries: Any, negative: str) -> None:
    line = {"query": "How much leave do Germans get?", "doc_path": "leave.md", "quote": GERMANY, "negative": negative}
    details = countries({"leave.md": GERMANY, "pay.md": "Paid monthly."}, line)
    (lost,) = details["negatives_not_found"]
    assert lost == {"query": line["query"], "doc_path": "leave.md", "negative": negative} | {
        "reason": "it is the pair's own passage"
    }
    assert not details["passed"]


def test_what_is_like_a_quote_is_looked_for_once(chunked: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places(chunked.warehouse, live_passages(chunked.warehouse))
    quote = HOTELS.replace("165", "175")
    found = places.similar(quote, "travel.md"), places.anywhere(quote, "hotel limit")
    assert found[0] is not None
    monkeypatch.delattr(fuzz, "partial_ratio_alignment")
    assert (places.similar(quote, "travel.md"), places.anywhere(quote, "lodging")) == found


def test_a_negative_that_is_found_nowhere_is_named(
    chunked: Store, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    line = {"query": "hotel limit", "doc_path": "travel.md", "quote": HOTELS}
    nowhere = "This text is in none of the documents, however long one looks for it there."
    written(tmp_path / "pairs.jsonl", line | {"negative": nowhere}, line | {"negative": SABBATICAL})
    settings = settings_for(curated_pairs="pairs.jsonl")
    details = resolve_curated_pairs(chunked, settings).details
    assert details["negatives"] == {"named": 2, "resolved": 1}
    assert [row["negative"] for row in details["negatives_not_found"]] == [nowhere]
    check = curated_pairs_resolve(chunked, settings)
    assert not check.passed
    assert nowhere in str(check.metadata["negatives_not_found"].value)


def test_a_span_must_end_in_its_document(chunked: Store, settings_for: Callable[..., Settings], tmp_path: Path) -> None:
    length = rows(chunked, "SELECT length(text) AS n FROM documents WHERE doc_path = 'travel.md'")[0]["n"]
    ends = (length, length + 1, 2**31 - 1)
    lines = ({"query": str(end), "doc_path": "travel.md", "start": length - 50, "end": end} for end in ends)
    written(tmp_path / "pairs.jsonl", *lines)
    details = resolve_curated_pairs(chunked, settings_for(curated_pairs="pairs.jsonl")).details
    assert details["resolved"] == 1
    assert {row["reason"] for row in details["unresolved"]} == {
        f"the span ends after the document ({length} characters)"
    }


@pytest.mark.parametrize(
    ("start", "end", "span"),
    [
        (0, 9, (0, 9)),
        ("0", 9.0, (0, 9)),
        ("0.0", "9.0", (0, 9)),
        ("0", "9.5", None),
        (True, 9, None),
        (0, 9.5, None),
        ("0", "1_0", None),
        (0, float("inf"), None),
    ],
)
def test_a_position_is_a_whole_number(tmp_path: Path, start: Any, end: Any, span: tuple[int, int] | None) -> None:
    path = written(tmp_path / "pairs.jsonl", {"query": "q", "doc_path": "a.md", "start": start, "end": end})
    pairs, problems = read_curated_pairs(path)
    assert [(pair.start, pair.end) for pair in pairs] == ([span] if span else [])
    assert problems == ([] if span else ["line 1: start and end must be character positions"])


def test_what_pandas_writes_for_nothing_is_nothing(tmp_path: Path) -> None:
    nothing = float("nan")
    line = {"query": "q", "doc_path": "a.md", "quote": "x", "start": nothing, "end": nothing, "negative": nothing}
    line |= {"verdict": nothing, "replaces": nothing, "sha256": nothing}
    path = written(tmp_path / "pairs.jsonl", line, line | {"doc_path": nothing}, line | {"quote": nothing})
    pairs, problems = read_curated_pairs(path)
    assert [(p.doc_path, p.quote, p.start, p.end, p.negatives, p.verdict) for p in pairs] == [
        (doc_path, "x", None, None, (), None) for doc_path in ("a.md", None)
    ]
    assert problems == ["line 3: neither a quote nor a span (start, end)"]


def test_a_line_may_name_several_negatives_and_one_that_is_no_text_costs_no_pair(
    countries: Any, store: Store, tmp_path: Path
) -> None:
    line = {"query": "How much leave do Germans get?", "doc_path": "leave.md", "quote": GERMANY}
    pay = "Salaries are paid on the twenty-fifth of each month, in euros and to one account."
    named: list[Any] = [FRANCE, 7, "", None, pay, pay, "half \ud83d"]
    details = countries({"leave.md": GERMANY, "fr.md": FRANCE, "pay.md": pay}, line | {"negative": named})
    assert (details["negatives"], details["negatives_not_found"]) == ({"named": 2, "resolved": 2}, [])
    found = rows(store, "SELECT doc_path FROM curated_negatives JOIN chunks USING (chunk_id) ORDER BY doc_path")
    assert [row["doc_path"] for row in found] == ["fr.md", "pay.md"]
    assert details["unusable_lines"] == [
        "line 1: a negative is left out: not a text, or one that holds half a character"
    ]
    assert rows(store, "SELECT negative, negatives FROM curated_pairs") == [
        {"negative": FRANCE, "negatives": [FRANCE, pay]}
    ]
    # A list of one is the same line.
    (listed,), _ = read_curated_pairs(written(tmp_path / "one.jsonl", line | {"negative": [FRANCE]}))
    (single,), _ = read_curated_pairs(written(tmp_path / "one.jsonl", line | {"negative": FRANCE}))
    assert listed.curated_id == single.curated_id


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.csv"])
def test_a_span_with_the_hash_of_its_file_resolves_as_in_a_store_from_nothing(
    chunked: Store, documents: Path, settings_for: Callable[..., Settings], tmp_path: Path, name: str
) -> None:
    path = documents / "travel.md"
    original = path.read_text(encoding="utf-8")
    start = original.index(HOTELS)

    def resolved(store: Store) -> list[dict[str, Any]]:
        for stage in (ingest_documents, split_documents, resolve_curated_pairs):
            stage(store, settings)
        return rows(store, "SELECT * FROM curated_pairs ORDER BY query, sha256")

    edited = original.replace("# Travel\n", "# Travel\n\n" + "Read all of this before you leave. " * 30 + "\n", 1)
    of_each = [hashlib.sha256(text.encode()).hexdigest() for text in (original, edited)]
    span = {"doc_path": "travel.md", "start": start, "end": start + len(HOTELS)}
    lines = [
        {"query": "hotel limit", "sha256": of_each[0].upper()} | span,
        {"query": "trips", "sha256": of_each[1]} | span,
    ]
    if name == "pairs.csv":
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
    else:
        written(tmp_path / name, *lines)
    settings = settings_for(curated_pairs=name)
    assert [row["status"] for row in resolved(chunked)] == ["resolved", "unresolved"]
    assert rows(chunked, "SELECT * FROM curated_seen") == []
    path.write_text(edited, encoding="utf-8")
    after = resolved(chunked)
    assert [row["status"] for row in after] == ["unresolved", "resolved"]
    assert after[0]["reason"].startswith("the document is not the file of its sha256")
    assert after == resolved(Store(tmp_path / "fresh", wait_seconds=10))
    path.write_text(original, encoding="utf-8")
    assert [row["status"] for row in resolved(chunked)] == ["resolved", "unresolved"]


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_table_may_end_in_either_way(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"pairs.{ending}"
    path.write_text("query\tdoc_path\tquote\nWho pays?\ttravel.md\tTips, meals\n")
    pairs, problems = read_curated_pairs(path)
    assert [(pair.query, pair.quote) for pair in pairs] == [("Who pays?", "Tips, meals")]
    assert problems == []


def test_a_row_with_more_cells_than_columns_is_no_pair(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text(
        "query,doc_path,quote\nFlights, trains?,travel.md,Book trains\nHotels?,travel.md,Hotels in Rotterdam,, \n"
    )
    pairs, problems = read_curated_pairs(tmp_path / "pairs.csv")
    assert [pair.query for pair in pairs] == ["Hotels?"]
    assert problems == [
        "line 2: more cells than columns: put a cell that holds the delimiter in quotation marks",
    ]


def test_a_query_holds_nothing_that_hides_or_reorders_it(tmp_path: Path) -> None:
    line = {"doc_path": "a.md", "quote": "x"}
    queries = [
        "how long \u202egnol\u202c is \x9b31m it \x1b]0;x\x07",
        "\u202e\x1b",
        "Cafe\u0301  \u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645?",
    ]
    path = written(tmp_path / "pairs.jsonl", *({"query": query} | line for query in queries))
    pairs, problems = read_curated_pairs(path)
    # What a query is known by stays: no other normal form, and joiners belong to words.
    assert [pair.query for pair in pairs] == ["how long gnol is 31m it ]0;x", queries[2].replace("  ", " ")]
    assert problems == ["line 2: no query"]


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.json", "pairs.jsonl"])
@pytest.mark.parametrize("content", ["", " \r\n \n", "\ufeff"])
def test_a_blank_file_holds_no_pairs(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_curated_pairs(tmp_path / name) == ([], [])
