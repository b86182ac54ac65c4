"""What is asked of a held-out passage is not trained on, whoever wrote it, and the check sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from acme_rag_pipeline.chunking.chunks import split_documents
from acme_rag_pipeline.documents.ingest import ingest_documents
from acme_rag_pipeline.orchestration.checks import nothing_leaks
from acme_rag_pipeline.pairs.heading_queries import heading_queries
from acme_rag_pipeline.pairs.leaks import Leaks, find_leaks, leaks_of_today
from acme_rag_pipeline.pairs.repeated_queries import repeated
from acme_rag_pipeline.pairs.training_set import build_training_set
from acme_rag_pipeline.retrieval import Retriever
from acme_rag_pipeline.serving.serve import serve
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import LivePassage
from acme_rag_pipeline.store.warehouse import append, records
from acme_rag_pipeline_tests.pairs.conftest import Run

SUBJECTS = ("parking", "laptops", "travel", "holidays", "training", "visitors", "catering", "printing", "badges")


def rows(store: Store, query: str) -> list[dict[str, Any]]:
    with store.warehouse.read() as connection:
        return records(connection, query)


def company(tmp_path: Path) -> Path:
    """A document for each subject."""
    folder = tmp_path / "company"
    folder.mkdir()
    for subject in SUBJECTS:
        text = f"# {subject.title()}\n\nThe desk for {subject} settles what you ask about {subject} within a week.\n"
        (folder / f"{subject}.md").write_text(text)
    return folder


def test_a_held_out_wording_is_not_trained_on(
    store: Store, settings_for: Callable[..., Settings], run_all: Run, tmp_path: Path
) -> None:
    folder = company(tmp_path)
    lines = [
        {"query": wording, "doc_path": f"{subject}.md", "quote": f"The desk for {subject}"}
        for subject in SUBJECTS
        for wording in ("Who signs a late request?", f"Who settles {subject}?")
    ]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = {
        "documents": str(folder),
        "curated_pairs": str(pairs),
        "golden": "none",
        "evaluation": {"validation_share": 0.3, "test_share": 0.3},
    }
    settings = settings_for(**given)
    run_all(**given)
    asked = rows(store, "SELECT side, dropped_because FROM training_pairs WHERE query = 'Who signs a late request?'")
    assert {row["side"] for row in asked} >= {"train", "test"}
    trained = [row["dropped_because"] for row in asked if row["side"] == "train"]
    assert set(trained) == {"same wording as a held-out query"}
    assert [row for row in asked if row["side"] != "train" and row["dropped_because"] is None]
    own = rows(store, "SELECT dropped_because FROM training_pairs WHERE query LIKE 'Who settles%' AND side = 'train'")
    assert own
    assert not [row for row in own if row["dropped_because"]]
    assert nothing_leaks(store, settings).passed
    with store.warehouse.write() as connection:
        connection.execute("UPDATE training_pairs SET dropped_because = NULL WHERE query = 'Who signs a late request?'")
    assert not nothing_leaks(store, settings).passed


def test_a_generator_s_query_must_lead_back_to_its_passage_and_an_llm_s_at_least_near_it(
    store: Store, settings_for: Callable[..., Settings], run_all: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "company"
    folder.mkdir()
    rooms = ("north", "south", "east", "west", "upper", "lower")
    for subject in SUBJECTS:
        for room in rooms:
            text = f"# {subject.title()} {room}\n\nThe {room} desk for {subject} settles what you ask within a week.\n"
            (folder / f"{subject}-{room}.md").write_text(text)
    for copy in range(8):
        (folder / f"form-{copy}.md").write_text("# Forms\n\nZX4411 is to be had at the counter.\n")
    reach = {"offline": 2, "openai": 5}
    given = {
        "documents": str(folder),
        "curated_pairs": "none",
        "golden": "none",
        "pairs": {"round_trip_top_k": 2, "llm_round_trip_top_k": 5, "query_similarity": 1},
        "retrieval": {"sentence_weight": 0},
    }
    run_all(**given)
    chunks = rows(store, "SELECT chunk_id, doc_path FROM chunks WHERE doc_path NOT LIKE 'form%' ORDER BY doc_path")
    copies = rows(store, "SELECT chunk_id, doc_path FROM chunks WHERE doc_path LIKE 'form%' ORDER BY doc_path")
    asked = [
        {
            "pair_id": f"{origin}-{chunk['doc_path']}",
            # Every fourth question asks for another subject than its passage has.
            "query": f"{'Who' if origin == 'offline' else 'Which person'} at the {chunk['doc_path'].split('-')[1][:-3]} end does {subject}, request {number}?",
            "chunk_id": chunk["chunk_id"],
            "origin": origin,
            "style": "question",
            "method": "asked",
            "generator": origin,
        }
        for origin in reach
        for number, chunk in enumerate(chunks)
        for subject in [chunk["doc_path"].split("-")[0] if number % 4 else SUBJECTS[number % len(SUBJECTS)]]
    ]
    # The base follows the common words, BM25 the rare one, which more copies have than are looked at.
    rare = "Which desk settles what I ask within a week, ZX4411?"
    asked += [
        asked[0] | {"pair_id": copy["doc_path"], "query": f"{rare} {number}", "chunk_id": copy["chunk_id"]}
        for number, copy in enumerate(copies)
    ]
    with store.warehouse.write() as connection:
        connection.execute("DELETE FROM pairs")
        append(connection, "pairs", asked)
        connection.execute("UPDATE chunks SET side = 'train' WHERE doc_path LIKE 'form%'")
        connection.execute("DELETE FROM stages WHERE stage = 'training_set'")
    build_training_set(store, settings_for(**given))
    serve(store, settings_for(**given))
    retriever = Retriever.open(store.root)
    judged = rows(
        store,
        "SELECT t.query, t.origin, t.chunk_id, t.dropped_because FROM training_pairs t "
        "WHERE t.side = 'train' AND (t.dropped_because IS NULL OR t.dropped_because LIKE 'neither%')",
    )
    group = {
        row["chunk_id"]: row["near_duplicate_group"]
        for row in rows(store, "SELECT chunk_id, near_duplicate_group FROM chunks")
    }
    outcomes = set()
    near_only = 0
    for pair in judged:
        k = reach[pair["origin"]]
        by_base = {group[hit.chunk_id] for hit in retriever.search(pair["query"], k=k, retriever="base")}
        by_words = [hit.chunk_id for hit in retriever.search(pair["query"], k=k, retriever="bm25")]
        found = group[pair["chunk_id"]] in by_base | {group[chunk_id] for chunk_id in by_words}
        near_only += found and group[pair["chunk_id"]] not in by_base and pair["chunk_id"] not in by_words
        assert found == (pair["dropped_because"] is None), pair
        outcomes.add((pair["origin"], found))
    assert outcomes == {("offline", True), ("offline", False), ("openai", True), ("openai", False)}
    # Some are found by BM25 in a near-duplicate alone, which is as good an answer.
    assert near_only


def test_every_kind_of_leak_is_counted(store: Store, run_all: Run, tmp_path: Path) -> None:
    shares = {"validation_share": 0.3, "test_share": 0.3}
    run_all(documents=str(company(tmp_path)), curated_pairs="none", golden="none", evaluation=shares)
    assert find_leaks(store, golden_decides=False, golden_similarity=0.9, near_duplicate_similarity=0.7).total == 0
    held = rows(store, "SELECT chunk_id, near_duplicate_group FROM chunks WHERE side = 'test' ORDER BY chunk_id")[0]
    asked = rows(
        store, "SELECT query FROM training_pairs WHERE side = 'validation' AND dropped_because IS NULL ORDER BY query"
    )[0]["query"]
    trained = rows(
        store,
        "SELECT pair_id, chunk_id FROM training_pairs WHERE side = 'train' AND dropped_because IS NULL ORDER BY 1",
    )
    first, *others = [pair for pair in trained if pair["chunk_id"] != trained[0]["chunk_id"]]
    third = others[-1]

    def leaks_after(statement: str, *values: Any) -> Leaks:
        with store.warehouse.write() as connection:
            connection.execute(statement, list(values))
        return find_leaks(store, golden_decides=False, golden_similarity=0.9, near_duplicate_similarity=0.7)

    pair = "WHERE pair_id = ?"
    moved = leaks_after(f"UPDATE training_pairs SET chunk_id = ? {pair}", held["chunk_id"], first["pair_id"])
    assert (moved.passages, moved.total) == (1, 1)
    mined = leaks_after(f"UPDATE training_pairs SET negatives = [?] {pair}", held["chunk_id"], third["pair_id"])
    assert (mined.negatives, mined.total) == (1, 2)
    worded = leaks_after(f"UPDATE training_pairs SET query = ? {pair}", f"  {asked.upper()}!", third["pair_id"])
    assert (worded.held_out_queries, worded.total) == (1, 3)
    judged = leaks_after("INSERT INTO golden_queries VALUES ('g', ?, '', NULL, 'resolved', NULL)", f"{asked}?")
    assert (judged.golden_queries, judged.total) == (1, 4)
    group = held["near_duplicate_group"]
    repeated = leaks_after(
        "UPDATE chunks SET near_duplicate_group = ? WHERE chunk_id = ?", group, trained[0]["chunk_id"]
    )
    assert repeated.passages > 1
    # The words of a held-out passage leak whatever group they were put into.
    (apart,) = rows(store, f"SELECT text FROM chunks WHERE chunk_id = '{held['chunk_id']}'")
    ungrouped = leaks_after(
        "UPDATE chunks SET near_duplicate_group = 'no other', text = ? WHERE chunk_id = ?",
        apart["text"].upper() + " More.",
        trained[0]["chunk_id"],
    )
    assert ungrouped.passages == repeated.passages
    # With golden queries the test side is trained on, and only validation is held out.
    assert find_leaks(store, golden_decides=True, golden_similarity=0.9, near_duplicate_similarity=0.7).passages == 0


def test_a_check_that_compared_nothing_does_not_pass(
    store: Store, settings_for: Callable[..., Settings], run_all: Run, tmp_path: Path
) -> None:
    shares = {"validation_share": 0.3, "test_share": 0.3}
    given = {"documents": str(company(tmp_path)), "curated_pairs": "none", "golden": "none", "evaluation": shares}
    run_all(**given)
    assert nothing_leaks(store, settings_for(**given)).passed
    (store.root / "cache").rename(store.root / "cache moved away")
    check = nothing_leaks(store, settings_for(**given))
    assert (check.passed, check.severity.value) == (False, "WARN")
    pairs = check.metadata["training_pairs"].value
    assert f"{pairs} of {pairs} with the held-out ones" in str(check.description)
    assert "golden" not in str(check.description)
    with store.warehouse.write() as connection:
        connection.execute("INSERT INTO golden_queries VALUES ('g', 'Who is it?', '', NULL, 'resolved', NULL)")
    assert f"{pairs} of {pairs} with the golden ones" in str(nothing_leaks(store, settings_for(**given)).description)


def test_each_filter_drops_what_it_names_and_a_person_s_question_that_judges_stays(
    store: Store, settings_for: Callable[..., Settings], run_all: Run, tmp_path: Path
) -> None:
    folder, golden = company(tmp_path), tmp_path / "golden"
    for copy in range(4):
        # The same passage in several documents, which lie on different sides.
        (folder / f"canteen-{copy}.md").write_text(
            "# Canteen\n\nLunch is served from noon until two in the big hall.\n"
        )
    golden.mkdir()
    (golden / "queries.jsonl").write_text(json.dumps({"query_id": "g", "query": "Which desk settles parking?"}) + "\n")
    (golden / "qrels.jsonl").write_text(json.dumps({"query_id": "g", "doc_path": "parking.md"}) + "\n")
    given = {
        "documents": str(folder),
        "curated_pairs": "none",
        "golden": str(golden),
        "evaluation": {"validation_share": 0.3, "test_share": 0.3},
        "pairs": {"query_similarity": 0.9},
    }
    run_all(**given)
    chunks = rows(store, "SELECT chunk_id, doc_path, side FROM chunks ORDER BY doc_path")
    train = [c["chunk_id"] for c in chunks if c["side"] == "train" and not c["doc_path"].startswith("canteen")]
    canteen = {c["side"]: c["chunk_id"] for c in chunks if c["doc_path"].startswith("canteen")}
    judging = min(canteen.keys() - {"train"})
    first, second, *_ = train
    lunch = {"query": "When can I have lunch?", "origin": "curated"}
    asked = {
        "wording": {"query": "which desk settles  Parking", "chunk_id": first},
        "meaning": {"query": "Which desk is it that settles parking?", "chunk_id": second},
        "wide 1": {"query": "How long does it take?", "chunk_id": first},
        "wide 2": {"query": "How long does it take?", "chunk_id": second},
        "wide and judging": {"query": "How long does it take?", "chunk_id": canteen[judging]},
        "plain": {"query": "Who teaches C?", "chunk_id": first},
        "plus and judging": {"query": "Who teaches C++?", "chunk_id": canteen[judging]},
        "first": {"query": "How do I complain about a slow answer of the desk?", "chunk_id": first},
        "first again": {"query": "How do I complain about a slow answer from the desk?", "chunk_id": first},
        "train": lunch | {"chunk_id": canteen["train"]},
        "judges": lunch | {"chunk_id": canteen[judging]},
        "asked there": {"query": "May I bring a guest to the canteen?", "chunk_id": canteen[judging]},
        "asked nearly so": {"query": "Can I bring a guest to the canteen?", "chunk_id": first},
        "copy": {"query": "Where is food to be had?", "chunk_id": canteen["train"]},
    }
    others = {"origin": "openai", "style": "question", "method": "llm", "generator": "openai"}
    with store.warehouse.write() as connection:
        connection.execute("DELETE FROM pairs")
        append(connection, "pairs", [{"pair_id": name} | others | pair for name, pair in asked.items()])
        connection.execute("DELETE FROM stages WHERE stage = 'training_set'")
    build_training_set(store, settings_for(**given))
    settings = settings_for(**given)
    passed = nothing_leaks(store, settings)
    assert passed.passed
    assert passed.metadata["golden_compared"].value == passed.metadata["training_pairs"].value > 0
    assert passed.metadata["held_out_compared"].value == passed.metadata["training_pairs"].value
    with store.warehouse.write() as connection:
        connection.execute("UPDATE training_pairs SET dropped_because = NULL WHERE pair_id = 'meaning'")
    leaks = nothing_leaks(store, settings).metadata
    # Another wording, so that only the vectors show it.
    assert (leaks["golden_queries"].value, leaks["near_golden_queries"].value) == (0, 1)
    assert leaks["near_held_out_queries"].value == 0
    with store.warehouse.write() as connection:
        connection.execute(
            "UPDATE training_pairs SET dropped_because = 'near a golden query' WHERE pair_id = 'meaning'"
        )
        connection.execute("UPDATE training_pairs SET dropped_because = NULL WHERE pair_id = 'asked nearly so'")
    leaks = nothing_leaks(store, settings).metadata
    assert (leaks["held_out_queries"].value, leaks["near_held_out_queries"].value) == (0, 1)
    assert not nothing_leaks(store, settings).passed
    with store.warehouse.write() as connection:
        connection.execute(
            "UPDATE training_pairs SET dropped_because = 'near a held-out query' WHERE pair_id = 'asked nearly so'"
        )
    found = {
        row["pair_id"]: row["dropped_because"]
        for row in rows(store, "SELECT pair_id, dropped_because FROM training_pairs")
    }
    repeats = found.pop("train"), found.pop("copy")
    assert all(str(reason).startswith("passage nearly repeats one of the") for reason in repeats)
    assert found == {
        "wording": "near a golden query",
        "meaning": "near a golden query",
        "wide 1": None,
        "wide 2": None,
        "wide and judging": "same wording for different passages",
        "plain": None,
        "plus and judging": None,
        "first": None,
        "first again": "repeats another query of the passage",
        "judges": None,
        "asked there": None,
        "asked nearly so": "near a held-out query",
    }


def test_a_setting_of_the_evaluation_that_it_does_not_read_redoes_no_training_set(run_all: Run, tmp_path: Path) -> None:
    (tmp_path / "golden").mkdir()
    (tmp_path / "golden/queries.jsonl").write_text('{"query_id": "a", "query": "how many FLEX days"}\n')
    (tmp_path / "golden/qrels.jsonl").write_text('{"query_id": "a", "doc_path": "hr/leave.md"}\n')
    given = {"generator": "offline", "golden": str(tmp_path / "golden")}
    run_all(**given)
    later = run_all(**given, evaluation={"golden_minimum_queries": 90})
    assert (later["golden_queries"].unchanged, later["training_set"].unchanged) == (False, True)
    # Now golden queries decide, and only validation is held out.
    decided = run_all(**given, evaluation={"golden_minimum_queries": 1, "golden_minimum_units": 1})
    assert not decided["training_set"].unchanged


def test_where_an_llm_writes_the_headings_of_the_validation_side_are_queries_to_choose_by(
    store: Store, settings_for: Callable[..., Settings], run_all: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "company"
    folder.mkdir()
    for subject in SUBJECTS:
        sections = "".join(
            f"## {part} of {subject}\n\nWhoever wants it asks desk {number} of {subject} for the {part} in time.\n\n"
            for number, part in enumerate(("approval", "budget", "return", "repair"))
        )
        (folder / f"{subject}.md").write_text(f"# {subject.title()}\n\n{sections}## Overview\n\nSee {subject} above.\n")
    given = {
        "documents": str(folder),
        "curated_pairs": "none",
        "golden": "none",
        "evaluation": {"validation_share": 0.4, "test_share": 0.2},
        "retrieval": {"sentence_weight": 0},
    }
    first = run_all(**given)["training_set"]
    assert first.details["heading_queries"] == 0, "templates are made of headings, too"
    templates = rows(store, "SELECT * FROM pairs")
    assert rows(store, "SELECT * FROM heading_queries") == []

    def as_an_llm_s(pairs: list[dict[str, Any]]) -> Any:
        with store.warehouse.write() as connection:
            connection.execute("DELETE FROM pairs")
            append(connection, "pairs", pairs)
            connection.execute("DELETE FROM stages WHERE stage = 'training_set'")
        return build_training_set(store, settings_for(**given))

    written = [pair | {"origin": "openai", "method": "llm"} for pair in templates]
    second = as_an_llm_s(written)
    found = rows(store, "SELECT h.*, c.side, c.heading_path FROM heading_queries h JOIN chunks c USING (chunk_id)")
    assert len(found) == second.details["heading_queries"] > 0
    assert {row["side"] for row in found} == {"validation"}
    assert {row["method"] for row in found} <= {"heading", "heading_pair", "faq"}
    assert len({row["query"].lower() for row in found}) == len(found), "a wording of several passages has no one answer"
    assert second.data_version != first.data_version
    again = as_an_llm_s(written)
    assert again.data_version == second.data_version

    asked_by_people = found[0]["query"]
    golden = {"query_id": "g", "query": asked_by_people, "style": "question", "status": "resolved"}
    with store.warehouse.write() as connection:
        append(connection, "golden_queries", [golden])
    as_an_llm_s(written)
    left = {row["query"] for row in rows(store, "SELECT query FROM heading_queries")}
    assert asked_by_people not in left, "what golden queries judge is not chosen by their like"
    assert left < {row["query"] for row in found}

    gone = next(row["chunk_id"] for row in found if row["query"] in left)
    path = rows(store, f"SELECT doc_path FROM chunks WHERE chunk_id = '{gone}'")[0]["doc_path"]
    (folder / path).unlink()
    settings = settings_for(**given)
    ingest_documents(store, settings)
    split_documents(store, settings)
    assert gone not in {row["chunk_id"] for row in rows(store, "SELECT chunk_id FROM heading_queries")}

    live = {row["chunk_id"] for row in rows(store, "SELECT chunk_id FROM chunks")}
    both = as_an_llm_s([pair for pair in [*written[1:], templates[0]] if pair["chunk_id"] in live])
    assert both.details["heading_queries"] == 0


def passages_of_handbooks(*places: tuple[str, str, str]) -> list[LivePassage]:
    """Two sections of every subject's handbook at each (folder, side, near-duplicate group)."""
    return [
        LivePassage(
            chunk_id=f"{folder}/{subject}/{part}",
            doc_path=f"{folder}/{subject}.md",
            title=f"{subject.title()} handbook",
            heading_path=(f"{subject.title()} handbook", part),
            text=f"## {part}\n\nWhoever wants it signs form FRM-{number} at the desk of {subject} and waits {number + 3} days.",
            start_char=0,
            end_char=9,
            side=side,  # type: ignore[arg-type]
            near_duplicate_group=f"{group}/{subject}/{part}",
            unit=f"{folder}/{subject}.md",
        )
        for folder, side, group in places
        for number, subject in enumerate(SUBJECTS)
        for part in ("Returning what is broken", "Who pays for repairs")
    ]


def test_a_heading_of_a_passage_on_another_side_has_no_one_answer_either() -> None:
    alone = heading_queries(passages_of_handbooks(("a", "validation", "a")), 3)
    assert alone
    assert heading_queries(passages_of_handbooks(("a", "validation", "a"), ("b", "train", "b")), 3) == []
    assert heading_queries(passages_of_handbooks(("a", "validation", "a"), ("b", "train", "a")), 3) == alone


def test_passages_that_nearly_repeat_each_other_ask_by_a_heading_once() -> None:
    copies = passages_of_handbooks(*((folder, "validation", "a") for folder in "cab"))
    wordings = [row["query"] for row in heading_queries(copies, 3)]
    assert len(wordings) >= len(SUBJECTS)
    assert len(set(wordings)) == len(wordings), "copies must not bring a few headings over the least number"


def test_the_name_of_a_file_is_no_heading() -> None:
    headed = passages_of_handbooks(("a", "validation", "a"))
    plain = [replace(passage, heading_path=()) for passage in headed]
    assert heading_queries(headed, 3)
    assert heading_queries(plain, 3) == []


def test_repeats_in_a_large_group_are_those_that_each_pair_of_queries_would_say() -> None:
    """Against the comparison of each with each, which a form with thousands of variants cannot afford."""
    draws = np.random.default_rng(3)
    wordings = [f"wording {draws.integers(40)}" for _ in range(180)]
    sides = [("train", "train", "validation", "test")[draws.integers(4)] for _ in range(180)]
    judging = [side != "train" and number % 3 == 0 for number, side in enumerate(sides)]
    vectors = draws.normal(size=(180, 4))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    expected: list[int] = []
    kept: list[int] = []
    for i in range(180):
        repeats = any(
            wordings[i] == wordings[j] or vectors[i] @ vectors[j] >= 0.95
            for j in kept
            if not judging[i] or sides[j] == sides[i]
        )
        (expected if repeats else kept).append(i)
    assert 20 < len(expected) < 160
    assert repeated(wordings, vectors, sides, judging, 0.95) == expected


def test_a_copy_that_came_after_the_training_set_is_no_leak(
    store: Store, settings_for: Callable[..., Settings], run_all: Run, tmp_path: Path
) -> None:
    folder = company(tmp_path)
    given = {"documents": str(folder), "golden": "none", "evaluation": {"validation_share": 0.3, "test_share": 0.3}}
    settings = settings_for(**given)
    run_all(**given)
    assert leaks_of_today(store, settings).total == 0
    for path in sorted(folder.iterdir()):
        for number in range(3):
            (folder / f"{path.stem}-{number}.md").write_bytes(path.read_bytes())
    # As a refresh does beside a retrain: a copy of what is trained lies on a held-out side, and judges nothing.
    ingest_documents(store, settings)
    split_documents(store, settings)
    similar = {"golden_similarity": settings.pairs.golden_similarity, "near_duplicate_similarity": 0.7}
    assert find_leaks(store, golden_decides=False, **similar).total > 0
    assert leaks_of_today(store, settings).total == 0
    with store.warehouse.write() as connection:
        connection.execute(
            "UPDATE training_pairs SET side = 'train' WHERE pair_id IN (SELECT pair_id FROM training_pairs "
            "WHERE side = 'test' AND dropped_because IS NULL ORDER BY pair_id LIMIT 1)"
        )
    assert leaks_of_today(store, settings).total > 0
