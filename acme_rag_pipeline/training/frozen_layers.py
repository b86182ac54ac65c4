"""Lower layers that are not trained: each text goes through them once, and a step runs the layers above alone.

In a step of BERT forward and backward cost about 1 : 2, so half of the layers frozen, with their outputs kept, halve it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from acme_rag_pipeline.setting_groups import TrainingSettings
from acme_rag_pipeline.settings import SettingsError
from acme_rag_pipeline.training.memory import memory_bytes

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

# Kept outputs take up to tokens x width x 4 bytes: 1 GB for 2,500 passages of 250 tokens. Above this they run in each step.
MOST_BYTES = 4 * 2**30
# Nor do they take more than this share of the machine's memory.
MOST_OF_MEMORY = 0.25
ARCHITECTURES = frozenset({"bert", "roberta", "xlm-roberta"})


def frozen_layers(
    model: SentenceTransformer, settings: TrainingSettings, *, mostly_templates: bool
) -> FrozenLayers | None:
    """Those of the settings; None where every layer is trained.

    Where nobody chose, half of the layers are frozen if most queries are templates: they teach no less then, while an
    LLM's questions do. Where the passages are drawn to their queries afterwards, more is gained so than by all layers alone
    (docs/training.md).

    Args:
        model: with every layer still in training.
        settings: `frozen_layers`, `expansion_epochs` and the strategy.
        mostly_templates: whether the embedded generator wrote most of the queries.

    Raises:
        SettingsError: the settings ask for what the model does not have.
    """
    count = settings.frozen_layers
    if count is None:
        half = settings.strategy == "full" and (mostly_templates or bool(settings.expansion_epochs))
        count = len(_parts(model)[1]) // 2 if half else 0
    return FrozenLayers(model, count) if count else None


def _parts(model: SentenceTransformer) -> tuple[Any, Sequence[Any]]:
    """Embeddings and layers; none of an architecture whose layers pass more than their output on."""
    transformer: Any = model[0].auto_model
    if transformer.config.model_type not in ARCHITECTURES:
        return None, ()
    return transformer.embeddings, transformer.encoder.layer


class FrozenLayers:
    """The word embeddings and the first layers of a BERT-like model; freezes them.

    Args:
        model: a BERT-like transformer, with `embeddings` and `encoder.layer`.
        count: how many layers, counted from the words.

    Raises:
        SettingsError: the model has another architecture, or no layer would be left to train.
    """

    def __init__(self, model: SentenceTransformer, count: int) -> None:
        self._embeddings, layers = _parts(model)
        if not 0 < count < len(layers):
            held = f"has {len(layers)} layers" if layers else "is no BERT-like encoder"
            raise SettingsError(
                f"ACME_RAG_TRAINING__FROZEN_LAYERS: {count}, but the base model {held}; set a smaller number, or 0"
            )
        self._layers: list[Any] = list(layers[:count])
        for module in (self._embeddings, *self._layers):
            module.requires_grad_(False)

    def output_bytes(self, tokens: int) -> int:
        """What the outputs for so many tokens take, at most."""
        return tokens * int(self._embeddings.word_embeddings.embedding_dim) * 4

    def may_keep(self, tokens: int) -> bool:
        """Whether the outputs for so many tokens leave enough memory for the training."""
        memory = memory_bytes(self._embeddings.word_embeddings.weight.device)
        most = min(MOST_BYTES, int(MOST_OF_MEMORY * memory))
        return self.output_bytes(tokens) <= most

    @contextlib.contextmanager
    def outputs(self) -> Iterator[list[torch.Tensor]]:
        """Collects what comes out of the last frozen layer, a tensor (rows, tokens, width) for each forward pass."""
        found: list[torch.Tensor] = []
        hook = self._layers[-1].register_forward_hook(lambda _layer, _inputs, output: found.append(output))
        try:
            yield found
        finally:
            hook.remove()

    @contextlib.contextmanager
    def replaced_by(self, hidden: torch.Tensor) -> Iterator[None]:
        """Forward passes start from these outputs, shape (rows, tokens, width), and run the layers above only."""
        self._embeddings.forward = lambda *_, **__: hidden
        for layer in self._layers:
            layer.forward = lambda states, *_, **__: states
        try:
            yield
        finally:
            for module in (self._embeddings, *self._layers):
                del module.forward
