"""Soft whitening: what it does to vectors, and that a model with it computes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from acme_rag_pipeline.embedding.base_model import resolve_base_model
from acme_rag_pipeline.embedding.encoder import load_model
from acme_rag_pipeline.training.whitening import add_whitening, soft_whitening, whitened


def test_directions_come_closer_to_each_other_and_exponent_zero_changes_none() -> None:
    vectors = np.random.default_rng(0).normal(size=(4000, 8)) * np.array([8, 4, 2, 1, 1, 1, 0.5, 0.5])

    def spread(exponent: float) -> float:
        moved = vectors @ soft_whitening(vectors, exponent)
        strengths = np.linalg.eigvalsh(moved.T @ moved)
        return float(strengths[-1] / strengths[0])

    assert spread(0.5) < 1.2
    assert spread(0.5) < spread(0.2) < spread(0.1) < spread(0.0)
    unchanged = soft_whitening(vectors, 0.0)
    assert np.allclose(unchanged / unchanged[0, 0], np.eye(8), atol=1e-5)


def test_fewer_texts_than_dimensions_and_one_text_alone_are_finite() -> None:
    vectors = np.random.default_rng(1).normal(size=(3, 384)).astype(np.float32)
    for some in (vectors, vectors[:1], np.repeat(vectors[:1], 5, axis=0)):
        assert np.isfinite(whitened(vectors, soft_whitening(some, 0.2))).all()


def test_a_model_of_half_precision_reads_its_own_vectors() -> None:
    model = load_model(resolve_base_model("all-MiniLM-L6-v2", Path.cwd()).folder, "cpu").bfloat16()
    matrix = soft_whitening(np.random.default_rng(2).normal(size=(50, 384)).astype(np.float32), 0.2)
    add_whitening(model, matrix)
    assert np.isfinite(model.encode(["remote work"], convert_to_tensor=True).float().numpy()).all()


def test_a_model_with_the_layer_gives_the_whitened_vectors_and_does_not_train_it() -> None:
    model = load_model(resolve_base_model("all-MiniLM-L6-v2", Path.cwd()).folder, "cpu")
    texts = ["remote work", "the parking rules of Lisbon", "who pays for a laptop?"]
    before = model.encode(texts)
    matrix = soft_whitening(before, 0.2)
    add_whitening(model, matrix)
    assert np.allclose(model.encode(texts), whitened(before, matrix), atol=1e-6)
    assert [n for n, p in model.named_parameters() if n.startswith("2.") and p.requires_grad] == []
    assert float(np.mean(np.abs(before @ before.T))) > float(
        np.mean(np.abs(model.encode(texts) @ model.encode(texts).T))
    )
