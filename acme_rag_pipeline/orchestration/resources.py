"""The one resource: which documents, store and models a run works on, and how a domain stage becomes a materialisation.

No stage logic here: the domain decides and writes, this module passes settings in and shows results.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
from pydantic import Field

from acme_rag_pipeline.errors import UserError
from acme_rag_pipeline.orchestration import checks, dead_runs
from acme_rag_pipeline.orchestration.presentation import WITHOUT_ROWS, metadata_of
from acme_rag_pipeline.settings import Settings, SettingsError
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.stages import StageResult, timed

Stage = Callable[[Store, Settings], StageResult]
DOMAIN_LOGGER = "acme_rag_pipeline"
# Checks of how a comparison went: the log says that as the stage's own result, and to keep the champion is no trouble.
OUTCOMES = {"a_candidate_exists", "people_decide", "candidate_was_promoted"}


class Pipeline(dg.ConfigurableResource):
    """Settings of a run. An empty field means the environment variable of the same name, then its default."""

    documents: str = Field(default="", description="Folder of documents (ACME_RAG_DOCUMENTS).")
    store: str = Field(default="", description="Folder for everything derived (ACME_RAG_STORE).")
    curated_pairs: str = Field(
        default="", description="JSONL or CSV of people's pairs, or `none` (ACME_RAG_CURATED_PAIRS)."
    )
    golden: str = Field(default="", description="Folder of judged queries, or `none` (ACME_RAG_GOLDEN).")
    base_model: str = Field(default="", description="Embedded name, folder or hub id (ACME_RAG_BASE_MODEL).")
    generator: str = Field(default="", description="openai, offline, both or auto (ACME_RAG_GENERATOR).")
    llm: str = Field(default="", description="Model name at the OpenAI-compatible server (ACME_RAG_LLM).")
    tuning: dict[str, Any] = Field(
        default={}, description="Tuning groups, e.g. {training: {epochs: 1}, gate: {minimum_effect: 0.02}}."
    )

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Show that the run has a living process, before its first step."""
        # Wrong settings are for the first step to tell, as its own failure.
        with contextlib.suppress(SettingsError):
            if context.run is not None and context.instance is not None:
                dead_runs.show(context.instance, Store(Settings.load(**self.given()).store), context.run.run_id)

    def settings(self) -> Settings:
        """The settings of this run.

        Raises:
            dagster.Failure: a setting is wrong; the description names the variable.
        """
        with plain_failures():
            return Settings.load(**self.given())

    def given(self) -> dict[str, Any]:
        """What this resource says, as arguments for `Settings.load`."""
        named = {name: getattr(self, name) for name in self.__class__.model_fields if name != "tuning"}
        return named | self.tuning

    def open_store(self) -> Store:
        """The store of this run."""
        settings = self.settings()
        return Store(settings.store, settings.lock_seconds)

    def materialize(self, context: dg.AssetExecutionContext, stage: Stage) -> dg.MaterializeResult:
        """Run a domain stage and show what it did."""
        settings = self.settings()
        store = Store(settings.store, settings.lock_seconds)
        with plain_failures(), shown_in_log(context.log):
            with timed():
                result = stage(store, settings)
            metadata = metadata_of(store, result)
            verified = checks.results(result.stage, store, settings)
        for check in verified:
            if not check.passed and check.check_name not in OUTCOMES:
                # A command line shows no checks.
                say = context.log.error if check.severity is checks.ERROR else context.log.warning
                say(f"check {check.check_name}: {checks.in_words(check)}")
        context.log.info(_sentence(result))
        return dg.MaterializeResult(
            data_version=dg.DataVersion(result.data_version), metadata=metadata, check_results=verified
        )


@contextlib.contextmanager
def plain_failures() -> Iterator[None]:
    """Errors that a person can mend end the step with their own sentence and no retry."""
    try:
        yield
    except UserError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from None


@contextlib.contextmanager
def shown_in_log(log: logging.Logger) -> Iterator[None]:
    """Progress that the domain logs appears in the run's log."""
    domain = logging.getLogger(DOMAIN_LOGGER)
    handler = _Forward(log)
    level, propagate = domain.level, domain.propagate
    domain.addHandler(handler)
    domain.setLevel(logging.INFO)
    domain.propagate = False
    try:
        yield
    finally:
        domain.removeHandler(handler)
        domain.setLevel(level)
        domain.propagate = propagate


class _Forward(logging.Handler):
    def __init__(self, log: logging.Logger) -> None:
        super().__init__(logging.INFO)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.log(record.levelno, record.getMessage())


def _sentence(result: StageResult) -> str:
    if result.unchanged:
        return f"{result.stage}: nothing to do, inputs, settings and code are those of the last run"
    counts, details = result.counts, result.details
    outcome = details.get("outcome")
    if result.stage in WITHOUT_ROWS:
        verdict = f"{details.get('verdict', 'done')}: {details['reason']}" if details.get("reason") else "done"
        return f"{result.stage}: {outcome or verdict}"
    rows = f"{counts.added} added, {counts.changed} changed, {counts.removed} removed, {counts.reused} reused"
    return f"{result.stage}: {rows}" + (f"; {outcome}" if outcome else "")
