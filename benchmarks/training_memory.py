"""What the gradient cache saves and costs: peak memory of a training and seconds a step, with and without it.

    python benchmarks/training_memory.py --store data/store [--steps 8]

The batches are the first of a run with the settings of the environment, those with the most text first. Each way runs in a
process of its own, so that its peak is its own; both run twice, in turn, and the faster time counts.

Needs a store with a training set (`make materialize`).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from acme_rag_pipeline.retrieval.passage_encoder import embedding_cache, encoder_for, install_base
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.training.objective import Objective
from acme_rag_pipeline.training.rows import kept_pairs, mined_negatives, of_sides, training_rows
from acme_rag_pipeline.training.start_model import opened


def main() -> None:
    """Run both ways and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("data/store"))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", choices=["whole", "cached"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measured(given.store, given.steps, cached=given.only == "cached")))
        return
    found: dict[str, list[dict[str, float]]] = {"whole": [], "cached": []}
    for _ in range(2):
        for way, runs in found.items():
            command = [
                sys.executable,
                __file__,
                "--store",
                str(given.store),
                "--steps",
                str(given.steps),
                "--only",
                way,
            ]
            runs.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1]))
    print("| gradient of a batch | peak, GB | before the first step | seconds a step | ratio |\n|---|--:|--:|--:|--:|")
    whole = min(run["seconds"] for run in found["whole"])
    for way, runs in found.items():
        seconds, best = min(run["seconds"] for run in runs), runs[0]
        print(f"| {way} | {best['peak']:.2f} | {best['before']:.2f} | {seconds:.2f} | {seconds / whole:.2f} |")


def measured(folder: Path, steps: int, *, cached: bool) -> dict[str, float]:
    """Gigabytes and seconds a step of one way."""
    settings = Settings.load(store=str(folder))
    store = Store(settings.store)
    base = install_base(store, settings)
    training = settings.training.model_copy(update={"gradient_cache": cached})
    pairs = of_sides(kept_pairs(store.warehouse), ("train", "test"))
    encoder, cache = encoder_for(store, base.digest, settings), embedding_cache(store)
    rows = training_rows(pairs, "none", encoder, cache, mined_negatives(pairs, training))
    work = Objective(opened(base.folder, training), rows, training)
    work.model.train()
    longest = sorted(
        work.batches(0), key=lambda batch: -sum(len(work.passages[p]) for p in {rows.positives[q] for q in batch})
    )
    before, started = peak(), time.perf_counter()
    for batch in longest[:steps]:
        work.backward(batch)
        work.model.zero_grad(set_to_none=True)
    return {"seconds": (time.perf_counter() - started) / steps, "peak": peak(), "before": before}


def peak() -> float:
    """Largest resident set of this process so far, in GB."""
    kilo = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilo / 1e9


if __name__ == "__main__":
    main()
