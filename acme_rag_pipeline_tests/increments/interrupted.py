"""Serving that ends before a chosen one of its writes: each place where a killed run may have left the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from acme_rag_pipeline.serving import clean_up, serve
from acme_rag_pipeline.store import arms_file, table_clean_up, vectors

# What `served_index` writes, in no order: a table's rows, its indexes and files, `arms.json`, the pointer, the record.
WRITES: tuple[tuple[Any, str], ...] = (
    (vectors, "_created"),
    (vectors, "delete_rows"),
    (vectors, "_index"),
    (vectors, "fold"),
    (arms_file, "_write"),
    (serve, "write_pointer"),
    (serve, "_remember_version"),
    (serve, "record"),
    (clean_up, "clean_up"),
    (clean_up, "drop_old_versions"),
    (clean_up, "_forget_versions"),
    (table_clean_up, "delete_rows"),
)


class Killed(BaseException):
    """The run ended here."""


def die() -> None:
    """End as a killed run does, but for the process."""
    raise Killed


@contextmanager
def before_write(number: int, act: Callable[[], None] = die) -> Iterator[list[str]]:
    """Within it `act` is called before the write of that number, counted from 0. Yields the names of the writes so far."""
    done: list[str] = []

    def counted(name: str, write: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **given: Any) -> Any:
            if len(done) == number:
                act()
            done.append(name)
            return write(*args, **given)

        return call

    with ExitStack() as patches:
        for where, name in WRITES:
            patches.enter_context(patch.object(where, name, counted(name, getattr(where, name))))
        yield done
