"""`arms.json`: the finished tables of the arms, for readers; the warehouse may be held by a writer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from acme_rag_pipeline.store.layout import Store, write_atomically

_NAMED_BY_AN_ARM = ("model_digest", "model_dir", "table", "passage_prefix")


def arms_file(store: Store) -> Path:
    """`arms.json`: the finished tables of the base and of the newest candidate, and of both with the queries written for them."""
    return store.root / "arms.json"


def known_arms(store: Store) -> dict[str, dict[str, Any]]:
    """The content of `arms.json` without what is no entry, empty if there is none.

    Entries of older stores lack `lance_version`. What is lost is written again by the run that indexes the arm.
    """
    try:
        read = json.loads(arms_file(store).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    entries = read.items() if isinstance(read, dict) else ()
    return {
        arm: entry
        for arm, entry in entries
        if isinstance(entry, dict) and all(isinstance(entry.get(name), str) for name in _NAMED_BY_AN_ARM)
    }


def remember_arm(store: Store, arm: str, entry: dict[str, Any]) -> None:
    """Let readers find the arm and open no version but a finished one."""
    if known_arms(store).get(arm) != entry:
        with store.writer(arm):
            _write(store, known_arms(store) | {arm: entry})


def forget_arm(store: Store, arm: str) -> None:
    """A candidate that is gone is no arm: nobody would take deleted text out of its table."""
    if arm in known_arms(store):
        with store.writer(arm):
            _write(store, {name: entry for name, entry in known_arms(store).items() if name != arm})


def _write(store: Store, arms: dict[str, dict[str, Any]]) -> None:
    write_atomically(arms_file(store), json.dumps(arms, indent=1) + "\n")
