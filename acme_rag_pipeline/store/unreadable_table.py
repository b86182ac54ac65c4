"""What LanceDB says of files that it cannot read, in words for people, and the building anew of what a run cannot read."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from acme_rag_pipeline.errors import UserError
from acme_rag_pipeline.store.lance_files import lost_files
from acme_rag_pipeline.store.warehouse import out_of_storage

# LanceDB has no classes of its own for these; what is wrong within a file is a ValueError.
_OF_LANCE = re.compile(r"lance error: |Invalid input, |.*does not appear to be a Lance file", re.DOTALL)
_KIND = re.compile(r"^lance error: (LanceError\(\w+\): )?")
# The operating system said so; the second is how the opening of a whole folder tells it.
_REFUSED = re.compile(r"\(os error|PermissionDenied")
# Of an error that is written out with all that it was made of, what the operating system said.
_TOLD = re.compile(r'\bmessage: "([^"]+)"')
# Where in the source of the library.
_PLACE = re.compile(r", \S+\.rs:\d+(:\d+)?")
Built = TypeVar("Built")


class TableUnreadable(UserError, RuntimeError):
    """LanceDB cannot read a table's files; the message names the table and says how it is built again.

    Attributes:
        reason: what LanceDB says.
        refused: the operating system let nobody read them, whole as they may be.
    """

    def __init__(self, message: str, *, reason: str = "", refused: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.refused = refused


@dataclass(frozen=True)
class Damage:
    """Why a table must be built again; false where nothing says so.

    Attributes:
        lost: its files that are missing or cut off.
        unreadable: what LanceDB said of the others.
        throughout: nothing can be written over it: its newest manifest is lost, or an older one stands in the way.
    """

    lost: tuple[str, ...] = ()
    unreadable: str = ""
    throughout: bool = False

    def __bool__(self) -> bool:
        return bool(self.lost or self.unreadable)

    @property
    def in_words(self) -> str:
        """After "the table was built again: "."""
        lost = f"{', '.join(self.lost[:5])} missing or cut off" if self.lost else ""
        return "; ".join(filter(None, [lost, self.unreadable and f"not readable ({self.unreadable})"]))


def is_of_lance(error: Exception) -> bool:
    """Whether LanceDB raised it about files of a table."""
    if type(error).__name__ == "RustPanic":
        # Its class stands in no module that can be imported. A number in a damaged file led out of it.
        return True
    return isinstance(error, RuntimeError | ValueError) and bool(_OF_LANCE.match(str(error)))


@contextlib.contextmanager
def reading(folder: Path, name: str) -> Iterator[None]:
    """Within it, what LanceDB raises while it reads a table becomes `TableUnreadable`; any other error stays what it is.

    Args:
        folder: of the tables.
        name: of the table.
    """
    try:
        yield
    except Exception as error:
        if not is_of_lance(error) or out_of_storage(error):
            raise
        reason = _PLACE.split(_KIND.sub("", str(error)))[0].splitlines()[0]
        refused = bool(_REFUSED.search(reason))
        if told := _TOLD.search(reason):
            reason = told[1]
        raise TableUnreadable(_in_words(folder, name, reason, refused), reason=reason, refused=refused) from error


def built_anew_if_unreadable(folder: Path, name: str, build: Callable[[Damage], Built]) -> Built:
    """Bring a table up to date, or build it again where files of it are lost or cannot be read.

    Args:
        folder: of the tables.
        name: of the table.
        build: writes what the table lacks; of one with damage, all of it: over the old one, whose readers keep what is whole of
            it, or where the damage is `throughout` in its place.

    Raises:
        TableUnreadable: the operating system refuses its files, or what was built again cannot be read either.
    """
    lost = tuple(lost_files(folder, name))
    damage = Damage(lost, throughout=bool(lost) and lost[0].startswith("_versions/"))
    while True:
        try:
            with reading(folder, name):
                return build(damage)
        except TableUnreadable as error:
            if error.refused or damage.throughout:
                raise
            damage = Damage(lost, error.reason, throughout=bool(damage))


def _in_words(folder: Path, name: str, reason: str, refused: bool) -> str:
    problem = f"table {name} cannot be read ({reason}): "
    if refused:
        # Permissions, too many open files, a fault of the disk: the files may be whole.
        return f"{problem}make {folder / f'{name}.lance'} readable and try again"
    # A run with nothing to do builds again what lacks files or has them cut off; it reads none of those that have their size.
    first = "" if lost_files(folder, name) else f"delete {folder / f'{name}.lance'} and "
    return f"{problem}{first}run `make refresh`, which builds it again from cached vectors"
