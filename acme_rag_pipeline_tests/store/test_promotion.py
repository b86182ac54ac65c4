"""The pointer is whole at every moment, and damage is said in words."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"model_digest": 1}', b"\xff\xfe{}", b"\x00" * 300])
def test_a_damaged_pointer_is_named_and_written_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "promoted.json"
    path.write_bytes(content)
    with pytest.raises(PointerDamaged, match="served_index") as raised:
        read_pointer(path)
    assert "\n" not in str(raised.value)
    assert write_pointer(path, promoted(3))
    assert read_pointer(path) == promoted(3)


def test_a_pointer_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(PointerDamaged, match="cannot be read"):
        read_pointer(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("recipe", "colbert"),
        ("table", 5),
        ("lance_version", "4"),
        ("lance_version", True),
        ("lance_version", -1),
        ("lance_version", 2**70),
        ("decided_at", None),
        ("passage_prefix", "summary"),
        ("fusion", 5),
    ],
)
def test_a_value_that_this_version_cannot_use_is_named(tmp_path: Path, name: str, value: Any) -> None:
    path = tmp_path / "promoted.json"
    path.write_text(json.dumps(asdict(promoted(3)) | {name: value}))
    with pytest.raises(PointerDamaged, match=f"another version .{name}: "):
        read_pointer(path)


def test_fields_of_a_later_or_an_earlier_version_are_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "promoted.json"
    known = {name: value for name, value in asdict(promoted(3)).items() if name not in ("passage_prefix", "fusion")}
    path.write_text(json.dumps(known | {"shards": [1, 2]}))
    assert read_pointer(path) == promoted(3)


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
