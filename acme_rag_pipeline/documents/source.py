"""Listing and reading the documents folder: every file gets a row, and nothing outside of the folder is ever opened."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from acme_rag_pipeline.errors import UserError

IGNORED_PREFIXES = (".", "~$")  # hidden files and folders, and the lock files of office programs
_READ_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_BINARY", "O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"))
_BLOCK = 1 << 20


class DocumentsFolderError(UserError, ValueError):
    """The documents folder is missing, is not a folder, or cannot be listed; the message says what to do."""


class IncompleteListing(DocumentsFolderError):
    """A sub-folder could not be listed, so files missing from the listing may well exist."""


class ReadFailure(Exception):
    """The file could not be read right now; says nothing about its content."""


class TooLarge(Exception):
    """The file is larger than allowed."""


@dataclass(frozen=True)
class SourceFile:
    """One entry of the documents folder.

    Attributes:
        doc_path: POSIX path relative to the folder; always valid Unicode.
        path: where its bytes are (for a link: the file that it leads to).
        size: bytes, 0 where there is nothing to measure.
        mtime_ns: time of the last change.
        problem: why it must not be opened, or None.
        failure: why it cannot be opened now, which says nothing about its content; or None.
        ctime_ns: when the file system last noted a change of it (of a link: or of the link itself).
        is_refused_folder: it stands for a sub-folder that may not be listed, so for files that nobody can name today.
    """

    doc_path: str
    path: Path
    size: int
    mtime_ns: int
    problem: str | None
    failure: str | None = None
    ctime_ns: int = 0
    is_refused_folder: bool = False


def scan(root: Path) -> list[SourceFile]:
    """Everything in the folder, sorted by `doc_path`.

    Hidden files and folders and office lock files are left out, and so is a file that vanishes during the listing. A
    sub-folder that may not be listed (`lost+found`) is one entry.

    Raises:
        DocumentsFolderError: `root` is missing, is not a folder, or cannot be listed.
        IncompleteListing: a sub-folder cannot be listed, but for its permissions.
    """
    real_root = _real_root(root)
    files: dict[str, SourceFile] = {}
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            entries = _listing(folder)
        except OSError as error:
            if folder == root or not isinstance(error, PermissionError):
                raise _cannot_list(folder, root, error) from error
            refused = _refused_folder(folder, root, error)
            files[refused.doc_path] = refused
            continue
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                    continue
                file = _source_file(entry, root, real_root)
            except FileNotFoundError:
                continue
            except PermissionError as error:
                file = SourceFile(_name(entry.path, root), Path(entry.path), 0, 0, None, _reason(error))
            except OSError as error:
                raise _cannot_list(folder, root, error) from error
            # The escaped form of a broken name can be the real name of another file.
            while file.doc_path in files:
                file = replace(file, doc_path=f"{file.doc_path} (again)")
            files[file.doc_path] = file
    return [files[doc_path] for doc_path in sorted(files)]


def read_bytes(file: SourceFile, max_bytes: int) -> bytes:
    """The file's content.

    Args:
        file: a row of `scan` without a problem.
        max_bytes: read no more than this.

    Raises:
        ReadFailure: it vanished, may not be read, changed during the reading, or the disk reports an error.
        TooLarge: it is larger than `max_bytes`.
    """
    if file.failure is not None:
        raise ReadFailure(file.failure)
    try:
        # Between the listing and now the name may have become a link (O_NOFOLLOW) or a pipe (O_NONBLOCK).
        descriptor = os.open(file.path, _READ_FLAGS)
    except OSError as error:
        reason = "it became a link after the listing" if error.errno == errno.ELOOP else _reason(error)
        raise ReadFailure(reason) from error
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise ReadFailure(f"it became {_kind(before.st_mode)} after the listing")
        if before.st_size > max_bytes:
            raise TooLarge(_too_large(before.st_size, max_bytes))
        data = bytearray()
        while block := os.read(descriptor, min(_BLOCK, max_bytes + 1 - len(data))):
            data += block
            if len(data) > max_bytes:
                raise TooLarge(_too_large(len(data), max_bytes))
        after = os.fstat(descriptor)
    except OSError as error:
        raise ReadFailure(_reason(error)) from error
    finally:
        os.close(descriptor)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise ReadFailure("it was being written while it was read")
    return bytes(data)


def _real_root(root: Path) -> str:
    try:
        real = os.path.realpath(root, strict=True)
        if not stat.S_ISDIR(os.stat(real).st_mode):  # noqa: PTH116
            raise DocumentsFolderError(
                f"ACME_RAG_DOCUMENTS: {root} is not a folder; name the folder that holds the documents"
            )
    except FileNotFoundError as error:
        raise DocumentsFolderError(
            f"ACME_RAG_DOCUMENTS: there is no folder {root}; create it or correct the path (is a mount missing?)"
        ) from error
    except OSError as error:
        raise _cannot_list(root, root, error) from error
    return real


def _listing(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if not entry.name.startswith(IGNORED_PREFIXES)]
    return sorted(found, key=lambda entry: entry.name)


def _refused_folder(folder: Path, root: Path, error: OSError) -> SourceFile:
    problem = f"the folder may not be listed ({_reason(error)}); check its permissions, or move it out of the documents"
    return SourceFile(_name(folder, root), folder, 0, 0, problem, is_refused_folder=True)


def _name(path: str | Path, root: Path) -> str:
    return _printable(Path(path).relative_to(root).as_posix())


def _cannot_list(folder: Path, root: Path, error: OSError) -> DocumentsFolderError:
    if folder == root:
        return DocumentsFolderError(
            f"ACME_RAG_DOCUMENTS: {root} cannot be listed ({_reason(error)}); check its permissions and the mount"
        )
    return IncompleteListing(
        f"ACME_RAG_DOCUMENTS: the sub-folder {_printable(str(folder))} cannot be listed ({_reason(error)}), so nothing "
        "was changed; check its permissions, or move it out of the documents folder"
    )


def _source_file(entry: os.DirEntry[str], root: Path, real_root: str) -> SourceFile:
    path = Path(entry.path)
    name = path.relative_to(root).as_posix()
    if not _is_unicode(name):
        problem: str | None = "its name is not valid UTF-8; rename it"
        return _measured(_printable(name), path, entry.stat(follow_symlinks=False), problem)
    if entry.is_symlink():
        return _link(name, path, entry, real_root)
    try:
        found = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        raise
    except OSError as error:
        return SourceFile(name, path, 0, 0, None, _reason(error))
    problem = None if stat.S_ISREG(found.st_mode) else f"it is {_kind(found.st_mode)}, not a file"
    return _measured(name, path, found, problem)


def _link(name: str, path: Path, entry: os.DirEntry[str], real_root: str) -> SourceFile:
    own = entry.stat(follow_symlinks=False)
    try:
        target = os.path.realpath(path, strict=True)
        if os.path.commonpath((real_root, target)) != real_root:
            return _measured(name, path, own, "link leads out of the documents folder")
        found = os.stat(target)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return _measured(name, path, own, f"broken link: there is no {_printable(os.readlink(path))}")  # noqa: PTH115
    except OSError as error:
        if error.errno == errno.ELOOP:
            return _measured(name, path, own, "link loop: it leads back to itself")
        # A file behind a folder that may not be entered today, or on a disk that is away: not a file that is gone.
        return SourceFile(name, path, 0, 0, None, f"link: {_reason(error)}")
    except ValueError:  # on Windows, another drive
        return _measured(name, path, own, "link leads out of the documents folder")
    if stat.S_ISDIR(found.st_mode):
        inside = Path(target).relative_to(real_root).as_posix()
        return _measured(name, path, own, f"link to the folder {_printable(inside)}, which is not followed")
    if not stat.S_ISREG(found.st_mode):
        return _measured(name, path, own, f"link to {_kind(found.st_mode)}, not to a file")
    file = _measured(name, Path(target), found, None)
    return replace(file, ctime_ns=max(file.ctime_ns, own.st_ctime_ns))


def _measured(name: str, path: Path, found: os.stat_result, problem: str | None) -> SourceFile:
    size = found.st_size if stat.S_ISREG(found.st_mode) else 0
    return SourceFile(name, path, size, found.st_mtime_ns, problem, ctime_ns=found.st_ctime_ns)


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFDIR: "a folder",
        stat.S_IFLNK: "a link",
    }
    return kinds.get(stat.S_IFMT(mode), "a special file")


def _reason(error: OSError) -> str:
    # Without the path that str(error) carries: the reason is stored beside the path and compared between runs.
    return (error.strerror or type(error).__name__).lower()


def _too_large(size: int, max_bytes: int) -> str:
    # Not rounded: a file one byte over the limit must not read "25 MB, the limit is 25 MB".
    sizes = " MB, the limit is ".join(f"{size / 1e6:.6f}".rstrip("0").rstrip(".") for size in (size, max_bytes))
    return f"too large: {sizes} MB; split it or raise ACME_RAG_DOCUMENT__MAX_MEGABYTES"


def _is_unicode(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
