"""BERT encoders in numpy, for the few texts of a search or of a small edit.

Importing torch, transformers and sentence-transformers costs 8 s and half a gigabyte, more than encoding two hundred
passages. A query or an edited chunk does not need them: the forward pass below is the published architecture (Devlin et
al. 2018, arXiv:1810.04805) with mean or CLS pooling and a candidate's whitening, in float32, tested against
sentence-transformers. Any other architecture is none of its business: `open_light_bert` returns None and the caller loads
the library.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Module kinds after which the vectors are those of the transformer, pooled, with a length that does not matter.
_KNOWN_MODULES = (
    ["Transformer", "Pooling"],
    ["Transformer", "Pooling", "Normalize"],
    ["Transformer", "Pooling", "Dense"],
    ["Transformer", "Pooling", "Dense", "Normalize"],
)
_BATCH = 8


@dataclass(frozen=True)
class LightBert:
    """An opened model directory."""

    weights: dict[str, np.ndarray]
    tokenizer: Tokenizer
    layers: int
    heads: int
    epsilon: float
    pooling: str
    whitening: np.ndarray | None = None

    def encode(self, texts: list[str]) -> np.ndarray:
        """Pooled vectors, not normalised, shape (texts, dimension)."""
        encoded = [np.array(encoding.ids) for encoding in self.tokenizer.encode_batch(texts)]
        found = np.zeros((len(texts), self.weights["embeddings.word_embeddings.weight"].shape[1]), np.float32)
        order = sorted(range(len(texts)), key=lambda i: -len(encoded[i]))
        for first in range(0, len(order), _BATCH):
            batch = order[first : first + _BATCH]
            found[batch] = self._forward([encoded[i] for i in batch])
        return found if self.whitening is None else found @ self.whitening.T

    def _forward(self, rows: list[np.ndarray]) -> np.ndarray:
        weights, longest = self.weights, max(len(row) for row in rows)
        ids = np.stack([np.pad(row, (0, longest - len(row))) for row in rows])
        present = np.stack([np.arange(longest) < len(row) for row in rows])
        hidden = (
            weights["embeddings.word_embeddings.weight"][ids]
            + weights["embeddings.position_embeddings.weight"][:longest]
            + weights["embeddings.token_type_embeddings.weight"][0]
        )
        hidden = self._norm(hidden, "embeddings.LayerNorm")
        hidden_from = None if present.all() else np.where(present, np.float32(0), np.float32(-1e9))[:, None, None, :]
        for number in range(self.layers):
            layer = f"encoder.layer.{number}"
            context = self._attention(hidden, f"{layer}.attention.self", hidden_from)
            hidden = self._norm(
                self._linear(context, f"{layer}.attention.output.dense") + hidden, f"{layer}.attention.output.LayerNorm"
            )
            inner = _gelu(self._linear(hidden, f"{layer}.intermediate.dense"))
            hidden = self._norm(self._linear(inner, f"{layer}.output.dense") + hidden, f"{layer}.output.LayerNorm")
        if self.pooling == "cls":
            return hidden[:, 0]
        shares = present.astype(np.float32)[:, :, None]
        return (hidden * shares).sum(axis=1) / shares.sum(axis=1)

    def _attention(self, hidden: np.ndarray, name: str, hidden_from: np.ndarray | None) -> np.ndarray:
        batch, length, width = hidden.shape
        size = width // self.heads
        query, key, value = (
            self._linear(hidden, f"{name}.{part}").reshape(batch, length, self.heads, size).transpose(0, 2, 1, 3)
            for part in ("query", "key", "value")
        )
        scores = (query / np.float32(np.sqrt(size))) @ key.transpose(0, 1, 3, 2)
        if hidden_from is not None:
            scores += hidden_from
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        return (scores @ value).transpose(0, 2, 1, 3).reshape(batch, length, width)

    def _linear(self, values: np.ndarray, name: str) -> np.ndarray:
        return values @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def _norm(self, values: np.ndarray, name: str) -> np.ndarray:
        centred = values - values.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + np.float32(self.epsilon))
        return centred / spread * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: within 1.5e-7, about the precision of float32. The
# error function of SciPy costs 0.35 s of imports.
_ERF = tuple(np.float32(a) for a in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592))
_ERF_P = np.float32(0.3275911)


def _gelu(values: np.ndarray) -> np.ndarray:
    size = np.abs(values) * np.float32(np.sqrt(0.5))
    t = 1 / (1 + _ERF_P * size)
    series = np.zeros_like(t)
    for a in _ERF:
        series += a
        series *= t
    series *= np.exp(-size * size)
    return values * np.float32(0.5) * (1 + np.copysign(1 - series, values))


def open_light_bert(folder: Path) -> LightBert | None:
    """Open a sentence-transformers directory that holds a plain BERT with mean or CLS pooling, else None.

    None also where a file is missing or cut off: the library, which is asked then, has an error for that.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        modules = _json(folder / "modules.json")
        config = _json(folder / "config.json")
        kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in modules]
        settings = _json(folder / "config_sentence_transformers.json")
        pooling = _pooling(_json(folder / str(modules[1]["path"]) / "config.json"))
        plain = (
            kinds in _KNOWN_MODULES
            and modules[0]["path"] == ""
            and config["model_type"] == "bert"
            and config["hidden_act"] == "gelu"
            and config.get("position_embedding_type", "absolute") == "absolute"
            and not any((settings.get("prompts") or {}).values())
            and settings.get("truncate_dim") is None
        )
        most_tokens = _most_tokens(folder, config)
        if not plain or pooling is None or most_tokens is None:
            return None
        weights = {
            name: w.astype(np.float32, copy=False) for name, w in load_file(folder / "model.safetensors").items()
        }
        tokenizer = _tokenizer(folder / "tokenizer.json")
        tokenizer.no_padding()
        tokenizer.enable_truncation(most_tokens)
        whitening = _linear_map(folder / str(modules[2]["path"])) if "Dense" in kinds else None
        layers = int(config["num_hidden_layers"])
        # Raises KeyError where the weights have other names.
        _ = weights["embeddings.LayerNorm.weight"], weights[f"encoder.layer.{layers - 1}.output.LayerNorm.weight"]
        heads, epsilon = int(config["num_attention_heads"]), float(config["layer_norm_eps"])
        return LightBert(weights, tokenizer, layers, heads, epsilon, pooling, whitening)
    except (OSError, ValueError, KeyError, IndexError, TypeError, SafetensorError):
        return None


def _tokenizer(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no class of its own
        raise ValueError(f"{path} is no tokenizer") from error


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _pooling(config: dict[str, Any]) -> str | None:
    mode = config.get("pooling_mode")
    if mode is None:
        chosen = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
        mode = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}.get(
            chosen[0] if len(chosen) == 1 else ""
        )
    return mode if mode in ("mean", "cls") else None


def _linear_map(folder: Path) -> np.ndarray:
    """The matrix of a linear layer that only maps vectors of one size to that size; ValueError for any other."""
    from safetensors.numpy import load_file

    config = _json(folder / "config.json")
    of_vectors = {config.get(f"module_{end}_name") or "sentence_embedding" for end in ("input", "output")}
    matrix = load_file(folder / "model.safetensors")["linear.weight"].astype(np.float32, copy=False)
    if (
        config["bias"]
        or config.get("use_residual")
        or config["activation_function"] != "torch.nn.modules.linear.Identity"
        or of_vectors != {"sentence_embedding"}
        or matrix.shape[0] != matrix.shape[1]
    ):
        raise ValueError(f"{folder} is more than a linear map")
    return matrix


def _most_tokens(folder: Path, config: dict[str, Any]) -> int | None:
    transformer = _json(folder / "sentence_bert_config.json")
    if transformer.get("do_lower_case"):
        return None
    most = transformer.get("max_seq_length") or _json(folder / "tokenizer_config.json").get("model_max_length")
    return min(int(most), int(config["max_position_embeddings"])) if most else None
