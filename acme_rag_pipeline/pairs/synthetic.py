"""The `synthetic_pairs` stage: questions written for every chunk, each prompt asked once and every answer kept."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from acme_rag_pipeline.pairs import llm, offline, prompt
from acme_rag_pipeline.pairs.budget_order import diverse_order
from acme_rag_pipeline.pairs.corpus_statistics import CorpusStatistics
from acme_rag_pipeline.pairs.passage import Passage, WrittenQuery
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.fingerprints import content_hash, fingerprint, sha256_text
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import live_passages
from acme_rag_pipeline.store.stages import StageResult, data_versions, record, recorded
from acme_rag_pipeline.store.warehouse import append, insert, reconcile, records

STAGE = "synthetic_pairs"
CODE_VERSION = "1"
COMMIT_EVERY = 500
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Generator:
    """One way of writing questions: its name, what its answers depend on, and each chunk's prompt."""

    name: str
    parameters: Any
    prompts: dict[str, Any]  # prompt hash -> what is sent, in the order to ask
    prompt_of: dict[str, str]  # chunk id -> prompt hash

    @property
    def parameters_hash(self) -> str:
        return fingerprint(self.parameters)


def write_pairs(store: Store, settings: Settings) -> StageResult:
    """Ask for the questions of every chunk that has none yet, and bring `pairs` to the answers.

    An LLM that is down, a spent budget or an unusable answer is an outcome: what is answered is used, the details say
    what is left, and the next run asks only for that.

    Raises:
        UpstreamMissing: `chunks` has never run.
    """
    upstream = data_versions(store.warehouse, "chunks")
    how = _parameters(settings)
    made_from = fingerprint(STAGE, CODE_VERSION, upstream, how)
    if (unchanged := recorded(store.warehouse, STAGE, made_from)) is not None:
        return unchanged
    # A refresh may go on while an LLM answers; only a second asking has to wait.
    with store.writer(STAGE, lock="asking"):
        passages = [
            Passage(p.chunk_id, p.doc_path, p.title, p.heading_path, p.text) for p in live_passages(store.warehouse)
        ]
        generator = _generator(settings, passages, how)
        known = _answered(store, generator)
        missing = {h: sent for h, sent in generator.prompts.items() if h not in known}
        outcome = _ask(store, settings, generator, missing)
        answers = _answers(store, generator)
        rows = _pair_rows(generator, answers, settings.generator_in_use)
        unanswered = len([h for h in generator.prompts if h not in answers])
        data_version = content_hash(tuple(row.values()) for row in rows)
        with store.writer(STAGE), store.warehouse.write() as connection:
            counts = reconcile(connection, "pairs", "pair_id", rows, scope="origin <> 'curated'")
            details = outcome | {
                "generator": generator.name,
                "asked": len([h for h in missing if h in answers]),
                "reused": len(generator.prompts) - len(missing),
                "removed": counts.removed,
                "unanswered": unanswered,
                "pairs": len(rows),
                "chunks": len(passages),
                "chunks_without_pairs": len(passages) - len({row["chunk_id"] for row in rows}),
                "by_method": dict(Counter(row["method"] for row in rows).most_common()),
                "by_style": dict(Counter(row["style"] for row in rows).most_common()),
            }
            result = StageResult(STAGE, data_version, counts, details=details)
            # An unfinished stage is not recorded as done, so the next run goes on where this one stopped.
            return record(connection, result, f"unfinished {made_from}" if unanswered else made_from)


def _parameters(settings: Settings) -> tuple[Any, ...]:
    if settings.generator_in_use == "offline":
        return "offline", offline.GENERATOR_VERSION, settings.pairs.queries_per_chunk
    return "openai", prompt.PROMPT_VERSION, settings.llm, settings.pairs.queries_per_chunk


def _generator(settings: Settings, passages: Sequence[Passage], how: tuple[Any, ...]) -> _Generator:
    prompts: dict[str, Any] = {}
    prompt_of: dict[str, str] = {}
    if settings.generator_in_use == "offline":
        statistics = CorpusStatistics.from_passages(passages)
        parameters = offline.OfflineParameters(queries_per_chunk=settings.pairs.queries_per_chunk)
        for passage in passages:
            rendered = offline.render(passage, statistics, parameters)
            prompt_of[passage.chunk_id] = sha256_text(rendered)
            prompts[prompt_of[passage.chunk_id]] = rendered
    else:
        asked = prompt.PromptParameters(queries=settings.pairs.queries_per_chunk)
        for passage in diverse_order(passages):
            messages = prompt.render(passage, asked)
            prompt_of[passage.chunk_id] = fingerprint(messages)
            prompts[prompt_of[passage.chunk_id]] = messages
    return _Generator(str(how[0]), how, prompts, prompt_of)


def _ask(store: Store, settings: Settings, generator: _Generator, missing: dict[str, Any]) -> dict[str, Any]:
    sink = _Sink(store, generator)
    if generator.name == "offline":
        hashes = list(missing)
        for first in range(0, len(hashes), COMMIT_EVERY):
            batch = hashes[first : first + COMMIT_EVERY]
            sink.commit([], [llm.LLMAnswer(h, offline.write(missing[h]), None, None) for h in batch])
        return {"outcome": "done"}
    key = settings.openai_api_key.get_secret_value() if settings.openai_api_key else None
    connection = llm.LLMConnection(
        model=settings.llm,
        base_url=settings.openai_base_url,
        api_key=key,
        timeout_seconds=settings.pairs.timeout_seconds,
        concurrency=settings.pairs.concurrency,
    )
    budget = llm.Budget(settings.pairs.max_calls, settings.pairs.max_tokens)
    outcome = llm.ask_all_blocking(
        missing, connection, sink, budget, on_progress=_log_progress, limit=settings.pairs.queries_per_chunk
    )
    return {
        "outcome": outcome.sentence,
        "llm_calls": outcome.calls,
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "seconds_asking": round(outcome.seconds, 1),
    }


def _log_progress(progress: llm.Progress) -> None:
    eta = f", about {progress.eta_seconds:.0f} s left" if progress.eta_seconds is not None else ""
    logger.info(
        "asked for %d of %d chunks, %.1f chunks/s, %d tokens%s",
        progress.done,
        progress.total,
        progress.rate,
        progress.tokens,
        eta,
    )


class _Sink:
    """Commits answers as they arrive."""

    def __init__(self, store: Store, generator: _Generator) -> None:
        self._store = store
        self._generator = generator

    def commit(self, calls: Sequence[llm.LLMCall], answers: Sequence[llm.LLMAnswer]) -> None:
        now = datetime.now(UTC)
        rows = [
            {
                "generator": self._generator.name,
                "parameters_hash": self._generator.parameters_hash,
                "prompt_hash": answer.prompt_hash,
                "queries": _json(answer.queries),
                "prompt_tokens": answer.prompt_tokens,
                "completion_tokens": answer.completion_tokens,
                "answered_at": now,
            }
            for answer in answers
        ]
        with self._store.warehouse.write() as connection:
            insert(connection, "answers", rows)
            append(connection, "llm_calls", [_call_row(call) for call in calls])


def _call_row(call: llm.LLMCall) -> dict[str, Any]:
    return {
        "called_at": call.called_at,
        "model": call.model,
        "prompt_hash": call.prompt_hash,
        "status": call.status,
        "prompt_tokens": call.prompt_tokens,
        "completion_tokens": call.completion_tokens,
        "seconds": call.seconds,
        "detail": call.detail,
    }


def _json(queries: Sequence[WrittenQuery]) -> str:
    return json.dumps([{"query": q.query, "style": q.style, "method": q.method} for q in queries], ensure_ascii=False)


def _answered(store: Store, generator: _Generator) -> set[str]:
    with store.warehouse.read() as connection:
        rows = connection.execute(
            "SELECT prompt_hash FROM answers WHERE generator = ? AND parameters_hash = ?",
            [generator.name, generator.parameters_hash],
        ).fetchall()
    return {row[0] for row in rows}


def _answers(store: Store, generator: _Generator) -> dict[str, list[dict[str, str]]]:
    with store.warehouse.read() as connection:
        rows = records(
            connection,
            "SELECT prompt_hash, queries FROM answers WHERE generator = ? AND parameters_hash = ?",
            [generator.name, generator.parameters_hash],
        )
    return {r["prompt_hash"]: json.loads(r["queries"]) for r in rows if r["prompt_hash"] in generator.prompts}


def _pair_rows(generator: _Generator, answers: dict[str, list[dict[str, str]]], origin: str) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for chunk_id, prompt_hash in generator.prompt_of.items():
        for written in answers.get(prompt_hash, []):
            pair_id = sha256_text(f"{origin}\0{written['query']}\0{chunk_id}")
            rows[pair_id] = {
                "pair_id": pair_id,
                "query": written["query"],
                "chunk_id": chunk_id,
                "origin": origin,
                "style": written["style"],
                "method": written["method"],
                "generator": str(generator.parameters[1]),
                "prompt_hash": prompt_hash,
            }
    return list(rows.values())
