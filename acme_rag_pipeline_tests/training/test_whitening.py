"""Soft whitening: what it does to vectors, and that a model with it computes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from acme_rag_pipeline.embedding.base_model import resolve_base_model
from acme_rag_pipeline.embedding.encoder import load_model
from acme_rag_pipeline.setting_groups import TrainingSettings
from acme_rag_pipeline.store.fingerprints import sha256_text
from acme_rag_pipeline.store.passages import LivePassage
from acme_rag_pipeline.training.finetune import finetune
from acme_rag_pipeline.training.rows import KeptPair, TrainingRows, rows_fingerprint, unasked_passages
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


def test_the_layer_knows_the_passages_that_nobody_asked_about(tmp_path: Path) -> None:
    base = resolve_base_model("all-MiniLM-L6-v2", tmp_path).folder
    asked = ["Remote work needs a request.", "Laptops are replaced after four years."]
    unasked = ["The canteen opens at noon.", "Parking is free in Lisbon.", "Visitors wear a badge."]
    rows = TrainingRows(
        ["who may work from home?", "when do I get a new laptop?"], [0, 1], asked, ["a", "b"], [[], []], unasked=unasked
    )
    settings = TrainingSettings(whitening=0.2, precision="fp32", frozen_layers=0)
    model, _ = finetune(base, rows, settings, tmp_path / "c.pt", lambda _: None, "cpu", end_after=0)
    layer = next(module for module in model if type(module).__name__ == "Dense").linear.weight.detach().numpy()
    vectors = load_model(base, "cpu").encode(asked + unasked)
    assert np.allclose(layer, soft_whitening(vectors, 0.2), atol=1e-4)
    assert not np.allclose(layer, soft_whitening(vectors[:2], 0.2), atol=1e-2)


def passage(text: str, side: str, group: str = "") -> LivePassage:
    return LivePassage(sha256_text(f"id {text}"), "a.md", 0, len(text), "", (), text, group or text, "unit", side)


def test_a_whitening_reads_no_held_out_passage_and_what_it_reads_is_part_of_the_training_set() -> None:
    passages = [
        passage("asked", "train"),
        passage("unasked", "train"),
        passage("judges", "test"),
        passage("judges, again", "train", "judges"),
        passage("chooses", "validation"),
        passage("more", "train"),
    ]
    pairs = [KeptPair("1", "who?", passages[0], "openai", "llm", ())]

    def read(sides: tuple[str, ...], of: list[LivePassage] = passages) -> list[LivePassage]:
        return unasked_passages(of, pairs, sides)

    assert {p.text for p in read(("train",))} == {"unasked", "more"}
    assert {p.text for p in read(("train", "test"))} == {"unasked", "more", "judges", "judges, again"}
    assert read(("train",)) == read(("train",), passages[::-1])
    edited = [passage("unasked, edited", "train"), *(p for p in passages if p.text != "unasked")]
    key = rows_fingerprint(pairs, 0, read(("train",)))
    assert key == rows_fingerprint(pairs, 0, read(("train",), passages[::-1]))
    assert key != rows_fingerprint(pairs, 0, read(("train",), edited))
