"""DuckDB access: short-lived connections with a bounded wait, and the row-level diff that every stage writes with.

DuckDB lets one process hold a file for writing and then refuses readers of other processes too, so a connection is
opened for one transaction and closed again; slow work (parsing, encoding, LLM calls) happens outside of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from acme_rag_pipeline.errors import UserError
from acme_rag_pipeline.store.attachments import ATTACHMENTS, CONFIG, InOtherMode
from acme_rag_pipeline.store.fingerprints import sha256_text
from acme_rag_pipeline.store.schema import TABLES

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
# DuckDB, Lance, safetensors and PyTorch report the operating system's refusal in words only.
_FULL_IN_WORDS = re.compile(
    r"No space left on device|Dis[ck] quota exceeded|File too large|Read-only file system|Could not write"
    r"|inline_container\.cc|PytorchStreamWriter failed"
)
_OF_ANOTHER_VERSION = "Another version of this code made it: run `refresh` with this one where it can be written"
_DAMAGED_IN_WORDS = re.compile(r"Could not read enough bytes|Corrupt database file|not a valid DuckDB database file")


class WarehouseBusy(UserError, RuntimeError):
    """Another process held the warehouse for longer than the allowed wait."""


class WarehouseUnusable(UserError, RuntimeError):
    """The warehouse cannot be opened or written: no space, read-only, damaged or of a newer version."""


@dataclass(frozen=True)
class Counts:
    """Rows of one stage by what happened to them."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    reused: int = 0

    @property
    def nothing_changed(self) -> bool:
        """True when the table held exactly the wanted rows already."""
        return not (self.added or self.changed or self.removed)


class Warehouse:
    """One DuckDB file.

    Args:
        path: the `.duckdb` file; created with its tables at the first write.
        wait_seconds: how long an opening waits for a process that holds the file.
        tables: `CREATE TABLE IF NOT EXISTS` and `ADD COLUMN IF NOT EXISTS` statements.
        mend: what a person is told to do when the file is damaged.
    """

    def __init__(
        self,
        path: Path,
        wait_seconds: float = 60,
        tables: Sequence[str] = TABLES,
        mend: str = "Bring the file back from a backup, or delete the store to build everything again",
    ) -> None:
        self.path = path
        self.wait_seconds = wait_seconds
        self.tables = tables
        self._mend = mend
        # A store of an earlier version gets what it lacks at the first opening.
        self._version = sha256_text(";".join(tables))[:16]
        self._is_current = False
        self._is_swept = False

    @contextlib.contextmanager
    def read(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A read-only connection; the tables exist, the file's bytes do not change.

        Raises:
            WarehouseBusy: another process kept the file longer than `wait_seconds`.
            WarehouseUnusable: the file cannot be created or opened, or is damaged.
        """
        self._create()
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(self._open(read_only=True))
            if not self._has_current_tables(connection):
                stack.close()
                try:
                    with self.write():
                        pass
                except WarehouseUnusable as error:
                    raise WarehouseUnusable(f"{error}. {_OF_ANOTHER_VERSION}") from error
                connection = stack.enter_context(self._open(read_only=True))
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """One transaction: committed at the end of the block, rolled back by an exception.

        Raises:
            WarehouseBusy: another process kept the file longer than `wait_seconds`.
            WarehouseUnusable: the disk is full or read-only, or the file is damaged.
        """
        self._create()
        with self._open(read_only=False) as connection:
            connection.execute("BEGIN")
            try:
                if not self._has_current_tables(connection):
                    connection.execute(self._statements())
                yield connection
                connection.execute("COMMIT")
            except BaseException as error:
                with contextlib.suppress(duckdb.Error):
                    connection.execute("ROLLBACK")
                if isinstance(error, duckdb.Error) and out_of_storage(error):
                    raise self._unusable("cannot be written, nothing was changed", error) from error
                raise

    def _create(self) -> None:
        """Put a file with all its tables in place; killed meanwhile, it leaves no file without tables."""
        if self.path.exists():
            if not self._is_swept:
                # A creator that was killed right after its link left its other name.
                self._sweep()
            return
        made = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            made.unlink(missing_ok=True)
            with duckdb.connect(str(made), config=CONFIG) as connection:
                connection.execute(f"BEGIN;{self._statements()};COMMIT")
            # Unlike a rename, a link never replaces the file of another process that was faster.
            self.path.hardlink_to(made)
        except (OSError, duckdb.Error) as error:
            if not self.path.exists():
                raise self._unusable("cannot be created", error) from error
        finally:
            self._sweep()

    def _sweep(self) -> None:
        """Remove what creations left, those of killed processes too. One that is still at work finds the file in place."""
        for left in self.path.parent.glob(f".{self.path.name}.*"):
            with contextlib.suppress(OSError):
                left.unlink()
        self._is_swept = True

    def _statements(self) -> str:
        version = f"CREATE OR REPLACE TABLE schema_version AS SELECT '{self._version}' AS version"
        return ";".join((*self.tables, version))

    def _has_current_tables(self, connection: duckdb.DuckDBPyConnection) -> bool:
        if not self._is_current:
            there = connection.execute(
                "SELECT 1 FROM duckdb_tables() WHERE database_name = current_database() AND table_name = 'schema_version'"
            ).fetchall()
            found = connection.execute("SELECT version FROM schema_version").fetchall() if there else []
            self._is_current = found == [(self._version,)]
        return self._is_current

    def _unusable(self, what: str, error: Exception) -> WarehouseUnusable:
        return WarehouseUnusable(
            f"ACME_RAG_STORE: {self.path} {what}: {error}. Is the disk full or read-only? Mend that and run again"
        )

    @contextlib.contextmanager
    def _open(self, *, read_only: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        with contextlib.ExitStack() as stack:
            try:
                yield self._wait_for(stack, read_only)
            except duckdb.Error as error:
                # What is cut off or overwritten shows when it is read, and not before.
                if not _DAMAGED_IN_WORDS.search(str(error)):
                    raise
                raise WarehouseUnusable(f"ACME_RAG_STORE: {self.path} is damaged: {error}. {self._mend}") from error

    def _wait_for(self, stack: contextlib.ExitStack, read_only: bool) -> duckdb.DuckDBPyConnection:
        deadline = time.monotonic() + self.wait_seconds
        while True:
            try:
                return stack.enter_context(ATTACHMENTS.opened(self.path, read_only=read_only))
            except duckdb.IOException as error:
                if _DAMAGED_IN_WORDS.search(str(error)):
                    raise
                if "Could not set lock" not in str(error):
                    raise WarehouseUnusable(f"ACME_RAG_STORE: {self.path} cannot be opened: {error}") from error
                if time.monotonic() >= deadline:
                    holder = re.search(r"PID ([1-9]\d*)", str(error))
                    who = f"process {holder.group(1)}" if holder else "a process of another container or host"
                    raise WarehouseBusy(
                        f"{self.path} is held by {who} for more than {self.wait_seconds:.0f} s: wait until that run ends, or stop it"
                    ) from error
                time.sleep(0.05)
            except InOtherMode as error:
                # Connections are short, so wait.
                if time.monotonic() >= deadline:
                    raise WarehouseBusy(f"{self.path} is in use by another thread of this process") from error
                time.sleep(0.02)


def out_of_storage(error: BaseException) -> bool:
    """Whether an error, of whatever library, says that a disk is full or read-only."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return bool(_FULL_IN_WORDS.search(str(error)))


def records(connection: duckdb.DuckDBPyConnection, query: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """Rows of a query as dictionaries."""
    cursor = connection.execute(query, list(parameters))
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def reconcile(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    key: str,
    wanted: Sequence[dict[str, Any]],
    *,
    scope: str = "true",
) -> Counts:
    """Make the rows of `table` within `scope` equal to `wanted`, writing only the difference.

    Args:
        table, key, scope: trusted SQL (never from a document): table name, key column, condition on existing rows. The key
            need only be unique within the scope.
        wanted: rows with the same columns each; columns of the table that they lack are left alone.

    Returns:
        How many rows were added, changed, removed, or stood there already.
    """
    if not wanted:
        removed = connection.execute(f"SELECT count(*) FROM {table} WHERE {scope}").fetchall()[0][0]
        if removed:
            connection.execute(f"DELETE FROM {table} WHERE {scope}")
        return Counts(removed=removed)
    columns = list(wanted[0])
    types = {name: kind for name, kind, *_ in connection.execute(f"DESCRIBE {table}").fetchall()}
    connection.register("wanted_rows", _arrow(wanted, columns))
    casts = ", ".join(f"CAST({name} AS {types[name]}) AS {name}" for name in columns)
    connection.execute(f"CREATE OR REPLACE TEMP TABLE wanted AS SELECT {casts} FROM wanted_rows")
    connection.unregister("wanted_rows")
    differs = " OR ".join(f"w.{name} IS DISTINCT FROM t.{name}" for name in columns if name != key) or "false"
    existing = f"(SELECT * FROM {table} WHERE {scope}) t"
    added, changed, removed = connection.execute(
        f"SELECT (SELECT count(*) FROM wanted w ANTI JOIN {existing} ON w.{key} = t.{key}), "
        f"(SELECT count(*) FROM wanted w JOIN {existing} ON w.{key} = t.{key} WHERE {differs}), "
        f"(SELECT count(*) FROM {existing} ANTI JOIN wanted w ON w.{key} = t.{key})"
    ).fetchall()[0]
    if removed:
        connection.execute(f"DELETE FROM {table} WHERE {scope} AND {key} NOT IN (SELECT {key} FROM wanted)")
    if changed:
        assignments = ", ".join(f"{name} = w.{name}" for name in columns if name != key)
        connection.execute(
            f"UPDATE {table} AS t SET {assignments} FROM wanted w WHERE w.{key} = t.{key} AND ({differs}) "
            f"AND t.rowid IN (SELECT rowid FROM {table} WHERE {scope})"
        )
    if added:
        names = ", ".join(columns)
        connection.execute(
            f"INSERT INTO {table} ({names}) SELECT {names} FROM wanted w "
            f"WHERE w.{key} NOT IN (SELECT {key} FROM {table} WHERE {scope})"
        )
    connection.execute("DROP TABLE wanted")
    return Counts(added, changed, removed, len(wanted) - added - changed)


def insert(connection: duckdb.DuckDBPyConnection, table: str, rows: Sequence[dict[str, Any]]) -> None:
    """Add rows to a table with a key; a row whose key is there already is left as it is (caches never change)."""
    _add(connection, f"INSERT OR IGNORE INTO {table}", rows)


def append(connection: duckdb.DuckDBPyConnection, table: str, rows: Sequence[dict[str, Any]]) -> None:
    """Add rows to a table without a key, such as a log."""
    _add(connection, f"INSERT INTO {table}", rows)


def replace(connection: duckdb.DuckDBPyConnection, table: str, rows: Sequence[dict[str, Any]]) -> None:
    """Add rows to a table with a key, in the place of those with the same key, which keep the columns that these lack."""
    _add(connection, f"INSERT OR REPLACE INTO {table}", rows)


def update(connection: duckdb.DuckDBPyConnection, table: str, key: str, rows: Sequence[dict[str, Any]]) -> None:
    """Set columns of rows that are there.

    Args:
        connection: to write with.
        table, key: trusted SQL.
        rows: with the key and the same columns each; other columns are left alone.
    """
    if not rows:
        return
    columns = list(rows[0])
    connection.register("new_rows", _arrow(rows, columns))
    assignments = ", ".join(f"{name} = n.{name}" for name in columns if name != key)
    connection.execute(f"UPDATE {table} AS t SET {assignments} FROM new_rows n WHERE n.{key} = t.{key}")
    connection.unregister("new_rows")


def _add(connection: duckdb.DuckDBPyConnection, statement: str, rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        return
    columns = list(rows[0])
    connection.register("new_rows", _arrow(rows, columns))
    names = ", ".join(columns)
    connection.execute(f"{statement} ({names}) SELECT {names} FROM new_rows")
    connection.unregister("new_rows")


def _arrow(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> pa.Table:
    data = {name: pa.array([row[name] for row in rows]) for name in columns}
    # An all-None column has Arrow's null type, which DuckDB reads as INTEGER; a string casts to anything.
    return pa.table(
        {name: array.cast(pa.string()) if pa.types.is_null(array.type) else array for name, array in data.items()}
    )
