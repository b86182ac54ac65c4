"""The asset of the group `model`. Training lives in the domain."""

import dagster as dg

from acme_rag_pipeline.orchestration import checks
from acme_rag_pipeline.orchestration.assets.documents import OWNERS
from acme_rag_pipeline.orchestration.assets.training_data import training_set
from acme_rag_pipeline.orchestration.resources import Pipeline
from acme_rag_pipeline.training import candidate


@dg.asset(
    deps=[training_set],
    group_name="model",
    kinds={"python", "pytorch", "huggingface"},
    owners=OWNERS,
    check_specs=checks.specs("fine_tuned_model"),
    code_version=candidate.CODE_VERSION,
    op_tags={"acme_rag/compute": "training"},
)
def fine_tuned_model(context: dg.AssetExecutionContext, pipeline: Pipeline) -> dg.MaterializeResult:
    """The candidate: a sentence-transformers directory named by its digest, trained only when its training set is new."""
    return pipeline.materialize(context, candidate.train_candidate)
