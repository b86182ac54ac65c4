"""The start of a training: what moves, and what a step leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from acme_rag_pipeline.embedding.base_model import resolve_base_model
from acme_rag_pipeline.embedding.encoder import load_model
from acme_rag_pipeline.setting_groups import TrainingSettings
from acme_rag_pipeline.training import start_model
from acme_rag_pipeline.training.start_model import opened, trained_share
from acme_rag_pipeline.training.tokens import forward, tokenised

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
    ("prompts", "default"),
    [
        ({"query": "query: ", "passage": "passage: "}, None),
        ({"query": "Find what answers: "}, None),
        ({"all": "text: "}, "all"),
        ({}, None),
    ],
)
def test_a_base_with_prompts_is_trained_on_the_texts_that_it_will_encode(
    base: Path, prompts: dict[str, str], default: str | None, pooled: bool
) -> None:
    model = opened(base, TrainingSettings(), "cpu").eval()
    model.prompts = prompts
    model.default_prompt_name = default
    model.set_pooling_include_prompt(pooled)
    for of_queries, encode in ((True, model.encode_query), (False, model.encode_document)):
        with torch.no_grad():
            found = forward(model, tokenised(model, TEXTS, of_queries=of_queries), None)
        assert torch.allclose(found, encode(TEXTS, convert_to_tensor=True), atol=1e-5)


def test_word_embeddings_stay(base: Path) -> None:
    model = opened(base, TrainingSettings(), "cpu")
    assert not [
        n for n, p in model.named_parameters() if "embeddings." in n and "LayerNorm" not in n and p.requires_grad
    ]
    assert trained_share(model) == "10.8 of 22.7 million weights"
