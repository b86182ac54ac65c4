"""How the time of the text readers grows with the text: twice as much should take about twice as long, not four times.

    python benchmarks/growth.py [--pieces 50000] [--forms 8000]

The embedded generator reads passages of one piece of markup repeated, such as `[` or `<!--`, which a careless pattern
reads in quadratic time; the near-duplicates of thousands of variants of one form must not be compared two by two, nor
their queries in a Python loop (each with each they are, in one product: four times for twice as many, from little); a
quote is looked for in every document, text that is gone in the negatives of every pair. Each row gives the seconds of the processor for half of the text and for all of it, and their ratio; the faster of three runs
counts.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from acme_rag_pipeline.chunking.chunks import retract
from acme_rag_pipeline.chunking.fragments import fragments
from acme_rag_pipeline.chunking.near_duplicates import groups, signature
from acme_rag_pipeline.pairs.corpus_statistics import CorpusStatistics
from acme_rag_pipeline.pairs.offline import OfflineParameters, render, write
from acme_rag_pipeline.pairs.passage import Passage
from acme_rag_pipeline.pairs.repeated_queries import repeated
from acme_rag_pipeline.store.quotes import QuotableText
from acme_rag_pipeline.store.warehouse import Warehouse

PIECES = ["[", "(", "a|", "<!--", "A ", "x", "to a ", "If you ", "[a](", "ABC (Aaa ", "&amp;", "_a", "word. "]
PIECES += ["[[a|", "{/*", "{% comment %}", "\n> [!a]"]


def main() -> None:
    """Measure both and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pieces", type=int, default=50_000, help="repetitions in a passage")
    parser.add_argument("--forms", type=int, default=8_000, help="variants of one form")
    given = parser.parse_args()
    print(f"{'text':<34}{'half, s':>10}{'all, s':>10}{'ratio':>8}")
    for piece in PIECES:
        show(f"{given.pieces} times {piece!r}", *(reader(piece, n) for n in (given.pieces // 2, given.pieces)))
    show(f"{given.forms} variants of one form", *(grouping(n) for n in (given.forms // 2, given.forms)))
    show(f"{given.forms} unlike variants of it", *(grouping(n, 35) for n in (given.forms // 2, given.forms)))
    show(f"{given.forms} queries of one form", *(repeats(n) for n in (given.forms // 2, given.forms)))
    show(f"{given.pieces} dots in a sentence", *(cutting(n) for n in (given.pieces // 2, given.pieces)))
    show(f"a refresh of {given.forms} chunks", *(retracting(n) for n in (given.forms // 2, given.forms)))
    show(f"a quote in {given.forms} kB of text", *(folding(n) for n in (given.forms // 2, given.forms)))


def show(name: str, half: Callable[[], object], whole: Callable[[], object]) -> None:
    """Print one row."""
    seconds = [min(processor_seconds(work) for _ in range(3)) for work in (half, whole)]
    print(f"{name:<34}{seconds[0]:>10.3f}{seconds[1]:>10.3f}{seconds[1] / max(seconds[0], 1e-9):>8.1f}", flush=True)


def processor_seconds(work: Callable[[], object]) -> float:
    """Of this process, for one run of the work."""
    started = time.process_time()
    work()
    return time.process_time() - started


def reader(piece: str, count: int) -> Callable[[], object]:
    """The embedded generator on one passage of a repeated piece."""
    text = piece * count
    passage = Passage(hashlib.sha256(text.encode()).hexdigest(), "a.md", "Guide", (text[:3000],), text)
    return lambda: write(render(passage, CorpusStatistics.from_passages([passage]), OfflineParameters()))


def grouping(count: int, own: int = 5) -> Callable[[], object]:
    """Near-duplicate groups of passages that share 120 words and have so many of their own."""
    form = " ".join(f"word{number}" for number in range(120))
    texts = {f"p{n:05}": " ".join([form, *(f"own{n}x{i}" for i in range(own))]) for n in range(count)}
    signatures = {key: signature(text) for key, text in texts.items()}
    return lambda: groups(texts, signatures, 0.7)


def repeats(count: int) -> Callable[[], object]:
    """Which of the queries of one near-duplicate group repeat another; none does, so that all are kept."""
    vectors = np.random.default_rng(1).normal(size=(count, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    wordings = [f"query {number}" for number in range(count)]
    return lambda: repeated(wordings, vectors, ["train"] * count, [False] * count, 0.95)


def folding(kilobytes: int) -> Callable[[], object]:
    """A document folded for the search of a quote that is not in it."""
    text = "Trips under five hours go by rail; ask the cost centre owner.\n" * (kilobytes * 1_000 // 62)
    return lambda: QuotableText.of(text).find_all("Flights need an approval when they cost more.")


def cutting(count: int) -> Callable[[], object]:
    """A line of dots, as programs print them to show that they are at work, cut where sentences end."""
    text = "Loading " + "." * count + " done"
    return lambda: fragments(text, 0, len(text), "paragraph")


def retracting(count: int) -> Callable[[], object]:
    """What is gone looked for among three pairs of each chunk with four negatives each; nothing is."""
    folder = tempfile.TemporaryDirectory()
    warehouse = Warehouse(Path(folder.name) / "warehouse.duckdb")
    with warehouse.write() as connection:
        connection.execute(
            "INSERT INTO chunks SELECT 'c' || i, 'a.md', i, 0, 1, [], '', 't', 'c' || i, 1, 'g', 'u', 'train', '' FROM range(?) t(i)",
            [count],
        )
        connection.execute(
            "INSERT INTO training_pairs SELECT 'p' || i, 'train', NULL, 'q', 'c' || (i // 3), 'offline', 's', 'm', 'u', 0, "
            "[ 'c' || ((i * 7 + n) % ?) FOR n IN [1, 2, 3, 4] ] FROM range(?) t(i)",
            [count, 3 * count],
        )

    def work(_: tempfile.TemporaryDirectory[str] = folder) -> None:
        with warehouse.write() as connection:
            retract(connection)

    return work


if __name__ == "__main__":
    main()
