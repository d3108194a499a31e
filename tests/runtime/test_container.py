"""The container: arrays come back as they were, and whatever is wrong is one error of one class."""

from __future__ import annotations

import hashlib
import os
import struct

import numpy as np
import pytest

from bayesbin.core.files import CorruptFileError
from bayesbin.runtime import container
from bayesbin.runtime.container import ArrayParts

ARRAYS = {
    "a": np.arange(7, dtype=np.uint8),
    "b": np.arange(6.0, dtype=">f4").reshape(2, 3).T,
    "c": np.full((1, 1, 2), 2**63, dtype=np.uint64),
    "d": np.array([-1.5, np.inf]),
    "e": np.arange(-3, 3).reshape(3, 2)[::-1],
    "none": np.zeros((2, 0, 3), dtype=np.float32),
}


def signed(raw: bytes) -> bytes:
    """The same with its length and a digest that fit."""
    raw = raw[:16] + struct.pack("<Q", len(raw)) + raw[24:]
    return raw[:24] + hashlib.sha256(raw[:24] + raw[56:]).digest() + raw[56:]


def test_arrays_come_back_as_they_were_and_cannot_be_changed(tmp_path):
    path = tmp_path / "any.bbn"
    container.write(path, {"text": "µ", "number": 0.1}, ARRAYS)
    found = container.read(path)
    assert found.header == {"text": "µ", "number": 0.1} and found.size == path.stat().st_size
    for name, array in ARRAYS.items():
        assert np.array_equal(found.arrays[name], array)
        assert found.arrays[name].dtype == array.dtype.newbyteorder("=")
        with pytest.raises(ValueError, match="read-only"):
            found.arrays[name][...] = 0
    raw = path.read_bytes()
    assert signed(raw) == raw and bytes.fromhex(found.digest) == raw[24:56]
    for name, offset in (("a", 0), ("c", 2)):
        start = raw.index(ARRAYS[name].tobytes())
        assert start % 64 == 0, offset


def test_an_array_may_be_made_while_it_is_written(tmp_path):
    whole = np.arange(12, dtype=np.float32).reshape(4, 3)
    container.write(tmp_path / "whole", {}, {"x": whole})
    container.write(tmp_path / "rows", {}, {"x": ArrayParts("<f4", (4, 3), iter(whole))})
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "rows").read_bytes()
    with pytest.raises(ValueError, match="48 bytes of 'x'"):
        container.write(tmp_path / "short", {}, {"x": ArrayParts("<f4", (4, 3), iter(whole[:3]))})
    assert sorted(os.listdir(tmp_path)) == ["rows", "whole"]


def test_what_a_file_does_not_hold_is_refused(tmp_path):
    with pytest.raises(ValueError, match="got 'x' of <f2"):
        container.write(tmp_path / "a", {}, {"x": np.zeros(2, dtype=np.float16)})
    for header in ({"x": object()}, {"x": float("nan")}, {"x": "\ud800"}, {"x": {(1, 2): 3}}):
        with pytest.raises(ValueError, match="JSON can hold"):
            container.write(tmp_path / "a", header, {})
    deep: list = []
    for _ in range(10_000):
        deep = [deep]
    with pytest.raises(ValueError, match="JSON can hold"):
        container.write(tmp_path / "a", {"x": deep}, {})
    assert not os.listdir(tmp_path)


def refused(path, raw: bytes, match: str) -> None:
    path.write_bytes(raw)
    with pytest.raises(CorruptFileError, match=match) as caught:
        container.read(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_other_files_and_versions(tmp_path):
    path = tmp_path / "any.bbn"
    container.write(path, {}, ARRAYS)
    raw = path.read_bytes()
    older = signed(raw[:8] + struct.pack("<I", 1) + raw[12:])
    refused(path, older, "got 1; it was packed by bayesbin 0.1, .* pack it again")
    refused(path, signed(raw[:8] + struct.pack("<I", 3) + raw[12:]), "got 3; update bayesbin")
    refused(path, signed(raw + b"\0"), "end at byte")
    refused(path, raw + b"\0", "bytes as it says")
    refused(path, raw[:-1] + b"\1", "do not match their digest")
    refused(path, raw.replace(b"\r\n", b"\n"), "another file")  # sent as text
    refused(path, b"", "another file; name a .bbn")
    gap = raw.index(ARRAYS["c"].tobytes()) - 1
    refused(path, signed(raw[:gap] + b"\1" + raw[gap + 1 :]), "zeros before 'c'")
    with pytest.raises(FileNotFoundError):
        container.read(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        container.read(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_pipes_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(CorruptFileError, match="a pipe or a device"):
            container.read(path)


@pytest.mark.parametrize(
    "text",
    [
        b"[]", b"", b'{"a":0,"a":0}', b'{"arrays":[],"a":NaN}', b'{"a":' * 5000, b"[" * 100_000,
        b'{"arrays":[],"a":"\\ud800"}', b'{"arrays":[],"a":1' + b"0" * 9000 + b"}", b"\xff\xfe{}",
        b'{"arrays":[{"name":"x","dtype":"|u1","shape":[99999999999],"offset":0}]}',
        b'{"arrays":[{"name":"x","dtype":"|O","shape":[1],"offset":192}]}',
        b'{"arrays":[{"name":"x","dtype":[],"shape":[1],"offset":192}]}',
        b'{"arrays":[{"name":"x","dtype":"|u1","shape":[],"offset":192}]}',
        b'{"arrays":[{"name":"x","dtype":"|u1","shape":[0.0],"offset":192}]}',
        b'{"arrays":[{"name":["x"],"dtype":"|u1","shape":[0],"offset":192}]}',
        b'{"arrays":{}}', b'{"arrays":[1]}', b'{"a":1e999}', b"{}",
    ],
)  # fmt: skip
def test_a_header_that_is_none_is_refused(text, tmp_path):
    fixed = struct.pack("<8sIIQ32s", container.MAGIC, 2, len(text), 0, bytes(32))
    refused(tmp_path / "any.bbn", signed(fixed + text), "not one of a model")


def test_truncation_anywhere_is_refused(tmp_path):
    path = tmp_path / "any.bbn"
    container.write(path, {"a": 1}, ARRAYS)
    raw = path.read_bytes()
    for size in range(0, len(raw), 3):
        refused(path, raw[:size], "copy it again|another file")
        if size >= 56:  # even where what is left says that it is all
            refused(path, signed(raw[:size]), "not one of a model|bytes as it says")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "any.bbn"
    container.write(path, {"a": 1}, ARRAYS)
    before = path.read_bytes()

    def full(*args):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        container.write(path, {"a": 2}, ARRAYS)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["any.bbn"]
