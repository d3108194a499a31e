"""Predictions of ensembles, against sums over all states of the weights and loops written out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayesbin import BinaryPosterior, Ensemble
from bayesbin.distributions import LowBitCategorical, Support
from bayesbin.nn import BinaryLinear, Classifier, Regressor, Scale, Sign, to_binary_
from bayesbin.posterior import LowBitPosterior, RealPosterior


def network(outputs=3):
    torch.manual_seed(2)
    layers = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, outputs))
    return to_binary_(layers, scale=0.75)


def posterior(outputs=3):
    torch.manual_seed(3)
    return BinaryPosterior(
        {"0.weight": 0.5 * torch.randn(2, 2), "2.weight": torch.randn(outputs, 2)}
    )


def inputs(rows=6):
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(4))


def logits_by_hand(net, first, second, x):
    hidden = torch.tanh(F.linear(x, 0.75 * first, net[0].bias))
    return F.linear(hidden, 0.75 * second, net[2].bias).detach()


def enumerated(net, q, x):
    """Probabilities of all 2^10 states of the weights, (2^10,), and their log-probabilities of classes."""
    weights, log_probs = [], []
    for state in itertools.product((-1.0, 1.0), repeat=10):
        signs = torch.tensor(state)
        first, second = signs[:4].reshape(2, 2), signs[4:].reshape(3, 2)
        natural = torch.cat([q["0.weight"].natural.flatten(), q["2.weight"].natural.flatten()])
        weights.append(F.logsigmoid(2.0 * natural * signs).sum().exp())
        log_probs.append(logits_by_hand(net, first, second, x).log_softmax(-1))
    return torch.stack(weights), torch.stack(log_probs)


def test_probabilities_are_those_of_all_states_of_the_weights():
    net, q, x = network(), posterior(), inputs()
    weights, log_probs = enumerated(net, q, x)
    assert weights.sum().item() == pytest.approx(1.0)
    probs = log_probs.exp()
    exact = (weights[:, None, None] * probs).sum(0)
    variance = (weights[:, None, None] * (probs - exact).square()).sum(0)
    found = Ensemble(Classifier(net, 10), q, num_samples=2000, seed=5).predict(x)
    errors = (found.probs - exact) / (variance / 2000).sqrt()
    assert errors.abs().max() < 4.5
    torch.testing.assert_close(found.probs_std, variance.sqrt(), rtol=0.1, atol=0.0)
    entropies = (weights[:, None] * torch.special.entr(probs).sum(-1)).sum(0)
    torch.testing.assert_close(found.expected_entropy, entropies, rtol=0.03, atol=0.0)


def test_a_prediction_is_the_mean_over_its_draws():
    net, q, x = network(), posterior(), inputs()
    ensemble = Ensemble(Classifier(net, 10), q, num_samples=7, seed=5)
    logits = torch.stack(
        [logits_by_hand(net, *q.signs(draw, seed=5).values(), x) for draw in range(7)]
    )
    probs = logits.softmax(-1)
    found = ensemble.predict(x)
    torch.testing.assert_close(ensemble.outputs(x), logits)
    torch.testing.assert_close(ensemble.log_probs(x), logits.log_softmax(-1))
    torch.testing.assert_close(found.probs, probs.mean(0))
    torch.testing.assert_close(found.log_probs, probs.mean(0).log())
    torch.testing.assert_close(found.probs_std, probs.std(0, correction=0))
    torch.testing.assert_close(found.entropy, torch.special.entr(probs.mean(0)).sum(-1))
    torch.testing.assert_close(found.expected_entropy, torch.special.entr(probs).sum(-1).mean(0))
    torch.testing.assert_close(found.mutual_information, found.entropy - found.expected_entropy)
    assert found.num_samples == 7
    assert not torch.allclose(found.probs, logits.mean(0).softmax(-1), atol=1e-3)


def test_the_first_draws_of_many_are_those_of_few():
    net, q, x = network(), posterior(), inputs()
    few, many = (Ensemble(net, q, count, seed=1) for count in (3, 8))
    assert torch.equal(few.outputs(x), many.outputs(x)[:3])
    assert not torch.equal(few.outputs(x), Ensemble(net, q, 3, seed=2).outputs(x))


@pytest.mark.parametrize("given", ["array", "list", "batches", "pairs", "iterator"])
def test_inputs_in_any_usual_form(given):
    ensemble, x = Ensemble(network(), posterior(), 3), inputs()
    wanted = ensemble.outputs(x)
    forms = {
        "array": x.numpy(),
        "list": x.tolist(),
        "batches": x.split(2),
        "pairs": [(part, torch.zeros(len(part))) for part in x.split(4)],
        "iterator": iter([part.numpy() for part in x.split(5)]),
    }
    found = ensemble.outputs(forms[given])
    assert isinstance(found, np.ndarray if given == "array" else torch.Tensor)
    np.testing.assert_array_equal(np.asarray(found), wanted.numpy())


def test_answers_are_arrays_for_an_array_and_tensors_otherwise():
    ensemble, x = Ensemble(Classifier(network(), 10), posterior(), 3), inputs()
    in_numpy, in_torch = ensemble.predict(x.numpy()), ensemble.predict(x)
    names = ("probs", "log_probs", "entropy", "expected_entropy", "mutual_information", "std")
    for name in names:
        a, b = getattr(in_numpy, name), getattr(in_torch, name)
        assert isinstance(a, np.ndarray) and isinstance(b, torch.Tensor)
        assert a.dtype == np.float64 and np.array_equal(a, b.numpy())
    assert isinstance(ensemble.log_probs(x.numpy()), np.ndarray)


@pytest.mark.parametrize("noise", [0.3, None])
def test_a_regressor_has_the_noise_of_each_draw(noise):
    net, x = network(1), inputs()
    q = posterior(1)
    if noise is None:
        site = RealPosterior(torch.tensor(-1.0), torch.tensor(0.5), Support("positive"))
        q = BinaryPosterior(dict(q), {"noise": site})
    ensemble = Ensemble(Regressor(net, 10, noise=noise), q, num_samples=6, seed=2)
    means = ensemble.outputs(x)[:, :, 0]
    stds = [0.3 if noise else q.sample_real("noise", draw, seed=2).item() for draw in range(6)]
    found = ensemble.predict(x)
    torch.testing.assert_close(found.mean, means.mean(0))
    torch.testing.assert_close(found.epistemic_variance, means.var(0, correction=0))
    aleatoric = torch.tensor(stds).square().mean()
    torch.testing.assert_close(found.aleatoric_variance, aleatoric.expand(6).clone())
    torch.testing.assert_close(found.std, (found.epistemic_variance + aleatoric).sqrt())
    mode = ensemble.mode.predict(x)
    median = 0.3 if noise else math.exp(-1.0)
    torch.testing.assert_close(mode.std, torch.full((6,), median))
    with pytest.raises(ValueError, match="head of classes"):
        ensemble.log_probs(x)


def test_a_regressor_of_several_targets():
    net, x = network(2), inputs()
    head = {"kind": "normal", "noise": [0.1, 0.2]}
    found = Ensemble(net, posterior(2), num_samples=4, head=head).predict(x)
    assert found.mean.shape == (6, 2)
    torch.testing.assert_close(found.aleatoric_variance[0], torch.tensor([0.01, 0.04]))


def test_a_plain_network_has_outputs():
    ensemble, x = Ensemble(network(), posterior(), 5), inputs()
    found, outputs = ensemble.predict(x), ensemble.outputs(x)
    torch.testing.assert_close(found.mean, outputs.mean(0))
    torch.testing.assert_close(found.variance, outputs.var(0, correction=0))
    with pytest.raises(ValueError, match=r"a model with a likelihood.* got the outputs of a plain"):
        ensemble.evaluate(x, torch.zeros(6))
    classes = Ensemble(network(), posterior(), 5, head="classes")
    torch.testing.assert_close(classes.predict(x).probs, outputs.softmax(-1).mean(0))


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = BinaryLinear(2, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x, y):
        hidden = self.body(x) + y
        return hidden, self.head(hidden)


@pytest.mark.parametrize("given", [tuple, lambda pair: dict(zip("xy", pair, strict=True))])
def test_several_inputs_and_outputs(given):
    net = TwoHeads()
    q = BinaryPosterior({"body.weight": torch.randn(3, 2)})
    ensemble = Ensemble(net, q, num_samples=3)
    x, y = inputs(), torch.randn(6, 3)
    hidden, found = ensemble.outputs(given((x, y)))
    body = net.body
    wanted = torch.stack(
        [F.linear(x, q.signs(k)["body.weight"] * body.scale, body.bias) + y for k in range(3)]
    )
    torch.testing.assert_close(hidden, wanted)
    torch.testing.assert_close(found, net.head(wanted).detach())
    prediction = ensemble.predict((x, y))
    torch.testing.assert_close(prediction.mean[1], found.mean(0))
    with pytest.raises(ValueError, match="as many rows"):
        ensemble.outputs((x, y[:3]))
    with pytest.raises(ValueError, match="arguments, x, y"):
        ensemble.outputs({"x": x, "z": y})


def test_weights_of_a_few_levels():
    net, x = network(), inputs()
    torch.manual_seed(1)
    q = LowBitPosterior(
        {
            name: LowBitCategorical((-1.0, 0.0, 1.0), torch.randn(*shape, 3))
            for name, shape in (("0.weight", (2, 2)), ("2.weight", (3, 2)))
        }
    )
    ensemble = Ensemble(net, q, num_samples=5, seed=3)
    wanted = [logits_by_hand(net, *q.signs(k, seed=3).values(), x) for k in range(5)]
    torch.testing.assert_close(ensemble.outputs(x), torch.stack(wanted))
    torch.testing.assert_close(
        ensemble.mode.outputs(x)[0], logits_by_hand(net, *q.signs().values(), x)
    )


def test_random_effects_correlate_the_draws():
    net, x = network(), inputs()
    effect = RealPosterior(torch.zeros(2, 1), torch.full((2, 1), 3.0), Support("real"))
    q = BinaryPosterior(dict(posterior()), {"e": effect}, {"0.weight": ["e"]})
    for model in (net, Classifier(net, 10)):
        ensemble = Ensemble(model, q, num_samples=40, seed=1)
        wanted = [logits_by_hand(net, *q.signs(k, seed=1).values(), x) for k in range(40)]
        torch.testing.assert_close(ensemble.outputs(x), torch.stack(wanted))


def test_a_point_estimate_is_one_network():
    net, x = network(), inputs()
    signs = posterior().signs()
    q = BinaryPosterior({name: 40.0 * value for name, value in signs.items()})
    found = Ensemble(Classifier(net, 10), q, num_samples=4).predict(x)
    wanted = logits_by_hand(net, *signs.values(), x).softmax(-1)
    torch.testing.assert_close(found.probs, wanted)
    assert not found.probs_std.any() and not found.mutual_information.round(decimals=12).any()


def test_signs_do_not_depend_on_the_batch():
    """Fault B.1: the sign of a sum that is exactly 0."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        Sign(), nn.Linear(100, 64, bias=False), Sign(), nn.Linear(64, 3, bias=False), Scale()
    )
    net = to_binary_(layers)
    q = BinaryPosterior({"1.weight": torch.randn(64, 100), "3.weight": torch.randn(3, 64)})
    x = torch.randn(50, 100)
    found = Ensemble(Classifier(net, 10), q, num_samples=8).predict(x)
    signs = [q.signs(k) for k in range(8)]

    def sign(values):
        return torch.where(values >= 0, 1.0, -1.0)

    logits = torch.stack(
        [
            net[4](0.125 * (sign(sign(x) @ w["1.weight"].T) @ w["3.weight"].T)).detach()
            for w in signs
        ]
    )
    torch.testing.assert_close(found.probs, logits.softmax(-1).mean(0))
    one = Ensemble(Classifier(net, 10), q, num_samples=8).predict(x[7:8])
    assert torch.equal(one.probs, found.probs[7:8])


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(0, 2), "at least one row"),
        ([], "at least one|nested lists|got \\[\\]"),
        (torch.tensor([[0.0, math.nan]]), "NaN or infinity"),
        (np.array([[np.inf, 0.0]]), "NaN or infinity"),
        ("text", "expected inputs"),
        ([torch.zeros(2, 2), torch.zeros(2, 3)], "one shape and type"),
        (torch.zeros(2, 2, dtype=torch.uint8), "raw pixels"),
    ],
)
def test_inputs_that_are_refused(x, words):
    with pytest.raises(ValueError, match=words):
        Ensemble(network(), posterior(), 2).predict(x)


class TakesWholeNumbers(nn.Module):
    """A category, numbers, and which of them are there."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 3)

    def forward(self, category, numbers, present):
        coded = F.one_hot(category, 4).to(numbers)
        return self.body(torch.cat([coded, numbers.masked_fill(~present, 0.0)], -1))


@pytest.mark.parametrize("kind", ["tensors", "arrays"])
def test_whole_numbers_stay_such_where_the_network_takes_them(kind):
    net = to_binary_(TakesWholeNumbers())
    q = BinaryPosterior({"body.weight": torch.randn(3, 6)})
    x = (torch.tensor([3, 0, 1]), torch.randn(3, 2), torch.rand(3, 2) < 0.5)
    given = x if kind == "tensors" else tuple(each.numpy() for each in x)
    found = Ensemble(net, q, 4).outputs(given)
    right = torch.stack([q.sample_network(net, draw)(*x) for draw in range(4)])
    torch.testing.assert_close(torch.as_tensor(found), right)
    # A network of numbers has its inputs converted, as before.
    features = torch.tensor([[1, 2], [0, 5]])
    ensemble = Ensemble(network(), posterior(), 2)
    torch.testing.assert_close(ensemble.outputs(features), ensemble.outputs(features.double()))


def test_inputs_that_the_network_does_not_take_are_named():
    ensemble = Ensemble(network(), posterior(), 2)
    for ask in (ensemble.predict, ensemble.outputs, ensemble.calibrate):
        with pytest.raises(ValueError, match=r"fails on inputs torch.float64 of shape \(B, 5,?\)"):
            ask(torch.zeros(3, 5))
    assert ensemble.compile().outputs(np.zeros((1, 2))).shape == (2, 1, 3)  # they left no trace


def test_several_answers_for_each_datum_are_scored_together():
    torch.manual_seed(4)
    net = to_binary_(nn.Linear(2, 3))
    ensemble = Ensemble(net, BinaryPosterior({"weight": torch.randn(3, 2)}), 4, head="classes")
    x, y = torch.randn(5, 7, 2), torch.randint(3, (5, 7))
    assert ensemble.predict(x).probs.shape == (5, 7, 3)
    assert ensemble.predict(x).entropy.shape == (5, 7)
    found = ensemble.evaluate(x, y)
    flat = ensemble.evaluate(x.reshape(35, 2), y.reshape(35))
    alike = {name: value for name, value in found["mean"].items() if name != "nll"}
    assert alike == pytest.approx({name: flat["mean"][name] for name in alike})
    # Given a draw the labels of a datum are independent; averaged over draws they are not.
    log_probs = torch.as_tensor(ensemble.log_probs(x)).gather(-1, y.expand(4, 5, 7)[..., None])
    joint = log_probs[..., 0].sum(-1).logsumexp(0) - math.log(4)
    assert found["mean"]["nll"] == pytest.approx(-joint.mean().item())
    with pytest.raises(ValueError, match=r"targets of shape \(5, 7\).*of shape \(5,\)"):
        ensemble.evaluate(x, y[:, 0])


def test_networks_in_few_bits_predict_in_torch():
    net = to_binary_(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3))).to(torch.bfloat16)
    q = BinaryPosterior({"0.weight": torch.randn(4, 2), "1.weight": torch.randn(3, 4)})
    ensemble, x = Ensemble(net, q, 3, head="classes"), inputs()
    found = ensemble.outputs(x)
    with torch.no_grad():
        wanted = torch.stack([ensemble.network(k)(x.bfloat16()) for k in range(3)])
    torch.testing.assert_close(found, wanted.to(found.dtype), rtol=0.02, atol=0.02)
    assert not ensemble.compiled
    assert ensemble.predict(x).probs.dtype == torch.float64


class LastStep(nn.Module):
    """The step that an input names; there is no step before the first."""

    def __init__(self):
        super().__init__()
        self.norm, self.body = nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward(self, x, length):
        index = (length - 1).view(-1, 1, 1).expand(-1, 1, 4)
        return self.body(self.norm(x.gather(1, index).squeeze(1)))


def test_a_network_that_does_not_take_zeros_compiles_and_normalises_by_draws():
    net = to_binary_(LastStep())
    q = BinaryPosterior({"body.weight": torch.randn(3, 4)})
    x = (2.0 + torch.randn(40, 5, 4), torch.randint(1, 6, (40,)))
    with pytest.raises(RuntimeError, match="calibrate"):
        Ensemble(net, q, 3).outputs(x)
    ensemble = Ensemble(net, q, 3).calibrate(x)
    assert ensemble.compile() and ensemble.compiled
    right = torch.stack([ensemble.network(draw)(*x) for draw in range(3)])
    torch.testing.assert_close(ensemble.outputs(x), right)
    assert abs(float(ensemble.network(1).norm.running_mean.mean()) - 2.0) < 0.5
