"""`acme-rag search`, `compare` and `ask`: what readers get."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from acme_rag_pipeline.cli_context import (
    JSON,
    as_text,
    check_output,
    reader_settings_of,
    write_output,
)
from acme_rag_pipeline.retriever_names import RETRIEVERS

if TYPE_CHECKING:
    from acme_rag_pipeline.retrieval import Retriever
    from acme_rag_pipeline.retrieval.table_search import SearchHit

K = click.option("-k", "k", type=click.IntRange(1, 1000), default=10, show_default=True, help="How many passages.")
RETRIEVER = click.option(
    "--retriever",
    type=click.Choice(RETRIEVERS),
    default="promoted",
    show_default=True,
    help="What searches: what is promoted, BM25 alone, the base model, or the newest candidate (promoted or not).",
)


@click.command()
@click.argument("text", required=False)
@K
@RETRIEVER
@JSON
@click.option(
    "--queries", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="JSONL of {query_id, query}."
)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="With --queries: where the run is written."
)
@click.pass_context
def search(
    context: click.Context,
    text: str | None,
    k: int,
    retriever: str,
    as_json: bool,
    queries: Path | None,
    out: Path | None,
) -> None:
    """Passages for TEXT with document, heading, score and span; or a run file for many queries."""
    if (text is None) == (queries is None):
        raise click.UsageError("give either a text, or --queries FILE with --out FILE")
    if (queries is None) != (out is None):
        raise click.UsageError("--queries and --out belong together")
    if queries is not None and as_json:
        raise click.UsageError("--json is for a text; with --queries the file that --out names is JSON in any case")
    if queries is not None and out is not None:
        check_output(reader_settings_of(context), "--out", out, inputs=[queries])
    opened = _retriever(context)
    if queries is not None and out is not None:
        asked = list(_queries(queries))
        found = opened.search_many([query for _, query in asked], k, retriever)
        lines = (
            json.dumps({"query_id": query_id, "hits": [hit.as_dict() for hit in hits]}, ensure_ascii=False)
            for (query_id, _), hits in zip(asked, found, strict=True)
        )
        text = "".join(line + "\n" for line in lines)
        write_output("--out", out, text)
        click.echo(f"{len(asked)} queries, retriever {retriever}: {out}", err=True)
        return
    hits = opened.search(text or "", k, retriever)
    if as_json:
        click.echo(as_text({"query": text, "retriever": retriever, "hits": [hit.as_dict() for hit in hits]}))
        return
    if not hits:
        click.echo("no passage found")
    for rank, hit in enumerate(hits, start=1):
        _show(rank, hit)


@click.command()
@click.argument("text")
@click.option("-k", "k", type=click.IntRange(1, 100), default=5, show_default=True, help="How many passages each.")
@JSON
@click.pass_context
def compare(context: click.Context, text: str, k: int, as_json: bool) -> None:
    """The base model and what is promoted, side by side, for TEXT: before and after."""
    opened = _retriever(context)
    base, promoted = (opened.search(text, k, name) for name in ("base", "promoted"))
    if as_json:
        both = {"base": [h.as_dict() for h in base], "promoted": [h.as_dict() for h in promoted]}
        click.echo(as_text({"query": text, **both}))
        return
    if not base and not promoted:
        click.echo("no passage found")
        return
    pointer = opened.promoted()
    click.echo(f"promoted: {pointer.model_digest[:12]}, {pointer.recipe}")
    before = {hit.chunk_id: rank for rank, hit in enumerate(base, start=1)}
    click.echo(f"\nBase, dense\n{'-' * 60}")
    for rank, hit in enumerate(base, start=1):
        click.echo(f"{rank:2}. {_source(hit.doc_path, hit.heading)}\n    {snippet(hit.text, 120)}")
    click.echo(f"\nPromoted\n{'-' * 60}")
    for rank, hit in enumerate(promoted, start=1):
        was = before.get(hit.chunk_id)
        moved = "new here" if was is None else ("same place" if was == rank else f"was {was}")
        click.echo(f"{rank:2}. {_source(hit.doc_path, hit.heading)}  [{moved}]\n    {snippet(hit.text, 120)}")


@click.command()
@click.argument("question")
@click.option("-k", "k", type=click.IntRange(1, 50), default=6, show_default=True, help="How many passages it may use.")
@JSON
@click.pass_context
def ask(context: click.Context, question: str, k: int, as_json: bool) -> None:
    """An answer to QUESTION with numbered sources, through the LLM; without one the best passages.

    ACME_RAG_GENERATOR=offline keeps every text on this machine.
    """
    from acme_rag_pipeline.pairs.llm import LLMConnection
    from acme_rag_pipeline.retrieval.answer import answer

    settings = reader_settings_of(context)
    hits = [hit.as_dict() for hit in _retriever(context).search(question, k)]
    connection, without_llm = None, "no LLM is configured"
    if settings.generator == "offline":
        without_llm = "ACME_RAG_GENERATOR=offline keeps every text on this machine"
    elif settings.llm_configured:
        key = settings.openai_api_key.get_secret_value() if settings.openai_api_key else None
        connection = LLMConnection(
            model=settings.llm,
            base_url=settings.openai_base_url,
            api_key=key,
            timeout_seconds=settings.pairs.timeout_seconds,
            concurrency=1,
        )
    elif settings.generator != "auto":
        without_llm = f"ACME_RAG_GENERATOR={settings.generator} needs OPENAI_API_KEY or OPENAI_BASE_URL"
    found = answer(question, hits, connection, without_llm=without_llm)
    if as_json:
        click.echo(as_text({"question": question, "answer": found.text, "note": found.note, "sources": found.sources}))
        return
    if found.text:
        click.echo(found.text + "\n")
    if found.note:
        click.echo(found.note + "\n")
    for source in found.sources:
        click.echo(f"[{source['number']}] {_source(source['doc_path'], source['heading'])}")
        if not found.text:
            click.echo(f"    {snippet(source['text'], 400)}")


def _retriever(context: click.Context) -> Retriever:
    from acme_rag_pipeline.retrieval.retriever import Retriever

    settings = reader_settings_of(context)
    return Retriever.open(settings.store, settings.retrieval)


def _queries(path: Path) -> Iterable[tuple[str, str]]:
    """Id and text of each query; `click.ClickException` names the first line that cannot be used."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise click.ClickException(f"--queries: {path} is not UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise click.ClickException(f"--queries: cannot read {path}: {error.strerror}") from None
    line_of: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        query_id, query = _query(f"--queries: {path} line {number}", line)
        if first := line_of.get(query_id):
            raise click.ClickException(
                f"--queries: {path} line {number}: query_id {snippet(query_id, 80)} stands in line {first} already; "
                "give each query its own"
            )
        line_of[query_id] = number
        yield query_id, query


def _query(place: str, line: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise click.ClickException(f"{place}: not JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise click.ClickException(f"{place}: not JSON ({error})") from None
    if not isinstance(row, dict) or not {"query_id", "query"} <= row.keys():
        raise click.ClickException(
            f'{place}: must be an object with query_id and query: {{"query_id": "1", "query": "…"}}'
        )
    query_id, query = row["query_id"], row["query"]
    if not isinstance(query, str) or type(query_id) not in (str, int):
        raise click.ClickException(f"{place}: query must be a text, query_id a text or a whole number")
    if any("\ud800" <= character <= "\udfff" for character in str(query_id)):
        # It could not be written as it is, and written in another way it would be another id.
        raise click.ClickException(f"{place}: query_id holds half a character")
    return str(query_id), query


def _show(rank: int, hit: SearchHit) -> None:
    place = click.style(f"{snippet(hit.doc_path, 300)}:{hit.start}-{hit.end}", bold=True)
    click.echo(
        f"{rank:2}. {place}  {hit.score:.4f}\n    {click.style(snippet(hit.heading, 200), dim=True)}\n    {snippet(hit.text, 240)}\n"
    )


def _source(doc_path: str, heading: str) -> str:
    return f"{snippet(doc_path, 300)}  {click.style(snippet(heading, 200), dim=True)}"


def snippet(text: str, characters: int) -> str:
    # Control characters of a document must not reach the terminal.
    words = "".join(c if c.isprintable() else " " for c in text).split()
    # Lines below headings and around tables take the room of what is to be read.
    line = " ".join(w for w in words if len(w) < 4 or w[0].isalnum() or len(set(w)) > 1)
    return line if len(line) <= characters else line[: characters - 1] + "…"
