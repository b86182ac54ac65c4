"""The recipe of a training run: what the settings leave open follows from where the questions come from.

Questions that a language model or people wrote stand for what users ask, so the model may move far towards them.
Templates repeat the words of their passages: a model that follows them too far forgets what it knew. They get a smaller
step, and a sharper softmax, which learns from the nearest wrong passages alone. Measured in docs/training.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from acme_rag_pipeline.settings import TrainingSettings
from acme_rag_pipeline.training.rows import KeptPair

TEMPLATES = "offline"
RATES = {"written": 1e-4, TEMPLATES: 5e-5}
SCALES = {"written": 20.0, TEMPLATES: 50.0}
# Adapters start at nothing and need larger steps.
LORA_RATE = 5e-4


def recipe(settings: TrainingSettings, pairs: Sequence[KeptPair]) -> TrainingSettings:
    """The settings with learning rate and scale filled in.

    Args:
        settings: as the user chose them; a value that is set stays.
        pairs: the pairs to train on; what most of them are decides.
    """
    templates = sum(pair.origin == TEMPLATES for pair in pairs)
    kind = TEMPLATES if 2 * templates > len(pairs) else "written"
    rate = LORA_RATE if settings.strategy == "lora" else RATES[kind]
    return settings.model_copy(
        update={"learning_rate": settings.learning_rate or rate, "scale": settings.scale or SCALES[kind]}
    )
