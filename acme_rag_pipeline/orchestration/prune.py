"""Forgetting old runs: Dagster keeps every event of every run until somebody deletes the run."""

import argparse
import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
from dagster._core.storage.event_log import SqliteEventLogStorage

_FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


def prune(instance: dg.DagsterInstance, older_than: datetime) -> int:
    """Delete runs that ended, with their events and logs; the store, its decisions and reports are not touched.

    The run that made an asset as it is shown today stays: without it the asset would count as never made.

    Args:
        instance: whose history it is.
        older_than: runs that were created before.

    Returns:
        How many were deleted.
    """
    newest = instance.get_latest_materialization_events(instance.all_asset_keys()).values()
    kept = {event.run_id for event in newest if event is not None}
    old = instance.get_run_ids(dg.RunsFilter(statuses=_FINISHED, created_before=older_than))
    gone = [run_id for run_id in old if run_id not in kept]
    for run_id in gone:
        instance.delete_run(run_id)
        instance.compute_log_manager.delete_logs(prefix=[run_id])
        _drop_file(instance, run_id)
    return len(gone)


def _drop_file(instance: dg.DagsterInstance, run_id: str) -> None:
    """SQLite has a file for each run, which Dagster empties and leaves as large as it was."""
    events = instance.event_log_storage
    if isinstance(events, SqliteEventLogStorage):
        file = Path(events.path_for_shard(run_id))
        for path in (file, *(file.with_name(f"{file.name}-{suffix}") for suffix in ("wal", "shm"))):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def main(arguments: Sequence[str] | None = None) -> None:
    """Prune the history of `DAGSTER_HOME`."""
    parser = argparse.ArgumentParser(description="Delete finished runs from Dagster's history.")
    parser.add_argument("--days", type=int, default=90, help="runs that are younger stay (default 90)")
    days = parser.parse_args(arguments).days
    if days < 1:
        parser.error("--days must be at least 1")
    with dg.DagsterInstance.get() as instance:
        deleted = prune(instance, datetime.now(UTC) - timedelta(days=days))
    print(f"{deleted} finished runs of more than {days} days ago were deleted")


if __name__ == "__main__":
    main()
