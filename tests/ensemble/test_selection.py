"""Choosing a network: against slow recomputation, and never scored on what it was chosen by."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bayesbin import BinaryPosterior, Ensemble
from bayesbin.data import Dataset, regression_1d, two_moons
from bayesbin.diagnostics.held_out import bootstrap, halves
from bayesbin.ensemble import select_network
from bayesbin.nn import mlp, to_binary_

MODELS = ("chosen", "mode", "mean", "single")
EYE = torch.eye(4, dtype=torch.float64)  # four inputs; made before the tests set their dtype


def a_network(normalize: bool = False) -> tuple[nn.Module, BinaryPosterior]:
    """Four inputs, three classes, weights that are far from decided."""
    net = to_binary_(mlp(4, [6], 3, normalize=normalize))
    last = "3.weight" if normalize else "2.weight"
    natural = {"0.weight": 0.3 * torch.randn(6, 4), last: 0.3 * torch.randn(3, 6)}
    return net, BinaryPosterior(natural)


def candidates(net: nn.Module, q: BinaryPosterior, count: int, seed: int = 0) -> Ensemble:
    return Ensemble(net, q, count, seed, head="classes")


def some_data(size: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(size, 4), torch.randint(classes, (size,))


def one_by_one(network: nn.Module, x: Tensor) -> Tensor:
    """Log-probabilities by the definition, one example at a time."""
    with torch.no_grad():
        return torch.stack([network(row[None])[0].double().log_softmax(-1) for row in x])


def correct_and_nll(log_probs: Tensor, y: Tensor) -> np.ndarray:
    pairs = [
        (float(row.argmax() == label), -row[label].item())
        for row, label in zip(log_probs, y, strict=True)
    ]
    return np.array(pairs)  # (N, 2)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("score", ["nll", "accuracy"])
def test_against_explicit_recomputation(score, normalize):
    net, q = a_network(normalize)
    (x, y), (x_held, y_held) = some_data(30), some_data(41)
    count, seed = 12, 3
    ensemble = candidates(net, q, count, seed).calibrate(torch.randn(50, 4))
    found = select_network(
        ensemble, (x, y), held_out=(x_held, y_held), seed=seed, score=score, num_bootstrap=40,
        interval=0.8,
    )  # fmt: skip

    networks = [ensemble.network(index) for index in range(count)]
    ranked = np.array([correct_and_nll(one_by_one(n, x), y).mean(0) for n in networks])
    column = 1 if score == "nll" else 0
    best = min(
        range(count),
        key=lambda i: (ranked[i, 1] if score == "nll" else -ranked[i, 0], ranked[i, 1]),
    )
    assert (found.index, found.seed, found.score) == (best, seed, score)
    torch.testing.assert_close(found.candidate_scores, torch.from_numpy(ranked[:, column]))
    torch.testing.assert_close(found.selection_score, ranked[best, column])

    outputs = [one_by_one(n, x_held) for n in networks]
    mean = torch.stack([o.exp() for o in outputs]).mean(0).log()
    single = np.mean([correct_and_nll(o, y_held) for o in outputs], 0)
    values = {
        "chosen": correct_and_nll(outputs[best], y_held),
        "mode": correct_and_nll(one_by_one(ensemble.mode.network(0), x_held), y_held),
        "mean": correct_and_nll(mean, y_held),
        "single": single,
    }
    generator = torch.Generator().manual_seed(seed)
    picked = [torch.randint(41, (41,), generator=generator).numpy() for _ in range(40)]

    def check(estimate, per_example):
        resampled = [np.mean([per_example[i] for i in positions]) for positions in picked]
        low, high = np.quantile(resampled, [0.1, 0.9])
        torch.testing.assert_close(estimate.value, per_example.mean())
        torch.testing.assert_close([estimate.low, estimate.high], [low, high])

    for name in MODELS:
        check(getattr(found, name).accuracy, values[name][:, 0])
        check(getattr(found, name).nll, values[name][:, 1])
    assert list(found.differences) == ["mode", "mean", "single"]
    for name, row in found.differences.items():
        check(row.accuracy, values["chosen"][:, 0] - values[name][:, 0])
        check(row.nll, values["chosen"][:, 1] - values[name][:, 1])
    assert (found.num_selection, found.num_held_out) == (30, 41)


def test_finds_the_network_that_made_the_labels():
    net, q = a_network()
    x, x_held = torch.randn(60, 4), torch.randn(50, 4)
    teacher = q.sample_network(net, 7, seed=2)
    y, y_held = teacher(x).argmax(-1), teacher(x_held).argmax(-1)
    ensemble = candidates(net, q, 10, seed=2)
    found = select_network(ensemble, (x, y), held_out=(x_held, y_held), score="accuracy")
    assert found.index == 7
    assert (found.chosen.accuracy.value, found.chosen.accuracy.low) == (1.0, 1.0)
    assert found.selection_score == 1.0 and found.single.accuracy.value < 0.9


# Nothing is scored on what it was chosen by


def test_a_planted_leak_is_refused():
    net, q = a_network()
    x, y = some_data(20)
    x_held, y_held = some_data(15)
    assert (
        select_network(candidates(net, q, 3), (x, y), held_out=(x_held, y_held)).num_held_out == 15
    )
    planted = x_held.clone()
    planted[4] = x[11]
    for label in range(3):  # the same label, or another one
        labels = y_held.clone()
        labels[4] = label
        with pytest.raises(ValueError, match=r"got 1 of 15 that are; remove them from one of"):
            select_network(candidates(net, q, 3), (x, y), held_out=(planted, labels))
    planted[5] = x[11]
    with pytest.raises(ValueError, match=r"not among the selection inputs, got 2 of 15 that are"):
        select_network(candidates(net, q, 3), (x, y), held_out=(planted, y_held))
    planted = x_held.clone()
    planted[4] = x[11] + torch.tensor([0.0, 0.0, 0.0, 1e-12])  # near, and yet another input
    assert (
        select_network(candidates(net, q, 3), (x, y), held_out=(planted, y_held)).num_held_out == 15
    )


def test_a_leak_is_refused_in_any_dress():
    net, q = a_network()
    x, y = some_data(6)
    x[2, 1] = 0.0
    zero = x[2:3].clone()
    zero[0, 1] = -0.0
    for dressed in (zero, x[3:4].float(), x[3:4].reshape(1, 2, 2)):
        with pytest.raises(ValueError, match="got 1 of 1 that are"):
            select_network(candidates(net, q, 3), (x, y), held_out=(dressed, y[:1]))
    whole = torch.arange(8).reshape(2, 4)
    with pytest.raises(ValueError, match="got 1 of 6 that are"):
        planted = torch.cat([x[:5], whole[1:].double()])
        select_network(candidates(net, q, 3), (whole, y[:2]), held_out=(planted, y))


def test_data_alone_are_split_in_stratified_halves():
    x = torch.randn(61, 4)
    y = torch.tensor([0] * 40 + [1] * 20 + [2])
    for seed in range(8):
        first, second = halves(x, y, seed)
        assert sorted([*first.tolist(), *second.tolist()]) == list(range(61))
        for half in (first, second):
            assert y[half].bincount(minlength=3)[:2].tolist() == [20, 10]
    first, second = halves(x, y, seed=5)
    assert (len(first), len(second)) == (31, 30)
    again, other = halves(x, y, seed=5)[0], halves(x, y, seed=6)[0]
    assert torch.equal(first, again) and not torch.equal(first, other)

    net, q = a_network()
    split = select_network(candidates(net, q, 5), (x, y), seed=5)
    explicit = select_network(
        candidates(net, q, 5), (x[first], y[first]), held_out=(x[second], y[second]), seed=5
    )
    assert split.to_dict() == explicit.to_dict()


@pytest.mark.parametrize("seed", range(5))
def test_copies_of_an_input_stay_in_one_half(seed):
    x = torch.randn(10, 4).repeat(3, 1)
    x[::3, 0] = 0.0
    x[::6, 0] = -0.0
    y = torch.randint(3, (30,))  # copies may well have different labels
    first, second = halves(x, y, seed)
    chosen_by = {tuple(row) for row in x[first].tolist()}
    assert not any(tuple(row) in chosen_by for row in x[second].tolist())
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(30))
    naive = torch.randperm(30, generator=torch.Generator().manual_seed(seed))  # would mix them
    assert {tuple(row) for row in x[naive[:15]].tolist()} & {
        tuple(row) for row in x[naive[15:]].tolist()
    }
    net, q = a_network()
    assert select_network(candidates(net, q, 2), (x, y), seed=seed).num_selection == len(first)


def test_held_out_labels_have_no_part_in_the_choice():
    net, q = a_network()
    x, y = some_data(40)
    x_held, y_held = some_data(30)
    found = select_network(candidates(net, q, 20), (x, y), held_out=(x_held, y_held))
    for shift in (1, 2):
        other = select_network(
            candidates(net, q, 20), (x, y), held_out=(x_held, (y_held + shift) % 3)
        )
        assert other.index == found.index
        assert torch.equal(other.candidate_scores, found.candidate_scores)
        assert other.chosen.nll.value != found.chosen.nll.value


def test_the_selection_score_is_optimistic_where_labels_are_noise():
    """Two classes by the flip of a coin: no network is better than another, and the honest score says so."""
    net = to_binary_(mlp(4, [6], 2, normalize=False))
    q = BinaryPosterior({"0.weight": torch.zeros(6, 4), "2.weight": torch.zeros(2, 6)})
    size, repetitions = 100, 16
    optimistic, honest, covered, covered_by_twin = [], [], 0, 0
    for seed in range(repetitions):
        data, held_out = some_data(size, 2), some_data(size, 2)
        ensemble = candidates(net, q, 50, seed)
        found = select_network(
            ensemble, data, held_out=held_out, seed=seed, score="accuracy", num_bootstrap=100
        )
        optimistic.append(found.selection_score)
        honest.append(found.chosen.accuracy.value)
        covered += found.chosen.accuracy.low <= 0.5 <= found.chosen.accuracy.high
        # The wrong twin scores the chosen network where it was chosen.
        hits = ensemble.network(found.index)(data[0]).argmax(-1) == data[1]
        assert hits.double().mean().item() == found.selection_score
        twin = bootstrap(hits.double().expand(1, 2, -1), seed, 100, 0.95)[0].accuracy
        covered_by_twin += twin.low <= 0.5 <= twin.high
    # An accuracy of ``size`` coin flips has standard deviation 1 / (2 sqrt(size)).
    error = 0.5 / math.sqrt(size * repetitions)
    assert np.mean(optimistic) > 0.5 + 6 * error
    assert abs(np.mean(honest) - 0.5) < 4 * error
    assert covered >= repetitions - 5  # at 95 %, six misses in sixteen have probability 1e-4
    assert covered_by_twin <= repetitions - 6


# Intervals


def test_intervals_cover_what_they_say():
    repetitions, size = 150, 60
    covered = np.zeros(2)
    for seed in range(repetitions):
        values = torch.stack([(torch.rand(size) < 0.7).double(), torch.rand(size)])[None]
        (row,) = bootstrap(values, seed, 100, 0.8)
        covered += [
            row.accuracy.low <= 0.7 <= row.accuracy.high,
            row.nll.low <= 0.5 <= row.nll.high,
        ]
    # Percentiles of 60 examples cover a little less than they say; 4 standard errors are 0.13.
    assert (np.abs(covered / repetitions - 0.79) < 0.13).all()


def test_differences_are_paired():
    """Two networks that err together: the difference is known far better than either score."""
    both = torch.randn(1, 2, 400)
    table = torch.cat([both, both + 0.01 * torch.randn(1, 2, 400)])
    first, second, paired = (
        row.nll for row in bootstrap(torch.cat([table, table[:1] - table[1:]]), 0, 500, 0.95)
    )
    unpaired = math.hypot(first.high - first.low, second.high - second.low)
    assert paired.high - paired.low < 0.05 * unpaired
    expected = 2 * 1.96 * (table[0] - table[1])[1].std().item() / math.sqrt(400)
    torch.testing.assert_close(paired.high - paired.low, expected, rtol=0.2, atol=0)


# Ties, streaming, statistics, what comes out


def test_of_equal_accuracies_the_lower_nll_wins():
    net, q = a_network()
    x, y = some_data(1)
    found = select_network(candidates(net, q, 40), (x, y), held_out=some_data(5), score="accuracy")
    by_nll = select_network(candidates(net, q, 40), (x, y), held_out=some_data(5), score="nll")
    assert found.candidate_scores.sum() > 1.0 and found.selection_score == 1.0
    best = found.candidate_scores == found.candidate_scores.max()
    assert found.index == by_nll.candidate_scores.where(best, torch.inf).argmin()


def test_of_equal_networks_the_first_is_chosen():
    net, q = a_network()
    decided = BinaryPosterior({site: 40.0 * distribution.mode for site, distribution in q.items()})
    found = select_network(candidates(net, decided, 6), some_data(20))
    assert found.index == 0 and found.candidate_scores.unique().numel() == 1
    for row in found.differences.values():
        torch.testing.assert_close([row.nll.low, row.nll.high], [0.0, 0.0], atol=1e-12, rtol=0)


def test_normalisation_statistics_go_with_the_network():
    net, q = a_network(normalize=True)
    data = some_data(20)
    ensemble = candidates(net, q, 5, seed=1)
    with pytest.raises(RuntimeError, match="calibrate"):
        select_network(ensemble, data)
    found = select_network(ensemble.calibrate(data[0]), data)
    chosen = ensemble.select(draws=[found.index])
    expected = ensemble.network(found.index)(data[0])
    torch.testing.assert_close(chosen.outputs(data[0])[0], expected)


def test_nothing_else_is_changed():
    net, q = a_network(normalize=True)
    data = some_data(20)
    before = copy.deepcopy(net.state_dict())
    state = torch.get_rng_state()
    ensemble = candidates(net, q, 4).calibrate(data[0])
    first, second = (select_network(ensemble, data, seed=9).to_dict() for _ in range(2))
    assert first == second != select_network(ensemble, data, seed=8).to_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_data_set_is_as_good_as_its_tensors():
    net = to_binary_(mlp(2, [4], 2, normalize=False)).float()
    q = BinaryPosterior({"0.weight": torch.zeros(4, 2), "2.weight": torch.zeros(2, 4)}).to(
        torch.float32
    )
    moons, others = two_moons(50), two_moons(30, seed=1)
    found = select_network(candidates(net, q, 4), moons, held_out=others)
    pairs = (moons.x, moons.y.int()), (others.x, others.y)
    again = select_network(candidates(net, q, 4), pairs[0], held_out=pairs[1])
    assert found.to_dict() == again.to_dict()


def test_table_and_dictionary():
    net, q = a_network()
    found = select_network(candidates(net, q, 7), some_data(40), num_bootstrap=50, interval=0.9)
    lines = str(found).splitlines()
    assert lines[0] == (
        f"draw {found.index}, best of 7 by nll on 20 examples: "
        f"{found.selection_score:.4f} there, biased as the best of many"
    )
    assert lines[1].split() == ["on", "20", "held-out", "examples", "accuracy", "nll", "(nats)"]
    assert [line.split("  ")[0] for line in lines[2:-1]] == [
        f"draw {found.index}, the chosen one", "mode", "mean of 7 draws", "single draws, on average",
        "chosen - mode", "chosen - mean of 7 draws", "chosen - single draws, on average",
    ]  # fmt: skip
    assert str(found.chosen.nll) in lines[2] and str(found.differences["mean"].nll) in lines[7]
    assert lines[-1] == "[90 % bootstrap intervals over held-out examples]"
    read = json.loads(json.dumps(found.to_dict()))
    assert read == found.to_dict()
    assert read["candidate_scores"] == found.candidate_scores.tolist()
    assert read["differences"]["mode"]["nll"]["low"] == found.differences["mode"].nll.low
    assert read["mean"]["accuracy"]["high"] == found.mean.accuracy.high


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ensemble": 3}, "expected an ensemble to choose from; got int"),
        ({"num_bootstrap": 0}, "num_bootstrap to be a whole number of at least 1; got 0"),
        ({"score": "ece"}, "one of accuracy, nll; got 'ece'"),
        ({"interval": 1.0}, r"interval to be a number above 0 and below 1; got 1.0"),
        ({"interval": 95}, r"interval to be a number above 0 and below 1; got 95"),
        ({"data": torch.zeros(4, 4)}, r"expected data to be a pair .*, got Tensor; pass \(x, y\)"),
        ({"data": (torch.zeros(4, 4),)}, "got tuple; pass"),
        ({"data": (torch.zeros(4, 4), [0, 1, 2, 0.5])}, "pass one label"),
        ({"data": (torch.zeros(4, 4), torch.zeros(4))}, r"y \(4,\) of torch.float32; pass one"),
        ({"data": (torch.zeros(4, 4), torch.zeros(4) > 1)}, r"y \(4,\) of torch.bool; pass one"),
        (
            {"data": (torch.zeros(3, 4), torch.arange(4))},
            r"got x \(3, 4\) and y \(4,\) of torch.int",
        ),
        ({"data": (torch.zeros(4, 4), torch.zeros(4, 1).long())}, r"y \(4, 1\) of"),
        ({"data": (torch.zeros(0, 4), torch.zeros(0).long())}, r"N at least 1, got x \(0, 4\)"),
        ({"data": regression_1d()}, r"y \(100,\) of torch.float32"),
        ({"held_out": (torch.zeros(3, 4), torch.arange(4))}, r"expected held_out to be a pair"),
        ({"data": (torch.zeros(4, 4), torch.arange(4))}, "different inputs to split, got 1 in 4"),
        (
            {"data": (EYE, torch.tensor([0, 1, 3, 3]))},
            r"in 0 \.\. 2, .*got \d \.\. 3;",
        ),
        ({"data": (EYE, torch.tensor([-1, -1, 2, 2]))}, r"got -1 \.\. 2;"),
        ({"held_out": (EYE[:2], torch.tensor([3, 0]))}, r"got 0 \.\. 3; renumber them"),
        ({"held_out": (1.7e308 * (1 - EYE[:2] / 2), torch.arange(2))}, "expected finite outputs"),
    ],
)
def test_errors(change, message):
    ensemble = candidates(*a_network(), 3)
    arguments = {"ensemble": ensemble, "data": Dataset(*some_data(12), "toy", 3)} | change
    with pytest.raises(ValueError, match=message):
        select_network(**arguments)
