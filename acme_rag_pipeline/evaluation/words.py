"""Numbers in sentences."""

from __future__ import annotations


def noun(number: int, plural: str) -> str:
    """The form of a regular noun that goes with a number: 1 `query`, 2 `queries`."""
    if number != 1:
        return plural
    return f"{plural[:-3]}y" if plural.endswith("ies") else plural.removesuffix("s")


def counted(number: int, plural: str) -> str:
    """A number with its noun: `1 query`, `2 queries`."""
    return f"{number} {noun(number, plural)}"
