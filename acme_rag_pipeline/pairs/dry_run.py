"""What asking the LLM for the questions that are still missing would take: nothing is sent and nothing is written."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any

from acme_rag_pipeline.pairs.answer_store import MOST_BAD_ANSWERS, given_up
from acme_rag_pipeline.pairs.examples import example_queries
from acme_rag_pipeline.pairs.generators import Generator, answered, generator
from acme_rag_pipeline.pairs.llm import LLMConnection, estimate
from acme_rag_pipeline.pairs.llm_cost import cost
from acme_rag_pipeline.pairs.llm_outcome import estimate_prompt
from acme_rag_pipeline.pairs.passage import Passage
from acme_rag_pipeline.setting_groups import PairSettings
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import live_passages
from acme_rag_pipeline.store.stages import UpstreamMissing, data_versions

# Below it the mean of what was answered says less than the guess.
_ENOUGH_ANSWERS = 10


@dataclass(frozen=True, slots=True)
class DryRun:
    """The estimate.

    Attributes:
        model: Name at the server.
        server: Its address without secrets.
        generator: What the settings say is used; the estimate is the LLM's in any case.
        chunks: Of the store, as they were when it was last brought up to date.
        prompts: Different ones; equal passages with equal headings are asked about once.
        answered: Of them, stored already.
        to_send: The rest, without those that never got an answer that can be used and are not asked again.
        within_budget: Of the rest, what one run may send by `MAX_CALLS` and `MAX_TOKENS`, if each is answered at once.
        prompt_tokens: Of what is to send.
        completion_tokens: Of the answers to it.
        counted_by: How tokens were estimated.
        cost: In the money of the prices; None: a price is not known.
        seconds: At the configured concurrency; None: no answer of this model has been timed yet.
        one_run: `prompt_tokens`, `completion_tokens`, `cost` and `seconds` of the prompts within the budget alone.
        notes: What a person should know besides.
    """

    model: str
    server: str
    generator: str
    chunks: int
    prompts: int
    answered: int
    to_send: int
    within_budget: int
    prompt_tokens: int
    completion_tokens: int
    counted_by: str
    cost: float | None
    seconds: float | None
    one_run: dict[str, float | None]
    notes: tuple[str, ...]


def dry_run(store: Store, settings: Settings) -> DryRun:
    """Estimate a run of the LLM generator over the chunks of the store.

    Raises:
        UpstreamMissing: the store holds no chunks yet.
        SettingsError: the file of example queries cannot be used.
    """
    if not store.warehouse.path.exists():  # a reader would create it
        raise UpstreamMissing(f"{store.root} holds no chunks yet: run `refresh` first, then estimate")
    data_versions(store.warehouse, "chunks")
    examples, warnings = example_queries(settings)
    passages = [
        Passage(p.chunk_id, p.doc_path, p.title, p.heading_path, p.text, p.lead) for p in live_passages(store.warehouse)
    ]
    asked = generator(settings, "openai", passages, examples)
    known = answered(store, asked)
    unanswered = asked.prompts.keys() - known
    lost = unanswered & given_up(store, settings.llm).keys()
    missing = {h: messages for h, messages in asked.prompts.items() if h in unanswered - lost}
    measured = _measured(store, settings, asked)
    # The guess of `estimate` is for three queries.
    each = measured["completion"] or estimate_prompt([]).completion_tokens * settings.pairs.queries_per_chunk / 3
    sizes = [estimate_prompt(messages).prompt_tokens + each for messages in missing.values()]
    within = _within_budget(sizes, settings.pairs)

    def taken(prompts: int) -> dict[str, Any]:
        sent, received = estimate(islice(missing.values(), prompts)).prompt_tokens, round(each * prompts)
        return {
            "prompt_tokens": sent,
            "completion_tokens": received,
            "cost": cost(sent, received, settings.pairs),
            "seconds": _seconds(prompts, measured["seconds"], settings.pairs.concurrency),
        }

    by_answers = "the mean of the stored answers" if measured["completion"] else "a guess of 40 tokens a query"
    notes = [*warnings]
    if settings.pairs.price_input is None or settings.pairs.price_output is None:
        notes.append("no cost: set ACME_RAG_PAIRS__PRICE_INPUT and ACME_RAG_PAIRS__PRICE_OUTPUT (per million tokens)")
    if lost:
        notes.append(
            f"{len(lost)} of the prompts got {MOST_BAD_ANSWERS} answers each that cannot be used and are not asked again"
        )
    if missing and measured["seconds"] is None:
        notes.append("no time: no answer of this model is stored yet")
    return DryRun(
        model=settings.llm,
        server=LLMConnection(settings.llm, settings.openai_base_url).shown_url,
        generator=settings.generator_in_use,
        chunks=len(passages),
        prompts=len(asked.prompts),
        answered=len(asked.prompts) - len(unanswered),
        to_send=len(missing),
        within_budget=within,
        **taken(len(missing)),
        one_run=taken(within),
        counted_by=f"prompts: 4 ASCII characters or 2 bytes of others a token; answers: {by_answers}",
        notes=tuple(notes),
    )


def _within_budget(sizes: list[float], settings: PairSettings) -> int:
    most = len(sizes) if settings.max_calls is None else min(len(sizes), settings.max_calls)
    if settings.max_tokens is None:
        return most
    return sum(total <= settings.max_tokens for total in accumulate(sizes[:most]))


def _seconds(prompts: int, each: float | None, concurrency: int) -> float | None:
    if not prompts:
        return 0.0
    return None if each is None else round(prompts * each / min(concurrency, prompts), 1)


def _measured(store: Store, settings: Settings, asked: Generator) -> dict[str, Any]:
    """Mean completion tokens of this generator's answers and mean seconds of this model's; None where too few."""
    with store.warehouse.read() as connection:
        count, completion = connection.execute(
            "SELECT count(*), avg(completion_tokens) FROM answers WHERE generator = ? AND parameters_hash = ? "
            "AND completion_tokens > 0",
            [asked.name, asked.parameters_hash],
        ).fetchall()[0]
        (seconds,) = connection.execute(
            "SELECT avg(seconds) FROM llm_calls WHERE model = ? AND status IN ('ok', 'empty')", [settings.llm]
        ).fetchall()[0]
    return {"completion": completion if count >= _ENOUGH_ANSWERS else None, "seconds": seconds}
