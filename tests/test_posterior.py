"""BinaryPosterior: a frozen mapping, reproducible draws, numbers, and files that are whole or refused."""

from __future__ import annotations

import itertools
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import safetensors.torch
import stats as stats_module
import torch
from scipy.stats import norm
from stats import assert_within_standard_errors
from torch import nn

from bayesbin import BinaryPosterior
from bayesbin.core import canonical
from bayesbin.core.files import CorruptFileError
from bayesbin.distributions import SignBernoulli, Support
from bayesbin.nn import BinaryLinear, to_binary_
from bayesbin.posterior import RealPosterior
from bayesbin.posterior import draws as draws_module
from bayesbin.posterior.file import to_bytes


def example(dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    signs = {
        "0.weight": torch.randn(3, 4, generator=generator, dtype=torch.float64).to(dtype),
        "scalar": torch.tensor(0.5, dtype=dtype),
        "empty": torch.zeros(0, 2, dtype=dtype),
        "saturated": torch.tensor([40.0, -40.0, 8.5, 0.0], dtype=dtype),
    }

    def distribution(loc, scale, support):
        return RealPosterior(
            torch.tensor(loc, dtype=dtype), torch.tensor(scale, dtype=dtype), support
        )

    real = {
        "noise": distribution(-1.0, 0.3, Support("positive")),
        "share": distribution([0.2, -2.0], [0.1, 1.0], Support("interval", (-1.5, 3.0))),
        "bias": distribution([[1.0]], [[2.0]], Support("real")),
    }
    return BinaryPosterior(signs, real)


def network():
    return to_binary_(nn.Sequential(nn.Linear(4, 3), nn.Tanh()))


# The mapping


def test_it_is_a_mapping():
    q = example()
    assert list(q) == ["0.weight", "scalar", "empty", "saturated"] == list(q.keys())
    assert len(q) == 4 and "scalar" in q and "noise" not in q
    assert all(isinstance(distribution, SignBernoulli) for distribution in q.values())
    assert q.num_weights == 12 + 1 + 0 + 4
    assert "17 weights" in repr(q) and "0.weight: (3, 4)" in repr(q) and "noise" in repr(q)
    with pytest.raises(KeyError):
        q["other"]
    with pytest.raises(TypeError):
        q["scalar"] = q["scalar"]


def test_it_is_frozen_by_value():
    natural = torch.tensor([1.0, 2.0], requires_grad=True)
    given = {"w": natural}
    q = BinaryPosterior(given)
    with torch.no_grad():
        natural.zero_()
    given["v"] = natural
    assert q["w"].natural.tolist() == [1.0, 2.0] and not q["w"].natural.requires_grad
    assert list(q) == ["w"]
    distribution = SignBernoulli(natural=torch.ones(2))
    q = BinaryPosterior({"w": distribution})
    distribution.natural.zero_()
    assert q["w"].natural.tolist() == [1.0, 1.0]


def test_construction_errors():
    with pytest.raises(ValueError, match="at least one site of signs"):
        BinaryPosterior({})
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="natural parameters of 'w' are finite"):
            BinaryPosterior({"w": torch.tensor([0.0, bad])})
    with pytest.raises(ValueError, match=r"sites \['w'\] are given both as signs and as real"):
        BinaryPosterior({"w": torch.zeros(1)}, {"w": example().real["noise"]})


def test_pickle_and_dtype():
    q = pickle.loads(pickle.dumps(example()))
    assert torch.equal(q["0.weight"].natural, example()["0.weight"].natural)
    assert example().to(torch.float32)["scalar"].natural.dtype == torch.float32
    assert example().to(torch.bfloat16).real["noise"].loc.dtype == torch.bfloat16


# Draws


def test_a_draw_is_a_function_of_seed_index_and_site():
    q = example()
    first, again = q.sample(7, seed=3), q.sample(7, seed=3)
    assert list(first) == [*q, *q.real]
    assert all(torch.equal(first[s], again[s]) for s in first)
    alone = BinaryPosterior({"0.weight": q["0.weight"]})
    assert torch.equal(alone.sample(7, seed=3)["0.weight"], first["0.weight"])
    reordered = BinaryPosterior({s: q[s] for s in reversed(list(q))}, q.real)
    assert all(torch.equal(reordered.sample(7, seed=3)[s], first[s]) for s in first)
    torch.rand(10)  # no hidden stream
    np.random.default_rng().random()
    assert torch.equal(q.sample(7, seed=3)["0.weight"], first["0.weight"])
    assert torch.equal(q.sample_real("noise", 7, seed=3), first["noise"])


def test_other_seeds_indices_and_sites_are_other_draws():
    q = BinaryPosterior({name: torch.zeros(64) for name in ("a", "b")})
    draws = [q.signs(i, seed=s)[name] for i in range(3) for s in range(3) for name in ("a", "b")]
    assert all(not torch.equal(x, y) for x, y in itertools.combinations(draws, 2))


def test_draws_are_the_same_in_every_dtype_and_layout():
    natural = torch.randn(6, 5)
    reference = BinaryPosterior({"w": natural}).signs(0)["w"]
    transposed = BinaryPosterior({"w": natural.t().contiguous().t()}).signs(0)["w"]
    assert torch.equal(transposed, reference)
    assert torch.equal(BinaryPosterior({"w": natural.float()}).signs(0)["w"].double(), reference)


def test_frequency_of_plus_one():
    natural = torch.tensor([-2.0, -0.3, 0.0, 0.7, 1.5, 8.5, -8.5, 40.0, -40.0])
    q = BinaryPosterior({"w": natural})
    draws = torch.stack([q.signs(i, seed=1)["w"] for i in range(3000)])
    assert set(draws.flatten().tolist()) == {-1.0, 1.0}
    assert_within_standard_errors(draws[:, :5], torch.tanh(natural[:5]))
    assert bool((draws[:, 5:] == natural[5:].sign()).all())
    # Neighbouring draws and neighbouring weights are not correlated.
    centred = draws[:, :5] - torch.tanh(natural[:5])
    assert_within_standard_errors(centred[1:] * centred[:-1], 0.0)
    assert_within_standard_errors(centred[:, 1:] * centred[:, :-1], 0.0)


def test_a_decided_weight_keeps_its_sign_at_the_smallest_uniform(monkeypatch):
    monkeypatch.setattr(draws_module, "half_words", lambda key, shape: np.zeros(shape, np.uint16))
    natural = torch.tensor([40.0, 12.0, -12.0, 0.0, 5.0])
    # P(other) at 5 is 4.5e-5, three in 2^16; at 12 it is 4e-11, less than half of one.
    assert BinaryPosterior({"w": natural}).signs(0)["w"].tolist() == [1.0, 1.0, -1.0, -1.0, -1.0]


def written_out(key: int, n: int, k: int, num_inputs: int) -> int:
    """u(n, k) from its definition, in whole numbers of Python."""
    z = key + 0x9E3779B97F4A7C15 * (n * -(-num_inputs // 4) + k // 4 + 1)
    z &= (1 << 64) - 1
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & ((1 << 64) - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & ((1 << 64) - 1)
    return ((z ^ (z >> 31)) >> (16 * (k % 4))) & 0xFFFF


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 2, 2), (4,), (), (5, 1), (1, 9), (0, 3)], ids=str)
@pytest.mark.parametrize("key", [0, 1, 2**64 - 1, 0x123456789ABCDEF0])
def test_the_bits_of_a_weight_are_those_of_their_definition(shape, key):
    found = canonical.half_words(key, shape)
    assert found.dtype == np.uint16 and found.shape == shape
    num_inputs = math.prod(shape[1:])
    flat = found.reshape(shape[0] if shape else 1, num_inputs)
    for n, k in np.ndindex(flat.shape):
        assert flat[n, k] == written_out(key, n, k, num_inputs)


def test_thresholds_meet_the_probabilities():
    natural = torch.linspace(-14.0, 14.0, 4001)
    thresholds = draws_module.Thresholds.of(natural)
    mode, threshold = thresholds.mode, thresholds.flip
    other = threshold / 65536.0
    plus = np.where(mode, 1.0 - other, other)
    exact = torch.sigmoid(2.0 * natural).numpy()
    assert abs(plus - exact).max() <= 2.0**-17
    assert threshold.max() == 32768 and threshold.min() == 0
    assert draws_module.Thresholds.of(torch.zeros(1)).mode.all()


def test_the_bits_are_uniform_and_independent_of_their_neighbours():
    failure = norm.isf(stats_module.FAILURE_RATE / 2)
    keys = [
        canonical.key_of(seed, index, site)
        for seed in (0, 1)
        for index in range(8)
        for site in "ab"
    ]
    words = np.stack([canonical.half_words(key, (64, 64)) for key in keys])
    counts = np.bincount(words.reshape(-1) >> 8, minlength=256)
    expected = words.size / 256
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - 255) < failure * (2 * 255) ** 0.5
    bits = np.unpackbits(words.view(np.uint8), axis=-1).astype(np.float64) * 2 - 1
    assert abs(bits.mean()) < failure / bits.size**0.5
    for axis, step in ((0, 1), (0, 2), (1, 1), (2, 1), (2, 16), (2, 64)):
        one = np.take(bits, range(step, bits.shape[axis]), axis)
        other = np.take(bits, range(bits.shape[axis] - step), axis)
        assert abs((one * other).mean()) < failure / one.size**0.5, (axis, step)
    # A twin that shares its words between units would not pass.
    shared = np.broadcast_to(bits[:, :1], bits.shape)
    assert abs((shared[:, 1:] * shared[:, :-1]).mean()) > 0.9


def test_real_sites_are_drawn_from_their_distribution():
    q = example()
    draws = {s: torch.stack([q.sample(i)[s] for i in range(1500)]) for s in q.real}
    noise = draws["noise"].log()
    assert_within_standard_errors(noise, -1.0)
    assert_within_standard_errors((noise + 1.0).square(), 0.09)
    assert bool(((draws["share"] > -1.5) & (draws["share"] < 3.0)).all())
    assert_within_standard_errors(draws["bias"], torch.tensor([[1.0]]))
    distribution = q.real["share"].distribution()
    assert isinstance(distribution, dist.TransformedDistribution)
    assert distribution.log_prob(draws["share"]).isfinite().all()


def test_mode():
    mode = example().mode()
    assert mode["saturated"].tolist() == [1.0, -1.0, 1.0, 1.0]
    torch.testing.assert_close(mode["noise"].item(), math.exp(-1.0))
    torch.testing.assert_close(mode["share"], -1.5 + 4.5 * torch.sigmoid(torch.tensor([0.2, -2.0])))
    assert torch.equal(mode["0.weight"], example().signs()["0.weight"])


def test_binary_state_dict():
    q = example()
    for index in (None, 2):
        state = q.binary_state_dict(index, seed=4)
        assert {value.dtype for value in state.values()} == {torch.int8}
        expected = q.signs(index, seed=4)
        assert all(torch.equal(state[s].double(), expected[s]) for s in q)


def test_networks():
    net = network()
    q = BinaryPosterior({"0.weight": torch.randn(3, 4)})
    x = torch.randn(5, 4)
    before = {k: v.clone() for k, v in net.state_dict().items()}

    def by_hand(signs):
        return torch.tanh(x @ (signs["0.weight"] * net[0].scale).t() + net[0].bias)

    torch.testing.assert_close(q.mode_network(net)(x), by_hand(q.signs()))
    drawn = q.sample_network(net, index=3, seed=5)
    torch.testing.assert_close(drawn(x), by_hand(q.signs(3, seed=5)))
    assert not drawn.training and net.training
    for index, one in enumerate(itertools.islice(q.draws(net, seed=5), 5)):
        assert torch.equal(one.state_dict()["0.weight"], q.signs(index, seed=5)["0.weight"])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    with pytest.raises(KeyError, match=r"no weight named '7\.weight'"):
        BinaryPosterior({"7.weight": torch.zeros(3, 4)}).mode_network(net)
    with pytest.raises(ValueError, match=r"shape \(3, 4\), the posterior's \(4,\)"):
        BinaryPosterior({"0.weight": torch.zeros(4)}).mode_network(net)


# Information


def test_kl():
    natural, prior = torch.tensor([0.3, -1.2, 2.0]), torch.tensor([-0.5, 0.0, 1.0])
    q, p = BinaryPosterior({"w": natural}), BinaryPosterior({"w": prior})
    stock = torch.distributions.kl_divergence
    expected = stock(dist.Bernoulli(logits=2 * natural), dist.Bernoulli(logits=2 * prior)).sum()
    torch.testing.assert_close(q.kl(p)["w"], expected)
    uniform = stock(dist.Bernoulli(logits=2 * natural), dist.Bernoulli(logits=torch.zeros(3))).sum()
    torch.testing.assert_close(q.kl()["w"], uniform)
    assert q.kl(q)["w"] == 0.0
    extreme = BinaryPosterior({"w": torch.tensor([40.0, -40.0]).float()})
    assert extreme.kl(BinaryPosterior({"w": torch.tensor([-40.0, 40.0]).float()}))["w"] == 160.0


def test_summary():
    natural = {"a": torch.tensor([0.0, 0.5, -4.0]), "b": torch.tensor([[3.5]])}
    summary = BinaryPosterior(natural).summary()
    probs = {s: torch.sigmoid(2 * lam) for s, lam in natural.items()}
    entropy = {s: -(p * p.log2() + (1 - p) * (1 - p).log2()) for s, p in probs.items()}
    for row, site in zip(summary.rows, natural, strict=True):
        assert (row.site, row.shape, row.weights) == (
            site,
            tuple(natural[site].shape),
            natural[site].numel(),
        )
        torch.testing.assert_close(row.mean_abs_mean, (2 * probs[site] - 1).abs().mean().item())
        torch.testing.assert_close(row.entropy_bits, entropy[site].mean().item())
        torch.testing.assert_close(row.kl_bits, (1 - entropy[site]).sum().item())
        assert row.saturated == (natural[site].abs() > 3).double().mean().item()
    total = summary.total()
    everything = torch.cat([e.flatten() for e in entropy.values()])
    assert total.weights == 4 and total.saturated == 0.5
    torch.testing.assert_close(total.entropy_bits, everything.mean().item())
    torch.testing.assert_close(total.kl_bits, (1 - everything).sum().item())
    text = str(summary).splitlines()
    assert len(text) == 1 + 2 + 1 + 1 and text[3].startswith("total")
    assert "KL, bits" in text[0] and "33.3%" in text[1] and "binary_state_dict()" in text[-1]
    assert (
        BinaryPosterior({"w": torch.tensor([1.0])})
        .summary(BinaryPosterior({"w": torch.tensor([1.0])}))
        .total()
        .kl_bits
        == 0.0
    )


def test_summary_of_a_site_without_weights_is_finite():
    rows = example().summary().rows
    assert all(
        math.isfinite(value)
        for row in rows
        for value in (row.mean_abs_mean, row.entropy_bits, row.saturated)
    )


# Files


def assert_same(q, p):
    assert list(q) == list(p) and list(q.real) == list(p.real)
    for site in q:
        a, b = q[site].natural, p[site].natural
        assert a.dtype == b.dtype and a.shape == b.shape
        assert torch.equal(a, b) and torch.equal(a.signbit(), b.signbit())
    for site in q.real:
        assert torch.equal(q.real[site].loc, p.real[site].loc)
        assert torch.equal(q.real[site].scale, p.real[site].scale)
        assert q.real[site].support == p.real[site].support


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_save_and_load_are_bitwise(tmp_path, dtype):
    q = example(dtype)
    path = tmp_path / "q.safetensors"
    q.save(path)
    loaded = BinaryPosterior.load(path)
    assert_same(q, loaded)
    assert all(torch.equal(q.sample(5)[s], loaded.sample(5)[s]) for s in q.sample(5))
    assert os.listdir(tmp_path) == ["q.safetensors"]
    loaded.save(str(tmp_path / "again"))
    assert_same(q, BinaryPosterior.load(str(tmp_path / "again")))


def test_non_contiguous_and_shared_tensors(tmp_path):
    natural = torch.randn(4, 3).t()
    q = BinaryPosterior({"a": natural, "b": natural})
    q.save(tmp_path / "q")
    assert_same(q, BinaryPosterior.load(tmp_path / "q"))


def saved(folder: Path) -> bytes:
    q = BinaryPosterior({"w": torch.randn(2, 3)}, {"noise": example().real["share"]})
    q.save(folder / "whole")
    return (folder / "whole").read_bytes()


def refused(path: Path, payload: bytes) -> None:
    path.write_bytes(payload)
    with pytest.raises(CorruptFileError) as error:
        BinaryPosterior.load(path)
    assert str(path) in str(error.value)


def test_every_truncation_is_refused(tmp_path):
    whole = saved(tmp_path)
    for length in range(len(whole)):
        refused(tmp_path / "cut", whole[:length])


def test_flipped_bits_are_refused(tmp_path):
    whole = saved(tmp_path)
    generator = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[generator.integers(len(whole))] ^= 1 << generator.integers(8)
        refused(tmp_path / "flipped", bytes(damaged))


def test_replaced_bytes_are_refused_or_change_nothing(tmp_path):
    """A JSON header may hold other white space than it did; nothing else may pass."""
    whole = saved(tmp_path)
    generator = np.random.default_rng(1)
    for _ in range(200):
        damaged = bytearray(whole)
        where = generator.integers(len(whole))
        damaged[where] = (damaged[where] + generator.integers(1, 256)) % 256
        path = tmp_path / "replaced"
        if whole[where : where + 1] == b" " and bytes(damaged[where : where + 1]).isspace():
            continue
        refused(path, bytes(damaged))


def test_appended_bytes_are_refused(tmp_path):
    refused(tmp_path / "longer", saved(tmp_path) + b"\0")


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "foreign"
    tensors = {"w": torch.zeros(3)}
    for payload in (
        b"",
        b"not a file of ours",
        pickle.dumps(example().binary_state_dict()),
        safetensors.torch.save(tensors),
        safetensors.torch.save(tensors, {"format": "pt"}),
        *(
            safetensors.torch.save(tensors, {"bayesbin": text})
            for text in ("", "3", "[]", "{}", "null")
        ),
        safetensors.torch.save(
            tensors, {"bayesbin": '{"format": "bayesbin posterior", "version": 2}'}
        ),
        safetensors.torch.save(
            tensors, {"bayesbin": '{"format": "bayesbin posterior", "version": 1}'}
        ),
    ):
        refused(path, payload)
    torch.save(tensors, path)
    with pytest.raises(CorruptFileError):
        BinaryPosterior.load(path)
    with pytest.raises(FileNotFoundError):
        BinaryPosterior.load(tmp_path / "missing")


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "q"
    example().save(path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        BinaryPosterior({"w": torch.zeros(2)}).save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["q"]
    monkeypatch.undo()
    with pytest.raises(OSError):
        example().save(tmp_path / "no such folder" / "q")
    assert_same(BinaryPosterior.load(path), example())


def test_a_layer_is_a_network_too():
    layer = BinaryLinear(4, 3)
    q = BinaryPosterior({"weight": torch.randn(3, 4)})
    assert torch.equal(q.mode_network(layer).state_dict()["weight"], q.signs()["weight"])


@pytest.mark.slow
def test_a_file_is_the_same_to_the_byte_in_every_process(tmp_path):
    """The library's own order of the metadata is that of a hash map with a seed of the process."""
    program = (
        "import sys, torch; from bayesbin.posterior import BinaryPosterior\n"
        "BinaryPosterior({'b.weight': torch.zeros(3, 5), 'a': torch.ones(7)}).save(sys.argv[1])"
    )
    paths = [tmp_path / f"{k}.safetensors" for k in range(3)]
    running = [subprocess.Popen([sys.executable, "-c", program, str(path)]) for path in paths]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert len({path.read_bytes() for path in paths}) == 1


@pytest.mark.parametrize("names", [[], ["w"], ["ü", "b.a", "long" * 50]])
@pytest.mark.parametrize("metadata", [None, {}, {"z": "1", "ä": "2", "a": '{"x": "\u00fc"}'}])
def test_sorted_safetensors_are_read_by_the_library(names, metadata):
    torch.manual_seed(0)
    dtypes = [torch.float32, torch.bfloat16, torch.int8]
    tensors = {n: torch.randn(k, 3).to(dtypes[k % 3]) for k, n in enumerate(names)}
    raw = to_bytes(tensors, metadata)
    assert int.from_bytes(raw[:8], "little") % 8 == 0
    found = safetensors.torch.load(raw)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in tensors.items())
    assert to_bytes(dict(reversed(tensors.items())), metadata) == raw
