"""Assets of the group `indexes`. Encoding and reconciling live in the domain."""

import dagster as dg

from acme_rag_pipeline.orchestration import checks
from acme_rag_pipeline.orchestration.assets.documents import OWNERS, REFRESHED_DAILY, chunks
from acme_rag_pipeline.orchestration.resources import Pipeline
from acme_rag_pipeline.retrieval import index


@dg.asset(
    deps=[chunks],
    group_name="indexes",
    kinds={"python", "lancedb"},
    owners=OWNERS,
    freshness_policy=REFRESHED_DAILY,
    check_specs=checks.specs("base_index"),
    code_version=index.VERSIONS,
)
def base_index(context: dg.AssetExecutionContext, pipeline: Pipeline) -> dg.MaterializeResult:
    """Vector and full-text table of the base model: one row per chunk of today, only new inputs are encoded."""
    return pipeline.materialize(context, index.index_base)


@dg.asset(
    # By key: the model depends on the training set, which depends on base_index in this module.
    deps=[chunks, dg.AssetKey("fine_tuned_model")],
    group_name="indexes",
    kinds={"python", "lancedb"},
    owners=OWNERS,
    freshness_policy=REFRESHED_DAILY,
    check_specs=checks.specs("fine_tuned_index"),
    code_version=index.VERSIONS,
)
def fine_tuned_index(context: dg.AssetExecutionContext, pipeline: Pipeline) -> dg.MaterializeResult:
    """The same for the newest candidate, promoted or not."""
    return pipeline.materialize(context, index.index_candidate)
