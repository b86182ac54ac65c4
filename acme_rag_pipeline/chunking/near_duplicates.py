"""Groups of passages that nearly repeat each other: regional variants, superseded versions, boilerplate.

MinHash (Broder 1997) with locality-sensitive hashing, computed as datasketch 2 does, bit for bit (tested against it).
Importing datasketch brings SciPy's integration and optimisation with it, 0.6 s of a refresh, and its index is a Python
loop over passages; here it is a sort of NumPy columns.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np

PERMUTATIONS = 64
SHINGLE_WORDS = 3
SCHEME = "affine32"
# Stored signatures are only comparable with those of the same permutations over the same words.
STORED_AS = f"{SCHEME}, characters of scripts without spaces, normalised"
# Scripts that write no spaces: a clause would be one word, and one changed digit would change all of its 3-grams.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def signature(text: str) -> bytes:
    """The MinHash signature of a passage's word 3-grams, as bytes (64 x uint64)."""
    words = _WORD.findall(text.lower())
    grams = {" ".join(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))}
    digests = b"".join(hashlib.sha1(gram.encode("utf-8", "surrogatepass")).digest()[:4] for gram in grams)
    factors, shifts = _permutations()
    # uint32 arithmetic wraps around: it is the intended modulo.
    hashed = factors[:, None] * _mixed(np.frombuffer(digests, dtype="<u4"))[None, :] + shifts[:, None]
    return hashed.min(axis=1).astype("<u8").tobytes()


def _mixed(hashes: np.ndarray) -> np.ndarray:
    """The finaliser of MurmurHash3: spreads hashes that lie close together."""
    hashes = (hashes ^ (hashes >> 16)) * np.uint32(0x85EBCA6B)
    hashes = (hashes ^ (hashes >> 13)) * np.uint32(0xC2B2AE35)
    return hashes ^ (hashes >> 16)


@lru_cache(maxsize=1)
def _permutations() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.RandomState(1)
    factors = generator.randint(0, 1 << 31, PERMUTATIONS, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return factors, generator.randint(0, 1 << 32, PERMUTATIONS, dtype=np.uint32)


def groups(signatures: Mapping[str, bytes], similarity: float) -> dict[str, str]:
    """Group of each key: the smallest key of its connected component at the given Jaccard similarity.

    Pairs that agree in a whole band of their signatures are candidates; each is checked with the full signatures. The
    result does not depend on the order of the keys.
    """
    # Boilerplate that stands in thousands of passages is one signature, not millions of pairs.
    first_of: dict[bytes, str] = {}
    for key in sorted(signatures):
        first_of.setdefault(signatures[key], key)
    keys = list(first_of.values())
    values = np.frombuffer(b"".join(signatures[key] for key in keys), dtype="<u8").reshape(len(keys), PERMUTATIONS)
    parent = {position: position for position in range(len(keys))}

    def root(position: int) -> int:
        while parent[position] != position:
            parent[position] = parent[parent[position]]
            position = parent[position]
        return position

    bands, rows = band_shape(similarity)
    for band in range(bands):
        for alike in _equal_rows(values[:, band * rows : (band + 1) * rows]):
            for group in _similar(values, alike, similarity):
                first, *others = sorted({root(position) for position in group})
                parent.update(dict.fromkeys(others, first))
    group_of = {key: keys[root(position)] for position, key in enumerate(keys)}
    return {key: group_of[first_of[blob]] for key, blob in signatures.items()}


def _similar(values: np.ndarray, alike: Sequence[int], similarity: float) -> Iterator[list[int]]:
    """The connected components of these positions.

    Each position is compared with those that are in no component yet: thousands of variants of one form are not
    millions of pairs.
    """
    waiting = np.asarray(alike)
    while len(waiting):
        group, waiting = [int(waiting[0])], waiting[1:]
        for position in group:
            near = (values[waiting] == values[position]).mean(axis=1) >= similarity
            group.extend(waiting[near].tolist())
            waiting = waiting[~near]
        yield group


def _equal_rows(part: np.ndarray) -> list[list[int]]:
    """The positions of equal rows, for each content that stands in more than one row."""
    content = np.ascontiguousarray(part).view(f"V{part.itemsize * part.shape[1]}").reshape(-1)
    found: dict[bytes, list[int]] = {}
    for position, key in enumerate(content.tolist()):
        found.setdefault(key, []).append(position)
    return [positions for positions in found.values() if len(positions) > 1]


@lru_cache(maxsize=8)
def band_shape(similarity: float) -> tuple[int, int]:
    """How many bands of how many rows make the fewest errors, false candidates and missed ones counted alike.

    A pair of similarity s is a candidate with probability 1 - (1 - s^rows)^bands. Its degree is at most `PERMUTATIONS`,
    so a Gauss-Legendre rule of that many points integrates it exactly.
    """
    points, weights = np.polynomial.legendre.leggauss(PERMUTATIONS)
    below, above = similarity * (points + 1) / 2, similarity + (1 - similarity) * (points + 1) / 2

    def errors(bands: int, rows: int) -> float:
        false = similarity * (1 - (1 - below**rows) ** bands)
        missed = (1 - similarity) * (1 - above**rows) ** bands
        return float(weights @ (false + missed))

    shapes = [(bands, rows) for bands in range(1, PERMUTATIONS + 1) for rows in range(1, PERMUTATIONS // bands + 1)]
    return min(shapes, key=lambda shape: errors(*shape))
