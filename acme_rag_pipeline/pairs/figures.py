"""What a set of pairs looks like: coverage of documents, histograms, and a small picture of them."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Upper ends of the bins, both kinds inclusive; what lies above the last one is in the last bin.
BINS: dict[str, tuple[float, ...]] = {
    "words": (3, 6, 9, 12, 16, 20, 30, 1000),
    "overlap": (0, 0.2, 0.4, 0.6, 0.8, 1.0),
}
_COLORS = {"curated": "#16a34a", "openai": "#2563eb", "offline": "#f59e0b"}
_GREY = "#94a3b8"


@dataclass(frozen=True)
class Coverage:
    """Pairs of each document that has chunks.

    Attributes:
        pairs: Document to its number of pairs.
        chunks: Number of chunks.
        chunks_covered: Of them, those with a pair.
    """

    pairs: Mapping[str, int]
    chunks: int
    chunks_covered: int

    @property
    def without(self) -> list[str]:
        """Documents without a pair."""
        return [doc_path for doc_path, count in self.pairs.items() if not count]

    def numbers(self) -> dict[str, float]:
        """For plotting over time."""
        counts = sorted(self.pairs.values())
        return {
            "documents": len(counts),
            "documents_without_pairs": len(self.without),
            "chunks": self.chunks,
            "chunks_covered": self.chunks_covered,
            "pairs_per_document_median": float(np.median(counts)) if counts else 0.0,
            "pairs_per_document_most": counts[-1] if counts else 0,
        }


def coverage(chunks: Sequence[tuple[str, str]], chunk_ids: Sequence[str]) -> Coverage:
    """Pairs per document.

    Args:
        chunks: (document, chunk id) of all chunks.
        chunk_ids: The chunk of each pair.
    """
    of_chunk = Counter(chunk_ids)
    pairs: Counter[str] = Counter()
    for doc_path, chunk_id in chunks:
        pairs[doc_path] += of_chunk[chunk_id]
    return Coverage(dict(sorted(pairs.items())), len(chunks), sum(chunk_id in of_chunk for _, chunk_id in chunks))


def histogram(kind: str, values: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    """Counts by bin and origin, as rows of a table.

    Args:
        kind: Of `BINS`, `words` of a query or `overlap` of its words with the passage (0 to 1).
        values: (origin, value).
    """
    origins = sorted({origin for origin, _ in values})
    counts = Counter((origin, _bin(kind, value)) for origin, value in values)
    return [
        {kind: label} | {origin: counts[origin, place] for origin in origins}
        for place, label in enumerate(_labels(kind))
    ]


def _bin(kind: str, value: float) -> int:
    return min(int(np.searchsorted(BINS[kind], value)), len(BINS[kind]) - 1)


def _labels(kind: str) -> list[str]:
    ends = BINS[kind]
    if kind == "words":
        starts = (1, *(int(end) + 1 for end in ends[:-1]))
        return [*(f"{a} to {b:g}" for a, b in zip(starts, ends[:-1], strict=False)), f"{starts[-1]} or more"]
    return ["0", *(f"to {end:g}" for end in ends[1:])]


def pairs_picture(rows: Sequence[Mapping[str, Any]], documents: Coverage) -> str:
    """Query lengths by origin, and pairs per document; base64 of a PNG under 50 KB."""

    def lengths(axes: Axes) -> None:
        _stacked(axes, "words", [(row["origin"], len(row["query"].split())) for row in rows])
        axes.set_title("words of a query", fontsize=9)

    def per_document(axes: Axes) -> None:
        axes.stairs(sorted(documents.pairs.values(), reverse=True) or [0], fill=True, color=_GREY)
        axes.set_title(f"pairs of each of {len(documents.pairs)} documents", fontsize=9)
        axes.set_xticks([])

    return _picture([lengths, per_document])


def training_set_picture(rows: Sequence[Mapping[str, Any]], funnel: Sequence[Mapping[str, Any]]) -> str:
    """Pairs left after each filter, query lengths and overlap of the kept ones; base64 of a PNG under 50 KB."""
    kept = [row for row in rows if row["dropped_because"] is None]

    def filters(axes: Axes) -> None:
        places = range(len(funnel))
        axes.barh(places, [step["left"] for step in funnel], color="#2563eb")
        axes.barh(places, [step["dropped"] for step in funnel], left=[s["left"] for s in funnel], color="#e2e8f0")
        axes.set_yticks(places, [str(step["filter"]) for step in funnel], fontsize=7)
        axes.invert_yaxis()
        axes.set_title("pairs left after each filter", fontsize=9)

    def lengths(axes: Axes) -> None:
        _stacked(axes, "words", [(row["origin"], len(row["query"].split())) for row in kept])
        axes.set_title("words of a query", fontsize=9)

    def overlaps(axes: Axes) -> None:
        _stacked(axes, "overlap", [(row["origin"], row["overlap"]) for row in kept])
        axes.set_title("share of its words in the passage", fontsize=9)

    return _picture([filters, lengths, overlaps])


def _stacked(axes: Axes, kind: str, values: Sequence[tuple[str, float]]) -> None:
    bottom = np.zeros(len(BINS[kind]))
    for origin in sorted({origin for origin, _ in values}):
        counts = np.bincount([_bin(kind, v) for o, v in values if o == origin], minlength=len(BINS[kind]))
        axes.bar(range(len(counts)), counts, bottom=bottom, color=_COLORS.get(origin, _GREY), label=origin)
        bottom += counts
    axes.set_xticks(range(len(BINS[kind])), _labels(kind), fontsize=7, rotation=45)
    if values:
        axes.legend(fontsize=7, frameon=False)


def _picture(panels: Sequence[Callable[[Axes], None]]) -> str:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.0 * len(panels), 2.8), dpi=80)
    FigureCanvasAgg(figure)
    # A layout that measures every label takes as long as drawing them.
    figure.subplots_adjust(left=0.1 if len(panels) > 2 else 0.06, right=0.99, top=0.9, bottom=0.23, wspace=0.18)
    for place, draw in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), place)
        draw(axes)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    target = BytesIO()
    figure.savefig(target, format="png", metadata={"Software": None})
    return b64encode(target.getvalue()).decode("ascii")
