"""A run that was killed does not keep the next ones waiting, and nobody else's run is touched."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import EngineEventData
from dagster._core.storage.runs import InMemoryRunStorage
from dagster._serdes import ConfigurableClass

from acme_rag_pipeline.orchestration import dead_runs
from acme_rag_pipeline.orchestration.dead_runs import (
    FIRST_SIGN_WITHIN_SECONDS,
    STORE_TAG,
    fail_dead_runs,
    hold,
    let_go,
    show,
)
from acme_rag_pipeline.orchestration.resources import Pipeline
from acme_rag_pipeline.store.layout import Store

PROGRAM = """
import sys, time
from pathlib import Path
import dagster as dg
from acme_rag_pipeline.orchestration.dead_runs import hold
from acme_rag_pipeline.store.layout import Store

@dg.resource
def shown(context):
    if sys.argv[3] == "resource":
        time.sleep(120)
    hold(Store(Path(sys.argv[2])), context.run.run_id)

@dg.op(required_resource_keys={"shown"})
def wait(context):
    time.sleep(120)

@dg.job(executor_def=dg.in_process_executor, resource_defs={"shown": shown})
def waiting():
    wait()

with dg.DagsterInstance.from_config(sys.argv[1]) as instance:
    waiting.execute_in_process(instance=instance)
"""


class DatabaseServer(InMemoryRunStorage, ConfigurableClass):
    """Keeps runs, and not in the folder of the instance."""

    @property
    def inst_data(self) -> None:
        return None

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config_value(cls, inst_data: object, config_value: object) -> DatabaseServer:
        return cls()


@dg.op
def nothing() -> None:
    """Do nothing."""


@dg.job
def some_job() -> None:
    """A job of anybody."""
    nothing()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance
    let_go()


def started(instance: dg.DagsterInstance) -> dg.DagsterRun:
    return instance.create_run_for_job(some_job, status=dg.DagsterRunStatus.STARTED)


def under_way(instance: dg.DagsterInstance) -> list[dg.RunRecord]:
    return list(instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])))


def happened(instance: dg.DagsterInstance, run: dg.DagsterRun, event: dg.DagsterEventType, seconds_ago: float) -> None:
    message = dg.DagsterEvent(
        event_type_value=event.value, job_name=run.job_name, event_specific_data=EngineEventData(metadata={})
    )
    instance.report_dagster_event(message, run.run_id, timestamp=time.time() - seconds_ago)


def test_a_run_over_another_store_is_left_alone_wherever_its_process_is(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    run = started(instance)
    hold(Store(tmp_path / "of another code location"), run.run_id)
    let_go()
    happened(instance, run, dg.DagsterEventType.RUN_START, seconds_ago=3600)
    happened(instance, run, dg.DagsterEventType.RESOURCE_INIT_SUCCESS, seconds_ago=3599)
    assert fail_dead_runs(instance, Store(tmp_path / "ours"), under_way(instance)) == []
    assert instance.get_runs()[0].status is dg.DagsterRunStatus.STARTED


@pytest.mark.parametrize("shown", [(), (dg.DagsterEventType.RESOURCE_INIT_STARTED,)])
def test_a_run_that_was_killed_before_it_could_show_itself_ends_as_failed(
    instance: dg.DagsterInstance, store: Store, shown: tuple[dg.DagsterEventType, ...]
) -> None:
    run = started(instance)
    for event in (dg.DagsterEventType.RUN_START, *shown):
        happened(instance, run, event, seconds_ago=FIRST_SIGN_WITHIN_SECONDS + 1)
    assert fail_dead_runs(instance, store, under_way(instance)) == [run.run_id]
    assert instance.get_runs()[0].status is dg.DagsterRunStatus.FAILURE
    assert fail_dead_runs(instance, store, under_way(instance)) == []


def test_a_run_shows_itself_before_its_first_step(instance: dg.DagsterInstance, store: Store) -> None:
    found: list[list[str]] = []

    @dg.op
    def looks(pipeline: Pipeline) -> None:
        found.append([path.stem for path in (store.work / "runs").glob("*.lock")])

    @dg.job(executor_def=dg.in_process_executor, resource_defs={"pipeline": Pipeline(store=str(store.root))})
    def one_that_looks() -> None:
        looks()

    run = one_that_looks.execute_in_process(instance=instance)
    assert found == [[run.run_id]]


def test_a_run_that_has_only_just_started_is_left_alone(instance: dg.DagsterInstance, store: Store) -> None:
    happened(instance, started(instance), dg.DagsterEventType.RUN_START, seconds_ago=FIRST_SIGN_WITHIN_SECONDS - 30)
    assert fail_dead_runs(instance, store, under_way(instance)) == []


def test_a_slow_run_that_shows_itself_late_is_left_alone(instance: dg.DagsterInstance, store: Store) -> None:
    run = started(instance)
    happened(instance, run, dg.DagsterEventType.RUN_START, seconds_ago=FIRST_SIGN_WITHIN_SECONDS + 1)
    hold(store, run.run_id)
    assert fail_dead_runs(instance, store, under_way(instance)) == []


def test_a_run_of_another_instance_over_the_same_store_keeps_its_mark(
    instance: dg.DagsterInstance, store: Store
) -> None:
    hold(store, "a-run-of-another-instance")
    let_go_like_a_killed_process(store, "a-run-of-another-instance")
    assert fail_dead_runs(instance, store, under_way(instance)) == []
    assert [path.stem for path in (store.work / "runs").iterdir()] == ["a-run-of-another-instance"]


@pytest.mark.parametrize("ended", [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.CANCELED])
def test_a_run_that_ended_just_before_its_process_was_killed_keeps_its_end(
    instance: dg.DagsterInstance, store: Store, ended: dg.DagsterRunStatus
) -> None:
    run = instance.create_run_for_job(some_job, status=ended)
    hold(store, run.run_id)
    let_go_like_a_killed_process(store, run.run_id)
    assert fail_dead_runs(instance, store, under_way(instance)) == []
    assert instance.get_runs()[0].status is ended
    assert list((store.work / "runs").iterdir()) == []


def test_a_run_that_ended_leaves_no_file(instance: dg.DagsterInstance, store: Store) -> None:
    first, second = started(instance), started(instance)
    hold(store, first.run_id)
    hold(store, second.run_id)
    hold(store, second.run_id)
    instance.report_run_failed(first)
    assert fail_dead_runs(instance, store, under_way(instance)) == []
    assert [path.stem for path in (store.work / "runs").iterdir()] == [second.run_id]
    let_go()
    instance.report_run_failed(second)
    assert fail_dead_runs(instance, store) == []
    assert list((store.work / "runs").iterdir()) == []


def test_a_run_that_could_not_record_its_end_ends_as_failed(instance: dg.DagsterInstance, store: Store) -> None:
    """A full disk stops Dagster's record of a failure, and the process ends all the same."""
    run = started(instance)
    hold(store, run.run_id)
    happened(instance, run, dg.DagsterEventType.RESOURCE_INIT_SUCCESS, seconds_ago=1)
    assert fail_dead_runs(instance, store) == []
    let_go()
    assert fail_dead_runs(instance, store) == [run.run_id]


def test_a_run_that_recorded_its_end_leaves_no_file(store: Store, tmp_path: Path) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        run = started(instance)
        show(instance, store, run.run_id)
        instance.report_run_failed(run)
    let_go()
    assert list((store.work / "runs").iterdir()) == []


def test_a_run_whose_end_is_not_recorded_leaves_its_file(store: Store, tmp_path: Path) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        run = started(instance)
        show(instance, store, run.run_id)
    let_go()
    assert [path.stem for path in (store.work / "runs").iterdir()] == [run.run_id]


def test_a_run_leaves_its_file_also_where_dagster_has_a_database_server_and_no_folder(
    store: Store, tmp_path: Path
) -> None:
    """In a container of a run there is no folder by the name that the daemon's has."""
    server = {"run_storage": {"module": __name__, "class": DatabaseServer.__name__, "config": {}}}
    (tmp_path / "daemon").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "daemon"), overrides=server) as instance:
        run = started(instance)
        show(instance, store, run.run_id)
    shutil.rmtree(tmp_path / "daemon")
    let_go()
    assert [path.stem for path in (store.work / "runs").iterdir()] == [run.run_id]


def test_a_launcher_that_only_the_daemon_can_load_watches_its_workers_itself(store: Store, tmp_path: Path) -> None:
    """The package of a cluster's launcher is not installed where the sensor is evaluated."""
    launcher = {"run_launcher": {"module": "of_a_cluster", "class": "PodLauncher", "config": {}}}
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides=launcher) as instance:
        run = started(instance)
        hold(store, run.run_id)
        let_go_like_a_killed_process(store, run.run_id)
        assert fail_dead_runs(instance, store, under_way(instance)) == []
        assert [run.status for run in instance.get_runs()] == [dg.DagsterRunStatus.STARTED]


def test_a_run_of_an_instance_that_was_deleted_leaves_no_file(store: Store, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "home")) as instance:
        run = started(instance)
        show(instance, store, run.run_id)
    shutil.rmtree(tmp_path / "home")
    let_go()
    assert list((store.work / "runs").iterdir()) == []


def test_a_killed_run_over_another_store_is_found_by_what_it_says_of_itself(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    run = started(instance)
    another = Store(tmp_path / "another")
    instance.add_run_tags(run.run_id, {STORE_TAG: str(another.root)})
    hold(another, run.run_id)
    happened(instance, run, dg.DagsterEventType.RESOURCE_INIT_SUCCESS, seconds_ago=3600)
    ours = Store(tmp_path / "ours")
    assert fail_dead_runs(instance, ours, under_way(instance)) == []
    let_go()
    assert fail_dead_runs(instance, ours) == [run.run_id]


def test_a_killed_run_whose_store_was_moved_is_found_where_that_is_now(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    run = started(instance)
    before, now = Store(tmp_path / "before"), Store(tmp_path / "now")
    instance.add_run_tags(run.run_id, {STORE_TAG: str(before.root)})
    hold(before, run.run_id)
    let_go()
    shutil.copytree(before.root, now.root)
    hold(before, run.run_id)
    # A copy of a store says nothing of the run that works on the first one.
    assert fail_dead_runs(instance, now, under_way(instance)) == []
    let_go()
    shutil.rmtree(before.root)
    assert fail_dead_runs(instance, now) == [run.run_id]


def test_the_lock_of_a_run_that_nobody_knows_is_kept_for_a_week(instance: dg.DagsterInstance, store: Store) -> None:
    hold(store, "of-a-ci")
    let_go()
    [path] = (store.work / "runs").iterdir()
    for days, kept in ((6, True), (8, False)):
        os.utime(path, (time.time() - days * 86_400,) * 2)
        assert fail_dead_runs(instance, store) == []
        assert path.exists() is kept


def let_go_like_a_killed_process(store: Store, run_id: str) -> None:
    """The lock is free and its file is still there."""
    let_go()
    assert (store.work / "runs" / f"{run_id}.lock").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("waits_in", "reached"),
    [("step", dg.DagsterEventType.STEP_START), ("resource", dg.DagsterEventType.RESOURCE_INIT_STARTED)],
)
def test_a_killed_run_ends_as_failed_and_a_live_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits_in: str, reached: dg.DagsterEventType
) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "dagster.yaml").write_text("telemetry:\n  enabled: false\n", encoding="utf-8")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        # Two processes that both create its databases fail now and then.
        assert instance.get_runs() == []
        command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path), str(store.root), waits_in]
        running = subprocess.Popen(command)
        try:
            deadline = time.monotonic() + 120
            while not any(instance.all_logs(run.run_id, of_type=reached) for run in instance.get_runs()):
                assert time.monotonic() < deadline
                time.sleep(0.2)
            assert fail_dead_runs(instance, store, under_way(instance)) == []
            os.kill(running.pid, signal.SIGKILL)
            running.wait()
            [run] = instance.get_runs()
            assert run.status is dg.DagsterRunStatus.STARTED
            monkeypatch.setattr(dead_runs, "FIRST_SIGN_WITHIN_SECONDS", 0)
            assert fail_dead_runs(instance, store, under_way(instance)) == [run.run_id]
            assert instance.get_runs()[0].status is dg.DagsterRunStatus.FAILURE
            assert fail_dead_runs(instance, store, under_way(instance)) == []
        finally:
            running.kill()
