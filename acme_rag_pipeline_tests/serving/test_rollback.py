"""Rollback: one step back along what was promoted each time, never to a model whose files are not whole."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from acme_rag_pipeline.cli import main
from acme_rag_pipeline.embedding.base_model import functional_files, model_digest
from acme_rag_pipeline.retrieval.passage_encoder import PassageEncoder, install_base
from acme_rag_pipeline.serving import decisions, serve
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import models
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.promotion import read_pointer
from acme_rag_pipeline_tests.conftest import write_documents
from acme_rag_pipeline_tests.increments import oracle


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder with documents and a store in which two models were promoted after the base, and the three digests."""
    root = tmp_path_factory.mktemp("built")
    write_documents(root / "documents")
    settings = Settings.load(root=root, documents=str(root / "documents"), store=str(root / "store"))
    store = Store(root / "store")
    oracle.run(store, settings, oracle.REFRESH)
    base = install_base(store, settings)
    digests = [base.digest]
    for number in (1, 2):
        made = shutil.copytree(base.folder, root / f"model-{number}")
        weights = load_file(made / "model.safetensors")
        weights["embeddings.LayerNorm.weight"] = weights["embeddings.LayerNorm.weight"] * (1 + number / 10)
        save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
        digest = model_digest(made)
        models.install(store, digest, made, functional_files(made), {})
        decisions.append(
            store,
            encoder=PassageEncoder(digest, "none"),
            recipe="dense",
            verdict=decisions.PROMOTED,
            reason="by hand",
        )
        serve.serve(store, settings)
        digests.append(digest)
    return root, digests


@pytest.fixture
def settings(built: tuple[Path, list[str]], settings_for: Callable[..., Settings]) -> Settings:
    return settings_for(documents=str(built[0] / "documents"))


@pytest.fixture
def promoted(built: tuple[Path, list[str]], store: Store) -> list[str]:
    """Digests of the base and of two models that were promoted after it, one after the other; the store is a copy."""
    root, digests = built
    shutil.copytree(root / "store", store.root)
    return digests


def test_each_rollback_goes_one_step_further_back(store: Store, settings: Settings, promoted: list[str]) -> None:
    base, first, second = promoted
    assert serve.rollback(store, settings).model_digest == first
    assert serve.rollback(store, settings).model_digest == base
    with pytest.raises(serve.NoSuchPromotion, match=f"{second[:16]}.*--to"):
        serve.rollback(store, settings)
    assert serve.rollback(store, settings, second[:8]).model_digest == second
    assert serve.rollback(store, settings).model_digest == base, "the first was gone back from, too"


def test_an_empty_name_means_no_model(store: Store, settings: Settings, promoted: list[str]) -> None:
    with pytest.raises(serve.NoSuchPromotion, match="a model without a name"):
        serve.rollback(store, settings, "")
    assert read_pointer(store.pointer).model_digest == promoted[-1]


@pytest.mark.parametrize("damage", ["lost", "cut off"])
def test_a_model_that_is_not_whole_is_passed_over(
    store: Store, settings: Settings, promoted: list[str], damage: str
) -> None:
    base, first, second = promoted
    weights = models.model_folder(store, first) / "model.safetensors"
    weights.unlink() if damage == "lost" else weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(serve.NoSuchPromotion, match="can be gone back to"):
        serve.rollback(store, settings, first[:16])
    assert read_pointer(store.pointer).model_digest == second
    assert serve.rollback(store, settings).model_digest == base


@pytest.mark.parametrize(
    ("name", "damage"), [("model.safetensors", "lost"), ("model.safetensors", "cut off"), ("tokenizer.json", "cut off")]
)
def test_a_search_with_a_damaged_model_says_what_to_do(
    store: Store, promoted: list[str], name: str, damage: str
) -> None:
    damaged = models.model_folder(store, promoted[-1]) / name
    content = damaged.read_bytes()
    damaged.unlink() if damage == "lost" else damaged.write_bytes(content[: len(content) // 2])
    # As in a process of its own: the library that is loaded here already would have a message at once.
    command = [sys.executable, "-m", "acme_rag_pipeline.cli", "--store", str(store.root), "search", "hotel limit"]
    called = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (called.returncode, called.stdout) == (1, "")
    last = called.stderr.splitlines()[-1]
    assert "Traceback" not in called.stderr
    assert last.startswith("acme-rag: the model ")
    assert "cannot be opened" in last
    assert "acme-rag rollback" in last


def rolled_back_and_killed(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch, to: str | None = None
) -> None:
    """A rollback that ends between its decision and the pointer."""
    with monkeypatch.context() as killed:
        killed.setattr(serve, "serve", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            serve.rollback(store, settings, to)


def status_of(store: Store, settings: Settings) -> str:
    options = ["--store", str(store.root), "--documents", str(settings.documents)]
    return CliRunner().invoke(main, [*options, "status"]).output


def test_an_interrupted_rollback_is_finished_by_the_same_command_and_goes_no_further(
    store: Store, settings: Settings, promoted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, first, second = promoted
    assert "up to date" in status_of(store, settings)
    for to in (None, first[:8]):
        rolled_back_and_killed(store, settings, monkeypatch, to)
        assert read_pointer(store.pointer).model_digest == second
        assert "not yet what was decided last: run `refresh`" in status_of(store, settings)
        before = decisions.decisions(store)
        assert serve.rollback(store, settings, to) == before[-1]
        assert read_pointer(store.pointer).model_digest == first
        assert decisions.decisions(store) == before
        assert "up to date" in status_of(store, settings)
        serve.rollback(store, settings, second)
    rolled_back_and_killed(store, settings, monkeypatch)
    (models.model_folder(store, first) / "model.safetensors").unlink()
    assert serve.rollback(store, settings).model_digest == base, "what cannot be finished is gone back from"


def test_a_rollback_serves_what_it_decides_whatever_the_pointer_was(
    store: Store, settings: Settings, promoted: list[str]
) -> None:
    store.pointer.write_bytes(b"\xff\xfe")
    assert serve.rollback(store, settings).model_digest == read_pointer(store.pointer).model_digest == promoted[1]
    store.pointer.write_bytes(b"\xff\xfe")
    assert serve.rollback(store, settings).model_digest == read_pointer(store.pointer).model_digest == promoted[1]


def test_where_nothing_else_was_promoted_nothing_is_advised(
    store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    oracle.run(store, settings_for(), oracle.REFRESH)
    with pytest.raises(serve.NoSuchPromotion, match=r"promoted before: none but what is promoted now$"):
        serve.rollback(store, settings_for())
