"""Asks an LLM in a process of its own, which a test interrupts as Ctrl-C would, and prints what was committed by then.

`python -m acme_rag_pipeline_tests.pairs.interrupted_asking URL PROMPTS IN_FLIGHT plain|notebook|dagster`
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections import Counter

from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._utils.interrupts import raise_interrupts_as

from acme_rag_pipeline.pairs.llm import LLMAnswer, LLMCall, LLMConnection, ask_all_blocking
from acme_rag_pipeline.pairs.passage import Passage
from acme_rag_pipeline.pairs.prompt import PromptParameters, render

SECONDS_PER_COMMIT = 0.2
INTERRUPTED = 130


class SlowSink:
    """Counts what is committed, so slowly that answers wait for their commit."""

    def __init__(self) -> None:
        self.answers = 0
        self.statuses: Counter[str] = Counter()

    def commit(self, calls: list[LLMCall], answers: list[LLMAnswer]) -> None:
        time.sleep(SECONDS_PER_COMMIT)
        self.answers += len(answers)
        self.statuses.update(call.status for call in calls)


def main() -> int:
    """Ask; the status says whether it was interrupted."""
    url, prompts, in_flight, how = sys.argv[1:]
    # A shell that runs the tests in the background has SIGINT ignored, and asyncio leaves another handler alone.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    passages = [Passage(f"c{n}", "d.md", "Title", ("Heading",), f"Passage {n}.") for n in range(int(prompts))]
    messages = {passage.chunk_id: render(passage, PromptParameters()) for passage in passages}
    connection = LLMConnection("test-model", url, "no key", 30.0, int(in_flight))
    sink = SlowSink()

    async def notebook() -> None:
        # asyncio has taken SIGINT by now. In a notebook the interrupt is raised where the loop's thread waits.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        ask_all_blocking(messages, connection, sink)

    try:
        if how == "notebook":
            asyncio.run(notebook())
        elif how == "dagster":
            # As around a step: the exception is raised wherever the main thread is.
            with raise_interrupts_as(DagsterExecutionInterruptedError):
                ask_all_blocking(messages, connection, sink)
        else:
            ask_all_blocking(messages, connection, sink)
    except (KeyboardInterrupt, DagsterExecutionInterruptedError):
        print(json.dumps({"answers": sink.answers, "statuses": sink.statuses}))
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
