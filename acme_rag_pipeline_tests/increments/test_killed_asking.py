"""`kill -9` while an LLM answers: what was committed is never asked again, and the end is that of a run in peace."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest

from acme_rag_pipeline_tests.increments.worker import Run, rows_of, settings_of, store_of
from acme_rag_pipeline_tests.llm_server import Act, ScriptedLLM, hang, ok, prompt_of

pytestmark = pytest.mark.slow
STAGES = ("documents", "chunks", "synthetic_pairs")
DOCUMENTS = 40
IN_FLIGHT = 3
KILL_AFTER = (5, 8, 13)


def by_prompt(number: int, body: dict[str, Any]) -> Act:
    """The same answer to the same prompt, whoever asks and when."""
    return ok(f"what does {prompt_of(body)[:12]} say?", f"and {prompt_of(body)[:12]}?")


def test_a_killed_run_pays_for_no_answer_twice(tmp_path: Path) -> None:
    for folder in ("killed", "in peace"):
        documents = tmp_path / folder / "documents"
        documents.mkdir(parents=True)
        for number in range(DOCUMENTS):
            text = f"# Desk {number}\n\nDesk {number} settles what you ask about subject {number} within a week.\n"
            (documents / f"{number}.md").write_text(text)
    killed = store_of(settings_of(tmp_path / "killed"))
    hangs_from = math.inf

    def until_killed(number: int, body: dict[str, Any]) -> Act:
        """No answer to what comes after the request at which the run is killed: it cannot end before that."""
        return hang(600) if number >= hangs_from else by_prompt(number, body)

    with ScriptedLLM(until_killed, latency=0.1) as server:
        given: dict[str, Any] = {
            "generator": "openai",
            "openai_base_url": server.url,
            "pairs": {"queries_per_chunk": 2, "concurrency": IN_FLIGHT},
        }

        def asked_since(before: int) -> list[str]:
            return [prompt_of(body) for body in server.requests[before:]]

        def answered() -> set[str]:
            return {row[0] for row in rows_of(killed, "SELECT prompt_hash FROM answers")}

        known: set[str] = set()
        for more in KILL_AFTER:
            before = len(server.requests)
            hangs_from = before + more
            run = Run.start(tmp_path / "killed", stages=STAGES, **given)
            while len(server.requests) < before + more and run.process.is_alive():
                time.sleep(0.005)
            run.kill()
            assert not run.error
            assert not run.done, "it ended before it was killed"
            assert not known & set(asked_since(before))
            known = answered()
        assert known
        hangs_from = math.inf
        before = len(server.requests)
        assert Run.start(tmp_path / "killed", stages=STAGES, **given).end().done
        asked = asked_since(before)
        assert set(asked) == answered() - known
        # A request of the killed run may reach the server after its death.
        assert len(asked) - len(set(asked)) <= IN_FLIGHT
        assert len(answered()) == DOCUMENTS
        assert Run.start(tmp_path / "in peace", stages=STAGES, **given).end().done
    peaceful = store_of(settings_of(tmp_path / "in peace"))
    for query in (
        "SELECT * FROM pairs ORDER BY pair_id",
        "SELECT * EXCLUDE (answered_at) FROM answers ORDER BY prompt_hash",
        "SELECT stage, fingerprint, data_version FROM stages ORDER BY stage",
    ):
        assert rows_of(killed, query) == rows_of(peaceful, query), query
