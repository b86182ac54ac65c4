"""Our training against its peers: the same pairs, passages and questions, one table.

    pip install -c constraints.txt -e '.[interop]' 'sentence-transformers[train]'
    pip install --no-deps llama-index-finetuning==0.4.2 llama-index-embeddings-adapter==0.6.0
    python benchmarks/peers.py --store data/store --queries data/golden/queries.jsonl --qrels data/golden/qrels.jsonl

`--no-deps`, because llama-index-finetuning asks for the clients of OpenAI, Azure, Mistral and Cohere in old versions;
its embedding engines need none of them and run here unmodified.

The store must hold a training set and a base index (a `retrain` made it). It is copied into `--work` and left alone.
Every system learns from the kept pairs of the train and test sides, in the order of their ids; ours chooses its weights
on the validation side, the others do not use it. Every model then ranks the same chunks for the judged questions, alone
and fused with BM25 as the product does it. The systems, each with its library's defaults:

- `llama-index`: `SentenceTransformersFinetuneEngine`: in-batch softmax, batch 10, 2 epochs, learning rate 2e-5.
- `llama-index-adapter`: `EmbeddingAdapterFinetuneEngine`: a linear layer behind the queries, batch 10, 1 epoch, 2e-5.
- `sentence-transformers`: `SentenceTransformerTrainer`, `MultipleNegativesRankingLoss`: batch 8, 3 epochs, 5e-5.
- `ours`: the `fine_tuned_model` stage with the settings of the environment (`ACME_RAG_TRAINING__...`).

Each system runs in a process of its own and leaves `NAME.json` in `--work`; `--only NAME` runs one of them, and the
table shows all that are there. Minutes are the wall clock from start weights to a finished model (ours: with its choice
of prefix and weights, and with the measured twin where there is one; the base's vectors are in the store's cache by
then), pairs/s is the speed of the training loop.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peers_systems import BASE, OURS, SYSTEMS, Bench, judged

from acme_rag_pipeline.evaluation.arms import Arm, ArmRunner
from acme_rag_pipeline.evaluation.intervals import Interval, mean_interval, paired_interval
from acme_rag_pipeline.evaluation.metrics import PRIMARY
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.fingerprints import fingerprint
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.training.rows import kept_pairs, of_sides

ARMS = ("dense", "fused")


def prepared(options: argparse.Namespace) -> Bench:
    """Copy store and judged set into the working folder, or go on with the copy of an earlier call."""
    work: Path = options.work
    questions, copy = work / "judged", Store(work / "store")
    inputs = (options.store / "warehouse.duckdb", options.queries, options.qrels)
    stamp = work / "made-from.txt"
    if not inputs[0].exists():
        raise SystemExit(f"{options.store} is no store: {inputs[0].name} is missing")
    if work.exists() and any(work.iterdir()) and not stamp.exists():
        raise SystemExit(f"{work} holds something else; name an empty folder with --work")
    made_from = fingerprint(options.limit_pairs, [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in inputs])
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != made_from:
        shutil.rmtree(work, ignore_errors=True)
        questions.mkdir(parents=True)
        stamp.touch()
        shutil.copyfile(options.queries, questions / "queries.jsonl")
        shutil.copyfile(options.qrels, questions / "qrels.jsonl")
        shutil.copytree(options.store, copy.root, ignore=shutil.ignore_patterns("reports", "work", "*.lock"))
        if options.limit_pairs is not None:
            with copy.warehouse.write() as connection:
                connection.execute(
                    "UPDATE training_pairs SET dropped_because = 'limit of the benchmark' WHERE pair_id IN ("
                    "SELECT pair_id FROM training_pairs JOIN chunks USING (chunk_id) "
                    "WHERE dropped_because IS NULL AND chunks.side <> 'validation' ORDER BY pair_id OFFSET ?)",
                    [options.limit_pairs],
                )
        stamp.write_text(made_from, encoding="utf-8")
    tuning = {} if options.limit_pairs is None else {"training": {"minimum_pairs": 1}}
    settings = Settings.load(store=str(copy.root.absolute()), **tuning)
    return Bench(copy, settings, work, of_sides(kept_pairs(copy.warehouse), ("train", "test")))


def run(bench: Bench, name: str) -> None:
    """Train one system, score it, and leave the result in the working folder."""
    scratch = bench.work / f"work-{name}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    # The libraries' defaults write into the working directory.
    with contextlib.chdir(scratch):
        trained = SYSTEMS[name](bench)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    queries, runner = judged(bench), ArmRunner(bench.store, bench.settings)
    arms = [Arm(arm, trained.encoder, arm == "fused") for arm in ARMS]
    scores = {arm.name: runner.run(arm, queries).metric(PRIMARY) for arm in arms}
    result = asdict(trained) | {
        "pairs": len(bench.pairs) if name != BASE else 0,
        "peak_gib": peak,
        "scores": scores,
        "units": {query.query_id: query.unit for query in queries},
    }
    (bench.work / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")
    shutil.rmtree(scratch, ignore_errors=True)


def tables(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Both Markdown tables: every system against the base, and ours against every peer.

    Intervals are 95 %, units (documents or sections) resampled, not adjusted for the number of rows.
    """
    units = results[BASE]["units"]
    ids = sorted(units)
    labels = [units[i] for i in ids]

    def scores(name: str, arm: str) -> list[float]:
        return [results[name]["scores"][arm][i] for i in ids]

    base = scores(BASE, "dense")
    mean = math.fsum(base) / len(base)
    lines = [
        f"{len(ids)} questions over {len(set(labels))} units, {max(r['pairs'] for r in results.values())} training pairs",
        "",
        "| system | minutes | pairs/s | peak GiB | alone: nDCG@10 | over the base | with BM25: nDCG@10 | over the base |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        cells = [
            name,
            *(f"{v:.1f}" for v in (result["seconds"] / 60, result["pairs_per_second"], result["peak_gib"])),
        ]
        if name == BASE:
            cells[1:] = ["", "", ""]
        for arm in ARMS:
            mine = scores(name, arm)
            cells.append(_words(mean_interval(mine, labels)))
            same = name == BASE and arm == "dense"
            cells.append("" if same else _relative(paired_interval(base, mine, labels), mean))
        lines.append(f"| {' | '.join(cells)} |")
    if OURS in results:
        lines += ["", "| ours minus | alone | with BM25 |", "|---|---|---|"]
        for name in results:
            if name != OURS:
                gains = [_words(paired_interval(scores(name, a), scores(OURS, a), labels), sign="+") for a in ARMS]
                lines.append(f"| {name} | {' | '.join(gains)} |")
    lines += [""] + [f"- {name}: {result['note']}" for name, result in results.items() if result["note"]]
    return "\n".join(lines)


def _words(interval: Interval, sign: str = "") -> str:
    return f"{interval.mean:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"


def _relative(interval: Interval, mean: float) -> str:
    low, middle, high = (100 * value / mean if mean else 0.0 for value in (interval.low, interval.mean, interval.high))
    return f"{middle:+.1f} % [{low:+.1f}, {high:+.1f}]"


def main() -> None:
    """Run what is asked for and print the tables of all results in the working folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True, help="a store with a training set; it is only read")
    parser.add_argument("--queries", type=Path, required=True, help="JSONL of query_id, query")
    parser.add_argument(
        "--qrels", type=Path, required=True, help="JSONL of query_id, doc_path, start, end, quote, relevance"
    )
    parser.add_argument("--only", choices=SYSTEMS, action="append", help="run only this system (may be repeated)")
    parser.add_argument("--limit-pairs", type=int, help="train on the first N pairs only, for a quick try")
    parser.add_argument(
        "--work", type=Path, help="working folder, emptied when its inputs change; default <store>-peers"
    )
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in ("store", "queries", "qrels"):
        setattr(options, name, getattr(options, name).absolute())
    options.work = (options.work or options.store.with_name(f"{options.store.name}-peers")).absolute()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    bench = prepared(options)
    if options.in_process:
        run(bench, options.only[0])
        return
    for name in options.only or SYSTEMS:
        if name == BASE and (bench.work / f"{BASE}.json").exists():
            continue
        print(f"{name}: {len(bench.pairs)} pairs ...", file=sys.stderr, flush=True)
        # A process of its own: peak memory, threads and import hacks of one system do not reach the next.
        subprocess.run([sys.executable, __file__, *_arguments(options, name)], check=True)
    found = {name: bench.work / f"{name}.json" for name in (BASE, *SYSTEMS)}
    results = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in found.items() if path.exists()}
    if BASE in results:
        print(tables(results))
    else:
        print("run `--only base` too: the table compares with it", file=sys.stderr)


def _arguments(options: argparse.Namespace, name: str) -> list[str]:
    """The command line of one system's own process."""
    limit = [] if options.limit_pairs is None else ["--limit-pairs", str(options.limit_pairs)]
    paths = [text for key in ("store", "queries", "qrels", "work") for text in (f"--{key}", str(getattr(options, key)))]
    return ["--in-process", "--only", name, *paths, *limit]


if __name__ == "__main__":
    main()
