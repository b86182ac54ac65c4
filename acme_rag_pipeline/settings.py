"""Settings: what a user may choose, read from the environment and `.env`, validated once, with errors that name the variable.

Nothing here touches the store or a model; `Settings.load()` is cheap enough for every process.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableValue

SHIPPED_DOCUMENTS = Path("data/documents")
SHIPPED_CURATED_PAIRS = Path("data/curated_pairs.jsonl")
SHIPPED_GOLDEN = Path("data/golden")
EMBEDDED_BASE_MODEL = "all-MiniLM-L6-v2"
NONE = "none"


class SettingsError(ValueError):
    """A setting has a value that cannot work; the message names the variable and says what would."""


class Group(BaseModel):
    """A frozen group of tuning knobs; its dump is part of the fingerprint of the stage that uses it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ChunkingSettings(Group):
    max_tokens: int = Field(default=224, ge=32, le=8192, description="Most tokens of the base model in one chunk.")
    near_duplicate_similarity: float = Field(
        default=0.7, gt=0, le=1, description="Jaccard similarity of word 3-grams above which chunks form one group."
    )


class DocumentSettings(Group):
    max_megabytes: float = Field(default=25, gt=0, description="Larger files are reported, not read.")


class PairSettings(Group):
    queries_per_chunk: int = Field(default=3, ge=1, le=20)
    round_trip_top_k: int = Field(
        default=10,
        ge=0,
        description="Keep a query of the embedded generator only if base or BM25 finds its passage in the top k (0: all).",
    )
    llm_round_trip_top_k: int = Field(
        default=100,
        ge=0,
        description="The same for an LLM's queries. A small k drops the hard ones, which teach the most.",
    )
    query_similarity: float = Field(
        default=0.95, gt=0, le=1, description="Two queries of one passage above it are one."
    )
    golden_similarity: float = Field(
        default=0.9, gt=0, le=1, description="A training query nearer to a golden query than this is dropped."
    )
    hard_negatives: int = Field(default=4, ge=0, le=32, description="Mined per training pair.")
    negative_margin: float = Field(
        default=0.95, gt=0, le=1, description="A negative must score below this share of the positive (base model)."
    )
    max_calls: int | None = Field(default=None, ge=0, description="LLM calls this run may make; the rest waits.")
    max_tokens: int | None = Field(default=None, ge=0, description="LLM tokens this run may use; the rest waits.")
    concurrency: int = Field(default=16, ge=1, le=512, description="LLM requests in flight.")
    timeout_seconds: float = Field(default=60, gt=0, description="For one LLM request.")
    audience: str = Field(default="", max_length=300, description="Who searches, in a few words, for the LLM.")
    language: str = Field(default="", max_length=60, description="Of the LLM's queries; empty: that of the passage.")
    examples: Path | None = Field(
        default=None, description="File of the user's own example queries for the LLM; never golden queries."
    )
    price_input: float | None = Field(default=None, ge=0, description="Money for a million tokens sent to the LLM.")
    price_output: float | None = Field(default=None, ge=0, description="Money for a million tokens of its answers.")

    @field_validator("examples")
    @classmethod
    def _none_is_without(cls, value: Path | None) -> Path | None:
        return None if value is None or str(value).lower() == NONE else value


class TrainingSettings(Group):
    strategy: Literal["full", "query_only", "lora"] = Field(
        default="full",
        description="full: all layers above the word embeddings; query_only: the queries' side alone, passage vectors "
        "stay the base's and nothing is encoded again; lora: low-rank adapters, merged at the end.",
    )
    epochs: int | None = Field(
        default=None,
        ge=1,
        le=50,
        description="Default: as many as show about 3,600 passages, at least 1 and at most 8.",
    )
    batch_size: int = Field(default=32, ge=2, le=4096, description="Passages in a batch, each with all its queries.")
    learning_rate: float | None = Field(default=None, gt=0, lt=1, description="Default: 5e-5, with lora 5e-4.")
    lora_rank: int = Field(default=16, ge=1, le=256)
    warmup_share: float = Field(default=0.1, ge=0, lt=1)
    scale: float = Field(default=50.0, gt=0, description="Inverse temperature of the softmax over cosines.")
    guide_margin: float = Field(
        default=0.95,
        gt=0,
        le=1,
        description="In-batch negatives the base scores above this share of the positive are masked.",
    )
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the activations that a step leaves out; any makes a step on a CPU take 1.3 to 1.5 times as long.",
    )
    frozen_layers: int | None = Field(
        default=None,
        ge=0,
        description="Lower layers that stay the base's: a text goes through them once, which saves their share of every "
        "step. Default: with strategy full and mostly the embedded generator's pairs half of a BERT-like base's, else 0.",
    )
    distilled_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of the loss that asks for agreement with the base and shared words, not for the pair alone.",
    )
    written_share: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="Least share of the loss for queries of people and of an LLM beside the embedded generator's; such a "
        "query weighs 10 of the generator's at most.",
    )
    train_hard_negatives: int | None = Field(
        default=None,
        ge=0,
        le=8,
        description="Mined negatives of each passage that join its batch. Default: 1, with mostly templates 0.",
    )
    passage_prefix: Literal["auto", "none", "heading_path"] = Field(
        default="auto",
        description="What stands before a chunk's text when the candidate encodes it; auto: validation decides.",
    )
    whitening: float | None = Field(
        default=None,
        ge=0,
        le=0.5,
        description="Exponent of the soft whitening behind the model: 0 is none, 0.5 makes every direction count the same. "
        "Default: validation chooses from 0, 0.1 and 0.2.",
    )
    interpolation: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = Field(
        default=None,
        min_length=1,
        description="Shares of the tuned weights tried on validation; 0 (the base) always competes. Default: 0.5, 0.75 and 1.",
    )
    minimum_pairs: int = Field(default=50, ge=1, description="With fewer training pairs no candidate is trained.")
    seed: int = Field(
        default=0, ge=0, lt=2**32, description="Decides the order of the batches, and the dropout if there is any."
    )
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    @property
    def rate(self) -> float:
        """The peak learning rate."""
        return self.learning_rate or (5e-4 if self.strategy == "lora" else 5e-5)


class EvaluationSettings(Group):
    validation_share: float = Field(default=0.1, gt=0, lt=0.5)
    test_share: float = Field(default=0.2, gt=0, lt=0.5)
    section_units_below: int = Field(
        default=100,
        ge=0,
        description="Below this many documents the unit of sides and intervals is the top-level section.",
    )
    golden_minimum_queries: int = Field(default=100, ge=1, description="From here on golden queries decide alone ...")
    golden_minimum_units: int = Field(default=30, ge=1, description="... if they spread over this many units.")


class GateChoices(Group):
    level: float = Field(default=0.95, gt=0.5, lt=1)
    minimum_effect: float = Field(default=0.01, ge=0, lt=1, description="nDCG@10 a promotion must gain at least.")
    minimum_units: int = Field(default=30, ge=2)
    segment_minimum_queries: int = Field(default=20, ge=2)
    segment_margin: float = Field(default=0.03, ge=0, lt=1)
    synthetic_handicap: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="nDCG@10 taken off a trained arm's gain over the base where its own generator's questions decide.",
    )


class RetrievalSettings(Group):
    candidates: int = Field(default=50, ge=1, le=1000, description="Hits of each retriever that enter the fusion.")
    fusion: Literal["weighted", "rrf"] = Field(
        default="weighted",
        description="How hybrid retrieval joins the dense and the BM25 ranking: weighted scores, or reciprocal ranks.",
    )
    dense_weight: float = Field(
        default=0.7, ge=0, le=1, description="Share of the dense score in a weighted fusion; BM25 has the rest."
    )
    rrf_k: int = Field(default=60, ge=1, description="Damps the first ranks in reciprocal rank fusion.")
    sentence_weight: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="Share of a passage's best sentence in the dense score of hybrid retrieval, its own vector has the "
        "rest. 0: sentences are neither encoded nor stored, which saves over half of the encoding and of the index.",
    )


class ServingSettings(Group):
    keep_promotions: int = Field(default=3, ge=1, description="Models of the last N promotions stay for a rollback.")
    reader_grace_seconds: int = Field(
        default=3600, ge=0, description="How long a superseded index version stays readable after a promotion."
    )


class AutomationSettings(Group):
    max_tries: int = Field(default=2, ge=1, description="Refresh runs for one state of the documents before giving up.")
    late_after_minutes: float = Field(
        default=15, gt=0, description="The served index's check turns red when it lags the documents for longer."
    )
    retrain_changed_share: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="Below this share of changed chunks nightly_retrain stays away; below this share of changed "
        "training pairs the newest candidate is kept. 0: every change trains.",
    )


class Settings(BaseSettings):
    """All settings. Relative paths are relative to `ACME_RAG_ROOT`, which defaults to the working directory.

    Precedence: arguments, environment, `.env`, defaults. An empty value means the default, `none` means without.
    Tuning groups are set as `ACME_RAG_TRAINING__EPOCHS=1`.
    """

    model_config = SettingsConfigDict(
        env_prefix="ACME_RAG_",
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="ignore",
        populate_by_name=True,
        frozen=True,
        hide_input_in_errors=True,
    )

    root: Path = Field(default_factory=Path.cwd)
    documents: Path = SHIPPED_DOCUMENTS
    store: Path = Path("data/store")
    curated_pairs: Path | None = None
    golden: Path | None = None
    base_model: str = EMBEDDED_BASE_MODEL
    generator: Literal["auto", "openai", "offline", "both"] = "auto"
    llm: str = "gpt-4o-mini"
    lock_seconds: float = Field(default=60, ge=0, description="How long a run waits for another writer of the store.")
    openai_api_key: SecretStr | None = Field(default=None, validation_alias="OPENAI_API_KEY")
    openai_base_url: str | None = Field(default=None, validation_alias="OPENAI_BASE_URL")

    document: DocumentSettings = DocumentSettings()
    chunking: ChunkingSettings = ChunkingSettings()
    pairs: PairSettings = PairSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    gate: GateChoices = GateChoices()
    retrieval: RetrievalSettings = RetrievalSettings()
    serving: ServingSettings = ServingSettings()
    automation: AutomationSettings = AutomationSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, dotenv_settings

    @field_validator("openai_base_url")
    @classmethod
    def _http(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        return value

    @classmethod
    def load(cls, **overrides: Any) -> "Settings":
        """Read the settings of this process.

        Raises:
            SettingsError: a value cannot work; the message names the variable.
        """
        with _undo_dotenv_override():
            root = Path(overrides.pop("root", None) or os.environ.get("ACME_RAG_ROOT") or Path.cwd()).absolute()
            given = {name: value for name, value in overrides.items() if value is not None and value != ""}
            try:
                loaded = cls(root=root, _env_file=root / ".env", **given)  # type: ignore[call-arg]
            except ValidationError as error:
                raise SettingsError(_in_words(error)) from None
            except UnreadableValue as error:
                name = re.search(r'field "(\w+)"', str(error))
                variable = f"ACME_RAG_{name.group(1).upper()}" if name else "a list or group among ACME_RAG_*"
                raise SettingsError(f"{variable}: lists and groups are JSON, such as [0.5, 1.0]") from None
        return loaded.model_copy(update=loaded._resolved()).checked()

    def _resolved(self) -> dict[str, Any]:
        def absolute(path: Path | None) -> Path | None:
            return None if path is None or str(path).lower() == NONE else (self.root / path.expanduser()).absolute()

        documents = absolute(self.documents)
        if documents is None:
            raise SettingsError("ACME_RAG_DOCUMENTS: `none` is not possible, name the folder that holds the documents")
        store = absolute(self.store)
        if store is None:
            raise SettingsError("ACME_RAG_STORE: `none` is not possible, name a folder for everything derived")
        shipped = documents.resolve() == (self.root / SHIPPED_DOCUMENTS).resolve()
        curated, golden = self.curated_pairs, self.golden
        if shipped and curated is None and (self.root / SHIPPED_CURATED_PAIRS).exists():
            curated = SHIPPED_CURATED_PAIRS
        if shipped and golden is None and (self.root / SHIPPED_GOLDEN).exists():
            golden = SHIPPED_GOLDEN
        return {"documents": documents, "store": store, "curated_pairs": absolute(curated), "golden": absolute(golden)}

    def checked(self) -> "Settings":
        """Raise `SettingsError` for paths that contradict each other or do not exist."""
        if self.store == self.documents or self.documents in self.store.parents:
            raise SettingsError(
                f"ACME_RAG_STORE: {self.store} lies inside the documents folder {self.documents}; choose a folder outside it"
            )
        if self.curated_pairs is not None and not self.curated_pairs.is_file():
            raise SettingsError(f"ACME_RAG_CURATED_PAIRS: no file {self.curated_pairs}; give a JSONL file or `none`")
        if self.golden is not None:
            missing = [n for n in ("queries.jsonl", "qrels.jsonl") if not (self.golden / n).is_file()]
            if missing:
                raise SettingsError(
                    f"ACME_RAG_GOLDEN: {self.golden} has no {' and no '.join(missing)}; give such a folder or `none`"
                )
        if self.generator in ("openai", "both") and not self.llm_configured:
            raise SettingsError(
                f"ACME_RAG_GENERATOR: `{self.generator}` needs OPENAI_API_KEY or OPENAI_BASE_URL; set one, or use `offline`"
            )
        return self

    @property
    def llm_configured(self) -> bool:
        """True when a key or a base URL for an OpenAI-compatible server is set."""
        return bool(self.openai_base_url) or bool(self.openai_api_key and self.openai_api_key.get_secret_value())

    @property
    def generator_in_use(self) -> Literal["openai", "offline", "both"]:
        """The generator after `auto` is decided; `both` are `openai` and `offline` together."""
        if self.generator == "auto":
            return "openai" if self.llm_configured else "offline"
        return self.generator


def _in_words(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        name = "__".join(str(part) for part in problem["loc"]).upper()
        variable = name if name.startswith("OPENAI_") else f"ACME_RAG_{name}"
        lines.append(f"{variable}: {problem['msg']}")
    return "; ".join(lines)


class _undo_dotenv_override:  # noqa: N801
    """Within it, a variable that this process was started with beats the same variable in `.env`.

    The `dagster` command line overwrites the environment with `.env` before any of our code runs
    (dagster/_cli/utils.py, `_inject_local_env_file`). The operating system still knows what the process, or the
    `dagster` process that spawned it, was started with.
    """

    def __enter__(self) -> None:
        self._changed: dict[str, str] = {}
        dotenv_path = Path(os.environ.get("ACME_RAG_ROOT") or Path.cwd()) / ".env"
        if not dotenv_path.is_file():
            return
        import psutil
        from dotenv import dotenv_values

        started_with: dict[str, str] = {}
        try:
            process: psutil.Process | None = psutil.Process()
            while process is not None:
                started_with = process.environ()
                parent = process.parent()
                # Only ancestors that ran the same `.env` injection can have hidden the real value.
                process = parent if parent and any("dagster" in part for part in parent.cmdline()[:3]) else None
        except (psutil.Error, OSError):
            pass
        for name, value in dotenv_values(dotenv_path).items():
            real = started_with.get(name)
            injected = os.environ.get(name)
            if name.startswith(("ACME_RAG_", "OPENAI_")) and real and real != injected and injected == value:
                self._changed[name] = injected or ""
                os.environ[name] = real

    def __exit__(self, *_: object) -> None:
        os.environ.update(self._changed)
