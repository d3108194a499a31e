"""One file that holds everything but the code: the same bits in another process, or an error by name."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from normalised_networks import NETWORKS, normalised, posterior_of
from torch import nn

from bayesbin import BinaryPosterior, Ensemble
from bayesbin.core.files import CorruptFileError
from bayesbin.distributions import LowBitCategorical, Support
from bayesbin.nn import Classifier, Regressor, to_binary_
from bayesbin.posterior import LowBitPosterior, RealPosterior


def inputs(shape=(3,), rows=6):
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def ensemble():
    net = normalised()
    with torch.no_grad():
        net[5].bias.mul_(3.0)
    return Ensemble(Classifier(net, 9), posterior_of(net), 4, seed=3).calibrate(inputs(rows=30))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_predicts_the_same_bits(name, tmp_path):
    make, shape = NETWORKS[name]
    net, x = make(), inputs(shape)
    ensemble = Ensemble(Classifier(net, 9), posterior_of(net), 3).calibrate(inputs(shape, 30))
    ensemble.save(tmp_path / "e.safetensors")
    other = make()
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    for model in (Classifier(other, 1), other):
        loaded = Ensemble.load(tmp_path / "e.safetensors", model)
        assert torch.equal(loaded.predict(x).log_probs, ensemble.predict(x).log_probs)
        assert torch.equal(loaded.mode.outputs(x), ensemble.mode.outputs(x))
        assert loaded.digest == ensemble.digest and loaded.calibrated


def test_every_kind_of_content(tmp_path, ensemble):
    path, x = tmp_path / "e.safetensors", inputs()
    net = to_binary_(nn.Linear(3, 1))
    noise = RealPosterior(torch.tensor(-1.0), torch.tensor(0.5), Support("positive"))
    effect = RealPosterior(torch.zeros(1, 1), torch.ones(1, 1), Support("real"))
    q = BinaryPosterior(dict(posterior_of(net)), {"noise": noise, "e": effect}, {"weight": ["e"]})
    levels = LowBitPosterior({"weight": LowBitCategorical((-1, 0, 1), torch.randn(1, 3, 3))})
    for made, model in (
        (Ensemble(Regressor(net, 9), q, 5, 1), Regressor(net, 2)),
        (Ensemble(Regressor(net, 9), q, 5, 1).mode, Regressor(net, 2)),
        (Ensemble(net, levels, 5, 1).select([4, 1]), net),
        (Ensemble(net, levels, head={"kind": "normal", "noise": 0.1}), net),
        (Ensemble.join([ensemble, ensemble.select([2])]), normalised()),
        (Ensemble(net, q).calibrate(None), net),
    ):
        made.save(path)
        loaded = Ensemble.load(path, model)
        found, wanted = loaded.predict(x), made.predict(x)
        assert all(
            torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
            for a, b in zip(vars(found).values(), vars(wanted).values(), strict=True)
        )
        assert loaded.digest == made.digest and repr(loaded) == repr(made)
        assert loaded.calibrated == made.calibrated


SCRIPT = """
import sys, torch
from torch import nn
from bayesbin import Ensemble
from bayesbin.nn import to_binary_
torch.set_default_dtype(torch.float64)
net = to_binary_(nn.Sequential(
    nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
))
ensemble = Ensemble.load(sys.argv[1], net)
x = torch.randn(6, 3, generator=torch.Generator().manual_seed(4))
torch.save(ensemble.predict(x).log_probs, sys.argv[2])
ensemble.save(sys.argv[3])
"""


def test_another_process_predicts_and_writes_the_same(tmp_path, ensemble):
    """Fault E.2: a posterior alone lost biases, scales and statistics."""
    paths = [str(tmp_path / name) for name in ("e.safetensors", "log_probs", "again")]
    ensemble.save(paths[0])
    environment = os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", SCRIPT, *paths], check=True, env=environment)
    assert torch.equal(torch.load(paths[1]), ensemble.predict(inputs()).log_probs)
    assert Path(paths[2]).read_bytes() == Path(paths[0]).read_bytes()


def test_the_same_ensemble_is_the_same_bytes(tmp_path, ensemble):
    net = normalised()
    with torch.no_grad():
        net[5].bias.mul_(3.0)
    other = Ensemble(Classifier(net, 9), posterior_of(net), 4, seed=3).calibrate(inputs(rows=30))
    paths = [tmp_path / "a", tmp_path / "b"]
    ensemble.save(paths[0])
    other.save(paths[1])
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_scales_that_came_from_weights_are_restored(tmp_path):
    torch.manual_seed(0)
    net = to_binary_(nn.Sequential(nn.Linear(3, 2)), scale=0.7)
    ensemble = Ensemble(net, posterior_of(net), 2)
    ensemble.save(tmp_path / "e")
    other = to_binary_(nn.Sequential(nn.Linear(3, 2)), scale=0.25)
    loaded = Ensemble.load(tmp_path / "e", other)
    assert torch.equal(loaded.outputs(inputs()), ensemble.outputs(inputs()))
    assert other[0].scale == 0.25
    tensor = to_binary_(nn.Sequential(nn.Linear(3, 2)), scale=torch.full((2, 1), 0.7))
    with pytest.raises(ValueError, match="scale"):
        Ensemble.load(tmp_path / "e", tensor)


def other_layers(**changes):
    sizes = {"hidden": 6, "norm": nn.BatchNorm1d, "bias": True} | changes
    hidden = sizes["hidden"]
    return to_binary_(
        nn.Sequential(
            nn.Linear(3, hidden, bias=sizes["bias"]),
            sizes["norm"](hidden),
            nn.Tanh(),
            nn.Linear(hidden, 4),
            sizes["norm"](4),
            nn.Linear(4, 2),
        )
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden": 7}, r"'0.weight' has shape \(7, 3\), the posterior's \(6, 3\)"),
        ({"bias": False}, r"'0.bias' to be float64 of shape \(6,\); got nothing"),
        ({"norm": nn.Identity}, r"'1\.\w+' to be .* got nothing"),
        ({"norm": nn.LayerNorm}, r"'1\.\w+' to be .* got nothing"),
    ],
)
def test_another_architecture_is_refused_by_name(changes, words, tmp_path, ensemble):
    ensemble.save(tmp_path / "e")
    with pytest.raises(ValueError, match=words):
        Ensemble.load(tmp_path / "e", other_layers(**changes))


def test_more_than_the_architecture_is_refused(tmp_path, ensemble):
    ensemble.save(tmp_path / "e")
    net = normalised()
    net.append(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"expected '6\.\w+' to be nothing; got float64"):
        Ensemble.load(tmp_path / "e", net)
    with pytest.raises(ValueError, match=r"float64 of shape .* got float32"):
        Ensemble.load(tmp_path / "e", normalised().float())
    with pytest.raises(ValueError, match=r"outputs are of kind 'classes'.* got a Regressor"):
        Ensemble.load(tmp_path / "e", Regressor(normalised(), 9))
    with pytest.raises(ValueError, match="no binary weights"):
        Ensemble.load(tmp_path / "e", nn.Linear(3, 2))


# Damaged files


def test_every_truncation_and_flipped_byte_is_refused(tmp_path, ensemble):
    path = tmp_path / "e"
    ensemble.save(path)
    raw, model = path.read_bytes(), normalised()
    for size in (0, 7, 8, 100, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:size])
        with pytest.raises(CorruptFileError):
            Ensemble.load(path, model)
    (length,) = struct.unpack("<Q", raw[:8])
    for place in range(9, len(raw), 211):
        changed = bytearray(raw)
        changed[place] ^= 1
        path.write_bytes(bytes(changed))
        if place < 8 + length and raw[place : place + 1] == b" ":
            continue
        with pytest.raises(CorruptFileError):
            Ensemble.load(path, model)
    path.write_bytes(raw)
    assert Ensemble.load(path, model).digest == ensemble.digest


def with_header(raw, change):
    """The file with another header, under a digest that is right."""
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    content = json.loads(header["__metadata__"]["bayesbin"])
    change(content)
    text = json.dumps(content, sort_keys=True)
    digest = hashlib.sha256(text.encode())
    names = {"F64": "torch.float64", "I64": "torch.int64"}
    for name in sorted(name for name in header if name != "__metadata__"):
        entry = header[name]
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        digest.update(f"{name}|{names[entry['dtype']]}|{tuple(entry['shape'])}|".encode())
        digest.update(raw[start:end])
    header["__metadata__"] = {"bayesbin": text, "sha256": digest.hexdigest()}
    packed = json.dumps(header).encode()
    return struct.pack("<Q", len(packed)) + packed + raw[8 + length :]


def set_(key, value):
    return lambda content: content["members"][0].update({key: value})


CHANGES = {
    "nothing": None,
    "seed": set_("seed", 4),
    "seed of another kind": set_("seed", "3"),
    "draws": set_("draws", [0, 1, 2, 9]),
    "fewer draws": set_("draws", [0, 1, 2]),
    "no draws": set_("draws", []),
    "statistics of other draws": set_("statistics", [5, 6, 7, 8, None]),
    "no statistics": set_("statistics", None),
    "head": set_("head", {"kind": "outputs"}),
    "unknown head": set_("head", {"kind": "x"}),
    "scales": set_("scales", {}),
    "scale that is no number": set_("scales", {"0.weight": "x"}),
    "origin": set_("origin", "0" * 64),
    "posterior": lambda content: content["members"][0]["posterior"].update(signs=["0.weight"]),
    "posterior of nothing": lambda content: content["members"][0].update(posterior=3),
    "no members": lambda content: content.update(members=[]),
    "members of another kind": lambda content: content.update(members=7),
    "missing entry": lambda content: content["members"][0].pop("seed"),
    "example": lambda content: content.update(example=[[["a"], "float64"]]),
    "type": lambda content: content.update(example=[[[3], "nn"]]),
    "format": lambda content: content.update(format="bayesbin posterior"),
    "version": lambda content: content.update(version=99),
    "list": lambda content: content.clear(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_right_digest_over_wrong_contents_is_refused(name, tmp_path, ensemble):
    path = tmp_path / "e"
    ensemble.save(path)
    change = CHANGES[name]
    path.write_bytes(with_header(path.read_bytes(), change or (lambda content: None)))
    if change is None:
        Ensemble.load(path, normalised())
        return
    kind = ValueError if name == "scales" else CorruptFileError
    with pytest.raises(kind):
        Ensemble.load(path, normalised())


def test_foreign_files_are_refused(tmp_path, ensemble):
    path = tmp_path / "q"
    posterior_of(normalised()).save(path)
    with pytest.raises(CorruptFileError, match="not 'bayesbin ensemble' version 1"):
        Ensemble.load(path, normalised())
    ensemble.save(path)
    with pytest.raises(CorruptFileError, match="not 'bayesbin posterior'"):
        BinaryPosterior.load(path)
    path.write_bytes(b"text")
    with pytest.raises(CorruptFileError, match="not an ensemble"):
        Ensemble.load(path, normalised())


def test_a_failed_save_keeps_the_old_file(tmp_path, ensemble, monkeypatch):
    path = tmp_path / "e"
    ensemble.save(path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        ensemble.select([0]).save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["e"]
    with pytest.raises(OSError):
        ensemble.save(tmp_path / "none" / "e")
