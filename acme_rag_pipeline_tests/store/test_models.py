"""What killed processes left of models goes, and what others are at work on stays, in whatever container they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from acme_rag_pipeline.store import models
from acme_rag_pipeline.store.layout import LockName, Store

# No process has it: the highest that Linux gives is 4194304.
OF_ANOTHER_CONTAINER = 2**22 + 1
DIGEST = "0" * 64


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def half_copied(store: Store, pid: int) -> Path:
    folder = store.work / f"model-{'f' * 16}-{pid}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weig")
    return folder


def install(store: Store, source: Path) -> None:
    models.install(store, DIGEST, source, ["model.safetensors"], {})
    assert (models.model_folder(store, DIGEST) / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("pid", [OF_ANOTHER_CONTAINER, os.getpid(), os.getppid()], ids=["another", "ours", "alive"])
def test_what_a_killed_process_left_goes_though_another_has_its_number_today(
    tmp_path: Path, source: Path, pid: int
) -> None:
    store = Store(tmp_path / "store")
    left = half_copied(store, pid)
    with store.writer("base_index"):
        install(store, source)
    assert not left.exists()


@pytest.mark.parametrize(("ours", "theirs"), [("writer", "training"), ("training", "writer")])
def test_what_another_container_is_copying_stays(
    tmp_path: Path, source: Path, ours: LockName, theirs: LockName
) -> None:
    store = Store(tmp_path / "store")
    copying = half_copied(store, OF_ANOTHER_CONTAINER)
    program = f"""
import sys
from pathlib import Path
from acme_rag_pipeline.store.layout import Store
with Store(Path({str(store.root)!r})).writer("another", lock={theirs!r}):
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with store.writer("here", lock=ours):
            install(store, source)
        other.communicate("")
    assert copying.exists()
