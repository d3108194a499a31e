"""Atomic writing: old or new, whole, and nothing left behind."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bayesbin.core import files
from bayesbin.core.files import CorruptFileError, remove_stale_temporaries, sha256, write_atomically


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
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "none" / "a.bin", b"")


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
    assert remove_stale_temporaries(tmp_path, minutes=15) == [stale]
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
