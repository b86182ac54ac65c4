"""The teacher of a training run: what the start model and shared words together say of a query and some passages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from scipy.sparse import csr_matrix

# Those of the one measurement in docs/experiments/training.md; no other values were tried.
WORDS_WEIGHT = 0.3
ANSWER_BONUS = 0.3
TEMPERATURE = 0.05


class SharedWords:
    """TF-IDF cosines of queries and passages: which words they share, the rare ones counting most.

    Args:
        queries: texts.
        passages: texts; the frequencies of words are theirs.
    """

    def __init__(self, queries: Sequence[str], passages: Sequence[str]) -> None:
        from scipy.sparse import csr_matrix
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(sublinear_tf=True, strip_accents="unicode", token_pattern=r"\w+", dtype=np.float32)
        if any(map(vectorizer.build_analyzer(), passages)):
            self._passages: csr_matrix = vectorizer.fit_transform(passages)
            self._queries: csr_matrix = vectorizer.transform(queries)
        else:
            self._passages = csr_matrix((len(passages), 1), dtype=np.float32)
            self._queries = csr_matrix((len(queries), 1), dtype=np.float32)

    def cosines(self, queries: Sequence[int], passages: Sequence[int]) -> np.ndarray:
        """Of some queries and some passages by number: float32, 0 to 1, shape (queries, passages)."""
        return (self._queries[list(queries)] @ self._passages[list(passages)].T).toarray()


def teacher_logits(guide: torch.Tensor, words: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """What the model in training is asked to agree with, as logits of a softmax over the passages.

    Args:
        guide: cosines of the start model, shape (queries, passages).
        words: TF-IDF cosines, same shape.
        answers: whether a passage is the query's own or nearly repeats it, same shape.
    """
    return (guide + WORDS_WEIGHT * words + ANSWER_BONUS * answers.to(guide.dtype)) / TEMPERATURE
