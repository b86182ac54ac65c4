"""Groups of passages that nearly repeat each other."""

from __future__ import annotations

import random

import numpy as np
from datasketch import MinHash

from acme_rag_pipeline.chunking.near_duplicates import PERMUTATIONS, SCHEME, groups, signature

RNG = random.Random(1)
WORDS = [f"word{number}" for number in range(400)]


def passage() -> list[str]:
    return [RNG.choice(WORDS) for _ in range(120)]


def test_a_variant_joins_its_original_and_nothing_else_does() -> None:
    texts = {f"p{number}": passage() for number in range(30)}
    texts["variant"] = [*texts["p7"][:60], "Amsterdam", *texts["p7"][61:]]
    texts["half"] = texts["p9"][:60] + passage()[:60]
    signatures = {key: signature(" ".join(words)) for key, words in texts.items()}
    found = groups(signatures, 0.7)
    assert found["variant"] == found["p7"]
    assert len(set(found.values())) == len(texts) - 1
    shuffled = list(signatures)
    RNG.shuffle(shuffled)
    assert groups({key: signatures[key] for key in shuffled}, 0.7) == found


def test_a_stored_signature_is_the_one_that_the_library_computes() -> None:
    """Signatures are kept in stores: another permutation would not be comparable with them."""
    text = "Report sick before nine o'clock in Tern"
    words = ["report", "sick", "before", "nine", "o", "clock", "in", "tern"]
    sketch = MinHash(num_perm=PERMUTATIONS, seed=1, scheme=SCHEME)
    for first in range(len(words) - 2):
        sketch.update(" ".join(words[first : first + 3]).encode())
    assert np.array_equal(np.frombuffer(signature(text), dtype="<u8"), sketch.hashvalues)
