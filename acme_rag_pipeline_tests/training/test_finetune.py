"""Training: killed at any moment it goes on where it was and ends with the weights of an unbroken run."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
PROGRAM = textwrap.dedent(
    """
    import hashlib, sys
    from pathlib import Path
    import numpy as np
    from acme_rag_pipeline.embedding.base_model import resolve_base_model
    from acme_rag_pipeline.embedding.encoder import Encoder
    from acme_rag_pipeline.settings import TrainingSettings
    from acme_rag_pipeline.training import finetune
    finetune.CHECKPOINT_SECONDS = 0.0
    base = resolve_base_model("all-MiniLM-L6-v2", Path.cwd())
    passages = [f"Rule {i}: a colleague in team {i % 7} asks for form {i * 13} in week {i % 50}." for i in range(24)]
    queries = [f"which form for team {i % 7} in week {i % 50}" for i in range(24)]
    encoder = Encoder(base.folder, base.digest, "fp32")
    rows = finetune.TrainingRows(
        queries, range(24), passages, [str(i) for i in range(24)], [[] for _ in queries],
        encoder.encode_queries(queries), encoder.encode_passages(passages),
    )
    settings = TrainingSettings(epochs=3, batch_size=4, precision="fp32")
    model, curve = finetune.finetune(base.folder, rows, settings, Path(sys.argv[1]), lambda m: None, "cpu")
    digest = hashlib.sha256()
    for name, weight in sorted(finetune.weights_of(model).items()):
        digest.update(weight.contiguous().numpy().tobytes())
    print(digest.hexdigest(), len(curve.steps))
    """
)


def start(checkpoint: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(checkpoint)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def test_a_killed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    unbroken, _ = start(tmp_path / "a.pt").communicate(timeout=200)
    broken = start(tmp_path / "b.pt")
    deadline = time.monotonic() + 100
    seen: set[str] = set()
    while len(seen) < 4 and broken.poll() is None and time.monotonic() < deadline:
        if (tmp_path / "b.pt").exists():
            seen.add(hashlib.sha256((tmp_path / "b.pt").read_bytes()).hexdigest())
        time.sleep(0.02)
    assert broken.poll() is None, "it ended before it could be killed"
    os.kill(broken.pid, signal.SIGKILL)
    broken.wait()
    resumed, _ = start(tmp_path / "b.pt").communicate(timeout=200)
    assert unbroken.split()[1] == "18"
    assert resumed == unbroken


def test_a_damaged_checkpoint_means_starting_again(tmp_path: Path) -> None:
    (tmp_path / "c.pt").write_bytes(b"not a checkpoint")
    done, _ = start(tmp_path / "c.pt").communicate(timeout=200)
    assert done.split()[1] == "18"
