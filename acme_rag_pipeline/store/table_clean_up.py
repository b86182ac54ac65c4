"""What leaves a LanceDB table that is not reconciled today, and the versions that no reader holds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from acme_rag_pipeline.store.folding import waits_for_folding
from acme_rag_pipeline.store.passages import LivePassage
from acme_rag_pipeline.store.vectors import SEARCH_COLUMN, delete_rows

if TYPE_CHECKING:
    from lancedb.table import Table


def delete_gone(table: Table, passages: Sequence[LivePassage]) -> int:
    """Delete the rows whose headings, lead and text are no passage of today. Encodes nothing, adds nothing.

    Returns:
        The number of rows deleted.
    """
    wanted = {p.chunk_id: (p.text, p.headings(), p.rendered("heading_path")) for p in passages}
    columns = ["id", "text", "metadata", SEARCH_COLUMN]
    rows = table.search().select(columns).limit(max(1, table.count_rows())).to_arrow().select(columns).to_pylist()
    gone = [
        row["id"]
        for row in rows
        if wanted.get(row["id"]) != (row["text"], row["metadata"]["heading_path"], row[SEARCH_COLUMN])
    ]
    delete_rows(table, gone)
    return len(gone)


def drop_old_versions(table: Table, pins: Collection[int]) -> None:
    """Delete the files of versions older than the oldest pinned one, and those of no version; the newest always stays.

    Args:
        table: not pinned to a version; nobody else writes to it now.
        pins: versions that a reader may hold.
    """
    if waits_for_folding(table):
        # Old versions share its files, and deleting them would fold it.
        return
    keep = {*pins, int(table.version)}
    age = timedelta(milliseconds=1)
    if keep != {int(table.version)}:
        times = [v["timestamp"] for v in table.list_versions() if v["version"] in keep]
        # The steps of a reconciliation stand close together, and this one takes a moment too.
        age = datetime.now(UTC) - min(times).astimezone(UTC) + timedelta(seconds=5)
        if age <= timedelta(0):
            # The clock was set back: what is older than these versions leaves when it has caught up.
            return
    # Killed writers leave files that belong to no version. The store's writer lock says that nobody is writing now.
    table.optimize(cleanup_older_than=age, delete_unverified=True)
