"""Lost and cut-off files of a table are noticed by name and size, and the table is built again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from acme_rag_pipeline.store import vectors
from acme_rag_pipeline.store.lance_files import has_version, lost_files
from acme_rag_pipeline.store.table_clean_up import drop_old_versions
from acme_rag_pipeline_tests.store.test_vectors import passage, reconcile

FIRST = [passage(number, f"text {number} about topic{number}") for number in range(40)]
WANTED = [*FIRST[1:], passage(100, "one more about topic100")]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with a history: a data file, deleted rows, an index in two parts."""
    folder = tmp_path_factory.mktemp("built")
    reconcile(folder, FIRST)
    reconcile(folder, [*FIRST, WANTED[-1]])
    reconcile(folder, WANTED)
    table = vectors.open_table(vectors.connect(folder), "t")
    assert table is not None
    drop_old_versions(table, set())
    return folder


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "lance")


def test_a_whole_table_lacks_nothing_and_every_file_counts(folder: Path) -> None:
    assert lost_files(folder, "t") == []
    assert lost_files(folder, "no such table") == []
    files = [path for path in (folder / "t.lance").rglob("*") if path.is_file()]
    needed = {path.relative_to(folder / "t.lance").as_posix() for path in files if path.parent.name[0] != "_"}
    needed |= {path.relative_to(folder / "t.lance").as_posix() for path in files if path.parent.name == "_deletions"}
    assert {name.split("/")[0] for name in needed} == {"data", "_deletions", "_indices"}
    for path in files:
        if path.parent.name not in ("_versions", "_transactions"):
            path.unlink()
    assert set(lost_files(folder, "t")) == needed


def test_each_version_is_looked_at_by_itself(tmp_path: Path) -> None:
    first = reconcile(tmp_path, FIRST).version
    of_first = {path.name for path in (tmp_path / "t.lance/data").iterdir()}
    second = reconcile(tmp_path, [*FIRST, WANTED[-1]]).version
    assert [has_version(tmp_path, "t", version) for version in (first, second, second + 1)] == [True, True, False]
    assert not has_version(tmp_path, "no such table", 1)
    added = [path for path in (tmp_path / "t.lance/data").iterdir() if path.name not in of_first]
    for path in added:
        path.unlink()
    assert lost_files(tmp_path, "t", first) == []
    assert lost_files(tmp_path, "t", second) == lost_files(tmp_path, "t") != []
    assert lost_files(tmp_path, "t", second + 1) == []


@pytest.mark.parametrize(
    ("pattern", "cut"),
    [
        ("data/*", False),
        ("data/*", True),
        ("_deletions/*", False),
        ("_indices/*/part_0_tokens.lance", False),
        ("_indices/*/metadata.lance", True),
        ("_versions/*.manifest", True),
    ],
)
def test_a_damaged_table_is_built_again(folder: Path, pattern: str, cut: bool) -> None:
    path = next((folder / "t.lance").glob(pattern))
    name = path.relative_to(folder / "t.lance").as_posix()
    content = path.read_bytes()
    path.unlink()
    if cut:
        path.write_bytes(content[: len(content) // 2])
    assert lost_files(folder, "t") == [name]
    done = reconcile(folder, WANTED)
    assert (done.lost, done.rows, done.counts.added) == ((name,), len(WANTED), len(WANTED))
    assert lost_files(folder, "t") == []
    table = vectors.open_table(vectors.connect(folder), "t")
    assert table is not None
    found = table.search("topic7", query_type="fts", fts_columns=vectors.SEARCH_COLUMN).limit(5).to_list()
    assert [row["text"] for row in found] == ["text 7 about topic7"]
    assert reconcile(folder, WANTED).version == done.version
