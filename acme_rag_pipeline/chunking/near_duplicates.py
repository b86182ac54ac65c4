"""Groups of passages that nearly repeat each other: regional variants, superseded versions, boilerplate."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datasketch import MinHash

PERMUTATIONS = 64
SHINGLE_WORDS = 3
# Stored signatures are only comparable with those of the same permutation scheme.
SCHEME = "affine32"


def signature(text: str) -> bytes:
    """The MinHash signature of a passage's word 3-grams, as bytes (64 x uint64)."""
    words = re.findall(r"\w+", text.lower())
    grams = {" ".join(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))}
    sketch = _sketch()
    sketch.update_batch([gram.encode("utf-8", "surrogatepass") for gram in sorted(grams)])
    return np.asarray(sketch.hashvalues, dtype="<u8").tobytes()


def groups(signatures: Mapping[str, bytes], similarity: float) -> dict[str, str]:
    """Group of each key: the smallest key of its connected component at the given Jaccard similarity.

    MinHash (Broder 1997) with locality-sensitive hashing from datasketch; each candidate pair is checked with the full
    signatures, and the result does not depend on the order of the keys.
    """
    from datasketch import MinHashLSH

    values = {key: np.frombuffer(blob, dtype="<u8") for key, blob in sorted(signatures.items())}
    index = MinHashLSH(threshold=similarity, num_perm=PERMUTATIONS)
    parent = {key: key for key in values}

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for key, value in values.items():
        sketch = _sketch(value)
        for other in index.query(sketch):
            if float((values[other] == value).mean()) >= similarity:
                first, second = sorted((root(key), root(other)))
                parent[second] = first
        index.insert(key, sketch)
    return {key: root(key) for key in values}


def _sketch(values: np.ndarray | None = None) -> MinHash:
    from datasketch import MinHash

    return MinHash(
        num_perm=PERMUTATIONS,
        seed=1,
        scheme=SCHEME,
        hashvalues=None if values is None else values.astype(np.uint64),
        permutations=_permutations(),
    )


@lru_cache(maxsize=1)
def _permutations() -> np.ndarray:
    """Drawing them anew for each sketch was most of what grouping a collection cost."""
    from datasketch import MinHash

    return MinHash(num_perm=PERMUTATIONS, seed=1, scheme=SCHEME).permutations
