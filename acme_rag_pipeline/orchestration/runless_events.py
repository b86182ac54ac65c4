"""What the document sensor records without a run: that readers fall behind, that they caught up, a decision no run recorded.

Each event is compared with the newest one of its kind that Dagster holds, so that nothing is said twice, and nothing is
lost when a tick fails or the sensor's cursor is reset.
"""

import dagster as dg

from acme_rag_pipeline.orchestration import checks
from acme_rag_pipeline.serving import decisions, promote
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store

_SERVED, _PROMOTED = dg.AssetKey("served_index"), dg.AssetKey(decisions.STAGE)
_DATA_VERSION = "dagster/data_version"
_BY_A_PERSON = "recorded by the sensor: a person rolled back"
_BY_A_RUN = "recorded by the sensor: the run that decided was ended before it could"
_CURRENT = dg.AssetCheckKey(_SERVED, "served_index_is_current")


def behind(instance: dg.DagsterInstance, seconds: float, reason: str) -> list[dg.AssetCheckEvaluation]:
    """Turn the served index's check red, unless it says just that."""
    newest = _newest_evaluation(instance)
    if newest is not None and (newest.passed, newest.severity, newest.description) == (False, checks.ERROR, reason):
        return []
    return [_evaluation(passed=False, seconds=seconds, reason=reason)]


def caught_up(instance: dg.DagsterInstance, reason: str) -> list[dg.AssetCheckEvaluation]:
    """Turn it green where it is red, which a run that brought the index up to date need not have done.

    Dagster shows the evaluation that was begun last: a red one from the middle of a run stands above that run's own.
    """
    newest = _newest_evaluation(instance)
    return [_evaluation(passed=True, seconds=0, reason=reason)] if newest is not None and not newest.passed else []


def unrecorded_decision(
    instance: dg.DagsterInstance, store: Store, settings: Settings
) -> list[dg.AssetMaterialization | dg.AssetCheckEvaluation]:
    """The materialisation of `promoted_retriever`, and its checks, for a decision of which Dagster holds none.

    `acme-rag rollback` cannot record its own, and a run that was killed between its decision and its event did not. For a
    time at which no run is about to.
    """
    past = decisions.decisions(store)
    if not past or past[-1].verdict == decisions.BOOTSTRAP:
        return []
    newest = instance.get_latest_materialization_event(_PROMOTED)
    materialization = newest.asset_materialization if newest is not None else None
    known = materialization.metadata.get("decision") if materialization is not None else None
    if known is not None and known.value == past[-1].decision:
        return []
    return [
        dg.AssetMaterialization(
            _PROMOTED,
            description=_BY_A_PERSON if past[-1].verdict == decisions.ROLLED_BACK else _BY_A_RUN,
            metadata=promote.details_of(past[-1]),
            tags={_DATA_VERSION: promote.data_version_of(past[-1])},
        ),
        *(
            dg.AssetCheckEvaluation(
                asset_key=_PROMOTED,
                check_name=str(check.check_name),
                passed=check.passed,
                severity=check.severity,
                description=check.description,
                metadata=check.metadata,
            )
            for check in checks.results(decisions.STAGE, store, settings)
        ),
    ]


def _evaluation(*, passed: bool, seconds: float, reason: str) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=_SERVED,
        check_name=_CURRENT.name,
        passed=passed,
        severity=checks.ERROR,
        description=reason,
        metadata={"seconds_behind": round(seconds), "documents_unchanged_since": passed},
    )


def _newest_evaluation(instance: dg.DagsterInstance) -> dg.AssetCheckEvaluation | None:
    """What Dagster shows for the check; None where it was never evaluated, or a run has only announced it."""
    record = instance.get_latest_asset_check_evaluation_record(_CURRENT)
    event = record.event.dagster_event if record is not None and record.event is not None else None
    found = event.event_specific_data if event is not None else None
    return found if isinstance(found, dg.AssetCheckEvaluation) else None
