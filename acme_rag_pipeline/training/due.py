"""Whether a retrain is due: what the newest candidate was trained on, and how much has changed since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from acme_rag_pipeline.chunking import chunks
from acme_rag_pipeline.embedding.base_model import BaseModelFiles
from acme_rag_pipeline.pairs import curated, synthetic, training_set
from acme_rag_pipeline.pairs.wording import query_key
from acme_rag_pipeline.retrieval import index
from acme_rag_pipeline.setting_groups import AutomationSettings
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import models
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.made_with import differing, retrained_keys
from acme_rag_pipeline.store.passages import LivePassage
from acme_rag_pipeline.store.stages import stored_details
from acme_rag_pipeline.training.rows import KeptPair

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True)
class ChangeSinceTraining:
    """Chunks of today against those of the last retrain.

    Attributes:
        changed_share: chunks added or removed, as a share of all in either; 1.0 when nothing was ever trained, 0.0 without any chunk.
    """

    chunks: int
    added: int
    removed: int
    changed_share: float


@dataclass(frozen=True)
class RetrainDue:
    """The answer for one training set.

    Attributes:
        candidate: stage details of the candidate that may stay; None when a new one must be trained.
        reason: why, in words.
    """

    candidate: dict[str, Any] | None
    reason: str


def change_since_training(store: Store) -> ChangeSinceTraining:
    """Compare the live chunks with those the last retrain saw."""
    with store.warehouse.read() as connection:
        total, trained, common = connection.execute(
            "SELECT (SELECT count(*) FROM chunks), (SELECT count(*) FROM trained_chunks), "
            "(SELECT count(*) FROM chunks JOIN trained_chunks USING (chunk_id) WHERE retracted IS NOT TRUE)"
        ).fetchall()[0]
    union = total + trained - common
    share = (union - common) / union if trained else float(union > 0)
    return ChangeSinceTraining(total, total - common, trained - common, share)


def keys_before_training(settings: Settings, base: BaseModelFiles) -> dict[str, str]:
    """For each stage that a training set is made from, a hash of the settings and the code of today that decide it.

    What changes no candidate is in none of them: memory, budgets, how many requests are in flight, the machine.

    Raises:
        SettingsError: the file of example queries cannot be used.
    """
    return {
        chunks.STAGE: chunks.settings_key(settings, base),
        index.BASE_STAGE: index.settings_key(base.digest),
        curated.STAGE: curated.settings_key(),
        synthetic.STAGE: synthetic.settings_key(settings),
        training_set.STAGE: training_set.settings_key(settings),
    }


def other_settings(store: Store, today: Mapping[str, str]) -> list[str]:
    """The stages that the last retrain trained from with other settings, another base model or other code than today's.

    Whatever became of its candidate, a retrain that went as far as the training has dealt with what it worked with.

    Args:
        store: where that retrain noted what it worked with. One of an earlier version noted nothing: its code was another one.
        today: the hash of each stage.
    """
    known = retrained_keys(store.warehouse)
    if known:
        return differing(known, today)
    with store.warehouse.read() as connection:
        trained = connection.execute("SELECT count(*) FROM stages WHERE stage = 'fine_tuned_model'").fetchall()[0][0]
    return list(today) if trained else []


def retrain_due(
    store: Store, pairs: Sequence[KeptPair], config_key: str, automation: AutomationSettings, *, draws: bool = False
) -> RetrainDue:
    """Decide whether the newest candidate may stay although its training set is not that of today.

    Changes add up: the pairs of today are compared with those that the candidate was trained on, not with those of the
    run before. A pair with other negatives named by people is another pair. A candidate that was trained on what validation
    or golden queries hold out today never stays; what its twin saw of today's test units is left out where it is judged
    (`contestants.py`).

    Args:
        store: where the newest candidate and its pairs are recorded.
        pairs: those of today that would be trained on.
        config_key: fingerprint of base model, settings and code.
        automation: holds the threshold.
        draws: whether enough passages were asked about to draw them to their queries, by a base that is not strong.
    """
    with store.warehouse.read() as connection:
        newest = stored_details(connection, "fine_tuned_model")
        key = newest.get("training_key")
        of_trained = "SELECT pair_id, named_negatives FROM trained_pairs WHERE training_key = ?"
        trained = {(pair, *(named or ())) for pair, named in connection.execute(of_trained, [key]).fetchall()}
        golden = [query_key(row[0]) for row in connection.execute("SELECT query FROM golden_queries").fetchall()]
        # A pair that people moved to the golden queries is none of today's: its wording tells.
        held_out = connection.execute(
            "SELECT count(*) FROM trained_pairs LEFT JOIN training_pairs USING (pair_id) WHERE training_key = ? AND "
            "(training_pairs.side = 'validation' OR dropped_because = 'near a golden query' "
            "OR starts_with(dropped_because, 'passage nearly repeats') OR list_contains(?, query_key))",
            [key, golden],
        ).fetchall()[0][0]
    if not trained:
        return RetrainDue(None, "trained because there was no candidate yet")
    if newest.get("config_key") != config_key:
        return RetrainDue(None, "trained because the base model, a setting or the code changed")
    if not models.all_whole(store, newest):
        return RetrainDue(None, "trained because the newest candidate's directory is gone, or has lost files")
    if held_out:
        return RetrainDue(None, f"trained because {held_out} pairs of the newest candidate are held out today")
    if newest.get("draws", draws) != draws and not newest.get("strong_base"):
        share_of = "half of the passages or more" if draws else "less than half of the passages"
        return RetrainDue(
            None, f"trained because people or an LLM have asked about {share_of} now, which is another recipe"
        )
    today = {(pair.pair_id, *sorted(pair.named_negatives)) for pair in pairs}
    new, gone, union = len(today - trained), len(trained - today), len(today | trained)
    share = (new + gone) / union
    change = f"{share:.1%} of the training pairs changed ({new} new, {gone} gone)"
    if share >= automation.retrain_changed_share:
        return RetrainDue(None, f"trained because {change}")
    limit = f"{automation.retrain_changed_share:.1%} (ACME_RAG_AUTOMATION__RETRAIN_CHANGED_SHARE)"
    return RetrainDue(newest, f"the newest candidate stays: {change}, fewer than {limit}")


def remember_chunks(
    connection: duckdb.DuckDBPyConnection, passages: Sequence[LivePassage], chunks_version: str
) -> None:
    """Note that these passages are dealt with: changes count from here.

    Args:
        connection: to write with.
        passages: those that were live when the run read them; a refresh beside a long run may have brought others since.
        chunks_version: data version of these chunks. Where `synthetic_pairs` asked about earlier ones, only those with a
            question count.
    """
    asked_about = stored_details(connection, "synthetic_pairs").get("chunks_version")
    with_questions = "" if asked_about in (None, chunks_version) else "AND chunk_id IN (SELECT chunk_id FROM pairs) "
    seen = [passage.chunk_id for passage in passages]
    connection.execute("DELETE FROM trained_chunks WHERE chunk_id NOT IN (SELECT chunk_id FROM chunks)")
    connection.execute(
        "INSERT INTO trained_chunks (chunk_id, since) SELECT chunk_id, ? FROM chunks "
        f"WHERE list_contains(?, chunk_id) {with_questions}ON CONFLICT DO UPDATE SET retracted = NULL",
        [datetime.now(UTC), seen],
    )


def forget_trained_pairs(store: Store, connection: duckdb.DuckDBPyConnection, keep: set[str | None]) -> None:
    """Delete the pairs of models that are gone from the store; nobody will ask how far they are behind.

    Args:
        store: whose models are looked for.
        connection: to write with.
        keep: training keys whose pairs stay in any case.
    """
    known = connection.execute("SELECT training_key, model_digest FROM models").fetchall()
    kept = keep | {key for key, digest in known if models.model_folder(store, digest).exists()}
    connection.execute(
        "DELETE FROM trained_pairs WHERE NOT list_contains(?, training_key)", [sorted(filter(None, kept))]
    )
