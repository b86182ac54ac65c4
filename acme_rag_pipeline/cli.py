"""The `acme-rag` command: search, compare, ask, status, evaluate, pairs, rollback. Exit codes: 0 done, 1 failed, 2 wrong usage."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import click

from acme_rag_pipeline.cli_context import (
    JSON,
    as_text,
    check_output,
    escape_what_the_console_lacks,
    settings_of,
    store_of,
    write_output,
)
from acme_rag_pipeline.cli_pairs import pairs
from acme_rag_pipeline.cli_search import ask, compare, search, snippet
from acme_rag_pipeline.errors import UserError
from acme_rag_pipeline.settings import SettingsError

_UNREADABLE_SHOWN = 5
# What a person can mend by permissions or by another name. A file that is missing where the code looks for it is a defect.
_ABOUT_A_PATH = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG)


class _Cli(click.Group):
    """Turns errors that a person can mend into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        escape_what_the_console_lacks()
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.UsageError, click.Abort):
            raise
        except click.ClickException as error:
            click.echo(f"acme-rag: {error.format_message()}", err=True)
            ctx.exit(error.exit_code)
        except BrokenPipeError:
            sys.exit(0)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                said = f"cannot write: {error.strerror}"
            elif error.filename is not None and error.errno in _ABOUT_A_PATH:
                said = f"{error.filename}: {error.strerror}"
            else:
                raise
            click.echo(f"acme-rag: {said}", err=True)
            ctx.exit(1)
        except UserError as error:
            click.echo(f"acme-rag: {error}", err=True)
            ctx.exit(1)


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
@JSON
@click.pass_context
def status(context: click.Context, as_json: bool) -> None:
    """What is promoted and why, how far the served index is behind the documents, counts, when each stage last changed."""
    from acme_rag_pipeline.evaluation.changed_settings import CHANGED
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
            f"promoted   {promoted['model_digest'][:12]}, {promoted['recipe']}, decided {promoted['decided_at'][:19]}Z"
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
    if changed := known["settings_changed_since_refresh"]:
        made = f"made with other settings, another base model or other code ({', '.join(changed)})"
        behind = f"{behind}; {made}" if "documents_changed" in known or not known["last_decision_served"] else made
    problems = [known[name] for name in ("served_problem", "documents_problem") if name in known]
    lag = "; ".join(problems) or f"{behind}: run `refresh`"
    click.echo(f"served     {'up to date' if known['up_to_date'] else lag}")
    if change := known.get("chunks_changed_since_retrain"):
        click.echo(f"training   {change['changed_share']:.1%} of the chunks changed since the last retrain")
    if changed := known["settings_changed_since_retrain"]:
        click.echo(f"training   {CHANGED} ({', '.join(changed)}): `nightly_retrain` or `retrain` deals with it")
    if "settings_problem" in known:
        click.echo(f"settings   {known['settings_problem']}")
    click.echo("counts     " + ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in known["counts"].items()))
    for kind in ("unreadable", "incomplete"):
        for row in known[kind][:_UNREADABLE_SHOWN]:
            click.echo(f"{kind} {snippet(row['doc_path'], 300)}: {snippet(row['reason'], 200)}")
        if (more := len(known[kind]) - _UNREADABLE_SHOWN) > 0:
            click.echo(f"{kind} and {more} more: `acme-rag status --json` names all")
    for name, value in known.get("ndcg@10", {}).items():
        query_set, _, arm = name.partition("/")
        if query_set == "held_out" and known["held_out_chose_the_weights"]:
            query_set = "validation (chose the weights)"
        click.echo(f"nDCG@10    {value:.4f}  {query_set}/{arm}")
    for row in known["decisions"]:
        click.echo(
            f"decision   {row['decided_at'][:19]}Z  {row['verdict']}  ({row['model_digest'][:12]}, {row['recipe']})"
        )
    for row in known["stages"]:
        click.echo(f"stage      {row['last_change'][:19]}Z  {row['stage']}")


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
        mark = "  <- readers use this" if arm["arm"] == rows["promoted"] else ""
        click.echo(
            f"{arm['arm']:<20}{arm['ndcg@10']['value']:>9.4f}  {interval:<18}{numbers}   {versus:<28}{mark}".rstrip()
        )
    click.echo("Intervals are 95 % each, units resampled, and not adjusted for the number of arms.")
    if done.champion_in_words:
        click.echo(done.champion_in_words)


@main.command()
@click.option("--to", "digest", help="Digest of the model, or its beginning; default the promotion before this one.")
@click.pass_context
def rollback(context: click.Context, digest: str | None) -> None:
    """Serve an earlier promotion again, over the documents of today."""
    from acme_rag_pipeline.serving.serve import rollback as roll_back

    decision = roll_back(store_of(context), settings_of(context), digest and digest.strip().lower())
    click.echo(f"promoted now: {decision.model_digest[:12]}, {decision.recipe}. {decision.reason}")


for command in (search, compare, ask, pairs):
    main.add_command(command)

if __name__ == "__main__":
    main()
