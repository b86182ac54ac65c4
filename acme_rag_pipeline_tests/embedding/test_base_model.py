"""The base model: checked weights, a digest of what computes, and errors that name the setting."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from acme_rag_pipeline.embedding import base_model
from acme_rag_pipeline.embedding.base_model import UntrustedWeights, model_digest, resolve_base_model
from acme_rag_pipeline.settings import EMBEDDED_BASE_MODEL, SettingsError


def test_the_digest_follows_what_computes_and_nothing_else(tmp_path: Path) -> None:
    base = resolve_base_model(EMBEDDED_BASE_MODEL, tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(base.folder, copy)
    assert model_digest(copy) == base.digest
    (copy / "README.md").write_text("another card")
    (copy / "manifest.json").write_text("{}")
    assert model_digest(copy) == base.digest
    assert resolve_base_model("copy", tmp_path).digest == base.digest
    (copy / "sentence_bert_config.json").write_text('{"max_seq_length": 128}')
    assert model_digest(copy) != base.digest


def test_other_weights_under_the_embedded_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_model, "EMBEDDED_WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(UntrustedWeights, match="ACME_RAG_BASE_MODEL"):
        resolve_base_model(EMBEDDED_BASE_MODEL, tmp_path)


@pytest.mark.parametrize("name", ["missing", "./missing", "/missing/model"])
def test_a_missing_model_names_the_setting(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="ACME_RAG_BASE_MODEL"):
        resolve_base_model(name, tmp_path)


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/modules.json").write_text("[]")
    (tmp_path / "model/pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(SettingsError, match="safetensors"):
        resolve_base_model("model", tmp_path)
