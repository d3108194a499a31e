"""Checkpoints: every damage is found and named, and the newest whole one is used."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bayesbin.core.files import CorruptFileError
from bayesbin.infer.checkpoint import (
    CheckpointWarning,
    _digest,
    _json_line,
    checkpoints,
    load_latest,
    read_checkpoint,
    save_checkpoint,
)


def state(epoch: int = 1, batch: int = 0, step: int = 10) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "batch": batch,
        "step": step,
        "configuration": {"seed": "0"},
        "module": OrderedDict(w=torch.full((3,), float(epoch)), half=torch.ones(2).bfloat16()),
        "schedulers": [{"milestones": Counter([3]), "last_lr": [0.1]}],
        "text": "λ",
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flip(path: Path, position: int, bit: int = 0) -> None:
    payload = bytearray(path.read_bytes())
    payload[position] ^= 1 << bit
    path.write_bytes(payload)


def test_round_trip(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "new" / "folder", state(5))
    assert path.name == "epoch-000005.ckpt"
    loaded = load_latest(path.parent)
    assert loaded is not None
    assert torch.equal(loaded["module"]["w"], torch.full((3,), 5.0))
    assert loaded["module"]["half"].dtype == torch.bfloat16
    assert loaded["schedulers"] == state()["schedulers"] and loaded["text"] == "λ"


def test_header_is_readable_without_torch(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, state(5, batch=3, step=53))
    header = json.loads(path.read_bytes().split(b"\n")[0])
    assert path.name == "epoch-000006-step-000053.ckpt"
    assert header["format"] == "bayesbin checkpoint" and header["schema"] == 2
    assert (header["epoch"], header["step"]) == (5, 53)
    assert header["torch"] == torch.__version__
    assert {"sha256", "size", "bayesbin", "configuration"} <= set(header)


def test_nothing_to_load(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "missing") is None


def test_names_sort_by_age(tmp_path: Path) -> None:
    saved = [
        save_checkpoint(tmp_path, state(*key), keep=10).name
        for key in ((4, 0, 40), (4, 3, 43), (4, 7, 47), (5, 0, 50), (5, 1, 51))
    ]
    assert names(tmp_path) == saved
    assert [path.name for path in checkpoints(tmp_path)] == saved
    save_checkpoint(tmp_path, state(1_000_000), keep=10)  # one digit more: text would sort it first
    assert checkpoints(tmp_path)[-1].name == "epoch-1000000.ckpt"


def test_keeps_the_newest_two(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for epoch in range(1, 5):
        save_checkpoint(tmp_path, state(epoch))
    assert names(tmp_path) == ["epoch-000003.ckpt", "epoch-000004.ckpt", "notes.txt"]
    with pytest.raises(ValueError, match="keep to be a whole number of at least 1; got 0"):
        save_checkpoint(tmp_path, state(), keep=0)


def test_a_damaged_later_file_does_not_push_out_a_valid_one(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        save_checkpoint(tmp_path, state(epoch), keep=3)
    flip(tmp_path / "epoch-000003.ckpt", -1)
    save_checkpoint(tmp_path, state(2, batch=1, step=21))
    assert names(tmp_path) == [
        "epoch-000002.ckpt",
        "epoch-000003-step-000021.ckpt",
        "epoch-000003.ckpt",
    ]


def test_every_flipped_bit_of_the_header_and_samples_of_the_rest(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, state())
    whole = path.read_bytes()
    header = whole.index(b"\n") + 1
    positions = [*range(header), *np.linspace(header, len(whole) - 1, 200).astype(int)]
    for position in positions:
        flip(path, position, position % 8)
        with pytest.raises(CorruptFileError) as caught:
            read_checkpoint(path)
        assert caught.value.path == path
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "damage", [b"", b"\n", b"{}\n", b"[1]\n", b"not a checkpoint", b"\x80\x02}q\x00.", b"\n" * 9]
)
def test_foreign_file(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "epoch-000001.ckpt"
    path.write_bytes(damage)
    with pytest.raises(CorruptFileError, match=r"epoch-000001\.ckpt: expected .*, got "):
        read_checkpoint(path)


@pytest.mark.parametrize("change", [slice(0, -1), slice(0, 300), slice(0, 10), slice(0, 0)])
def test_truncated(tmp_path: Path, change: slice) -> None:
    path = save_checkpoint(tmp_path, state())
    path.write_bytes(path.read_bytes()[change])
    with pytest.raises(CorruptFileError):
        read_checkpoint(path)


def test_trailing_bytes(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, state())
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CorruptFileError, match="bytes of state"):
        read_checkpoint(path)


def test_damaged_newest_is_named_and_the_previous_used(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(1))
    newest = save_checkpoint(tmp_path, state(2))
    flip(newest, -100)
    with pytest.warns(CheckpointWarning, match=r"epoch-000002\.ckpt: expected SHA-256"):
        loaded = load_latest(tmp_path)
    assert loaded is not None and loaded["epoch"] == 1


def test_all_damaged(tmp_path: Path) -> None:
    for epoch in (1, 2):
        flip(save_checkpoint(tmp_path, state(epoch)), -100)
    with pytest.raises(CorruptFileError, match=r"every one \(2\).*000002.*000001") as caught:
        load_latest(tmp_path)
    assert caught.value.path == tmp_path


def test_unknown_schema_is_not_passed_over(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(1))
    path = save_checkpoint(tmp_path, state(2))
    line, _, payload = path.read_bytes().partition(b"\n")
    header = {**json.loads(line), "schema": 3, "bayesbin": "9.0"}
    del header["sha256"]
    header["sha256"] = _digest(header, payload)
    path.write_bytes(_json_line(header) + payload)
    with pytest.raises(ValueError, match=r"schema 2, got 3, written by bayesbin 9\.0"):
        load_latest(tmp_path)


def test_pickled_code_is_refused_on_both_sides(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="tensors, numbers, strings"):
        save_checkpoint(tmp_path, {**state(), "extra": os.system})
    with pytest.raises(TypeError, match="NumPy"):
        save_checkpoint(tmp_path, {**state(), "lr": np.float64(0.1)})
    assert names(tmp_path) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failed_save_keeps_the_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    for epoch in (1, 2):
        save_checkpoint(tmp_path, state(epoch))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="No space"):
            save_checkpoint(tmp_path, state(3))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_latest(tmp_path)
    assert loaded is not None and loaded["epoch"] == 2


def test_saving_sweeps_stale_temporaries(tmp_path: Path) -> None:
    stale, fresh = (tmp_path / f".epoch-000009.ckpt.{c * 16}.tmp" for c in "ab")
    for path in (stale, fresh):
        path.write_bytes(b"half a checkpoint")
    os.utime(stale, (0, 0))
    save_checkpoint(tmp_path, state())
    assert not stale.exists() and fresh.exists()
