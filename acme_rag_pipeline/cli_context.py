"""What every `acme-rag` command needs: settings and store of the call, and JSON as an answer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from acme_rag_pipeline.settings import Settings

if TYPE_CHECKING:
    from acme_rag_pipeline.store.layout import Store

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def settings_of(context: click.Context) -> Settings:
    """The settings of this call: `--store` and `--documents` beat the environment."""
    given = {name: value for name, value in context.obj.items() if value is not None}
    return Settings.load(**given)


def store_of(context: click.Context, wait_seconds: float | None = None) -> Store:
    """The store of this call; `wait_seconds` None: as long as the settings say."""
    from acme_rag_pipeline.store.layout import Store

    settings = settings_of(context)
    return Store(settings.store, settings.lock_seconds if wait_seconds is None else wait_seconds)


def as_text(value: Any) -> str:
    """JSON for people and programs; half a character (a lone surrogate), which no terminal takes, becomes `?`."""
    return json.dumps(value, indent=1, ensure_ascii=False, default=str).encode("utf-8", "replace").decode("utf-8")
