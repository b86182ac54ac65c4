"""A small training that tells what became of it, and the same as a process of its own that can be killed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from threadpoolctl import threadpool_info, threadpool_limits

from acme_rag_pipeline.setting_groups import TrainingSettings
from acme_rag_pipeline.training import finetune, loop
from acme_rag_pipeline.training.rows import TrainingRows
from acme_rag_pipeline_tests.increments.worker import fork_server
from acme_rag_pipeline_tests.shallow_base import shallow_base

PAIRS = 24
BATCH = 4
STEPS_AN_EPOCH = PAIRS // BATCH
KILLED_ITSELF = 9


class Trained(NamedTuple):
    """A digest of all weights, the number of steps in the curve, and the epoch that validation chose."""

    digest: str
    steps: int
    best_epoch: int | None


def train(
    checkpoint: Path,
    *,
    epochs: int = 3,
    end_after: int | None = None,
    scores: Sequence[float] = (),
    frozen: int = 0,
    whitening: float = 0.0,
    scale: float = 50.0,
    strategy: str = "full",
    dropout: float = 0.0,
    before_validation: Callable[[], None] = lambda: None,
) -> Trained:
    """Train the base model on a few made-up rules.

    Args:
        checkpoint: see `finetune`.
        epochs: over how many the learning rate falls.
        end_after: epoch to end with; None is the last.
        scores: what validation says after each epoch, nothing after the last of them.
        frozen: lower layers that do not train.
        whitening, scale, strategy, dropout: see `TrainingSettings`.
        before_validation: called when a validation begins.
    """
    passages = [f"Rule {i}: a colleague in team {i % 7} asks for form {i * 13} in week {i % 50}." for i in range(PAIRS)]
    queries = [f"which form for team {i % 7} in week {i % 50}" for i in range(PAIRS)]
    rows = TrainingRows(queries, range(PAIRS), passages, [str(i) for i in range(PAIRS)], [[] for _ in queries])
    settings = TrainingSettings(
        epochs=epochs,
        batch_size=BATCH,
        precision="fp32",
        frozen_layers=frozen,
        whitening=whitening,
        strategy=strategy,  # type: ignore[arg-type]
        dropout=dropout,
    ).model_copy(update={"scale": scale})
    left = list(scores)

    def validate(_: object) -> float | None:
        before_validation()
        return left.pop(0) if left else None

    model, curve = finetune.finetune(shallow_base(), rows, settings, checkpoint, validate, "cpu", end_after)
    digest = hashlib.sha256()
    for _, weight in sorted(finetune.weights_of(model).items()):
        digest.update(weight.contiguous().numpy().tobytes())
    return Trained(digest.hexdigest(), len(curve.steps), curve.best_epoch)


class Training:
    """A training in a process of its own that may kill itself in a validation or after a checkpoint.

    Args:
        checkpoint: see `finetune`.
        checkpoint_seconds: least time between two checkpoints inside an epoch; with 0 there is one after every step.
        validations: how many it survives.
        checkpoints: after which of them it is dead.
        given: of `train`.
    """

    def __init__(
        self,
        checkpoint: Path,
        *,
        checkpoint_seconds: float = loop.CHECKPOINT_SECONDS,
        validations: int = 99,
        checkpoints: int = 99,
        **given: Any,
    ) -> None:
        context = fork_server()
        self._incoming, outgoing = context.Pipe(duplex=False)
        arguments = (checkpoint, checkpoint_seconds, _threads(), validations, checkpoints, given, outgoing)
        self.process = context.Process(target=_train_and_tell, args=arguments, daemon=True)
        self.process.start()
        outgoing.close()

    def end(self) -> Trained:
        """Wait until it has ended by itself."""
        told = self._incoming.recv() if self._incoming.poll(200) else None
        self.process.join(30)
        assert isinstance(told, Trained), f"it told {told} and ended with {self.process.exitcode}"
        return told


def _threads() -> tuple[int, int]:
    """Threads of torch and of NumPy: sums of floats depend on how many add them up."""
    return torch.get_num_threads(), max(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")


def _train_and_tell(
    checkpoint: Path,
    checkpoint_seconds: float,
    threads: tuple[int, int],
    validations: int,
    checkpoints: int,
    given: dict[str, Any],
    out: Connection,
) -> None:
    left, saves_left, save_checkpoint = validations, checkpoints, loop.save_checkpoint

    def one_less() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os._exit(KILLED_ITSELF)

    def save(*state: Any) -> None:
        nonlocal saves_left
        save_checkpoint(*state)
        saves_left -= 1
        if saves_left == 0:
            os._exit(KILLED_ITSELF)

    loop.save_checkpoint = save
    loop.CHECKPOINT_SECONDS = checkpoint_seconds
    if not checkpoint_seconds:
        loop.TIMES_A_CHECKPOINT = 0
    torch.set_num_threads(threads[0])
    with threadpool_limits(threads[1], user_api="blas"):
        out.send(train(checkpoint, before_validation=one_less, **given))
