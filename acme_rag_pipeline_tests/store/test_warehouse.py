"""The row-level diff is exact, and two processes never lose or double a row."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from multiprocessing.connection import Connection
from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acme_rag_pipeline.store.warehouse import (
    Counts,
    Warehouse,
    WarehouseBusy,
    WarehouseUnusable,
    insert,
    reconcile,
    records,
)
from acme_rag_pipeline_tests.increments.worker import fork_server, obey_mode_bits

TABLE = ("CREATE TABLE IF NOT EXISTS things(key VARCHAR PRIMARY KEY, number INTEGER, words VARCHAR[], note VARCHAR)",)
ROWS = st.dictionaries(
    st.text(max_size=4),
    st.tuples(
        st.none() | st.integers(-9, 9), st.lists(st.text(max_size=3), max_size=2), st.none() | st.text(max_size=5)
    ),
    max_size=6,
)


@given(before=ROWS, after=ROWS)
@settings(max_examples=40, deadline=None)
def test_reconcile_makes_the_table_equal_and_counts_what_it_did(before: dict, after: dict) -> None:
    connection = duckdb.connect()
    connection.execute(TABLE[0])
    for rows in (before, after):
        counts = reconcile(connection, "things", "key", _rows(rows))
    held = {
        row["key"]: (row["number"], row["words"], row["note"]) for row in records(connection, "SELECT * FROM things")
    }
    assert held == after
    common = before.keys() & after.keys()
    assert counts == Counts(
        added=len(after.keys() - before.keys()),
        changed=sum(before[key] != after[key] for key in common),
        removed=len(before.keys() - after.keys()),
        reused=sum(before[key] == after[key] for key in common),
    )


def test_rows_outside_the_scope_are_left_alone() -> None:
    connection = duckdb.connect()
    connection.execute(TABLE[0])
    reconcile(connection, "things", "key", _rows({"mine": (1, [], "a"), "theirs": (2, [], "b")}))
    reconcile(connection, "things", "key", [], scope="note = 'a'")
    assert [row["key"] for row in records(connection, "SELECT key FROM things")] == ["theirs"]


def test_a_key_may_stand_once_in_each_scope() -> None:
    """As an arm's row does in each evaluation: a later one neither loses its rows nor changes those of an earlier one."""
    connection = duckdb.connect()
    connection.execute("CREATE TABLE scores(run VARCHAR, arm VARCHAR, value INTEGER, PRIMARY KEY (run, arm))")
    for run, value in (("first", 1), ("second", 2), ("second", 3)):
        rows = [{"run": run, "arm": "base", "value": value}, {"run": run, "arm": f"only {run}", "value": value}]
        reconcile(connection, "scores", "arm", rows, scope=f"run = '{run}'")
    assert connection.execute("SELECT * FROM scores ORDER BY run, arm").fetchall() == [
        ("first", "base", 1),
        ("first", "only first", 1),
        ("second", "base", 3),
        ("second", "only second", 3),
    ]


def test_nothing_wanted_and_nothing_there_changes_no_byte(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path / "w.duckdb", tables=TABLE)
    with warehouse.write() as connection:
        reconcile(connection, "things", "key", _rows({"a": (1, ["x"], None)}))
    before = warehouse.path.read_bytes()
    with warehouse.read() as connection:
        assert records(connection, "SELECT key FROM things") == [{"key": "a"}]
    with warehouse.write() as connection:
        assert reconcile(connection, "things", "key", _rows({"a": (1, ["x"], None)})).nothing_changed
    assert warehouse.path.read_bytes() == before


def test_an_exception_rolls_everything_back(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path / "w.duckdb", tables=TABLE)
    connection_rows = _rows({"a": (1, [], None)})
    with pytest.raises(duckdb.ConstraintException), warehouse.write() as connection:  # noqa: PT012
        insert(connection, "things", connection_rows)
        connection.execute("INSERT INTO things VALUES ('a', 2, [], NULL)")
    with warehouse.read() as connection:
        assert records(connection, "SELECT * FROM things") == []


def test_a_cache_row_is_never_overwritten(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path / "w.duckdb", tables=TABLE)
    for number in (1, 2):
        with warehouse.write() as connection:
            insert(connection, "things", _rows({"a": (number, [], None)}))
    with warehouse.read() as connection:
        assert records(connection, "SELECT number FROM things") == [{"number": 1}]


def test_a_held_file_is_named_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "w.duckdb"
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import duckdb, time; c = duckdb.connect({str(path)!r}); print('held', flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(WarehouseBusy, match=rf"held by process {holder.pid}"),
            Warehouse(path, wait_seconds=0.2).write(),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()


def test_who_holds_a_file_in_another_container_has_no_number_here(tmp_path: Path) -> None:
    path = tmp_path / "w.duckdb"
    program = textwrap.dedent(
        f"""
        from pathlib import Path
        from acme_rag_pipeline.store.warehouse import Warehouse, WarehouseBusy
        try:
            with Warehouse(Path({str(path)!r}), wait_seconds=0.2).write():
                pass
        except WarehouseBusy as error:
            print(error)
        """
    )
    # Process ids of its own, as in a container.
    apart = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine gives a process no process ids of its own")
    with duckdb.connect(str(path)):
        said = subprocess.run([*apart, sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "is held by a process of another container or host for more than 0 s" in said.stdout


def test_two_processes_that_write_at_once_both_get_their_rows_in(tmp_path: Path) -> None:
    program = textwrap.dedent(
        f"""
        import sys
        from pathlib import Path
        from acme_rag_pipeline.store.warehouse import Warehouse, insert
        warehouse = Warehouse(Path({str(tmp_path / "w.duckdb")!r}), 60, {TABLE!r})
        for number in range(15):
            with warehouse.write() as connection:
                insert(connection, "things", [dict(key=f"{{sys.argv[1]}}{{number}}", number=number, words=[], note=None)])
        """
    )
    both = [subprocess.Popen([sys.executable, "-c", program, name]) for name in "ab"]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    with Warehouse(tmp_path / "w.duckdb", tables=TABLE).read() as connection:
        assert records(connection, "SELECT count(*) AS n FROM things") == [{"n": 30}]


def _rows(things: dict) -> list[dict]:
    return [
        {"key": key, "number": number, "words": words, "note": note} for key, (number, words, note) in things.items()
    ]


def test_a_store_of_an_earlier_version_gets_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "w.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE old(a INTEGER); INSERT INTO old VALUES (1)")
    tables = (
        "CREATE TABLE IF NOT EXISTS old(a INTEGER)",
        "CREATE TABLE IF NOT EXISTS new(b INTEGER)",
        "ALTER TABLE old ADD COLUMN IF NOT EXISTS c VARCHAR",
    )
    with Warehouse(path, tables=tables).read() as connection:
        assert connection.execute("SELECT a, c FROM old").fetchall() == [(1, None)]
        assert connection.execute("SELECT count(*) FROM new").fetchall() == [(0,)]
    before = path.read_bytes()
    with Warehouse(path, tables=tables).read() as connection:
        connection.execute("SELECT * FROM new")
    assert path.read_bytes() == before


def test_a_read_only_store_of_an_earlier_version_is_told_apart_from_one_without_rights(tmp_path: Path) -> None:
    path = tmp_path / "w.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE old(a INTEGER)")
    path.chmod(0o444)
    said = _said_to_a_reader(path)
    assert "Permission denied" in said
    assert "Another version of this code made it: run `refresh`" in said
    path.chmod(0o644)
    with Warehouse(path, tables=TABLE).write():
        pass
    path.chmod(0o444)
    assert _said_to_a_reader(path) == "read"


def _said_to_a_reader(path: Path) -> str:
    incoming, outgoing = fork_server().Pipe(duplex=False)
    process = fork_server().Process(target=_read_without_rights, args=(path, outgoing), daemon=True)
    process.start()
    outgoing.close()
    said = incoming.recv()
    process.join(30)
    return said


def _read_without_rights(path: Path, out: Connection) -> None:
    obey_mode_bits()
    try:
        with Warehouse(path, tables=TABLE).read():
            out.send("read")
    except WarehouseUnusable as error:
        out.send(str(error))


def test_what_a_killed_creator_left_beside_the_file_goes_at_the_next_opening(tmp_path: Path) -> None:
    path = tmp_path / "w.duckdb"
    with Warehouse(path, tables=TABLE).write() as connection:
        reconcile(connection, "things", "key", _rows({"a": (1, ["x"], None)}))
    # The moment between the link that puts the file in place and the end of its first name.
    (tmp_path / f".{path.name}.4711.tmp").hardlink_to(path)
    with Warehouse(path, tables=TABLE).read() as connection:
        assert connection.execute("SELECT key FROM things").fetchall() == [("a",)]
    assert [left.name for left in tmp_path.iterdir()] == [path.name]
