"""What each choice of the training recipe is worth: one store, its golden questions, a row a recipe with its interval.

    python benchmarks/recipes.py --store data/store "scale=20" "learning_rate=1e-4 scale=20" "origins=curated"

Each argument is a recipe: settings of `ACME_RAG_TRAINING__...` in lower case, and `origins`, a comma-separated choice of
`curated`, `openai`, `offline`. The first row is the recipe of the environment, which the others are compared with. Weights are
scored as trained on all pairs but the validation side: no interpolation, no choice of an epoch, no whitening unless it is given.

Needs a store with golden queries and a training set (`make materialize`).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from warm_start import gain, score

from acme_rag_pipeline.embedding.encoder import Encoder
from acme_rag_pipeline.evaluation.golden import golden_queries
from acme_rag_pipeline.evaluation.intervals import mean_interval
from acme_rag_pipeline.retrieval.passage_encoder import embedding_cache, encoder_for, install_base
from acme_rag_pipeline.setting_groups import TrainingSettings
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import live_passages
from acme_rag_pipeline.training.finetune import finetune
from acme_rag_pipeline.training.rows import kept_pairs, mined_negatives, of_sides, training_rows


def main() -> None:
    """Train, score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("data/store"))
    parser.add_argument("recipes", nargs="*")
    given = parser.parse_args()
    settings = Settings.load(store=str(given.store))
    store = Store(settings.store)
    base = install_base(store, settings)
    cached = encoder_for(store, base.digest, settings), embedding_cache(store)
    passages, queries = live_passages(store.warehouse), golden_queries(store)
    units = [query.unit for query in queries]
    untouched = score(Encoder(base.folder, base.digest), passages, queries)
    everything = of_sides(kept_pairs(store.warehouse), ("train", "test"))
    print(
        "| recipe | pairs | seconds | nDCG@10 | gain over the base | over the first recipe |\n|---|---|---|---|---|---|"
    )
    print(f"| base | 0 | 0 | {mean_interval(untouched.tolist(), units).mean:.3f} | | |", flush=True)
    first: np.ndarray | None = None
    for text in ["", *given.recipes]:
        chosen, origins = parsed(text)
        pairs = [pair for pair in everything if not origins or pair.origin in origins]
        training = TrainingSettings(**(settings.training.model_dump() | chosen))
        rows = training_rows(pairs, "none", *cached, mined_negatives(pairs, training))
        with tempfile.TemporaryDirectory() as work:
            model, curve = finetune(base.folder, rows, training, Path(work) / "checkpoint.pt", lambda _: None)
        tuned = score(Encoder(base.folder, "tuned", training.precision, model), passages, queries)
        over_first = "" if first is None else gain(first, tuned, units)
        first = tuned if first is None else first
        print(f"| {text or 'as the pipeline trains'} | {len(pairs)} | {curve.seconds:.0f} | {tuned.mean():.3f} "
              f"| {gain(untouched, tuned, units)} | {over_first} |", flush=True)  # fmt: skip


def parsed(text: str) -> tuple[dict[str, Any], frozenset[str]]:
    """Settings and origins of one recipe; pydantic turns the texts into numbers."""
    chosen = dict(part.split("=", 1) for part in text.split())
    origins = chosen.pop("origins", "")
    return chosen, frozenset(filter(None, origins.split(",")))


if __name__ == "__main__":
    main()
