"""The groups of tuning knobs, one for each part of the pipeline, with their defaults and bounds."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

NONE = "none"
# Names in the body of an LLM request that are no matter of settings.
OF_THE_REQUEST = frozenset({"model", "messages", "response_format", "stream"})


class Group(BaseModel):
    """A frozen group of tuning knobs; its dump is part of the fingerprint of the stage that uses it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _none_is_without(cls, given: Any) -> Any:
        """The word `none` stands for no value wherever that is the default."""
        if not isinstance(given, dict):
            return given
        without = {name for name, field in cls.model_fields.items() if field.default in (None, "")}
        return {n: v for n, v in given.items() if n not in without or str(v).lower() != NONE}


class ChunkingSettings(Group):
    max_tokens: int = Field(default=224, ge=32, le=8192, description="Most tokens of the base model in one chunk.")
    near_duplicate_similarity: float = Field(
        default=0.7, gt=0, le=1, description="Jaccard similarity of word 3-grams from which on chunks form one group."
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
        default=0.95, gt=0, le=1, description="Two queries of one passage with this cosine or more are one."
    )
    golden_similarity: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="A training query with this cosine or more with a golden or a held-out query is dropped.",
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
    extra_body: dict[str, Any] | None = Field(
        default=None,
        repr=False,
        description="JSON object merged into the body of each LLM request, for what only some servers know.",
    )
    price_input: float | None = Field(default=None, ge=0, description="Money for a million tokens sent to the LLM.")
    price_output: float | None = Field(default=None, ge=0, description="Money for a million tokens of its answers.")

    @field_validator("extra_body")
    @classmethod
    def _beside_the_request(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        """Nothing that the request itself says, and nothing that JSON cannot."""
        if taken := sorted(OF_THE_REQUEST & (value or {}).keys()):
            raise ValueError(f"must not hold {', '.join(taken)}, which the request sets itself")
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise ValueError("must be a JSON object, without NaN and infinity") from None
        return value


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
    gradient_cache: bool | None = Field(
        default=None,
        description="Hold the activations of 16 texts at a time and run each forward pass twice (GradCache): the same "
        "gradient with a fraction of the memory. Default: where a batch would take more than half of the machine's.",
    )
    learning_rate: float | None = Field(default=None, gt=0, lt=1, description="Default: 5e-5, with lora 5e-4.")
    lora_rank: int = Field(default=16, ge=1, le=256)
    warmup_share: float = Field(default=0.1, ge=0, lt=1)
    scale: float = Field(default=50.0, gt=0, le=1000, description="Inverse temperature of the softmax over cosines.")
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
        description="Share of the activations that a step leaves out; with any a training on a CPU takes 1.5 times as long.",
    )
    frozen_layers: int | None = Field(
        default=None,
        ge=0,
        description="Lower layers that stay the base's: a text goes through them once, which saves their share of every "
        "step. Default: with strategy full half of a BERT-like base's, where templates teach or expansion epochs follow; else 0.",
    )
    distilled_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of the loss that asks for agreement with the base and shared words, not for the pair alone.",
    )
    expansion_epochs: int | None = Field(
        default=None,
        ge=0,
        le=50,
        description="Turns over the passages that people or an LLM asked about in which the tuned model learns to put each "
        "passage where its queries would move it (strategy full, not with mostly the embedded generator's pairs). Default: 6 "
        "where they asked about half of all passages or more (fewer from 1,700 passages on) and the base has less than .8 on validation, else 0 (none).",
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
        description="Mined negatives of each passage that join its batch. Default: 1, with mostly templates or expansion epochs 0.",
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
    interpolation: tuple[Annotated[float, Field(ge=0, le=2)], ...] | None = Field(
        default=None,
        min_length=1,
        description="Shares of the tuned weights tried on validation; 0 (the base) always competes, above 1 goes on past "
        "the tuned weights. Default: 0.5, 0.75 and 1; with an LLM's pairs and 50 headings on validation also 1.25 and 1.5.",
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
    level: float = Field(
        default=0.95, gt=0.5, le=0.999, description="Of the two-sided interval; its lower tail bounds false promotions."
    )
    minimum_effect: float = Field(default=0.01, ge=0, lt=1, description="nDCG@10 a promotion must gain at least.")
    minimum_units: int = Field(default=30, ge=2)
    segment_minimum_queries: int = Field(default=20, ge=2)
    segment_margin: float = Field(default=0.03, ge=0, lt=1)
    synthetic_handicap: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="nDCG@10 taken off a trained arm's gain over the base on each question that its own generator wrote.",
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
    expansion_weight: float = Field(
        default=1.0,
        ge=0,
        le=10,
        description="Weight of the queries that an LLM and people wrote for a passage beside its own vector (1), in hybrid "
        "retrieval, where an LLM was asked about nine of ten passages; BM25 reads them too. 0: without.",
    )
    neighbour_weight: float = Field(
        default=0.15,
        ge=0,
        le=1,
        description="Share of the better one of the two passages beside it in the dense score of a passage in hybrid "
        "retrieval, its own has the rest. 0: every passage for itself.",
    )


class ServingSettings(Group):
    keep_promotions: int = Field(default=3, ge=1, description="Models of the last N promotions stay for a rollback.")
    reader_grace_seconds: int = Field(
        default=3600,
        ge=0,
        le=1_000_000_000,
        description="How long a superseded index version stays readable after a promotion.",
    )


class AutomationSettings(Group):
    max_tries: int = Field(
        default=2, ge=1, description="Refresh runs for one state of the documents at once; then ever more seldom."
    )
    late_after_minutes: float = Field(
        default=15, gt=0, description="The served index's check turns red when it lags the documents for longer."
    )
    retrain_changed_share: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="Below this share of changed chunks, and of prompts that an LLM that was down left, nightly_retrain "
        "stays away; below this share of changed training pairs the newest candidate is kept. 0: every change trains.",
    )
