"""The loop: what it says about the steps that are left, and how often it saves."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from acme_rag_pipeline.training import loop
from acme_rag_pipeline.training.loop import Schedule, train

STEPS_AN_EPOCH = 10


class Clock:
    """Stands for `time` in the loop: seconds pass where a test says so, however busy the machine is."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    return clock


class Line:
    """A weight that is drawn to zero, in steps of so many seconds."""

    def __init__(self, clock: Clock, seconds: float = 0.0) -> None:
        self.model: Any = torch.nn.Linear(2, 1)
        self.model.device = torch.device("cpu")
        self.clock, self.seconds = clock, seconds

    def batches(self, seed: int) -> list[list[int]]:
        return [[number] for number in range(STEPS_AN_EPOCH)]

    def backward(self, batch: list[int]) -> torch.Tensor:
        self.clock.sleep(self.seconds)
        loss = self.model.weight.square().sum() + self.model.bias.square().sum()
        loss.backward()
        return loss.detach()


def test_a_run_that_ends_with_an_epoch_counts_the_steps_up_to_there_and_its_rate_leaves_validation_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    monkeypatch.setattr(loop, "LOG_SECONDS", 0.0)
    caplog.set_level(logging.INFO)

    def validate(_: object) -> None:
        clock.sleep(100)

    curve = train(Line(clock, 1), Schedule(5, 1e-3, 0.1, 0, end_after=2), tmp_path / "c.pt", validate)
    found = [re.match(r"step (\d+) of (\d+), .* about (\d+) s left", line) for line in caplog.messages]
    steps = [tuple(map(int, match.groups())) for match in found if match]
    assert [(step, of) for step, of, _ in steps] == [(step, 20) for step in range(1, 21)]
    # The hundred seconds between the epochs would be ten for each step that follows them.
    assert [left for _, _, left in steps] == list(range(19, -1, -1))
    assert curve.pairs_per_second == pytest.approx(1)
    assert curve.seconds == pytest.approx(220), "what it cost is all of it"
    assert curve.steps[-1]["epoch"] == 2


def test_a_run_that_goes_on_knows_the_seconds_of_the_one_that_was_killed(tmp_path: Path, clock: Clock) -> None:
    class Killed(Line):
        steps = 0

        def backward(self, batch: list[int]) -> torch.Tensor:
            self.steps += 1
            if self.steps > STEPS_AN_EPOCH + 5:
                raise KeyboardInterrupt
            return super().backward(batch)

    schedule = Schedule(2, 1e-3, 0.1, 0)
    with pytest.raises(KeyboardInterrupt):
        train(Killed(clock, 1), schedule, tmp_path / "c.pt", lambda _: None)
    curve = train(Line(clock, 1), schedule, tmp_path / "c.pt", lambda _: None)
    assert (curve.earlier_seconds, curve.seconds) == (pytest.approx(10), pytest.approx(20))


@pytest.mark.parametrize("seconds_a_save", [0.0, 50.0])
def test_a_checkpoint_that_takes_long_is_written_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock, seconds_a_save: float
) -> None:
    saved = []
    real = loop.save_checkpoint

    def slow(checkpoint: Path, step: int, *state: Any) -> None:
        clock.sleep(seconds_a_save)
        saved.append(step)
        real(checkpoint, step, *state)

    monkeypatch.setattr(loop, "save_checkpoint", slow)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    if not seconds_a_save:
        monkeypatch.setattr(loop, "TIMES_A_CHECKPOINT", 0.0)
    train(Line(clock, 1), Schedule(1, 1e-3, 0.1, 0), tmp_path / "c.pt", lambda _: None)
    assert saved == ([1, STEPS_AN_EPOCH] if seconds_a_save else [*range(1, STEPS_AN_EPOCH + 1), STEPS_AN_EPOCH])
