"""What an evaluation found, on the candidate's model card."""

from __future__ import annotations

import logging

from acme_rag_pipeline.evaluation.arms import BASE, FINE_TUNED
from acme_rag_pipeline.evaluation.contest import Evaluation
from acme_rag_pipeline.evaluation.intervals import paired_interval
from acme_rag_pipeline.evaluation.metrics import METRICS, PRIMARY
from acme_rag_pipeline.evaluation.query_sets import HELD_OUT
from acme_rag_pipeline.store import models
from acme_rag_pipeline.store.layout import Store, write_atomically
from acme_rag_pipeline.training.model_card import EVALUATION_BEGINS, EVALUATION_ENDS

logger = logging.getLogger(__name__)


def write_on_card(store: Store, done: Evaluation, verdict: str) -> None:
    """Replace the card's part on the evaluation; whatever else people wrote there stays, also if they deleted that part.

    A card that a person saved in another encoding than UTF-8 stays as it is.

    Args:
        store: whose card it is.
        done: the evaluation.
        verdict: that holds.
    """
    if done.contest.candidate is None:
        return
    card = models.model_folder(store, done.contest.candidate.model_digest) / "README.md"
    if not card.is_file():
        return
    try:
        known = card.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        logger.warning("%s is not UTF-8: it stays as it is, without this evaluation", card)
        return
    before, begins, rest = known.partition(EVALUATION_BEGINS)
    _, ends, after = rest.partition(EVALUATION_ENDS)
    if begins and ends:
        text = f"{before}{begins}\n{evaluation_part(done, verdict)}{ends}{after}"
        if text != f"{before}{begins}{rest}":
            write_atomically(card, text)


def evaluation_part(done: Evaluation, verdict: str) -> str:
    """Markdown: this model against the base, each alone, on every query set."""
    lines = [
        "| questions | metric | base | this model | difference, 95 % interval |",
        "|---|---|--:|--:|---|",
    ]
    for name, queries in done.queries.items():
        base, tuned = (done.result(name, arm) for arm in (BASE, FINE_TUNED))
        if base is None or tuned is None or not queries:
            continue
        units = [query.unit for query in queries]
        for metric in (metric for metric in METRICS if metric.endswith("@10")):
            before, after = ([r.metric(metric)[q.query_id] for q in queries] for r in (base, tuned))
            gain = paired_interval(before, after, units)
            limits = f"{max(-1.0, gain.low):+.3f} to {min(1.0, gain.high):+.3f}"
            what = f"{len(queries)} {name.replace('_', '-')}, over {gain.units} units" if metric == PRIMARY else ""
            means = f"{sum(before) / len(before):.3f} | {sum(after) / len(after):.3f}"
            lines.append(f"| {what} | {metric} | {means} | {gain.mean:+.3f} ({limits}) |")
    if len(lines) == 2:
        return "No questions to judge it by.\n"
    twin = done.contest.twin is not None and HELD_OUT in done.queries
    of_twin = " On held-out questions its twin, which never saw their documents, stands for it." if twin else ""
    return "\n".join(lines) + f"\n\nEach alone, without BM25.{of_twin} Decision: {verdict}.\n"
