"""Which runs the document sensor waits for, and which ones are of these definitions."""

from collections.abc import Set

import dagster as dg

from acme_rag_pipeline.orchestration.dead_runs import STORE_TAG
from acme_rag_pipeline.store.layout import Store

REFRESH, RETRAIN = "refresh", "retrain"
ACTIVE = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def runs_under_way(context: dg.SensorEvaluationContext) -> list[dg.RunRecord]:
    """The runs that work on these assets: a job, or assets that somebody materialises in the UI or from a shell."""
    ours = context.repository_def.asset_graph.get_all_asset_keys() if context.repository_def else None
    return [
        record
        for record in context.instance.get_run_records(dg.RunsFilter(statuses=ACTIVE))
        if not _is_of_another_location(record.dagster_run, context) and _works_on(record.dagster_run, ours)
    ]


def started_runs(context: dg.SensorEvaluationContext) -> list[dg.RunRecord]:
    """The runs of any job of these definitions that have started and not ended."""
    jobs = set(context.repository_def.job_names) if context.repository_def else set()
    return [
        record
        for record in context.instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        if not _is_of_another_location(record.dagster_run, context) and record.dagster_run.job_name in jobs
    ]


def retrain_under_way(context: dg.ScheduleEvaluationContext, schedule: str, store: Store) -> bool:
    """Whether a run that trains waits in the queue or has not ended yet.

    A schedule is not told in which code location it is: a run is of another one if that has no such schedule, or if it works
    on another store, which a run says from its start on.
    """
    with_schedule = {
        state.origin.repository_origin.code_location_origin.location_name
        for state in context.instance.all_instigator_state()
        if state.instigator_name == schedule
    }
    return any(
        _trains(run)
        and run.tags.get(STORE_TAG, tag_of(store)) == tag_of(store)
        and (run.remote_job_origin is None or not with_schedule or run.remote_job_origin.location_name in with_schedule)
        for run in context.instance.get_runs(dg.RunsFilter(statuses=ACTIVE))
    )


def tag_of(store: Store) -> str:
    """What the tag of a run says of the store that it works on."""
    return str(store.root.absolute())


def _trains(run: dg.DagsterRun) -> bool:
    chosen = run.asset_selection
    return run.job_name == RETRAIN or (
        run.job_name.startswith("__") and (not chosen or dg.AssetKey("fine_tuned_model") in chosen)
    )


def _is_of_another_location(run: dg.DagsterRun, context: dg.SensorEvaluationContext) -> bool:
    """Whether another code location of this instance launched the run; one from a shell names none."""
    here = context.code_location_origin
    if run.remote_job_origin is None or here is None:
        return False
    there = run.remote_job_origin.repository_origin
    same_name = context.repository_name in (None, there.repository_name)
    return there.code_location_origin.location_name != here.location_name or not same_name


def _works_on(run: dg.DagsterRun, ours: Set[dg.AssetKey] | None) -> bool:
    if run.job_name in (REFRESH, RETRAIN):
        return True
    # Dagster names the job of a bare selection itself. One without a selection runs everything.
    chosen = run.asset_selection
    return run.job_name.startswith("__") and (not chosen or ours is None or not ours.isdisjoint(chosen))
