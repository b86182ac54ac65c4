"""Assets of the group `serving`. Decisions and the pointer live in the domain."""

import dagster as dg

from acme_rag_pipeline.orchestration import checks
from acme_rag_pipeline.orchestration.assets.documents import OWNERS, REFRESHED_DAILY, chunks, documents
from acme_rag_pipeline.orchestration.assets.evaluation import evaluation_report
from acme_rag_pipeline.orchestration.assets.indexes import base_index, fine_tuned_index
from acme_rag_pipeline.orchestration.assets.training_data import training_set
from acme_rag_pipeline.orchestration.presentation import table_of
from acme_rag_pipeline.orchestration.resources import Pipeline
from acme_rag_pipeline.retrieval import index
from acme_rag_pipeline.retrieval.expansion import EXPANSION_VERSION
from acme_rag_pipeline.serving import promote, serve


@dg.asset(
    deps=[evaluation_report],
    group_name="serving",
    kinds={"python", "duckdb"},
    owners=OWNERS,
    check_specs=checks.specs("promoted_retriever"),
    metadata=table_of("promotions"),
    code_version=promote.CODE_VERSION,
)
def promoted_retriever(context: dg.AssetExecutionContext, pipeline: Pipeline) -> dg.MaterializeResult:
    """The decision: which model and recipe readers use, and why. Keeping the champion is a normal outcome."""
    return pipeline.materialize(context, promote.decide_promotion)


@dg.asset(
    # The queries that were written for the passages are searched too.
    deps=[documents, chunks, training_set, base_index, fine_tuned_index, promoted_retriever],
    group_name="serving",
    kinds={"python", "lancedb"},
    owners=OWNERS,
    freshness_policy=REFRESHED_DAILY,
    check_specs=checks.specs("served_index"),
    code_version=f"{serve.CODE_VERSION}, index {index.VERSIONS}, queries {EXPANSION_VERSION}",
)
def served_index(context: dg.AssetExecutionContext, pipeline: Pipeline) -> dg.MaterializeResult:
    """The promoted model's table brought to the chunks of today; the only writer of the pointer that readers follow."""
    return pipeline.materialize(context, serve.serve)
