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

from acme_rag_pipeline.embedding.base_model import resolve_base_model
from acme_rag_pipeline.embedding.encoder import load_model
from acme_rag_pipeline.settings import TrainingSettings
from acme_rag_pipeline.training import finetune

pytestmark = pytest.mark.slow
PROGRAM = textwrap.dedent(
    """
    import hashlib, os, sys
    from pathlib import Path
    from acme_rag_pipeline.embedding.base_model import resolve_base_model
    from acme_rag_pipeline.settings import TrainingSettings
    from acme_rag_pipeline.training import finetune
    finetune.CHECKPOINT_SECONDS = 0.0
    base = resolve_base_model("all-MiniLM-L6-v2", Path.cwd())
    passages = [f"Rule {i}: a colleague in team {i % 7} asks for form {i * 13} in week {i % 50}." for i in range(24)]
    queries = [f"which form for team {i % 7} in week {i % 50}" for i in range(24)]
    rows = finetune.TrainingRows(
        queries, range(24), passages, [str(i) for i in range(24)], [[] for _ in queries],
    )
    epochs, end_after, *scores = [float(number) for number in sys.argv[2:]] or [3, 0]
    settings = TrainingSettings(
        epochs=int(epochs), batch_size=4, precision="fp32", frozen_layers=int(os.environ["FROZEN_LAYERS"]),
        whitening=float(os.environ["WHITENING"]),
    )
    left = int(os.environ["VALIDATIONS"])

    def validate(model):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return scores.pop(0) if scores else None

    model, curve = finetune.finetune(
        base.folder, rows, settings, Path(sys.argv[1]), validate, "cpu",
        int(end_after) or None,
    )
    digest = hashlib.sha256()
    for name, weight in sorted(finetune.weights_of(model).items()):
        digest.update(weight.contiguous().numpy().tobytes())
    print(digest.hexdigest(), len(curve.steps), curve.best_epoch)
    """
)


def start(
    checkpoint: Path, *arguments: object, frozen: int = 0, whitening: float = 0.0, validations: int = 99
) -> subprocess.Popen[str]:
    """Arguments: epochs, epoch to end with (0: the last), and what validation says after each epoch.

    The process dies in the validation after so many.
    """
    command = [sys.executable, "-c", PROGRAM, str(checkpoint), *map(str, arguments)]
    environment = os.environ | {"FROZEN_LAYERS": str(frozen), "WHITENING": str(whitening)}
    environment["VALIDATIONS"] = str(validations)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)


@pytest.mark.parametrize(("frozen", "whitening"), [(0, 0.0), (3, 0.2)])
def test_a_killed_run_ends_with_the_same_weights(tmp_path: Path, frozen: int, whitening: float) -> None:
    unbroken, _ = start(tmp_path / "a.pt", frozen=frozen, whitening=whitening).communicate(timeout=200)
    broken = start(tmp_path / "b.pt", frozen=frozen, whitening=whitening)
    deadline = time.monotonic() + 100
    seen: set[str] = set()
    while len(seen) < 4 and broken.poll() is None and time.monotonic() < deadline:
        if (tmp_path / "b.pt").exists():
            seen.add(hashlib.sha256((tmp_path / "b.pt").read_bytes()).hexdigest())
        time.sleep(0.02)
    assert broken.poll() is None, "it ended before it could be killed"
    os.kill(broken.pid, signal.SIGKILL)
    broken.wait()
    resumed, _ = start(tmp_path / "b.pt", frozen=frozen, whitening=whitening).communicate(timeout=200)
    assert unbroken.split()[1] == "18"
    assert resumed == unbroken


def test_a_damaged_checkpoint_means_starting_again(tmp_path: Path) -> None:
    (tmp_path / "c.pt").write_bytes(b"not a checkpoint")
    done, _ = start(tmp_path / "c.pt").communicate(timeout=200)
    assert done.split()[1] == "18"


def test_validation_decides_which_epoch_is_kept_and_when_to_stop(tmp_path: Path) -> None:
    # Six steps an epoch. The second epoch is the best, two more without a better one are enough; the fifth never runs.
    chosen, _ = start(tmp_path / "d.pt", 5, 0, 0.3, 0.5, 0.4, 0.45, 0.9).communicate(timeout=200)
    refit, _ = start(tmp_path / "e.pt", 5, 2).communicate(timeout=200)
    assert chosen.split()[1:] == ["24", "2"]
    assert refit.split()[1:] == ["12", "None"]
    assert chosen.split()[0] == refit.split()[0], "a refit that ends with the twin's epoch follows the same recipe"


def test_a_run_killed_while_it_validates_judges_that_epoch_when_it_goes_on(tmp_path: Path) -> None:
    scores = (0.4, 0.6, 0.5)
    unbroken, _ = start(tmp_path / "a.pt", 3, 0, *scores).communicate(timeout=200)
    broken = start(tmp_path / "b.pt", 3, 0, *scores, validations=1)
    broken.communicate(timeout=200)
    assert broken.returncode == 9
    resumed, _ = start(tmp_path / "b.pt", 3, 0, *scores[1:]).communicate(timeout=200)
    assert unbroken.split()[2] == "2"
    assert resumed == unbroken


def test_passages_of_one_wording_are_no_negatives_of_each_other() -> None:
    passages = [f"Team {i % 7} hands in form {i * 13} and waits {i + 2} days." for i in range(8)]
    queries = ["how long does it take", "how long does it take", *(f"which form for team {i % 7}" for i in range(2, 8))]
    shared = [frozenset({0, 1})] * 2 + [frozenset[int]()] * 6
    base = resolve_base_model("all-MiniLM-L6-v2", Path.cwd()).folder

    def loss(groups: list[str], answers: list[frozenset[int]] | None) -> float:
        rows = finetune.TrainingRows(queries, range(8), passages, groups, [[] for _ in queries], answers=answers)
        work = finetune._Work(load_model(base, "cpu"), rows, TrainingSettings(precision="fp32"))
        return work.loss(list(range(8))).item()

    apart = [str(i) for i in range(8)]
    together = loss(apart, shared)
    assert together == pytest.approx(loss(["0", "0", *apart[2:]], None), rel=1e-6)
    assert together != pytest.approx(loss(apart, None), rel=1e-3)
