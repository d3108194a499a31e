"""MCMC on models: Pyro's interface, several chains, real-valued sites beside the signs, errors."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import oracles
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import HMC, MCMC, NUTS
from torch import Tensor, nn

from bayesbin.distributions import LowBitCategorical, SignBernoulli
from bayesbin.infer import DiscreteLangevin, GibbsWithGradients, MixedKernel, run_mcmc
from bayesbin.infer.checks import convergence
from bayesbin.infer.mcmc import LogJoint
from bayesbin.nn import BinaryLinear, Classifier, Regressor, to_binary_

PRIOR = torch.tensor([0.2, -0.3, 0.0, 0.4, -0.1], dtype=torch.float64)


def log_likelihood(w: Tensor) -> Tensor:
    return 0.6 * w[0] * w[1] - 0.5 * w[2] * w[3] * w[4] + 0.4 * torch.tanh(w.sum())


def two_sites() -> None:
    first = pyro.sample("first", SignBernoulli(natural=PRIOR[:2]).to_event(1))
    second = pyro.sample("second", SignBernoulli(natural=PRIOR[2:].reshape(3, 1)).to_event(2))
    pyro.factor("data", log_likelihood(torch.cat([first, second.flatten()])))


def noisy(y: Tensor) -> None:
    w = pyro.sample("w", SignBernoulli(natural=torch.tensor([0.3, 0.0])).to_event(1))
    noise = pyro.sample("noise", dist.LogNormal(torch.tensor(-0.5), torch.tensor(0.6)))
    mean = 0.5 * w.sum().expand(y.shape)
    pyro.sample("y", dist.Normal(mean, noise).to_event(1), obs=y)


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(10, 3, generator=generator)
    return x, (x[:, 0] > 0).long()


kernels = pytest.mark.parametrize(
    "kernel", [DiscreteLangevin, functools.partial(GibbsWithGradients, num_flips=2)]
)


# The log joint


def test_the_log_joint_is_that_of_enumeration_and_its_gradient_that_of_autograd():
    joint = LogJoint(two_sites, (), {})
    assert joint.shapes == {"first": (2,), "second": (3, 1)} and joint.size == 5
    expected = oracles.log_joint(log_likelihood, PRIOR)
    for state, value in zip(oracles.all_states(5), expected, strict=True):
        found, gradient = joint.value_and_gradient(state)
        torch.testing.assert_close(found, value)
        leaf = state.clone().requires_grad_()
        (slope,) = torch.autograd.grad(log_likelihood(leaf), leaf)
        torch.testing.assert_close(gradient, slope + PRIOR)


# Pyro's interface and run_mcmc


@kernels
def test_chains_agree_with_enumeration(kernel):
    result = run_mcmc(two_sites, kernel=kernel, num_samples=400, num_warmup=100, num_chains=3)
    w = torch.cat([result.signs["first"], result.signs["second"].flatten(2)], 2).double()
    expected = 2.0 * oracles.posterior_marginals(log_likelihood, PRIOR) - 1.0
    error = ((1.0 - expected.square()) / convergence(w).ess_bulk).sqrt()
    assert ((w.mean((0, 1)) - expected) / error).abs().max() < 5.0
    assert result.convergence().worst_rhat < 1.05
    at_draws = result.values(
        lambda draw: log_likelihood(torch.cat([draw["first"], draw["second"].flatten()]))
    )
    prior = SignBernoulli(natural=PRIOR).log_prob(w).sum(-1)
    torch.testing.assert_close(result.log_joint, at_draws + prior)


@kernels
def test_pyro_runs_the_kernels(kernel):
    mcmc = MCMC(kernel(two_sites), 30, warmup_steps=20, disable_progbar=True)
    mcmc.run()
    samples = mcmc.get_samples()
    assert samples["first"].shape == (30, 2) and samples["second"].shape == (30, 3, 1)
    assert bool((samples["second"].abs() == 1).all())
    assert 0 < mcmc.diagnostics()["acceptance rate"]["chain 0"] <= 1
    start = {"first": torch.ones(2), "second": -torch.ones(3, 1)}
    sampler = kernel(two_sites)
    sampler.initial_params = start
    sampler.setup(0)
    torch.testing.assert_close(sampler.initial_params, start)
    assert {"acc. prob"} <= set(sampler.logging())
    loaded = pickle.loads(pickle.dumps(kernel(two_sites)))
    assert type(loaded) is type(sampler) and loaded.model is two_sites


def test_a_chain_is_a_function_of_seed_and_chain():
    run = functools.partial(run_mcmc, two_sites, num_samples=20, num_warmup=10)
    state = torch.random.get_rng_state()
    one, two, three = run(num_chains=2), run(num_chains=3), run(num_chains=2, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one.signs["first"], two.signs["first"][:2])
    assert not torch.equal(one.signs["second"], three.signs["second"])
    assert not torch.equal(one.signs["second"][0], one.signs["second"][1])
    thinned = run(num_chains=1, num_samples=10, thin=2)
    assert torch.equal(thinned.signs["second"], one.signs["second"][:1, 1::2])
    assert (one.num_chains, one.num_samples, len(list(one.draws(thin=5)))) == (2, 20, 8)
    assert "2 chains of 20 draws of 5 weights" in str(one)
    assert one.signs["first"].dtype == torch.int8


def test_it_starts_where_it_is_told():
    start = {"first": -torch.ones(2), "second": torch.ones(3, 1)}

    def frozen() -> None:
        two_sites()
        pyro.sample("third", SignBernoulli(natural=torch.tensor([20.0])).to_event(1))

    result = run_mcmc(
        frozen, initial=lambda chain: start | {"third": (-1.0) ** torch.tensor([chain])},
        kernel=functools.partial(DiscreteLangevin, step=1e-3, adapt=False), num_samples=5,
        num_warmup=0, num_chains=2,
    )  # fmt: skip
    assert result.signs["first"].eq(-1).all() and result.signs["second"].eq(1).all()
    assert result.signs["third"][0].eq(1).all()


def test_a_network_is_sampled_and_left_as_it_was():
    x, y = data()
    net = to_binary_(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)))
    before = copy.deepcopy(net.state_dict())
    result = run_mcmc(Classifier(net, 10), (x, y), num_samples=10, num_warmup=10, num_chains=1)
    assert result.signs["0.weight"].shape == (1, 10, 4, 3)
    torch.testing.assert_close(net.state_dict(), before, rtol=0.0, atol=0.0)
    assert all(p.grad is None for p in net.parameters())
    outputs = result.values(lambda draw: torch.func.functional_call(net.eval(), dict(draw), (x,)))
    assert outputs.shape == (1, 10, 10, 2)


# Real-valued sites beside the signs


def exact_moments(y: Tensor) -> Tensor:
    """Posterior means of w_0, w_1, w_0 w_1 and log noise, by enumeration and quadrature."""
    log_noise = torch.linspace(-4.0, 3.0, 2001)
    prior = dist.Normal(-0.5, 0.6).log_prob(log_noise)
    rows, moments = [], []
    for w in oracles.all_states(2):
        likelihood = dist.Normal(0.5 * w.sum(), log_noise.exp()[:, None]).log_prob(y).sum(1)
        sign_prior = SignBernoulli(natural=torch.tensor([0.3, 0.0])).log_prob(w).sum()
        rows.append(prior + likelihood + sign_prior)
        ones = torch.ones_like(log_noise)
        moments.append(torch.stack([w[0] * ones, w[1] * ones, w.prod() * ones, log_noise], 1))
    weights = torch.cat(rows).softmax(0)
    return weights @ torch.cat(moments)


Y = torch.tensor([0.9, 0.2, 0.4], dtype=torch.float64)


def mixed_scores(kernel: MixedKernel, num_samples: int = 400, num_warmup: int = 30) -> Tensor:
    """Of those four means, in standard errors."""
    kernel.setup(num_warmup, Y)
    params, rows = kernel.initial_params, []
    with pyro.validation_enabled(False):
        for _ in range(num_warmup):
            params = kernel.sample(params)
        for _ in range(num_samples):
            params = kernel.sample(params)
            w = params["w"]
            rows.append(torch.stack([w[0], w[1], w.prod(), params["noise"].detach()]))
    values = torch.stack(rows)  # noise in unconstrained space: its logarithm
    effective = convergence(values[None]).ess_bulk
    return (values.mean(0) - exact_moments(Y)) / (values.std(0) / effective.sqrt())


fixed: Any = dict(step_size=0.5, num_steps=2, adapt_step_size=False, adapt_mass_matrix=False)
hmc = functools.partial(HMC, **fixed)


class Stale(MixedKernel):
    """Moves the real-valued sites given the signs that it started from."""

    def setup(self, warmup_steps, *args, **kwargs):
        super().setup(warmup_steps, *args, **kwargs)
        self.given = copy.copy(self.given)  # HMC keeps the one that it was built with


def test_signs_and_noise_agree_with_enumeration_and_quadrature():
    assert mixed_scores(MixedKernel(DiscreteLangevin(noisy), hmc)).abs().max() < 5.0


def test_a_twin_with_stale_signs_does_not_agree():
    kernel = Stale(GibbsWithGradients(noisy), hmc)
    kernel.initial_params = {"w": -torch.ones(2)}
    assert mixed_scores(kernel).abs().max() > 8.0


def test_mixed_sites_through_pyro_and_run_mcmc():
    mcmc = MCMC(MixedKernel(GibbsWithGradients(noisy), NUTS), 8, 8, disable_progbar=True)
    mcmc.run(Y)
    assert bool((mcmc.get_samples()["noise"] > 0).all())
    result = run_mcmc(
        noisy, {"y": Y}, real_kernel=hmc, sign_steps=2, num_samples=10, num_warmup=30, num_chains=2
    )
    assert result.real["noise"].shape == (2, 10) and bool((result.real["noise"] > 0).all())
    draw = result.draw(1, 3)
    again = LogJoint(noisy, (Y,), {}).value(draw["w"], {"noise": draw["noise"]})
    torch.testing.assert_close(again, result.log_joint[1, 3])
    assert {"acceptance rate", "step", "real acceptance rate"} <= result.diagnostics[0].keys()


# Errors


def no_signs() -> None:
    pyro.sample("z", dist.Normal(0.0, 1.0))


def other_discrete() -> None:
    two_sites()
    pyro.sample("k", dist.Poisson(torch.tensor(2.0)))


def few_levels() -> None:
    pyro.sample("w", LowBitCategorical((-1.0, 0.0, 1.0), torch.zeros(2, 3)).to_event(1))


def impossible() -> None:
    w = pyro.sample("w", SignBernoulli(natural=torch.zeros(2)).to_event(1))
    pyro.factor("never", w.sum() - torch.inf)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (no_signs, "latent SignBernoulli site, got z"),
        (other_discrete, "got Poisson at 'k'"),
        (few_levels, "got LowBitCategorical at 'w'"),
        (impossible, "finite log joint at a draw from the prior, got none in 100 draws"),
    ],
)
def test_models_that_cannot_be_sampled(model, message):
    with pytest.raises(ValueError, match=message):
        run_mcmc(model, num_samples=1, num_warmup=0, num_chains=1)


def test_a_part_of_the_data_and_a_random_likelihood_are_refused():
    x, y = data()
    with pytest.raises(ValueError, match="got 10 of 100 in the plate 'data'"):
        run_mcmc(Classifier(BinaryLinear(3, 2), dataset_size=100), (x, y), num_samples=1)
    net = to_binary_(nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2)))
    with pytest.raises(ValueError, match=r"depends on the latent sites alone.*eval\(\)"):
        run_mcmc(Classifier(net, dataset_size=10), (x, y), num_samples=1)
    with pytest.raises(ValueError, match="whole data set, got 3 of 10"):

        def subsampled() -> None:
            two_sites()
            with pyro.plate("rows", 10, subsample_size=3) as index:
                pyro.sample("y", dist.Normal(0.0, 1.0), obs=x[index, 0])

        run_mcmc(subsampled, num_samples=1)


def test_kernels_and_models_that_do_not_fit():
    with pytest.raises(ValueError, match=r"real-valued noise; use MixedKernel\(DiscreteLangevin"):
        DiscreteLangevin(noisy).setup(0, Y)
    with pytest.raises(ValueError, match=r"only signs \(first, second\)"):
        MixedKernel(DiscreteLangevin(two_sites), NUTS).setup(0)
    with pytest.raises(ValueError, match="kernel of the signs, got function"):
        MixedKernel(noisy, NUTS)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="got what makes DiscreteLangevin"):
        MixedKernel(DiscreteLangevin(noisy), DiscreteLangevin)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="at most the model's 5 weights, got 6"):
        GibbsWithGradients(two_sites, 6).setup(0)
    kernel = DiscreteLangevin(two_sites)
    kernel.initial_params = {"first": torch.zeros(2), "second": torch.ones(3, 1)}
    with pytest.raises(ValueError, match=r"initial signs -1 and \+1 of shape \(2,\) for 'first'"):
        kernel.setup(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(step=0.0), "step to be a number above 0; got 0"),
        (dict(target_accept=1.0), "above 0 and below 1; got 1"),
        (dict(model="net"), "Pyro model to sample from, got str"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        DiscreteLangevin(**{"model": two_sites, **arguments})
    with pytest.raises(ValueError, match="num_flips to be a whole number"):
        GibbsWithGradients(two_sites, 0)
    with pytest.raises(ValueError, match="tuple, list, dict or tensor, got int"):
        run_mcmc(two_sites, 3)
    with pytest.raises(ValueError, match="num_chains to be a whole number"):
        run_mcmc(two_sites, num_chains=0)


def test_a_regressor_with_its_noise():
    x, _ = data()
    result = run_mcmc(
        Regressor(BinaryLinear(3, 1, bias=False), 10), (x, x[:, 0]), real_kernel=hmc,
        num_samples=5, num_warmup=25, num_chains=1,
    )  # fmt: skip
    assert set(result.real) == {"noise"} and set(result.signs) == {"weight"}
