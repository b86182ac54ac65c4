"""Gradient caching: the activations of a few texts are held at a time, not those of a whole batch.

The loss of a batch needs only the vectors of its texts. They are computed without a gradient, the loss says where each of
them should move, and then every part of the batch goes through the model once more, takes its share of the gradient and is
let go (Gao et al. 2021, arXiv:2101.06983). The gradient is that of the whole batch; a step takes a forward pass more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from acme_rag_pipeline.embedding.encoder import Precision, autocast
from acme_rag_pipeline.training.frozen_layers import FrozenLayers
from acme_rag_pipeline.training.memory import memory_bytes
from acme_rag_pipeline.training.random_states import random_states, set_random_states
from acme_rag_pipeline.training.tokens import Tokens, forward, parts

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

HELD_TEXTS = 16
# The rest is for weights, optimizer, the libraries, and whatever else the machine does.
SHARE_OF_MEMORY = 0.5
logger = logging.getLogger(__name__)


def cached_backward(
    model: SentenceTransformer,
    lower: FrozenLayers | None,
    precision: Precision,
    texts: Sequence[Sequence[Tokens]],
    loss_of: Callable[[list[torch.Tensor]], torch.Tensor],
) -> torch.Tensor:
    """Add the gradient of a batch to the weights, a part at a time.

    Args:
        model: in training.
        lower: its frozen layers, if any.
        precision: of the forward passes.
        texts: what the loss compares, such as queries and passages.
        loss_of: from the vectors of each of them, shape (texts, dimension), to a scalar.

    Returns:
        The loss, detached.
    """
    import torch

    # Each part's vectors are needed twice, with the same dropout.
    before = random_states()
    chosen = [parts(of_kind, HELD_TEXTS) for of_kind in texts]
    leaves = []
    for of_kind, numbers in zip(texts, chosen, strict=True):
        with torch.no_grad(), autocast(model.device, precision):
            vectors = torch.cat([forward(model, [of_kind[i] for i in part], lower) for part in numbers])
        back = torch.tensor([i for part in numbers for i in part], device=vectors.device).argsort()
        leaves.append(vectors.float()[back].requires_grad_())
    loss = loss_of(leaves)
    loss.backward()
    set_random_states(before)
    for of_kind, numbers, leaf in zip(texts, chosen, leaves, strict=True):
        assert leaf.grad is not None
        for part in numbers:
            with autocast(model.device, precision):
                again = forward(model, [of_kind[i] for i in part], lower)
            again.backward(leaf.grad[part].to(again.dtype))
    return loss.detach()


def held_bytes(model: SentenceTransformer, lower: FrozenLayers | None, precision: Precision, text: Tokens) -> int:
    """What one more text keeps in memory until the backward pass: measured, with one text and with two.

    The random states stay as they were: whether somebody measures must not change the dropout of the training.
    """
    import torch

    before = random_states()
    weights = {weight.data_ptr() for weight in model.parameters()}

    def held(rows: int) -> int:
        sizes: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, autocast(model.device, precision):
            vectors = forward(model, [text] * rows, lower)
        del vectors
        return sum(sizes.values())

    more = held(2) - held(1)
    set_random_states(before)
    return more


def batch_needs_cache(
    model: SentenceTransformer,
    lower: FrozenLayers | None,
    precision: Precision,
    batch: Sequence[Tokens],
) -> bool:
    """Whether the activations of a batch would take more than half of the memory there is.

    Args:
        model: in training.
        lower: its frozen layers, if any.
        precision: of the forward passes.
        batch: the longest that a step may see.
    """
    if not batch:
        return False
    memory = memory_bytes(model.device)
    longest = max(batch, key=len)
    needed = held_bytes(model, lower, precision, longest) * sum(map(len, batch)) / max(1, len(longest))
    cached = needed > SHARE_OF_MEMORY * memory
    logger.info(
        "a batch holds up to %.1f GB until its backward pass, of %.1f GB of memory%s",
        needed / 1e9, memory / 1e9, ": its gradient is computed in parts" if cached else "",
    )  # fmt: skip
    return cached
