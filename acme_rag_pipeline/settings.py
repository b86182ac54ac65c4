"""Settings: what a user may choose, read from the environment and `.env`, validated once, with errors that name the variable.

Nothing here touches the store or a model; `Settings.load()` is cheap enough for every process.
"""

import difflib
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from dotenv import dotenv_values
from dotenv.parser import Binding, parse_stream
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableValue

from acme_rag_pipeline.errors import UserError
from acme_rag_pipeline.setting_groups import (
    NONE,
    AutomationSettings,
    ChunkingSettings,
    DocumentSettings,
    EvaluationSettings,
    GateChoices,
    Group,
    PairSettings,
    RetrievalSettings,
    ServingSettings,
    TrainingSettings,
)

SHIPPED_DOCUMENTS = Path("data/documents")
SHIPPED_CURATED_PAIRS = Path("data/curated_pairs.jsonl")
SHIPPED_GOLDEN = Path("data/golden")
EMBEDDED_BASE_MODEL = "all-MiniLM-L6-v2"
# By the kind of an error, how the value is written.
_AS_JSON = {
    "tuple_type": "; lists are JSON, such as [0.5, 1.0]",
    "list_type": "; lists are JSON, such as [0.5, 1.0]",
    "dict_type": '; it is a JSON object, such as {"max_tokens": 2000}',
}
_WARNED_OF: set[str] = set()
_log = logging.getLogger(__name__)


class SettingsError(UserError, ValueError):
    """A setting has a value that cannot work; the message names the variable and says what would."""


class Settings(BaseSettings):
    """All settings. Relative paths are relative to `ACME_RAG_ROOT`, which defaults to the working directory.

    Precedence: arguments, environment, `.env`, defaults. An empty value means the default, `none` means without.
    Tuning groups are set as `ACME_RAG_TRAINING__EPOCHS=1`.
    """

    model_config = SettingsConfigDict(
        env_prefix="ACME_RAG_",
        env_nested_delimiter="__",
        # A group and its field: a name further down would be read in lower case and as text.
        env_nested_max_split=1,
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
        try:
            parts = urlsplit(value or "")
            usable = value is None or (bool(parts.hostname) and parts.port != 0)
        except ValueError:
            usable = False
        if not usable:
            # Not quoted: it may hold a password.
            raise ValueError("has no host or no port that can be used; write it like http://localhost:8000/v1")
        return value

    @classmethod
    def load(cls, **overrides: Any) -> "Settings":
        """Read the settings of this process.

        Raises:
            SettingsError: a value cannot work; the message names the variable.
        """
        return cls.for_readers(**overrides).checked()

    @classmethod
    def for_readers(cls, **overrides: Any) -> "Settings":
        """The same for who only searches: curated pairs, golden queries and an LLM are looked for by nobody there.

        Raises:
            SettingsError: a value cannot work; the message names the variable.
        """
        try:
            loaded = cls._read(**overrides)
        except UnicodeDecodeError as error:
            raise SettingsError(
                f"`.env` in ACME_RAG_ROOT is not UTF-8 (byte {error.start}): save it as UTF-8"
            ) from None
        return loaded.model_copy(update=loaded._resolved())

    @classmethod
    def _read(cls, **overrides: Any) -> "Settings":
        root = Path(overrides.pop("root", None) or os.environ.get("ACME_RAG_ROOT") or Path.cwd()).absolute()
        if not _stands("ACME_RAG_ROOT", root, Path.is_dir):
            raise SettingsError(f"ACME_RAG_ROOT: there is no folder {root}; name the one that holds `data` and `.env`")
        _check_lines(root / ".env")
        with _undo_dotenv_override():
            given = {name: value for name, value in overrides.items() if value is not None and value != ""}
            for unknown in (name for name in given if name.lower() not in cls.model_fields):
                raise SettingsError(f"`{unknown}` is no setting; {_nearest(f'ACME_RAG_{unknown}')}")
            try:
                loaded = cls(root=root, _env_file=root / ".env", **given)  # type: ignore[call-arg]
            except ValidationError as error:
                raise SettingsError(_in_words(error)) from None
            except UnreadableValue as error:
                name = re.search(r'field "(\w+)"', str(error))
                variable = f"ACME_RAG_{name.group(1).upper()}" if name else "a list or group among ACME_RAG_*"
                raise SettingsError(f"{variable}: lists and groups are JSON, such as [0.5, 1.0]") from None
            _warn_of_unknown_variables(root / ".env")
        return loaded

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
        documents, store = self.documents.resolve(), self.store.resolve()
        if store == documents or documents in store.parents:
            raise SettingsError(
                f"ACME_RAG_STORE: {self.store} lies inside the documents folder {self.documents}; choose a folder outside it"
            )
        if _stands("ACME_RAG_STORE", self.store) and not self.store.is_dir():
            raise SettingsError(f"ACME_RAG_STORE: {self.store} is a file; name a folder for everything derived")
        for name, path in (("DOCUMENTS", documents), ("CURATED_PAIRS", self.curated_pairs), ("GOLDEN", self.golden)):
            if path is not None and store in path.resolve().parents and name not in _WARNED_OF:
                _WARNED_OF.add(name)
                _log.warning(
                    "ACME_RAG_%s: %s lies inside the store, which holds what may be deleted and made anew; keep it elsewhere",
                    name, path,
                )  # fmt: skip
        if self.curated_pairs is not None and not _stands("ACME_RAG_CURATED_PAIRS", self.curated_pairs, Path.is_file):
            raise SettingsError(f"ACME_RAG_CURATED_PAIRS: no file {self.curated_pairs}; give a JSONL file or `none`")
        if self.golden is not None:
            missing = [
                name
                for name in ("queries.jsonl", "qrels.jsonl")
                if not _stands("ACME_RAG_GOLDEN", self.golden / name, Path.is_file)
            ]
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
        # A secret that was never filled in is a line break: no reason to send documents to OpenAI.
        return bool(self.openai_base_url) or bool(
            self.openai_api_key and self.openai_api_key.get_secret_value().strip()
        )

    @property
    def generator_in_use(self) -> Literal["openai", "offline", "both"]:
        """The generator after `auto` is decided; `both` are `openai` and `offline` together."""
        if self.generator == "auto":
            return "openai" if self.llm_configured else "offline"
        return self.generator


def _stands(variable: str, path: Path, test: Callable[[Path], bool] = Path.exists) -> bool:
    """What `test` says of a path.

    Raises:
        SettingsError: nobody may look there, or no file can have such a name.
    """
    try:
        return test(path)
    except OSError as error:
        raise SettingsError(
            f"{variable}: {path} cannot be looked at ({error.strerror}); mend its permissions or name another"
        ) from None


def _in_words(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        name = "__".join(str(part) for part in problem["loc"]).upper()
        variable = name if name.startswith("OPENAI_") else f"ACME_RAG_{name}"
        if problem["type"] == "extra_forbidden":
            lines.append(f"{variable} is no setting; {_nearest(variable)}")
        else:
            lines.append(
                f"{variable}: {problem['msg'].removeprefix('Value error, ')}{_AS_JSON.get(problem['type'], '')}"
            )
    return "; ".join(lines)


def _warn_of_unknown_variables(dotenv: Path) -> None:
    """Log each variable that looks like a setting and is none, once: a budget with a typing error bounds nothing."""
    names = {*os.environ, *(dotenv_values(dotenv) if dotenv.is_file() else ())}
    settings = _variables()
    for name in sorted(name for name in names if name.upper().startswith("ACME_RAG_")):
        if name.upper() not in settings and name not in _WARNED_OF:
            _WARNED_OF.add(name)
            _log.warning("%s is no setting and changes nothing; %s", name, _nearest(name))


def _variables() -> set[str]:
    """Every variable that is read; a whole group may be given as JSON."""
    variables = {"ACME_RAG_ROOT"}
    for name, field in Settings.model_fields.items():
        variables.add(f"ACME_RAG_{name.upper()}")
        if isinstance(field.annotation, type) and issubclass(field.annotation, Group):
            variables |= {f"ACME_RAG_{name}__{knob}".upper() for knob in field.annotation.model_fields}
    return variables


def _nearest(variable: str) -> str:
    """What was meant, as a question; where nothing is near, where to look."""
    name = variable.upper().removeprefix("ACME_RAG_")
    known = sorted(known.removeprefix("ACME_RAG_") for known in _variables())
    # The name without its group, or in another one, is nearer than any spelling.
    ends = [other for other in known if other.rpartition("__")[2] == name.rpartition("__")[2]]
    near = ends[:1] or difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f"did you mean ACME_RAG_{near[0]}?" if near else "docs/settings.md lists all"


def _check_lines(dotenv: Path) -> None:
    """Refuse a `.env` with a line that cannot be read: without it a default would hold, and documents might leave the house."""
    if not dotenv.is_file():
        return
    with dotenv.open(encoding="utf-8-sig") as file:
        bad = next((line.original for line in parse_stream(file) if line.error or _lacks_its_value(line)), None)
    if bad is not None:
        # It begins with the blank lines above.
        blank = bad.string[: len(bad.string) - len(bad.string.lstrip())].count("\n")
        raise SettingsError(f"{dotenv} line {bad.line + blank} cannot be read: write NAME=value")


def _lacks_its_value(line: Binding) -> bool:
    """A name of ours without `=`: python-dotenv reads that as no value, so a default would hold in its place."""
    return line.value is None and (line.key or "").upper().startswith(("ACME_RAG_", "OPENAI_"))


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
