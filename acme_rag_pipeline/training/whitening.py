"""Soft whitening: vectors of one collection, spread more evenly over the directions that they have.

The passages of one company lie close together: they all speak of it. The directions that they share decide most of a
cosine and tell no passage from another. Multiplied by a power of the inverse of their covariance, those count less and the
rest more; no question is needed for that, and what is lost where a question shares no word with its passage validation
sees. In a saved model it is a linear layer after the pooling.

Sources: Su et al. 2021 (arXiv:2103.15316) for whitening sentence vectors; Diera et al. 2024 (arXiv:2411.17538) for doing it
by half on purpose; Ledoit and Wolf 2004 for a covariance from fewer vectors than dimensions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def soft_whitening(vectors: np.ndarray, exponent: float) -> np.ndarray:
    """The symmetric matrix C ** -exponent, for C the second moment of some vectors, shrunk after Ledoit and Wolf.

    Args:
        vectors: shape (texts, dimension), at least one. The moment is about the origin and not the mean, for a cosine is.
        exponent: 0 leaves all as it is, 0.5 makes every direction count the same.

    Returns:
        float32, shape (dimension, dimension). The vectors times it have a mean squared length of 1.
    """
    from sklearn.covariance import ledoit_wolf

    exact = vectors.astype(np.float64)
    moment, _ = ledoit_wolf(exact, assume_centered=True)
    strengths, directions = np.linalg.eigh(moment)
    # A vector that is the same for all texts leaves the other directions with no strength at all.
    strengths = np.maximum(strengths, strengths[-1] * 1e-6)
    matrix = directions @ np.diag(strengths**-exponent) @ directions.T
    return (matrix / np.sqrt(np.mean(np.sum((exact @ matrix) ** 2, axis=1)))).astype(np.float32)


def whitened(vectors: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Unit vectors, shape (texts, dimension), as a model with this layer gives them."""
    moved = vectors @ matrix
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def add_whitening(model: SentenceTransformer, matrix: np.ndarray) -> None:
    """Put the matrix behind the model's modules, but before a normalisation; it is not trained."""
    import torch
    from sentence_transformers.models import Dense, Normalize

    size = len(matrix)
    layer = Dense(size, size, bias=False, activation_function=torch.nn.Identity(), init_weight=torch.from_numpy(matrix))
    modules = list(model.children())
    # Without autocast a layer cannot read vectors of another number format than its own.
    layer.to(device=model.device, dtype=next(model.parameters()).dtype).requires_grad_(False)
    model.insert(len(modules) - isinstance(modules[-1], Normalize), layer)
