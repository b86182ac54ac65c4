"""The code location: every asset, check, job, sensor and schedule. Assembly only."""

import atexit
import gc

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

# What a run has imported and built by now stays until it ends: searching it for garbage again and again was a quarter
# of a small refresh. At exit it is given back, so that native modules find their objects freed.
gc.set_threshold(50_000, 20, 20)
gc.freeze()
atexit.register(gc.unfreeze)
