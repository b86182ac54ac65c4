"""Texts as tokens, and their vectors from a model in training."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from acme_rag_pipeline.embedding.encoder import Precision, autocast
from acme_rag_pipeline.training.frozen_layers import FrozenLayers
from acme_rag_pipeline.training.memory import NotEnoughMemory
from acme_rag_pipeline.training.progress import Progress

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

# Enough rows to keep the device busy, few enough to be of similar length; a GPU waits for launches, not for padding.
FORWARD_ROWS = {"cpu": 16, "cuda": 512}
# Padding counted, and never fewer rows than `FEWEST_ROWS`: 512 texts of 8,000 tokens fit into no card.
FORWARD_TOKENS = 131_072
FEWEST_ROWS = 16


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
    chosen = _forward_parts(model, texts)
    vectors = [_through(model, [texts[i] for i in numbers], lower, remember=remember) for numbers in chosen]
    return _in_order(model, chosen, vectors)


def _forward_parts(model: SentenceTransformer, texts: Sequence[Tokens]) -> list[list[int]]:
    most = FORWARD_ROWS.get(model.device.type, FORWARD_ROWS["cpu"])
    return parts(texts, most, FORWARD_TOKENS)


def _through(
    model: SentenceTransformer, part: Sequence[Tokens], lower: FrozenLayers | None, *, remember: bool
) -> torch.Tensor:
    """What the model gives for texts that go through it together."""
    import torch

    features = model.tokenizer.pad([text.features for text in part], return_tensors="pt").to(model.device)
    with contextlib.ExitStack() as stack:
        known = [text.lower_output for text in part if text.lower_output is not None]
        if lower is not None and len(known) == len(part) and not remember:
            stack.enter_context(lower.replaced_by(torch.nn.utils.rnn.pad_sequence(known, batch_first=True)))
        outputs = stack.enter_context(lower.outputs()) if lower is not None and remember else []
        vectors = cast("torch.Tensor", model(dict(features))["sentence_embedding"])
    for output in outputs:
        for text, row in zip(part, output, strict=True):
            text.lower_output = row[: len(text)].clone()
    return vectors


def _in_order(
    model: SentenceTransformer, chosen: Sequence[Sequence[int]], vectors: Sequence[torch.Tensor]
) -> torch.Tensor:
    """The vectors of all parts in the order of their texts, of length 1."""
    import torch

    order = [i for numbers in chosen for i in numbers]
    back = torch.tensor(order, device=model.device).argsort()
    found = torch.cat([*vectors])[back]
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
    """The same without a gradient, in float32 and of length 1; a part that the memory does not hold is divided.

    Args:
        model, texts, lower, remember: as above.
        precision: of the forward pass.

    Raises:
        NotEnoughMemory: not even one text goes into the memory of the device.
    """
    import torch

    progress = Progress(len(texts), sum(map(len, texts)))
    chosen = _forward_parts(model, texts)
    vectors = []
    # Not inference_mode: a step computes gradients from what is remembered here.
    with torch.no_grad(), autocast(model.device, precision):
        for numbers in chosen:
            part = [texts[i] for i in numbers]
            vectors.append(_divided(model, part, lower, remember=remember))
            progress.add(len(part), sum(map(len, part)))
        found = _in_order(model, chosen, vectors)
    return torch.nn.functional.normalize(found.float(), dim=1)


def _divided(
    model: SentenceTransformer, part: Sequence[Tokens], lower: FrozenLayers | None, *, remember: bool
) -> torch.Tensor:
    """`_through` with fewer texts at a time for as long as the memory ends."""
    import torch

    rows = len(part)
    while True:
        try:
            pieces = [part[first : first + rows] for first in range(0, len(part), rows)]
            return torch.cat([_through(model, piece, lower, remember=remember) for piece in pieces])
        except torch.OutOfMemoryError as error:
            # How many texts a card holds depends on the model and on who else uses it.
            if rows == 1:
                raise NotEnoughMemory(
                    f"reading the training texts ran out of memory on {model.device} with a text of {len(part[-1])} tokens: set "
                    "a smaller ACME_RAG_CHUNKING__MAX_TOKENS, or train on the CPU with CUDA_VISIBLE_DEVICES= in the environment"
                ) from error
        # Not within `except`: what the failed pass held lives as long as its traceback.
        rows = -(-rows // 4)
        torch.cuda.empty_cache()


def parts(texts: Sequence[Tokens], most: int, most_tokens: int | None = None) -> list[list[int]]:
    """The numbers of the texts, short ones first, in parts; nothing but the texts decides which stand together.

    Args:
        texts: to be divided.
        most: of them in a part.
        most_tokens: of a part with its padding, unless it has no more than `FEWEST_ROWS` texts; None: any number.
    """
    chosen: list[list[int]] = []
    for number in sorted(range(len(texts)), key=lambda i: len(texts[i])):
        longest = max(1, len(texts[number]))
        fit = most if most_tokens is None else min(most, max(FEWEST_ROWS, most_tokens // longest))
        if not chosen or len(chosen[-1]) >= fit:
            chosen.append([])
        chosen[-1].append(number)
    return chosen


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
