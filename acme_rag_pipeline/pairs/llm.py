"""Ask an LLM for the questions of many passages: concurrent, patient, within a budget, each answer kept as it arrives.

An LLM that is down, refuses or runs out of budget is an outcome (`GenerationOutcome.stopped`), never an exception; an
exception means that the sink failed or that the run was interrupted, and what had arrived is committed then, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from acme_rag_pipeline.llm.blocking import run_blocking
from acme_rag_pipeline.llm.request import LLMClient, LLMConnection, Messages
from acme_rag_pipeline.pairs.llm_commit import AnswerSink, LLMAnswer, LLMCall
from acme_rag_pipeline.pairs.llm_outcome import Budget, GenerationOutcome, TokenEstimate, estimate
from acme_rag_pipeline.pairs.llm_pace import Pacing
from acme_rag_pipeline.pairs.llm_progress import Progress
from acme_rag_pipeline.pairs.llm_run import Run
from acme_rag_pipeline.pairs.prompt import MAX_QUERIES

__all__ = [
    "AnswerSink",
    "Budget",
    "GenerationOutcome",
    "LLMAnswer",
    "LLMCall",
    "LLMClient",
    "LLMConnection",
    "Pacing",
    "Progress",
    "TokenEstimate",
    "ask_all",
    "ask_all_blocking",
    "estimate",
]

OnProgress = Callable[[Progress], None]


async def ask_all(
    prompts: Mapping[str, Messages],
    connection: LLMConnection,
    sink: AnswerSink,
    budget: Budget | None = None,
    on_progress: OnProgress | None = None,
    *,
    limit: int = MAX_QUERIES,
    pacing: Pacing | None = None,
    answered_before: int = 0,
) -> GenerationOutcome:
    """Ask for every prompt until it is answered, has failed for good, or the run has to stop.

    Args:
        prompts: Messages by prompt hash, in the order in which they are asked; none may be answered already.
        connection: The server.
        sink: Where calls and answers are committed, in a thread, in groups, as they arrive.
        budget: Calls and tokens that may be used; None: any.
        on_progress: Called in the event loop's thread, at most once a second.
        limit: Queries of one answer beyond it are left out.
        pacing: Waits and limits of the retries.
        answered_before: Answers with a question that this model gave in earlier runs.

    Raises:
        Exception: The sink's. Everything that had arrived is offered to it once more before.
    """
    run = Run(prompts, connection, sink, budget or Budget(), on_progress, limit, pacing or Pacing(), answered_before)
    return await run.execute()


def ask_all_blocking(
    prompts: Mapping[str, Messages],
    connection: LLMConnection,
    sink: AnswerSink,
    budget: Budget | None = None,
    on_progress: OnProgress | None = None,
    *,
    limit: int = MAX_QUERIES,
    pacing: Pacing | None = None,
    answered_before: int = 0,
) -> GenerationOutcome:
    """`ask_all` for callers without `await`, from any thread, also from one whose event loop is running."""
    return run_blocking(
        lambda: ask_all(
            prompts,
            connection,
            sink,
            budget,
            on_progress,
            limit=limit,
            pacing=pacing,
            answered_before=answered_before,
        )
    )
