"""What LanceDB says of files that it cannot read, in words for people."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from acme_rag_pipeline.store.lance_files import lost_files

# LanceDB has no classes of its own for these; a file of zeros is a ValueError.
_OF_LANCE = re.compile(r"lance error: |.*does not appear to be a Lance file", re.DOTALL)
_KIND = re.compile(r"^lance error: (LanceError\(\w+\): )?")
# Where in the source of the library.
_PLACE = re.compile(r", \S+\.rs:\d+(:\d+)?")


class TableUnreadable(RuntimeError):
    """LanceDB cannot read a table's files; the message names the table and says how it is built again."""


@contextlib.contextmanager
def reading(folder: Path, name: str) -> Iterator[None]:
    """Within it, what LanceDB raises while it reads a table becomes `TableUnreadable`; any other error stays what it is.

    Args:
        folder: of the tables.
        name: of the table.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if not _OF_LANCE.match(str(error)):
            raise
        raise TableUnreadable(_in_words(folder, name, str(error))) from error


def _in_words(folder: Path, name: str, said: str) -> str:
    reason = _PLACE.split(_KIND.sub("", said))[0].splitlines()[0]
    problem = f"table {name} cannot be read ({reason}): "
    if "(os error" in reason:
        # Permissions, too many open files, a fault of the disk: the files may be whole.
        return f"{problem}make {folder / f'{name}.lance'} readable and try again"
    # A run builds again what lacks files or has them cut off; it reads none of those that have their size.
    first = "" if lost_files(folder, name) else f"delete {folder / f'{name}.lance'} and "
    return f"{problem}{first}run `make refresh`, which builds it again from cached vectors"
