"""Runs whose process was killed: without a worker that reports it, Dagster shows them as started for ever.

A run holds a lock in its store, which the kernel frees when its process ends, however that happens. A process id would say
less: another container or another machine has its own numbers, and a restart begins them anew.
"""

import atexit
import contextlib
from pathlib import Path

import dagster as dg
from filelock import FileLock, Timeout

from acme_rag_pipeline.store.layout import Store

_UNDER_WAY = {dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING}
_held: dict[Path, FileLock] = {}


def hold(store: Store, run_id: str) -> None:
    """Show until this process ends, or works on another run, that it works on this one.

    A store that cannot be written shows nothing; its stages say so themselves.
    """
    path = _folder(store) / f"{run_id}.lock"
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


def fail_dead_runs(instance: dg.DagsterInstance, store: Store) -> list[str]:
    """Mark the runs over this store as failed whose process is gone; returns their ids.

    A run that was killed would hold a place in the queue, and the sensor would wait for it. A run that shows nothing in this
    store is left alone: it works on another one, or has not begun. Launchers that watch their workers themselves
    (Kubernetes, ECS, ...) are left alone too.
    """
    failed: list[str] = []
    if instance.run_launcher.supports_check_run_worker_health:
        return failed
    for path in sorted(_folder(store).glob("*.lock")):
        if path in _held or not _is_free(path):
            continue
        # Read after the lock: a run records its end before its process lets go.
        run = instance.get_run_by_id(path.stem)
        if run is None:
            continue
        if run.status in _UNDER_WAY:
            instance.report_run_failed(run, message="its process is gone: it was killed, or the machine was restarted")
            failed.append(run.run_id)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    return failed


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
