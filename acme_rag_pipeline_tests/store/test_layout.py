"""Who waits how long for the store."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from acme_rag_pipeline.store.layout import Store, StoreBusy


def test_hours_of_work_wait_longer_for_their_last_rows_than_a_refresh_for_its_first(tmp_path: Path) -> None:
    held, let_go = threading.Event(), threading.Event()

    def refresh() -> None:
        with Store(tmp_path).writer("base_index"):
            held.set()
            let_go.wait(60)

    other = threading.Thread(target=refresh)
    other.start()
    assert held.wait(60)
    ours = Store(tmp_path, wait_seconds=0.05)
    with pytest.raises(StoreBusy, match="base_index"), ours.writer("chunks"):
        pass
    timer = threading.Timer(0.5, let_go.set)
    timer.start()
    with ours.writer("fine_tuned_model", lock="training"), ours.writer("fine_tuned_model"):
        assert let_go.is_set()
    other.join()


def test_who_waits_is_told_on_which_other_host_the_writer_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another container the number of a process means nothing."""
    ours = Store(tmp_path, wait_seconds=0.05)
    monkeypatch.setattr(socket, "gethostname", lambda: "run-of-tonight")
    with Store(tmp_path).writer("chunks"):
        with pytest.raises(StoreBusy, match=rf"by process {os.getpid()} \(chunks"), ours.writer("documents"):
            pass
        monkeypatch.setattr(socket, "gethostname", lambda: "code-server")
        with (
            pytest.raises(StoreBusy, match=rf"by process {os.getpid()} on run-of-tonight \(chunks"),
            ours.writer("documents"),
        ):
            pass
