"""Lost and cut-off files of a table are noticed by name and size, others when they are read; the table is built again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from acme_rag_pipeline.store import vectors
from acme_rag_pipeline.store.lance_files import has_version, lost_files
from acme_rag_pipeline.store.table_clean_up import drop_old_versions
from acme_rag_pipeline.store.unreadable_table import Damage, TableUnreadable, built_anew_if_unreadable
from acme_rag_pipeline_tests.store.test_vectors import passage, reconcile, reconcile_expanded, rows_with_queries

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
    assert (done.damage.lost, done.rows, done.counts.added) == ((name,), len(WANTED), len(WANTED))
    assert lost_files(folder, "t") == []
    table = vectors.open_table(vectors.connect(folder), "t")
    assert table is not None
    found = table.search("topic7", query_type="fts", fts_columns=vectors.SEARCH_COLUMN).limit(5).to_list()
    assert [row["text"] for row in found] == ["text 7 about topic7"]
    assert reconcile(folder, WANTED).version == done.version


@pytest.mark.parametrize("pattern", ["data/*", "_indices/*/part_0_tokens.lance", "_indices/*/metadata.lance"])
@pytest.mark.parametrize("which", [min, max])
def test_a_table_whose_files_hold_other_bytes_is_built_again(
    folder: Path, pattern: str, which: Callable[[Iterable[Path]], Path]
) -> None:
    path = which((folder / "t.lance").glob(pattern))
    path.write_bytes(bytes(byte ^ 0x5A for byte in path.read_bytes()))
    assert_built_again(folder)


@pytest.mark.parametrize("which", [min, max])
def test_a_manifest_with_other_bytes_keeps_no_run_from_its_table(
    tmp_path: Path, which: Callable[[Iterable[Path]], Path]
) -> None:
    folder = tmp_path / "lance"
    reconcile(folder, FIRST)
    reconcile(folder, WANTED)
    path = which((folder / "t.lance/_versions").glob("*.manifest"))
    content = path.read_bytes()
    # The newest one keeps its end, by which a cut-off one is told.
    path.write_bytes(bytes(byte ^ 0x5A for byte in content[:-16]) + content[-16:])
    assert_built_again(folder)


def assert_built_again(folder: Path) -> None:
    assert lost_files(folder, "t") == []
    wanted = [*WANTED[1:], passage(101, "the newest about topic101")]
    done = reconcile(folder, wanted)
    assert (done.damage.lost, bool(done.damage.unreadable)) == ((), True)
    assert (done.rows, done.counts.added) == (len(wanted), len(wanted))
    table = vectors.open_table(vectors.connect(folder), "t")
    assert table is not None
    for topic in ("topic7", "topic101"):
        found = table.search(topic, query_type="fts", fts_columns=vectors.SEARCH_COLUMN).limit(5).to_list()
        assert [row["text"].split()[-1] for row in found] == [topic]
    drop_old_versions(table, {done.version})
    again = reconcile(folder, wanted)
    assert (again.version, bool(again.damage)) == (done.version, False)


@pytest.mark.parametrize("pattern", ["data/*", "_indices/*/part_0_tokens.lance"])
def test_a_table_that_knows_queries_is_built_again_with_them(tmp_path: Path, pattern: str) -> None:
    queries = {number: ["who signs"] for number in range(1, 9)}
    reconcile_expanded(tmp_path, FIRST, queries)
    before = rows_with_queries(tmp_path)
    for path in (tmp_path / "q.lance").glob(pattern):
        path.write_bytes(bytes(byte ^ 0x5A for byte in path.read_bytes()))
    assert reconcile_expanded(tmp_path, FIRST, queries).counts.added == len(FIRST)
    assert rows_with_queries(tmp_path) == before
    table = vectors.open_table(vectors.connect(tmp_path), "q")
    assert table is not None
    found = table.search("signs", query_type="fts", fts_columns=vectors.EXPANDED_COLUMN).limit(50).to_list()
    assert len(found) == len(queries)


def test_what_the_operating_system_refuses_is_not_built_again(tmp_path: Path) -> None:
    tried = []

    def build(damage: Damage) -> None:
        tried.append(damage)
        raise RuntimeError("lance error: LanceError(IO): Permission denied (os error 13), /src/local.rs:1:2")

    with pytest.raises(TableUnreadable, match=r"make .* readable and try again"):
        built_anew_if_unreadable(tmp_path, "t", build)
    assert tried == [Damage()]


def test_what_cannot_be_read_when_it_was_built_again_is_one_sentence(tmp_path: Path) -> None:
    tried = []

    def build(damage: Damage) -> None:
        tried.append(damage.throughout)
        raise ValueError("Invalid input, file does not appear to be a Lance file")

    with pytest.raises(TableUnreadable, match=r"^table t cannot be read"):
        built_anew_if_unreadable(tmp_path, "t", build)
    assert tried == [False, False, True], "beside the old files first, then without them"


def test_a_full_disk_is_no_damage(tmp_path: Path) -> None:
    full = RuntimeError("lance error: LanceError(IO): No space left on device (os error 28), /src/local.rs:1:2")

    def build(damage: Damage) -> None:
        raise full

    with pytest.raises(RuntimeError) as raised:
        built_anew_if_unreadable(tmp_path, "t", build)
    assert raised.value is full
