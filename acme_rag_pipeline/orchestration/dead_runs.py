"""Runs whose process was killed: without a worker that reports it, Dagster shows them as started for ever."""

import dagster as dg
import psutil

_UNDER_WAY = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def fail_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark the runs of this machine as failed whose process is gone; returns their ids.

    A run that was killed would hold the queue's only slot, and the sensor would wait for it. Launchers that watch their
    workers themselves (Kubernetes, ECS, ...) are left alone, and so are runs that never named their process.
    """
    failed: list[str] = []
    if instance.run_launcher.supports_check_run_worker_health:
        return failed
    for run in instance.get_runs(dg.RunsFilter(statuses=_UNDER_WAY)):
        processes = _processes(instance, run.run_id)
        if processes and not any(_lives(pid, since) for pid, since in processes.items()):
            instance.report_run_failed(run, message="its process is gone: it was killed, or the machine was restarted")
            failed.append(run.run_id)
    return failed


def _processes(instance: dg.DagsterInstance, run_id: str) -> dict[int, float]:
    """Process ids that worked on the run, each with the time at which it said so."""
    found: dict[int, float] = {}
    for record in instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT).records:
        event = record.event_log_entry.dagster_event
        if event is not None:
            for name, value in event.engine_event_data.metadata.items():
                if name == "pid" and str(value.value).isdigit():
                    found[int(str(value.value))] = record.timestamp
    return found


def _lives(pid: int, since: float) -> bool:
    """Whether that process still is; one that began to live later only has the same number."""
    try:
        process = psutil.Process(pid)
        return process.create_time() <= since + 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
