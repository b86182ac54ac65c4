"""The forgetting probe: does a candidate still answer questions that have nothing to do with its documents?

Fine-tuning on one collection can cost general ability (catastrophic forgetting, McCloskey and Cohen 1989). The shipped
probe (`embedding/general_probe.jsonl`) asks about everyday knowledge. The result is reported and gates nothing: a retriever
for these documents may forget how bread is baked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from acme_rag_pipeline.embedding.general_probe import probe_entries
from acme_rag_pipeline.evaluation.intervals import Interval, paired_interval
from acme_rag_pipeline.evaluation.metrics import DEPTH
from acme_rag_pipeline.retrieval.passage_encoder import PassageEncoder, embedding_cache, encoder_for
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store


@dataclass(frozen=True)
class Forgetting:
    """Mean nDCG@10 on the general probe.

    Attributes:
        base_ndcg: of the base model, between 0 and 1.
        candidate_ndcg: of the candidate as it would be served.
        difference: candidate minus base, per question paired, with its 95 % interval; each question is its own unit.
        queries: number of questions.
    """

    base_ndcg: float
    candidate_ndcg: float
    difference: Interval
    queries: int

    @property
    def outcome(self) -> str:
        """`forgets`, `improves` or `holds`: where the interval lies relative to 0."""
        if self.difference.high < 0:
            return "forgets"
        return "improves" if self.difference.low > 0 else "holds"

    @property
    def sentence(self) -> str:
        """The outcome for a reader of the report."""
        scores = (
            f"On {self.queries} questions of everyday knowledge the base reaches {self.base_ndcg:.3f} "
            f"nDCG@10 and the candidate {self.candidate_ndcg:.3f}"
        )
        if self.outcome == "forgets":
            loss = f"between {-self.difference.high:.3f} and {-self.difference.low:.3f}"
            return f"{scores}. The candidate forgets: the loss lies {loss}."
        if self.outcome == "improves":
            return f"{scores}. The candidate does not forget; it is even better there."
        excluded = max(0.0, -self.difference.low)
        return f"{scores}. No forgetting is shown; a loss above {excluded:.3f} can be ruled out."

    def floats(self) -> dict[str, float]:
        """What the stage reports, so that Dagster plots it over time."""
        return {
            "general_probe/base": round(self.base_ndcg, 4),
            "general_probe/candidate": round(self.candidate_ndcg, 4),
            "general_probe/difference": round(self.difference.mean, 4),
        }


def general_probe(store: Store, settings: Settings, base: PassageEncoder, candidate: PassageEncoder) -> Forgetting:
    """Rank the probe's passages for each of its queries with both models, by exact cosine.

    Probe passages have no headings, so a heading prefix does not apply. Vectors come from the embedding cache: the second
    probe of a model encodes nothing.

    Args:
        store, settings: where the models and cached vectors are.
        base, candidate: whose `model_digest` encodes queries and whose `passage_model` encodes passages.
    """
    queries = [query for query, _ in probe_entries()]
    before, after = (_ndcg(store, settings, which) for which in (base, candidate))
    difference = paired_interval(before.tolist(), after.tolist(), queries)
    return Forgetting(float(before.mean()), float(after.mean()), difference, len(queries))


def _ndcg(store: Store, settings: Settings, which: PassageEncoder) -> np.ndarray:
    queries, passages = zip(*probe_entries(), strict=True)
    cache = embedding_cache(store)
    encoder = encoder_for(store, which.model_digest, settings)
    asked, _ = cache.queries(encoder, queries)
    if which.passage_model != which.model_digest:
        encoder = encoder_for(store, which.passage_model, settings)
    held, _ = cache.passages(encoder, passages)
    similarity = asked @ held.T
    # A tie counts against the right passage, so that a model that cannot tell passages apart scores nothing.
    ranks = (similarity >= similarity.diagonal()[:, None]).sum(axis=1)
    return np.array([1 / math.log2(rank + 1) if rank <= DEPTH else 0.0 for rank in ranks])
