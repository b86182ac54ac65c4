"""A table holds exactly the wanted passages, whatever it held before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acme_rag_pipeline.store import vectors
from acme_rag_pipeline.store.fingerprints import sha256_text
from acme_rag_pipeline.store.passages import LivePassage
from acme_rag_pipeline.store.table_clean_up import drop_old_versions
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
    assert "rag_model_dir" in vectors.recorded_model(table)
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


def test_the_version_after_a_run_that_was_killed_before_it_folded_its_rows_survives_the_clean_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passages = [passage(number, f"text {number}") for number in range(8)]
    reconcile(tmp_path, passages[:4])

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as moment:
        moment.setattr(vectors, "_compact", killed)
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
