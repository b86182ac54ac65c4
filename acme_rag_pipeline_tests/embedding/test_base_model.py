"""The base model: checked weights, a digest of what computes, and errors that name the setting."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import StaticEmbedding
from tokenizers import Tokenizer

from acme_rag_pipeline.chunking.chunks import split_documents
from acme_rag_pipeline.documents.ingest import ingest_documents
from acme_rag_pipeline.embedding import base_model, encoder
from acme_rag_pipeline.embedding.base_model import (
    BaseModelFiles,
    UntrustedWeights,
    model_digest,
    resolve_base_model,
    stated_licence,
)
from acme_rag_pipeline.embedding.encoder import Encoder
from acme_rag_pipeline.embedding.light_bert import open_light_bert
from acme_rag_pipeline.retrieval.passage_encoder import install_base
from acme_rag_pipeline.settings import EMBEDDED_BASE_MODEL, Settings, SettingsError
from acme_rag_pipeline.store import models
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.training.model_card import model_files

pytestmark = pytest.mark.encodes


@pytest.mark.parametrize(
    ("files", "most"),
    [
        ({"sentence_bert_config.json": {"max_seq_length": 128}, "config.json": {"max_position_embeddings": 512}}, 128),
        ({"tokenizer_config.json": {"model_max_length": 10**30}, "config.json": {"max_position_embeddings": 514}}, 512),
        ({"tokenizer_config.json": {"model_max_length": 384}, "config.json": {"max_position_embeddings": 514}}, 384),
        ({"sentence_bert_config.json": []}, None),
        ({}, None),
    ],
)
def test_what_a_model_reads_of_a_text(tmp_path: Path, files: dict[str, object], most: int | None) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert BaseModelFiles("m", tmp_path, "d", "mit").most_tokens() == most


def test_a_part_of_a_download_is_completed_and_a_whole_one_asks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, asked = resolve_base_model(EMBEDDED_BASE_MODEL, tmp_path).folder, []
    part = tmp_path / "part"
    part.mkdir()
    (part / "config.json").write_bytes((whole / "config.json").read_bytes())
    known = part

    def snapshot_download(name: str, *, local_files_only: bool = False, **_: object) -> str:
        asked.append(local_files_only)
        return str(known if local_files_only else whole)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert resolve_base_model("acme/embedder", tmp_path).folder == whole
    assert asked == [True, False]
    known = whole
    resolve_base_model("acme/embedder", tmp_path)
    assert asked == [True, False, True]


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


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\ntags: [a]\n---\n# Model", "mit"),
        ("---\r\ntags: [a]\r\nlicense: 'cc-by-nc-4.0'\r\n---\r\n", "cc-by-nc-4.0"),
        ("---\nlicense:\n  - gemma\n---\n", "gemma"),
        ("---\nlicense: other\nlicense_name: house-rules\nlicense_link: x\n---\n", "other (house-rules)"),
        ("---\ntags: [a]\n---\nlicense: mit", "not stated"),
        ("# No front matter\nlicense: mit\n", "not stated"),
        (None, "not stated"),
    ],
)
def test_the_licence_is_the_one_that_the_models_own_card_states(tmp_path: Path, card: str | None, licence: str) -> None:
    if card is not None:
        (tmp_path / "README.md").write_bytes(card.encode())
    assert stated_licence(tmp_path) == licence


def test_a_base_of_ones_own_keeps_its_card_in_the_store(
    tmp_path: Path, settings_for: Callable[..., Settings], store: Store
) -> None:
    own = tmp_path / "own"
    shutil.copytree(resolve_base_model(EMBEDDED_BASE_MODEL, tmp_path).folder, own)
    (own / "config.json").write_text((own / "config.json").read_text() + "\n")  # another digest
    (own / "README.md").write_text("---\nlicense: mit\n---\n# Ours")
    base = install_base(store, settings_for(base_model=str(own)))
    folder = models.model_folder(store, base.digest)
    assert base.licence == "mit"
    assert (folder / "BASE_README.md").read_text() == (own / "README.md").read_text()
    assert "Licence: mit." in (folder / "README.md").read_text()
    assert model_digest(folder) == base.digest


def test_a_card_states_the_licence_of_its_base(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    settings = {"strategy": "full", "batch_size": 32, "scale": 20.0, "distilled_share": 0.1}
    about = {
        **dict.fromkeys(("model_digest", "base_digest", "training_key", "trained"), "d" * 64),
        **dict.fromkeys(
            ("pairs", "passages", "epochs_trained", "learning_rate", "share", "whitening", "hard_negatives"), 1
        ),
        **{"base_model": "own", "settings": settings, "origins": {}, "passage_prefix": "none", "passage_digest": None},
        "interpolation": [],
    }
    files = model_files(about | {"licence": stated_licence(tmp_path)}, tmp_path)
    assert files.keys() == {"manifest.json", "README.md", "BASE_README.md"}
    assert '\nlicense: "mit"\n' in files["README.md"]
    assert "licence: mit, its own card: [BASE_README.md](BASE_README.md)" in files["README.md"]
    unknown = model_files(about | {"licence": "not stated"}, tmp_path / "nowhere")
    assert "\nlicense:" not in unknown["README.md"]
    assert "licence: not stated |" in unknown["README.md"]
    named = model_files(about | {"licence": "other (house-rules)"}, tmp_path)["README.md"]
    assert '\nlicense: "other"\n' in named


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


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda folder: (folder / "2_Dense/model.safetensors").rename(folder / "2_Dense/pytorch_model.bin"), "2_Dense"),
        (lambda folder: (folder / "modules.json").write_text("cut o"), "no readable modules.json"),
    ],
)
def test_a_folder_that_lacks_a_file_is_refused_before_anything_is_copied(
    tmp_path: Path, change: Callable[[Path], object], named: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(resolve_base_model(EMBEDDED_BASE_MODEL, tmp_path).folder, folder)
    modules = json.loads((folder / "modules.json").read_text())
    dense = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (folder / "modules.json").write_text(json.dumps([*modules[:2], dense]))
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense/model.safetensors").write_bytes(b"weights")
    assert resolve_base_model("model", tmp_path).folder == folder
    change(folder)
    with pytest.raises(SettingsError, match=f"ACME_RAG_BASE_MODEL: .*{named}"):
        resolve_base_model("model", tmp_path)


def test_passages_are_no_longer_than_what_the_base_reads(
    store: Store,
    documents: Path,
    settings_for: Callable[..., Settings],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    short = shutil.copytree(resolve_base_model(EMBEDDED_BASE_MODEL, tmp_path).folder, tmp_path / "short")
    (short / "sentence_bert_config.json").write_text('{"max_seq_length": 66, "do_lower_case": false}')
    for base, most in ((EMBEDDED_BASE_MODEL, 224), (str(short), 64)):
        settings = settings_for(base_model=base)
        ingest_documents(store, settings)
        assert split_documents(store, settings).details["max_tokens"] == most
        with store.warehouse.read() as connection:
            assert connection.execute("SELECT max(tokens) FROM chunks").fetchall()[0][0] <= most
    assert "reads 66 tokens of a text: passages have 64 at most (ACME_RAG_CHUNKING__MAX_TOKENS: 224)" in caplog.text


def nested_static_model(folder: Path) -> Path:
    """Static word vectors as sentence-transformers 3 publishes them: everything of the module in its own folder."""
    tokenizer = Tokenizer.from_file(str(resolve_base_model(EMBEDDED_BASE_MODEL, folder).tokenizer))
    words = StaticEmbedding(tokenizer, embedding_dim=32)
    SentenceTransformer(modules=[words], device="cpu").save_pretrained(str(folder), create_model_card=False)
    nested = folder / "0_StaticEmbedding"
    nested.mkdir()
    for name in ("tokenizer.json", "model.safetensors"):
        (folder / name).rename(nested / name)
    modules = json.loads((folder / "modules.json").read_bytes())
    (folder / "modules.json").write_text(json.dumps([modules[0] | {"path": nested.name}]))
    return folder


def test_static_word_vectors_whose_tokenizer_lies_in_their_module_s_folder_are_read(
    store: Store,
    documents: Path,
    settings_for: Callable[..., Settings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = nested_static_model(tmp_path / "static")
    settings = settings_for(base_model=str(folder))
    ingest_documents(store, settings)
    assert split_documents(store, settings).details["chunks"] > 0
    digest = install_base(store, settings).digest
    assert Encoder(models.model_folder(store, digest), digest).encode_passages(["a desk", "a chair"]).shape == (2, 32)

    def snapshot_download(name: str, *, local_files_only: bool = False, **_: object) -> str:
        assert local_files_only, "a whole download asks nobody"
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert resolve_base_model("org/static", tmp_path).folder == folder
    (folder / "0_StaticEmbedding/tokenizer.json").unlink()
    with pytest.raises(SettingsError, match=r"has no tokenizer\.json"):
        resolve_base_model("static", tmp_path)


def test_a_base_that_cuts_its_vectors_is_refused_before_any_work(tmp_path: Path) -> None:
    folder = shutil.copytree(resolve_base_model(EMBEDDED_BASE_MODEL, tmp_path).folder, tmp_path / "cut")
    file = folder / "config_sentence_transformers.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | {"truncate_dim": 128}))
    assert open_light_bert(folder) is None
    with pytest.raises(SettingsError, match=r"cuts its vectors to 128 numbers .* take that out"):
        resolve_base_model("cut", tmp_path)


def test_a_base_with_program_code_of_its_own_is_refused_and_not_called_damaged(tmp_path: Path) -> None:
    folder = shutil.copytree(resolve_base_model(EMBEDDED_BASE_MODEL, tmp_path).folder, tmp_path / "own")
    config = json.loads((folder / "config.json").read_bytes())
    own = {"model_type": "acme_bert", "auto_map": {name: f"acme.{name}" for name in ("AutoConfig", "AutoModel")}}
    (folder / "config.json").write_text(json.dumps(config | own))
    with pytest.raises(SettingsError, match=r"program code of its own, which is never run"):
        Encoder(folder, "digest").model  # noqa: B018


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), ImportError("no peft")])
def test_a_machine_that_cannot_open_a_model_is_not_taken_for_a_damaged_folder(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Path) -> None:
        raise error

    monkeypatch.setattr(encoder, "load_model", fails)
    with pytest.raises(type(error), match=str(error)):
        Encoder(tmp_path, "digest").model  # noqa: B018


def test_fewer_texts_at_a_time_where_the_memory_of_the_device_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_embedded = Encoder(resolve_base_model(EMBEDDED_BASE_MODEL, tmp_path).folder, "digest")
    texts = [f"passage {n}" for n in range(40)]
    tried: list[int] = []
    real = of_embedded.model.encode_document

    def encode(given: list[str], batch_size: int, **named: object) -> object:
        tried.append(batch_size)
        if batch_size > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(given, batch_size=batch_size, **named)

    monkeypatch.setattr(of_embedded.model, "encode_document", encode)
    assert of_embedded.encode_passages(texts).shape == (40, 384)
    assert len(tried) > 1
    assert sorted(tried, reverse=True) == tried


def test_a_base_whose_card_speaks_of_prompts_that_its_configuration_lacks_is_warned_of(
    store: Store, settings_for: Callable[..., Settings], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(resolve_base_model(EMBEDDED_BASE_MODEL, tmp_path).folder, tmp_path / "e5")
    (folder / "README.md").write_text('Each text begins with "query: " or "passage: ".', encoding="utf-8")
    settings = settings_for(base_model=str(folder))
    install_base(store, settings)
    install_base(store, settings)
    assert [r.getMessage().count("belong before the texts") for r in caplog.records] == [1]
