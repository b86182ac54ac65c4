"""A pipeline run as a process of its own, forked from a server that has imported everything: 0.1 s instead of 20 s.

The server imports only. It starts no computation, so that no thread is lost in the fork (LanceDB starts its own anew).
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import resource
import signal
import time
import traceback
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Literal

from acme_rag_pipeline.chunking.chunks import split_documents
from acme_rag_pipeline.documents.ingest import ingest_documents
from acme_rag_pipeline.embedding import cache
from acme_rag_pipeline.embedding.encoder import Encoder
from acme_rag_pipeline.evaluation.evaluate import evaluate
from acme_rag_pipeline.evaluation.golden import resolve_golden_queries
from acme_rag_pipeline.pairs import offline, synthetic
from acme_rag_pipeline.pairs.curated import resolve_curated_pairs
from acme_rag_pipeline.pairs.training_set import build_training_set
from acme_rag_pipeline.retrieval import Retriever, index
from acme_rag_pipeline.retrieval.expansion import without_expansion
from acme_rag_pipeline.retrieval.passage_encoder import BASE_PREFIX, PassageEncoder, install_base, newest_candidate
from acme_rag_pipeline.serving import decisions, promote
from acme_rag_pipeline.serving.serve import serve
from acme_rag_pipeline.setting_groups import RetrievalSettings
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.fingerprints import sha256_text
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.warehouse import Warehouse
from acme_rag_pipeline.store.written_queries import nearly_all_asked
from acme_rag_pipeline.training.candidate import train_candidate
from acme_rag_pipeline_tests.increments.interrupted import before_write
from acme_rag_pipeline_tests.shallow_base import shallow_base

TUNING: dict[str, Any] = {
    "training": {"epochs": 1, "minimum_pairs": 5, "batch_size": 8},
    "pairs": {"queries_per_chunk": 2},
    "serving": {"reader_grace_seconds": 0, "keep_promotions": 2},
    "lock_seconds": 60,
}
BY_HAND = "by hand"
STAGES = {
    "documents": ingest_documents,
    "chunks": split_documents,
    "curated_pairs": resolve_curated_pairs,
    "synthetic_pairs": synthetic.write_pairs,
    "golden_queries": resolve_golden_queries,
    "base_index": index.index_base,
    "training_set": build_training_set,
    "fine_tuned_model": train_candidate,
    "fine_tuned_index": index.index_candidate,
    "evaluation_report": evaluate,
    "promoted_retriever": promote.decide_promotion,
    "served_index": serve,
}
REFRESH = ("documents", "chunks", "base_index", "fine_tuned_index", "served_index")
# So small that a kill finds work that is committed and work that is not.
BATCH = 4


def settings_of(root: Path, **given: Any) -> Settings:
    """Settings over `documents`, `store`, `curated.jsonl` and `golden` of a folder."""
    optional = {"curated_pairs": root / "curated.jsonl", "golden": root / "golden"}
    named = {name: str(path) if path.exists() else "none" for name, path in optional.items()}
    return Settings.load(
        root=root,
        documents=str(root / "documents"),
        store=given.pop("store", str(root / "store")),
        generator=given.pop("generator", "offline"),
        base_model=given.pop("base_model", str(shallow_base())),
        **named,
        **(TUNING | given),
    )


def store_of(settings: Settings) -> Store:
    """The store, as the Dagster layer opens it."""
    return Store(settings.store, settings.lock_seconds)


def run_stages(
    root: Path,
    stages: tuple[str, ...],
    promote: str | None,
    disk: int | Literal["read-only"] | None,
    dies_before: int | None,
    given: dict[str, Any],
    out: Connection,
) -> None:
    """Body of the process: the stages one after the other, reporting what it does before it does it.

    Args:
        root: see `settings_of`.
        stages: keys of `STAGES`.
        promote: promote `candidate` or `base` by hand before `served_index`, as `acme-rag rollback` would.
        disk: no file grows beyond that many bytes, as on a full disk; or the mode bits of files hold for root too.
        dies_before: `kill -9` before the write of that number of `served_index`.
        given: further settings.
        out: receives (kind, name, value) triples.
    """
    if disk == "read-only":
        obey_mode_bits()
    elif disk is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (disk, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    cache.COMMIT_EVERY = synthetic.COMMIT_EVERY = BATCH
    _report_work(out)
    try:
        settings = settings_of(root, **given)
        for name in stages:
            out.send(("stage", name, time.monotonic()))
            store = store_of(settings)
            if name == "served_index" and promote:
                _promote(store, settings, promote)
            with ExitStack() as doomed:
                if name == "served_index" and dies_before is not None:
                    doomed.enter_context(before_write(dies_before, lambda: os.kill(os.getpid(), signal.SIGKILL)))
                result = STAGES[name](store, settings)
            out.send(("finished", name, result.unchanged))
        out.send(("done", "", time.monotonic()))
    except BaseException as error:
        out.send(("failed", f"{type(error).__name__}: {error}", traceback.format_exc()))
        raise SystemExit(1) from None
    finally:
        out.close()


def create_warehouse(path: Path, out: Connection) -> None:
    """Body of a process that creates a warehouse, and says when it begins to."""
    out.send("begin")
    with Warehouse(path).read():
        out.send("created")


def read_until_told(store: Path, query: str, stop: Event, out: Any) -> None:
    """Body of a reader: search again and again, and put each answer that differs from the one before.

    Args:
        store: the store's folder.
        query: what to ask, for more hits than there are passages.
        stop: ends it.
        out: a list or a queue; receives answers, then the number of searches, or the traceback of a failure.
    """
    put = out.append if isinstance(out, list) else out.put
    try:
        retriever, answers, last = Retriever.open(store), 0, None
        while not stop.is_set():
            hits = retriever.search(query, k=1000)
            answer = [(hit.doc_path, hit.start, hit.end, hit.text, hit.score) for hit in hits]
            answers += 1
            if answer != last:
                put(answer)
            last = answer
            # Readers that take the whole processor would only slow the writer down.
            stop.wait(0.05)
        put(answers)
    except BaseException:
        put(traceback.format_exc())


def obey_mode_bits() -> None:
    """Root gives up its right to write what is read-only (capset(2)); others have no such right."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the interface, this process
    rights = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice 32 bits
    if libc.capset(header, rights) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _promote(store: Store, settings: Settings, which: str) -> None:
    current = decisions.champion(store, settings)
    candidate = newest_candidate(store)
    base = PassageEncoder(install_base(store, settings).digest, BASE_PREFIX)
    wanted, recipe = (candidate, "hybrid") if which == "candidate" and candidate else (base, "dense")
    if current.encoder != wanted:
        with store.writer(BY_HAND):
            decisions.append(
                store,
                encoder=wanted,
                recipe=recipe,  # type: ignore[arg-type]
                fusion=_judged_with(store, settings).model_dump() if recipe == "hybrid" else None,
                verdict=decisions.PROMOTED,
                reason=BY_HAND,
                candidate_key=BY_HAND,
            )


def _judged_with(store: Store, settings: Settings) -> RetrievalSettings:
    fusion = settings.retrieval
    return fusion if nearly_all_asked(store.warehouse) else without_expansion(fusion)


def _report_work(out: Connection) -> None:
    encode, write = Encoder.encode_passages, offline.write

    def encode_reported(self: Encoder, rendered: Any) -> Any:
        out.send(("encoded", self.digest, [sha256_text(text) for text in rendered]))
        return encode(self, rendered)

    def write_reported(rendered: str) -> Any:
        out.send(("answered", "offline", [sha256_text(rendered)]))
        return write(rendered)

    Encoder.encode_passages = encode_reported  # type: ignore[method-assign]
    offline.write = write_reported  # type: ignore[assignment]


def fork_server() -> Any:
    """The multiprocessing context whose processes are forked from the server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["acme_rag_pipeline_tests.increments.warm"])
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return context


@dataclass
class Run:
    """A started process and what it has told so far."""

    process: Any
    incoming: Connection
    told: list[tuple[str, str, Any]] = field(default_factory=list)

    @classmethod
    def start(
        cls,
        root: Path,
        *,
        stages: tuple[str, ...] = tuple(STAGES),
        promote: str | None = None,
        disk: int | Literal["read-only"] | None = None,
        dies_before: int | None = None,
        **given: Any,
    ) -> Run:
        """Start the stages over the folder."""
        context = fork_server()
        incoming, outgoing = context.Pipe(duplex=False)
        told = (root, stages, promote, disk, dies_before, given, outgoing)
        process = context.Process(target=run_stages, args=told, daemon=True)
        process.start()
        outgoing.close()
        return cls(process, incoming)

    def listen(self, seconds: float, until: str | None = None) -> bool:
        """Collect what it tells for that long, or until it enters a stage or ends. Returns whether that happened."""
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            try:
                if self.incoming.poll(left):
                    self.told.append(self.incoming.recv())
                    if until is not None and self.told[-1][:2] == ("stage", until):
                        return True
            except (EOFError, OSError):
                return True

    def kill(self) -> None:
        """SIGKILL, then read what it had told before."""
        self.process.kill()
        self.listen(30)
        self.process.join()

    def end(self, seconds: float = 600) -> Run:
        """Wait until it has ended by itself."""
        assert self.listen(seconds), f"still in {self.stage} after {seconds} s"
        self.process.join(30)
        return self

    @property
    def stage(self) -> str:
        """The stage that it entered last."""
        return next((name for kind, name, _ in reversed(self.told) if kind == "stage"), "start")

    @property
    def done(self) -> bool:
        """It ran to its end without an error."""
        return bool(self.told) and self.told[-1][0] == "done"

    @property
    def error(self) -> str:
        """The exception that ended it, with its traceback; empty without one."""
        return next((f"{name}\n{value}" for kind, name, value in self.told if kind == "failed"), "")

    def batches(self, kind: str, name: str) -> list[list[str]]:
        """Hashes of the inputs that it worked on, batch by batch."""
        return [value for told, who, value in self.told if (told, who) == (kind, name)]


def rows_of(store: Store, query: str) -> list[tuple[Any, ...]]:
    """Rows of a query on the warehouse."""
    with store.warehouse.read() as connection:
        return connection.execute(query).fetchall()


def write_judged_sets(root: Path, curated: list[dict[str, Any]], queries: list[dict[str, Any]]) -> None:
    """`curated.jsonl`, and `golden` with one judgement a query."""

    def lines(rows: list[dict[str, Any]]) -> str:
        return "".join(json.dumps(row) + "\n" for row in rows)

    (root / "golden").mkdir(parents=True)
    (root / "curated.jsonl").write_text(lines(curated), encoding="utf-8")
    (root / "golden/queries.jsonl").write_text(lines([{n: q[n] for n in ("query_id", "query")} for q in queries]))
    (root / "golden/qrels.jsonl").write_text(
        lines([{n: q[n] for n in ("query_id", "doc_path", "quote")} for q in queries]), encoding="utf-8"
    )
