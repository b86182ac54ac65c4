"""The transformer compiled by OpenVINO: torch's vectors, its own threads, no network, and torch where it cannot."""

from __future__ import annotations

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from acme_rag_pipeline.embedding import compiled_transformer, encoder
from acme_rag_pipeline.embedding.base_model import resolve_base_model
from acme_rag_pipeline.embedding.compiled_transformer import compile_transformer, is_compiled
from acme_rag_pipeline.embedding.encoder import Encoder, load_model
from acme_rag_pipeline_tests.shallow_base import shallow_base

pytestmark = pytest.mark.encodes

pytest.importorskip("openvino")

TEXTS = [
    "",
    "remote work",
    "What does the handbook say about working from another country for a month?",
    "Ask your lead first. " * 20,
    "Every word of this passage lies behind what the model reads. " * 80,
]


@pytest.fixture(scope="module")
def folder() -> Path:
    return shallow_base()


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize(("bf16", "lowest"), [(False, 0.99999), (True, 0.999)])
def test_it_gives_torchs_vectors_whatever_the_batch(bf16: bool, lowest: float) -> None:
    model = load_model(resolve_base_model("all-MiniLM-L6-v2", Path.cwd()).folder, "cpu")
    expected = model.encode(TEXTS)
    assert compile_transformer(model, TEXTS[1:4], bf16=bf16)
    for size in (1, 2, len(TEXTS)):
        assert cosines(model.encode(TEXTS, batch_size=size), expected).min() > lowest


def test_padding_is_known_also_when_the_texts_it_was_tried_on_need_none(folder: Path) -> None:
    model = load_model(folder, "cpu")
    expected = model.encode(TEXTS)
    assert compile_transformer(model, ["two words"] * 3, bf16=False)
    assert cosines(model.encode(TEXTS, batch_size=len(TEXTS)), expected).min() > 0.99999


def test_a_compiled_model_is_not_compiled_again(folder: Path) -> None:
    model = load_model(folder, "cpu")
    assert compile_transformer(model, TEXTS[1:4], bf16=False)
    compiled = model[0].auto_model.forward
    assert not compile_transformer(model, TEXTS[1:4], bf16=False)
    assert model[0].auto_model.forward is compiled


def test_vectors_that_disagree_leave_the_model_to_torch(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model(folder, "cpu")
    expected = model.encode(TEXTS)
    monkeypatch.setattr(compiled_transformer, "AGREEMENT", 1.5)
    with caplog.at_level(logging.WARNING):
        assert not compile_transformer(model, TEXTS[1:4], bf16=False)
    assert "cosine of 1.0000 only" in caplog.text
    assert np.array_equal(model.encode(TEXTS), expected)


def test_a_model_that_the_frontend_cannot_read_is_left_to_torch(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model(folder, "cpu")
    expected = model.encode(TEXTS)
    # Words of this model have no such position: the forward pass that is traced fails inside torch.
    monkeypatch.setattr(compiled_transformer, "_INPUTS", ("attention_mask",))
    with caplog.at_level(logging.WARNING):
        assert not compile_transformer(model, TEXTS[1:4], bf16=False)
    assert "torch does, more slowly" in caplog.text
    assert np.array_equal(model.encode(TEXTS), expected)


def test_an_encoder_compiles_when_there_is_enough_to_encode(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "COMPILED_CHARACTERS", 6_000)
    monkeypatch.setattr(encoder, "LIGHT_CHARACTERS", 0)
    tested = Encoder(folder, "base", "fp32")
    before = tested.encode_passages(TEXTS)
    assert "forward" not in tested.model[0].auto_model.__dict__
    after = tested.encode_passages(TEXTS)
    assert "forward" in tested.model[0].auto_model.__dict__
    assert cosines(before, after).min() > 0.99999


def test_a_model_in_training_stays_torchs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "COMPILED_CHARACTERS", 0)
    model = load_model(folder, "cpu")
    Encoder(folder, "in training", "fp32", model).encode_passages(TEXTS)
    assert "forward" not in model[0].auto_model.__dict__


def test_a_model_in_training_is_compiled_only_while_its_weights_stay(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(encoder, "COMPILED_CHARACTERS", 1)
    model = load_model(folder, "cpu")
    in_training = Encoder(folder, "in training", "fp32", model)
    for _ in range(2):
        expected = in_training.encode_passages(TEXTS)
        with in_training.compiled(TEXTS):
            assert is_compiled(model)
            assert cosines(in_training.encode_passages(TEXTS), expected).min() > 0.99999
        assert not is_compiled(model)
        with torch.no_grad():
            model[0].auto_model.encoder.layer[0].output.dense.weight.mul_(1.5)
    assert cosines(in_training.encode_passages(TEXTS), expected).min() < 0.9999
    with in_training.compiled([]):
        assert not is_compiled(model)


def test_threads_encode_at_the_same_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "COMPILED_CHARACTERS", 0)
    monkeypatch.setattr(encoder, "LIGHT_CHARACTERS", 0)
    tested = Encoder(folder, "base", "fp32")
    texts = [f"{text} {number}" for number in range(6) for text in TEXTS]
    expected = tested.encode_passages(texts)
    parts = [texts[start::4] for start in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(tested.encode_passages, parts))
    for start in range(4):
        assert cosines(found[start], expected[start::4]).min() > 0.99999


@pytest.mark.parametrize(("set_by_hand", "threads"), [("", 1), ("3", 3)])
def test_no_more_threads_than_a_container_s_quota_has_work_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, set_by_hand: str, threads: int
) -> None:
    import torch

    before = torch.get_num_threads()
    # As joblib is told, which reads the quota itself.
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", set_by_hand)
    torch.set_num_threads(3)
    try:
        load_model(folder, "cpu")
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_nothing_is_sent_over_the_network(folder: Path) -> None:
    """`openvino.convert_model` reports each use to its makers; the way taken here must not."""
    script = """
import sys, time
asked = []
sys.addaudithook(lambda event, args: asked.append(event) if event in ("socket.connect", "socket.getaddrinfo") else None)
from acme_rag_pipeline.embedding.compiled_transformer import compile_transformer, is_compiled
from acme_rag_pipeline.embedding.encoder import load_model
assert compile_transformer(load_model(sys.argv[1], "cpu"), ["one", "two words"], bf16=False)
time.sleep(1)
assert not asked, asked
"""
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True, timeout=300)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for one process there")
def test_a_process_that_compiled_several_models_can_be_interrupted(folder: Path) -> None:
    """OpenVINO moves the stack of signal handlers; one that it had freed made Ctrl-C a segmentation fault."""
    script = """
import gc, os, signal, sys
from acme_rag_pipeline.embedding.compiled_transformer import compile_transformer
from acme_rag_pipeline.embedding.encoder import load_model
signal.signal(signal.SIGINT, signal.default_int_handler)
models = [load_model(sys.argv[1], "cpu") for _ in range(3)]
for model in models:
    assert compile_transformer(model, ["one", "two words"], bf16=False)
while models:
    models.pop(0)[0].auto_model.__dict__.pop("forward")
    gc.collect()
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    command = [sys.executable, "-X", "faulthandler", "-c", script, str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stdout.strip()) == (0, "interrupted"), ended.stderr
