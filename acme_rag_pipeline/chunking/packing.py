"""Packing a row of weights into groups so that a change in the row moves only the groups around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence


def pack(
    weights: Sequence[int],
    boundaries: Iterable[int],
    limit: int,
    may_join: Callable[[int, int, int], bool] | None = None,
) -> list[tuple[int, int]]:
    """Join neighbours, boundary by boundary, while they stay within the limit together.

    Method: random sequential packing, if the order of the boundaries is a hash of their surroundings. What happens at
    a boundary depends on another one only along a chain of neighbours that come ever earlier in the order; such chains
    are short (one of length k has probability 1/k!), so that the effect of an edit fades within a group or two. A
    greedy packing from one end moves every group behind the edit. No two neighbouring groups fit into the limit
    together, unless `may_join` kept them apart; random weights fill 71 % of it in the mean.

    Args:
        weights: Weight of each item.
        boundaries: Items before which a boundary may be removed, in the order in which that is tried.
        limit: Greatest weight of a group of several items; a single heavier item stays alone.
        may_join: Asked with the boundary and the weights of the two groups that fit together; None joins them all.

    Returns:
        The groups in order, as (first item, last item).
    """
    first_of = list(range(len(weights)))  # by the last item of a group
    last_of = list(range(len(weights)))  # by the first item of a group
    weight_of = list(weights)  # by the first item of a group
    for right in boundaries:
        left, last = first_of[right - 1], last_of[right]
        if weight_of[left] + weight_of[right] > limit:
            continue
        if may_join is not None and not may_join(right, weight_of[left], weight_of[right]):
            continue
        weight_of[left] += weight_of[right]
        last_of[left], first_of[last] = last, left
    groups: list[tuple[int, int]] = []
    item = 0
    while item < len(weights):
        groups.append((item, last_of[item]))
        item = last_of[item] + 1
    return groups
