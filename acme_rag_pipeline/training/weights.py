"""How much each query counts in the loss: a few that people wrote must not drown in templates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Of one written query against one template. A handful of queries would be learnt by heart otherwise.
LARGEST_WEIGHT = 10.0


def query_weights(templates: Sequence[bool], written_share: float) -> np.ndarray | None:
    """Weights that give the written queries (people's, an LLM's) their least share of the loss.

    Args:
        templates: of each query, whether the embedded generator wrote it.
        written_share: the least share of the written ones, 0 to below 1.

    Returns:
        A weight of at least 1 for each query, float32; None where all count the same.
    """
    template = np.asarray(templates, dtype=bool)
    written = int((~template).sum())
    if not written or written >= written_share * len(template):
        return None
    wanted = written_share / (1 - written_share) * (len(template) - written) / written
    return np.where(template, 1.0, min(LARGEST_WEIGHT, wanted)).astype(np.float32)
