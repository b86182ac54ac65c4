"""Readers in threads and in another process poll through promotions, rollbacks, edits and clean-up without grace."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import numpy as np
import pytest

from acme_rag_pipeline.chunking.chunks import split_documents
from acme_rag_pipeline.documents.ingest import ingest_documents
from acme_rag_pipeline.embedding.base_model import functional_files, model_digest, resolve_base_model
from acme_rag_pipeline.retrieval.passage_encoder import (
    BASE_PREFIX,
    PassageEncoder,
    embedding_cache,
    encoder_for,
    install_base,
)
from acme_rag_pipeline.serving import decisions, serve
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import models
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import live_passages
from acme_rag_pipeline_tests.conftest import write_documents
from acme_rag_pipeline_tests.increments.worker import fork_server, read_until_told, settings_of, store_of

pytestmark = pytest.mark.slow
PROMOTIONS = 14
QUERY = "hotel prices and days off"
Scores = dict[tuple[str, int, int, str], float]


class Publisher:
    """The one writer: edits, promotes, and remembers what each promoted state answers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        write_documents(root / "documents")
        # Sentences make each of the many tables dearer and change nothing of what readers may see when.
        self.settings: Settings = settings_of(root, retrieval={"sentence_weight": 0})
        self.store: Store = store_of(self.settings)
        self.base = PassageEncoder(install_base(self.store, self.settings).digest, BASE_PREFIX)
        self.states: list[tuple[str, Scores]] = []

    def edit(self, number: int) -> None:
        path = self.root / "documents/travel.md"
        path.write_text(path.read_text(encoding="utf-8") + f"\nNotice {number} is new.\n", encoding="utf-8")
        if number % 5 == 0:
            (self.root / f"documents/circular{number}.md").write_text(f"# Circular {number}\n\nRead it well.\n")
            (self.root / f"documents/circular{number - 5}.md").unlink(missing_ok=True)
        ingest_documents(self.store, self.settings)
        split_documents(self.store, self.settings)

    def another_model(self, seed: int) -> PassageEncoder:
        """The base with other weights: cheap to make, and its scores are its own."""
        import torch
        from safetensors.torch import load_file, save_file

        base = resolve_base_model(self.settings.base_model, self.settings.root).folder
        made = self.root / f"model{seed}"
        for name in functional_files(base):
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_bytes((base / name).read_bytes())
        torch.manual_seed(seed)
        weights = load_file(made / "model.safetensors")
        noisy = {n: w * (1 + 0.3 * torch.randn_like(w)) if w.is_floating_point() else w for n, w in weights.items()}
        save_file(noisy, made / "model.safetensors", metadata={"format": "pt"})
        digest = model_digest(made)
        models.install(self.store, digest, made, functional_files(made), {})
        return PassageEncoder(digest, "none")

    def expect(self, encoder: PassageEncoder, recipe: str) -> None:
        """Remember the state that is promoted next, before any reader can see it."""
        passages = live_passages(self.store.warehouse)
        cache = embedding_cache(self.store)
        of = encoder_for(self.store, encoder.model_digest, self.settings)
        vectors, _ = cache.passages(of, [p.text for p in passages])
        query, _ = cache.queries(of, [QUERY])
        keys = [(p.doc_path, p.start_char, p.end_char, p.text) for p in passages]
        self.states.append((recipe, dict(zip(keys, (vectors @ query[0]).tolist(), strict=True))))

    def promote(self, encoder: PassageEncoder, recipe: decisions.Recipe) -> None:
        self.expect(encoder, recipe)
        decisions.append(self.store, encoder=encoder, recipe=recipe, verdict=decisions.PROMOTED, reason="by hand")
        serve.serve(self.store, self.settings)

    def roll_back(self, to: PassageEncoder, recipe: str) -> None:
        self.expect(to, recipe)
        decided = serve.rollback(self.store, self.settings)
        assert (decided.encoder, decided.recipe) == (to, recipe)


def test_readers_see_exactly_one_promoted_state_through_many_promotions(tmp_path: Path) -> None:
    chance = random.Random(7)
    publisher = Publisher(tmp_path)
    publisher.edit(0)
    publisher.promote(publisher.base, "dense")
    context = fork_server()
    stop_thread, stop_process, queue = threading.Event(), context.Event(), context.Queue()
    answers: list[list] = [[], []]
    threads = [
        threading.Thread(target=read_until_told, args=(publisher.store.root, QUERY, stop_thread, mine), daemon=True)
        for mine in answers
    ]
    process = context.Process(
        target=read_until_told, args=(publisher.store.root, QUERY, stop_process, queue), daemon=True
    )
    for reader in (*threads, process):
        reader.start()
    from_process: list = [queue.get(timeout=300)]
    other = publisher.base
    for number in range(1, PROMOTIONS + 1):
        publisher.edit(number)
        if number % 6 == 1:
            other = publisher.another_model(number)
        before = decisions.champion(publisher.store, publisher.settings)
        if number % 3 == 0:
            past = decisions.decisions(publisher.store)
            back = [d for d in past if (d.encoder, d.recipe) != (before.encoder, before.recipe)][-1]
            publisher.roll_back(back.encoder, back.recipe)
        else:
            encoder = publisher.base if before.encoder == other else other
            publisher.promote(encoder, chance.choice(("dense", "hybrid")))
    stop_thread.set()
    stop_process.set()
    for thread in threads:
        thread.join(120)
    while isinstance(from_process[-1], list):
        from_process.append(queue.get(timeout=300))
    process.join(60)
    for told in (*answers, from_process):
        *seen, searches = told
        assert isinstance(searches, int), searches
        numbers = [_state(publisher, answer) for answer in seen]
        assert numbers == sorted(numbers), "an older state after a newer one"
        assert len(set(numbers)) > PROMOTIONS // 4
        print(f"{searches} searches, {len(set(numbers))} of {len(publisher.states)} states seen")
    left = {folder.name for folder in publisher.store.models.iterdir()}
    assert left == {publisher.base.model_digest, other.model_digest}, "models of overtaken promotions are removed"


def _state(publisher: Publisher, answer: list) -> int:
    """The number of the promoted state that the answer is from; each has passages of its own."""
    seen = {(path, start, end, text): score for path, start, end, text, score in answer}
    assert len(seen) == len(answer)
    found = [n for n, (_, scores) in enumerate(publisher.states) if scores.keys() == seen.keys()]
    assert len(found) == 1, "a mix of states, or none of them"
    recipe, scores = publisher.states[found[0]]
    if recipe == "dense":
        # bf16 is exact to three digits; the models differ by far more.
        assert np.allclose([seen[key] for key in scores], list(scores.values()), atol=0.01), "another model's scores"
    return found[0]
