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

from acme_rag_pipeline.store.layout import Store, flush_to_disk

# From "started" to its first sign a run takes a fraction of a second; a laptop under load, a few.
FIRST_SIGN_WITHIN_SECONDS = 60
# A run of another instance over this store, such as a CI's, is long over by then.
KEPT_SECONDS = 7 * 86_400
STORE_TAG = "acme_rag/store"
_UNDER_WAY = {dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING}
_held: dict[Path, tuple[FileLock, dg.DagsterInstance | None]] = {}


def show(instance: dg.DagsterInstance, store: Store, run_id: str) -> None:
    """Show until this process ends, or works on another run, that it works on this one; the run says on which store."""
    instance.add_run_tags(run_id, {STORE_TAG: str(store.root.absolute())})
    hold(store, run_id, instance)


def hold(store: Store, run_id: str, instance: dg.DagsterInstance | None = None) -> None:
    """Take the lock of a run, and free that of the run before.

    A store that cannot be written shows nothing; its stages say so themselves.

    Args:
        store: what the run works on.
        run_id: of the run.
        instance: where the run is recorded, to be asked at the end whether it recorded that too.
    """
    path = _lock_of(store.root, run_id)
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
        _held[path] = lock, instance
        flush_to_disk(path.parent)


@atexit.register
def let_go() -> None:
    """Free what this process holds, and leave no file of a run that recorded its end.

    Where a full disk or a lost database keeps a run from that, the file is all that tells of it.
    """
    while _held:
        path, (lock, instance) = _held.popitem()
        if instance is not None and _is_known_to_have_ended(instance, path.stem):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        lock.release()


def _is_known_to_have_ended(instance: dg.DagsterInstance, run_id: str) -> bool:
    try:
        if not instance.is_persistent or _was_deleted(instance):
            return True  # nobody will ask
        run = instance.get_run_by_id(run_id)
    except Exception:  # whatever its database raises
        return False
    return run is not None and run.is_finished


def _was_deleted(instance: dg.DagsterInstance) -> bool:
    """Whether the instance kept its runs in a folder that is gone; one with a database server need have no folder here."""
    from dagster._core.storage.runs import SqliteRunStorage

    return isinstance(instance.run_storage, SqliteRunStorage) and not Path(instance.root_directory).is_dir()


def fail_dead_runs(instance: dg.DagsterInstance, store: Store, may_be_silent: Iterable[dg.RunRecord] = ()) -> list[str]:
    """Mark the runs as failed whose process is gone; returns their ids.

    A run that was killed would hold a place in the queue, and the sensor would wait for it. A run that never came to its lock
    is known by its silence. Launchers that watch their workers themselves (Kubernetes, ECS, ...) are left alone.

    Args:
        instance: where the runs are recorded.
        store: where runs have their locks that do not say another store, or whose store was moved here since.
        may_be_silent: runs of these definitions, each of which initialises the resource by which it shows itself.
    """
    if _is_watched_by_its_launcher(instance):
        return []
    failed: list[str] = []
    for record in instance.get_run_records(dg.RunsFilter(statuses=sorted(_UNDER_WAY, key=lambda status: status.value))):
        locks = _locks_of(record.dagster_run, store)
        if locks and all(path not in _held and _is_free(path) for path in locks):
            failed += _fail(instance, record.dagster_run.run_id)
    for record in may_be_silent:
        if _is_silent(instance, record) and not _locks_of(record.dagster_run, store):
            failed += _fail(instance, record.dagster_run.run_id)
    for path in _folder(store.root).glob("*.lock"):
        if path not in _held and _is_free(path) and _is_over(instance, path):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    return failed


def _is_watched_by_its_launcher(instance: dg.DagsterInstance) -> bool:
    try:
        return instance.run_launcher.supports_check_run_worker_health
    except Exception:
        # One whose package, or access to the cluster, only the daemon has.
        return True


def _fail(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    # Read after the lock: a run records its end before its process lets go.
    run = instance.get_run_by_id(run_id)
    if run is None or run.status not in _UNDER_WAY:
        return []
    instance.report_run_failed(run, message="its process is gone: it was killed, or the machine was restarted")
    return [run_id]


def _is_silent(instance: dg.DagsterInstance, record: dg.RunRecord) -> bool:
    """Whether a run started long ago and its process has not come to the resource by which it shows itself."""
    run = record.dagster_run
    begun = record.start_time or record.create_timestamp.timestamp()
    if run.status is not dg.DagsterRunStatus.STARTED or time.time() - begun < FIRST_SIGN_WITHIN_SECONDS:
        return False
    return not instance.get_records_for_run(
        run.run_id, of_type=dg.DagsterEventType.RESOURCE_INIT_SUCCESS, limit=1
    ).records


def _is_over(instance: dg.DagsterInstance, path: Path) -> bool:
    """Whether the run of a lock has ended; one that this instance does not know is over after a week."""
    run = instance.get_run_by_id(path.stem)
    if run is not None:
        return run.is_finished
    try:
        return time.time() - path.stat().st_mtime > KEPT_SECONDS
    except OSError:
        return False


def _locks_of(run: dg.DagsterRun, store: Store) -> list[Path]:
    """A run's lock in the store that it names and in today's, to which that may have been moved: those that are there."""
    roots = dict.fromkeys((Path(run.tags.get(STORE_TAG, store.root)), store.root))
    return [path for root in roots if (path := _lock_of(root, run.run_id)).exists()]


def _folder(root: Path) -> Path:
    return root / "work" / "runs"


def _lock_of(root: Path, run_id: str) -> Path:
    return _folder(root) / f"{run_id}.lock"


def _is_free(path: Path) -> bool:
    """Whether no process holds that lock; what cannot be asked is not free."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return False
    lock.release()
    return True
