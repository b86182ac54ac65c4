"""Groups of passages that nearly repeat each other: regional variants, superseded versions, boilerplate."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

PERMUTATIONS = 64
SHINGLE_WORDS = 3
# Stored signatures are only comparable with those of the same permutation scheme.
SCHEME = "affine32"


def signature(text: str) -> bytes:
    """The MinHash signature of a passage's word 3-grams, as bytes (64 x uint64)."""
    from datasketch import MinHash

    words = re.findall(r"\w+", text.lower())
    grams = {" ".join(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))}
    sketch = MinHash(num_perm=PERMUTATIONS, seed=1, scheme=SCHEME)
    sketch.update_batch([gram.encode("utf-8", "surrogatepass") for gram in sorted(grams)])
    return np.asarray(sketch.hashvalues, dtype="<u8").tobytes()


def groups(signatures: Mapping[str, bytes], similarity: float) -> dict[str, str]:
    """Group of each key: the smallest key of its connected component at the given Jaccard similarity.

    MinHash (Broder 1997) with locality-sensitive hashing from datasketch; each candidate pair is checked with the full
    signatures, and the result does not depend on the order of the keys.
    """
    from datasketch import MinHash, MinHashLSH

    values = {key: np.frombuffer(blob, dtype="<u8") for key, blob in sorted(signatures.items())}
    index = MinHashLSH(threshold=similarity, num_perm=PERMUTATIONS)
    parent = {key: key for key in values}

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for key, value in values.items():
        sketch = MinHash(num_perm=PERMUTATIONS, seed=1, scheme=SCHEME, hashvalues=value.astype(np.uint64))
        for other in index.query(sketch):
            if float((values[other] == value).mean()) >= similarity:
                first, second = sorted((root(key), root(other)))
                parent[second] = first
        index.insert(key, sketch)
    return {key: root(key) for key in values}
