"""Files attached to one DuckDB are locked as if they were opened, and free again when nobody uses them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from acme_rag_pipeline.store.attachments import Attachments, InOtherMode


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "it's.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE things AS SELECT 1 AS number")
    return path


def others_may_write(path: Path) -> bool:
    program = f"import duckdb; duckdb.connect({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or "Could not set lock" in done.stderr
    return done.returncode == 0


def test_the_file_stays_locked_until_its_last_user_has_gone(path: Path) -> None:
    files = Attachments()
    link = path.with_name("link.duckdb")
    link.symlink_to(path)
    with files.opened(path, read_only=True) as first:
        with files.opened(link, read_only=True) as second:
            assert second.execute("SELECT * FROM things").fetchall() == [(1,)]
        assert not others_may_write(path)
        assert first.execute("SELECT * FROM things").fetchall() == [(1,)]
    assert others_may_write(path)


def test_a_file_is_read_or_written_but_not_both(path: Path) -> None:
    files = Attachments()
    for first, second in ((True, False), (False, True)):
        with files.opened(path, read_only=first), pytest.raises(InOtherMode), files.opened(path, read_only=second):
            pass
    with files.opened(path, read_only=False) as connection:
        connection.execute("INSERT INTO things VALUES (2)")
    assert not path.with_name(f"{path.name}.wal").exists()
    with files.opened(path, read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM things").fetchall() == [(2,)]


def test_two_files_keep_their_tables_apart(path: Path, tmp_path: Path) -> None:
    files = Attachments()
    with (
        files.opened(path, read_only=True) as connection,
        files.opened(tmp_path / "other.duckdb", read_only=False) as other,
    ):
        other.execute("CREATE TABLE things(text VARCHAR)")
        assert other.execute("SELECT * FROM things").fetchall() == []
        assert connection.execute("SELECT * FROM things").fetchall() == [(1,)]
    assert others_may_write(path)


def test_an_error_leaves_nothing_open(path: Path) -> None:
    files = Attachments()
    with pytest.raises(duckdb.CatalogException), files.opened(path, read_only=False) as connection:
        connection.execute("SELECT * FROM missing")
    assert others_may_write(path)
    with files.opened(path, read_only=False) as connection:
        assert connection.execute("SELECT * FROM things").fetchall() == [(1,)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_forked_process_opens_its_own(path: Path) -> None:
    program = f"""
import os
from pathlib import Path
from acme_rag_pipeline.store.attachments import ATTACHMENTS
path = Path({str(path)!r})
with ATTACHMENTS.opened(path, read_only=True) as connection:
    connection.execute("SELECT 1").fetchall()
child = os.fork()
with ATTACHMENTS.opened(path, read_only=True) as connection:
    found = connection.execute("SELECT * FROM things").fetchall() == [(1,)]
if child == 0:
    os._exit(0 if found else 1)
assert found and os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
