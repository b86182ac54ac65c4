"""The store folder: where each derived thing lies, and the one lock that its writers share."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from filelock import FileLock, Timeout

from acme_rag_pipeline.errors import UserError
from acme_rag_pipeline.store.warehouse import Warehouse, WarehouseUnusable, out_of_storage

LockName = Literal["writer", "training", "asking"]
LOCKS: tuple[LockName, ...] = get_args(LockName)
AFTER_LONG_WORK_SECONDS = 3600.0


class StoreBusy(UserError, RuntimeError):
    """Another run is writing to the store; the message says which."""


class StoreUnusable(UserError, RuntimeError):
    """The store folder cannot be written: read-only, full, or not a folder."""


class Store:
    """Everything derived lives under one folder, safe to delete.

    Args:
        root: the folder (`ACME_RAG_STORE`).
        wait_seconds: how long a writer waits for another.
    """

    def __init__(self, root: Path, wait_seconds: float = 60) -> None:
        self.root = root
        self.wait_seconds = wait_seconds
        self.warehouse = Warehouse(root / "warehouse.duckdb", wait_seconds)
        self.embedding_cache = root / "cache" / "embeddings.duckdb"
        self.lancedb = root / "lancedb"
        self.models = root / "models"
        self.reports = root / "reports"
        self.work = root / "work"
        self.pointer = root / "promoted.json"
        self._locks = {name: FileLock(root / f"{name}.lock") for name in LOCKS}

    def is_own(self, path: Path) -> bool:
        """Whether a resolved path is the store itself or one of the files it is made of; reports and foreign files are not."""
        root = self.root.resolve()
        if root not in path.parents:
            return path == root
        first = path.relative_to(root).parts[0].removeprefix(".")
        own = ("warehouse.duckdb", "cache", "lancedb", "models", "work", "promoted.json", "arms.json")
        return first.startswith(own) or Path(first).stem in LOCKS

    @contextlib.contextmanager
    def writer(self, purpose: str, lock: LockName = "writer") -> Iterator[None]:
        """Be the only process that writes to the store; re-entrant. The kernel frees the lock of a killed process.

        Args:
            purpose: what another run is told that it waits for, such as an asset name.
            lock: `writer` for writing rows, tables and the pointer; `training` and `asking` for the long work that
                must not run twice but need not keep a refresh waiting.

        Raises:
            StoreBusy: another run held the store for longer than `wait_seconds`; at the end of `training` or `asking`, whose
                work would be for nothing until the next run, for longer than an hour.
            StoreUnusable: the folder cannot be created or written, or the disk ran full within the block.
        """
        holder, held = self.root / f"{lock}.json", self._locks[lock]
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            wait = self._wait_for(lock)
            held.acquire(timeout=wait, poll_interval=0.05)
        except Timeout:
            raise StoreBusy(
                f"{self.root} is being written by {_described(holder)} for more than {wait:.0f} s: "
                "wait until that run ends, or stop it (ACME_RAG_LOCK_SECONDS sets how long to wait)"
            ) from None
        except OSError as error:
            raise StoreUnusable(f"ACME_RAG_STORE: {self.root} cannot be written: {error}") from error
        try:
            if held.lock_counter == 1:
                with contextlib.suppress(OSError):
                    about = {"pid": os.getpid(), "host": socket.gethostname(), "purpose": purpose}
                    about["since"] = datetime.now(UTC).isoformat()
                    holder.write_text(json.dumps(about), encoding="utf-8")
            yield
        except (StoreUnusable, WarehouseUnusable):
            raise
        except Exception as error:
            if out_of_storage(error) or self._refuses(error):
                raise StoreUnusable(
                    f"ACME_RAG_STORE: {self.root} cannot be written ({purpose}): {error}. Readers keep what was promoted. "
                    "Free some space or make the store writable, and run again"
                ) from error
            raise
        finally:
            if held.lock_counter == 1:
                with contextlib.suppress(OSError):
                    holder.unlink(missing_ok=True)
            held.release()

    def _wait_for(self, lock: LockName) -> float:
        """Seconds to wait for a lock: hours of work that end with a few rows are not given up because a refresh takes long."""
        at_work = lock == "writer" and any(self._locks[name].lock_counter for name in LOCKS if name != lock)
        return max(self.wait_seconds, AFTER_LONG_WORK_SECONDS) if at_work else self.wait_seconds

    def _refuses(self, error: Exception) -> bool:
        """Whether a file of the store may not be written, or its disk reports a fault."""
        named = str(getattr(error, "filename", None) or "")
        return isinstance(error, OSError) and Path(named).is_relative_to(self.root)

    def idle(self, lock: LockName) -> bool:
        """Whether no process holds that lock now; one that cannot be taken, as in a store that is read-only, is not idle."""
        with self.if_idle(lock) as held:
            return held

    @contextlib.contextmanager
    def if_idle(self, lock: LockName) -> Iterator[bool]:
        """Hold a lock within the block if no other process does; says whether it is held, without waiting."""
        try:
            self._locks[lock].acquire(timeout=0)
        except (Timeout, OSError):
            yield False
            return
        try:
            yield True
        finally:
            self._locks[lock].release()


def _described(holder: Path) -> str:
    for _ in range(2):
        try:
            known = json.loads(holder.read_text(encoding="utf-8"))
            # A container has a name and process ids of its own.
            host = known.get("host", "")
            where = f" on {host}" if host not in ("", socket.gethostname()) else ""
            return f"process {known['pid']}{where} ({known['purpose']}, since {known['since'][:19]}Z)"
        except (OSError, ValueError, KeyError):
            time.sleep(0.05)
    return "another process"


def write_atomically(path: Path, text: str) -> None:
    """Replace a file so that a reader sees the old or the new content and a power cut leaves one of them whole.

    For the holder of the writer lock: one name for all, so that what a killed run left is overwritten by the next.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    with contextlib.suppress(FileNotFoundError):
        shutil.copymode(path, temporary)  # who may read it is what people have set
    temporary.replace(path)
    flush_to_disk(path.parent)


def flush_to_disk(path: Path) -> None:
    """Have a file's content, or a folder's names, survive a power cut from here on. Of a folder only where that is possible."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
