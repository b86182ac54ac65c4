"""The model that a training begins with: which of its weights move, and what a step leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from acme_rag_pipeline.embedding.encoder import load_model, use_plain_attention
from acme_rag_pipeline.setting_groups import TrainingSettings
from acme_rag_pipeline.training import lora

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def opened(start: Path, settings: TrainingSettings, device: str | None = None) -> SentenceTransformer:
    """The start weights, ready to train: word embeddings fixed, dropout and adapters as the settings say.

    Args:
        start: directory of the start weights.
        settings: strategy and dropout.
        device: where to train; default CUDA where there is one, else the CPU.

    Raises:
        SettingsError: strategy `lora` without the package that it needs.
    """
    from torch import nn

    model = load_model(start, device)
    if model.device.type == "cpu":
        # The fused kernel's backward pass is slow there: a step without AMX takes 1.3 times as long with it.
        use_plain_attention(model)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.requires_grad_(False)
        if isinstance(module, nn.Dropout):
            # Of the modules alone: the configuration is saved with the model and stays the base's.
            module.p = settings.dropout
    if settings.strategy == "lora":
        lora.add(model, settings)
    return model


def trained_share(model: SentenceTransformer) -> str:
    """How many of the weights are trained, in words."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    everything = sum(p.numel() for p in model.parameters())
    return f"{trained / 1e6:.1f} of {everything / 1e6:.1f} million weights"
