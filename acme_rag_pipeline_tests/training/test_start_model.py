"""The start of a training: what moves, and what a step leaves out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Dense

from acme_rag_pipeline.embedding.base_model import (
    files_digest,
    model_digest,
    resolve_base_model,
)
from acme_rag_pipeline.embedding.encoder import load_model
from acme_rag_pipeline.setting_groups import TrainingSettings
from acme_rag_pipeline.training import start_model
from acme_rag_pipeline.training.objective import Objective
from acme_rag_pipeline.training.rows import TrainingRows
from acme_rag_pipeline.training.start_model import opened, trained_share
from acme_rag_pipeline.training.tokens import forward, tokenised
from acme_rag_pipeline_tests.shallow_base import shallow_base

TEXTS = ["Colleagues abroad ask their manager first.", "A day of leave is entered in form 12."]


@pytest.fixture(scope="module")
def base() -> Path:
    return resolve_base_model("all-MiniLM-L6-v2", Path.cwd()).folder


def vectors(model: SentenceTransformer) -> torch.Tensor:
    with torch.no_grad():
        return forward(model, tokenised(model, TEXTS), None)


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_a_step_leaves_out_what_the_settings_say_and_the_saved_model_knows_nothing_of_it(
    base: Path, share: float, tmp_path: Path
) -> None:
    model = opened(base, TrainingSettings(dropout=share), "cpu").train()
    assert torch.equal(vectors(model), vectors(model)) == (share == 0)
    model.save_pretrained(str(tmp_path), create_model_card=False)
    config = SentenceTransformer(str(tmp_path), device="cpu")[0].auto_model.config
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.1


@pytest.mark.parametrize(("longest", "expected"), [(256, "eager"), (8192, "sdpa")])
def test_attention_is_plain_on_a_cpu_unless_texts_may_be_long(
    base: Path, longest: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def long_reader(folder: Path, device: str | None) -> SentenceTransformer:
        model = load_model(folder, device)
        model.max_seq_length = longest
        return model

    monkeypatch.setattr(start_model, "load_model", long_reader)
    model = opened(base, TrainingSettings(), "cpu")
    assert model[0].auto_model.config._attn_implementation == expected


def test_plain_attention_gives_the_same_vectors(base: Path) -> None:
    plain = opened(base, TrainingSettings(), "cpu").eval()
    assert torch.allclose(vectors(plain), vectors(load_model(base, "cpu").eval()), atol=1e-5)


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize(
    ("prompts", "default", "before"),
    [
        ({"query": "query: ", "passage": "passage: "}, None, ("query: ", "passage: ")),
        ({"query": "query: ", "document": "", "corpus": "text: "}, None, ("query: ", "text: ")),
        ({"query": "q: ", "document": "d: ", "passage": "passage: "}, None, ("q: ", "d: ")),
        ({"query": "Find what answers: "}, None, ("Find what answers: ", "")),
        ({"all": "text: "}, "all", ("text: ", "text: ")),
        ({}, None, ("", "")),
    ],
)
def test_a_base_with_prompts_is_trained_on_the_texts_that_it_will_encode(
    base: Path, tmp_path: Path, prompts: dict[str, str], default: str | None, before: tuple[str, str], pooled: bool
) -> None:
    folder = configured(base, tmp_path / "own", prompts=prompts, default_prompt_name=default)
    model = opened(folder, TrainingSettings(), "cpu").eval()
    model.set_pooling_include_prompt(pooled)
    plain = load_model(base, "cpu").eval()
    for of_queries, encode, prompt in zip(
        (True, False), (model.encode_query, model.encode_document), before, strict=True
    ):
        with torch.no_grad():
            found = forward(model, tokenised(model, TEXTS, of_queries=of_queries), None)
        searched = encode(TEXTS, convert_to_tensor=True)
        assert torch.allclose(found, searched, atol=1e-5)
        if pooled:
            wanted = plain.encode([prompt + text for text in TEXTS], convert_to_tensor=True)
            assert torch.allclose(searched, wanted, atol=1e-5)
    # Vectors that a prompt changes are another model's.
    left_out = before != (prompts.get("query", ""), prompts.get("document", ""))
    assert (model_digest(folder) != files_digest(folder)) is left_out
    # In a store of an earlier version it stays what its vectors there were made with.
    known = folder.rename(tmp_path / files_digest(folder))
    assert load_model(known, "cpu").prompts.get("document", "") == prompts.get("document", "")
    assert load_model(known.rename(tmp_path / model_digest(known)), "cpu").prompts.get("document", "") == before[1]


def configured(base: Path, folder: Path, **settings: object) -> Path:
    """A copy of a model whose configuration says more."""
    shutil.copytree(base, folder)
    file = folder / "config_sentence_transformers.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | settings), encoding="utf-8")
    return folder


def test_a_base_that_does_not_end_in_unit_vectors_is_trained_on_cosines_all_the_same(
    base: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(base, bare)
    modules = json.loads((bare / "modules.json").read_bytes())
    (bare / "modules.json").write_text(json.dumps(modules[:-1]), encoding="utf-8")
    rows = TrainingRows(TEXTS, range(len(TEXTS)), [f"{t} It is so." for t in TEXTS], TEXTS, [[] for _ in TEXTS])
    losses = []
    for folder in (base, bare):
        settings = TrainingSettings(precision="fp32", whitening=0.2)
        objective = Objective(opened(folder, settings, "cpu"), rows, settings)
        losses.append(objective.loss([*range(len(TEXTS))]).item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_word_embeddings_stay(base: Path) -> None:
    model = opened(base, TrainingSettings(), "cpu")
    assert not [
        n for n, p in model.named_parameters() if "embeddings." in n and "LayerNorm" not in n and p.requires_grad
    ]
    assert trained_share(model) == "10.8 of 22.7 million weights"


def test_adapters_alone_are_trained_whatever_stands_behind_the_transformer(tmp_path: Path) -> None:
    made = load_model(shallow_base(), "cpu")
    made.insert(len(made) - 1, Dense(384, 384))
    made.save_pretrained(str(tmp_path / "dense"), create_model_card=False)
    model = opened(tmp_path / "dense", TrainingSettings(strategy="lora"), "cpu")
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert any("linear" in name for name, _ in model.named_parameters())


def test_an_apple_gpu_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert opened(shallow_base(), TrainingSettings()).device.type == "cpu"
