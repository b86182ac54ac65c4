"""Frozen layers: the same loss and gradients as a model whose layers run but do not train, and weights that stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import RobertaConfig, RobertaModel

from acme_rag_pipeline.embedding.base_model import resolve_base_model
from acme_rag_pipeline.embedding.encoder import load_model
from acme_rag_pipeline.setting_groups import TrainingSettings
from acme_rag_pipeline.settings import SettingsError
from acme_rag_pipeline.training import finetune
from acme_rag_pipeline.training import frozen_layers as layers
from acme_rag_pipeline.training.frozen_layers import frozen_layers
from acme_rag_pipeline.training.objective import Objective
from acme_rag_pipeline.training.rows import TrainingRows

pytestmark = pytest.mark.slow
PASSAGES = [
    f"Rule {i}: a colleague in team {i % 5} asks for form {i * 13}." + " Then wait." * (i % 4) for i in range(12)
]
QUERIES = [f"which form for team {i % 5} under rule {i}" for i in range(12)]
FROZEN = 3


def rows_of(**more: Any) -> TrainingRows:
    return TrainingRows(QUERIES, range(12), PASSAGES, [str(i) for i in range(12)], [[] for _ in QUERIES], **more)


@pytest.fixture(scope="module")
def base() -> Path:
    return resolve_base_model("all-MiniLM-L6-v2", Path.cwd()).folder


def roberta(base: Path) -> SentenceTransformer:
    """The base's tokenizer before a small transformer of the other kind, with weights of chance."""
    model = load_model(base, "cpu")
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=30522, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64
    )
    model[0].model = RobertaModel(config).eval()  # type: ignore[operator, assignment]
    return model


@pytest.mark.parametrize("opened", [lambda folder: load_model(folder, "cpu"), roberta], ids=["bert", "roberta"])
@pytest.mark.parametrize("more", [{}, {"guide_texts": [text.upper() for text in PASSAGES]}], ids=["plain", "headings"])
def test_a_step_from_kept_outputs_is_a_step_through_all_layers(
    base: Path, opened: Callable[[Path], SentenceTransformer], more: dict[str, Any]
) -> None:
    found = {}
    for frozen in (0, FROZEN):
        model = opened(base)
        for module in (model[0].auto_model.embeddings, *model[0].auto_model.encoder.layer[:FROZEN]):
            module.requires_grad_(False)
        work = Objective(model, rows_of(**more), TrainingSettings(frozen_layers=frozen, precision="fp32"))
        assert all((text.lower_output is not None) == bool(frozen) for text in (*work.queries, *work.passages))
        loss = work.loss(list(range(12)))
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        found[frozen] = loss.item(), gradients
    assert found[FROZEN][0] == pytest.approx(found[0][0], rel=1e-5)
    assert found[FROZEN][1].keys() == found[0][1].keys()
    assert all("encoder.layer" in name for name in found[FROZEN][1])
    for name, gradient in found[FROZEN][1].items():
        assert torch.allclose(gradient, found[0][1][name], rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("most", ["MOST_BYTES", "MOST_OF_MEMORY"])
def test_too_much_to_keep_runs_the_layers_in_each_step(base: Path, monkeypatch: pytest.MonkeyPatch, most: str) -> None:
    settings = TrainingSettings(frozen_layers=FROZEN, precision="fp32")
    kept = Objective(load_model(base, "cpu"), rows_of(), settings)
    monkeypatch.setattr(layers, most, 1000 if most == "MOST_BYTES" else 1e-9)
    running = Objective(load_model(base, "cpu"), rows_of(), settings)
    assert running.passages[0].lower_output is None
    assert running.loss([0, 1, 2]).item() == pytest.approx(kept.loss([0, 1, 2]).item(), rel=1e-5)


def test_a_training_changes_the_layers_above_alone_and_a_plain_model_comes_out(base: Path, tmp_path: Path) -> None:
    settings = TrainingSettings(frozen_layers=FROZEN, epochs=2, batch_size=4, learning_rate=1e-3, precision="fp32")
    model, _ = finetune.finetune(base, rows_of(), settings, tmp_path / "c.pt", lambda _: None, "cpu")
    before = finetune.weights_of(load_model(base, "cpu"))
    after = finetune.weights_of(model)
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    lower = tuple(f"encoder.layer.{n}." for n in range(FROZEN))
    assert changed
    assert not [name for name in changed if "embeddings" in name or any(part in name for part in lower)]
    model.save_pretrained(str(tmp_path / "saved"))
    again = load_model(tmp_path / "saved", "cpu").encode(PASSAGES)
    assert torch.allclose(torch.from_numpy(again), torch.from_numpy(model.encode(PASSAGES)), atol=1e-5)


def test_where_nobody_chose_half_of_the_layers_stay_for_templates_and_before_expansion_epochs(base: Path) -> None:
    model = load_model(base, "cpu")
    assert frozen_layers(model, TrainingSettings(), mostly_templates=False) is None
    assert frozen_layers(model, TrainingSettings(strategy="query_only"), mostly_templates=True) is None
    assert frozen_layers(model, TrainingSettings(frozen_layers=0), mostly_templates=True) is None
    assert (
        frozen_layers(load_model(base, "cpu"), TrainingSettings(expansion_epochs=6), mostly_templates=False) is not None
    )
    assert frozen_layers(model, TrainingSettings(), mostly_templates=True) is not None
    trained = {name.partition("layer.")[2][:1] for name, p in model.named_parameters() if p.requires_grad}
    assert {"3", "4", "5"} <= trained
    assert not {"0", "1", "2"} & trained


def test_another_architecture_trains_all_its_layers(base: Path) -> None:
    model = load_model(base, "cpu")
    model[0].auto_model.config.model_type = "mpnet"
    assert frozen_layers(model, TrainingSettings(), mostly_templates=True) is None
    with pytest.raises(SettingsError, match="no BERT-like encoder"):
        frozen_layers(model, TrainingSettings(frozen_layers=2), mostly_templates=True)


def test_no_layer_left_to_train_is_a_clear_error(base: Path) -> None:
    with pytest.raises(SettingsError, match=r"FROZEN_LAYERS: 6, but the base model has 6 layers"):
        Objective(load_model(base, "cpu"), rows_of(), TrainingSettings(frozen_layers=6))
