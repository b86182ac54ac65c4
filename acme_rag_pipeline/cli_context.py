"""What every `acme-rag` command needs: settings and store of the call, and JSON as an answer."""

from __future__ import annotations

import codecs
import io
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from acme_rag_pipeline.settings import Settings

if TYPE_CHECKING:
    from acme_rag_pipeline.store.layout import Store

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def settings_of(context: click.Context) -> Settings:
    """The settings of this call: `--store` and `--documents` beat the environment."""
    return Settings.load(**_given(context))


def reader_settings_of(context: click.Context) -> Settings:
    """The same for a command that only searches: what training needs may be missing."""
    return Settings.for_readers(**_given(context))


def _given(context: click.Context) -> dict[str, str]:
    return {name: value for name, value in context.obj.items() if value is not None}


def check_output(settings: Settings, option: str, path: Path, *, inputs: Sequence[Path] = ()) -> None:
    """Refuse, before any work, to replace what people wrote or what the store is made of, or to add a document.

    Args:
        settings: they name documents, store, judged queries, curated pairs and example questions.
        option: for messages.
        path: what is to be written.
        inputs: further files, and folders of judged queries.

    Raises:
        click.ClickException: it is one of those, or its folder cannot be looked into.
    """
    from acme_rag_pipeline.store.layout import Store

    try:
        target = path.resolve()
        judged = [
            held / name
            for held in filter(None, (settings.golden, *inputs))
            for name in ("queries.jsonl", "qrels.jsonl")
        ]
        examples = settings.pairs.examples and settings.root / settings.pairs.examples.expanduser()
        by_people = filter(None, (settings.curated_pairs, examples, settings.root / ".env", *inputs))
        written = any(_is_same(held, target) for held in (*by_people, *judged))
        documents, of_store = settings.documents.resolve(), Store(settings.store).is_own(target)
    except (OSError, RuntimeError) as error:  # of links that lead in a circle Python up to 3.12 has no class of its own
        why = getattr(error, "strerror", None) or error
        raise click.ClickException(f"{option}: {path} cannot be written: {why}") from None
    if written:
        raise click.ClickException(f"{option}: {path} is what people wrote: name another file")
    if documents in (target, *target.parents):
        raise click.ClickException(f"{option}: {path} would be one of the documents: name a file outside that folder")
    if of_store:
        raise click.ClickException(f"{option}: {path} is a part of the store: name another file")


def _is_same(held: Path, target: Path) -> bool:
    """Whether both are one file, by whatever name (a hard link too)."""
    if held.resolve() == target:
        return True
    try:
        return target.exists() and held.exists() and held.samefile(target)
    except PermissionError:
        return False


def write_output(option: str, path: Path, text: str) -> None:
    """Write a file that an option names.

    Raises:
        click.ClickException: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{option}: cannot write {path}: {error.strerror}") from None


def store_of(context: click.Context, wait_seconds: float | None = None, settings: Settings | None = None) -> Store:
    """The store of this call.

    Args:
        context: of the command.
        wait_seconds: for another writer; None: as long as the settings say.
        settings: None: `settings_of` the call.
    """
    from acme_rag_pipeline.store.layout import Store

    settings = settings or settings_of(context)
    return Store(settings.store, settings.lock_seconds if wait_seconds is None else wait_seconds)


# C1 controls, DEL, and what changes the direction of writing; `json` escapes the others.
_STEERING = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def as_text(value: Any) -> str:
    """JSON for people and programs: what steers a terminal is escaped, half a character (a lone surrogate) becomes `?`."""
    return escaped(
        json.dumps(value, indent=1, ensure_ascii=False, default=str).encode("utf-8", "replace").decode("utf-8")
    )


def escaped(text: str) -> str:
    """JSON that says the same, without what steers a terminal."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def escape_what_the_console_lacks() -> None:
    """Print a character that standard output's encoding lacks (Windows, ISO-8859) as JSON writes it, `\\u2026`, and go on."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors=_JSON_ESCAPE)


def _json_escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


_JSON_ESCAPE = "acme_rag_pipeline.json_escape"
codecs.register_error(_JSON_ESCAPE, _json_escape)
