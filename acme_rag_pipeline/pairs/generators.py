"""The question generators in use: what each of them sends for every chunk, and the answers that it has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from acme_rag_pipeline.llm.text import clean_line
from acme_rag_pipeline.pairs import offline, prompt
from acme_rag_pipeline.pairs.budget_order import diverse_order
from acme_rag_pipeline.pairs.corpus_statistics import CorpusStatistics
from acme_rag_pipeline.pairs.passage import Passage
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.fingerprints import fingerprint, sha256_text
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.warehouse import records

GeneratorName = Literal["openai", "offline"]
# What a generator's answers depend on besides each prompt; an LLM's begin with "openai", prompt version and model.
Parameters = tuple[Any, ...]


@dataclass(frozen=True)
class Generator:
    """One way of writing questions.

    Attributes:
        name: Also the origin of its pairs.
        parameters: What its answers depend on besides the prompt.
        prompts: Prompt hash to what is sent, in the order to ask.
        prompt_of: Chunk id to prompt hash.
        paid_under: The same parameters as an earlier version wrote them; its answers to the same prompts count.
    """

    name: GeneratorName
    parameters: Parameters
    prompts: dict[str, Any]
    prompt_of: dict[str, str]
    paid_under: Parameters = ()

    @property
    def parameters_hash(self) -> str:
        """With the name and a prompt's hash the key of an answer."""
        return fingerprint(self.parameters)

    @property
    def known_under(self) -> list[str]:
        """Name and both parameters' hashes: its answers are the rows of `answers` with that name and one of these."""
        return [self.name, fingerprint(self.paid_under), self.parameters_hash]


def parameters_of(settings: Settings, name: GeneratorName, examples: Sequence[str] = ()) -> Parameters:
    """What a generator's answers depend on besides each chunk's prompt; JSON values.

    Args:
        examples: Of the user's own queries, as the LLM is shown them.
    """
    if name == "offline":
        return "offline", offline.GENERATOR_VERSION, settings.pairs.queries_per_chunk
    # As the prompt says them: a space that it does not show pays for nothing twice.
    shown = [line for example in examples if (line := clean_line(example))]
    return _parameters_of_llm(settings, clean_line(settings.pairs.audience), clean_line(settings.pairs.language), shown)


def _parameters_of_llm(settings: Settings, *said: str | list[str]) -> Parameters:
    fixed = ("openai", prompt.PROMPT_VERSION, settings.llm, settings.pairs.queries_per_chunk)
    # Nothing for what nobody chose: answers that were paid for before these settings existed stay valid.
    chosen = (*fixed, *said) if any(said) else fixed
    return (*chosen, {"extra_body": settings.pairs.extra_body}) if settings.pairs.extra_body else chosen


def without_extra_body(parameters: Parameters) -> Parameters:
    """An LLM's parameters as they were without an `EXTRA_BODY`."""
    return parameters[:-1] if isinstance(parameters[-1], dict) else parameters


def generator(
    settings: Settings, name: GeneratorName, passages: Sequence[Passage], examples: Sequence[str] = ()
) -> Generator:
    """A generator with its prompts for the passages; nothing is asked."""
    prompts: dict[str, Any] = {}
    prompt_of: dict[str, str] = {}
    paid_under: Parameters = ()
    if name == "offline":
        statistics = CorpusStatistics.from_passages(passages)
        offline_parameters = offline.OfflineParameters(queries_per_chunk=settings.pairs.queries_per_chunk)
        for passage in passages:
            rendered = offline.render(passage, statistics, offline_parameters)
            prompt_of[passage.chunk_id] = sha256_text(rendered)
            prompts[prompt_of[passage.chunk_id]] = rendered
    else:
        asked = prompt.PromptParameters(
            queries=settings.pairs.queries_per_chunk,
            audience=settings.pairs.audience,
            language=settings.pairs.language,
            examples=tuple(examples),
        )
        for passage in diverse_order(passages):
            messages = prompt.render(passage, asked)
            prompt_of[passage.chunk_id] = fingerprint(messages)
            prompts[prompt_of[passage.chunk_id]] = messages
        paid_under = _parameters_of_llm(settings, settings.pairs.audience, settings.pairs.language, list(examples))
    return Generator(name, parameters_of(settings, name, examples), prompts, prompt_of, paid_under)


def answered(store: Store, generator: Generator) -> set[str]:
    """Hashes of all prompts that have an answer, also of prompts that no chunk has today."""
    with store.warehouse.read() as connection:
        rows = connection.execute(
            "SELECT prompt_hash FROM answers WHERE generator = ? AND parameters_hash IN (?, ?)",
            generator.known_under,
        ).fetchall()
    return {row[0] for row in rows}


def answered_with_a_question(store: Store, generator: Generator) -> set[str]:
    """Of `answered` those with at least one question."""
    with store.warehouse.read() as connection:
        rows = connection.execute(
            "SELECT prompt_hash FROM answers WHERE generator = ? AND parameters_hash IN (?, ?) "
            "AND json_array_length(queries) > 0",
            generator.known_under,
        ).fetchall()
    return {row[0] for row in rows}


def answers(store: Store, generator: Generator) -> dict[str, list[dict[str, str]]]:
    """Prompt hash to {query, style, method} of each of today's prompts that has an answer."""
    with store.warehouse.read() as connection:
        rows = records(
            connection,
            "SELECT prompt_hash, queries FROM answers WHERE generator = ? AND parameters_hash IN (?, ?) "
            "ORDER BY parameters_hash = ?",
            [*generator.known_under, generator.parameters_hash],
        )
    return {r["prompt_hash"]: json.loads(r["queries"]) for r in rows if r["prompt_hash"] in generator.prompts}


def pair_rows(generator: Generator, answers: dict[str, list[dict[str, str]]]) -> list[dict[str, Any]]:
    """Rows of `pairs` for the answers of a generator."""
    rows: dict[str, dict[str, Any]] = {}
    for chunk_id, prompt_hash in generator.prompt_of.items():
        for written in answers.get(prompt_hash, []):
            pair_id = sha256_text(f"{generator.name}\0{written['query']}\0{chunk_id}")
            rows[pair_id] = {
                "pair_id": pair_id,
                "query": written["query"],
                "chunk_id": chunk_id,
                "origin": generator.name,
                "style": written["style"],
                "method": written["method"],
                "generator": str(generator.parameters[1]),
                "prompt_hash": prompt_hash,
            }
    return list(rows.values())
