"""Training: killed at any moment it goes on where it was and ends with the weights of an unbroken run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from acme_rag_pipeline.embedding.base_model import resolve_base_model
from acme_rag_pipeline.embedding.encoder import load_model
from acme_rag_pipeline.setting_groups import TrainingSettings
from acme_rag_pipeline.settings import SettingsError
from acme_rag_pipeline.training.objective import Objective
from acme_rag_pipeline.training.rows import TrainingRows
from acme_rag_pipeline_tests.training.killable import KILLED_ITSELF, STEPS_AN_EPOCH, Training, train

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"frozen": 1, "whitening": 0.2},
        # What is drawn for each step goes on where it was.
        {"dropout": 0.1},
        {"strategy": "lora"},
        {"strategy": "query_only"},
    ],
    ids=lambda given: " ".join(map(str, given.items())) or "as it is",
)
def test_a_killed_run_ends_with_the_same_weights(tmp_path: Path, given: dict[str, Any]) -> None:
    # In this process: its hash seed is not that of the two others, which the fork server's children share.
    unbroken = train(tmp_path / "a.pt", **given)
    checkpoint = tmp_path / "b.pt"
    broken = Training(checkpoint, checkpoint_seconds=0, checkpoints=4, **given)
    broken.process.join(200)
    assert broken.process.exitcode == KILLED_ITSELF
    assert checkpoint.exists()
    resumed = Training(checkpoint, **given).end()
    assert unbroken.steps == 3 * STEPS_AN_EPOCH
    assert resumed == unbroken


def test_a_damaged_checkpoint_means_starting_again(tmp_path: Path) -> None:
    (tmp_path / "c.pt").write_bytes(b"not a checkpoint")
    assert train(tmp_path / "c.pt", epochs=1).steps == STEPS_AN_EPOCH


def test_validation_decides_which_epoch_is_kept_and_when_to_stop(tmp_path: Path) -> None:
    # The second epoch is the best, two more without a better one are enough; the fifth never runs.
    chosen = train(tmp_path / "d.pt", epochs=5, scores=(0.3, 0.5, 0.4, 0.45, 0.9))
    refit = train(tmp_path / "e.pt", epochs=5, end_after=2)
    assert (chosen.steps, chosen.best_epoch) == (4 * STEPS_AN_EPOCH, 2)
    assert (refit.steps, refit.best_epoch) == (2 * STEPS_AN_EPOCH, None)
    assert chosen.digest == refit.digest, "a refit that ends with the twin's epoch follows the same recipe"


def test_a_run_killed_while_it_validates_judges_that_epoch_when_it_goes_on(tmp_path: Path) -> None:
    scores = (0.4, 0.6, 0.5)
    unbroken = train(tmp_path / "a.pt", scores=scores)
    broken = Training(tmp_path / "b.pt", checkpoint_seconds=0, scores=scores, validations=1)
    broken.process.join(200)
    assert broken.process.exitcode == KILLED_ITSELF
    resumed = Training(tmp_path / "b.pt", scores=scores[1:]).end()
    assert unbroken.best_epoch == 2
    assert resumed == unbroken


def test_passages_of_one_wording_are_no_negatives_of_each_other() -> None:
    passages = [f"Team {i % 7} hands in form {i * 13} and waits {i + 2} days." for i in range(8)]
    queries = ["how long does it take", "how long does it take", *(f"which form for team {i % 7}" for i in range(2, 8))]
    shared = [frozenset({0, 1})] * 2 + [frozenset[int]()] * 6
    base = resolve_base_model("all-MiniLM-L6-v2", Path.cwd()).folder

    def loss(groups: list[str], answers: list[frozenset[int]] | None) -> float:
        rows = TrainingRows(queries, range(8), passages, groups, [[] for _ in queries], answers=answers)
        work = Objective(load_model(base, "cpu"), rows, TrainingSettings(precision="fp32"))
        return work.loss(list(range(8))).item()

    apart = [str(i) for i in range(8)]
    together = loss(apart, shared)
    assert together == pytest.approx(loss(["0", "0", *apart[2:]], None), rel=1e-6)
    assert together != pytest.approx(loss(apart, None), rel=1e-3)


@pytest.mark.parametrize("scale", [float("inf"), 1e38])
def test_a_loss_that_is_no_number_ends_the_training_before_it_reaches_a_weight(tmp_path: Path, scale: float) -> None:
    with pytest.raises(SettingsError, match=r"at step 1 of 6: .*Lower ACME_RAG_TRAINING__LEARNING_RATE") as raised:
        train(tmp_path / "a.pt", epochs=1, scale=scale)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_other_layers_means_starting_again(tmp_path: Path) -> None:
    alone = train(tmp_path / "a.pt", epochs=1)
    broken = Training(tmp_path / "b.pt", checkpoint_seconds=0, frozen=1, scores=(0.4, 0.6), validations=1)
    broken.process.join(200)
    assert broken.process.exitcode == KILLED_ITSELF
    assert train(tmp_path / "b.pt", epochs=1) == alone
