"""Assets of the group `training_data`. Generators, filters and sides live in the domain."""

import dagster as dg

from acme_rag_pipeline.orchestration import checks
from acme_rag_pipeline.orchestration.assets.documents import OWNERS, chunks, documents
from acme_rag_pipeline.orchestration.assets.evaluation import golden_queries
from acme_rag_pipeline.orchestration.assets.indexes import base_index
from acme_rag_pipeline.orchestration.presentation import table_of
from acme_rag_pipeline.orchestration.resources import Pipeline
from acme_rag_pipeline.pairs import curated, synthetic
from acme_rag_pipeline.pairs import training_set as training_pairs
from acme_rag_pipeline.pairs.offline import GENERATOR_VERSION
from acme_rag_pipeline.pairs.prompt import PROMPT_VERSION


@dg.asset(
    deps=[documents, chunks],
    group_name="training_data",
    kinds={"python", "duckdb"},
    owners=OWNERS,
    check_specs=checks.specs("curated_pairs"),
    metadata=table_of("curated_pairs"),
    code_version=curated.CODE_VERSION,
)
def curated_pairs(context: dg.AssetExecutionContext, pipeline: Pipeline) -> dg.MaterializeResult:
    """People's (query, passage) pairs, resolved to the chunks of today; what cannot be resolved is shown with its reason."""
    return pipeline.materialize(context, curated.resolve_curated_pairs)


@dg.asset(
    deps=[chunks],
    group_name="training_data",
    kinds={"python", "openai", "duckdb"},
    owners=OWNERS,
    check_specs=checks.specs("synthetic_pairs"),
    metadata=table_of("pairs"),
    code_version=f"{synthetic.CODE_VERSION}, {GENERATOR_VERSION}, prompt {PROMPT_VERSION}",
)
def synthetic_pairs(context: dg.AssetExecutionContext, pipeline: Pipeline) -> dg.MaterializeResult:
    """Questions written for each chunk by an LLM or the embedded generator; each prompt is asked once and kept."""
    return pipeline.materialize(context, synthetic.write_pairs)


@dg.asset(
    deps=[chunks, curated_pairs, synthetic_pairs, golden_queries, base_index],
    group_name="training_data",
    kinds={"python", "duckdb"},
    owners=OWNERS,
    check_specs=checks.specs("training_set"),
    metadata=table_of("training_pairs"),
    code_version=training_pairs.CODE_VERSION,
)
def training_set(context: dg.AssetExecutionContext, pipeline: Pipeline) -> dg.MaterializeResult:
    """Filtered, de-duplicated pairs with their side and hard negatives; every dropped pair keeps its reason."""
    return pipeline.materialize(context, training_pairs.build_training_set)
