"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685) through peft, merged into plain weights at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from acme_rag_pipeline.setting_groups import TrainingSettings
from acme_rag_pipeline.settings import SettingsError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def add(model: SentenceTransformer, settings: TrainingSettings) -> None:
    """Put adapters beside every linear layer of the transformer; only they are trained.

    Raises:
        SettingsError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise SettingsError(
            "ACME_RAG_TRAINING__STRATEGY: `lora` needs the package peft: pip install 'acme-rag-pipeline[lora]'"
        ) from None
    config = LoraConfig(
        r=settings.lora_rank, lora_alpha=2 * settings.lora_rank, lora_dropout=0.05, target_modules="all-linear"
    )
    # peft freezes what it looks at; behind the transformer a base may have layers of its own.
    model.requires_grad_(False)
    inject_adapter_in_model(config, _transformer(model))


def merge(model: SentenceTransformer) -> None:
    """Add the adapters to the weights they stand beside; what remains is the plain architecture."""
    from peft.tuners.lora import LoraLayer

    transformer = _transformer(model)
    for name, module in list(transformer.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(transformer.get_submodule(parent), child, module.get_base_layer())


def _transformer(model: SentenceTransformer) -> Any:
    return model[0].auto_model
