"""Runs whose process was killed: without a worker that reports it, Dagster shows them as started for ever.

A run holds a lock in its store, which the kernel frees when its process ends, however that happens. A process id would say
less: another container or another machine has its own numbers, and a restart begins them anew.
"""

import atexit
import contextlib
import time
from collections.abc import Iterable
from pathlib import Path

import dagster as dg
from filelock import FileLock, Timeout

from acme_rag_pipeline.store.layout import Store

# From "started" to its first sign a run takes a fraction of a second; a laptop under load, a few.
FIRST_SIGN_WITHIN_SECONDS = 60
_UNDER_WAY = {dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING}
_held: dict[Path, FileLock] = {}


def hold(store: Store, run_id: str) -> None:
    """Show until this process ends, or works on another run, that it works on this one.

    A store that cannot be written shows nothing; its stages say so themselves.
    """
    path = _lock_of(store, run_id)
    if path in _held:
        return
    let_go()
    begun = path.with_suffix(".begun")
    with contextlib.suppress(OSError, Timeout):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(begun)
        lock.acquire(timeout=0)
        # Under its name it is locked from the first moment on: a sensor that looks never finds a living run's lock free.
        begun.rename(path)
        _held[path] = lock


@atexit.register
def let_go() -> None:
    """Free what this process holds, and leave no file of it."""
    while _held:
        path, lock = _held.popitem()
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        lock.release()


def fail_dead_runs(instance: dg.DagsterInstance, store: Store, under_way: Iterable[dg.RunRecord]) -> list[str]:
    """Mark the runs as failed whose process is gone; returns their ids.

    A run that was killed would hold a place in the queue, and the sensor would wait for it. A run that works on another store
    shows nothing in this one and is left alone, unless it was killed before it could show anything anywhere. Launchers that
    watch their workers themselves (Kubernetes, ECS, ...) are left alone too.

    Args:
        instance: where the runs are recorded.
        store: what they work on.
        under_way: the runs of this code location that have not ended.
    """
    if instance.run_launcher.supports_check_run_worker_health:
        return []
    silent = [record.dagster_run for record in under_way if _is_silent(instance, record)]
    failed: list[str] = []
    for path in sorted(_folder(store).glob("*.lock")):
        if path in _held or not _is_free(path):
            continue
        # Read after the lock: a run records its end before its process lets go.
        run = instance.get_run_by_id(path.stem)
        if run is None:
            continue
        if run.status in _UNDER_WAY:
            failed.append(_fail(instance, run))
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    # One that was slow and shows itself by now is alive.
    return failed + [_fail(instance, run) for run in silent if not _lock_of(store, run.run_id).exists()]


def _fail(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    instance.report_run_failed(run, message="its process is gone: it was killed, or the machine was restarted")
    return run.run_id


def _is_silent(instance: dg.DagsterInstance, record: dg.RunRecord) -> bool:
    """Whether a run started long ago and its process has not come to the resource by which it shows itself."""
    run = record.dagster_run
    begun = record.start_time or record.create_timestamp.timestamp()
    if run.status is not dg.DagsterRunStatus.STARTED or time.time() - begun < FIRST_SIGN_WITHIN_SECONDS:
        return False
    return not instance.get_records_for_run(
        run.run_id, of_type=dg.DagsterEventType.RESOURCE_INIT_SUCCESS, limit=1
    ).records


def _lock_of(store: Store, run_id: str) -> Path:
    return _folder(store) / f"{run_id}.lock"


def _folder(store: Store) -> Path:
    return store.work / "runs"


def _is_free(path: Path) -> bool:
    """Whether no process holds that lock; what cannot be asked is not free."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return False
    lock.release()
    return True
