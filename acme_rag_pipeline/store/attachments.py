"""The process's one DuckDB, to which a database file is attached for as long as somebody uses it.

Starting a DuckDB costs 20 ms of processor time whatever the file, attaching a file to a running one costs 2, and a
refresh opens its files 40 times. Attaching locks the file against other processes and detaching frees it, as opening and
closing it would. Which tables a file holds is not known here.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

CONFIG: dict[str, Any] = {"autoinstall_known_extensions": "false"}


class InOtherMode(RuntimeError):
    """Another thread of this process reads the file that is to be written, or the other way round."""


@dataclass
class _Attached:
    name: str
    read_only: bool
    users: int = 0


class Attachments:
    """A DuckDB in memory and the files that are attached to it.

    Each file is attached once, however many threads use it: the lock on it would go with the first of two attachments
    (POSIX drops a process's locks on a file when any of its handles is closed).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._database: duckdb.DuckDBPyConnection | None = None
        self._files: dict[str, _Attached] = {}
        self._numbers = itertools.count()
        self._suspect = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._start_anew)

    def close(self) -> None:
        """End the DuckDB; the next opening starts another."""
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None

    def _start_anew(self) -> None:
        # Closing what the parent has open would wait for threads that a fork does not copy.
        self._inherited = self._database
        self._lock, self._database, self._files, self._suspect = threading.Lock(), None, {}, False

    @contextlib.contextmanager
    def opened(self, path: Path, *, read_only: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection whose tables are those of the file.

        Raises:
            InOtherMode: wait, and try again.
            duckdb.IOException: another process holds the file, or it cannot be opened.
        """
        file = os.path.realpath(path)
        connection = self._open(file, read_only)
        try:
            yield connection
        except BaseException:
            # After a fault in writing a DuckDB may refuse every further statement.
            self._suspect = True
            raise
        finally:
            connection.close()
            self._release(file)

    def _open(self, file: str, read_only: bool) -> duckdb.DuckDBPyConnection:
        with self._lock:
            if self._database is None:
                self._database = duckdb.connect(config=CONFIG)
            known = self._files.get(file)
            if known is None:
                known = _Attached(f"file_{next(self._numbers)}", read_only)
                mode = " (READ_ONLY)" if read_only else ""
                self._database.execute(f"ATTACH {quoted(file)} AS {known.name}{mode}")
                self._files[file] = known
            elif known.read_only != read_only:
                raise InOtherMode(file)
            known.users += 1
            connection = self._database.cursor()
            # A query of more than two seconds would draw a progress bar into the log of a run.
            return connection.execute(f"USE {known.name}; SET enable_progress_bar = false")

    def _release(self, file: str) -> None:
        with self._lock:
            known = self._files[file]
            known.users -= 1
            if known.users == 0 and self._database is not None:
                del self._files[file]
                try:
                    self._database.execute(f"DETACH {known.name}")
                except duckdb.Error:
                    # What was committed stands in the log beside the file, which the next opening reads.
                    self._suspect = True
            if self._suspect and not self._files and self._database is not None:
                self._database.close()
                self._database, self._suspect = None, False


def quoted(path: str | Path) -> str:
    """A path as an SQL string."""
    return "'" + str(path).replace("'", "''") + "'"


ATTACHMENTS = Attachments()
# What is left to the end of the interpreter, DuckDB's binding reports as leaked.
atexit.register(ATTACHMENTS.close)
