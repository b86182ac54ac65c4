"""Listing and reading a real folder, with everything in it that real folders hold."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from acme_rag_pipeline.documents.source import (
    DocumentsFolderError,
    IncompleteListing,
    ReadFailure,
    SourceFile,
    TooLarge,
    read_bytes,
    scan,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    return folder


def only(root: Path) -> SourceFile:
    (file,) = scan(root)
    return file


def test_files_are_listed_in_the_order_of_their_posix_paths(root: Path) -> None:
    for name in ("b.md", "a/z.md", "a.md", "a/b/c.xyz", "B.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name, encoding="utf-8")
    files = scan(root)
    assert [file.doc_path for file in files] == ["B.txt", "a.md", "a/b/c.xyz", "a/z.md", "b.md"]
    assert all(file.problem is None for file in files)
    assert [read_bytes(file, 100).decode() for file in files] == [file.doc_path for file in files]
    assert files[1].size == 4
    assert files[1].mtime_ns == (root / "a.md").stat().st_mtime_ns


def test_hidden_files_folders_and_office_locks_are_skipped(root: Path) -> None:
    for name in (".hidden.md", ".git/config.md", "~$plan.docx", "kept.md"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("x", encoding="utf-8")
    assert only(root).doc_path == "kept.md"


def test_the_folder_itself_may_be_hidden_or_a_link(root: Path, tmp_path: Path) -> None:
    (root / "a.md").write_text("x", encoding="utf-8")
    (root / "b.md").symlink_to("a.md")
    (tmp_path / ".link").symlink_to(root)
    assert [(file.doc_path, file.problem) for file in scan(tmp_path / ".link")] == [("a.md", None), ("b.md", None)]


def test_a_link_to_a_file_inside_is_a_file(root: Path) -> None:
    (root / "a").mkdir()
    (root / "a/real.md").write_text("text", encoding="utf-8")
    (root / "b.md").symlink_to("a/real.md")
    linked = scan(root)[1]
    assert (linked.doc_path, linked.problem, linked.size) == ("b.md", None, 4)
    assert read_bytes(linked, 100) == b"text"


def test_a_link_out_of_the_folder_is_not_followed(root: Path, tmp_path: Path) -> None:
    # The name of the neighbour starts with the name of the folder: a comparison of strings would let it in.
    (tmp_path / "documents-secret").mkdir()
    (tmp_path / "documents-secret/key.md").write_text("secret", encoding="utf-8")
    (root / "direct.md").symlink_to(tmp_path / "documents-secret/key.md")
    (root / "folder").symlink_to(tmp_path / "documents-secret")
    (root / "hop.md").symlink_to("direct.md")
    assert {file.problem for file in scan(root)} == {"link leads out of the documents folder"}
    assert len(scan(root)) == 3


def test_broken_links_loops_and_folder_links_are_reported(root: Path) -> None:
    (root / "real").mkdir()
    (root / "real/up").symlink_to("..")
    (root / "alias").symlink_to("real")
    (root / "broken.md").symlink_to("gone.md")
    (root / "loop.md").symlink_to("loop.md")
    problems = {file.doc_path: file.problem or "" for file in scan(root)}
    assert problems["alias"] == "link to the folder real, which is not followed"
    assert "link to the folder" in problems["real/up"]
    assert problems["broken.md"] == "broken link: there is no gone.md"
    assert problems["loop.md"].startswith("link loop")
    assert len(problems) == 4


def test_pipes_and_sockets_are_reported_and_never_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(root / "pipe.md")
    (root / "to-pipe.md").symlink_to("pipe.md")
    monkeypatch.chdir(root)  # the path of a socket is limited to about 100 characters
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.md")
        problems = {file.doc_path: file.problem for file in scan(root)}
    assert problems == {
        "pipe.md": "it is a named pipe, not a file",
        "socket.md": "it is a socket, not a file",
        "to-pipe.md": "link to a named pipe, not to a file",
    }


def test_names_that_are_not_utf8_get_a_printable_path(root: Path) -> None:
    folder = os.fsencode(root)
    try:
        with open(folder + b"/caf\xe9.md", "wb") as file:  # noqa: PTH123
            file.write(b"x")
    except OSError:
        pytest.skip("this file system refuses such names")
    (root / "caf\\udce9.md").write_text("its double", encoding="utf-8")
    files = scan(root)
    assert [file.doc_path for file in files if file.problem is None or "UTF-8" in file.problem] == [
        file.doc_path for file in files
    ]
    assert len({file.doc_path for file in files}) == 2
    assert sum(file.problem == "its name is not valid UTF-8; rename it" for file in files) == 1
    assert all(file.doc_path.encode("utf-8").decode("utf-8") == file.doc_path for file in files)


def test_a_missing_folder_and_a_file_instead_of_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(DocumentsFolderError, match=r"^ACME_RAG_DOCUMENTS: there is no folder .*gone"):
        scan(tmp_path / "gone")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(DocumentsFolderError, match=r"^ACME_RAG_DOCUMENTS: .*file is not a folder"):
        scan(tmp_path / "file")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DocumentsFolderError, match="cannot be listed"):
        scan(tmp_path / "loop")


@pytest.mark.parametrize(
    ("folder", "kind", "error"),
    [
        ("", DocumentsFolderError, PermissionError(errno.EACCES, "Permission denied")),
        ("sub", IncompleteListing, OSError(errno.EIO, "Input/output error")),
    ],
)
def test_a_folder_that_cannot_be_listed_stops_the_scan(
    root: Path, folder: str, kind: type[Exception], error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "sub").mkdir()
    (root / "a.md").write_text("x", encoding="utf-8")
    listed = os.scandir

    # Permissions do not stop root, which runs the tests in containers.
    def refuse(path: Path) -> object:
        if Path(path) == root / folder:
            raise error
        return listed(path)

    expected = pytest.raises(
        kind, match=rf"^ACME_RAG_DOCUMENTS: .*{folder} cannot be listed \({str(error.strerror).lower()}\)"
    )
    # For the scan alone: whoever deletes the folder of the test lists it too.
    with monkeypatch.context() as patched, expected as caught:
        patched.setattr(os, "scandir", refuse)
        scan(root)
    assert type(caught.value) is kind


def test_the_size_limit_is_exact_and_named(root: Path) -> None:
    (root / "a.md").write_bytes(b"x" * 1_000_001)
    assert len(read_bytes(only(root), 1_000_001)) == 1_000_001
    with pytest.raises(TooLarge, match=r"too large: 1\.000001 MB, the limit is 1 MB"):
        read_bytes(only(root), 1_000_000)


def test_what_changes_between_listing_and_reading_is_a_read_failure(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret", encoding="utf-8")
    path = root / "a.md"
    path.write_text("x", encoding="utf-8")
    file = only(root)
    path.unlink()
    with pytest.raises(ReadFailure, match="no such file"):
        read_bytes(file, 100)
    os.mkfifo(path)
    with pytest.raises(ReadFailure, match="named pipe"):
        read_bytes(file, 100)
    path.unlink()
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(ReadFailure, match="link"):
        read_bytes(file, 100)
    path.unlink()
    path.mkdir()
    with pytest.raises(ReadFailure, match="folder"):
        read_bytes(file, 100)
