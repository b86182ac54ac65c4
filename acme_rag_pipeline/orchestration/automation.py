"""Jobs, the document sensor and the retrain schedule. What they run is defined by the assets."""

import json
import time
from typing import Any

import dagster as dg

from acme_rag_pipeline.documents.source import DocumentsFolderError
from acme_rag_pipeline.documents.state import folder_state
from acme_rag_pipeline.evaluation import golden
from acme_rag_pipeline.evaluation.contestants import candidate_undecided
from acme_rag_pipeline.orchestration.dead_runs import fail_dead_runs
from acme_rag_pipeline.orchestration.resources import Pipeline, plain_failures
from acme_rag_pipeline.pairs import curated, synthetic
from acme_rag_pipeline.serving import decisions
from acme_rag_pipeline.serving.serve import last_decision_is_served
from acme_rag_pipeline.settings import Settings, SettingsError
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.stages import stored_detail
from acme_rag_pipeline.store.warehouse import WarehouseBusy, records
from acme_rag_pipeline.training.due import change_since_training

REFRESH_ASSETS = ("documents", "chunks", "base_index", "fine_tuned_index", "served_index")
ACTIVE = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
# A folder that somebody edits all the time never looks the same twice: from here on what is there is served.
LONGEST_SETTLING_SECONDS = 300

refresh = dg.define_asset_job(
    "refresh",
    selection=list(REFRESH_ASSETS),
    description="Seconds after an edit: readers search the new text with the model that is promoted today.",
)
retrain = dg.define_asset_job(
    "retrain",
    selection=dg.AssetSelection.all(),
    description="Pairs for what changed, a new candidate, an honest comparison, a promotion or 'keep what we have'.",
)


@dg.op(description="Ends non-zero unless the newest candidate was promoted, so that CI can fail on it.")
def promoted_or_fail(context: dg.OpExecutionContext, pipeline: Pipeline) -> None:
    """Read the stored decision on the newest candidate."""
    store = pipeline.open_store()
    with plain_failures():
        with store.warehouse.read() as connection:
            rows = records(connection, "SELECT verdict FROM verdicts ORDER BY evaluated_at DESC LIMIT 1")
        if not rows:
            raise dg.Failure("gate: nothing has been evaluated yet, run `retrain` first", allow_retries=False)
        if candidate_undecided(store):
            raise dg.Failure(
                "gate: not decided. The newest candidate was never judged: run `retrain`", allow_retries=False
            )
        decided = decisions.on_the_newest_candidate(store)
    if decided is not None:
        verdict, reason = decided.verdict, decided.reason
    else:
        verdict, reason = "not decided", f"{rows[0]['verdict']}, but nothing was decided on it yet: run `retrain` again"
    if verdict != "promoted":
        raise dg.Failure(f"gate: {verdict}. {reason}", allow_retries=False)
    context.log.info(f"gate: {verdict}. {reason}")


@dg.job(executor_def=dg.in_process_executor)
def gate() -> None:
    """Exit code 0 when the newest candidate was promoted, else 1."""
    promoted_or_fail()


@dg.sensor(
    job=refresh,
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Notices that the documents differ from what is served and runs `refresh` once they have settled.",
)
def documents_changed(context: dg.SensorEvaluationContext, pipeline: Pipeline) -> dg.SensorResult:
    """Level-triggered: compares the folder with what is served, so that no edit, revert or crash is ever lost.

    The cursor holds the last state seen and since when states have come and gone (to let a burst of edits settle, but not
    for ever), the tries spent on it, and a counter that makes every run key new: a run key equal to an old one would
    silently drop a revert.
    """
    fail_dead_runs(context.instance)
    cursor: dict[str, Any] = dict.fromkeys(("seen", "served", "unsettled_since", "behind_since", "shown"))
    # Not from 0: after a person reset the cursor in the UI, every key would be one of before.
    cursor |= {"tries": 0, "sequence": int(time.time())}
    cursor |= _remembered(context.cursor)

    def skip(reason: str, *events: dg.AssetCheckEvaluation) -> dg.SensorResult:
        return dg.SensorResult(skip_reason=dg.SkipReason(reason), asset_events=events, cursor=json.dumps(cursor))

    try:
        settings = Settings.load(**pipeline.given())
        wanted = folder_state(settings)
        served = _served_state(Store(settings.store, wait_seconds=2))
    except (SettingsError, DocumentsFolderError) as error:
        return skip(str(error))
    except WarehouseBusy:
        return skip("a run is writing to the store: looking again later")
    if served == wanted:
        cursor |= {"tries": 0, "behind_since": None, "unsettled_since": None}
        return skip(
            "the served index is up to date", *_lag(cursor, "current", 0, "readers find the documents of today")
        )
    if cursor["served"] != served:
        # A refresh has brought something to the readers, and shown so itself: in a folder that changes all the time what is
        # served is never that of today, and yet not late.
        cursor |= {"served": served, "behind_since": None, "shown": None}
    cursor["behind_since"] = cursor["behind_since"] or time.time()
    seconds = time.time() - cursor["behind_since"]
    late: list[dg.AssetCheckEvaluation] = []
    if seconds > settings.automation.late_after_minutes * 60:
        late = _lag(cursor, "late", seconds, "the documents changed and no refresh has brought them to the readers yet")
    if _busy(context):
        return skip("a run is under way: looking again when it has ended", *late)
    if cursor["seen"] != wanted:
        cursor |= {"seen": wanted, "tries": 0, "unsettled_since": cursor["unsettled_since"] or time.time()}
        if time.time() - cursor["unsettled_since"] < LONGEST_SETTLING_SECONDS:
            return skip("the documents changed: waiting until they settle", *late)
    if cursor["tries"] >= settings.automation.max_tries:
        reason = f"gave up on this state of the documents after {cursor['tries']} runs: see the last run of `refresh`"
        return skip(reason, *(late or _lag(cursor, "late", seconds, reason)))
    request = dg.RunRequest(run_key=f"{cursor['sequence']}:{wanted[:16]}", tags={"acme_rag/documents": wanted[:16]})
    cursor |= {"sequence": cursor["sequence"] + 1, "tries": cursor["tries"] + 1, "unsettled_since": None}
    return dg.SensorResult(run_requests=[request], asset_events=late, cursor=json.dumps(cursor))


def _remembered(cursor: str | None) -> dict[str, Any]:
    """What the last tick left. A person can write anything there; what is none of ours is begun anew."""
    try:
        known = json.loads(cursor or "{}")
    except ValueError:
        return {}
    return known if isinstance(known, dict) else {}


def _busy(context: dg.SensorEvaluationContext) -> bool:
    """Whether a run works on these assets: a job, or assets that somebody materialises in the UI or from a shell."""
    ours = context.repository_def.asset_graph.get_all_asset_keys() if context.repository_def else None
    for run in context.instance.get_runs(dg.RunsFilter(statuses=ACTIVE)):
        if run.job_name in (refresh.name, retrain.name):
            return True
        # Dagster names the job of a bare selection itself. One without a selection runs everything.
        chosen = run.asset_selection
        if run.job_name.startswith("__") and (not chosen or ours is None or not ours.isdisjoint(chosen)):
            return True
    return False


def _lag(cursor: dict[str, Any], state: str, seconds: float, description: str) -> list[dg.AssetCheckEvaluation]:
    """Turn the served index's check red or green when the lag changes state; nothing between the changes."""
    if cursor["shown"] == state:
        return []
    # The run that made it current has shown so itself.
    first_green = state == "current" and cursor["shown"] is None
    cursor["shown"] = state
    if first_green:
        return []
    return [
        dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey("served_index"),
            check_name="served_index_is_current",
            passed=state == "current",
            severity=dg.AssetCheckSeverity.ERROR,
            description=description,
            metadata={"seconds_behind": round(seconds), "documents_unchanged_since": state == "current"},
        )
    ]


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
    description="Retrains at night, when enough of the documents, or what people judged, changed since the last time, "
    "when the LLM was down then, or when readers search an LLM's queries and a new passage has none yet.",
)
def nightly_retrain(context: dg.ScheduleEvaluationContext, pipeline: Pipeline) -> dg.RunRequest | dg.SkipReason:
    """Ask for a retrain, or say why not."""
    try:
        settings = Settings.load(**pipeline.given())
        store = Store(settings.store, wait_seconds=10)
        change = change_since_training(store)
        people = [
            name
            for name, differs in (("curated pairs", curated.file_differs), ("golden queries", golden.files_differ))
            if differs(store, settings)
        ]
        undecided = candidate_undecided(store)
        unanswered = synthetic.left_by_the_llm(store)
        by_queries = settings.generator_in_use != "offline" and decisions.queries_are_searched(store)
    except (SettingsError, WarehouseBusy) as error:
        return dg.SkipReason(str(error))
    needed = settings.automation.retrain_changed_share
    found = f"{change.changed_share:.1%} of the chunks changed since the last retrain ({change.added} new, {change.removed} gone)"
    # Beside passages that are found by the queries written for them, one without falls behind (docs/evaluation.md).
    without_queries = by_queries and bool(change.added or unanswered)
    if max(change.changed_share, unanswered) < needed and not (people or undecided or without_queries):
        return dg.SkipReason(f"{found}, fewer than {needed:.1%}; people's files are those of the last retrain")
    if undecided:
        context.log.info("the last retrain ended before it decided on its candidate")
    if unanswered:
        context.log.info(f"the LLM left {unanswered:.1%} of the last retrain's prompts unanswered")
    if without_queries:
        context.log.info("readers search an LLM's queries, and passages that it was not asked about have none")
    context.log.info("; ".join([found, *(f"the {name} changed" for name in people)]))
    return dg.RunRequest(tags={"acme_rag/changed_share": f"{change.changed_share:.4f}"})


def _served_state(store: Store) -> str | None:
    """The documents that readers search; None too where they do not get the retriever that was decided on last."""
    return stored_detail(store.warehouse, "served_index", "sources") if last_decision_is_served(store) else None
