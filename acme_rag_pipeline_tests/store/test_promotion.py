"""The pointer is whole at every moment, and damage is said in words."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from acme_rag_pipeline.store.promotion import NothingPromoted, PointerDamaged, Promoted, read_pointer, write_pointer


def promoted(version: int) -> Promoted:
    return Promoted("d" * 64, "models/" + "d" * 64, "passages", version, "dense", "2026-11-21T00:00:00+00:00", "why ✓")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert write_pointer(tmp_path / "promoted.json", promoted(3))
    assert read_pointer(tmp_path / "promoted.json") == promoted(3)
    assert not write_pointer(tmp_path / "promoted.json", promoted(3))


def test_no_pointer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NothingPromoted, match="make materialize"):
        read_pointer(tmp_path / "promoted.json")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model_digest": 1}'])
def test_a_damaged_pointer_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "promoted.json").write_text(content)
    with pytest.raises(PointerDamaged, match="served_index"):
        read_pointer(tmp_path / "promoted.json")


def test_a_reader_never_sees_half_of_it(tmp_path: Path) -> None:
    path = tmp_path / "promoted.json"
    write_pointer(path, promoted(0))
    stop = threading.Event()
    seen: list[int] = []
    failures: list[Exception] = []

    def read() -> None:
        while not stop.is_set():
            try:
                seen.append(read_pointer(path).lance_version)
            except Exception as error:
                failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for version in range(1, 200):
        write_pointer(path, promoted(version))
    stop.set()
    reader.join()
    assert not failures
    assert seen == sorted(seen)
