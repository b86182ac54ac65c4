"""Assets of the group `documents`. Parsing and splitting live in the domain."""

from datetime import timedelta

import dagster as dg

from acme_rag_pipeline.chunking import chunks as chunking
from acme_rag_pipeline.chunking.splitter import SPLITTER_VERSION
from acme_rag_pipeline.documents import ingest
from acme_rag_pipeline.documents.parsers import PARSER_VERSIONS
from acme_rag_pipeline.orchestration import checks
from acme_rag_pipeline.orchestration.presentation import table_of
from acme_rag_pipeline.orchestration.resources import Pipeline

OWNERS = ["team:retrieval"]
# `refresh` runs at least daily; an asset of it that nobody has looked at for longer has lost its automation.
REFRESHED_DAILY = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=50), warn_window=timedelta(hours=26))


@dg.asset(
    group_name="documents",
    kinds={"python", "duckdb"},
    owners=OWNERS,
    freshness_policy=REFRESHED_DAILY,
    check_specs=checks.specs("documents"),
    metadata=table_of("documents"),
    code_version=f"{ingest.CODE_VERSION}, {PARSER_VERSIONS}",
)
def documents(context: dg.AssetExecutionContext, pipeline: Pipeline) -> dg.MaterializeResult:
    """Every file of the documents folder: its bytes' hash, its text, and the reason when it could not be read."""
    return pipeline.materialize(context, ingest.ingest_documents)


@dg.asset(
    deps=[documents],
    group_name="documents",
    kinds={"python", "duckdb"},
    owners=OWNERS,
    freshness_policy=REFRESHED_DAILY,
    check_specs=checks.specs("chunks"),
    metadata=table_of("chunks"),
    code_version=f"{chunking.CODE_VERSION}, {SPLITTER_VERSION}",
)
def chunks(context: dg.AssetExecutionContext, pipeline: Pipeline) -> dg.MaterializeResult:
    """Passages of every readable document: exact spans, headings, near-duplicate group, side of the experiment."""
    return pipeline.materialize(context, chunking.split_documents)
