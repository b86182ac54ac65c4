"""Does a retrain start from the base, or go on from the champion with replay? One store, golden questions, seconds.

    python benchmarks/warm_start.py --store data/store [--new-share 0.2]

A champion is trained without a share of the documents, which then count as new. Compared are a retrain from the base on
everything, and two that go on from the champion: on the new documents with as many old passages replayed, and on
everything for one epoch. Interpolation and validation choices are left out: the weights as trained are scored.

Needs a store with golden queries and a training set (`make materialize`).
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from acme_rag_pipeline.embedding.encoder import Encoder
from acme_rag_pipeline.evaluation.golden import JudgedQuery, golden_queries
from acme_rag_pipeline.evaluation.intervals import mean_interval, paired_interval
from acme_rag_pipeline.evaluation.metrics import Hit, score_query
from acme_rag_pipeline.retrieval.passage_encoder import embedding_cache, encoder_for, install_base
from acme_rag_pipeline.setting_groups import TrainingSettings
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import LivePassage, live_passages
from acme_rag_pipeline.training.finetune import finetune
from acme_rag_pipeline.training.rows import KeptPair, kept_pairs, of_sides, training_rows


def main() -> None:
    """Train, score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("data/store"))
    parser.add_argument("--new-share", type=float, default=0.2)
    given = parser.parse_args()
    settings = Settings.load(store=str(given.store))
    store = Store(settings.store)
    base = install_base(store, settings)
    pairs = of_sides(kept_pairs(store.warehouse), ("train", "test"))
    new = {pair.passage.doc_path for pair in pairs if _share(pair.passage.doc_path) < given.new_share}
    old_pairs = [pair for pair in pairs if pair.passage.doc_path not in new]
    new_pairs = [pair for pair in pairs if pair.passage.doc_path in new]
    replayed = sorted(old_pairs, key=lambda pair: hashlib.sha256(pair.pair_id.encode()).digest())[: len(new_pairs)]
    once = settings.training.model_copy(update={"epochs": 1})

    passages = live_passages(store.warehouse)
    queries = golden_queries(store)
    is_new = np.array([query.evidence[0].doc_path in new for query in queries])
    units = [query.unit for query in queries]
    champion, _ = _train(store, settings, base.folder, old_pairs, settings.training)
    results = {"base": (score(Encoder(base.folder, base.digest), passages, queries), 0.0, 0)}
    with tempfile.TemporaryDirectory() as folder:
        champion.model.save_pretrained(folder, create_model_card=False)
        results["champion, never saw the new documents"] = (score(champion, passages, queries), 0.0, len(old_pairs))
        for name, start, chosen, training in (
            ("from the base, everything", base.folder, pairs, settings.training),
            ("from the champion, new and as much replay, 1 epoch", Path(folder), [*new_pairs, *replayed], once),
            ("from the champion, everything, 1 epoch", Path(folder), pairs, once),
        ):
            tuned, seconds = _train(store, settings, start, chosen, training)
            results[name] = (score(tuned, passages, queries), seconds, len(chosen))

    reference = results["from the base, everything"][0]
    print(f"{len(new)} new documents, {is_new.sum()} of {len(queries)} golden questions are about them.\n")
    print("| retrain | pairs | seconds | nDCG@10, all | old documents | new documents | against the base start |")
    print("|---|---|---|---|---|---|---|")
    for name, (scores, seconds, trained) in results.items():
        mean = mean_interval(scores.tolist(), units)
        against = "" if scores is reference else gain(reference, scores, units)
        print(f"| {name} | {trained} | {seconds:.0f} | {mean.mean:.3f} | {scores[~is_new].mean():.3f} "
              f"| {scores[is_new].mean():.3f} | {against} |")  # fmt: skip


def _share(doc_path: str) -> float:
    return int.from_bytes(hashlib.sha256(f"new:{doc_path}".encode()).digest()[:8]) / 2**64


def _train(
    store: Store, settings: Settings, start: Path, pairs: Sequence[KeptPair], training: TrainingSettings
) -> tuple[Encoder, float]:
    base = install_base(store, settings)
    rows = training_rows(pairs, "none", encoder_for(store, base.digest, settings), embedding_cache(store))
    with tempfile.TemporaryDirectory() as work:
        model, curve = finetune(start, rows, training, Path(work) / "checkpoint.pt", lambda _: None)
    return Encoder(start, "tuned", training.precision, model), curve.seconds


def gain(of_one: np.ndarray, of_other: np.ndarray, units: Sequence[str]) -> str:
    """How much higher the second nDCG@10 is, shape (queries,) each, with the interval of the mean over units."""
    found = paired_interval(of_one.tolist(), of_other.tolist(), units)
    return f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def score(encoder: Encoder, passages: Sequence[LivePassage], queries: Sequence[JudgedQuery]) -> np.ndarray:
    """nDCG@10 of each query, passages without headings."""
    held = encoder.encode_passages([passage.text for passage in passages])
    asked = encoder.encode_queries([query.query for query in queries])
    scores = []
    for query, line in zip(queries, asked @ held.T, strict=True):
        best = [passages[i] for i in np.argsort(-line, kind="stable")[:20]]
        scores.append(score_query([Hit(p.doc_path, p.start_char, p.end_char) for p in best], query.evidence)["ndcg@10"])
    return np.array(scores)


if __name__ == "__main__":
    main()
