"""What ArviZ is given: the draws themselves, and densities against sums over all states."""

from __future__ import annotations

import importlib.metadata

import arviz as az
import arviz_api
import matplotlib.pyplot as plt
import numpy as np
import oracles
import pyro
import pyro.distributions as dist
import pytest
import safetensors
import torch
import xarray
from pyro.infer import MCMC
from stats import assert_within_standard_errors, exceeds_standard_errors

import bayesbin
from bayesbin import BinaryPosterior, Ensemble, to_inference_data
from bayesbin.distributions import LowBitCategorical, SignBernoulli, Support
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer.mcmc import DiscreteLangevin, run_mcmc
from bayesbin.nn import BinaryLinear, Classifier, to_binary_
from bayesbin.posterior import LowBitPosterior, RealPosterior

NOISE = 2.5
PRIOR = torch.tensor([0.3, -0.2, 0.0, 0.1], dtype=torch.float64)
S = 40


def design():
    """Orthogonal columns: the posterior over four signs then is a product of four distributions."""
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    return torch.cat([torch.kron(two, two)] * 2)


def targets():
    noise = torch.randn(8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return design() @ torch.tensor([1.0, -1.0, 1.0, 1.0], dtype=torch.float64) + NOISE * noise


def model(x, y=None):
    w = pyro.sample("w", SignBernoulli(natural=PRIOR).to_event(1))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)


def log_likelihoods(w):
    """log p(y_n | w) of each datum, by the formula."""
    residual = (targets() - design() @ w) / NOISE
    return -0.5 * residual**2 - torch.log(torch.tensor(NOISE)) - 0.5 * np.log(2.0 * np.pi)


def exact_posterior():
    return BinaryPosterior({"w": PRIOR + design().T @ targets() / NOISE**2})


def inexact_posterior(shift=0.5):
    return BinaryPosterior({"w": exact_posterior()["w"].natural + shift})


def converted(posterior=None, **options):
    options = {"num_samples": S} | options
    return to_inference_data(
        posterior or exact_posterior(), model, (design(), targets()), **options
    )


# Draws


def test_the_draws_are_those_of_the_posterior():
    q = BinaryPosterior(
        {"w": torch.linspace(-1.0, 1.0, 6).reshape(2, 3)},
        {"s": RealPosterior(torch.zeros(2), torch.ones(2), Support("positive"))},
    )
    found = to_inference_data([q, q], num_samples=S, seed=7)
    for chain in range(2):
        for index in range(S):
            expected = q.sample(index, seed=7 + chain)
            here = found.posterior.sel(chain=chain, draw=index)
            np.testing.assert_array_equal(here["w"], expected["w"])
            np.testing.assert_array_equal(here["s"], expected["s"])
    assert found.posterior["w"].dtype == np.int8
    assert found.posterior["w"].dims == ("chain", "draw", "w_out", "w_in")
    assert found.posterior["s"].dims == ("chain", "draw", "s_dim_0")
    assert not (found.posterior["w"].sel(chain=0) == found.posterior["w"].sel(chain=1)).all()


def test_parameters_are_constants():
    q = BinaryPosterior(
        {"w": torch.tensor([1.0, 2.0])},
        {"s": RealPosterior(torch.tensor(3.0), torch.tensor(4.0), Support("positive"))},
    )
    found = to_inference_data(q, num_samples=2).constant_data
    assert found["w.natural"].dims == ("chain", "w_dim_0")
    assert found["w.natural"].values.tolist() == [[1.0, 2.0]]
    assert (found["s.loc"].item(), found["s.scale"].item()) == (3.0, 4.0)


@pytest.mark.parametrize(
    ("signs", "variables"),
    [
        (None, {"big.average", "small"}),
        (True, {"big", "small"}),
        (False, {"big.average", "small.average"}),
        (["big"], {"big", "small.average"}),
        ("big", {"big", "small.average"}),
    ],
)
def test_draws_of_large_sites_are_kept_on_request(signs, variables):
    q = BinaryPosterior({"big": torch.zeros(1001), "small": torch.zeros(1000)})
    found = to_inference_data(q, num_samples=3, signs=signs)
    assert set(found.posterior) == variables
    assert set(found.constant_data) == {"big.natural", "small.natural"}
    if "big.average" in variables:
        expected = [q.signs(index)["big"].mean().item() for index in range(3)]
        np.testing.assert_allclose(found.posterior["big.average"][0], expected, atol=1e-15)


# Densities


def test_log_p_less_log_q_of_the_exact_posterior_is_the_log_evidence():
    evidence = oracles.log_evidence(lambda w: log_likelihoods(w).sum(), PRIOR)
    stats = converted().sample_stats
    np.testing.assert_allclose(stats["lp"] - stats["log_q"], evidence, rtol=1e-12)
    other = converted(inexact_posterior()).sample_stats
    assert float((other["lp"] - other["log_q"]).std()) > 0.1


def test_log_weights_of_an_inexact_posterior_average_to_the_evidence():
    evidence = oracles.log_evidence(lambda w: log_likelihoods(w).sum(), PRIOR)
    stats = converted(inexact_posterior(), num_samples=400).sample_stats
    weights = torch.from_numpy(np.exp((stats["lp"] - stats["log_q"]).values[0] - evidence))
    assert_within_standard_errors(weights, 1.0)
    assert exceeds_standard_errors(weights, 1.2)


def test_densities_of_real_sites_are_in_their_support():
    distribution = RealPosterior(torch.tensor(0.4), torch.tensor(0.3), Support("positive"))
    q = BinaryPosterior({"w": torch.zeros(1)}, {"s": distribution})

    def scaled(y=None):
        w = pyro.sample("w", SignBernoulli(natural=torch.zeros(1)).to_event(1))
        s = pyro.sample("s", dist.Exponential(2.0))
        return pyro.sample("y", dist.Normal(w.sum(), s), obs=y)

    found = to_inference_data(q, scaled, (torch.tensor(0.7),), num_samples=S)
    s, w = (torch.from_numpy(found.posterior[name].values) for name in ("s", "w"))
    w = w[..., 0].double()
    log_q = np.log(0.5) + dist.LogNormal(0.4, 0.3).log_prob(s)
    lp = (
        np.log(0.5)
        + dist.Exponential(2.0).log_prob(s)
        + dist.Normal(w, s).log_prob(torch.tensor(0.7))
    )
    np.testing.assert_allclose(found.sample_stats["log_q"], log_q, rtol=1e-12)
    np.testing.assert_allclose(found.sample_stats["lp"], lp, rtol=1e-12)


def test_log_likelihood_of_each_datum():
    found = converted()
    for index in range(S):
        w = exact_posterior().signs(index)["w"]
        here = found.log_likelihood["y"].sel(chain=0, draw=index)
        np.testing.assert_allclose(here, log_likelihoods(w), rtol=1e-12)
    np.testing.assert_array_equal(found.observed_data["y"], targets())
    np.testing.assert_array_equal(found.constant_data["x"], design())
    assert found.log_likelihood["y"].dims == ("chain", "draw", "data")
    assert found.constant_data["x"].dims == ("data", "x_dim_1")
    assert "y" not in found.constant_data


MASK = torch.tensor([True, False, True, True, True, False, True, True])


def masked_by_poutine(x, y):
    w = pyro.sample("w", SignBernoulli(natural=PRIOR).to_event(1))
    with pyro.plate("data", len(x)), pyro.poutine.mask(mask=MASK):
        pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)


def masked_by_distribution(x, y):
    w = pyro.sample("w", SignBernoulli(natural=PRIOR).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, NOISE).mask(MASK), obs=y)


def masked_inside_an_event(x, y):
    w = pyro.sample("w", SignBernoulli(natural=PRIOR).to_event(1))
    both = torch.stack([MASK, torch.zeros(8, dtype=torch.bool)], 1)
    with pyro.plate("data", len(x)):
        law = dist.Normal((x @ w)[:, None], NOISE).expand([8, 2]).mask(both).to_event(1)
        pyro.sample("y", law, obs=torch.stack([y, y], 1))


@pytest.mark.parametrize(
    "masked", [masked_by_poutine, masked_by_distribution, masked_inside_an_event]
)
def test_masked_data_are_left_out(masked):
    dims = (
        {} if masked is masked_inside_an_event else {"y": ["row"]}
    )  # which are not those that count
    found = to_inference_data(
        exact_posterior(), masked, (design(), targets()), num_samples=2, dims=dims
    )
    w = exact_posterior().signs(0)["w"]
    expected = log_likelihoods(w)[MASK]
    assert found.log_likelihood["y"].dims == ("chain", "draw", "y_kept")
    np.testing.assert_array_equal(found.log_likelihood["y_kept"], MASK.nonzero()[:, 0])
    np.testing.assert_allclose(found.log_likelihood["y"][0, 0], expected, rtol=1e-12)
    observed = np.asarray(found.observed_data["y"]).reshape(8, -1)[:, 0]
    np.testing.assert_array_equal(np.isfinite(observed), MASK)
    np.testing.assert_array_equal(observed[MASK], targets()[MASK])
    prior = SignBernoulli(natural=PRIOR).log_prob(w).sum()
    np.testing.assert_allclose(found.sample_stats["lp"][0, 0], expected.sum() + prior, rtol=1e-12)


def test_a_distribution_of_vectors_has_one_density_for_each():
    def vectors(y):
        w = pyro.sample("w", SignBernoulli(natural=torch.zeros(2)).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(w, 1.0).expand([len(y), 2]).to_event(1), obs=y)

    q = BinaryPosterior({"w": torch.zeros(2)})
    found = to_inference_data(
        q, vectors, {"y": torch.zeros(5, 2)}, num_samples=3, dims={"y": ["data", "axis"]}
    )
    assert found.log_likelihood["y"].dims == ("chain", "draw", "data")
    assert found.observed_data["y"].dims == ("data", "axis")
    assert found.posterior_predictive["y"].dims == ("chain", "draw", "data", "axis")


def test_new_data_follow_the_model_and_leave_the_generator_alone():
    before = torch.get_rng_state()
    q = BinaryPosterior({"w": torch.zeros(4)})
    found = converted(q, num_samples=600, seed=3).posterior_predictive["y"]
    assert torch.equal(torch.get_rng_state(), before)
    fewer = converted(q, num_samples=5, seed=3).posterior_predictive["y"]
    np.testing.assert_array_equal(found[:, :5], fewer)
    other = converted(q, num_samples=5, seed=4).posterior_predictive["y"]
    assert not (found[:, :5].values == other.values).any()
    draws = torch.from_numpy(found.values[0])
    assert_within_standard_errors(draws, 0.0)
    assert_within_standard_errors(draws.square(), NOISE**2 + 4.0)  # noise, and four signs
    assert exceeds_standard_errors(draws.square(), NOISE**2)


def test_random_effects_have_no_log_q():
    effect = RealPosterior(torch.tensor(0.0), torch.tensor(0.5), Support("real"))
    q = BinaryPosterior({"w": exact_posterior()["w"]}, {"a": effect}, {"w": ["a"]})
    stats = converted(q).sample_stats
    assert set(stats) == {"lp"}


# Networks


def test_statistics_and_modes_of_a_network():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3))
    to_binary_(net)
    x, y = torch.randn(20, 3), torch.randint(3, (20,))
    classifier = Classifier(net, dataset_size=20)
    q = AutoSignBernoulli(classifier).posterior()
    state = {name: value.clone() for name, value in classifier.state_dict().items()}
    ensemble = Ensemble(classifier, q, S, seed=5).calibrate(x)
    found = to_inference_data(
        q,
        classifier,
        (x, y),
        num_samples=S,
        seed=5,
        statistics=ensemble.statistics,
        attrs={"kl_weight": 0.3},
    )
    expected = ensemble.log_probs(x)[:, torch.arange(20), y]
    np.testing.assert_allclose(found.log_likelihood["y"][0], expected, rtol=1e-5, atol=1e-6)
    assert found.posterior["0.weight"].dims == ("chain", "draw", "0.weight_out", "0.weight_in")
    assert found.posterior_predictive["y"].dtype.kind == "i"
    assert found.attrs["kl_weight"] == 0.3
    assert classifier.training and net[1].training
    assert all(torch.equal(state[name], value) for name, value in classifier.state_dict().items())


def test_restarts_may_have_models_of_their_own():
    posteriors = [exact_posterior(), inexact_posterior()]

    def louder(x, y):
        w = pyro.sample("w", SignBernoulli(natural=PRIOR).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 10.0), obs=y)

    data = (design(), targets())
    both = to_inference_data(posteriors, [model, louder], data, num_samples=3)
    alone = to_inference_data(posteriors[1], louder, data, num_samples=3, seed=1)
    np.testing.assert_array_equal(both.log_likelihood["y"][1], alone.log_likelihood["y"][0])
    np.testing.assert_array_equal(
        both.posterior_predictive["y"][1], alone.posterior_predictive["y"][0]
    )


# MCMC


def test_chains_of_mcmc():
    x, y = design(), targets()
    run = run_mcmc(model, (x, y), num_samples=30, num_warmup=10, num_chains=2)
    found = to_inference_data(run, model, (x, y))
    np.testing.assert_array_equal(found.posterior["w"], run.signs["w"])
    np.testing.assert_allclose(found.sample_stats["lp"], run.log_joint, rtol=1e-12)
    assert "log_q" not in found.sample_stats and "posterior_digest" not in found.attrs


def test_a_run_of_pyro():
    x, y = design(), targets()
    run = MCMC(DiscreteLangevin(model), num_samples=30, warmup_steps=10, disable_progbar=True)
    run.run(x, y)
    found = to_inference_data(run, model, (x, y))
    assert found.posterior["w"].dtype == np.int8
    np.testing.assert_array_equal(found.posterior["w"][0], run.get_samples()["w"])


# Names


def test_names_given_override_those_found():
    found = converted(
        dims={"w": ["feature"], "x": ["place", "feature"], "y": ["place"]},
        coords={"feature": ["a", "b", "c", "d"], "chain": [5]},
    )
    assert found.posterior["w"].sel(feature="b", chain=5).shape == (S,)
    assert found.constant_data["w.natural"].dims == ("chain", "feature")
    assert found.constant_data["x"].dims == ("place", "feature")
    assert found.log_likelihood["y"].dims == ("chain", "draw", "place")
    assert found.posterior_predictive["y"].dims == ("chain", "draw", "place")


def test_plates_name_dimensions():
    def plated(data):
        with pyro.plate("group", 3):
            w = pyro.sample("w", SignBernoulli(natural=torch.zeros(3, 2)).to_event(1))
        with pyro.plate("data", len(data)):
            pyro.sample("y", dist.Normal(data @ w.sum(0), 1.0), obs=torch.zeros(len(data)))

    q = BinaryPosterior({"w": torch.zeros(3, 2)})
    found = to_inference_data(q, plated, (torch.ones(5, 2),), num_samples=2)
    assert found.posterior["w"].dims == ("chain", "draw", "group", "w_in")
    assert found.observed_data["y"].dims == ("data",)
    # A variable cannot have its own name for a dimension.
    assert found.constant_data["data"].dims == ("data_dim_0", "data_dim_1")


def test_attributes_say_where_it_comes_from(tmp_path):
    q, other = exact_posterior(), inexact_posterior()
    found = to_inference_data([q, other], num_samples=2, seed=9, attrs={"estimator": "DisARM"})
    q.save(tmp_path / "q.safetensors")
    with safetensors.safe_open(tmp_path / "q.safetensors", framework="pt") as file:
        digest = file.metadata()["sha256"]
    assert found.attrs["posterior_digest"].split() == [digest, other.digest]
    assert digest != other.digest
    assert found.attrs["inference_library"] == "bayesbin"
    assert found.attrs["inference_library_version"] == bayesbin.__version__
    assert (found.attrs["seed"], found.attrs["estimator"]) == (9, "DisARM")
    assert found.posterior.attrs == found.attrs


# ArviZ


def restarts(num_samples=200, **options):
    return converted(
        [inexact_posterior(0.1), inexact_posterior(-0.1)], num_samples=num_samples, **options
    )


def test_a_file_keeps_everything(tmp_path):
    found = restarts()
    found.to_netcdf(tmp_path / "x.nc", engine="h5netcdf")
    loaded = az.from_netcdf(tmp_path / "x.nc", engine="h5netcdf")
    groups = arviz_api.groups_of(found)
    assert arviz_api.groups_of(loaded) == groups
    for group in groups:
        before, after = (arviz_api.dataset_of(data, group) for data in (found, loaded))
        assert after.identical(before), group
        assert all(after[name].dtype == before[name].dtype for name in before)
    assert loaded.attrs == found.attrs


# ArviZ 0.23 calls matplotlib 3.11 in a way that it is about to give up.
@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")
def test_arviz_summarises_and_plots_without_warnings(caplog):
    found = restarts()
    summary = az.summary(found)
    assert list(summary.index) == ["w[0]", "w[1]", "w[2]", "w[3]"]
    assert (summary["r_hat"].astype(float) < 1.2).all()
    means = torch.stack([inexact_posterior(s)["w"].mean for s in (0.1, -0.1)]).mean(0)
    draws = torch.from_numpy(found.posterior["w"].values.reshape(-1, 4)).double()
    places = 5e-3 if arviz_api.MAJOR < 1 else 0.1  # 1.0 rounds to the digits that are certain
    np.testing.assert_allclose(summary["mean"].astype(float), draws.mean(0), atol=places)
    assert_within_standard_errors(draws, means)
    arviz_api.plot_all(found, "y")
    plt.close("all")
    az.summary(converted(), kind="stats")
    assert not caplog.records


def exact_loo():
    """The sum of log p(y_n | all others), by sums over all states."""
    prior = oracles.state_probabilities(PRIOR).log()
    table = torch.stack([log_likelihoods(w) for w in oracles.all_states(4)])  # (states, data)
    whole = prior + table.sum(1)
    return sum(
        (torch.logsumexp(whole, 0) - torch.logsumexp(whole - table[:, n], 0)).item()
        for n in range(8)
    )


# With sixteen different states the tail has no shape worth the name, and may be found too heavy.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto")
@arviz_api.needs_no_equal_weights
def test_leave_one_out_of_arviz_meets_the_exact_one():
    found = [arviz_api.loo_of(converted(num_samples=200, seed=10 * i)).elpd for i in range(12)]
    assert_within_standard_errors(torch.tensor(found), exact_loo())
    wrong = exact_posterior()["w"].natural * 0.0
    blunt = [
        arviz_api.loo_of(
            converted(BinaryPosterior({"w": wrong}), num_samples=200, seed=10 * i)
        ).elpd
        for i in range(12)
    ]
    assert exceeds_standard_errors(torch.tensor(blunt), exact_loo())


# ArviZ 0.23 calls pandas 3.1 in a way that it is about to give up.
@pytest.mark.filterwarnings("ignore:The inplace keyword")
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto")
@arviz_api.needs_no_equal_weights
def test_models_are_compared():
    def narrow(x, y):
        w = pyro.sample("w", SignBernoulli(natural=PRIOR).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    q = BinaryPosterior({"w": PRIOR + design().T @ targets() / 1.0})
    other = to_inference_data(q, narrow, (design(), targets()), num_samples=S)
    table = az.compare({"right": converted(), "narrow": other})
    assert list(table.index) == ["right", "narrow"]


def test_from_version_1_on_it_is_a_datatree(tmp_path, monkeypatch):
    before = restarts(num_samples=5)
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "1.0.0" if name == "arviz" else version(name)
    )
    found = restarts(num_samples=5)
    assert isinstance(found, xarray.DataTree)
    assert set(found.children) == set(arviz_api.groups_of(before))
    for group in found.children:
        assert found[group].to_dataset().identical(arviz_api.dataset_of(before, group)), group
    assert found.attrs == before.attrs
    found.to_netcdf(tmp_path / "x.nc", engine="h5netcdf")
    with xarray.open_datatree(tmp_path / "x.nc", engine="h5netcdf") as loaded:
        assert loaded.identical(found)


# Errors


def subsampled(x, y):
    w = pyro.sample("w", SignBernoulli(natural=PRIOR).to_event(1))
    with pyro.plate("data", 100, subsample_size=len(x)):
        pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)


def other_shape(x, y):
    pyro.sample("w", SignBernoulli(natural=torch.zeros(5)).to_event(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"posterior": {"w": torch.zeros(4)}}, "Expected a posterior of weights.*got dict"),
        ({"posterior": []}, "got list"),
        ({"posterior": [exact_posterior(), BinaryPosterior({"w": torch.zeros(3)})]}, "posterior 1 has"),
        ({"num_samples": 0}, "num_samples to be a whole number of at least 1; got 0"),
        ({"signs": ["v"]}, "signs are names of w; got v"),
        ({"model": None}, "Expected the model that data"),
        ({"model": [model, model]}, "one model for each of the 1 chains; got 2"),
        ({"model": subsampled}, "all 100 data of the plate 'data'; got 8"),
        ({"model": lambda x, y: None}, "has w, which the model does not sample"),
        ({"model": other_shape}, r"the guide has shape \(4,\) and the model \(5,\)"),
        ({"statistics": Ensemble(BinaryLinear(4, 1), BinaryPosterior({"weight": torch.zeros(1, 4)}),
                                 2).calibrate(None).statistics}, "statistics are those of the network"),
        ({"dims": {"v": ["place"]}}, "dims has names for v; the variables are"),
        ({"dims": {"w": ["a", "b"]}}, r"dims of 'w' for the shape \(4,\); got \['a', 'b'\]"),
        ({"coords": {"w_dim_0": ["a"]}}, "a label for each entry; got 1 labels of 'w_dim_0'"),
        ({"coords": {"nothing": ["a"]}}, "Expected coords of the dimensions"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(options, message):
    arguments = {"posterior": exact_posterior(), "model": model, "data": (design(), targets())}
    with pytest.raises(ValueError, match=message):
        to_inference_data(**arguments | {"num_samples": 2} | options)


def test_a_site_that_the_posterior_lacks_is_named():
    q = BinaryPosterior({"v": torch.zeros(4)})
    with pytest.raises(ValueError, match="samples 'w', which the guide does not know"):
        to_inference_data(q, model, (design(), targets()), num_samples=2)


@pytest.mark.parametrize("levels", [(-1.0, 0.0, 1.0), (-0.75, -0.25, 0.25, 0.75)])
def test_weights_of_a_few_levels_keep_their_values_and_density(levels):
    logits = torch.arange(float(2 * len(levels))).reshape(2, len(levels)).sin()
    q = LowBitPosterior({"w": LowBitCategorical(levels, logits)})
    found = to_inference_data([q, q], num_samples=20)
    exact = LowBitCategorical(levels, logits.double())
    for chain in range(2):
        draws = torch.stack([q.sample(s, seed=chain)["w"] for s in range(20)]).double()
        assert np.array_equal(found.posterior["w"][chain], draws.numpy())
        expected = exact.log_prob(draws).sum(-1)
        np.testing.assert_allclose(found.sample_stats["log_q"][chain], expected.numpy())
    assert set(np.unique(found.posterior["w"])) <= set(levels)
    np.testing.assert_allclose(found.constant_data["w.mean"][0], q["w"].mean.numpy())
