"""The `acme-rag` command: search, compare, ask, status, evaluate, pairs, rollback. Exit codes: 0 done, 1 failed, 2 wrong usage."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from acme_rag_pipeline.cli_context import (
    JSON,
    as_text,
    check_output,
    reader_settings_of,
    settings_of,
    store_of,
    write_output,
)
from acme_rag_pipeline.cli_pairs import pairs
from acme_rag_pipeline.settings import SettingsError

if TYPE_CHECKING:
    from acme_rag_pipeline.retrieval.retriever import Retriever, SearchHit

_UNREADABLE_SHOWN = 5
RETRIEVERS = ("promoted", "bm25", "base", "base_hybrid", "fine_tuned", "fine_tuned_hybrid")
K = click.option("-k", "k", type=click.IntRange(1, 1000), default=10, show_default=True, help="How many passages.")
RETRIEVER = click.option(
    "--retriever",
    type=click.Choice(RETRIEVERS),
    default="promoted",
    show_default=True,
    help="What searches: what is promoted, BM25 alone, the base model, or the newest candidate (promoted or not).",
)


class _Cli(click.Group):
    """Turns errors that a person can mend into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
        except BrokenPipeError:
            sys.exit(0)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise
            click.echo(f"acme-rag: cannot write: {error.strerror}", err=True)
            ctx.exit(1)
        except Exception as error:
            if not _expected(error):
                raise
            click.echo(f"acme-rag: {error}", err=True)
            ctx.exit(1)


def _expected(error: Exception) -> bool:
    from acme_rag_pipeline.documents.source import DocumentsFolderError
    from acme_rag_pipeline.pairs.review import ReviewUnusable
    from acme_rag_pipeline.retrieval.retriever import ArmMissing
    from acme_rag_pipeline.serving.serve import NoSuchPromotion
    from acme_rag_pipeline.store.layout import StoreBusy, StoreUnusable
    from acme_rag_pipeline.store.models import ModelDamaged
    from acme_rag_pipeline.store.promotion import NothingPromoted, PointerDamaged
    from acme_rag_pipeline.store.stages import UpstreamMissing
    from acme_rag_pipeline.store.warehouse import WarehouseBusy, WarehouseUnusable

    return isinstance(
        error,
        SettingsError
        | DocumentsFolderError
        | ReviewUnusable
        | ArmMissing
        | NoSuchPromotion
        | StoreBusy
        | StoreUnusable
        | ModelDamaged
        | NothingPromoted
        | PointerDamaged
        | UpstreamMissing
        | WarehouseBusy
        | WarehouseUnusable,
    )


@click.group(cls=_Cli, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="acme-rag-pipeline")
@click.option("--store", help="The store folder (default: ACME_RAG_STORE, data/store).")
@click.option("--documents", help="The documents folder (default: ACME_RAG_DOCUMENTS).")
@click.pass_context
def main(context: click.Context, store: str | None, documents: str | None) -> None:
    """Search and answers over your own documents, with a model tuned for them.

    Settings come from the environment and `.env` (ACME_RAG_*, OPENAI_*). Build and update the store with Dagster:
    `make materialize`, or the jobs `refresh` and `retrain`.
    """
    context.obj = {"store": store, "documents": documents}
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        context.color = False


@main.command()
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


@main.command()
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
    pointer = opened.promoted()
    click.echo(f"promoted: {pointer.model_digest[:12]}, {pointer.recipe}")
    before = {hit.chunk_id: rank for rank, hit in enumerate(base, start=1)}
    click.echo(f"\nBase, dense\n{'-' * 60}")
    for rank, hit in enumerate(base, start=1):
        click.echo(f"{rank:2}. {_source(hit.doc_path, hit.heading)}\n    {_snippet(hit.text, 120)}")
    click.echo(f"\nPromoted\n{'-' * 60}")
    for rank, hit in enumerate(promoted, start=1):
        was = before.get(hit.chunk_id)
        moved = "new here" if was is None else ("same place" if was == rank else f"was {was}")
        click.echo(f"{rank:2}. {_source(hit.doc_path, hit.heading)}  [{moved}]\n    {_snippet(hit.text, 120)}")


@main.command()
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

    settings = settings_of(context)
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
            click.echo(f"    {_snippet(source['text'], 400)}")


@main.command()
@JSON
@click.pass_context
def status(context: click.Context, as_json: bool) -> None:
    """What is promoted and why, how far the served index is behind the documents, counts, when each stage last changed."""
    from acme_rag_pipeline.status import store_status

    known = store_status(store_of(context, wait_seconds=5), settings_of(context))
    if as_json:
        click.echo(as_text(known))
        return
    promoted = known["promoted"]
    click.echo(f"store      {known['store']}")
    click.echo(f"documents  {known['documents_folder']}")
    if promoted is None:
        click.echo(known.get("note", "nothing is promoted"))
    else:
        click.echo(
            f"promoted   {promoted['model_digest'][:12]}, {promoted['recipe']}, since {promoted['decided_at'][:19]}"
        )
        click.echo(f"why        {promoted['reason']}")
    if "busy" in known:
        click.echo(known["busy"])
        return
    if not known["stages"]:
        # Nothing was built here yet, or the store is a copy for readers.
        return
    behind = "behind the documents" if known["last_decision_served"] else "not yet what was decided last"
    if changes := known.get("documents_changed", {}):
        counted = ", ".join(f"{count} {what}" for what, count in changes.items() if count)
        behind += f" ({counted})" if counted else ""
    problems = [known[name] for name in ("served_problem", "documents_problem") if name in known]
    lag = "; ".join(problems) or f"{behind}: run `refresh`"
    click.echo(f"served     {'up to date' if known['up_to_date'] else lag}")
    if change := known.get("chunks_changed_since_retrain"):
        click.echo(f"training   {change['changed_share']:.1%} of the chunks changed since the last retrain")
    click.echo("counts     " + ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in known["counts"].items()))
    for row in known["unreadable"][:_UNREADABLE_SHOWN]:
        click.echo(f"unreadable {_snippet(row['doc_path'], 300)}: {_snippet(row['reason'], 200)}")
    if (more := len(known["unreadable"]) - _UNREADABLE_SHOWN) > 0:
        click.echo(f"unreadable and {more} more: `acme-rag status --json` names all")
    for name, value in known.get("ndcg@10", {}).items():
        click.echo(f"nDCG@10    {value:.4f}  {name}")
    for row in known["decisions"]:
        click.echo(
            f"decision   {row['decided_at'][:19]}  {row['verdict']}  ({row['model_digest'][:12]}, {row['recipe']})"
        )
    for row in known["stages"]:
        click.echo(f"stage      {row['last_change'][:19]}  {row['stage']}")


@main.command()
@click.option(
    "--golden", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of another judged set."
)
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the comparison as one self-contained page too: arms, groups of questions, gains and losses per query.",
)
@JSON
@click.pass_context
def evaluate(context: click.Context, golden: Path | None, html: Path | None, as_json: bool) -> None:
    """The comparison of all arms on the golden set, or on any judged set (queries.jsonl, qrels.jsonl)."""
    from acme_rag_pipeline.evaluation.judged_set import compare_arms, comparison_page
    from acme_rag_pipeline.evaluation.words import counted

    store, settings = store_of(context), settings_of(context)
    if html is not None:
        check_output(settings, "--html", html, inputs=[golden] if golden else [])
    try:
        done = compare_arms(store, settings, golden)
    except SettingsError as error:
        if golden is None:
            raise
        raise click.ClickException(str(error).replace("ACME_RAG_GOLDEN: ", f"--golden {golden}: ")) from None
    if html is not None:
        page = comparison_page(store, settings, done)
        write_output("--html", html, page)
        click.echo(f"page: {html}", err=True)
    rows = done.table()
    if as_json:
        click.echo(as_text(rows))
        return
    scope = f"{counted(rows['queries'], 'queries')} over {counted(rows['units'], 'units')}"
    click.echo(scope + (f"; {rows['note']}" if rows["note"] else ""))
    click.echo(f"{'arm':<20}{'nDCG@10':>9}  {'95 % interval':<18}{'MRR@10':>8}{'Recall@10':>11}   against the base")
    for arm in rows["arms"]:
        interval = f"{arm['ndcg@10']['low']:.3f} to {arm['ndcg@10']['high']:.3f}"
        gain = arm["gain"]
        versus = "" if gain is None else f"{gain['difference']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f})"
        numbers = f"{arm['mrr@10']['value']:>8.4f}{arm['recall@10']['value']:>11.4f}"
        click.echo(f"{arm['arm']:<20}{arm['ndcg@10']['value']:>9.4f}  {interval:<18}{numbers}   {versus}")


@main.command()
@click.option("--to", "digest", help="Digest of the model, or its beginning; default the promotion before this one.")
@click.pass_context
def rollback(context: click.Context, digest: str | None) -> None:
    """Serve an earlier promotion again, over the documents of today."""
    from acme_rag_pipeline.serving.serve import rollback as roll_back

    decision = roll_back(store_of(context), settings_of(context), digest)
    click.echo(f"promoted now: {decision.model_digest[:12]}, {decision.recipe}. {decision.reason}")


def _retriever(context: click.Context) -> Retriever:
    from acme_rag_pipeline.retrieval.retriever import Retriever

    settings = reader_settings_of(context)
    return Retriever.open(settings.store, settings.retrieval)


def _queries(path: Path) -> Iterable[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"--queries: {path} is not UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise click.UsageError(f"--queries: cannot read {path}: {error.strerror}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            query_id, query = row["query_id"], row["query"]
        except (ValueError, KeyError, TypeError):
            raise click.UsageError(f"{path} line {number}: needs query_id and query as JSON") from None
        if not isinstance(query, str) or type(query_id) not in (str, int):
            raise click.UsageError(f"{path} line {number}: query must be a text, query_id a text or a whole number")
        yield str(query_id), query


def _show(rank: int, hit: SearchHit) -> None:
    place = click.style(f"{_snippet(hit.doc_path, 300)}:{hit.start}-{hit.end}", bold=True)
    click.echo(
        f"{rank:2}. {place}  {hit.score:.4f}\n    {click.style(_snippet(hit.heading, 200), dim=True)}\n    {_snippet(hit.text, 240)}\n"
    )


def _source(doc_path: str, heading: str) -> str:
    return f"{_snippet(doc_path, 300)}  {click.style(_snippet(heading, 200), dim=True)}"


def _snippet(text: str, characters: int) -> str:
    # Control characters of a document must not reach the terminal.
    words = "".join(c if c.isprintable() else " " for c in text).split()
    # Lines below headings and around tables take the room of what is to be read.
    line = " ".join(w for w in words if len(w) < 4 or w[0].isalnum() or len(set(w)) > 1)
    return line if len(line) <= characters else line[: characters - 1] + "…"


main.add_command(pairs)

if __name__ == "__main__":
    main()
