"""Fixtures: a small company, its settings, and one store that is built once for all tests that only read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline_tests import known_vectors

PROJECT = Path(__file__).parent.parent
LEAVE = """# Leave

## FLEX days

Every employee in the Netherlands has 27 FLEX days a year. FLEX days are paid annual leave. Ask for them in Tern at
least ten working days before the first day off. Your manager answers within three working days. Days that are left
at the end of December may be carried over, five at most, and lapse on the first of July. Nobody may be asked to work
on an approved FLEX day, and a day on which you fall ill turns into a Mend day when you report it the same morning.

## Evergreen

Evergreen is a paid sabbatical of six weeks after six years of service. It returns every five years after that.
Plan it with your manager nine months ahead, and hand over your work in writing. The six weeks are taken in one piece.
Laptop and badge stay at the office, and mail is forwarded to the colleague who stands in. People who leave the company
within a year after their Evergreen pay half of it back, unless their role was made redundant in the meantime.

## Mend days

Report sick before nine o'clock in Tern and tell your manager by phone. Mend days are paid in full for the first year
and at seventy percent in the second. After two weeks the company doctor calls you and agrees on a plan for the return.
A part-time return starts with four hours a day. You do not owe anybody but the doctor an explanation of your illness.
"""
TRAVEL = """# Travel

## Booking

Book trains and flights in Wayfare. Trips under five hours go by rail. Flights need the approval of the cost centre
owner when they cost more than 600 euros. Book at least fourteen days ahead; a later booking needs a reason. Economy is
the class for flights under six hours, premium economy for longer ones. Seats, one bag and a flexible fare may be added
when the meeting could still move. A rental car is for places that no train and no bus reaches within ninety minutes.

## Expenses

Hand in receipts in Ledgerly within thirty days after the trip. Without a receipt use form FRM-EX-09, which the
controller signs. Meals are paid by the day and need no receipt. Tips up to ten percent are fine where they are usual.
Your own car is paid at 0.23 euros a kilometre. Fines, minibars and films in the room are yours. Ledgerly pays on the
fifteenth and on the last day of every month, into the account that gets your salary.

## Hotels

Hotels in Rotterdam may cost 165 euros a night, hotels in London 210 euros. Breakfast is included in that limit. Above
it you need form FRM-TX-11 before the trip. During fairs the limit rises by a third, and the Treasury says when.

| City | Hotel limit | During fairs |
|---|---|---|
| Rotterdam | 165 | 220 |
| London | 210 | 280 |
"""
REMOTE = """# Remote work

## Anywhere Weeks

Employees may work from another country for thirty working days a year, at most fifteen of them in a row. The form is
FRM-IM-07, handed in twenty working days before departure. The Compass Desk decides within five working days. Countries
outside the list need the consent of Legal. You stay on the payroll of your contract country, and your insurance covers
the stay only when the form was approved. Working hours overlap with your team for four hours a day at least.

## Homebase agreement

With a Homebase agreement you work from home at least eighty percent of the time. Acme pays for a chair, a desk and a
screen, up to 750 euros, once in five years. The agreement is signed with form FRM-HB-12 and ends with three months of
notice from either side. A place in the office can be booked in Badger for the days on which you come in. The commuting
budget stops, and an allowance of two euros for each day at home takes its place.

## Hub days

Everybody else comes to the hub on eight days a month. The team chooses two of them together, the rest is up to you.
Hub days are counted from the badge, not from a list. Who cares for somebody at home may ask the manager for four days
instead, for half a year at a time, and Workplace Services only needs to know the number and not the reason for it.
"""

# Files that take longest. They begin first, so that no worker is left with one of them when the others are done.
LONGEST = (
    "increments/test_daemon.py",
    "training/test_finetune.py",
    "increments/test_kills.py",
    "evaluation/test_gate.py",
    "evaluation/test_contest_end_to_end.py",
    "training/test_candidate.py",
    "increments/test_readers.py",
    "test_pipeline.py",
)


# How long an example takes says how busy the machine is. In CI Hypothesis has loaded a profile of its own that says so too.
hypothesis.settings.register_profile(
    "busy machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
if hypothesis.settings.get_current_profile_name() == "default":
    hypothesis.settings.load_profile("busy machine")


def pytest_configure(config: pytest.Config) -> None:
    """One thread for each of several workers: threads that wait for a core that another worker uses wait by spinning."""
    if hasattr(config, "workerinput"):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Workers take the files in this order; a single process keeps the order of the folders."""
    if hasattr(config, "workerinput"):
        rank = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
        items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(autouse=True)
def _no_outside_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable and no `.env` of the person who runs the tests reaches a test."""
    for name in list(os.environ):
        if name.startswith(("ACME_RAG_", "OPENAI_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ACME_RAG_ROOT", str(tmp_path))


@pytest.fixture(autouse=True)
def _known_vectors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that an earlier test put through the same model is not computed again; tests of encoding are marked `encodes`."""
    if request.node.get_closest_marker("encodes") is None:
        known_vectors.remember(monkeypatch)


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """Three small documents in a folder."""
    folder = tmp_path / "documents"
    write_documents(folder)
    return folder


@pytest.fixture
def settings_for(tmp_path: Path) -> Callable[..., Settings]:
    """Settings over the documents of the test; keyword arguments override."""

    def make(**given: Any) -> Settings:
        named = {"documents": str(tmp_path / "documents"), "store": str(tmp_path / "store"), "lock_seconds": 10}
        return Settings.load(root=tmp_path, **(named | given))

    return make


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """The store of the test."""
    return Store(tmp_path / "store", wait_seconds=10)


def write_documents(folder: Path) -> None:
    """The small company's documents."""
    (folder / "hr").mkdir(parents=True)
    (folder / "hr/leave.md").write_text(LEAVE, encoding="utf-8")
    (folder / "travel.md").write_text(TRAVEL, encoding="utf-8")
    (folder / "remote.txt").write_text(REMOTE, encoding="utf-8")


def files_of(store: Store) -> dict[str, bytes]:
    """Every file of a store with its bytes, to see that nothing changed; a process that lives shows which run it works on."""
    return {
        path.relative_to(store.root).as_posix(): path.read_bytes()
        for path in sorted(store.root.rglob("*"))
        if path.is_file() and path.parent != store.work / "runs"
    }
