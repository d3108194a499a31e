"""Other compositions of scopes than their sum: functions, and the policy network."""

from __future__ import annotations

import copy
import io
import pickle

import pyro
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor, nn

from bayesbin.estimators import Enumerate, PseudoReward
from bayesbin.guides import AutoNestedSignBernoulli, Combine, PolicyNetwork
from bayesbin.infer import TraceBinary_ELBO, fit
from bayesbin.nn import BinaryConv2d, BinaryLinear, Classifier

SHARED = ("layer", "filter", "kernel")


def model(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    layers = [BinaryConv2d(2, 3, 2), nn.Tanh(), nn.Flatten(), BinaryLinear(12, 3)]
    return Classifier(nn.Sequential(*layers), dataset_size=30)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(15, 2, 3, 3, generator=generator), torch.arange(15) % 3


def total(parts: dict[str, Tensor]) -> Tensor:
    return sum(parts.values(), torch.zeros(()))


# Functions


def test_a_function_that_adds_is_the_default():
    plain = AutoNestedSignBernoulli(model())
    other = AutoNestedSignBernoulli(model(), combine=total)
    other.offset.load_state_dict(plain.offset.state_dict())
    for name, distribution in plain.posterior().items():
        torch.testing.assert_close(other.posterior()[name].natural, distribution.natural)


def test_a_function_sees_the_scopes_and_trains():
    seen = {}

    def product(parts: dict[str, Tensor]) -> Tensor:
        seen.update({scope: tuple(part.shape) for scope, part in parts.items() if part.dim() == 4})
        return parts["filter"] * (1.0 + parts["layer"])

    guide = AutoNestedSignBernoulli(model(), ("layer", "filter"), combine=product)
    assert list(guide.offsets()) == [] == list(guide.natural_parameters())
    assert guide.posterior()["0.weight"].natural.shape == (3, 2, 2, 2)
    assert seen == {"layer": (1, 1, 1, 1), "filter": (3, 1, 1, 1)}
    before = [p.detach().clone() for p in guide.real_parameters()]
    fit(model(), guide, [batch()], epochs=2, estimator=PseudoReward(), progress=False)
    assert all(not torch.equal(p, q) for p, q in zip(before, guide.real_parameters(), strict=True))


def test_gradients_meet_finite_differences_of_the_exact_elbo():
    network = BinaryLinear(4, 2, bias=False)
    small = Classifier(network, dataset_size=20)
    x = torch.randn(10, 4, generator=torch.Generator().manual_seed(2))
    y = (x[:, 0] > x[:, 1]).long()
    guide = AutoNestedSignBernoulli(small, ("layer", "filter"), combine=PolicyNetwork(3, 4))

    def loss() -> Tensor:
        return TraceBinary_ELBO(Enumerate())(small, guide)(x, y)

    loss().backward()
    for name, parameter in guide.named_parameters():
        assert parameter.grad is not None, name
        flat, slope = parameter.data.view(-1), parameter.grad.view(-1)
        for index in range(min(2, len(flat))):
            kept, around = flat[index].item(), []
            for step in (1e-5, -1e-5):
                flat[index] = kept + step
                around.append(loss().item())
            flat[index] = kept
            expected = torch.tensor((around[0] - around[1]) / 2e-5)
            torch.testing.assert_close(slope[index], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"combine": 3}, "combine is a Combine or a function of offsets by scope; got 3"),
        (
            {"combine": lambda parts: torch.zeros(7)},
            r"returned shape \(7,\) for the site '0.weight'",
        ),
        ({"combine": total, "init": nn.Sequential()}, "no weight"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else str(value),
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AutoNestedSignBernoulli(model(), **options).posterior()


def test_a_start_has_no_way_back_through_a_composition():
    start = AutoNestedSignBernoulli(model()).posterior()
    for combine in (total, PolicyNetwork()):
        with pytest.raises(ValueError, match=r"cannot be carried over to '0\.weight'"):
            AutoNestedSignBernoulli(model(), combine=combine, init=start)


# The policy network


def policy_guide(sharing=SHARED) -> AutoNestedSignBernoulli:
    return AutoNestedSignBernoulli(model(), sharing, combine=PolicyNetwork(4, 8), init_scale=0.5)


def test_lambda_is_the_networks_answer_written_out():
    guide = policy_guide((*SHARED, "weight"))
    policy = guide.combine
    assert isinstance(policy, PolicyNetwork)
    with torch.no_grad():
        guide.get_parameter("offset.0.weight.weight").normal_()
    natural = guide.posterior()["0.weight"].natural
    get = guide.get_parameter
    for o, i, h, w in [(0, 0, 0, 0), (2, 1, 1, 0), (1, 0, 0, 1)]:
        embedding = (
            get("offset.0.weight.layer")[0, 0, 0, 0]
            + get("offset.0.weight.filter")[o, 0, 0, 0]
            + get("offset.0.weight.kernel")[o, i, 0, 0]
            + policy.positions["0/weight/input"][0, i, 0, 0]
            + policy.positions["0/weight/place"][0, 0, h, w]
        )
        hidden = torch.tanh(policy.state + policy.first @ embedding)
        expected = hidden @ policy.last + get("offset.0.weight.weight")[o, i, h, w]
        torch.testing.assert_close(natural[o, i, h, w], expected)


def test_weights_differ_without_a_parameter_each():
    guide = policy_guide()
    for distribution in guide.posterior().values():
        assert distribution.natural.unique().numel() == distribution.natural.numel()
        assert 0.1 < distribution.natural.std() < 2.0
    plain = AutoNestedSignBernoulli(model(), SHARED)
    assert plain.posterior()["3.weight"].natural.unique().numel() == 3


def test_sites_share_the_state_and_the_network():
    guide = policy_guide()
    before = {name: distribution.natural for name, distribution in guide.posterior().items()}
    assert isinstance(guide.combine, PolicyNetwork)
    with torch.no_grad():
        guide.combine.state.add_(0.5)
    for name, distribution in guide.posterior().items():
        assert not torch.equal(distribution.natural, before[name])


@pytest.mark.parametrize("local", [False, True], ids=["global", "local"])
def test_svi_trains_every_parameter(local):
    with pyro.settings.context(module_local_params=local):
        network = model()
        guide = AutoNestedSignBernoulli(network, SHARED, combine=PolicyNetwork(4, 8))
        before = {name: p.detach().clone() for name, p in guide.named_parameters()}
        svi = SVI(network, guide, pyro.optim.Adam({"lr": 0.05}), TraceBinary_ELBO(PseudoReward()))
        for _ in range(2):
            svi.step(*batch())
        assert all(not torch.equal(before[name], p) for name, p in guide.named_parameters())


def test_copies_and_state_are_whole():
    guide = policy_guide()
    for other in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        for name, distribution in guide.posterior().items():
            assert torch.equal(other.posterior()[name].natural, distribution.natural)
    file = io.BytesIO()
    torch.save(guide.state_dict(), file)
    file.seek(0)
    fresh = policy_guide()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for name, distribution in guide.posterior().items():
        assert torch.equal(fresh.posterior()[name].natural, distribution.natural)


def test_sizes_are_positive():
    with pytest.raises(ValueError, match="embedding_dim to be a whole number of at least 1; got 0"):
        PolicyNetwork(0)
    with pytest.raises(ValueError, match="hidden to be a whole number"):
        PolicyNetwork(3, 2.5)  # pyright: ignore[reportArgumentType]
    assert isinstance(Combine.of(total), Combine) and Combine.of(None) is None


# What a guide consists of


def test_the_summary_counts_parameters_and_shares():
    guide = AutoNestedSignBernoulli(model(), SHARED, init_scale=0.5)
    summary = guide.summary()
    counts = {(row.site, row.scope): row.parameters for row in summary.rows}
    assert counts == {
        ("0.weight", "layer"): 1, ("0.weight", "filter"): 3, ("0.weight", "kernel"): 6,
        ("0.weight", "weight"): 0, ("3.weight", "layer"): 1, ("3.weight", "filter"): 3,
        ("3.weight", "weight"): 0,
    }  # fmt: skip
    assert summary.parameters == sum(p.numel() for p in guide.parameters()) == 14
    assert summary.weights == 24 + 36
    for site in ("0.weight", "3.weight"):
        rows = [row for row in summary.rows if row.site == site]
        assert sum(row.share for row in rows) == pytest.approx(1.0)
        assert rows[-1].share == pytest.approx(0.0, abs=1e-12)
        # The last scope has all of lambda, and so the entropy of the weights themselves.
        entropy = guide.posterior()[site].entropy().mean().item() / torch.tensor(2.0).log().item()
        assert rows[-1].entropy_bits == pytest.approx(entropy)
    text = str(summary)
    half = {"accuracy": 0.5}
    scores = {"mode": half, "mean": half, "num_samples": 4}
    scores["draws"] = {"mean": half, "low": {"accuracy": 0.25}, "high": {"accuracy": 0.75}}
    assert "accuracy: 0.5000 over 4 draws, 95 % of them in 0.2500 .. 0.7500" in str(
        guide.summary(scores)
    )
    assert "14 parameters of the posterior" in text and "mean-field has 60 (23.3%)" in text


@pytest.mark.parametrize("kind", ["random-effects", "policy"])
def test_the_summary_counts_everything_the_guide_owns(kind):
    if kind == "policy":
        guide = policy_guide()
    else:
        guide = AutoNestedSignBernoulli(model(), kind=kind)
    assert guide.summary().parameters == sum(p.numel() for p in guide.parameters())
