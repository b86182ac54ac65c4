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
# A longer one lies between two runs, or is a wait that no estimate should expect.
_GAP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class _Pace:
    """Of a model.

    Attributes:
        each: Mean seconds from a request to its answer; None: there never was one.
        rate: Answers a second in the last asking, limits, faults and repairs included; None: too few to say.
    """

    each: float | None
    rate: float | None


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
        seconds: At the pace of this model's last asking, as a person waited for it, and no faster than the configured
            concurrency allows; None: no answer of this model has been timed yet.
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
    lost = unanswered & given_up(store, asked.parameters).keys()
    missing = {h: messages for h, messages in asked.prompts.items() if h in unanswered - lost}
    pace = _pace(store, settings.llm)
    each, by_answers = _completion(store, settings.llm, asked, settings.pairs.queries_per_chunk)
    sizes = [estimate_prompt(messages).prompt_tokens + each for messages in missing.values()]
    within = _within_budget(sizes, settings.pairs)

    def taken(prompts: int) -> dict[str, Any]:
        sent, received = estimate(islice(missing.values(), prompts)).prompt_tokens, round(each * prompts)
        return {
            "prompt_tokens": sent,
            "completion_tokens": received,
            "cost": cost(sent, received, settings.pairs),
            "seconds": _seconds(prompts, pace, settings.pairs.concurrency),
        }

    notes = [*warnings]
    if settings.pairs.price_input is None or settings.pairs.price_output is None:
        notes.append("no cost: set ACME_RAG_PAIRS__PRICE_INPUT and ACME_RAG_PAIRS__PRICE_OUTPUT (per million tokens)")
    if lost:
        notes.append(
            f"{len(lost)} of the prompts got {MOST_BAD_ANSWERS} answers each that cannot be used and are not asked again"
        )
    if missing and pace.each is None:
        notes.append("no time: no answer of this model is stored yet")
    elif missing and pace.rate is None:
        notes.append(
            f"time at best: fewer than {_ENOUGH_ANSWERS} answers of this model do not tell its limits and retries"
        )
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


def _seconds(prompts: int, pace: _Pace, concurrency: int) -> float | None:
    if not prompts:
        return 0.0
    if pace.each is None:
        return None
    at_best = prompts * pace.each / min(concurrency, prompts)
    return round(max(at_best, prompts / pace.rate) if pace.rate else at_best, 1)


def _completion(store: Store, model: str, asked: Generator, queries: int) -> tuple[float, str]:
    """Mean completion tokens that an answer will take, and what that was taken from."""
    with store.warehouse.read() as connection:
        count, mean = connection.execute(
            "SELECT count(*), avg(completion_tokens) FROM answers WHERE generator = ? AND parameters_hash = ? "
            "AND completion_tokens > 0",
            [asked.name, asked.parameters_hash],
        ).fetchall()[0]
        if count >= _ENOUGH_ANSWERS:
            return mean, "the mean of the stored answers"
        # An answer does not say whose it is; the call that brought it does.
        count, mean = connection.execute(
            "SELECT count(*), avg(a.completion_tokens / json_array_length(a.queries)) FROM answers a SEMI JOIN llm_calls c "
            "ON c.model = ? AND c.status = 'ok' AND c.prompt_hash = a.prompt_hash "
            "AND c.prompt_tokens = a.prompt_tokens AND c.completion_tokens = a.completion_tokens "
            "WHERE a.generator = ? AND a.completion_tokens > 0 AND json_array_length(a.queries) > 0",
            [model, asked.name],
        ).fetchall()[0]
    if count >= _ENOUGH_ANSWERS:
        return mean * queries, "the mean of this model's answers under other settings, by the query"
    # The guess of `estimate` is for three queries.
    return estimate_prompt([]).completion_tokens * queries / 3, "a guess of 40 tokens a query"


def _pace(store: Store, model: str) -> _Pace:
    """How fast a model answered when it was asked last, by the calls of all its runs."""
    with store.warehouse.read() as connection:
        calls = connection.execute(
            "SELECT epoch(called_at), coalesce(seconds, 0), status IN ('ok', 'empty') FROM llm_calls WHERE model = ? "
            "ORDER BY called_at",
            [model],
        ).fetchall()
    answers = [seconds for _, seconds, useful in calls if useful]
    # Begin, end and answers of each time without a gap.
    askings: list[tuple[float, float, int]] = []
    for called_at, seconds, useful in calls:
        if not askings or called_at > askings[-1][1] + _GAP_SECONDS:
            askings.append((called_at, called_at, 0))
        begin, end, count = askings[-1]
        askings[-1] = (begin, max(end, called_at + seconds), count + useful)
    took, count = 0.0, 0
    while askings and count < _ENOUGH_ANSWERS:
        begin, end, more = askings.pop()
        took, count = took + end - begin, count + more
    return _Pace(
        each=sum(answers) / len(answers) if answers else None,
        rate=count / took if count >= _ENOUGH_ANSWERS and took > 0 else None,
    )
