"""Where calls and answers are kept: the warehouse, or a file beside it for as long as another process holds the warehouse.

An answer is paid for, so that it must not be lost because somebody looks into the warehouse.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from acme_rag_pipeline.llm.reply import ABOUT_PROMPT
from acme_rag_pipeline.pairs.generators import Generator, Parameters, without_extra_body
from acme_rag_pipeline.pairs.llm_commit import LLMAnswer, LLMCall
from acme_rag_pipeline.pairs.passage import WrittenQuery
from acme_rag_pipeline.store.fingerprints import fingerprint
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.stages import UpstreamMissing, data_versions, distrust
from acme_rag_pipeline.store.warehouse import WarehouseBusy, append, insert

# Answers to one prompt that could not be used; more are not asked for.
MOST_BAD_ANSWERS = 8
# Refusals by HTTP status that are about the prompt alone, as their `detail` says: too long, offensive, or not to be encoded.
_ABOUT_THE_PROMPT = rf"HTTP 413|HTTP \d+ ({'|'.join(ABOUT_PROMPT)})$|^cannot be sent"
# Calls of one model under one set of parameters. All but an EXTRA_BODY is part of the prompt, and earlier rows do not name it.
_OF_THESE = "model = ? AND coalesce(parameters_hash, ?) = ?"
_Rows = dict[str, list[dict[str, Any]]]
logger = logging.getLogger(__name__)


class AnswerStore:
    """Commits the answers of one generator as they arrive; for the holder of the lock `asking`."""

    def __init__(self, store: Store, generator: Generator) -> None:
        self._store = store
        self._generator = generator

    def commit(self, calls: Sequence[LLMCall], answers: Sequence[LLMAnswer]) -> None:
        """Put them, and what was set aside before, into the warehouse; where another process holds it, set them aside.

        Raises:
            WarehouseUnusable: the disk is full or read-only, or the file is damaged; they are set aside if that works.
            OSError: the warehouse is busy and they cannot be set aside either.
        """
        now = datetime.now(UTC).isoformat()
        rows: _Rows = {
            "answers": [
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
            ],
            "llm_calls": [
                asdict(call)
                | {"called_at": call.called_at.isoformat(), "parameters_hash": self._generator.parameters_hash}
                for call in calls
            ],
        }
        try:
            _commit(self._store, rows)
        except WarehouseBusy as error:
            _set_aside(self._store, rows)
            logger.warning("%s. %d answers wait in %s until then", error, len(answers), _waiting_file(self._store))
        except Exception:
            with contextlib.suppress(OSError):  # the disk may be full
                _set_aside(self._store, rows)
            raise


def commit_waiting(store: Store) -> None:
    """Commit what was set aside, also by a run that ended meanwhile; for the holder of the lock `asking`.

    Raises:
        WarehouseBusy: another process held the warehouse longer than a writer waits; nothing is lost.
    """
    if _waiting_file(store).exists():
        _commit(store, {"answers": [], "llm_calls": []})


def answered_badly(store: Store, parameters: Parameters) -> set[str]:
    """Hashes of prompts that once got an answer that could not be used, or none on principle."""
    with store.warehouse.read() as connection:
        rows = connection.execute(
            f"SELECT DISTINCT prompt_hash FROM llm_calls WHERE {_OF_THESE} AND status IN ('bad_answer', 'refused')",
            _of_these(parameters),
        ).fetchall()
    return {row[0] for row in rows}


def given_up(store: Store, parameters: Parameters) -> dict[str, str]:
    """Prompt hash to the last reason, of prompts that got `MOST_BAD_ANSWERS` under these parameters over all runs."""
    # A refusal of the server's own, such as that of a key, has no tokens and says nothing about the prompt, unless it
    # names what is wrong with it. A bad answer without tokens may be from a server that does not count.
    with store.warehouse.read() as connection:
        rows = connection.execute(
            f"SELECT prompt_hash, arg_max(detail, called_at) FROM llm_calls WHERE {_OF_THESE} "
            "AND (status = 'bad_answer' OR status = 'refused' AND "
            "(prompt_tokens + completion_tokens > 0 OR regexp_matches(detail, ?))) "
            "GROUP BY prompt_hash HAVING count(*) >= ?",
            [*_of_these(parameters), _ABOUT_THE_PROMPT, MOST_BAD_ANSWERS],
        ).fetchall()
    return dict(rows)


def ask_again(store: Store, parameters: Parameters) -> int:
    """Have the prompts that were given up asked again, and keep what they cost; says how many those are.

    Args:
        parameters: `parameters_of` the LLM; what was given up under others stays so.

    Raises:
        UpstreamMissing: the store holds no chunks yet.
        StoreBusy: a run asks the LLM now.
        WarehouseBusy: another process held the warehouse too long.
    """
    with _asking_again(store):
        lost = list(given_up(store, parameters))
        with store.warehouse.write() as connection:
            connection.execute(
                f"UPDATE llm_calls SET status = 'forgiven' WHERE {_OF_THESE} AND status IN ('bad_answer', 'refused') "
                "AND list_contains(?, prompt_hash)",
                [*_of_these(parameters), lost],
            )
    return len(lost)


def ask_empty_again(store: Store, generator: Generator) -> int:
    """Forget the answers of a generator that hold no question, and keep what they cost; says how many those were.

    Raises:
        UpstreamMissing: the store holds no chunks yet.
        StoreBusy: a run asks the LLM now.
        WarehouseBusy: another process held the warehouse too long.
    """
    with _asking_again(store), store.warehouse.write() as connection:
        forgotten = connection.execute(
            "DELETE FROM answers WHERE generator = ? AND parameters_hash IN (?, ?) AND json_array_length(queries) = 0 "
            "RETURNING prompt_hash",
            generator.known_under,
        ).fetchall()
        if forgotten:
            distrust(connection, "synthetic_pairs")
    return len(forgotten)


def _of_these(parameters: Parameters) -> list[Any]:
    """Values for `_OF_THESE`: the model, and the hashes of the parameters without an EXTRA_BODY and with it."""
    return [parameters[2], fingerprint(without_extra_body(parameters)), fingerprint(parameters)]


@contextlib.contextmanager
def _asking_again(store: Store) -> Iterator[None]:
    """Nobody asks meanwhile, and every answer that arrived is in the warehouse."""
    if not store.warehouse.path.exists():  # a writer would create it
        raise UpstreamMissing(f"{store.root} holds no chunks yet: run `refresh` first")
    data_versions(store.warehouse, "chunks")
    with store.writer("asking again", lock="asking"):
        commit_waiting(store)
        yield


def _commit(store: Store, rows: _Rows) -> None:
    waiting = _waiting(store)
    # What was set aside may be offered again: a batch that failed is.
    calls = {
        # An earlier version set rows aside that do not say under which parameters.
        (row["called_at"], row["prompt_hash"]): {"parameters_hash": None} | row
        for row in waiting["llm_calls"] + rows["llm_calls"]
    }
    with store.warehouse.write() as connection:
        if waiting["llm_calls"]:
            # A run that was killed between its commit and the removal of the file has them already.
            connection.executemany("DELETE FROM llm_calls WHERE called_at = ? AND prompt_hash = ?", list(calls))
        insert(connection, "answers", waiting["answers"] + rows["answers"])
        append(connection, "llm_calls", list(calls.values()))
    _waiting_file(store).unlink(missing_ok=True)


def _waiting_file(store: Store) -> Path:
    return store.work / "answers_to_commit.jsonl"


def _waiting(store: Store) -> _Rows:
    rows: _Rows = {"answers": [], "llm_calls": []}
    with contextlib.suppress(FileNotFoundError):
        for line in _waiting_file(store).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # a kill or a full disk cut it off
                table, row = json.loads(line)
                rows[table].append(row)
    return rows


def _set_aside(store: Store, rows: _Rows) -> None:
    store.work.mkdir(parents=True, exist_ok=True)
    with _waiting_file(store).open("a", encoding="utf-8") as file:
        # A line that was cut off ends here.
        file.write("\n" + "".join(json.dumps([table, row]) + "\n" for table in rows for row in rows[table]))
        file.flush()
        os.fsync(file.fileno())


def _json(queries: Sequence[WrittenQuery]) -> str:
    return json.dumps([{"query": q.query, "style": q.style, "method": q.method} for q in queries], ensure_ascii=False)
