"""Each distinct input is encoded once, and a cached vector is the one that was computed."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pytest

from acme_rag_pipeline.embedding import encoder as encoding
from acme_rag_pipeline.embedding.base_model import resolve_base_model
from acme_rag_pipeline.embedding.cache import EmbeddingCache
from acme_rag_pipeline.embedding.encoder import Encoder, Precision, load_model
from acme_rag_pipeline.settings import EMBEDDED_BASE_MODEL

pytestmark = pytest.mark.encodes

TEXTS = ["FLEX days are paid leave.", "Kestrel is the VPN.", "FLEX days are paid leave.", ""]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    base = resolve_base_model(EMBEDDED_BASE_MODEL, tmp_path_factory.mktemp("root"))
    return Encoder(base.folder, base.digest)


def test_equal_texts_are_encoded_once_and_never_again(tmp_path: Path, encoder: Encoder) -> None:
    cache = EmbeddingCache(tmp_path / "cache/embeddings.duckdb")
    vectors, encoded = cache.passages(encoder, TEXTS)
    assert encoded == 3
    assert vectors.shape == (4, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.array_equal(vectors[0], vectors[2])
    again, encoded = EmbeddingCache(tmp_path / "cache/embeddings.duckdb").passages(encoder, TEXTS[::-1])
    assert encoded == 0
    assert np.array_equal(again, vectors[::-1])


def test_queries_and_passages_are_kept_apart(tmp_path: Path, encoder: Encoder) -> None:
    cache = EmbeddingCache(tmp_path / "e.duckdb")
    assert cache.passages(encoder, TEXTS[:1])[1] == 1
    assert cache.queries(encoder, TEXTS[:1])[1] == 1


def test_vectors_agree_with_full_precision(encoder: Encoder) -> None:
    texts = [f"{text} {number}" for number in range(8) for text in TEXTS[:2]]
    exact = Encoder(encoder.folder, encoder.digest, "fp32").encode_passages(texts)
    assert (np.sum(exact * encoder.encode_passages(texts), axis=1) >= 0.9999).all()


@pytest.mark.parametrize("stored", ["half", "bfloat16"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_stored_in_half_precision_encodes_like_any_other(
    tmp_path: Path, encoder: Encoder, stored: str, precision: Precision
) -> None:
    half = getattr(load_model(encoder.folder, "cpu"), stored)()
    half.save_pretrained(str(tmp_path), create_model_card=False)
    ours = Encoder(tmp_path, "half", precision)
    assert next(ours.model.parameters()).dtype.itemsize == 4
    assert np.sum(ours.encode_passages(TEXTS) * encoder.encode_passages(TEXTS), axis=1).min() > 0.999


def test_forgotten_models_leave_and_kept_ones_stay(tmp_path: Path, encoder: Encoder) -> None:
    cache = EmbeddingCache(tmp_path / "e.duckdb")
    other = Encoder(encoder.folder, "other", model=encoder.model)
    cache.passages(encoder, TEXTS)
    cache.passages(other, TEXTS)
    assert cache.forget_encoders({encoder.digest}) == 3
    assert cache.passages(encoder, TEXTS)[1] == 0
    assert cache.passages(other, TEXTS)[1] == 3


def test_another_version_of_the_encoding_code_encodes_again_and_its_forerunner_s_vectors_leave(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = EmbeddingCache(tmp_path / "e.duckdb")
    cache.passages(encoder, TEXTS)
    cache.queries(encoder, TEXTS[:1])
    with duckdb.connect(str(tmp_path / "e.duckdb"), read_only=True) as connection:
        keys = connection.execute("SELECT DISTINCT encoder FROM embeddings ORDER BY 1").fetchall()
    # The keys of the caches that exist.
    assert keys == [(f"{encoder.digest}/passage",), (f"{encoder.digest}/query",)]
    assert cache.known_queries(encoder.digest, TEXTS).keys() == {TEXTS[0]}
    monkeypatch.setattr(encoding, "ENCODER_VERSION", "of tomorrow")
    assert not cache.known_queries(encoder.digest, TEXTS)
    assert cache.passages(encoder, TEXTS)[1] == 3
    assert cache.queries(encoder, TEXTS[:1])[1] == 1
    assert cache.known_queries(encoder.digest, TEXTS).keys() == {TEXTS[0]}
    assert cache.forget_encoders({encoder.digest}) == 4
    assert cache.passages(encoder, TEXTS)[1] == 0
