"""What was decided: which model and recipe readers use, why, and what they used before."""

from __future__ import annotations

import itertools
import json
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import duckdb

from acme_rag_pipeline.retrieval.expansion import weighed
from acme_rag_pipeline.retrieval.passage_encoder import BASE_PREFIX, PassageEncoder, install_base
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import models
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import PassagePrefix
from acme_rag_pipeline.store.promotion import Recipe
from acme_rag_pipeline.store.stages import stored_detail
from acme_rag_pipeline.store.warehouse import records

STAGE = "promoted_retriever"
BOOTSTRAP, PROMOTED, ROLLED_BACK = "bootstrap", "promoted", "rolled back"
REPLACED = "promoted before, replaced since"
KEPT_BY_A_PERSON = "kept: rolled back before"
NO_CANDIDATE = "no candidate"
# Model, recipe, fusion.
RetrieverKey = tuple[str, Recipe, str]
BOOTSTRAP_REASON = "bootstrap: before the first decision the base model serves, dense"


@dataclass(frozen=True)
class Decision:
    """One row of `promotions`: what readers use from then on. A kept champion is a decision too.

    Attributes:
        candidate_key: of the candidate that was judged; a candidate is judged once.
        fusion: the retrieval settings that a fused recipe was judged with, so that no setting changes what is served
            without a decision. None: not fused, or decided before they were kept.
    """

    decision: int
    decided_at: datetime
    model_digest: str
    recipe: Recipe
    passage_prefix: PassagePrefix
    verdict: str
    reason: str
    candidate_digest: str | None
    candidate_key: str | None
    evaluation_id: str | None
    passage_digest: str | None = None
    fusion: dict[str, Any] | None = None

    @property
    def retriever(self) -> RetrieverKey:
        """Model, recipe and fusion: two decisions with the same one answer alike."""
        return retriever_of(self.model_digest, self.recipe, self.fusion)

    @property
    def expanded(self) -> bool:
        """Whether readers search passages with the queries that were written for them."""
        return self.recipe == "hybrid" and weighed(self.fusion)

    @property
    def table(self) -> str:
        """What readers search."""
        return self.encoder.expanded_table if self.expanded else self.encoder.table

    @property
    def encoder(self) -> PassageEncoder:
        """What encodes the passages that readers search."""
        return PassageEncoder(self.model_digest, self.passage_prefix, self.passage_digest)


def decisions(store: Store) -> list[Decision]:
    """All decisions, the oldest first."""
    with store.warehouse.read() as connection:
        rows = records(
            connection, f"SELECT {', '.join(Decision.__dataclass_fields__)} FROM promotions ORDER BY decision"
        )
    return [Decision(**row | {"fusion": fusion_of(row["fusion"])}) for row in rows]


def queries_are_searched(store: Store) -> bool:
    """Whether what was decided on last finds passages by the queries that were written for them, too."""
    past = decisions(store)
    return bool(past) and past[-1].expanded


def champion(store: Store, settings: Settings) -> Decision:
    """What readers use today; the base, dense, before the first decision (the decision is recorded then)."""
    past = decisions(store)
    if past:
        return past[-1]
    base = install_base(store, settings)
    with store.writer(STAGE):
        # Another run may have been faster.
        if past := decisions(store):
            return past[-1]
        return append(
            store,
            encoder=PassageEncoder(base.digest, BASE_PREFIX),
            recipe="dense",
            verdict=BOOTSTRAP,
            reason=BOOTSTRAP_REASON,
        )


def champion_unrecorded(store: Store, settings: Settings) -> Decision:
    """The same for those who only look: before the first decision it is given as it would be recorded, and is not."""
    if past := decisions(store):
        return past[-1]
    return Decision(
        decision=1,
        decided_at=datetime.now(UTC),
        model_digest=install_base(store, settings).digest,
        recipe="dense",
        passage_prefix=BASE_PREFIX,
        verdict=BOOTSTRAP,
        reason=BOOTSTRAP_REASON,
        candidate_digest=None,
        candidate_key=None,
        evaluation_id=None,
    )


def champion_before(store: Store, settings: Settings, candidate_key: str) -> Decision:
    """The champion that this candidate was, or will be, compared with; nothing is recorded.

    An evaluation of a candidate that has been decided on must not turn into a comparison with itself.
    """
    for before, after in itertools.pairwise(decisions(store)):
        if after.candidate_key == candidate_key and models.model_folder(store, before.model_digest).exists():
            return before
    return champion_unrecorded(store, settings)


def candidate_key(candidate: PassageEncoder | None) -> str:
    """Identity of a candidate for the rule of one decision each."""
    return f"{candidate.model_digest}/{candidate.prefix}" if candidate else NO_CANDIDATE


def newest_verdict(store: Store) -> dict[str, Any] | None:
    """The row of `verdicts` that the last evaluation wrote, None without one.

    The one that the stage names, and not the latest by the clock: a clock that was ahead once would hide all that follow.
    """
    named = stored_detail(store.warehouse, "evaluation_report", "evaluation_id")
    with store.warehouse.read() as connection:
        rows = records(
            connection,
            "SELECT * FROM verdicts ORDER BY evaluation_id IS NOT DISTINCT FROM ? DESC, evaluated_at DESC LIMIT 1",
            [named],
        )
    return rows[0] if rows else None


def on_the_newest_candidate(store: Store) -> Decision | None:
    """The decision on the candidate that was evaluated last, which an earlier run may have made; None without one.

    Where readers use what this candidate's own promotion brought, it is that promotion, although with other evidence it was
    compared with itself since.
    """
    newest = newest_verdict(store)
    return None if newest is None else in_force(store, newest["candidate_key"])


def in_force(store: Store, key: str) -> Decision | None:
    """The decision on a candidate that holds today: its own promotion, where readers use that, else the one by this evidence."""
    found = decision_on(store, key)
    if found is None or found.verdict == PROMOTED:
        return found
    candidate = _candidate_of(key)
    keys = {
        d.candidate_key for d in decisions(store) if d.candidate_key and _candidate_of(d.candidate_key) == candidate
    }
    in_force = [d for key in keys if (d := decision_on(store, key)) is not None and d.verdict == PROMOTED]
    return max(in_force, key=lambda d: d.decision, default=found)


def _candidate_of(key: str) -> list[str]:
    """What of a key names the candidate; behind it stand the evidence and the fusion (`contestants.py`)."""
    return key.split("/")[: 1 if key.startswith(NO_CANDIDATE) else 2]


def decision_on(store: Store, key: str) -> Decision | None:
    """The decision on a candidate by the evidence of its key, if it was made before: no later numbers change it.

    A rollback is one only where it ended the candidate's own promotion. Its row names the candidate that was decided on last,
    which may have been kept while an earlier one served. Who goes back to that promotion by hand puts it in force again. One that
    another promotion followed has the verdict `REPLACED`.
    """
    past = decisions(store)
    found = promotion = None
    for before, after in zip([None, *past], past, strict=False):
        if after.verdict != ROLLED_BACK:
            if after.candidate_key == key:
                found = after
                promotion = after if after.verdict == PROMOTED else promotion
        elif promotion is not None and after.retriever == promotion.retriever:
            found = promotion
        elif promotion is not None and before is not None and before.retriever == promotion.retriever:
            found = after
    if found is not None and found.verdict == PROMOTED and found.retriever != past[-1].retriever:
        return replace(found, verdict=REPLACED)
    return found


def decided_with_other_evidence(store: Store, candidate: PassageEncoder | None, key: str) -> int:
    """How often this candidate was decided on before the decision with this key, by other evidence.

    Where there was no question, or nothing to compare, nothing could be promoted by chance: that is no look at the evidence.

    Args:
        store, candidate: as everywhere; without a candidate it is the fusion of the base that is decided on.
        key: of the candidate with the evidence of today; begins with `candidate_key`.
    """
    with store.warehouse.read() as connection:
        idle = connection.execute(
            "SELECT evaluation_id FROM verdicts WHERE json_array_length(details, '$.comparisons') = 0"
        ).fetchall()
    blank = {row[0] for row in idle}
    before = list(itertools.takewhile(lambda d: d.candidate_key != key, decisions(store)))
    looked = {d.candidate_key for d in before if d.candidate_key and d.evaluation_id not in blank}
    return sum(known.startswith(f"{candidate_key(candidate)}/") for known in looked)


def fusion_of(stored: str | None) -> dict[str, Any] | None:
    """The retrieval settings of a fused recipe, as they are stored."""
    return json.loads(stored) if stored else None


def retriever_of(model_digest: str, recipe: Recipe, fusion: dict[str, Any] | None) -> RetrieverKey:
    """What answers alike, as a key."""
    return model_digest, recipe, json.dumps(fusion, sort_keys=True)


def line_of_promotions(past: Sequence[Decision]) -> list[Decision]:
    """What readers used one after the other up to today, without what was gone back from; the last is today's."""
    line: list[Decision] = []
    for decision in past:
        if decision.verdict == ROLLED_BACK and any(known.retriever == decision.retriever for known in line):
            while line[-1].retriever != decision.retriever:
                line.pop()
        elif not line or line[-1].retriever != decision.retriever:
            line.append(decision)
    return line


def is_left_behind(store: Store, retriever: RetrieverKey) -> bool:
    """Whether a person rolled back from this: from the model with any recipe, where they went to another model.

    Where they went to another recipe of the same model, it is that recipe, and with the same recipe its fusion. Going back to
    something by hand takes it out again.
    """
    left: set[tuple[str, ...]] = set()
    for before, after in itertools.pairwise(decisions(store)):
        if after.verdict == ROLLED_BACK and before.retriever != after.retriever:
            shared = sum(1 for _ in itertools.takewhile(bool, map(operator.eq, before.retriever, after.retriever)))
            left = (left | {before.retriever[: shared + 1]}) - set(_prefixes(after.retriever))
    return any(part in left for part in _prefixes(retriever))


def _prefixes(retriever: RetrieverKey) -> list[tuple[str, ...]]:
    return [retriever[:length] for length in (1, 2, 3)]


def append(
    store: Store,
    *,
    encoder: PassageEncoder,
    recipe: Recipe,
    verdict: str,
    reason: str,
    candidate_digest: str | None = None,
    candidate_key: str | None = None,
    evaluation_id: str | None = None,
    fusion: dict[str, Any] | None = None,
) -> Decision:
    """Record a decision. The pointer follows when the served index is reconciled."""
    with store.warehouse.write() as connection:
        decision = Decision(
            decision=_next_number(connection),
            decided_at=datetime.now(UTC),
            model_digest=encoder.model_digest,
            recipe=recipe,
            passage_prefix=encoder.prefix,
            verdict=verdict,
            reason=reason,
            candidate_digest=candidate_digest,
            candidate_key=candidate_key,
            evaluation_id=evaluation_id,
            passage_digest=encoder.passage_digest,
            fusion=fusion,
        )
        row = vars(decision) | {"fusion": json.dumps(fusion) if fusion else None}
        connection.execute(
            f"INSERT INTO promotions ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", list(row.values())
        )
    return decision


def _next_number(connection: duckdb.DuckDBPyConnection) -> int:
    return int(connection.execute("SELECT coalesce(max(decision), 0) + 1 FROM promotions").fetchall()[0][0])
