"""Assets of the group `evaluation`. Metrics, intervals and the gate live in the domain."""

import dagster as dg

from acme_rag_pipeline.evaluation import evaluate, golden
from acme_rag_pipeline.orchestration import checks
from acme_rag_pipeline.orchestration.assets.documents import OWNERS, chunks, documents
from acme_rag_pipeline.orchestration.assets.indexes import base_index, fine_tuned_index
from acme_rag_pipeline.orchestration.presentation import table_of
from acme_rag_pipeline.orchestration.resources import Pipeline


@dg.asset(
    deps=[documents, chunks],
    group_name="evaluation",
    kinds={"python", "duckdb"},
    owners=OWNERS,
    check_specs=checks.specs("golden_queries"),
    metadata=table_of("golden_queries"),
    code_version=golden.CODE_VERSION,
)
def golden_queries(context: dg.AssetExecutionContext, pipeline: Pipeline) -> dg.MaterializeResult:
    """People's judged queries, resolved to the documents of today."""
    return pipeline.materialize(context, golden.resolve_golden_queries)


@dg.asset(
    # By key: training_data imports golden_queries from this module.
    deps=[
        chunks,
        golden_queries,
        dg.AssetKey("training_set"),
        dg.AssetKey("fine_tuned_model"),
        base_index,
        fine_tuned_index,
    ],
    group_name="evaluation",
    kinds={"python", "duckdb", "matplotlib"},
    owners=OWNERS,
    check_specs=checks.specs("evaluation_report"),
    metadata=table_of("evaluations"),
    code_version=evaluate.CODE_VERSION,
)
def evaluation_report(context: dg.AssetExecutionContext, pipeline: Pipeline) -> dg.MaterializeResult:
    """Every arm on held-out and golden queries with paired intervals, the gate's verdict, and the report."""
    return pipeline.materialize(context, evaluate.evaluate)
