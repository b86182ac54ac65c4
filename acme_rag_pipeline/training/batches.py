"""Which passages stand in a batch together: never two that nearly repeat each other, and those of similar length."""

from __future__ import annotations

from collections.abc import Sequence

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


def topic_batches(
    vectors: np.ndarray, groups: Sequence[str], batch_size: int, topic_size: int, seed: int
) -> list[list[int]]:
    """Batches made of topics: passages near to each other are each other's hard negatives, at no cost.

    Topic-aware sampling (Hofstätter et al. 2021, arXiv:2104.06967) with neighbourhoods instead of k-means clusters, so
    that every epoch draws other topics. What the base takes for a false negative is masked by the loss.

    Args:
        vectors: the base's unit vectors of the passages, shape (passages, dimension).
        groups: near-duplicate group of each passage; a group stands in a batch once.
        batch_size: most passages in a batch.
        topic_size: passages of a topic; a batch holds batch_size / topic_size topics.
        seed: decides the order.
    """
    rng = np.random.default_rng(seed)
    waiting = np.ones(len(groups), dtype=bool)
    topics: list[list[int]] = []
    for start in rng.permutation(len(groups)):
        if not waiting[start]:
            continue
        rows = np.flatnonzero(waiting)
        near = rows[np.argsort(-(vectors[rows] @ vectors[start]), kind="stable")]
        topic: dict[str, int] = {groups[start]: int(start)}
        for row in near:
            if len(topic) == topic_size:
                break
            topic.setdefault(groups[row], int(row))
        topics.append(list(topic.values()))
        waiting[topics[-1]] = False
    batches: list[list[int]] = []
    open_batch: dict[str, int] = {}
    late: list[int] = []
    for number in rng.permutation(len(topics)):
        for row in topics[int(number)]:
            if groups[row] in open_batch:
                late.append(row)
            else:
                open_batch[groups[row]] = row
        if len(open_batch) + topic_size > batch_size:
            batches.append(list(open_batch.values()))
            open_batch = {}
    if open_batch:
        batches.append(list(open_batch.values()))
    batches += [[late[i] for i in batch] for batch in epoch_batches([groups[i] for i in late], late, batch_size, seed)]
    return [batch for batch in batches if len(batch) > 1]
