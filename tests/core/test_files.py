"""Atomic writing: old or new, whole, and nothing left behind."""

from __future__ import annotations

import builtins
import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bayesbin.core import files
from bayesbin.core.files import (
    LOCK,
    CorruptFileError,
    FolderInUseError,
    contents,
    one_writer,
    remove_temporaries,
    sha256,
    write_atomically,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")
    write_atomically(str(path), b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a.bin"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_atomically(tmp_path / "atomic", b"")
    modes = {(tmp_path / name).stat().st_mode for name in ("plain", "atomic")}
    assert len(modes) == 1


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failed_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")

    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(type(error)):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_the_data_is_on_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    write_atomically(tmp_path / "a.bin", b"new")
    assert calls == ["fsync", "replace", "fsync"]


def test_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        write_atomically(tmp_path / "none" / "a.bin", b"")
    assert caught.value.filename == str(tmp_path / "none" / "a.bin")


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO]
)
def test_an_error_of_the_system_names_the_path_that_the_user_knows(
    call: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number), "some other name")

    if call == "write":
        monkeypatch.setattr(builtins, "open", fail)
    else:
        monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match=r"a\.bin") as caught:
        write_atomically(tmp_path / "a.bin", b"new")
    assert caught.value.errno == number and caught.value.filename == str(tmp_path / "a.bin")
    assert names(tmp_path) == []


def test_only_stale_temporaries_are_swept(tmp_path: Path) -> None:
    stale, fresh, foreign = (
        tmp_path / ".a.ckpt.0123456789abcdef.tmp",
        tmp_path / ".b.ckpt.0123456789abcdef.tmp",
        tmp_path / ".theirs.tmp",
    )
    for path in (stale, fresh, foreign):
        path.write_bytes(b"")
    hour_ago = time.time() - 3600
    for path in (stale, foreign):
        os.utime(path, (hour_ago, hour_ago))
    assert remove_temporaries(tmp_path, minutes=15) == [stale]
    assert names(tmp_path) == [fresh.name, foreign.name]


def test_temporaries_are_named_as_the_sweep_expects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(files.os, "replace", lambda a, b: seen.append(Path(a).name))
    write_atomically(tmp_path / "a.ckpt", b"")
    assert files._TEMPORARY.fullmatch(seen[0])


def test_error_names_file_and_reason() -> None:
    error = pickle.loads(pickle.dumps(CorruptFileError("a.ckpt", "expected 9 bytes, got 7.")))
    assert isinstance(error, CorruptFileError) and issubclass(CorruptFileError, ValueError)
    assert (error.path, error.reason) == (Path("a.ckpt"), "expected 9 bytes, got 7.")
    assert str(error) == "a.ckpt: expected 9 bytes, got 7."


def test_digest() -> None:
    assert sha256(b"abc").startswith("ba7816bf")


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")
def test_sigkill_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    script = (
        "import sys; from bayesbin.core.files import write_atomically\n"
        "for i in range(10**9): write_atomically(sys.argv[1], bytes([i % 256]) * 2_000_000)"
    )
    for delay in (0.05, 0.11, 0.17):
        process = subprocess.Popen([sys.executable, "-c", script, str(path)])
        deadline = time.monotonic() + 30
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        payload = path.read_bytes()
        assert payload == payload[:1] * 2_000_000
        path.unlink()


# One writer


@pytest.mark.parametrize("place", [".", "new", "new/and/deep"])
def test_a_folder_that_stays_empty_is_as_it_was_before(place: str, tmp_path: Path) -> None:
    folder = tmp_path / place
    with one_writer(folder):
        assert (folder / LOCK).is_file() and contents(folder) == []
    assert names(tmp_path) == []
    with pytest.raises(ZeroDivisionError), one_writer(folder):
        1 / 0  # noqa: B018
    assert names(tmp_path) == []
    with one_writer(folder):
        (folder / "kept").touch()
    assert names(folder) == ["kept"]


def test_the_second_writer_is_told_who_the_first_is(tmp_path: Path) -> None:
    program = (
        "import sys, time; from bayesbin.core.files import one_writer\n"
        "with one_writer(sys.argv[1]):\n"
        "    print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None and first.stdout.readline()
        with pytest.raises(FolderInUseError, match=f"process {first.pid} on .* since 20"):
            one_writer(tmp_path / "run").__enter__()
        first.kill()  # which leaves the file of the lock, and no lock
        first.wait()
    assert json.loads((tmp_path / "run" / LOCK).read_text())["process"] == first.pid
    with one_writer(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / LOCK).read_text())["process"] == os.getpid()
    assert names(tmp_path / "run") == []


@pytest.mark.parametrize("said", [b"", b"{}", b"[1]", b"\xff", b"null"])
def test_a_holder_that_has_not_said_who_it_is(said: bytes, tmp_path: Path) -> None:
    with one_writer(tmp_path):
        (tmp_path / LOCK).write_bytes(said)
        with pytest.raises(FolderInUseError, match="another process has been writing"):
            one_writer(tmp_path).__enter__()


def test_one_of_many_threads_is_in_the_folder_at_a_time(tmp_path: Path) -> None:
    inside, most, told, entered = [0], [0], [0], [0]

    def enter() -> None:
        for _ in range(30):
            try:
                with one_writer(tmp_path / "run"):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    entered[0] += 1
                    inside[0] -= 1
            except FolderInUseError:
                told[0] += 1

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and entered[0] + told[0] == 120 and entered[0] > 0
    assert not (tmp_path / "run").exists() or names(tmp_path / "run") == []


def test_the_lock_sweeps_temporaries_of_every_age_in_all_subfolders(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    left = [tmp_path / ".run.json.0123456789abcdef.tmp",
            tmp_path / "checkpoints" / ".a.ckpt.0123456789abcdef.tmp"]  # fmt: skip
    kept = [tmp_path / ".theirs.tmp", tmp_path / ".run.json.0123456789abcdeF.tmp"]
    for path in (*left, *kept):
        path.write_bytes(b"")
    assert contents(tmp_path) == sorted(["checkpoints", *(path.name for path in kept)])
    with one_writer(tmp_path):
        assert not any(path.exists() for path in left) and all(path.exists() for path in kept)


@pytest.mark.skipif(os.name == "nt", reason="POSIX")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_and_used(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.warns(UserWarning, match="cannot lock files"), one_writer(tmp_path / "run"):
        (tmp_path / "run" / "file").touch()
    assert names(tmp_path / "run") == ["file"]


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OSError, match="file"):
            one_writer(folder).__enter__()
    with pytest.raises(NotADirectoryError):
        contents(tmp_path / "file")
    assert contents(tmp_path / "nowhere") == []
    assert names(tmp_path) == ["file"]
