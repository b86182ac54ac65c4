"""What the document sensor records without a run: that readers fall behind, that they caught up, a decision no run recorded.

Each event is compared with the newest one of its kind that Dagster holds, so that nothing is said twice, and nothing is
lost when a tick fails or the sensor's cursor is reset.
"""

from datetime import datetime

import dagster as dg
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_TAG,
    NULL_DATA_VERSION,
    NULL_EVENT_POINTER,
    get_input_data_version_tag,
    get_input_event_pointer_tag,
)

from acme_rag_pipeline.orchestration import checks
from acme_rag_pipeline.orchestration.assets import serving
from acme_rag_pipeline.orchestration.dead_runs import STORE_TAG
from acme_rag_pipeline.orchestration.presentation import metadata_of, store_path
from acme_rag_pipeline.serving import decisions, promote
from acme_rag_pipeline.serving.serve import last_decision_is_served
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.stages import stored_result

_SERVED, _PROMOTED = dg.AssetKey("served_index"), dg.AssetKey(decisions.STAGE)
_BY_A_PERSON = "recorded by the sensor: a person rolled back"
_BY_A_RUN = "recorded by the sensor: the run that decided was ended before it could, or another Dagster instance has recorded it"
_SERVED_SINCE = "recorded by the sensor: no run of this Dagster instance has recorded what is served now"
# So far back events about other stores are passed over.
_EVENTS_LOOKED_AT = 50
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
    """The materialisations of `promoted_retriever`, with its checks, and of `served_index` of which Dagster holds none.

    `acme-rag rollback` cannot record its own, and a run that was killed between its decision and its event did not. For a
    time at which no run is about to.
    """
    past = decisions.decisions(store)
    if not past or past[-1].verdict == decisions.BOOTSTRAP:
        return []
    events: list[dg.AssetMaterialization | dg.AssetCheckEvaluation] = []
    why = _BY_A_PERSON if past[-1].verdict == decisions.ROLLED_BACK else _BY_A_RUN
    known = _newest_of(instance, _PROMOTED, store)
    unrecorded = known is None or not _is_about(known, past[-1])
    if unrecorded:
        data_version = promote.data_version_of(past[-1])
        metadata = promote.details_of(past[-1]) | {"store": store_path(store)}
        tags = _versions(instance, store, _PROMOTED, data_version)
        events.append(dg.AssetMaterialization(_PROMOTED, description=why, metadata=metadata, tags=tags))
        events += [
            dg.AssetCheckEvaluation(
                asset_key=_PROMOTED,
                check_name=str(check.check_name),
                passed=check.passed,
                severity=check.severity,
                description=check.description,
                metadata=check.metadata,
            )
            for check in checks.results(decisions.STAGE, store, settings)
        ]
    return events + _unrecorded_index(instance, store, why if unrecorded else "")


def _is_about(materialization: dg.AssetMaterialization, decision: decisions.Decision) -> bool:
    said = {name: entry.value for name, entry in materialization.metadata.items()}
    # Numbers begin anew in a store that was deleted. A time may be written in another time zone.
    decided_at = said.get("decided_at", decision.decided_at.isoformat())
    same_time = datetime.fromisoformat(str(decided_at)) == decision.decided_at
    return said.get("decision") == decision.decision and same_time


def _unrecorded_index(instance: dg.DagsterInstance, store: Store, why: str) -> list[dg.AssetMaterialization]:
    """What readers get, once it is what was decided last, unless Dagster holds that already.

    Args:
        instance, store: as everywhere.
        why: a decision that is recorded just now; it stands above what Dagster holds of the index. Empty: there is none.
    """
    served = stored_result(store.warehouse, "served_index")
    if served is None or not last_decision_is_served(store):
        return []
    known = _newest_of(instance, _SERVED, store)
    if not why and (known is None or known.tags is None or known.tags.get(DATA_VERSION_TAG) == served.data_version):
        return []
    return [
        dg.AssetMaterialization(
            _SERVED,
            description=why or _SERVED_SINCE,
            metadata=metadata_of(store, served),
            tags=_versions(instance, store, _SERVED, served.data_version),
        )
    ]


def _newest_of(instance: dg.DagsterInstance, key: dg.AssetKey, store: Store) -> dg.AssetMaterialization | None:
    """The newest materialisation of an asset that is about this store; one that says no store is."""
    here = store_path(store).path
    for record in instance.fetch_materializations(key, limit=_EVENTS_LOOKED_AT).records:
        materialization = record.asset_materialization
        if materialization is None:
            continue
        said = materialization.metadata.get("store")
        run = instance.get_run_by_id(record.run_id) if said is None and record.run_id else None
        where = said.value if said is not None else run.tags.get(STORE_TAG) if run is not None else None
        if where in (None, here):
            return materialization
    return None


def _versions(instance: dg.DagsterInstance, store: Store, key: dg.AssetKey, data_version: str) -> dict[str, str]:
    """The tags by which Dagster tells whether an asset is up to date, as a run would have written them."""
    asset = next(a for a in (serving.promoted_retriever, serving.served_index) if a.key == key)
    stored = {parent: stored_result(store.warehouse, parent.to_user_string()) for parent in asset.asset_deps[key]}
    inputs = {parent: result.data_version if result else NULL_DATA_VERSION.value for parent, result in stored.items()}
    if _PROMOTED in inputs:
        # A rollback is a row of the decisions, and no run of that stage.
        inputs[_PROMOTED] = promote.data_version_of(decisions.decisions(store)[-1])
    return {
        DATA_VERSION_TAG: data_version,
        CODE_VERSION_TAG: str(asset.code_versions_by_key[key]),
        **{get_input_data_version_tag(parent): version for parent, version in inputs.items()},
        **{get_input_event_pointer_tag(parent): _newest_id(instance, parent) for parent in inputs},
    }


def _newest_id(instance: dg.DagsterInstance, key: dg.AssetKey) -> str:
    newest = instance.fetch_materializations(key, limit=1).records
    return str(newest[0].storage_id) if newest else NULL_EVENT_POINTER


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
