"""A table holds exactly the wanted passages, whatever it held before."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lancedb.query import MatchQuery

from acme_rag_pipeline.store import folding, table_clean_up, vectors
from acme_rag_pipeline.store.fingerprints import sha256_text
from acme_rag_pipeline.store.passages import MAX_HEADING_LINE, LivePassage, heading_line
from acme_rag_pipeline.store.table_clean_up import delete_gone, drop_old_versions
from acme_rag_pipeline.store.vectors import Reconciled

TEXTS = st.sampled_from(["FLEX days", "it's 'quoted'; DROP TABLE", "näïve 東京", "x" * 50, '{"a": 1}'])
PASSAGES = st.dictionaries(st.integers(0, 7), st.tuples(TEXTS, st.integers(0, 3)), max_size=6)


def passage(number: int, text: str, start: int = 0) -> LivePassage:
    return LivePassage(
        f"id'{number}", f"doc'{number % 3}.md", start, start + len(text), "T", ("A",), text, "g", "u", "train"
    )


def unit_vectors(texts: list[str]) -> tuple[np.ndarray, int]:
    rows = [np.random.default_rng(int(sha256_text(t)[:8], 16)).normal(size=8) for t in texts]
    return np.array([row / np.linalg.norm(row) for row in rows], dtype=np.float32), len(texts)


def reconcile(folder: Path, passages: list[LivePassage]) -> Reconciled:
    return vectors.reconcile_table(
        vectors.connect(folder), "t", passages, "none", lambda: 8, unit_vectors, model_name="all-MiniLM-L6-v2"
    )


@given(states=st.lists(PASSAGES, min_size=1, max_size=4))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_history_ends_in_the_same_rows(states: list[dict], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("lance")
    for state in states:
        wanted = [passage(number, text, start) for number, (text, start) in state.items()]
        done = reconcile(folder, wanted)
        table = vectors.open_table(vectors.connect(folder), "t")
        assert table is not None
        rows = {r["id"]: r for r in table.search().limit(100).to_arrow().to_pylist()}
        assert rows.keys() == {p.chunk_id for p in wanted}
        assert done.rows == table.count_rows() == len(wanted)
        for p in wanted:
            row = rows[p.chunk_id]
            assert (row["text"], row["doc_id"], row["metadata"]["start_char"]) == (p.text, p.doc_path, p.start_char)
            assert np.allclose(row["vector"], unit_vectors([p.text])[0][0], atol=1e-6)
    assert reconcile(folder, wanted).counts.nothing_changed


QUERIES = st.dictionaries(
    st.integers(0, 7), st.lists(st.sampled_from(["who signs", "大阪", "'; --"]), min_size=1, max_size=2)
)


def reconcile_expanded(folder: Path, wanted: list[LivePassage], queries: dict[int, list[str]]) -> Reconciled:
    """As `retrieval/index.py` asks for it: texts and keys of the passages with queries, and vectors made of them."""
    by_id = {f"id'{number}": asked for number, asked in queries.items()}
    expanded = vectors.Expanded(
        {p.chunk_id: "\n".join([p.text, *by_id[p.chunk_id]]) for p in wanted if p.chunk_id in by_id},
        {chunk_id: f"+{asked}" for chunk_id, asked in by_id.items()},
        lambda ids: ([repr(by_id[i]).encode() if i in by_id else None for i in ids], 0),
    )
    return vectors.reconcile_table(
        vectors.connect(folder), "q", wanted, "none", lambda: 8, unit_vectors, model_name="m", expanded=expanded
    )


def rows_with_queries(folder: Path) -> dict[str, tuple[object, ...]]:
    table = vectors.open_table(vectors.connect(folder), "q")
    assert table is not None
    columns = ("text", "search_text", vectors.EXPANDED_COLUMN, vectors.SHIFT_COLUMN, "input_hash", "vector", "metadata")
    return {row["id"]: tuple(row[name] for name in columns) for row in table.search().limit(100).to_arrow().to_pylist()}


@given(states=st.lists(st.tuples(PASSAGES, QUERIES), min_size=1, max_size=4))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_history_of_passages_and_their_queries_ends_in_the_same_rows(
    states: list[tuple[dict, dict[int, list[str]]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, fresh = tmp_path_factory.mktemp("lance"), tmp_path_factory.mktemp("fresh")
    for state, queries in states:
        wanted = [passage(number, text, start) for number, (text, start) in state.items()]
        reconcile_expanded(folder, wanted, queries)
    assert reconcile_expanded(folder, wanted, queries).counts.nothing_changed
    reconcile_expanded(fresh, wanted, queries)
    assert rows_with_queries(folder) == rows_with_queries(fresh)
    for chunk_id, (text, search, expanded, shift, *_) in rows_with_queries(folder).items():
        asked = queries.get(int(chunk_id.removeprefix("id'")))
        assert text in str(search)
        assert (shift is not None) == (asked is not None)
        assert all(query in str(expanded) for query in asked or ())
        assert not asked or not any(query in str(search) for query in asked)


def test_a_long_line_of_headings_keeps_the_first_and_the_innermost() -> None:
    assert heading_line("Travel", ["Travel", "Hotels"]) == "Travel > Hotels"
    path = ["Travel", "a" * 90, "b" * 90, "c" * 90]
    assert heading_line("Travel", path) == f"Travel > {'b' * 90} > {'c' * 90}"
    assert heading_line("t" * 150, ["h" * 199]) == "h" * 199
    assert heading_line("t" * 150, ["h" * 300]) == "h" * MAX_HEADING_LINE
    assert heading_line("", []) == ""


def test_a_row_whose_lead_changed_is_written_anew_and_leaves_a_table_that_waits(tmp_path: Path) -> None:
    rows = replace(passage(1, "| Berlin | 120 |"), lead="| City | Limit |")
    others = [passage(2, "FLEX days")]
    reconcile(tmp_path, [rows, *others])
    renamed = replace(rows, lead="| Town | Limit |")
    table = vectors.open_table(vectors.connect(tmp_path), "t")
    assert table is not None
    done = reconcile(tmp_path, [renamed, *others])
    assert (done.counts.changed, done.counts.reused, done.embedded) == (1, 1, 1)
    table.checkout_latest()
    [row] = table.search().where("text LIKE '%Berlin%'").limit(9).to_list()
    assert (row["text"], row["search_text"]) == (rows.text, "T > A\n| Town | Limit |\n| Berlin | 120 |")
    assert np.allclose(row["vector"], unit_vectors(["| Town | Limit |\n| Berlin | 120 |"])[0][0], atol=1e-6)
    assert delete_gone(table, [renamed, *others]) == 0
    assert delete_gone(table, [rows, *others]) == 1


def test_a_moved_passage_costs_no_encoding_twice(tmp_path: Path) -> None:
    reconcile(tmp_path, [passage(1, "FLEX days")])
    before = reconcile(tmp_path, [passage(1, "FLEX days")])
    assert (before.counts.reused, before.embedded) == (1, 0)
    after = reconcile(tmp_path, [passage(1, "FLEX days", start=40)])
    assert after.counts.changed == 1


def test_an_unchanged_table_keeps_its_version(tmp_path: Path) -> None:
    first = reconcile(tmp_path, [passage(1, "a"), passage(2, "b")])
    assert reconcile(tmp_path, [passage(1, "a"), passage(2, "b")]).version == first.version


def test_a_duplicated_row_is_healed(tmp_path: Path) -> None:
    reconcile(tmp_path, [passage(1, "a"), passage(2, "b")])
    table = vectors.open_table(vectors.connect(tmp_path), "t")
    assert table is not None
    table.add(table.search().where("id = 'id''1'").to_arrow().select(table.schema.names))
    assert table.count_rows() == 3
    assert reconcile(tmp_path, [passage(1, "a"), passage(2, "b")]).rows == 2


def test_the_table_names_no_path_of_this_machine(tmp_path: Path) -> None:
    reconcile(tmp_path, [passage(1, "a")])
    table = vectors.open_table(vectors.connect(tmp_path), "t")
    assert table is not None
    assert b"rag_model_dir" in table.schema.metadata[b"embedding_functions"]
    assert str(tmp_path) not in str(table.schema.metadata)


def test_a_version_that_a_reader_holds_survives_the_clean_up(tmp_path: Path) -> None:
    first = reconcile(tmp_path, [passage(1, "a")])
    pinned = vectors.open_table(vectors.connect(tmp_path), "t", first.version)
    second = reconcile(tmp_path, [passage(1, "a"), passage(2, "b")])
    table = vectors.open_table(vectors.connect(tmp_path), "t")
    assert table is not None
    assert pinned is not None
    drop_old_versions(table, [first.version, second.version])
    assert pinned.search(np.ones(8, dtype=np.float32)).limit(5).to_arrow().num_rows == 1
    assert int(table.version) == second.version


def test_after_the_clock_was_set_back_nothing_is_deleted_and_nothing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = [reconcile(tmp_path, [passage(number, "a")]).version for number in range(3)]
    table = vectors.open_table(vectors.connect(tmp_path), "t")
    assert table is not None
    before = len(table.list_versions())

    class TwoHoursAgo(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> TwoHoursAgo:
            return super().now(tz) - timedelta(hours=2)

    with monkeypatch.context() as moment:
        moment.setattr(table_clean_up, "datetime", TwoHoursAgo)
        drop_old_versions(table, versions[1:])
    assert len(table.list_versions()) == before


def test_the_version_after_a_run_that_was_killed_before_it_folded_its_rows_survives_the_clean_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passages = [passage(number, f"text {number}") for number in range(8)]
    reconcile(tmp_path, passages[:4])

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as moment:
        moment.setattr(vectors, "fold", killed)
        with pytest.raises(KeyboardInterrupt):
            reconcile(tmp_path, passages[2:])
    done = reconcile(tmp_path, passages[2:])
    table = vectors.open_table(vectors.connect(tmp_path), "t")
    assert table is not None
    drop_old_versions(table, [done.version])
    pinned = vectors.open_table(vectors.connect(tmp_path), "t", done.version)
    assert pinned is not None
    assert pinned.count_rows() == 6


def test_a_folder_is_opened_without_the_rest_client_that_others_still_find(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from acme_rag_pipeline.store import vectors\n"
        f"print(vectors.names(vectors.connect(Path({str(tmp_path)!r}))))\n"
        "print('lance_namespace_urllib3_client.api.table_api' in sys.modules)\n"
        "from lance_namespace_urllib3_client import ApiClient, TableApi\n"
        "import lance_namespace_urllib3_client as client\n"
        "print(TableApi is sys.modules['lance_namespace_urllib3_client.api.table_api'].TableApi, type(client).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "False", "True module"]


def test_a_large_table_is_not_written_anew_for_a_few_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "FOLD_ALWAYS_ROWS", 100)
    monkeypatch.setattr(folding, "MOST_UNINDEXED", 0.05)
    passages = [passage(n, f"text number {n}") for n in range(200)]
    reconcile(tmp_path, passages)

    def data_files() -> set[str]:
        return {path.name for path in (tmp_path / "t.lance" / "data").iterdir()}

    before = data_files()
    for edit, fruit in enumerate(("apple", "pear", "plum", "quince", "fig")):
        passages[edit] = passage(edit, f"zebra {fruit}")
        done = reconcile(tmp_path, passages)
        table = vectors.open_table(vectors.connect(tmp_path), "t")
        assert table is not None
        found = table.search(MatchQuery(fruit, vectors.SEARCH_COLUMN)).limit(2).to_list()
        assert [hit["text"] for hit in found] == [f"zebra {fruit}"]
        drop_old_versions(table, {done.version})
        assert reconcile(tmp_path, passages).version == done.version, "a run without a difference writes nothing"
    assert len(data_files() - before) == 5
    assert before <= data_files()
    edits = 5
    while folding.waits_for_folding(table):
        edits += 1
        passages[edits] = passage(edits, f"zebra number {edits}")
        done = reconcile(tmp_path, passages)
        table = vectors.open_table(vectors.connect(tmp_path), "t")
        assert table is not None
    assert (done.rows, edits) == (200, 8)
    drop_old_versions(table, {done.version})
    assert len(data_files()) == 1, "folded in the end, and what was before is deleted"


def test_a_large_table_that_only_loses_rows_is_folded_when_an_hour_has_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "FOLD_ALWAYS_ROWS", 100)
    passages = [passage(n, f"text number {n}") for n in range(300)]
    reconcile(tmp_path, passages)
    passages[0] = passage(0, "a secret")
    reconcile(tmp_path, passages)
    for _ in range(3):
        passages.pop(9)
        done = reconcile(tmp_path, passages)
    table = vectors.open_table(vectors.connect(tmp_path), "t")
    assert table is not None
    assert folding.waits_for_folding(table)
    drop_old_versions(table, set())
    assert len(table.list_versions()) > 3, "an edit may still come"
    monkeypatch.setattr(folding, "FOLD_AFTER", timedelta(0))
    passages.pop(9)
    done = reconcile(tmp_path, passages)
    table = vectors.open_table(vectors.connect(tmp_path), "t")
    assert table is not None
    drop_old_versions(table, {done.version})
    assert [version["version"] for version in table.list_versions()] == [done.version]
