"""The `documents` table follows the folder: only what changed is written, and nothing good is lost to a bad moment."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from acme_rag_pipeline.documents import ingest as ingest_module
from acme_rag_pipeline.documents import state
from acme_rag_pipeline.documents.ingest import ingest_documents
from acme_rag_pipeline.documents.source import DocumentsFolderError, read_bytes
from acme_rag_pipeline.documents.state import folder_state
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.stages import StageResult, UpstreamMissing, data_versions
from acme_rag_pipeline.store.warehouse import Counts, records
from acme_rag_pipeline_tests.conftest import LEAVE, files_of

Ingest = Callable[..., StageResult]
LONG_AGO = 1_600_000_000


@pytest.fixture
def ingest(documents: Path, store: Store, settings_for: Callable[..., Settings]) -> Ingest:
    """Run the stage over the three documents; keyword arguments override settings."""
    return lambda **given: ingest_documents(store, settings_for(**given))


def rows(store: Store) -> dict[str, dict[str, Any]]:
    with store.warehouse.read() as connection:
        return {row["doc_path"]: row for row in records(connection, "SELECT * FROM documents")}


def age(folder: Path) -> None:
    """Give every file an old time stamp, so that it can be recognised by size and time stamp alone."""
    for path in folder.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))


def break_disk(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Permissions do not stop root, so the error of a failing disk is made where the file is opened."""
    opened = os.open

    def fail(name: Any, *rest: Any, **named: Any) -> int:
        if Path(os.fsdecode(name)) == path:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return opened(name, *rest, **named)

    monkeypatch.setattr(os, "open", fail)


def test_the_first_run_reads_everything(ingest: Ingest, store: Store) -> None:
    result = ingest()
    assert result.counts == Counts(added=3)
    assert not result.unchanged
    found = rows(store)
    leave = found["hr/leave.md"]
    assert (leave["title"], leave["format"], leave["status"], leave["reason"]) == ("Leave", "markdown", "ok", None)
    assert leave["text"] == LEAVE
    assert leave["sha256"] == hashlib.sha256(LEAVE.encode()).hexdigest()
    assert found["remote.txt"]["format"] == "text"
    assert result.details["formats"] == {"markdown": 2, "text": 1}
    assert (result.details["readable"], result.details["unreadable"], result.details["problems"]) == (3, 0, [])


def test_nothing_changed_writes_nothing(ingest: Ingest, store: Store) -> None:
    first = ingest()
    before = files_of(store)
    again = ingest()
    assert again.unchanged
    assert again.counts == Counts(reused=3)
    assert again.data_version == first.data_version
    assert files_of(store) == before


@pytest.mark.parametrize("aged", [False, True])
def test_a_touched_file_is_unchanged_and_read_once_more(
    ingest: Ingest, store: Store, documents: Path, aged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "RACY_NS", 0)
    if aged:
        age(documents)
    first = ingest()
    os.utime(documents / "travel.md", (LONG_AGO + 9, LONG_AGO + 9))
    (documents / "remote.txt").touch()
    shutil.copy(documents / "hr/leave.md", documents / "hr/copy")
    (documents / "hr/copy").replace(documents / "hr/leave.md")
    again = ingest()
    assert again.unchanged
    assert (again.data_version, again.details) == (first.data_version, first.details)
    before = files_of(store)
    monkeypatch.setattr(ingest_module, "read_bytes", lambda *_: pytest.fail("a file was read"))
    assert ingest().unchanged
    assert files_of(store) == before


@pytest.mark.usefixtures("documents")
def test_a_file_of_tomorrow_is_read_in_each_run_and_written_in_none(
    ingest: Ingest, store: Store, documents: Path
) -> None:
    tomorrow = time.time() + 86_400
    os.utime(documents / "travel.md", (tomorrow, tomorrow))
    ingest()
    before = files_of(store)
    assert ingest().unchanged
    assert files_of(store) == before


def test_a_file_that_cannot_be_read_is_warned_of_once(
    ingest: Ingest, documents: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (documents / "film.mp4").write_bytes(b"film")
    (documents / "gone.md").symlink_to("nowhere.md")
    for warned in (["film.mp4", "gone.md"], []):
        caplog.clear()
        ingest()
        assert sorted(record.getMessage().split(":")[0] for record in caplog.records) == warned
    (documents / "gone.md").unlink()
    (documents / "gone.md").write_bytes(b"\xff\x00")
    ingest()
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["gone.md"]


def test_a_file_that_is_parsed_for_long_is_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(ingest_module, "SLOW_SECONDS", 0.01)
    for doc_path, named in (("hr/a.pdf", 1), ("hr/a.md", 0)):
        caplog.clear()
        with ingest_module.named_when_slow(doc_path):
            until = time.monotonic() + (10 if named else 0.05)
            while not caplog.records and time.monotonic() < until:
                time.sleep(0.01)
        assert [record.getMessage() for record in caplog.records] == [f"{doc_path}: is still being parsed"] * named


def test_what_an_earlier_version_said_of_a_name_without_a_parser_is_said_anew(
    ingest: Ingest, store: Store, documents: Path
) -> None:
    (documents / "sheet.xlsx").write_bytes(b"PK")
    age(documents)
    first = ingest()
    with store.warehouse.write() as connection:
        connection.execute("UPDATE documents SET reason = 'save it as .md' WHERE doc_path = 'sheet.xlsx'")
    assert ingest().data_version == first.data_version
    assert "save its tables" in rows(store)["sheet.xlsx"]["reason"]


def test_texts_stay_when_only_stamps_or_the_state_change(
    ingest: Ingest, store: Store, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ingest()
    texts = {path: (row["text"], row["words"]) for path, row in rows(store).items()}
    assert first.details["words"] == sum(words for _, words in texts.values()) > 300
    break_disk(monkeypatch, documents / "travel.md")
    (documents / "travel.md").touch()
    (documents / "remote.txt").touch()
    assert ingest().details["unreadable"] == 1
    assert {path: (row["text"], row["words"]) for path, row in rows(store).items()} == texts
    (documents / "travel.md").unlink()
    assert ingest().details["words"] == first.details["words"] - texts["travel.md"][1]
    assert (rows(store)["travel.md"]["text"], rows(store)["travel.md"]["words"]) == (None, None)


def test_what_no_parser_understood_is_not_parsed_again(
    ingest: Ingest, store: Store, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, other = documents / "scan.md", documents / "other.docx"
    scan.write_bytes(b"\xff\xfe\x00 not text")
    other.write_bytes(b"no archive")
    age(documents)
    monkeypatch.setattr(state, "RACY_NS", 0)
    before = ingest()
    reasons = {path: rows(store)[path]["reason"] for path in ("scan.md", "other.docx")}
    assert all(reasons.values())
    monkeypatch.setattr(ingest_module, "read_bytes", lambda *_: pytest.fail("a file was read"))
    (documents / "remote.txt").unlink()
    assert ingest().data_version != before.data_version
    assert {path: rows(store)[path]["reason"] for path in reasons} == reasons

    # A package that was missing may be installed by now.
    with store.warehouse.write() as connection:
        connection.execute(
            "UPDATE documents SET reason = 'needs x; install acme-rag-pipeline[office]' WHERE doc_path = 'other.docx'"
        )
    read: list[str] = []
    monkeypatch.setattr(
        ingest_module, "read_bytes", lambda file, most: read.append(file.doc_path) or read_bytes(file, most)
    )
    ingest()
    assert read == ["other.docx"]


def test_time_stamps_of_today_are_noted_with_the_next_change(
    ingest: Ingest, store: Store, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    age(documents)
    ingest()
    os.utime(documents / "travel.md", (LONG_AGO + 9, LONG_AGO + 9))
    monkeypatch.setattr(state, "RACY_NS", 0)
    (documents / "remote.txt").unlink()
    ingest()
    monkeypatch.setattr(ingest_module, "read_bytes", lambda *_: pytest.fail("a file was read"))
    ingest()


def test_an_edit_and_its_revert(ingest: Ingest, store: Store, documents: Path) -> None:
    first = ingest()
    before = rows(store)
    (documents / "hr/leave.md").write_text(LEAVE.replace("27 FLEX", "28 FLEX"), encoding="utf-8")
    edited = ingest()
    assert edited.counts == Counts(changed=1, reused=2)
    assert edited.data_version != first.data_version
    after = rows(store)
    assert "28 FLEX days" in after["hr/leave.md"]["text"]
    looked_at = {"scanned_at_ns": 0}
    assert [name for name in after if after[name] | looked_at != before[name] | looked_at] == ["hr/leave.md"]
    (documents / "hr/leave.md").write_text(LEAVE, encoding="utf-8")
    reverted = ingest()
    assert reverted.counts == Counts(changed=1, reused=2)
    assert (reverted.data_version, reverted.details) == (first.data_version, first.details)


def test_an_edit_of_equal_size_and_time_stamp_right_after_a_run_is_seen(
    ingest: Ingest, store: Store, documents: Path
) -> None:
    path = documents / "hr/leave.md"
    ingest()
    stamp = path.stat().st_mtime_ns
    path.write_text(LEAVE.replace("27 FLEX", "28 FLEX"), encoding="utf-8")
    os.utime(path, ns=(stamp, stamp))
    assert ingest().counts == Counts(changed=1, reused=2)
    assert "28 FLEX days" in rows(store)["hr/leave.md"]["text"]


@pytest.mark.parametrize("linked", [False, True])
def test_other_content_under_an_old_size_and_time_stamp_is_seen(
    ingest: Ingest,
    store: Store,
    documents: Path,
    settings_for: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
    linked: bool,
) -> None:
    path, edited = documents / "hr/leave.md", documents / ".edited.md"
    edited.write_text(LEAVE.replace("27 FLEX", "28 FLEX"), encoding="utf-8")
    if linked:
        path.rename(documents / ".leave.md")
        path.symlink_to("../.leave.md")
    age(documents)
    # What happened before the run is long ago.
    monkeypatch.setattr(state, "RACY_NS", 0)
    monkeypatch.setattr(state, "RACY_NS", 0)
    time.sleep(0.05)
    first = ingest()
    assert folder_state(settings_for()) == first.details["sources"]
    time.sleep(0.05)
    if linked:
        path.unlink()
        path.symlink_to("../.edited.md")
    else:
        # As an archive or a mirror brings it.
        shutil.copy2(edited, path)
    assert path.stat().st_mtime == LONG_AGO
    again = ingest()
    assert again.counts == Counts(changed=1, reused=2)
    assert "28 FLEX days" in rows(store)["hr/leave.md"]["text"]
    assert folder_state(settings_for()) == again.details["sources"]


def test_what_a_clock_that_was_ahead_said_is_not_believed(
    ingest: Ingest, store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    age(documents)
    ingest()
    with store.warehouse.write() as connection:
        connection.execute("UPDATE documents SET scanned_at_ns = scanned_at_ns + 86_400_000_000_000")
    path = documents / "hr/leave.md"
    path.write_text(LEAVE.replace("27 FLEX", "28 FLEX"), encoding="utf-8")
    os.utime(path, (LONG_AGO, LONG_AGO))
    assert state.folder_changes(settings_for(), store) == {"new": 0, "changed": 1, "deleted": 0}
    again = ingest()
    assert again.counts == Counts(changed=1, reused=2)
    assert folder_state(settings_for(), store) == again.details["sources"]


def test_a_clock_that_was_set_back_has_files_read_again_once(
    ingest: Ingest, store: Store, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    age(documents)
    monkeypatch.setattr(state, "RACY_NS", 0)
    first = ingest()
    with store.warehouse.write() as connection:
        connection.execute("UPDATE documents SET scanned_at_ns = scanned_at_ns + 86_400_000_000_000")
    assert ingest().data_version == first.data_version
    monkeypatch.setattr(ingest_module, "read_bytes", lambda *_: pytest.fail("a file was read"))
    assert ingest().data_version == first.data_version


def test_a_file_with_an_old_time_stamp_is_not_read_again(
    ingest: Ingest, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    age(documents)
    monkeypatch.setattr(state, "RACY_NS", 0)
    time.sleep(0.05)
    first = ingest()
    break_disk(monkeypatch, documents / "travel.md")
    assert ingest().data_version == first.data_version


def test_a_deleted_file_leaves_a_tombstone_and_may_come_back(ingest: Ingest, store: Store, documents: Path) -> None:
    first = ingest()
    content = (documents / "travel.md").read_bytes()
    (documents / "travel.md").unlink()
    assert ingest().counts == Counts(removed=1, reused=2)
    gone = rows(store)["travel.md"]
    assert (gone["status"], gone["text"], gone["reason"]) == ("deleted", None, "the file is gone")
    before = files_of(store)
    assert ingest().unchanged
    assert files_of(store) == before
    (documents / "travel.md").write_bytes(content)
    back = ingest()
    assert back.counts == Counts(added=1, reused=2)
    assert back.data_version == first.data_version
    assert rows(store)["travel.md"]["text"] == content.decode()


def test_a_rename_is_a_removal_and_an_addition(ingest: Ingest, store: Store, documents: Path) -> None:
    ingest()
    text = rows(store)["travel.md"]["text"]
    (documents / "travel.md").rename(documents / "hr/trips.md")
    assert ingest().counts == Counts(added=1, removed=1, reused=2)
    found = rows(store)
    assert (found["hr/trips.md"]["text"], found["travel.md"]["status"]) == (text, "deleted")


def test_broken_files_have_a_reason_and_do_not_stop_the_others(ingest: Ingest, store: Store, documents: Path) -> None:
    (documents / "broken.pdf").write_bytes(b"%PDF-1.7 not really")
    (documents / "latin.md").write_bytes(b"caf\xe9")
    (documents / "sheet.xlsx").write_bytes(b"PK")
    (documents / "link.md").symlink_to(__file__)
    (documents / "large.md").write_bytes(b"x" * 20_000)
    os.mkfifo(documents / "pipe.md")
    result = ingest(document={"max_megabytes": 0.01})
    assert (result.details["readable"], result.details["unreadable"]) == (3, 6)
    reasons = {problem["doc_path"]: problem["reason"] for problem in result.details["problems"]}
    assert reasons.keys() == {"broken.pdf", "latin.md", "sheet.xlsx", "link.md", "large.md", "pipe.md"}
    assert "not UTF-8 (byte offset 3)" in reasons["latin.md"]
    assert "no parser for .xlsx files" in reasons["sheet.xlsx"]
    assert "0.02 MB, the limit is 0.01 MB" in reasons["large.md"]
    assert reasons["link.md"] == "link leads out of the documents folder"
    found = rows(store)
    assert {found[name]["status"] for name in reasons} == {"unreadable"}
    assert {found[name]["text"] for name in reasons} == {None}
    assert ingest(document={"max_megabytes": 0.01}).unchanged


def test_a_lower_limit_holds_for_files_that_were_read_before(
    ingest: Ingest, store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    (documents / "large.md").write_bytes(b"x" * 20_000)
    age(documents)
    first = ingest()
    assert folder_state(settings_for()) == first.details["sources"]
    lower = {"max_megabytes": 0.01}
    lowered = ingest(document=lower)
    assert lowered.counts == Counts(changed=1, reused=3)
    assert rows(store)["large.md"]["text"] is None
    assert folder_state(settings_for(document=lower)) == lowered.details["sources"]
    assert ingest().data_version == first.data_version


def test_a_file_that_becomes_broken_loses_its_text_and_gets_it_back(
    ingest: Ingest, store: Store, documents: Path
) -> None:
    first = ingest()
    (documents / "hr/leave.md").write_bytes(b"\x89PNG\0\0")
    assert ingest().counts == Counts(changed=1, reused=2)
    assert rows(store)["hr/leave.md"]["text"] is None
    (documents / "hr/leave.md").write_text(LEAVE, encoding="utf-8")
    assert ingest().data_version == first.data_version


def test_a_failing_disk_keeps_the_last_good_version(
    ingest: Ingest,
    store: Store,
    documents: Path,
    settings_for: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = ingest()
    (documents / "new.md").write_text("# New", encoding="utf-8")
    with monkeypatch.context() as failing:
        break_disk(failing, documents / "hr/leave.md")
        failing.setattr(state, "_HASHES", {})  # a sensor in a process of its own
        result = ingest()
        assert result.counts == Counts(added=1, changed=1, reused=2)
        kept = rows(store)["hr/leave.md"]
        assert (kept["status"], kept["text"], kept["title"]) == ("unreadable", LEAVE, "Leave")
        assert kept["reason"] == "cannot be read today (input/output error); its last good version stays in use"
        assert folder_state(settings_for()) == result.details["sources"]
        before = files_of(store)
        assert ingest().unchanged
        assert files_of(store) == before
        # Another size, still unreadable: the sensor sees another state, so the stage has to report it too.
        with (documents / "hr/leave.md").open("a", encoding="utf-8") as file:
            file.write("\nMore.\n")
        assert folder_state(settings_for()) == ingest().details["sources"]
    (documents / "hr/leave.md").write_text(LEAVE, encoding="utf-8")
    (documents / "new.md").unlink()
    healed = ingest()
    assert healed.data_version == first.data_version
    assert rows(store)["hr/leave.md"]["status"] == "ok"


def test_a_new_file_on_a_failing_disk_has_only_a_reason(
    ingest: Ingest, store: Store, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_disk(monkeypatch, documents / "travel.md")
    assert ingest().details["problems"] == [{"doc_path": "travel.md", "reason": "input/output error"}]
    assert rows(store)["travel.md"]["text"] is None


@pytest.mark.parametrize("how", ["empty", "missing"])
def test_an_empty_or_missing_folder_deletes_nothing(ingest: Ingest, store: Store, documents: Path, how: str) -> None:
    ingest()
    before = files_of(store)
    shutil.rmtree(documents)
    if how == "empty":
        documents.mkdir()
    with pytest.raises(DocumentsFolderError, match=r"^ACME_RAG_DOCUMENTS: "):
        ingest()
    assert files_of(store) == before


@pytest.mark.parametrize("left", ["Thumbs.db", "broken.md"])
def test_a_folder_with_nothing_to_read_left_deletes_nothing(
    ingest: Ingest, store: Store, documents: Path, left: str
) -> None:
    ingest()
    before = files_of(store)
    shutil.rmtree(documents)
    documents.mkdir()
    if left == "broken.md":
        (documents / left).symlink_to("gone.md")
    else:
        (documents / left).write_bytes(b"\0\1")
    with pytest.raises(DocumentsFolderError, match=rf"^ACME_RAG_DOCUMENTS: .* holds nothing but {left}, but the store"):
        ingest()
    assert files_of(store) == before
    (documents / "travel.md").write_text("# Travel\n\nBy train.", encoding="utf-8")
    assert ingest().counts == Counts(added=1, changed=1, removed=2)


def test_a_folder_that_never_had_anything_to_read_is_fine(ingest: Ingest, documents: Path) -> None:
    shutil.rmtree(documents)
    documents.mkdir()
    (documents / "Thumbs.db").write_bytes(b"\0\1")
    assert ingest().counts == Counts(added=1)
    assert ingest().unchanged


def test_a_link_whose_target_cannot_be_reached_today_keeps_its_last_good_version(
    ingest: Ingest,
    store: Store,
    documents: Path,
    settings_for: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (documents / ".vault").mkdir()
    (documents / "hr/leave.md").rename(documents / ".vault/leave.md")
    (documents / "leave.md").symlink_to(".vault/leave.md")
    first = ingest()
    followed = os.path.realpath

    def refuse(path: Any, **named: Any) -> str:
        # Permissions do not stop root.
        if Path(path) == documents / "leave.md":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return followed(path, **named)

    with monkeypatch.context() as failing:
        failing.setattr(os.path, "realpath", refuse)
        assert ingest().counts == Counts(changed=1, reused=2)
        kept = rows(store)["leave.md"]
        assert (kept["status"], kept["text"]) == ("unreadable", LEAVE)
        assert kept["reason"] == "cannot be read today (link: permission denied); its last good version stays in use"
        assert folder_state(settings_for()) == ingest().details["sources"]
        assert ingest().unchanged
    assert ingest().data_version == first.data_version
    (documents / ".vault/leave.md").unlink()
    assert ingest().counts == Counts(changed=1, reused=2)
    assert rows(store)["leave.md"]["text"] is None, "gone is gone"


def test_an_empty_folder_and_an_empty_store_are_fine(ingest: Ingest, documents: Path) -> None:
    shutil.rmtree(documents)
    documents.mkdir()
    assert ingest().counts == Counts()


def test_a_sub_folder_that_cannot_be_listed_deletes_nothing(
    ingest: Ingest, store: Store, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest()
    before = files_of(store)
    listed = os.scandir

    def fail(path: Any) -> Any:
        if Path(path) == documents / "hr":
            raise OSError(errno.ESTALE, "Stale file handle")
        return listed(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", fail)
        with pytest.raises(DocumentsFolderError, match="hr cannot be listed"):
            ingest()
    assert files_of(store) == before


def test_a_sub_folder_that_may_not_be_listed_costs_nothing_but_its_new_files(
    ingest: Ingest,
    store: Store,
    documents: Path,
    settings_for: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (documents / "lost+found").mkdir()
    listed = os.scandir
    refused = {documents / "lost+found"}

    def refuse(path: Any) -> Any:
        # Permissions do not stop root.
        if Path(path) in refused:
            raise PermissionError(errno.EACCES, "Permission denied")
        return listed(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        first = ingest()
        assert first.counts == Counts(added=4)
        assert "may not be listed (permission denied)" in rows(store)["lost+found"]["reason"]
        refused.add(documents / "hr")
        (documents / "travel.md").unlink()
        result = ingest()
        assert result.counts == Counts(added=1, changed=1, removed=1, reused=2)
        kept = rows(store)["hr/leave.md"]
        assert (kept["status"], kept["text"]) == ("unreadable", LEAVE)
        assert (
            kept["reason"] == "cannot be read today (its folder may not be listed); its last good version stays in use"
        )
        assert folder_state(settings_for()) == folder_state(settings_for(), store) == result.details["sources"]
        assert state.folder_changes(settings_for(), store) == {"new": 0, "changed": 0, "deleted": 0}
        before = files_of(store)
        assert ingest().unchanged
        assert files_of(store) == before
        refused.remove(documents / "hr")
        assert ingest().counts == Counts(changed=1, removed=1, reused=2)
        assert rows(store)["hr/leave.md"]["status"] == "ok"


class Listing(list[Any]):
    """Counts how often it is gone through."""

    passes = 0

    def __iter__(self) -> Any:
        self.passes += 1
        return super().__iter__()


def test_the_files_are_not_gone_through_again_for_each_document(
    ingest: Ingest, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        (documents / f"{number}.md").write_text(f"# Rule {number}\n", encoding="utf-8")
    ingest()
    (documents / "hr" / "leave.md").unlink()
    found = Listing(ingest_module.scan(documents))
    monkeypatch.setattr(ingest_module, "scan", lambda root: found)
    assert ingest().counts.removed == 1
    assert found.passes < 10


class Killed(BaseException):
    """Stands for the end of the process."""


def killed_at(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """Commit after each file, and end at one of them; returns what is read from then on."""
    read: list[str] = []
    parse = ingest_module.parse

    def parse_or_die(doc_path: str, data: bytes) -> Any:
        if doc_path == name and name not in read:
            read.append(doc_path)
            raise Killed
        read.append(doc_path)
        return parse(doc_path, data)

    monkeypatch.setattr(ingest_module, "parse", parse_or_die)
    monkeypatch.setattr(ingest_module, "COMMIT_SECONDS", 0)
    return read


def test_a_killed_run_costs_the_file_at_which_it_was_killed(
    ingest: Ingest,
    store: Store,
    documents: Path,
    settings_for: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = sorted(path.relative_to(documents).as_posix() for path in documents.rglob("*.*"))
    read = killed_at(monkeypatch, names[-1])
    with pytest.raises(Killed):
        ingest()
    assert sorted(rows(store)) == names[:-1]
    with pytest.raises(UpstreamMissing):
        data_versions(store.warehouse, "documents")
    read[:] = [names[-1]]
    done = ingest()
    assert read == [names[-1]] * 2, "the others are not read again"
    monkeypatch.undo()
    again = Store(store.root.parent / "from nothing")
    assert done.data_version == ingest_documents(again, settings_for()).data_version
    assert content(store) == content(again)


def content(store: Store) -> dict[str, tuple[Any, ...]]:
    return {path: (row["sha256"], row["text"], row["status"]) for path, row in rows(store).items()}


def test_what_a_killed_run_left_of_an_edit_that_was_taken_back_goes(
    ingest: Ingest, store: Store, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ingest()
    before = {path: row["text"] for path, row in rows(store).items()}
    kept = (documents / "hr/leave.md").read_text(encoding="utf-8")
    (documents / "hr/leave.md").write_text("# Leave\n\nNobody may leave.\n", encoding="utf-8")
    (documents / "travel.md").write_text("# Travel\n\nNobody may travel.\n", encoding="utf-8")
    killed_at(monkeypatch, "travel.md")
    with pytest.raises(Killed):
        ingest()
    assert rows(store)["hr/leave.md"]["text"] != before["hr/leave.md"]
    monkeypatch.undo()
    (documents / "hr/leave.md").write_text(kept, encoding="utf-8")
    (documents / "travel.md").write_text(before["travel.md"], encoding="utf-8")
    monkeypatch.setattr(Store, "idle", lambda *_: False)
    assert ingest().data_version == first.data_version
    assert {path: row["text"] for path, row in rows(store).items()} == before


def test_the_sensor_sees_the_state_that_the_stage_reports(
    ingest: Ingest, store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    (documents / "bad.pdf").write_bytes(b"%PDF-")
    (documents / "broken.md").symlink_to("gone.md")
    assert folder_state(settings_for()) == ingest().details["sources"]
    (documents / "travel.md").write_text(f"# Travel {time.time_ns()}", encoding="utf-8")
    changed = folder_state(settings_for())
    assert changed == ingest().details["sources"]
    assert changed == folder_state(settings_for(), store), "by what the stage knows"
    # A log that nobody may read grows: nothing that readers could find has changed.
    limited = settings_for(document={"max_megabytes": 0.001})
    log = documents / "large.log"
    log.write_bytes(b"x" * 2000)
    before = ingest_documents(store, limited)
    assert folder_state(limited) == before.details["sources"]
    log.write_bytes(b"x" * 3000)
    assert folder_state(limited) == before.details["sources"]
    log.write_bytes(b"It is short now.")
    assert folder_state(limited) != before.details["sources"]


def test_what_the_stage_has_read_is_not_read_again(
    ingest: Ingest,
    store: Store,
    documents: Path,
    settings_for: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    age(documents)
    monkeypatch.setattr(state, "RACY_NS", 0)
    done = ingest()
    monkeypatch.setattr(state, "_HASHES", {})
    monkeypatch.setattr(state, "read_bytes", lambda *_: pytest.fail("a file was read"))
    assert folder_state(settings_for(), store) == done.details["sources"]
    assert state.folder_changes(settings_for(), store) == {"new": 0, "changed": 0, "deleted": 0}
