"""`kill -9` at random moments of every stage, edits in between: the rerun ends where a build from nothing ends.

`ACME_RAG_TEST_KILLS` sets the number of kills, `ACME_RAG_TEST_SEED` the moments and the edits (the same edits on a machine
of any speed), and `ACME_RAG_TEST_GENERATOR=openai` lets a scripted LLM write the queries.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from acme_rag_pipeline.retrieval import Retriever
from acme_rag_pipeline.retrieval.expanded_index import EXPANDED_ARMS
from acme_rag_pipeline.retrieval.passage_encoder import newest_candidate
from acme_rag_pipeline.store import vectors
from acme_rag_pipeline.store.arms_file import known_arms
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.promotion import NothingPromoted, read_pointer
from acme_rag_pipeline_tests.conftest import LEAVE, REMOTE, TRAVEL, write_documents
from acme_rag_pipeline_tests.increments import oracle
from acme_rag_pipeline_tests.increments.worker import (
    BATCH,
    REFRESH,
    STAGES,
    Run,
    create_warehouse,
    fork_server,
    rows_of,
    settings_of,
    store_of,
    write_judged_sets,
)
from acme_rag_pipeline_tests.llm_server import ScriptedLLM, in_other_words
from acme_rag_pipeline_tests.shallow_base import shallow_base

pytestmark = pytest.mark.slow
# Read from the environment here: the fixture that shields tests from outside settings removes it later.
KILLS = int(os.environ.get("ACME_RAG_TEST_KILLS") or 5)
GENERATOR = os.environ.get("ACME_RAG_TEST_GENERATOR") or "offline"
SEED = int(os.environ.get("ACME_RAG_TEST_SEED") or 20)
KILLS_BETWEEN_CHECKS = 34
# About as many as `served_index` does with a candidate and the passages' own queries.
WRITES = 20
KILLS_OF_SERVING = 3
WITHOUT_TRAINING = tuple(s for s in STAGES if s not in ("fine_tuned_model", "evaluation_report", "promoted_retriever"))
CURATED = [
    {"query": "days off in the Netherlands", "doc_path": "hr/leave.md", "quote": "27 FLEX days a year"},
    {"query": "train or plane", "doc_path": "travel.md", "quote": "Trips under five hours go by rail."},
    {"query": "pay for a desk at home", "doc_path": "remote.txt", "quote": "Acme pays for a chair, a desk and a"},
]
GOLDEN = [
    {"query_id": "a", "query": "How long is a sabbatical?", "doc_path": "hr/leave.md", "quote": "six weeks after six"},
    {"query_id": "b", "query": "hotel limit in London", "doc_path": "travel.md", "quote": "hotels in London 210 euros"},
    {"query_id": "c", "query": "Which form for working abroad?", "doc_path": "remote.txt", "quote": "FRM-IM-07"},
]
# What the law compares: every column but times. Tombstones are memory of what is gone, no live document.
LIVE_TABLES = {
    "documents": "SELECT * EXCLUDE (mtime_ns, scanned_at_ns) FROM documents WHERE status <> 'deleted' ORDER BY ALL",
    **{
        name: f"SELECT * FROM {name} ORDER BY ALL"
        for name in (
            "chunks",
            "curated_pairs",
            "pairs",
            "training_pairs",
            "heading_queries",
            "golden_queries",
            "golden_judgements",
        )
    },
}
Passages = frozenset[tuple[str, int, int, str]]


class Company:
    """A folder of documents under edit, the store over it, and every state that readers may ever have seen."""

    def __init__(self, root: Path, chance: random.Random) -> None:
        self.root, self.chance = root, chance
        # How often readers look depends on how fast the machine is: they draw from a generator of their own.
        self.readers = random.Random(SEED + 2)
        self.documents = root / "documents"
        write_documents(self.documents)
        write_judged_sets(root, CURATED, GOLDEN)
        self.store: Store = store_of(settings_of(root))
        self.snapshots: list[dict[str, str]] = [self.files()]
        self.states: list[Passages] = []
        self.served = 0
        self.written = 0
        self.reader: Retriever | None = None

    def files(self) -> dict[str, str]:
        return {
            path.relative_to(self.documents).as_posix(): path.read_text(encoding="utf-8")
            for path in sorted(self.documents.rglob("*"))
            if path.is_file()
        }

    def write(self, files: dict[str, str]) -> None:
        for name in self.files().keys() - files.keys():
            (self.documents / name).unlink()
        for name, text in files.items():
            path = self.documents / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                path.write_text(text, encoding="utf-8")

    def edit(self) -> str:
        """One to three random edits. Returns what was done."""
        kinds: tuple[Callable[[dict[str, str]], None], ...] = (
            self._line, self._line, self._swap, self._rename, self._delete, self._add, self._revert,
        )  # fmt: skip
        done = []
        for _ in range(self.chance.randint(1, 3)):
            kind = self.chance.choice(kinds)
            files = self.files()
            kind(files)
            self.write(files)
            done.append(kind.__name__)
        self.snapshots.append(self.files())
        return "".join(done)

    def _line(self, files: dict[str, str]) -> None:
        name = self.chance.choice(sorted(files))
        lines = files[name].splitlines(keepends=True)
        self.written += 1
        lines.insert(self.chance.randint(0, len(lines)), f"Notice {self.written} was put up on the blackboard.\n")
        files[name] = "".join(lines)

    def _swap(self, files: dict[str, str]) -> None:
        name = self.chance.choice(sorted(files))
        sections = files[name].split("\n## ")
        self.chance.shuffle(sections)
        files[name] = "\n## ".join(sections)

    def _rename(self, files: dict[str, str]) -> None:
        name = self.chance.choice(sorted(files))
        self.written += 1
        files[f"moved/{self.written}.md"] = files.pop(name)

    def _delete(self, files: dict[str, str]) -> None:
        if len(files) > 2:
            del files[self.chance.choice(sorted(files))]

    def _add(self, files: dict[str, str]) -> None:
        self.written += 1
        section = self.chance.choice("\n".join((LEAVE, TRAVEL, REMOTE)).split("\n## ")[1:])
        files[f"new/{self.written}.md"] = f"# Circular {self.written}\n\n## {section}"

    def _revert(self, files: dict[str, str]) -> None:
        files.clear()
        files.update(self.chance.choice(self.snapshots))

    def note_state(self, scratch: Path) -> None:
        """Remember what a finished run over the documents of now serves, from the stages that need no model."""
        settings = settings_of(self.root, store=str(scratch))
        store = store_of(settings)
        for name in ("documents", "chunks"):
            STAGES[name](store, settings)
        self.states.append(passages_of(store))
        shutil.rmtree(scratch)

    def read(self) -> str:
        """What readers see now must be one state that a run has served, and never an older one.

        Now and then it is a reader who opens the store anew, else one that has lived through earlier kills.
        """
        try:
            if self.reader is None or self.readers.random() < 0.2:
                self.reader = Retriever.open(self.store.root)
            hits = self.reader.search("notice about hotels and FLEX days", k=1000)
        except NothingPromoted:
            assert not self.store.pointer.exists()
            assert self.served == 0, "something was served before"
            return "nothing"
        seen = frozenset((hit.doc_path, hit.start, hit.end, hit.text) for hit in hits)
        assert len(seen) == len(hits)
        possible = [n for n, state in enumerate(self.states) if state == seen]
        assert possible, f"a mix of states: {sorted(hit.text[:40] for hit in hits)}"
        assert possible[-1] >= self.served, "an older state than was served before"
        # A reverted folder looks like its older self: take the earliest that fits.
        self.served = min(n for n in possible if n >= self.served)
        return f"state {self.served}"


def passages_of(store: Store) -> Passages:
    """The chunks of a store as readers see them."""
    return frozenset(rows_of(store, "SELECT doc_path, start_char, end_char, text FROM chunks"))  # type: ignore[arg-type]


def test_a_warehouse_that_was_being_created_is_created_by_the_next_run(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    unfinished = 0
    context = fork_server()
    for number in range(12):
        path = tmp_path / str(number) / "warehouse.duckdb"
        incoming, outgoing = context.Pipe(duplex=False)
        process = context.Process(target=create_warehouse, args=(path, outgoing), daemon=True)
        process.start()
        outgoing.close()
        assert incoming.recv() == "begin"
        incoming.poll(chance.uniform(0, 0.08))
        unfinished += not incoming.poll()
        process.kill()
        process.join()
        assert rows_of(Store(path.parent), "SELECT count(*) FROM stages") == [(0,)]
        assert [left.name for left in path.parent.iterdir()] == [path.name]
    assert unfinished


def test_a_run_that_was_killed_at_any_moment_is_healed_by_the_next(tmp_path: Path) -> None:
    with ScriptedLLM(in_other_words) as server:
        _kill_and_heal(tmp_path, {"generator": GENERATOR, "openai_base_url": server.url})
    arms = known_arms(store_of(settings_of(tmp_path / "company")))
    assert set(EXPANDED_ARMS) & arms.keys() == (set(EXPANDED_ARMS) if server.requests else set())


def _kill_and_heal(tmp_path: Path, given: dict[str, Any]) -> None:
    # What happens after a run has begun depends on how fast the machine is, and must not move the draws of the edits.
    chance, moments = random.Random(SEED), random.Random(SEED + 1)
    by_llm = given["generator"] == "openai"
    company = Company(tmp_path / "company", chance)
    company.note_state(tmp_path / "scratch")
    lengths = _measured(tmp_path / "measured", given)
    killed: Counter[str] = Counter()
    edits = 0
    promote: str | None = None
    known: set[str] = set()
    unsure: set[str] = set()
    while sum(killed.values()) < KILLS:
        if chance.random() < 0.6:
            company.edit()
            company.note_state(tmp_path / "scratch")
            edits += 1
        if chance.random() < 0.3:
            promote = chance.choice((None, "candidate", "base"))
        stages = chance.choice((tuple(STAGES), REFRESH))
        target = chance.choice(stages)
        write, moment, heals = chance.randrange(WRITES), moments.random(), moments.random() < 0.2
        dies_before = write if by_llm and target == "served_index" else None
        run = Run.start(company.root, stages=stages, promote=promote, dies_before=dies_before, **given)
        if not run.listen(600, until=target):
            pytest.fail(f"{target} was never entered; the run is in {run.stage}")
        run.listen(600 if dies_before is not None else moment * lengths[target])
        run.kill()
        assert not run.error, run.error
        if not run.done:
            killed[run.stage] += 1
        _no_more_than_a_batch_twice(run, known, unsure, by_llm=by_llm)
        company.read()
        check = not run.done and (sum(killed.values()) % KILLS_BETWEEN_CHECKS == 0 or sum(killed.values()) == KILLS)
        if check or heals:
            healed = Run.start(company.root, promote=promote, **given).end()
            assert healed.done, healed.error
            _no_more_than_a_batch_twice(healed, known, unsure, by_llm=by_llm)
            company.read()
            assert company.states[company.served] == company.states[-1], "an old state after a finished run"
        if check:
            _assert_the_law(company, tmp_path / "fresh", given)
    print(f"\nseed {SEED}: {sum(killed.values())} kills, {edits} rounds of edits; by stage {dict(killed)}")
    assert sum(killed.values()) >= KILLS


def test_tables_with_queries_that_a_kill_cut_short_are_healed_by_the_next_run(tmp_path: Path) -> None:
    """Before one of the writes of `served_index`; no model is trained, so that there is time for more of them."""
    chance = random.Random(SEED)
    company = Company(tmp_path / "company", chance)
    company.note_state(tmp_path / "scratch")
    with ScriptedLLM(in_other_words) as server:
        given: dict[str, Any] = {"generator": "openai", "openai_base_url": server.url}
        settings = settings_of(company.root, **given)
        oracle.adopt_headed_candidate(company.store, settings)
        for dies_before in (None, *sorted(chance.sample(range(WRITES), KILLS_OF_SERVING)), None):
            if dies_before is not None:
                company.edit()
                company.note_state(tmp_path / "scratch")
            stages = REFRESH if dies_before is not None and chance.random() < 0.5 else WITHOUT_TRAINING
            promote = "candidate" if dies_before is None else chance.choice(("candidate", "base"))
            run = Run.start(company.root, stages=stages, promote=promote, dies_before=dies_before, **given)
            assert run.listen(600)
            run.kill()
            assert not run.error, run.error
            assert run.done or (dies_before is not None and run.stage == "served_index")
            company.read()
        assert company.states[company.served] == company.states[-1]
        fresh = oracle.from_nothing(tmp_path / "fresh", company.store, settings, oracle.EVERYTHING)
    assert set(EXPANDED_ARMS) <= known_arms(company.store).keys()
    oracle.assert_same_rows(company.store, fresh)
    oracle.assert_same_tables(company.store, fresh)
    _assert_no_litter(company.store)


def _measured(root: Path, given: dict[str, Any]) -> dict[str, float]:
    """How long each stage of a run over an empty store takes, so that kills spread over all of it."""
    write_documents(root / "documents")
    write_judged_sets(root, CURATED, GOLDEN)
    run = Run.start(root, **given).end()
    assert run.done, run.error
    entered = [(name, at) for kind, name, at in run.told if kind in ("stage", "done")]
    return {name: after - at for (name, at), (_, after) in itertools.pairwise(entered)}


def _no_more_than_a_batch_twice(run: Run, known: set[str], unsure: set[str], *, by_llm: bool) -> None:
    """Of inputs that earlier runs worked on, only those of a batch in which a run was killed may come again."""
    base = run_base()
    for kind, who in (("encoded", base), ("answered", "offline")):
        if kind == "answered" and by_llm:
            # The embedded generator's are the authors' headings then, which are kept with the training set and nowhere else.
            continue
        batches = run.batches(kind, who)
        for batch in batches:
            again = {f"{kind} {h}" for h in batch} & known
            assert again <= unsure, f"{kind} again: {len(again - unsure)} inputs that were committed"
            known |= {f"{kind} {h}" for h in batch}
        unsure -= {f"{kind} {h}" for batch in batches[:-1] for h in batch}
        if run.done:
            unsure -= {f"{kind} {h}" for batch in batches for h in batch}
        else:
            # An answer is reported by itself, a batch of them is committed together.
            last = batches[-1:] if kind == "encoded" else batches[-BATCH:]
            unsure |= {f"{kind} {h}" for batch in last for h in batch}


def run_base() -> str:
    """Digest of the base model."""
    from acme_rag_pipeline.embedding.base_model import resolve_base_model

    return resolve_base_model(str(shallow_base()), Path()).digest


def _assert_the_law(company: Company, fresh: Path, given: dict[str, Any]) -> None:
    """Compare the store with a build from nothing over the same documents, and the served table with the chunks."""
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(company.root, fresh, ignore=shutil.ignore_patterns("store"))
    built = Run.start(fresh, **given).end()
    assert built.done, built.error
    from_nothing = store_of(settings_of(fresh))
    for table, query in LIVE_TABLES.items():
        assert rows_of(company.store, query) == rows_of(from_nothing, query), table
    candidates = [newest_candidate(store) for store in (company.store, from_nothing)]
    assert candidates[0] == candidates[1]
    oracle.assert_same_tables(company.store, from_nothing)
    pointer = read_pointer(company.store.pointer)
    table = vectors.open_table(vectors.connect(company.store.lancedb), pointer.table, pointer.lance_version)
    assert table is not None
    rows = table.search().limit(10_000).to_arrow().to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    held = frozenset((r["doc_id"], r["metadata"]["start_char"], r["metadata"]["end_char"], r["text"]) for r in rows)
    assert held == passages_of(company.store) == company.states[-1]
    decided = rows_of(company.store, "SELECT model_digest, recipe FROM promotions ORDER BY decision DESC LIMIT 1")
    assert decided == [(pointer.model_digest, pointer.recipe)]
    arms = json.loads((company.store.root / "arms.json").read_text(encoding="utf-8"))
    for arm in arms.values():
        newest = vectors.open_table(vectors.connect(company.store.lancedb), arm["table"])
        assert newest is not None
        ids = [row["id"] for row in newest.search().limit(10_000).to_arrow().to_pylist()]
        assert sorted(ids) == [row[0] for row in rows_of(company.store, "SELECT chunk_id FROM chunks ORDER BY 1")]
    _assert_no_litter(company.store)


def _assert_no_litter(store: Store) -> None:
    left: dict[str, Any] = {
        path.relative_to(store.root).as_posix(): path.stat().st_size
        for path in store.root.rglob("*")
        if path.is_file() and (path.is_relative_to(store.work) or path.name.endswith(".tmp"))
    }
    assert not left, f"left behind by killed runs: {left}"
