"""What makes a passage a vector: a model of the store and how passages are rendered for it."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

from acme_rag_pipeline.embedding.base_model import (
    BASE_CARD,
    BaseModelFiles,
    NotOnThisMachine,
    base_card,
    functional_files,
    lacks_prompts,
    resolve_base_model,
)
from acme_rag_pipeline.embedding.cache import EmbeddingCache
from acme_rag_pipeline.embedding.encoder import Encoder
from acme_rag_pipeline.settings import Settings, SettingsError
from acme_rag_pipeline.store import models, vectors
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import PassagePrefix
from acme_rag_pipeline.store.stages import stored_detail, stored_details

BASE_PREFIX: PassagePrefix = "none"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PassageEncoder:
    """What decides a passage's vector: a model and how passages are rendered for it.

    Attributes:
        model_digest: the model that is promoted; it encodes queries, and passages too unless `passage_digest` is given.
        prefix: what stands before a passage's text.
        passage_digest: the model whose passage vectors it was trained against (strategy `query_only`).
    """

    model_digest: str
    prefix: PassagePrefix
    passage_digest: str | None = None

    @property
    def passage_model(self) -> str:
        """Digest of the model that encodes passages."""
        return self.passage_digest or self.model_digest

    @property
    def table(self) -> str:
        """The LanceDB table that holds its vectors."""
        return vectors.table_name(self.passage_model, self.prefix)

    @property
    def expanded_table(self) -> str:
        """The table of the same passages with the queries that were written for them, as this model encodes queries."""
        tower = f"_{self.model_digest[:16]}" if self.passage_model != self.model_digest else ""
        return f"{self.table}_queries{tower}"


def install_base(store: Store, settings: Settings) -> BaseModelFiles:
    """Find the base model and see to it that the store holds a whole copy, so that the store alone can serve it.

    Raises:
        SettingsError: there is no such model.
    """
    base = resolve_base_model(settings.base_model, settings.root)
    names = functional_files(base.folder)
    if models.lost_files(models.model_folder(store, base.digest), models.file_sizes(base.folder, names)):
        about = {"model_digest": base.digest, "kind": "base", "name": base.name, "licence": base.licence}
        if lacks_prompts(base.folder):
            logger.warning(
                "the card of %s says that `query: ` and `passage: ` belong before the texts, and its configuration has no such "
                "prompts: they are left out (docs/settings.md, base model)",
                base.name,
            )
        own = base_card(base.folder)
        card = f"# {base.name}\n\nThe base model, copied unchanged. Licence: {base.licence}.\n"
        if own:
            card += f"\nIts own card: [{BASE_CARD}]({BASE_CARD}).\n"
        with store.writer("base_index"):
            models.install(
                store,
                base.digest,
                base.folder,
                names,
                {"manifest.json": json.dumps(about, indent=1) + "\n", "README.md": card} | own,
            )
    return base


def base_at_hand(store: Store, settings: Settings) -> BaseModelFiles | None:
    """The base model without any download: on this machine, or under the same name in the store; None: neither.

    For those who only ask whether it is still that of the last run.

    Raises:
        SettingsError: there is no such model, or it cannot be read.
    """
    try:
        return resolve_base_model(settings.base_model, settings.root, download=False)
    except OSError as error:
        raise SettingsError(f"ACME_RAG_BASE_MODEL: {settings.base_model} cannot be read: {error}") from error
    except NotOnThisMachine:
        digest = stored_detail(store.warehouse, "base_index", "model_digest") or ""
        folder = models.model_folder(store, digest)
        try:
            about = json.loads((folder / "manifest.json").read_bytes())
        except (OSError, ValueError):
            return None
        same = digest and about.get("name") == settings.base_model
        return BaseModelFiles(settings.base_model, folder, digest, about.get("licence", "")) if same else None


def encoder_for(store: Store, digest: str, settings: Settings) -> Encoder:
    """The encoder of a model in the store; it loads when the first text must be encoded."""
    return Encoder(models.model_folder(store, digest), digest, settings.training.precision)


def embedding_cache(store: Store) -> EmbeddingCache:
    """The store's vectors by rendered input."""
    return EmbeddingCache(store.embedding_cache, store.wait_seconds)


def newest_candidate(store: Store) -> PassageEncoder | None:
    """The model that the `fine_tuned_model` stage ended with, or None before the first."""
    with store.warehouse.read() as connection:
        details = stored_details(connection, "fine_tuned_model")
    if not details.get("model_digest") or not models.model_folder(store, details["model_digest"]).exists():
        return None
    return PassageEncoder(details["model_digest"], details["passage_prefix"], details.get("passage_digest"))
