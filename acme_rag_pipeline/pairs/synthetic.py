"""The `synthetic_pairs` stage: questions written for every chunk, each prompt asked once and every answer kept."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from acme_rag_pipeline.llm.reply import CUT_OFF
from acme_rag_pipeline.pairs import llm, offline
from acme_rag_pipeline.pairs.answer_store import MOST_BAD_ANSWERS, AnswerStore, answered_badly, commit_waiting, given_up
from acme_rag_pipeline.pairs.examples import example_queries
from acme_rag_pipeline.pairs.figures import coverage, histogram, pairs_picture
from acme_rag_pipeline.pairs.generators import (
    Generator,
    GeneratorName,
    answered,
    answered_with_a_question,
    answers,
    generator,
    pair_rows,
    parameters_of,
)
from acme_rag_pipeline.pairs.llm_cost import cost, spent
from acme_rag_pipeline.pairs.llm_outcome import LONGER_ANSWERS
from acme_rag_pipeline.pairs.llm_progress import ProgressLog
from acme_rag_pipeline.pairs.passage import Passage
from acme_rag_pipeline.setting_groups import PairSettings
from acme_rag_pipeline.settings import Settings, SettingsError
from acme_rag_pipeline.store.fingerprints import content_hash, fingerprint
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.made_with import SETTINGS_KEY
from acme_rag_pipeline.store.passages import live_passages
from acme_rag_pipeline.store.stages import (
    UNFINISHED,
    StageResult,
    data_versions,
    overtaken,
    record,
    recorded,
    stored_detail,
)
from acme_rag_pipeline.store.warehouse import reconcile, records

STAGE = "synthetic_pairs"
CODE_VERSION = "4"
COMMIT_EVERY = 500
# Runs in a row that got no question for what was left, before the schedule asks for none because of it.
MOST_RUNS_IN_VAIN = 3
# The quick one first: its questions are there whatever becomes of the LLM.
_NAMES: dict[str, tuple[GeneratorName, ...]] = {
    "openai": ("openai",),
    "offline": ("offline",),
    "both": ("offline", "openai"),
}
# Figures of a run, which are plotted run by run: a run that asked nothing must not repeat those of the last that did.
_NOTHING_ASKED: dict[str, Any] = {
    "outcome": "Nothing to ask the LLM.",
    "llm_calls": 0,
    "prompt_tokens": 0,
    "completion_tokens": 0,
    "seconds_asking": 0.0,
}
logger = logging.getLogger(__name__)


def write_pairs(store: Store, settings: Settings) -> StageResult:
    """Ask for the questions of every chunk that has none yet, and bring `pairs` to the answers.

    An LLM that is down, a spent budget or an unusable answer is an outcome: what is answered is used, the details say
    what is left, and the next run asks only for that.

    Raises:
        UpstreamMissing: `chunks` has never run.
        SettingsError: the file of example queries cannot be used.
        WarehouseBusy: another process held the warehouse too long; the next run commits what was answered meanwhile.
    """
    upstream = data_versions(store.warehouse, "chunks")
    names = _NAMES[settings.generator_in_use]
    examples, warnings = example_queries(settings) if "openai" in names else ((), [])
    for warning in warnings:
        logger.warning(warning)
    asked_with = parameters_of(settings, "openai", examples)

    def made_from_now() -> str:
        # Prompts that somebody has asked again are no longer given up, and there is work.
        lost = sorted(given_up(store, asked_with)) if "openai" in names else []
        parameters = [parameters_of(settings, name, examples) for name in names]
        return fingerprint(STAGE, CODE_VERSION, upstream, parameters, *([lost] if lost else []))

    made_from = made_from_now()
    if (unchanged := recorded(store.warehouse, STAGE, made_from)) is not None:
        before = unchanged.details
        figures = {"asked": 0, "reused": before["prompts"] - before["unanswered"], "removed": 0}
        if "openai" in names:
            said = (_NOTHING_ASKED["outcome"], before.get("not_asked_again"))
            figures |= _NOTHING_ASKED | {"outcome": " ".join(filter(None, said))}
        return replace(unchanged, details=before | figures)
    # A refresh may go on while an LLM answers; only a second asking has to wait.
    with store.writer(STAGE, lock="asking"):
        if overtaken(store.warehouse, upstream):
            return write_pairs(store, settings)
        passages = [
            Passage(p.chunk_id, p.doc_path, p.title, p.heading_path, p.text, p.lead)
            for p in live_passages(store.warehouse)
        ]
        rows: list[dict[str, Any]] = []
        details: dict[str, Any] = {"generator": settings.generator_in_use, "outcome": "done"}
        figures = Counter()
        commit_waiting(store)
        if settings.generator == "auto" and names == _NAMES["offline"]:
            unused, asked = _answers_of_an_llm(store, settings, passages)
            if unused:
                details["llm_answers_unused"] = unused
                warnings.append(_without_a_key(unused, asked))
                logger.warning(warnings[-1])
        for name in names:
            one = generator(settings, name, passages, examples)
            missing = one.prompts.keys() - answered(store, one)
            with_question = answered_with_a_question(store, one) if name == "openai" else set()
            # A budget must not be spent on the same bad answers in every run: those passages come last, and in the end never.
            lost, spoilt = given_up(store, asked_with), answered_badly(store, asked_with)
            hashes = sorted((h for h in one.prompts if h in missing and h not in lost), key=lambda h: h in spoilt)
            details |= _ask(store, settings, one, {h: one.prompts[h] for h in hashes}, len(with_question))
            commit_waiting(store)
            found = answers(store, one)
            if name == "openai":
                lost = given_up(store, asked_with)
                reasons = [lost[h] for h in one.prompts if h in lost and h not in found]
                figures["given_up"] = len(reasons)
                # Beside the embedded generator's, which leaves none open, the share of its own prompts would not be seen.
                details |= {"llm_prompts": len(one.prompts), "llm_unanswered": len(one.prompts) - len(found)}
                details |= {"llm_empty": sum(not queries for queries in found.values()), "given_up": len(reasons)}
                gained = any(queries and h not in with_question for h, queries in found.items())
                in_vain = hashes and not gained and details["stopped"] in (None, "failing", "unusable")
                left = len(found) < len(one.prompts)
                details["runs_in_vain"] = _runs_in_vain(store) + 1 if in_vain and left else 0
                if reasons:
                    details["not_asked_again"] = _not_asked_again(reasons)
                    details["outcome"] += f" {details['not_asked_again']}"
            rows += pair_rows(one, found)
            figures.update(
                prompts=len(one.prompts),
                asked=len(missing & found.keys()),
                reused=len(one.prompts) - len(missing),
                unanswered=len(one.prompts) - len(found),
            )
        details |= {name: figures[name] for name in ("prompts", "asked", "reused", "unanswered")}
        made_from = made_from_now()
        with store.writer(STAGE), store.warehouse.write() as connection:
            # A refresh may have retracted passages while the LLM answered.
            live = {row[0] for row in connection.execute("SELECT chunk_id FROM chunks").fetchall()}
            retracted = any(row["chunk_id"] not in live for row in rows)
            rows = [row for row in rows if row["chunk_id"] in live]
            data_version = content_hash(tuple(row.values()) for row in rows)
            counts = reconcile(connection, "pairs", "pair_id", rows, scope="origin <> 'curated'")
            details |= {"removed": counts.removed, "chunks_version": upstream["chunks"]} | _look(rows, passages)
            details[SETTINGS_KEY] = _key(settings, examples)
            if "openai" in names:
                details |= {"so_far": spent(connection, settings), "examples_shown": len(examples)}
                if settings.pairs.extra_body:
                    details["extra_body"] = sorted(settings.pairs.extra_body)  # its values may be secret
            if warnings:
                details["warnings"] = warnings
            result = StageResult(STAGE, data_version, counts, details=details)
            # An unfinished stage is not recorded as done, so the next run goes on where this one stopped.
            unfinished = figures["unanswered"] > figures["given_up"] or retracted
            return record(connection, result, f"{UNFINISHED}{made_from}" if unfinished else made_from)


def settings_key(settings: Settings) -> str:
    """Hash of the generators in use, their settings and the code that decide the questions about given chunks.

    Raises:
        SettingsError: the file of example queries cannot be used.
    """
    asks = "openai" in _NAMES[settings.generator_in_use]
    return _key(settings, example_queries(settings)[0] if asks else ())


def _key(settings: Settings, examples: Sequence[str]) -> str:
    return fingerprint(
        CODE_VERSION, [parameters_of(settings, name, examples) for name in _NAMES[settings.generator_in_use]]
    )


def left_by_the_llm(store: Store) -> float:
    """Share of the LLM's prompts that the last run asked in vain and the next one asks again.

    What a budget left does not count: how much is spent a day is for a person to say, not for a schedule. Nor does what
    was given up: nobody asks that again. Nor what the LLM was there for and yet refused, or answered with nothing, in
    several runs: it is asked along with whatever the next run is for.
    """
    with store.warehouse.read() as connection:
        rows = records(connection, "SELECT fingerprint, summary FROM stages WHERE stage = ?", [STAGE])
    if not rows or not rows[0]["fingerprint"].startswith(UNFINISHED):
        return 0.0
    details = json.loads(rows[0]["summary"])["details"]
    # A record of an earlier version does not say what stopped it, or counts the prompts of all generators together.
    if details.get("stopped", "budget") == "budget":
        return 0.0
    if details.get("runs_in_vain", 0) >= MOST_RUNS_IN_VAIN:
        return 0.0
    unanswered = details.get("llm_unanswered", details["unanswered"]) - details.get("given_up", 0)
    return unanswered / max(details.get("llm_prompts", details["prompts"]), 1)


def _answers_of_an_llm(store: Store, settings: Settings, passages: Sequence[Passage]) -> tuple[int, int]:
    """How many of today's prompts an LLM, whichever, once answered, and how many prompts there are."""
    with store.warehouse.read() as connection:
        rows = connection.execute("SELECT DISTINCT prompt_hash FROM answers WHERE generator = 'openai'").fetchall()
    if not rows:
        return 0, 0
    try:
        examples, _ = example_queries(settings)
    except SettingsError:  # a file that only an LLM needs
        examples = ()
    prompts = generator(settings, "openai", passages, examples).prompts
    return len(prompts.keys() & {row[0] for row in rows}), len(prompts)


def _without_a_key(unused: int, prompts: int) -> str:
    """What is said of answers that nobody chose to do without."""
    return (
        f"neither OPENAI_API_KEY nor OPENAI_BASE_URL is set for this run, so ACME_RAG_GENERATOR=auto took the embedded "
        f"generator's questions, although an LLM has answered {unused} of today's {prompts} prompts: set one of them to "
        "use its questions again, or ACME_RAG_GENERATOR=offline to do without"
    )


def _runs_in_vain(store: Store) -> int:
    """How many runs in a row, up to the last one, got no question although the LLM was there."""
    return int(stored_detail(store.warehouse, STAGE, "runs_in_vain") or 0)


def _not_asked_again(reasons: Sequence[str]) -> str:
    """What is said of the passages that were given up for good, by the reason of each."""
    ((most, _),) = Counter(reasons).most_common(1)
    passages = "1 passage" if len(reasons) == 1 else f"{len(reasons)} passages"
    return (
        f"{passages} got {MOST_BAD_ANSWERS} answers each that cannot be used (most often: {most}) and will not be asked "
        "about again, unless the model, the prompt's settings or the passage change, or somebody runs "
        f"`acme-rag pairs ask-again`.{f' {LONGER_ANSWERS}' if CUT_OFF in most else ''}"
    )


def _look(rows: Sequence[dict[str, Any]], passages: Sequence[Passage]) -> dict[str, Any]:
    """What the pairs look like, for the UI and the report."""
    covered = {row["chunk_id"] for row in rows}
    per_document = coverage([(p.doc_path, p.chunk_id) for p in passages], [row["chunk_id"] for row in rows])
    return {
        "pairs": len(rows),
        "chunks": len(passages),
        "chunks_without_pairs": sum(p.chunk_id not in covered for p in passages),
        "by_origin": dict(Counter(row["origin"] for row in rows).most_common()),
        "by_method": dict(Counter(row["method"] for row in rows).most_common()),
        "by_style": dict(Counter(row["style"] for row in rows).most_common()),
        "coverage": per_document.numbers(),
        "documents_without_pairs": per_document.without[:50],
        "query_words": histogram("words", [(row["origin"], len(row["query"].split())) for row in rows]),
        "picture": pairs_picture(rows, per_document),
    }


def _ask(
    store: Store, settings: Settings, generator: Generator, missing: dict[str, Any], with_question: int
) -> dict[str, Any]:
    """Ask for what is missing; the details say what came of it.

    Args:
        with_question: Answers that hold one, of all runs before.
    """
    sink = AnswerStore(store, generator)
    if generator.name == "offline":
        hashes = list(missing)
        for first in range(0, len(hashes), COMMIT_EVERY):
            batch = hashes[first : first + COMMIT_EVERY]
            sink.commit([], [llm.LLMAnswer(h, offline.write(missing[h]), None, None) for h in batch])
        return {}
    if not missing:
        return _NOTHING_ASKED
    key = settings.openai_api_key.get_secret_value() if settings.openai_api_key else None
    connection = llm.LLMConnection(
        model=settings.llm,
        base_url=settings.openai_base_url,
        api_key=key,
        timeout_seconds=settings.pairs.timeout_seconds,
        concurrency=settings.pairs.concurrency,
        extra_body=settings.pairs.extra_body or {},
    )
    budget = llm.Budget(settings.pairs.max_calls, settings.pairs.max_tokens)
    outcome = llm.ask_all_blocking(
        missing,
        connection,
        sink,
        budget,
        on_progress=ProgressLog(logger.info, lambda progress: _money(progress, settings.pairs)),
        limit=settings.pairs.queries_per_chunk,
        answered_before=with_question,
    )
    return {
        "outcome": outcome.sentence,
        "stopped": outcome.stopped,
        "llm_calls": outcome.calls,
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "seconds_asking": round(outcome.seconds, 1),
    }


def _money(progress: llm.Progress, settings: PairSettings) -> str:
    money = cost(progress.tokens - progress.completion_tokens, progress.completion_tokens, settings)
    return "" if money is None else f", cost {money:.4f}"
