"""The code location: every asset, check, job, sensor and schedule. Assembly only."""

import dagster as dg

from acme_rag_pipeline.orchestration import automation
from acme_rag_pipeline.orchestration.assets import documents, evaluation, indexes, model, serving, training_data
from acme_rag_pipeline.orchestration.resources import Pipeline


def build_definitions(pipeline: Pipeline | None = None) -> dg.Definitions:
    """Put the parts together.

    Args:
        pipeline: settings for tests and other entry points; default the environment.
    """
    return dg.Definitions(
        assets=dg.load_assets_from_modules([documents, training_data, model, indexes, evaluation, serving]),
        jobs=[automation.refresh, automation.retrain, automation.gate],
        sensors=[automation.documents_changed],
        schedules=[automation.nightly_retrain, automation.daily_refresh],
        resources={"pipeline": pipeline or Pipeline()},
        # DuckDB has one writer, and the model stays loaded from step to step.
        executor=dg.in_process_executor,
    )


defs = build_definitions()
