"""The numpy encoder computes what sentence-transformers computes, and leaves alone what it does not know."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from acme_rag_pipeline.embedding.base_model import functional_files, resolve_base_model
from acme_rag_pipeline.embedding.encoder import _OneThread, load_model
from acme_rag_pipeline.embedding.light_bert import open_light_bert
from acme_rag_pipeline.training.whitening import add_whitening, soft_whitening

pytestmark = pytest.mark.encodes

TEXTS = [
    "",
    "remote work",
    "Émigré colleagues in Zürich hand in FRM-IM-07, 20 days before departure.\n\n| a | b |\n|---|---|\n| 1 | 2 |",
    "日本語のテキスト and some English, mixed with emoji 🙂",
    "a much longer passage about laptops, badges and parking places " * 60,
]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A copy of the base model that a test may change."""
    folder = resolve_base_model("all-MiniLM-L6-v2", Path.cwd()).folder
    for name in functional_files(folder):
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, tmp_path / "model" / name)
    return tmp_path / "model"


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_the_vectors_are_those_of_the_library(base: Path) -> None:
    light = open_light_bert(base)
    assert light is not None
    expected = load_model(base, "cpu").encode(TEXTS)
    assert cosines(light.encode(TEXTS), expected).min() > 0.999999


def test_a_saved_model_with_cls_pooling_too(base: Path, tmp_path: Path) -> None:
    config = json.loads((base / "1_Pooling/config.json").read_text(encoding="utf-8"))
    config |= {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (base / "1_Pooling/config.json").write_text(json.dumps(config), encoding="utf-8")
    model = load_model(base, "cpu")
    model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    light = open_light_bert(tmp_path / "saved")
    assert light is not None
    assert cosines(light.encode(TEXTS), model.encode(TEXTS)).min() > 0.999999


def test_a_whitened_model_too(base: Path, tmp_path: Path) -> None:
    model = load_model(base, "cpu")
    add_whitening(model, soft_whitening(model.encode(TEXTS), 0.2))
    model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    light = open_light_bert(tmp_path / "saved")
    assert light is not None
    assert cosines(light.encode(TEXTS), model.encode(TEXTS)).min() > 0.999999
    config = tmp_path / "saved/2_Dense/config.json"
    known = json.loads(config.read_text(encoding="utf-8"))
    more: list[dict[str, object]] = [
        {"activation_function": "torch.nn.modules.activation.Tanh"},
        {"activation_function": "mine.Identity"},
        {"use_residual": True},
        {"bias": True},
    ]
    for change in more:
        config.write_text(json.dumps(known | change), encoding="utf-8")
        assert open_light_bert(tmp_path / "saved") is None, change


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("config.json", {"model_type": "mpnet"}),
        ("config.json", {"hidden_act": "relu"}),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}),
        ("config_sentence_transformers.json", {"prompts": {"query": "query: "}}),
        ("sentence_bert_config.json", {"do_lower_case": True}),
    ],
)
def test_what_it_does_not_know_is_left_to_the_library(base: Path, name: str, change: dict[str, object]) -> None:
    known = json.loads((base / name).read_text(encoding="utf-8"))
    (base / name).write_text(json.dumps(known | change), encoding="utf-8")
    assert open_light_bert(base) is None


def test_further_modules_are_left_to_the_library(base: Path) -> None:
    modules = json.loads((base / "modules.json").read_text(encoding="utf-8"))
    modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (base / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    assert open_light_bert(base) is None


def test_a_few_texts_import_no_torch() -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from acme_rag_pipeline.embedding.base_model import resolve_base_model\n"
        "from acme_rag_pipeline.embedding.encoder import Encoder\n"
        "base = resolve_base_model('all-MiniLM-L6-v2', Path.cwd())\n"
        "encoder = Encoder(base.folder, base.digest)\n"
        "few = encoder.encode_queries(['remote work', 'long ' * 20_000])\n"
        "print('torch' in sys.modules)\n"
        "many = encoder.encode_passages(['remote work'] + ['long ' * 2000] * 5)\n"
        "print('torch' in sys.modules, min(float(few[i] @ many[i]) for i in (0, 1)) > 0.9999)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["False", "True True"]


def test_the_limit_to_one_thread_ends_with_the_last_that_asked_for_it() -> None:
    from threadpoolctl import threadpool_info, threadpool_limits

    def threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    limit = _OneThread()
    with threadpool_limits(2, user_api="blas"):
        with limit:
            with limit:
                assert threads() == {1}
            assert threads() == {1}
        assert threads() == {2}
