"""Groups of passages that nearly repeat each other: regional variants, superseded versions, boilerplate.

MinHash (Broder 1997) with locality-sensitive hashing, computed as datasketch 2 does, bit for bit (tested against it).
Importing datasketch brings SciPy's integration and optimisation with it, 0.6 s of a refresh, and its index is a Python
loop over passages; here it is a sort of NumPy columns. What the signatures bring together is compared by its words.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from acme_rag_pipeline.store.fingerprints import normalised

PERMUTATIONS = 64
SHINGLE_WORDS = 3
SCHEME = "affine32"
# Of the errors that the bands make: a false candidate is seen through, a missed one stays missed.
MISSED_WEIGHT = 0.999
# Signatures estimate a similarity of 0.7 with a standard deviation of 0.06.
_ESTIMATED = 0.2
# Shingles that more than this part of the passages have are common: at most this many times a passage's are.
_COMMON = 16
_BLOCK = 64
# Stored signatures are only comparable with those of the same permutations over the same words.
STORED_AS = f"{SCHEME}, characters of scripts without spaces, normalised"
# Scripts that write no spaces: a clause would be one word, and one changed digit would change all of its 3-grams.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def shingles(text: str) -> set[str]:
    """The word 3-grams of a passage, the same for each spelling of its letters; at least one."""
    words = _WORD.findall(normalised(text).lower())
    return {" ".join(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))}


def signature(text: str) -> bytes:
    """The MinHash signature of a passage's word 3-grams, as bytes (64 x uint64)."""
    grams = shingles(text)
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


def groups(texts: Mapping[str, str], signatures: Mapping[str, bytes], similarity: float) -> dict[str, str]:
    """Group of each key: the smallest key of its connected component at the given Jaccard similarity of 3-grams.

    Pairs that agree in a whole band of their signatures are candidates, and of the similar ones nearly all are; each is
    checked with its 3-grams. The result does not depend on the order of the keys.

    Args:
        texts: passages by key.
        signatures: those of the same keys.
        similarity: from which on two passages are alike.
    """
    # Boilerplate that stands in thousands of passages is one signature, not millions of pairs.
    first_of: dict[bytes, str] = {}
    for key in sorted(signatures):
        first_of.setdefault(signatures[key], key)
    keys = list(first_of.values())
    values = np.frombuffer(b"".join(signatures[key] for key in keys), dtype="<u8").reshape(len(keys), PERMUTATIONS)
    components = _Components([texts[key] for key in keys], values.astype(np.uint32), similarity)
    group_of = {key: keys[components.root(position)] for position, key in enumerate(keys)}
    return {key: group_of[first_of[blob]] for key, blob in signatures.items()}


class _Components:
    """The connected components of passages, known by their positions."""

    def __init__(self, texts: Sequence[str], values: np.ndarray, similarity: float) -> None:
        self._texts = texts
        self._values = values
        self._similarity = similarity
        self._parent = list(range(len(texts)))
        self._grams: dict[int, list[int]] = {}
        self._number_of: dict[str, int] = {}
        bands, rows = band_shape(similarity)
        for band in range(bands):
            for bucket in _equal_rows(values[:, band * rows : (band + 1) * rows]):
                self._connect(np.asarray(bucket))

    def root(self, position: int) -> int:
        """The smallest position of its component."""
        parent = self._parent
        while parent[position] != position:
            parent[position] = parent[parent[position]]
            position = parent[position]
        return position

    def _connect(self, bucket: np.ndarray) -> None:
        """Join the components of these positions where two of them are alike.

        Each is compared with those that are in no component of its own yet: thousands of variants of one form are not
        millions of pairs.
        """
        roots = np.array([self.root(position) for position in bucket.tolist()])
        waiting = np.arange(len(bucket))
        shared: SharedShingles | None = None
        while len(waiting):
            own = roots[waiting] == roots[waiting[0]]
            group, waiting = waiting[own].tolist(), waiting[~own]
            for member in group:
                if not len(waiting):
                    return
                if shared is None:
                    estimate = (self._values[bucket[waiting]] == self._values[bucket[member]]).mean(axis=1)
                    if estimate.max() < self._similarity - _ESTIMATED:
                        continue
                    shared = SharedShingles([self._grams_of(position) for position in bucket.tolist()])
                near = waiting[shared.jaccard(member)[waiting] >= self._similarity]
                if len(near):
                    first, *others = sorted({self.root(position) for position in bucket[[member, *near]].tolist()})
                    self._parent[first] = first
                    for other in others:
                        self._parent[other] = first
                    joined = np.isin(roots[waiting], roots[near])
                    group.extend(waiting[joined].tolist())
                    waiting = waiting[~joined]

    def _grams_of(self, position: int) -> list[int]:
        """Numbers of its 3-grams; worked out for candidates alone."""
        if position not in self._grams:
            grams, number_of = shingles(self._texts[position]), self._number_of
            self._grams[position] = [number_of.setdefault(gram, len(number_of)) for gram in grams]
        return self._grams[position]


class SharedShingles:
    """How many shingles passages share, each with all the others.

    Those of many passages are columns of a matrix, which is multiplied with itself in blocks, the others lists of the few
    that have them: thousands of variants of one form cost a product, and not millions of steps of a loop.
    """

    def __init__(self, numbers: Sequence[Sequence[int]]) -> None:
        """Prepare them; of each passage the numbers of its shingles, each once."""
        self._sizes = np.array([len(of_one) for of_one in numbers])
        owner = np.repeat(np.arange(len(numbers)), self._sizes)
        _, shingle = np.unique(np.concatenate([np.asarray(of_one) for of_one in numbers]), return_inverse=True)
        held_by = np.bincount(shingle)
        common = (held_by > 1) & (held_by * _COMMON > len(numbers))
        of_common = common[shingle]
        self._common = np.zeros((len(numbers), int(common.sum())), dtype=np.float32)
        self._common[owner[of_common], (np.cumsum(common) - 1)[shingle[of_common]]] = 1
        self._block, self._first = np.zeros((0, 0), dtype=np.float32), -1
        rare = (held_by > 1) & ~common
        self._rare = [of_one[rare[of_one]] for of_one in np.split(shingle, np.cumsum(self._sizes)[:-1])]
        self._owners = owner[np.argsort(shingle, kind="stable")]
        self._ends = np.cumsum(held_by)
        self._starts = self._ends - held_by

    def jaccard(self, one: int) -> np.ndarray:
        """Of one passage with each, itself included, shape (passages,)."""
        if self._first != one - one % _BLOCK:
            self._first = one - one % _BLOCK
            self._block = self._common[self._first : self._first + _BLOCK] @ self._common.T
        shared = self._block[one - self._first].astype(np.int64)
        runs = [self._owners[self._starts[shingle] : self._ends[shingle]] for shingle in self._rare[one].tolist()]
        if runs:
            shared += np.bincount(np.concatenate(runs), minlength=len(shared))
        found: np.ndarray = shared / (self._sizes + self._sizes[one] - shared)
        return found


def _equal_rows(part: np.ndarray) -> list[list[int]]:
    """The positions of equal rows, for each content that stands in more than one row."""
    content = np.ascontiguousarray(part).view(f"V{part.itemsize * part.shape[1]}").reshape(-1)
    found: dict[bytes, list[int]] = {}
    for position, key in enumerate(content.tolist()):
        found.setdefault(key, []).append(position)
    return [positions for positions in found.values() if len(positions) > 1]


@lru_cache(maxsize=8)
def band_shape(similarity: float) -> tuple[int, int]:
    """How many bands of how many rows make the fewest errors; a false candidate costs a comparison, a missed one a leak.

    A pair of similarity s is a candidate with probability 1 - (1 - s^rows)^bands. Its degree is at most `PERMUTATIONS`,
    so a Gauss-Legendre rule of that many points integrates it exactly.
    """
    points, weights = np.polynomial.legendre.leggauss(PERMUTATIONS)
    below, above = similarity * (points + 1) / 2, similarity + (1 - similarity) * (points + 1) / 2

    def errors(bands: int, rows: int) -> float:
        false = similarity * (1 - (1 - below**rows) ** bands)
        missed = (1 - similarity) * (1 - above**rows) ** bands
        return float(weights @ ((1 - MISSED_WEIGHT) * false + MISSED_WEIGHT * missed))

    shapes = [(bands, rows) for bands in range(1, PERMUTATIONS + 1) for rows in range(1, PERMUTATIONS // bands + 1)]
    return min(shapes, key=lambda shape: errors(*shape))
