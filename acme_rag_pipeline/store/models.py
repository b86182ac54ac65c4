"""Model directories: finished ones only, named by their digest, put in place by one rename."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from acme_rag_pipeline.errors import UserError
from acme_rag_pipeline.store.layout import Store, flush_to_disk


class ModelDamaged(UserError, RuntimeError):
    """Files of a model that readers use are missing or cut off, and nothing else holds a copy; the message names them."""


def model_folder(store: Store, digest: str) -> Path:
    """Where the model of that digest lies."""
    return store.models / digest


def relative_folder(digest: str) -> str:
    """The same, relative to the store, as the pointer names it."""
    return f"models/{digest}"


def file_sizes(folder: Path, names: Collection[str]) -> dict[str, int]:
    """Bytes of files of a folder by relative name."""
    return {name: (folder / name).stat().st_size for name in names}


def lost_files(folder: Path, expected: Mapping[str, int]) -> list[str]:
    """Names of expected files that are missing or have another size. Reads none of them."""

    def size(path: Path) -> int | None:
        try:
            return path.stat().st_size
        except OSError:
            return None

    return [name for name, bytes_ in expected.items() if size(folder / name) != bytes_]


def all_whole(store: Store, trained: Mapping[str, Any]) -> bool:
    """Whether the store holds a candidate and, where it has one, the twin that is measured in its place, with all their files.

    Args:
        store: whose models are looked at.
        trained: details of the training: `model_digest`, `twin_digest` and, by digest, `model_files` (those of an earlier
            version do not say).
    """
    folders = {
        digest: model_folder(store, digest) for n in ("model_digest", "twin_digest") if (digest := trained.get(n))
    }
    files = trained.get("model_files", {})
    return all(path.exists() and not lost_files(path, files.get(digest, {})) for digest, path in folders.items())


def install(store: Store, digest: str, source: Path, names: Collection[str], extra: dict[str, str]) -> Path:
    """Copy a model's files into `models/<digest>`; a reader sees all of them or none. A damaged copy is replaced.

    Args:
        store: where to.
        digest: the model's identity.
        source: a sentence-transformers directory.
        names: its functional files, relative.
        extra: further text files by name, such as README.md and manifest.json.
    """
    target = model_folder(store, digest)
    if not lost_files(target, file_sizes(source, names)):
        return target
    _remove_leftovers(store)
    staged = store.work / f"model-{digest[:16]}-{os.getpid()}"
    for name in names:
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, staged / name)
    for name, text in extra.items():
        (staged / name).write_text(text, encoding="utf-8")
    target.parent.mkdir(parents=True, exist_ok=True)
    _flush(staged)
    if target.exists():
        _remove(store, target)
    staged.replace(target)
    flush_to_disk(target.parent)
    return target


def is_digest(name: str) -> bool:
    """Whether a folder of `models/` is one of ours; people may keep their own beside them."""
    return len(name) == 64 and all(character in "0123456789abcdef" for character in name)


def remove_models(store: Store, keep: set[str]) -> list[str]:
    """Delete the model directories that nobody may go back to. Returns their digests."""
    gone = []
    _remove_leftovers(store)
    if store.models.is_dir():
        for folder in sorted(store.models.iterdir()):
            if folder.is_dir() and is_digest(folder.name) and folder.name not in keep:
                _remove(store, folder)
                gone.append(folder.name)
    return gone


def _remove(store: Store, folder: Path) -> None:
    # Renamed first, so that nobody finds a model with half of its files.
    doomed = store.work / f"removed-{folder.name[:16]}-{os.getpid()}"
    store.work.mkdir(parents=True, exist_ok=True)
    folder.replace(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _remove_leftovers(store: Store) -> None:
    """Delete what killed processes left half copied or half deleted, unless another process may be at work on it.

    Whoever copies or deletes a model holds one of the two locks. The process id in the name would say less: another
    container has its own numbers.
    """
    with store.if_idle("writer") as nobody_writes, store.if_idle("training") as nobody_trains:
        if nobody_writes and nobody_trains:
            for folder in (*store.work.glob("model-*-*"), *store.work.glob("removed-*-*")):
                shutil.rmtree(folder, ignore_errors=True)


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            flush_to_disk(path)
