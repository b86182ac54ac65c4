"""Which passages stand in a batch together: never two that nearly repeat each other, and those of similar length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

BUCKET_BATCHES = 8


def epoch_batches(groups: Sequence[str], lengths: Sequence[int], batch_size: int, seed: int) -> list[list[int]]:
    """Batches of passage numbers for one epoch; every passage stands in exactly one.

    Two passages that nearly repeat each other would be false negatives of each other's queries, so a group stands in a
    batch once. Passages are shuffled, then sorted by length within runs of a few batches, which saves padding and keeps
    the order random at the scale that matters.

    Args:
        groups: near-duplicate group of each passage.
        lengths: length of each passage, any unit.
        batch_size: most passages in a batch.
        seed: decides the order.
    """
    rng = np.random.default_rng(seed)
    waiting = [int(i) for i in rng.permutation(len(groups))]
    window = batch_size * BUCKET_BATCHES
    batches: list[list[int]] = []
    for first in range(0, len(waiting), window):
        rows = sorted(waiting[first : first + window], key=lambda i: (-lengths[i], i))
        open_batches: list[tuple[list[int], set[str]]] = []
        for row in rows:
            for batch, taken in open_batches:
                if len(batch) < batch_size and groups[row] not in taken:
                    batch.append(row)
                    taken.add(groups[row])
                    break
            else:
                open_batches.append(([row], {groups[row]}))
        batches.extend(batch for batch, _ in open_batches)
    # A batch of one has no negatives and teaches nothing.
    useful = [batch for batch in batches if len(batch) > 1]
    return [useful[int(i)] for i in rng.permutation(len(useful))]


def query_batches(
    queries_of: Mapping[int, Sequence[int]],
    groups: Sequence[str],
    lengths: Mapping[int, int],
    batch_size: int,
    seed: int,
) -> list[list[int]]:
    """The same as lists of query numbers; all queries of a passage stand together.

    Args:
        queries_of: the queries of each passage that has any.
        groups: near-duplicate group of each passage.
        lengths: of each passage that has queries, any unit.
        batch_size: most passages in a batch.
        seed: decides the order.
    """
    passages = sorted(queries_of)
    plan = epoch_batches([groups[p] for p in passages], [lengths[p] for p in passages], batch_size, seed)
    return [[query for number in batch for query in queries_of[passages[number]]] for batch in plan]
