"""When the new rows of a LanceDB table become part of its large files and indexes: that writes the whole table anew."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from lancedb.table import Table

# Above this number of rows a table waits until there is something to fold; searches find the few new rows by a scan.
FOLD_ALWAYS_ROWS = 2_000
MOST_FRAGMENTS = 8
FOLD_AFTER = timedelta(hours=1)
MOST_UNINDEXED = 0.005  # of the rows
KEEP_ALL_VERSIONS = timedelta(days=36_500)


def waits_for_folding(table: Table) -> bool:
    """Whether a large table has new rows in files of their own, too few and too young to write all of it anew for them.

    Versions before them share its files and go when it is folded: text that was deleted must not stay in one for long.
    """
    stats = cast("dict[str, Any]", table.stats())  # as lancedb gives it, whatever its annotation says
    rows, fragments = stats["num_rows"], stats["fragment_stats"]["num_fragments"]
    if rows < FOLD_ALWAYS_ROWS or fragments > MOST_FRAGMENTS:
        return False
    superseded = [version["timestamp"] for version in table.list_versions()[1:2]]
    if any(datetime.now(UTC) - since.astimezone(UTC) > FOLD_AFTER for since in superseded):
        return False
    found = [table.index_stats(index.name) for index in table.list_indices()]
    unindexed = max((index.num_unindexed_rows for index in found if index is not None), default=0)
    return unindexed <= MOST_UNINDEXED * rows and (fragments > 1 or unindexed > 0)


def fold(table: Table) -> None:
    """Fold new rows into files and indexes until nothing is left to fold: the pointer names a version that stays newest.

    A large table waits until a few edits have come together, or one has waited for an hour. No version is deleted: the
    promoted one is older than this and readers still hold it.
    """
    if waits_for_folding(table):
        return
    for _ in range(5):
        before = table.version
        table.optimize(cleanup_older_than=KEEP_ALL_VERSIONS)
        if table.version == before:
            return
