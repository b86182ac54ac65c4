"""Jobs, the document sensor and the retrain schedule. What they run is defined by the assets."""

import json
import math
import time
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from acme_rag_pipeline.documents.source import DocumentsFolderError
from acme_rag_pipeline.documents.state import folder_state
from acme_rag_pipeline.evaluation import golden
from acme_rag_pipeline.evaluation.changed_settings import CHANGED, changed_since_retrain
from acme_rag_pipeline.evaluation.contestants import candidate_undecided, outcome_of_the_newest
from acme_rag_pipeline.orchestration import checks, runless_events
from acme_rag_pipeline.orchestration.dead_runs import fail_dead_runs
from acme_rag_pipeline.orchestration.resources import Pipeline, plain_failures
from acme_rag_pipeline.orchestration.under_way import (
    REFRESH,
    RETRAIN,
    STORE_TAG,
    retrain_under_way,
    runs_under_way,
    started_runs,
    tag_of,
)
from acme_rag_pipeline.pairs import curated, synthetic
from acme_rag_pipeline.serving import decisions
from acme_rag_pipeline.serving.serve import last_decision_is_served, served_files_are_there
from acme_rag_pipeline.serving.served_with import changed_since_refresh
from acme_rag_pipeline.setting_groups import AutomationSettings
from acme_rag_pipeline.settings import Settings, SettingsError
from acme_rag_pipeline.store.fingerprints import fingerprint
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.stages import stored_detail
from acme_rag_pipeline.store.warehouse import WarehouseBusy
from acme_rag_pipeline.training.due import change_since_training

REFRESH_ASSETS = ("documents", "chunks", "base_index", "fine_tuned_index", "served_index")
# A folder that somebody edits all the time never looks the same twice: from here on what is there is served.
LONGEST_SETTLING_SECONDS = 300
LONGEST_BACKOFF_MINUTES = 60
LATE = "the documents changed and no refresh has brought them to the readers yet"
OTHER_SETTINGS = "a setting, the base model or the code changed and no refresh has worked with it yet"

refresh = dg.define_asset_job(
    REFRESH,
    selection=list(REFRESH_ASSETS),
    description="Seconds after an edit: readers search the new text with the model that is promoted today.",
)
retrain = dg.define_asset_job(
    RETRAIN,
    selection=dg.AssetSelection.all(),
    description="Pairs for what changed, a new candidate, an honest comparison, a promotion or 'keep what we have'.",
)


@dg.op(
    description="Ends non-zero unless the newest candidate was promoted and no check finds a defect, so that CI can fail on it."
)
def promoted_or_fail(context: dg.OpExecutionContext, pipeline: Pipeline) -> None:
    """Read the stored decision on the newest candidate, and look at what the last runs left."""
    store = pipeline.open_store()
    with plain_failures():
        verdict, reason = outcome_of_the_newest(store)
        if verdict != decisions.PROMOTED:
            raise dg.Failure(f"gate: {verdict}. {reason}", allow_retries=False)
        if not last_decision_is_served(store):
            raise dg.Failure("gate: promoted, but readers do not get it yet: run `refresh`", allow_retries=False)
        if defects := checks.failed_in_error(store, pipeline.settings()):
            found = "; ".join(f"{check.check_name} ({checks.in_words(check)})" for check in defects)
            raise dg.Failure(f"gate: promoted, but checks stand in ERROR: {found}", allow_retries=False)
    context.log.info(f"gate: {verdict}. {reason}")


@dg.job(executor_def=dg.in_process_executor)
def gate() -> None:
    """Exit code 0 when the newest candidate was promoted and no check stands in ERROR, else 1."""
    promoted_or_fail()


@dg.sensor(
    job=refresh,
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Notices that the documents, or the settings that a refresh works with, differ from what is served, and runs "
    "`refresh` once they have settled.",
)
def documents_changed(context: dg.SensorEvaluationContext, pipeline: Pipeline) -> dg.SensorResult:
    """Level-triggered: compares the folder with what is served, so that no edit, revert or crash is ever lost.

    The cursor holds the last state seen and since when states have come and gone (to let a burst of edits settle, but not
    for ever), the tries spent on it, when the next one is due, and a counter that makes every run key new: a run key equal
    to an old one would silently drop a revert.
    """
    instance, remembered = context.instance, _remembered(context.cursor)
    cursor: dict[str, Any] = dict.fromkeys(("seen", "served", "unsettled_since", "behind_since", "next_try_at"))
    # Not from 0: after a person reset the cursor in the UI, every key would be one of before.
    cursor |= {"tries": 0, "sequence": int(time.time())} | remembered
    events: list[Any] = []

    def skip(reason: str) -> dg.SensorResult:
        return dg.SensorResult(skip_reason=dg.SkipReason(reason), asset_events=events, cursor=json.dumps(cursor))

    automation = AutomationSettings()
    try:
        settings = Settings.load(**pipeline.given())
        automation = settings.automation
        store = Store(settings.store, wait_seconds=2)
        fail_dead_runs(instance, store, started_runs(context))
        if not runs_under_way(context):
            events += runless_events.unrecorded_decision(instance, store, settings)
        wanted, served = folder_state(settings, store), _served_state(store)
        changed = changed_since_refresh(store, settings)
    except (SettingsError, DocumentsFolderError) as error:
        # Readers keep what they have, and nobody can say how far that is behind.
        if (seconds := _seconds_behind(cursor)) > automation.late_after_minutes * 60:
            events += runless_events.behind(instance, seconds, str(error))
        return skip(str(error))
    except WarehouseBusy as error:
        # A run that writes is soon over; a shell that somebody left open on the file may stay for days.
        seconds = _seconds_behind(cursor)
        late = seconds > automation.late_after_minutes * 60
        events += (
            runless_events.behind(instance, seconds, f"{LATE}: {error}") if late and not runs_under_way(context) else []
        )
        return skip(f"the store is being written to, or held: looking again later ({error})")
    if served == wanted and not changed:
        cursor |= {"tries": 0, "behind_since": None, "unsettled_since": None, "next_try_at": None}
        events += runless_events.caught_up(instance, "readers find the documents of today")
        return skip("the served index is up to date")
    if served is not None and cursor["served"] != served:
        # In a folder that changes all the time what is served is never that of today, and yet not late.
        if remembered:
            events += runless_events.caught_up(instance, "a refresh has brought newer documents to the readers")
        cursor |= {"served": served, "behind_since": None}
    seconds = _seconds_behind(cursor)
    late = seconds > automation.late_after_minutes * 60
    why_late = LATE if served != wanted else f"{OTHER_SETTINGS} ({', '.join(changed)})"
    if runs_under_way(context):
        events += runless_events.behind(instance, seconds, why_late) if late else []
        return skip("a run is under way: looking again when it has ended")
    wanted = fingerprint(wanted, changed) if changed else wanted
    waits_for = _waits_for(cursor, wanted, automation.max_tries)
    if cursor["tries"] >= automation.max_tries:
        events += runless_events.behind(instance, seconds, _tried(cursor))
    elif late:
        events += runless_events.behind(instance, seconds, why_late)
    if waits_for:
        return skip(waits_for)
    request = dg.RunRequest(run_key=f"{cursor['sequence']}:{wanted[:16]}", tags={"acme_rag/documents": wanted[:16]})
    spent = {"sequence": cursor["sequence"] + 1, "tries": cursor["tries"] + 1}
    cursor |= spent | {"unsettled_since": None, "next_try_at": None}
    return dg.SensorResult(run_requests=[request], asset_events=events, cursor=json.dumps(cursor))


def _remembered(cursor: str | None) -> dict[str, Any]:
    """What the last tick left. A person can write anything there; what is none of ours is begun anew."""
    try:
        known = json.loads(cursor or "{}")
    except ValueError:
        return {}
    return known if isinstance(known, dict) else {}


def _waits_for(cursor: dict[str, Any], wanted: str, max_tries: int) -> str:
    """Why no run begins on this state of documents and settings yet; empty when one does."""
    if cursor["seen"] != wanted:
        unsettled_since = cursor["unsettled_since"] or time.time()
        cursor |= {"seen": wanted, "tries": 0, "next_try_at": None, "unsettled_since": unsettled_since}
        if time.time() - unsettled_since < LONGEST_SETTLING_SECONDS:
            return "the documents or the settings changed: waiting until they settle"
    if cursor["tries"] >= max_tries:
        pause = _backoff(cursor["tries"] - max_tries)
        # Never later than from now on: a clock that was ahead when the time was set has been put right since.
        cursor["next_try_at"] = min(cursor["next_try_at"] or math.inf, time.time() + pause)
        if time.time() < cursor["next_try_at"]:
            due = datetime.fromtimestamp(cursor["next_try_at"], UTC)
            return f"{_tried(cursor)}; the next try is due at {due:%H:%M:%S} UTC"
    return ""


def _tried(cursor: dict[str, Any]) -> str:
    return (
        f"{cursor['tries']} runs have not brought this state of the documents to the readers, or did not work with the settings "
        "of the sensor: see the last run of `refresh`"
    )


def _seconds_behind(cursor: dict[str, Any]) -> float:
    """How long readers have been behind, or nobody could tell; counts from now on where it was not so before."""
    cursor["behind_since"] = cursor["behind_since"] or time.time()
    return time.time() - float(cursor["behind_since"])


def _backoff(tries: int) -> float:
    """Seconds to wait after so many tries too many: 1, 2, 4 ... 60 minutes, for a cause that mends itself, as a full disk may."""
    return 60.0 * min(LONGEST_BACKOFF_MINUTES, 2 ** min(tries, 10))


# A refresh with nothing to do costs seconds and proves once a day that what is served still is what was built.
daily_refresh = dg.ScheduleDefinition(
    name="daily_refresh",
    job=refresh,
    cron_schedule="0 5 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Once a day, changes or not: heals a damaged index and keeps the freshness policies true.",
)


@dg.schedule(
    job=retrain,
    cron_schedule="0 2 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Retrains at night, when enough of the documents, what people judged, or a setting changed since the last time, "
    "when the LLM was down then, or when readers search an LLM's queries and a new passage has none yet.",
)
def nightly_retrain(context: dg.ScheduleEvaluationContext, pipeline: Pipeline) -> dg.RunRequest | dg.SkipReason:
    """Ask for a retrain, or say why not.

    Raises:
        SettingsError: a setting is wrong, or a file that it names cannot be read. A tick that fails is seen; one that skips
            says every night what it says when nothing is to be done.
    """
    try:
        settings = Settings.load(**pipeline.given())
        store = Store(settings.store, wait_seconds=10)
        if context.instance_ref is not None:
            # The document sensor, which looks every ten seconds, may be switched off.
            fail_dead_runs(context.instance, store)
            if retrain_under_way(context, "nightly_retrain", store):
                return dg.SkipReason("a retrain is under way, or waits in the queue")
        change = change_since_training(store)
        people = [
            name
            for name, differs in (("curated pairs", curated.file_differs), ("golden queries", golden.files_differ))
            if differs(store, settings)
        ]
        undecided = candidate_undecided(store)
        unanswered = synthetic.left_by_the_llm(store)
        changed = changed_since_retrain(store, settings)
        by_queries = settings.generator_in_use != "offline" and decisions.queries_are_searched(store)
    except WarehouseBusy as error:
        return dg.SkipReason(str(error))
    needed = settings.automation.retrain_changed_share
    found = f"{change.changed_share:.1%} of the chunks changed since the last retrain ({change.added} new, {change.removed} gone)"
    # Beside passages that are found by the queries written for them, one without falls behind (docs/evaluation.md).
    without_queries = by_queries and bool(change.added or unanswered)
    if max(change.changed_share, unanswered) < needed and not (people or changed or undecided or without_queries):
        return dg.SkipReason(
            f"{found}, fewer than {needed:.1%}; people's files and settings are those of the last retrain"
        )
    if changed:
        context.log.info(f"{CHANGED} ({', '.join(changed)})")
    if undecided:
        context.log.info("the last retrain ended before it decided on its candidate")
    if unanswered:
        context.log.info(f"the LLM left {unanswered:.1%} of the last retrain's prompts unanswered")
    if without_queries:
        context.log.info("readers search an LLM's queries, and passages that it was not asked about have none")
    context.log.info("; ".join([found, *(f"the {name} changed" for name in people)]))
    return dg.RunRequest(tags={"acme_rag/changed_share": f"{change.changed_share:.4f}", STORE_TAG: tag_of(store)})


def _served_state(store: Store) -> str | None:
    """The documents that readers search; None too where they do not get the retriever that was decided on last, or not whole."""
    if not (last_decision_is_served(store) and served_files_are_there(store)):
        return None
    return stored_detail(store.warehouse, "served_index", "sources")
