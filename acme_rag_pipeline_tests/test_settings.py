"""Settings: precedence, defaults, and errors that name the variable."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from acme_rag_pipeline.setting_groups import PairSettings
from acme_rag_pipeline.settings import Settings, SettingsError


def test_the_defaults_are_the_shipped_documents(tmp_path: Path) -> None:
    (tmp_path / "data/golden").mkdir(parents=True)
    for name in ("curated_pairs.jsonl", "golden/queries.jsonl", "golden/qrels.jsonl"):
        (tmp_path / "data" / name).write_text("")
    known = Settings.load(root=tmp_path)
    assert known.documents == tmp_path / "data/documents"
    assert known.store == tmp_path / "data/store"
    assert known.curated_pairs == tmp_path / "data/curated_pairs.jsonl"
    assert known.golden == tmp_path / "data/golden"
    assert known.generator_in_use == "offline"


def test_other_documents_come_without_the_shipped_pairs_and_questions(tmp_path: Path) -> None:
    (tmp_path / "data/golden").mkdir(parents=True)
    (tmp_path / "data/curated_pairs.jsonl").write_text("")
    known = Settings.load(root=tmp_path, documents=str(tmp_path / "mine"))
    assert (known.curated_pairs, known.golden) == (None, None)


def test_empty_means_the_default_and_none_means_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/curated_pairs.jsonl").write_text("")
    monkeypatch.setenv("ACME_RAG_CURATED_PAIRS", "")
    monkeypatch.setenv("ACME_RAG_GENERATOR", "")
    assert Settings.load(root=tmp_path).curated_pairs == tmp_path / "data/curated_pairs.jsonl"
    monkeypatch.setenv("ACME_RAG_CURATED_PAIRS", "none")
    assert Settings.load(root=tmp_path).curated_pairs is None
    for name in ("AUDIENCE", "LANGUAGE", "MAX_CALLS", "PRICE_INPUT", "EXAMPLES"):
        monkeypatch.setenv(f"ACME_RAG_PAIRS__{name}", "None")
    monkeypatch.setenv("ACME_RAG_TRAINING__PASSAGE_PREFIX", "none")
    loaded = Settings.load(root=tmp_path)
    assert loaded.pairs == PairSettings()
    assert loaded.training.passage_prefix == "none", "a value of its own there"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACME_RAG_GENERATOR", "gpt"),
        ("ACME_RAG_GENERATOR", "openai"),
        ("ACME_RAG_DOCUMENTS", "none"),
        ("ACME_RAG_CURATED_PAIRS", "missing.jsonl"),
        ("ACME_RAG_GOLDEN", "missing"),
        ("ACME_RAG_TRAINING__EPOCHS", "many"),
        ("ACME_RAG_TRAINING__EPOCHS", "0"),
        ("ACME_RAG_LOCK_SECONDS", "-1"),
        ("ACME_RAG_TRAINING__SEED", "-1"),
        ("ACME_RAG_TRAINING__INTERPOLATION", "[2.5]"),
        ("ACME_RAG_TRAINING__SCALE", "inf"),
        ("ACME_RAG_TRAINING__SCALE", "1e308"),
        ("ACME_RAG_DOCUMENT__MAX_MEGABYTES", "inf"),
        ("ACME_RAG_SERVING__READER_GRACE_SECONDS", "99999999999999"),
        ("ACME_RAG_GATE__LEVEL", "0.9999"),
        ("OPENAI_BASE_URL", "localhost:8000"),
        ("ACME_RAG_TRAINING__INTERPOLATION", "0.5"),
        ("ACME_RAG_PAIRS__EXTRA_BODY", '{"max_tokens": 5, "stream": true}'),
        ("ACME_RAG_PAIRS__EXTRA_BODY", '{"model": "another"}'),
        ("ACME_RAG_PAIRS__EXTRA_BODY", '{"max_tokens": NaN}'),
        ("ACME_RAG_PAIRS__EXTRA_BODY", '{"max_tokens": 5'),
        ("ACME_RAG_PAIRS__EXTRA_BODY", "[5]"),
        ("ACME_RAG_PAIRS__EXTRA_BODY__MAX_TOKENS", "5"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name) as raised:
        Settings.load(root=tmp_path)
    assert "Value error" not in str(raised.value)
    assert name != "ACME_RAG_TRAINING__INTERPOLATION" or value != "0.5" or "such as [0.5, 1.0]" in str(raised.value)


def test_a_store_inside_the_documents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="ACME_RAG_STORE"):
        Settings.load(root=tmp_path, documents=str(tmp_path / "docs"), store=str(tmp_path / "docs/store"))


def test_a_store_that_a_link_leads_into_the_documents_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mounted").mkdir()
    (tmp_path / "documents").symlink_to("mounted")
    with pytest.raises(SettingsError, match="ACME_RAG_STORE"):
        Settings.load(root=tmp_path, documents="documents", store="mounted/store")


def test_a_root_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACME_RAG_ROOT", str(tmp_path / "nope"))
    for load in (Settings.load, Settings.for_readers):
        with pytest.raises(SettingsError, match=f"ACME_RAG_ROOT: there is no folder {tmp_path / 'nope'}"):
            load()
    assert not (tmp_path / "nope").exists()


def test_a_key_is_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-123")
    known = Settings.load(root=tmp_path)
    assert known.generator_in_use == "openai"
    assert "sk-secret-123" not in repr(known)
    assert "sk-secret-123" not in known.model_dump_json()


@pytest.mark.parametrize("host", ["h:99999", "[::1", "", ":8000", "h:port", "h:0"])
def test_an_address_that_is_none_is_named_and_not_shown(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://me:sk-secret-123@{host}/v1")
    with pytest.raises(SettingsError, match="OPENAI_BASE_URL: has no host or no port that can be used") as error:
        Settings.load(root=tmp_path)
    assert "sk-secret-123" not in str(error.value)
    for good in ("http://localhost:8000/v1", "http://[::1]:8000/v1", "https://u:p@h/v1?api-version=1"):
        monkeypatch.setenv("OPENAI_BASE_URL", good)
        assert Settings.load(root=tmp_path).openai_base_url == good


def test_a_blank_key_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", " \n")
    assert Settings.load(root=tmp_path).generator_in_use == "offline"
    with pytest.raises(SettingsError, match="needs OPENAI_API_KEY"):
        Settings.load(root=tmp_path, generator="openai")


def test_the_environment_beats_dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("ACME_RAG_LLM=from-file\nACME_RAG_BASE_MODEL=from-file\n")
    monkeypatch.setenv("ACME_RAG_LLM", "from-environment")
    known = Settings.load(root=tmp_path)
    assert (known.llm, known.base_model) == ("from-environment", "from-file")


def test_what_a_request_holds_besides_is_read_as_json_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACME_RAG_PAIRS__EXTRA_BODY", '{"max_tokens": 5, "nested": {"token": "sk-secret-123"}}')
    loaded = Settings.load(root=tmp_path)
    assert loaded.pairs.extra_body == {"max_tokens": 5, "nested": {"token": "sk-secret-123"}}
    assert "sk-secret-123" not in repr(loaded)
    monkeypatch.setenv("ACME_RAG_PAIRS__EXTRA_BODY", '{"stream": "sk-secret-123"}')
    with pytest.raises(SettingsError, match="must not hold stream") as raised:
        Settings.load(root=tmp_path)
    assert "sk-secret-123" not in str(raised.value)
    monkeypatch.setenv("ACME_RAG_PAIRS__EXTRA_BODY", "none")
    assert Settings.load(root=tmp_path).pairs == PairSettings()


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_dotenv_that_is_not_utf_8_is_named(tmp_path: Path, encoding: str) -> None:
    (tmp_path / ".env").write_text("ACME_RAG_DOCUMENTS=/srv/Bücher\n", encoding=encoding)
    with pytest.raises(SettingsError, match=r"\.env.* is not UTF-8"):
        Settings.load(root=tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "ACME_RAG_GENERATOR: offline",
        "ACME_RAG_DOCUMENTS ../docs",
        "=offline",
        "ACME_RAG_GENERATOR",
        "export OPENAI_BASE_URL",
    ],
)
def test_a_line_of_a_dotenv_that_cannot_be_read_is_named_and_no_default_holds_in_its_place(
    tmp_path: Path, line: str
) -> None:
    (tmp_path / ".env").write_text(f"# ours\n\nACME_RAG_LLM=own\n\n{line}\n")
    with pytest.raises(SettingsError, match=r"\.env line 5 cannot be read: write NAME=value"):
        Settings.load(root=tmp_path)


def test_a_name_of_another_program_may_stand_alone_in_a_dotenv(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("export HTTP_PROXY\nACME_RAG_LLM=own\n")
    assert Settings.load(root=tmp_path).llm == "own"


@pytest.mark.parametrize("variable", ["STORE", "CURATED_PAIRS", "GOLDEN", "ROOT"])
def test_a_path_that_no_file_can_have_is_an_error_that_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(f"ACME_RAG_{variable}", str(tmp_path / ("x" * 300)))
    with pytest.raises(SettingsError, match=rf"ACME_RAG_{variable}: .* cannot be looked at \(File name too long\)"):
        Settings.load(**({} if variable == "ROOT" else {"root": tmp_path}))


def test_the_environment_beats_dotenv_even_where_dagster_overwrote_it(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("ACME_RAG_LLM=from-file\n")
    program = (
        "import os, pathlib\n"
        # What the dagster command line does before any of our code runs.
        "os.environ['ACME_RAG_LLM'] = 'from-file'\n"
        "from acme_rag_pipeline.settings import Settings\n"
        "print(Settings.load().llm)\n"
    )
    environment = os.environ | {"ACME_RAG_LLM": "from-environment", "ACME_RAG_ROOT": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "from-environment"


def test_a_variable_that_only_looks_like_a_setting_is_warned_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ACME_RAG_LLM__MAX_CALLS", "360")
    monkeypatch.setenv("ACME_RAG_PAIRS__MAX_TOKENS", "1000")
    monkeypatch.setenv("ACME_RAG_EPOCHS", "3")
    monkeypatch.setenv("ACME_RAG_QQQ", "1")
    (tmp_path / ".env").write_text("ACME_RAG_STROE=elsewhere\n")
    for _ in range(2):
        Settings.load(root=tmp_path)
    said = [record.getMessage() for record in caplog.records if "is no setting" in record.getMessage()]
    assert said == [
        "ACME_RAG_EPOCHS is no setting and changes nothing; did you mean ACME_RAG_TRAINING__EPOCHS?",
        "ACME_RAG_LLM__MAX_CALLS is no setting and changes nothing; did you mean ACME_RAG_PAIRS__MAX_CALLS?",
        "ACME_RAG_QQQ is no setting and changes nothing; docs/settings.md lists all",
        "ACME_RAG_STROE is no setting and changes nothing; did you mean ACME_RAG_STORE?",
    ]


def test_an_unknown_field_of_a_group_is_an_error_that_names_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACME_RAG_TRAINING__EPOCH", "2")
    with pytest.raises(
        SettingsError, match="ACME_RAG_TRAINING__EPOCH is no setting; did you mean ACME_RAG_TRAINING__EPOCHS"
    ):
        Settings.load(root=tmp_path)


def test_a_store_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(SettingsError, match=r"ACME_RAG_STORE: .* is a file; name a folder"):
        Settings.load(root=tmp_path, store="store")


def test_documents_inside_the_store_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Settings.load(root=tmp_path, store="outer", documents="outer/docs")
    assert "ACME_RAG_DOCUMENTS" in caplog.text
    assert "lies inside the store, which holds what may be deleted" in caplog.text


def test_who_only_searches_needs_nothing_that_training_needs(tmp_path: Path) -> None:
    given = {"root": tmp_path, "curated_pairs": "gone.jsonl", "golden": "gone", "generator": "openai"}
    with pytest.raises(SettingsError):
        Settings.load(**given)
    assert Settings.for_readers(**given).generator == "openai"
