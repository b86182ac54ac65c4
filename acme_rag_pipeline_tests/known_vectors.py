"""Vectors that the real model computed for an earlier test of the same process: most tests encode the same small company.

A model is opened all the same, so a damaged one is noticed, and a test that counts what is encoded counts what was
asked for. A third of the suite's time went into computing the same vectors again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from acme_rag_pipeline.embedding.encoder import Encoder

_SAMPLES, _SAMPLE_BYTES = 32, 16_384
_vectors: dict[tuple[str, ...], np.ndarray] = {}
_compute = Encoder._encode


def remember(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the end of the test."""
    monkeypatch.setattr(Encoder, "_encode", _encode)


def _encode(self: Encoder, texts: Sequence[str], method: str) -> np.ndarray:
    if not self._may_compile:
        # In training: the weights are not those of a folder.
        return _compute(self, texts, method)
    if self._light_model(texts) is None:
        assert self.model
    model = (self.digest, _look_of(self.folder), self.precision, method)
    keys = [(*model, text) for text in texts]
    new = [key for key in dict.fromkeys(keys) if key not in _vectors]
    if new:
        _vectors.update(zip(new, _compute(self, [key[-1] for key in new], method), strict=True))
    return np.array([_vectors[key] for key in keys])


def _look_of(folder: Path) -> str:
    """What tells models apart that tests gave one digest: names and sizes of all files, and samples of their bytes."""
    look = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        look.update(f"{path.relative_to(folder)} {size}\n".encode())
        with path.open("rb") as file:
            for number in range(_SAMPLES):
                file.seek(number * size // _SAMPLES)
                look.update(file.read(_SAMPLE_BYTES))
    return look.hexdigest()
