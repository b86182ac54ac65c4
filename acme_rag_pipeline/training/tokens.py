"""Texts as tokens, and their vectors from a model in training."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from acme_rag_pipeline.embedding.encoder import Precision, autocast
from acme_rag_pipeline.training.frozen_layers import FrozenLayers

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

# Enough rows to keep the device busy, few enough to be of similar length; a GPU waits for launches, not for padding.
FORWARD_ROWS = {"cpu": 16, "cuda": 512}


@dataclass
class Tokens:
    """A tokenised text, and what the frozen layers make of it, shape (tokens, width)."""

    features: dict[str, Any]
    lower_output: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.features["input_ids"])


def forward(
    model: SentenceTransformer, texts: Sequence[Tokens], lower: FrozenLayers | None, *, remember: bool = False
) -> torch.Tensor:
    """Vectors of length 1, shape (texts, dimension), in the order of the texts; short ones go through the model together.

    Args:
        model: in training or not.
        texts: of this model's tokenizer.
        lower: the frozen layers, whose remembered output is used where all texts of a part have it.
        remember: keep what the frozen layers give for later calls.
    """
    import torch

    vectors = []
    chosen = parts(texts, FORWARD_ROWS.get(model.device.type, FORWARD_ROWS["cpu"]))
    for numbers in chosen:
        part = [texts[i] for i in numbers]
        features = model.tokenizer.pad([text.features for text in part], return_tensors="pt").to(model.device)
        with contextlib.ExitStack() as stack:
            known = [text.lower_output for text in part if text.lower_output is not None]
            if lower is not None and len(known) == len(part) and not remember:
                stack.enter_context(lower.replaced_by(torch.nn.utils.rnn.pad_sequence(known, batch_first=True)))
            outputs = stack.enter_context(lower.outputs()) if lower is not None and remember else []
            vectors.append(model(dict(features))["sentence_embedding"])
        for output in outputs:
            for text, row in zip(part, output, strict=True):
                text.lower_output = row[: len(text)].clone()
    order = [i for numbers in chosen for i in numbers]
    back = torch.tensor(order, device=model.device).argsort()
    found = torch.cat(vectors)[back]
    # A model without that module is searched by cosines all the same.
    return found if type(model[-1]).__name__ == "Normalize" else torch.nn.functional.normalize(found.float(), dim=1)


def unit_vectors(
    model: SentenceTransformer,
    texts: Sequence[Tokens],
    lower: FrozenLayers | None,
    precision: Precision,
    *,
    remember: bool = False,
) -> torch.Tensor:
    """The same without a gradient, in float32 and of length 1.

    Args:
        model, texts, lower, remember: as above.
        precision: of the forward pass.
    """
    import torch

    # Not inference_mode: a step computes gradients from what is remembered here.
    with torch.no_grad(), autocast(model.device, precision):
        vectors = forward(model, texts, lower, remember=remember)
    return torch.nn.functional.normalize(vectors.float(), dim=1)


def parts(texts: Sequence[Tokens], most: int) -> list[list[int]]:
    """The numbers of the texts, short ones first, in parts of so many."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    return [order[first : first + most] for first in range(0, len(order), most)]


def tokenised(model: SentenceTransformer, texts: Sequence[str], *, of_queries: bool = False) -> list[Tokens]:
    """The texts as the model encodes them: behind its prompt, if it has one, and each cut to its longest input."""
    if not texts:
        return []
    prompt = _prompt(model, ("query",) if of_queries else ("document", "passage", "corpus"))
    behind = [prompt + text for text in texts]
    encoded = model.tokenizer(behind, truncation=True, max_length=model.max_seq_length, padding=False)
    # Where the pooling leaves the prompt out, it must know how long that is.
    length = model.preprocess([texts[0]], prompt=prompt).get("prompt_length") if prompt else None
    further = {} if length is None else {"prompt_length": length}
    return [Tokens({name: encoded[name][i] for name in encoded} | further) for i in range(len(texts))]


def _prompt(model: SentenceTransformer, names: Sequence[str]) -> str:
    """What `encode_query` and `encode_document` put before a text: the first of the names that the model has a prompt for."""
    found = next((name for name in names if name in model.prompts), model.default_prompt_name)
    return (model.prompts.get(found) if found else None) or ""
