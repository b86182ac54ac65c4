"""Embedding and training speed against plain sentence-transformers defaults, on the same texts and pairs, in one run.

    python benchmarks/cpu_speed.py --store data/store [--passages 512] [--pairs 768]

Prints a Markdown table: texts and pairs a second, the ratio, the agreement of the vectors, and how far each is from the
processor's limit, measured as FLOP/s reached over those of a large matrix product of the same number type.

Needs `pip install -c constraints.txt 'sentence-transformers[train]'` and a store with a training set (`make materialize`). Run it
on a machine that does nothing else.

Plain means: `SentenceTransformer.encode` with batch size 32 and `SentenceTransformerTrainer` with
`MultipleNegativesRankingLoss` and its default arguments, one epoch, both fp32.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from acme_rag_pipeline.embedding.encoder import Encoder, load_model, native_bf16
from acme_rag_pipeline.retrieval.passage_encoder import embedding_cache, encoder_for, install_base
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import live_passages
from acme_rag_pipeline.training.finetune import finetune
from acme_rag_pipeline.training.rows import KeptPair, kept_pairs, of_sides, training_rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("data/store"))
    parser.add_argument("--passages", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=768)
    given = parser.parse_args()
    settings = Settings.load(store=str(given.store))
    store = Store(settings.store)
    base = install_base(store, settings)
    texts = [passage.text for passage in live_passages(store.warehouse)][: given.passages]
    pairs = of_sides(kept_pairs(store.warehouse), ("train",))
    pairs = sorted(pairs, key=lambda pair: (pair.passage.chunk_id, pair.pair_id))[: given.pairs]

    if not texts or not pairs:
        raise SystemExit(
            f"{settings.store} holds no training set yet: run `make materialize`, or name another with --store"
        )
    if not all(map(importlib.util.find_spec, ("datasets", "accelerate"))):
        raise SystemExit(
            "the plain trainer needs more packages: pip install -c constraints.txt 'sentence-transformers[train]'"
        )

    import torch

    peaks = {"fp32": matrix_product(torch.float32), "bf16": matrix_product(torch.bfloat16)}
    print(f"Large matrix product: {peaks['fp32']:.0f} GFLOP/s fp32, {peaks['bf16']:.0f} GFLOP/s bf16, "
          f"{torch.get_num_threads()} threads.\n")  # fmt: skip
    number = "bf16" if native_bf16(torch.device("cpu")) else "fp32"
    rows = [
        *embedding(base.folder, base.digest, texts, peaks, number),
        *training(store, settings, base.folder, pairs, peaks, number),
    ]
    print("| | per second | ratio | share of the matrix product's FLOP/s | |\n|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


def matrix_product(kind: Any, size: int = 3072, repeat: int = 4) -> float:
    """GFLOP/s of a square product, the best of some."""
    import torch

    a, b = torch.randn(size, size).to(kind), torch.randn(size, size).to(kind)
    best = 0.0
    for _ in range(repeat):
        started = time.perf_counter()
        a @ b
        best = max(best, 2 * size**3 / (time.perf_counter() - started) / 1e9)
    return best


def forward_flops(model: Any, texts: list[str]) -> float:
    """Floating point operations of one forward pass: two for each weight of a linear layer and token, and attention."""
    from torch import nn

    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    layers, width = model[0].auto_model.config.num_hidden_layers, model[0].auto_model.config.hidden_size
    lengths = [
        len(ids) for ids in model.tokenizer(texts, truncation=True, max_length=model.max_seq_length)["input_ids"]
    ]
    return float(sum(2 * weights * n + 4 * layers * width * n * n for n in lengths))


def embedding(folder: Path, digest: str, texts: list[str], peaks: dict[str, float], number: str) -> list[list[str]]:
    """Rows of the table: plain `encode`, and ours."""
    plain, ours = load_model(folder, "cpu"), Encoder(folder, digest)
    flops = forward_flops(plain, texts)
    plain.encode(texts[:64])
    started = time.perf_counter()
    ours.encode_passages(texts)
    opening = time.perf_counter() - started
    started = time.perf_counter()
    expected = plain.encode(texts, batch_size=32, normalize_embeddings=True)
    slow = time.perf_counter() - started
    started = time.perf_counter()
    found = ours.encode_passages(texts)
    fast = time.perf_counter() - started
    cosine = float(np.min(np.sum(expected * found, axis=1)))
    return [
        ["embedding, plain", f"{len(texts) / slow:.1f} texts", "1", share(flops / slow, peaks["fp32"]), "fp32"],
        [
            "embedding, this project",
            f"{len(texts) / fast:.1f} texts",
            f"**{slow / fast:.2f}**",
            share(flops / fast, peaks[number]),
            f"{number}, lowest cosine to the plain vectors {cosine:.5f}; with opening and compiling the model {opening:.1f} s "
            f"instead of {fast:.1f}",
        ],
    ]


def training(
    store: Store, settings: Settings, folder: Path, pairs: list[KeptPair], peaks: dict[str, float], number: str
) -> list[list[str]]:
    """Rows of the table: the plain trainer, and ours with all layers and with half of them; one epoch each."""
    queries, passages = [pair.query for pair in pairs], [pair.passage.text for pair in pairs]
    distinct = sorted(set(passages))
    model = load_model(folder, "cpu")
    layers = int(model[0].auto_model.config.num_hidden_layers)
    flops, own_flops = 3 * forward_flops(model, queries + passages), forward_flops(model, queries + distinct)
    slow = plain_trainer(model, queries, passages)
    base = install_base(store, settings)
    rows = training_rows(pairs, "none", encoder_for(store, base.digest, settings), embedding_cache(store))
    table = [["training, plain", f"{len(pairs) / slow:.1f} pairs", "1", share(flops / slow, peaks["fp32"]), "fp32"]]
    for frozen in (0, layers // 2):
        chosen = settings.training.model_copy(update={"epochs": 1, "frozen_layers": frozen})
        with tempfile.TemporaryDirectory() as work:
            started = time.perf_counter()
            finetune(folder, rows, chosen, Path(work) / "checkpoint.pt", lambda _: None, "cpu")
            fast = time.perf_counter() - started
        # The guide reads every text once; a step is a forward and a backward pass through what is trained.
        done = own_flops * (1 + 3 * (layers - frozen) / layers)
        table.append(
            [
                f"training, this project, {frozen or 'no'} layers frozen",
                f"{len(pairs) / fast:.1f} pairs",
                f"**{slow / fast:.2f}**",
                share(done / fast, peaks[number]),
                f"{number}, {len(pairs)} pairs of {len(distinct)} passages, each encoded once an epoch; the guide's pass included",
            ]
        )
    return table


def plain_trainer(model: Any, queries: list[str], passages: list[str]) -> float:
    """Seconds of one epoch of `SentenceTransformerTrainer` with its defaults."""
    from datasets import Dataset
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.trainer import SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments

    with tempfile.TemporaryDirectory() as work:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=work, num_train_epochs=1, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True
        )
        data = Dataset.from_dict({"anchor": queries, "positive": passages}).shuffle(seed=0)
        loss = MultipleNegativesRankingLoss(model)
        trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=loss)
        started = time.perf_counter()
        trainer.train()
        return time.perf_counter() - started


def share(flops_per_second: float, peak: float) -> str:
    """Reached over possible, in percent."""
    return f"{flops_per_second / 1e9:.0f} GFLOP/s, {100 * flops_per_second / 1e9 / peak:.0f} %"


if __name__ == "__main__":
    main()
