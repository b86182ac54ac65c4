"""The law of increments: after any history of edits the store equals a build from nothing, and nothing is done twice."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from acme_rag_pipeline.retrieval.passage_encoder import BASE_PREFIX, PassageEncoder, install_base, newest_candidate
from acme_rag_pipeline.retrieval.sentences import sentences
from acme_rag_pipeline.serving import decisions, serve
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import live_passages
from acme_rag_pipeline.store.promotion import Recipe
from acme_rag_pipeline_tests.conftest import LEAVE, REMOTE, TRAVEL, files_of
from acme_rag_pipeline_tests.increments import oracle
from acme_rag_pipeline_tests.increments.interrupted import Killed, before_write
from acme_rag_pipeline_tests.llm_server import Act, ScriptedLLM, error, in_other_words, prompt_of
from acme_rag_pipeline_tests.shallow_base import shallow_base

pytestmark = [pytest.mark.slow, pytest.mark.encodes]
# Long enough that a section of two of them is a chunk of its own.
PARAGRAPHS = [
    "The Kestrel network lets you in from outside the office. Install it from the Tool Chest, log in with your badge "
    "number, and keep it on while you read mail. It closes after eight hours. Whoever loses a laptop calls the Watch "
    "at once, at any hour, and changes the passphrase within a day. The Watch locks the machine from afar.",
    "Invoices over 5,000 euros need two signatures. The second one comes from the controller of the cost centre. Send "
    "the paper to Accounts Payable, room 4.12, with the order number on the first page. Without an order number the "
    "invoice goes back to the supplier, and the fourteen days of payment start again from nothing.",
    "New colleagues get a Buddy for their first ninety days. The Buddy eats lunch with them on the first day, shows "
    "the building, and knows whom to ask. After thirty days both write five lines to People Operations. The Buddy is "
    "never the manager, and nobody has more than one new colleague at a time.",
    "Meeting rooms are booked in Badger for two hours at most. A room that stays empty for ten minutes is free again. "
    "The Aquarium on floor two has the only camera for fourteen people. Food is allowed in the Kitchen Table room. "
    "Put the chairs back, wipe the board, and switch the heating off when you leave after six.",
]
LINES = ["Draft of March.", "See also the intranet.", "Owner: Workplace Services.", "Kestrel replaces the old VPN."]
START = {"hr/leave.md": LEAVE, "travel.md": TRAVEL, "remote.txt": REMOTE}
BROKEN = "Käse und Brötchen".encode("latin-1")
YEAR_NS = 365 * 86_400 * 10**9
CURATED = [
    {"query": "how long is the sabbatical", "doc_path": "hr/leave.md", "quote": "a paid sabbatical of six weeks"},
    {"query": "hotel limit in London", "doc_path": "travel.md", "quote": "hotels in London 210 euros"},
    {"query": "whom do I ask about the gym", "doc_path": "gone.md", "quote": "the gym"},
]
GOLDEN = [
    ("q1", "working from abroad", "remote.txt", "work from another country for thirty working days"),
    ("q2", "lost my receipt", "travel.md", "Without a receipt use form FRM-EX-09"),
    ("q3", "may I take my days next year?", "hr/leave.md", "may be carried over, five at most"),
]


def _without(parts: list[str], number: int) -> list[str]:
    return [part for n, part in enumerate(parts) if n != number % len(parts)]


def _section_last(text: str, number: int) -> str:
    head, *sections = text.split("\n## ")
    if sections:
        sections.append(sections.pop(number % len(sections)))
    return "\n## ".join([head, *sections])


def _middle(text: str, number: int) -> str:
    blocks = text.split("\n\n")
    blocks[len(blocks) // 2] += f" {LINES[number % len(LINES)]}"
    return "\n\n".join(blocks)


EDITS: dict[str, Callable[[str, int], str]] = {
    "insert a line at the top": lambda text, n: f"{LINES[n % len(LINES)]}\n\n{text}",
    "edit a paragraph in the middle": _middle,
    "append": lambda text, n: f"{text}\n## Later\n\n{PARAGRAPHS[n % len(PARAGRAPHS)]}\n",
    "delete a paragraph": lambda text, n: "\n\n".join(_without(text.split("\n\n"), n)),
    "move a section": _section_last,
    "rename a heading": lambda text, n: text.replace("\n## ", f"\n## New {n} ", 1),
    "same size": lambda text, n: text.replace("e", "xyz"[n % 3], 3),
}


class Histories(RuleBasedStateMachine):
    """A documents folder that people work in, and a store that follows."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(dir=SHARED["root"]))
        self.documents = self.root / "documents"
        self.store = Store(self.root / "store", wait_seconds=10)
        self.files: dict[str, bytes] = {}
        self.past: list[bytes] = []
        self.ticks = 0
        self.passages_ever: set[str] = set()
        self.queries_ever: set[str] = set()
        self.watch = oracle.watched()
        self.work = self.watch.__enter__()
        self.settings = _settings(self.root)
        self.store.root.mkdir()
        self.store.models.symlink_to(SHARED["root"] / "models", target_is_directory=True)
        oracle.adopt_headed_candidate(self.store, self.settings)

    @initialize()
    def some_documents(self) -> None:
        for path, text in START.items():
            self._write(path, text.encode())
        self._run(oracle.EVERYTHING)

    @rule(data=st.data(), edit=st.sampled_from(sorted(EDITS)), number=st.integers(0, 9))
    def edit(self, data: st.DataObject, edit: str, number: int) -> None:
        path = self._some_path(data)
        before = self.files[path].decode("utf-8", "replace")
        self._write(path, EDITS[edit](before, number).encode())

    @rule(data=st.data(), paragraphs=st.lists(st.sampled_from(PARAGRAPHS), min_size=1, max_size=3))
    def create(self, data: st.DataObject, paragraphs: list[str]) -> None:
        sections = "\n\n".join(f"## Part {n}\n\n{text}" for n, text in enumerate(paragraphs))
        name = data.draw(st.sampled_from("ab"), label="name")
        self._write(f"new/{name}.md", f"# Notes {name}\n\n{sections}\n".encode())

    @rule(data=st.data(), what=st.sampled_from(["touch", "rename", "duplicate", "damage", "delete", "bring back"]))
    def handle(self, data: st.DataObject, what: str) -> None:
        """What happens to whole files; `bring back` also mends a damaged one."""
        path = self._some_path(data)
        content, stamp = self.files[path], (self.documents / path).stat().st_mtime_ns
        if what == "duplicate":
            self._write(f"copies/{Path(path).name}", content)
        elif what == "damage":
            self._write(path, BROKEN)
        elif what == "bring back":
            self._write(path, data.draw(st.sampled_from(self.past), label="content"))
        elif what == "touch":
            self._write(path, content)
        elif what == "rename":
            self._remove(path)
            self._write(f"moved/{Path(path).name}", content, stamp)
        elif len(self.files) > 1:
            self._remove(path)

    @rule(data=st.data())
    def edit_of_the_same_size_in_the_same_instant(self, data: st.DataObject) -> None:
        """A time stamp that is not older than the scan proves nothing."""
        path = self._some_path(data)
        later = time.time_ns() + YEAR_NS
        self._write(path, self.files[path], later)
        self._run(oracle.REFRESH)
        self._write(path, self.files[path].replace(b"e", b"z", 3), later)

    @rule(data=st.data())
    def back_to_the_start(self, data: st.DataObject) -> None:
        """The data versions of an earlier run return, with or without a refresh in between."""
        if data.draw(st.booleans(), label="refreshed before"):
            self._run(oracle.REFRESH)
        for path in self.files.keys() - START.keys():
            self._remove(path)
        for path, text in START.items():
            self._write(path, text.encode())
        self._run(oracle.REFRESH)

    # What the pipeline does

    @rule()
    def refresh(self) -> None:
        self._run(oracle.REFRESH)

    @rule()
    def run_everything(self) -> None:
        self._run(oracle.EVERYTHING)
        self._equals_a_build_from_nothing()

    def teardown(self) -> None:
        try:
            self.run_everything()
        finally:
            self.watch.__exit__(None, None, None)
            shutil.rmtree(self.root)

    def _run(self, stages: tuple[oracle.Stage, ...]) -> None:
        oracle.run(self.store, self.settings, stages)
        oracle.assert_tables_hold_the_chunks(self.store, SHARED["plain"])
        self._nothing_of_gone_chunks_is_left()
        for passage in live_passages(self.store.warehouse):
            self.passages_ever |= {passage.rendered("none"), passage.rendered("heading_path"), *sentences(passage.text)}
        if stages == oracle.EVERYTHING:
            asked = oracle.rows(self.store, "SELECT query FROM pairs UNION SELECT query FROM golden_queries")
            self.queries_ever |= {row["query"] for row in asked}
        # Law (d): each distinct input once, over the whole history.
        assert sorted(self.work.passages) == sorted(self.passages_ever)
        self._each_query_and_prompt_once()

    def _each_query_and_prompt_once(self) -> None:
        assert sorted(self.work.queries) == sorted(self.queries_ever)
        assert len(self.work.prompts) == len(set(self.work.prompts))

    def _equals_a_build_from_nothing(self) -> None:
        done = self._done()
        fresh = oracle.from_nothing(self.root / "fresh", self.store, self.settings, oracle.EVERYTHING)
        oracle.assert_same_rows(self.store, fresh)
        oracle.assert_same_tables(self.store, fresh)
        assert self._done() == done, "the caches lack something"
        shutil.rmtree(fresh.root)

    def _done(self) -> list[list[str]]:
        return [list(self.work.passages), list(self.work.queries), list(self.work.prompts)]

    def _nothing_of_gone_chunks_is_left(self) -> None:
        live = {row["chunk_id"] for row in oracle.rows(self.store, "SELECT chunk_id FROM chunks")}
        for row in oracle.rows(self.store, "SELECT chunk_id, negatives FROM training_pairs"):
            assert live.issuperset([row["chunk_id"], *row["negatives"]])
        assert live.issuperset(row["chunk_id"] for row in oracle.rows(self.store, "SELECT chunk_id FROM pairs"))

    # The folder

    def _some_path(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.files)), label="file")

    def _write(self, path: str, content: bytes, stamp: int | None = None) -> None:
        # Time stamps in the past, each its own: only then is a file's stat trusted and the shortcut under test.
        self.ticks += 1
        target = self.documents / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        stamp = stamp or 1_600_000_000 * 10**9 + self.ticks * 10**9
        os.utime(target, ns=(stamp, stamp))
        self.files[path] = content
        if content != BROKEN:
            self.past.append(content)

    def _remove(self, path: str) -> None:
        (self.documents / path).unlink()
        del self.files[path]


class HistoriesWithAnLLM(Histories):
    """The same with an LLM, whose queries stand in tables of their own: it is down, another one, or done without.

    Readers get the base or the candidate, with these queries or without; promotions and rollbacks are by hand. A run may end
    before any of the writes of `served_index`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down = False
        self.answered: list[str] = []
        self.server = ScriptedLLM(self._answer)
        self.server.__enter__()
        self.with_llm = {"generator": "openai", "openai_base_url": self.server.url}
        self.settings = self.settings.model_copy(update=self.with_llm)
        self.served: list[Counter[str]] = []

    @rule(down=st.booleans(), who=st.sampled_from(["openai", "openai", "offline", "both"]), llm=st.sampled_from("ab"))
    def another_generator(self, down: bool, who: str, llm: str) -> None:
        self.down = down
        self.settings = self.settings.model_copy(update={"generator": who, "llm": llm})

    @rule(weight=st.sampled_from([0.0, 1.0, 1.0]))
    def weigh_queries(self, weight: float) -> None:
        retrieval = self.settings.retrieval.model_copy(update={"expansion_weight": weight})
        self.settings = self.settings.model_copy(update={"retrieval": retrieval})

    @rule(candidate=st.booleans(), recipe=st.sampled_from(["dense", "hybrid", "hybrid"]))
    def promote(self, candidate: bool, recipe: Recipe) -> None:
        """What the settings weigh is part of a promoted recipe."""
        base = PassageEncoder(install_base(self.store, self.settings).digest, BASE_PREFIX)
        encoder = (newest_candidate(self.store) if candidate else None) or base
        decisions.append(
            self.store,
            encoder=encoder,
            recipe=recipe,
            verdict=decisions.PROMOTED,
            reason="by hand",
            fusion=self.settings.retrieval.model_dump() if recipe == "hybrid" else None,
        )

    @rule()
    def roll_back(self) -> None:
        self._run(oracle.REFRESH)
        with contextlib.suppress(serve.NoSuchPromotion):
            serve.rollback(self.store, self.settings)
        self._run(oracle.REFRESH)

    @rule(write=st.integers(0, 40), stages=st.sampled_from([oracle.REFRESH, oracle.EVERYTHING]))
    def killed(self, write: int, stages: tuple[oracle.Stage, ...]) -> None:
        """Before that write of `served_index`, if it has so many."""
        oracle.run(self.store, self.settings, stages[:-1])
        before = self.served[-1]
        with contextlib.suppress(Killed), before_write(write):
            serve.serve(self.store, self.settings)
        # What readers open is what was served before or what would be served next, in each table whole.
        possible = [before, self._passages()]
        for arm, live in oracle.live_tables(self.store).items():
            if arm == "promoted" or live.expanded:
                assert Counter(row["text"] for row in live.rows(self.store).values()) in possible, arm

    def _answer(self, number: int, body: dict[str, Any]) -> Act:
        if self.down:
            return error(402)
        self.answered.append(prompt_of(body) + body["model"])
        return in_other_words(number, body)

    def _passages(self) -> Counter[str]:
        return Counter(passage.text for passage in live_passages(self.store.warehouse))

    def _run(self, stages: tuple[oracle.Stage, ...]) -> None:
        super()._run(stages)
        self.served.append(self._passages())

    def _each_query_and_prompt_once(self) -> None:
        """General questions are encoded too, and headings, which the embedded generator writes anew beside an LLM."""
        assert len(self.work.queries) == len(set(self.work.queries))
        assert self.queries_ever <= set(self.work.queries)
        assert len(self.answered) == len(set(self.answered)), "paid twice"

    def _done(self) -> list[list[str]]:
        return [list(self.work.passages), list(self.work.queries), list(self.answered)]

    def _equals_a_build_from_nothing(self) -> None:
        before = files_of(self.store)
        again = oracle.run(self.store, self.settings, oracle.EVERYTHING)
        changed = {stage for stage, result in again.items() if not result.unchanged}
        # What an LLM has not answered is asked again.
        assert changed <= ({"synthetic_pairs"} if self.down else set())
        if not changed:
            assert files_of(self.store) == before
        was_down, self.down = self.down, True
        super()._equals_a_build_from_nothing()
        self.down = was_down

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self.server.__exit__()


SHARED: dict[str, Any] = {}
BUDGET = settings(
    # LAW_HISTORIES=200 searches for an hour.
    max_examples=int(os.environ.get("LAW_HISTORIES", "2")),
    stateful_step_count=8,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def _settings(root: Path) -> Settings:
    (root / "golden").mkdir()
    _lines(root / "pairs.jsonl", CURATED)
    _lines(root / "golden/queries.jsonl", [{"query_id": i, "query": query} for i, query, _, _ in GOLDEN])
    _lines(root / "golden/qrels.jsonl", [{"query_id": i, "doc_path": d, "quote": q} for i, _, d, q in GOLDEN])
    return Settings.load(
        root=root,
        documents="documents",
        store="store",
        curated_pairs="pairs.jsonl",
        golden="golden",
        generator="offline",
        base_model=str(shallow_base()),
        # Low enough that the filter has work in a collection of ten chunks.
        pairs={"round_trip_top_k": 1, "queries_per_chunk": 2},
        serving={"reader_grace_seconds": 0},
    )


def _lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@functools.cache
def plain_model() -> oracle.PlainModel:
    return oracle.PlainModel(shallow_base())


@pytest.fixture(autouse=True)
def _shared(tmp_path: Path) -> Iterator[None]:
    SHARED.update(root=tmp_path, plain=plain_model())
    (tmp_path / "models").mkdir()
    yield
    SHARED.clear()


def test_any_history_equals_a_build_from_nothing() -> None:
    run_state_machine_as_test(Histories, settings=BUDGET)


def test_any_history_with_an_llm_equals_a_build_from_nothing() -> None:
    run_state_machine_as_test(HistoriesWithAnLLM, settings=BUDGET)


def test_text_that_comes_back_brings_its_pairs_back() -> None:
    """A refresh retracts the pairs of gone text; the next full run must not mistake the old fingerprint for its work."""
    history = Histories()
    history.some_documents()
    history._write("travel.md", b"# Travel\n\nNothing any more.\n")
    history.refresh()
    history._write("travel.md", TRAVEL.encode())
    history.refresh()
    history.teardown()
