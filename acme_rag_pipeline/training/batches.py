"""Which passages stand in a batch together: never two that nearly repeat each other, and those of similar length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

BUCKET_BATCHES = 8


def epoch_batches(
    groups: Sequence[str], lengths: Sequence[int], batch_size: int, seed: int, *, singles: bool = False
) -> list[list[int]]:
    """Batches of passage numbers for one epoch; a passage stands in one at most.

    Two passages that nearly repeat each other would be false negatives of each other's queries, so a group stands in a
    batch once; of a group that is larger than there are batches, another part is shown in each epoch. Passages are
    shuffled, then sorted by length within runs of a few batches, which saves padding. Up to so many passages (256 in batches
    of 32) only the order of the batches is random; four small trainings with less sorting were no better.

    Args:
        groups: near-duplicate group of each passage.
        lengths: length of each passage, any unit.
        batch_size: most passages in a batch.
        seed: decides the order.
        singles: keep batches of one; without, they have no negatives and teach nothing.
    """
    rng = np.random.default_rng(seed)
    waiting = [int(i) for i in rng.permutation(len(groups))]
    window = batch_size * BUCKET_BATCHES
    batches: list[list[int]] = []
    windows = [waiting[first : first + window] for first in range(0, len(waiting), window)]
    if len(windows) > 1 and len(windows[-1]) == 1:
        lonely = windows.pop()
        windows[-1].extend(lonely)
    for within in windows:
        shown = _parted(within, groups, batch_size)
        rows = sorted(shown, key=lambda i: (-lengths[i], i))
        open_batches: list[tuple[list[int], set[str]]] = []
        for row in rows:
            for batch, taken in open_batches:
                if len(batch) < batch_size and groups[row] not in taken:
                    batch.append(row)
                    taken.add(groups[row])
                    break
            else:
                open_batches.append(([row], {groups[row]}))
        for batch, taken in open_batches:
            if len(batch) == 1 and not singles:
                fuller = (other for other, _ in open_batches if len(other) > 2 and groups[other[-1]] not in taken)
                if (giving := next(fuller, None)) is not None:
                    batch.append(giving.pop())
        batches.extend(batch for batch, _ in open_batches)
    useful = batches if singles else [batch for batch in batches if len(batch) > 1]
    return [useful[int(i)] for i in rng.permutation(len(useful))]


def _parted(rows: Sequence[int], groups: Sequence[str], batch_size: int) -> list[int]:
    """The rows without those of a group that would fill batches of one: the first of each group stay."""
    most = -(-len(rows) // batch_size)
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[groups[row]] += 1
        if seen[groups[row]] <= most:
            kept.append(row)
    return kept


def query_batches(
    queries_of: Mapping[int, Sequence[int]],
    groups: Sequence[str] | None,
    lengths: Mapping[int, int],
    batch_size: int,
    seed: int,
) -> list[list[int]]:
    """The same as lists of query numbers; all queries of a passage stand together.

    Args:
        queries_of: the queries of each passage that has any.
        groups: near-duplicate group of each passage; None: passages of a batch are no negatives of each other, so that
            any may stand together, or alone.
        lengths: of each passage that has queries, any unit.
        batch_size: most passages in a batch.
        seed: decides the order.
    """
    passages = sorted(queries_of)
    own = [str(p) if groups is None else groups[p] for p in passages]
    plan = epoch_batches(own, [lengths[p] for p in passages], batch_size, seed, singles=groups is None)
    return [[query for number in batch for query in queries_of[passages[number]]] for batch in plan]
