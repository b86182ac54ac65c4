"""`acme-rag pairs`: estimate, ask-again, export, import."""

from __future__ import annotations

from pathlib import Path

import click

from acme_rag_pipeline.cli_context import (
    JSON,
    as_text,
    check_output,
    escaped,
    reader_settings_of,
    settings_of,
    store_of,
    write_output,
)


@click.group()
def pairs() -> None:
    """The training pairs: what asking an LLM for them would cost, asking again, and a person's review of them."""


@pairs.command("estimate")
@JSON
@click.pass_context
def estimate_pairs(context: click.Context, as_json: bool) -> None:
    """What the LLM generator would send now: prompts, tokens, cost, time. Sends nothing and writes nothing."""
    from dataclasses import asdict

    from acme_rag_pipeline.pairs.dry_run import dry_run

    found = dry_run(store_of(context), settings_of(context))
    if as_json:
        click.echo(as_text(asdict(found)))
        return
    click.echo(f"model      {found.model} at {found.server} (generator in use: {found.generator})")
    click.echo(
        f"prompts    {found.prompts} for {found.chunks} chunks, {found.answered} answered, {found.to_send} to send"
    )
    run = found.one_run
    limited = found.within_budget < found.to_send
    if limited:
        click.echo(f"budget     reaches about {found.within_budget} of them in one run")
    tokens = f"; one run {run['prompt_tokens']} in, {run['completion_tokens']} out" if limited else ""
    click.echo(f"tokens     about {found.prompt_tokens} in, {found.completion_tokens} out{tokens}")
    click.echo(f"counted    {found.counted_by}")
    if found.cost is not None:
        click.echo(f"cost       about {found.cost:.4f}" + (f"; one run {run['cost']:.4f}" if limited else ""))
    if found.seconds is not None:
        click.echo(f"time       about {found.seconds:.0f} s" + (f"; one run {run['seconds']:.0f} s" if limited else ""))
    for note in found.notes:
        click.echo(f"note       {note}")


@pairs.command("ask-again")
@click.option("--empty", is_flag=True, help="Instead about passages for which its answer held no question.")
@click.pass_context
def ask_passages_again(context: click.Context, empty: bool) -> None:
    """Have the LLM asked again about passages that were given up after 8 answers that cannot be used."""
    from acme_rag_pipeline.pairs.answer_store import ask_again, ask_empty_again
    from acme_rag_pipeline.pairs.examples import example_queries
    from acme_rag_pipeline.pairs.generators import generator

    settings = settings_of(context)
    model, store = settings.llm, store_of(context)
    # Its answers are told from those of other settings by what it is, whatever the passages are.
    asked = generator(settings, "openai", (), example_queries(settings)[0])
    if empty:
        count = ask_empty_again(store, asked)
        none = f"{model} has left no passage without a question"
    else:
        count, none = ask_again(store, asked.parameters), f"{model} has given no passage up"
    passages = "1 passage" if count == 1 else f"{count} passages"
    click.echo(f"{passages} of model {model} will be asked about again" if count else none)
    if count:
        click.echo("It counts from the next `retrain` on.")


@pairs.command("export")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file: JSONL, or a table where its name ends in .csv or .tsv; default: JSONL on standard output.",
)
@click.option(
    "--origin",
    "origins",
    multiple=True,
    type=click.Choice(["curated", "openai", "offline"]),
    help="Only pairs of this origin; may be given several times.",
)
@click.option(
    "--kept/--all", default=True, show_default=True, help="Only pairs that passed the filters, or all with reasons."
)
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    help="At most so many pairs of each origin, style and method; the same each time.",
)
@click.option(
    "--unresolved",
    is_flag=True,
    help="Instead: the curated lines that no longer resolve, with the reason and the nearest passage, document and span.",
)
@click.pass_context
def export_pairs(
    context: click.Context, out: Path | None, origins: tuple[str, ...], kept: bool, sample: int | None, unresolved: bool
) -> None:
    """The training pairs for review, one a line or row: fill in `verdict` (accepted, rejected, edited) and `edited_query`."""
    from acme_rag_pipeline.pairs.review import review_rows
    from acme_rag_pipeline.pairs.review_files import check_ending, holds_verdicts, in_form
    from acme_rag_pipeline.pairs.unresolved import unresolved_rows

    if unresolved and (origins or sample or not kept):
        raise click.UsageError("--unresolved lists curated lines: it goes with --out alone")
    settings = reader_settings_of(context)
    if out is not None:
        check_ending(out)
        check_output(settings, "--out", out)
        if holds_verdicts(out):
            raise click.ClickException(f"--out: {out} holds verdicts, or what cannot be read: name another file")
    store = store_of(context, settings=settings)
    rows = unresolved_rows(store) if unresolved else review_rows(store, origins, dropped_too=not kept, sample=sample)
    if out is None:
        click.echo(escaped(in_form(rows)), nl=False)
        return
    write_output("--out", out, in_form(rows, out))
    click.echo(f"{len(rows)} {'unresolved lines' if unresolved else 'pairs'}: {out}", err=True)


@pairs.command("import")
@click.argument("reviewed", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--into",
    type=click.Path(dir_okay=False, path_type=Path),
    help="JSONL file of curated pairs to merge into; default: ACME_RAG_CURATED_PAIRS.",
)
@click.pass_context
def import_pairs(context: click.Context, reviewed: Path, into: Path | None) -> None:
    """Merge a REVIEWED export (.jsonl, .csv or .tsv) into the curated pairs. A second time changes nothing."""
    from acme_rag_pipeline.pairs.review import VARIABLE, import_review

    # The file of curated pairs may be about to be made.
    done = import_review(reviewed, reader_settings_of(context), into)
    counted = ", ".join(f"{count} {verdict}" for verdict, count in sorted(done.verdicts.items())) or "no lines"
    if not done.verdicts.keys() - {"none"}:
        click.echo(f"{counted}: no line has a verdict (accepted, rejected, edited), so nothing was written")
        return
    click.echo(f"{counted}; {done.file}: {'written' if done.changed else 'held all of it already'}")
    if done.to_set:
        click.echo(f"Set {VARIABLE}={done.file} so that runs use it.")
    if done.changed:
        click.echo("It counts from the next `retrain` on.")
