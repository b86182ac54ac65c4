"""A run that was killed does not keep the next ones waiting."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest

from acme_rag_pipeline.orchestration.dead_runs import fail_dead_runs

PROGRAM = """
import sys, time
import dagster as dg

@dg.op
def wait():
    time.sleep(120)

@dg.job(executor_def=dg.in_process_executor)
def waiting():
    wait()

with dg.DagsterInstance.from_config(sys.argv[1]) as instance:
    waiting.execute_in_process(instance=instance)
"""


@pytest.mark.slow
def test_a_killed_run_ends_as_failed_and_a_live_one_goes_on(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text("telemetry:\n  enabled: false\n", encoding="utf-8")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        # Two processes that both create its databases fail now and then.
        assert instance.get_runs() == []
        running = subprocess.Popen([sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path)])
        try:
            deadline = time.monotonic() + 120
            while not instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
                assert time.monotonic() < deadline
                time.sleep(0.2)
            while not any(
                record.event_log_entry.dagster_event.step_key
                for record in instance.get_records_for_run(instance.get_runs()[0].run_id).records
                if record.event_log_entry.dagster_event
            ):
                assert time.monotonic() < deadline
                time.sleep(0.2)
            assert fail_dead_runs(instance) == []
            os.kill(running.pid, signal.SIGKILL)
            running.wait()
            [run] = instance.get_runs()
            assert run.status is dg.DagsterRunStatus.STARTED
            assert fail_dead_runs(instance) == [run.run_id]
            assert instance.get_runs()[0].status is dg.DagsterRunStatus.FAILURE
        finally:
            running.kill()
