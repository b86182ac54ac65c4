"""The real Dagster daemon: edits while it runs, `kill -9` in the middle of a run, edits while it is down, a restart."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest

from acme_rag_pipeline.retrieval import Retriever
from acme_rag_pipeline.store.promotion import NothingPromoted
from acme_rag_pipeline_tests.conftest import PROJECT, write_documents
from acme_rag_pipeline_tests.increments.worker import STAGES, rows_of, settings_of, store_of

pytestmark = pytest.mark.slow
# Long enough for a busy machine; nothing here is measured.
PATIENCE = 900


# The pipeline's code location without its schedules: a clock that strikes two or five during the test would start a run.
WITHOUT_SCHEDULES = """
import dagster as dg

from acme_rag_pipeline.definitions import build_definitions


def without_schedules(whole: dg.Definitions) -> dg.Definitions:
    return dg.Definitions(
        assets=whole.assets,
        asset_checks=whole.asset_checks,
        jobs=whole.jobs,
        sensors=whole.sensors,
        resources=whole.resources,
        executor=whole.executor,
    )


defs = without_schedules(build_definitions())
"""
# Kills that may come too late, when the run has just ended.
TRIES = 5


class Daemon:
    """`dagster-daemon run` with its code server and its runs, in a process group of its own."""

    def __init__(self, root: Path) -> None:
        self.root, self.home = root, root / "home"
        self.home.mkdir()
        shutil.copyfile(PROJECT / "dagster.yaml", self.home / "dagster.yaml")
        self.location = self.home / "without_schedules.py"
        self.location.write_text(WITHOUT_SCHEDULES, encoding="utf-8")
        self.log = root / "daemon.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        settings = {"DOCUMENTS": self.root / "documents", "STORE": self.root / "store", "ROOT": self.root}
        own = {f"ACME_RAG_{name}": str(value) for name, value in settings.items()}
        path = filter(None, (str(PROJECT), os.environ.get("PYTHONPATH")))
        own |= {"DAGSTER_HOME": str(self.home), "PYTHONPATH": os.pathsep.join(path)}
        command = [str(Path(sys.executable).parent / "dagster-daemon"), "run", "-f", str(self.location)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.home, env=os.environ | own, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def runs(self, status: dg.DagsterRunStatus) -> int:
        with dg.DagsterInstance.from_config(str(self.home)) as instance:
            return instance.get_runs_count(dg.RunsFilter(job_name="refresh", statuses=[status]))

    def wait_until(self, reached: Callable[[], bool], what: str, every: float = 1.0) -> None:
        """Wait for it, with so many seconds between two looks; fails with the log of the daemon."""
        deadline = time.monotonic() + PATIENCE
        while not reached():
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{what}: not after {PATIENCE} s\n{self.log.read_text(errors='replace')[-6000:]}")
            time.sleep(every)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    write_documents(tmp_path / "documents")
    started = Daemon(tmp_path)
    started.start()
    yield started
    started.kill()


def test_whatever_happens_to_the_daemon_the_served_index_ends_right(daemon: Daemon, tmp_path: Path) -> None:
    documents = tmp_path / "documents"
    daemon.wait_until(is_served(tmp_path), "the first refresh")
    (documents / "zeppelin.md").write_text("# Zeppelin\n\nThe company zeppelin leaves on Mondays.\n", encoding="utf-8")
    daemon.wait_until(is_served(tmp_path), "an edit while it runs")
    daemon.wait_until(lambda: daemon.runs(dg.DagsterRunStatus.SUCCESS) == 2, "the end of that run")
    for number in range(TRIES):
        text = f"# Zeppelin\n\nIt leaves on Tuesdays now, as notice {number} says.\n"
        (documents / "zeppelin.md").write_text(text, encoding="utf-8")
        daemon.wait_until(lambda: daemon.runs(dg.DagsterRunStatus.STARTED) == 1, "a run to be killed", every=0.1)
        daemon.kill()
        if daemon.runs(dg.DagsterRunStatus.STARTED):
            break
        # It ended between the look and the kill.
        daemon.start()
    assert daemon.runs(dg.DagsterRunStatus.STARTED) == 1
    (documents / "hr/leave.md").unlink()
    (documents / "airship.md").write_text("# Airship\n\nThe airship replaces the zeppelin.\n", encoding="utf-8")
    daemon.start()
    daemon.wait_until(is_served(tmp_path), "edits while it was down, after a killed run")


def is_served(root: Path) -> Callable[[], bool]:
    """Whether a reader finds exactly what a build from nothing over the documents of now would serve."""
    settings = settings_of(root, store=str(root / "oracle"))
    store = store_of(settings)
    for name in ("documents", "chunks"):
        STAGES[name](store, settings)
    wanted = set(rows_of(store, "SELECT doc_path, start_char, end_char, text FROM chunks"))

    looked_at = b""

    def reached() -> bool:
        nonlocal looked_at
        pointer = root / "store/promoted.json"
        served = pointer.read_bytes() if pointer.exists() else b""
        if served == looked_at:
            # A reader would find what it found at the last look.
            return False
        looked_at = served
        try:
            hits = Retriever.open(root / "store").search("zeppelin", k=1000)
        except NothingPromoted:
            return False
        return {(hit.doc_path, hit.start, hit.end, hit.text) for hit in hits} == wanted

    return reached
