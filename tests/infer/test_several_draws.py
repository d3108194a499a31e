"""A model at several draws at once: the loop's results, its errors, and nothing left behind."""

# A gradient is None until there is one, which the assertion at hand would tell.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import copy
import gc
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import oracles
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.nn import PyroModule, PyroParam
from stats import assert_within_standard_errors, exceeds_standard_errors
from torch import Tensor, nn
from torch.nn import functional as F

import bayesbin.estimators
from bayesbin.data import Batches
from bayesbin.distributions import SignBernoulli
from bayesbin.estimators import (
    REBAR,
    RELAX,
    DisARM,
    Enumerate,
    Estimator,
    Learned,
    LocalExpectation,
    LocalReparameterization,
    MovingAverage,
    ScoreFunction,
    StraightThrough,
)
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import TraceBinary_ELBO, several_draws
from bayesbin.infer.checkpoint import checkpoints
from bayesbin.infer.fit import fit
from bayesbin.infer.several_draws import SeveralDraws
from bayesbin.nn import Classifier, Regressor, mlp, to_binary_
from bayesbin.optim import make_optimizers, training_groups

N = 12
ESTIMATORS: dict[str, Callable[[], Estimator]] = {
    name: value
    for name in bayesbin.estimators.__all__
    if isinstance(value := getattr(bayesbin.estimators, name), type)
    and issubclass(value, Estimator)
    and not inspect.isabstract(value)
} | {
    "MovingAverage": lambda: ScoreFunction(1, MovingAverage()),
    "Learned": lambda: ScoreFunction(2, Learned()),
    "REBAR, 3 draws": lambda: REBAR(num_samples=3),
}


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes every evaluation from here on a loop over the draws."""
    return lambda: monkeypatch.setattr(several_draws, "LARGEST_STACK", 0)


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(N, 3, generator=generator), torch.arange(N) % 2


class Counting(nn.Module):
    """Counts how often the model runs, however many draws it runs for."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return x


def classifier(hidden: int = 3, **options: Any) -> Any:
    net = mlp(3, [hidden], 2, activation="tanh", **options)
    return Classifier(to_binary_(nn.Sequential(Counting(), *net), scale=0.8), dataset_size=2 * N)


def plates_scale_and_mask(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", SignBernoulli(natural=torch.tensor([0.2, -0.4, 0.0])).to_event(1))
    with pyro.plate("units", 2), poutine.scale(scale=0.7):
        v = pyro.sample("v", SignBernoulli(natural=torch.full((2,), 0.3)))
    mask = torch.arange(N) % 3 != 0
    with pyro.plate("data", N), poutine.scale(scale=1.7), poutine.mask(mask=mask):
        pyro.sample("y", dist.Normal(torch.tanh(x @ w) * v.sum(), 1.3), obs=y.to(x))


def subsampled(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", SignBernoulli(natural=torch.zeros(3)).to_event(1))
    with pyro.plate("data", N, subsample_size=5) as rows:
        pyro.sample("y", dist.Bernoulli(logits=x[rows] @ w), obs=y[rows].to(x))


def dependent_prior(x: Tensor, y: Tensor) -> None:
    a = pyro.sample("a", SignBernoulli(natural=torch.zeros(2)).to_event(1))
    b = pyro.sample("b", SignBernoulli(natural=0.5 * a.sum() * torch.ones(3)).to_event(1))
    with pyro.plate("data", N):
        pyro.sample("y", dist.Normal(torch.sin(x @ b) + a[0] * a[1], 1.0), obs=y.to(x))


def branching(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", SignBernoulli(natural=torch.zeros(3)).to_event(1))
    scale = 2.0 if float(w.detach().sum()) > 0 else 1.0
    with pyro.plate("data", N):
        pyro.sample("y", dist.Normal(x @ w, scale), obs=y.to(x))


MODELS: dict[str, tuple[Callable[[], Any], bool]] = {  # model, whether its draws run together
    "classifier": (lambda: classifier(normalize=False), True),
    "normalised, training": (lambda: classifier().train(), False),
    "normalised, evaluation": (lambda: classifier().eval(), True),
    "plates, scale and mask": (lambda: plates_scale_and_mask, True),
    "subsampled": (lambda: subsampled, True),
    "dependent prior": (lambda: dependent_prior, True),
    "branching": (lambda: branching, False),
}
SAMPLERS: dict[str, Callable[[], Estimator]] = {
    "ScoreFunction": lambda: ScoreFunction(num_samples=5),
    "DisARM": lambda: DisARM(num_pairs=3),
    "StraightThrough": lambda: StraightThrough(num_samples=4),
    "REBAR": lambda: REBAR(num_samples=4),
    "RELAX": lambda: RELAX(num_samples=3),
    "LocalExpectation": lambda: LocalExpectation(num_samples=2),
}


def terms_and_gradients(
    model: Any, guide: Any, elbo: TraceBinary_ELBO, seed: int = 0
) -> list[Tensor]:
    """Loss, terms, and gradients in the guide, the model and the estimator, at one seed."""
    parameters = [*guide.parameters(), *elbo.estimator.parameters()]
    if isinstance(model, nn.Module):
        parameters += model.parameters()
    parameters = [p for p in parameters if p.requires_grad]
    torch.manual_seed(seed)
    terms = elbo.terms(model, guide, *data())
    slopes = torch.autograd.grad(terms.loss, parameters, materialize_grads=True)
    return [*(term.detach() for term in terms), *slopes]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", MODELS)
def test_the_results_and_gradients_are_those_of_the_loop(name, sampler, loop):
    torch.manual_seed(1)
    model = MODELS[name][0]()
    guide = AutoSignBernoulli(model, args=data(), init_scale=0.6)
    build = SAMPLERS[sampler]
    together = terms_and_gradients(model, guide, TraceBinary_ELBO(build()))
    loop()
    alone = terms_and_gradients(model, guide, TraceBinary_ELBO(build()))
    for got, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)
    assert any(bool(slope.any()) for slope in alone[3:])


@pytest.mark.parametrize("name", MODELS)
def test_draws_run_together_where_they_can(name):
    build, together = MODELS[name]
    model = build()
    guide = AutoSignBernoulli(model, args=data())
    runs = 0

    def counted(*args: Any) -> Any:
        nonlocal runs
        runs += 1
        return model(*args)

    program = model if isinstance(model, nn.Module) else counted
    elbo = TraceBinary_ELBO(ScoreFunction(num_samples=9))
    elbo.terms(program, guide, *data())  # the trial, and finding dependent sites, add runs
    before = model.net[0].runs if isinstance(model, nn.Module) else runs
    elbo.terms(program, guide, *data())
    after = model.net[0].runs if isinstance(model, nn.Module) else runs
    assert after - before == (2 if together else 9)


def test_the_first_call_gives_what_later_ones_give():
    model = classifier(normalize=False)
    guide = AutoSignBernoulli(model)
    elbo = TraceBinary_ELBO(ScoreFunction(num_samples=5))
    first, second = (terms_and_gradients(model, guide, elbo) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# One function of one draw


def evaluate(draw: dict[str, Tensor]) -> Tensor:
    return torch.sin(draw["w"]).sum() + draw["v"]


def some_draws(count: int, size: int = 4) -> dict[str, list[Tensor]]:
    return {"w": list(torch.randn(count, size)), "v": list(torch.randn(count))}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 11])
def test_any_number_of_draws(count):
    values = some_draws(count)
    got = SeveralDraws()(evaluate, evaluate, values)
    expected = [evaluate({"w": w, "v": v}) for w, v in zip(values["w"], values["v"], strict=True)]
    torch.testing.assert_close(got, torch.stack(expected))


def calls_for(count: int, size: int) -> tuple[int, Tensor]:
    calls = 0

    def counted(draw: dict[str, Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        return evaluate(draw)

    draws = SeveralDraws()
    draws(evaluate, counted, some_draws(count, size))
    calls = 0
    values = some_draws(count, size)
    results = draws(evaluate, counted, values)
    expected = torch.stack(
        [evaluate({"w": w, "v": v}) for w, v in zip(*values.values(), strict=True)]
    )
    torch.testing.assert_close(results, expected)
    return calls, results


def test_large_layers_run_draw_by_draw_and_smaller_ones_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(several_draws, "LARGEST_STACK", 100)
    assert calls_for(11, 4)[0] == 2  # the first, then ten at once
    assert calls_for(11, 24)[0] == 4  # four at once
    assert calls_for(11, 50)[0] == 11  # 51 numbers: one at a time
    assert calls_for(11, 1000)[0] == 11


def test_values_that_stand_for_something_else_run_draw_by_draw():
    class Moments(Tensor):
        pass

    values = {"w": [torch.randn(3).as_subclass(Moments) for _ in range(4)]}
    seen = []

    def kinds(draw):
        seen.append(type(draw["w"]))
        return torch.zeros(())

    SeveralDraws()(kinds, kinds, values)
    assert seen == [Moments] * 4


def test_gradients_flow_to_every_draw_once_and_twice():
    values = {"w": [torch.randn(3, requires_grad=True) for _ in range(5)]}
    results = SeveralDraws()(torch.sin, lambda draw: torch.sin(draw["w"]).sum(), values)
    slopes = torch.autograd.grad(results.sum(), values["w"], create_graph=True)
    for w, slope in zip(values["w"], slopes, strict=True):
        torch.testing.assert_close(slope, torch.cos(w))
    total = sum(slope.square().sum() for slope in slopes)
    for w, slope in zip(values["w"], torch.autograd.grad(total, values["w"]), strict=True):
        torch.testing.assert_close(slope, -2.0 * torch.cos(w) * torch.sin(w))


class Custom(torch.autograd.Function):
    """Written by hand, without a rule for vmap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.abs()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "a branch": lambda w: w.sum() if w.sum() > 0 else w.prod(),
    "a number": lambda w: torch.tensor(w.sum().item()),
    "a function of its own": lambda w: Custom.apply(w).sum(),
    "numpy": lambda w: torch.as_tensor(w.detach().numpy().sum()),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_vmap_refuses_falls_back_to_the_loop_without_a_word(name):
    function = REFUSED[name]
    draws, values = SeveralDraws(), {"w": list(torch.randn(6, 3))}
    expected = torch.stack([function(w) for w in values["w"]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            got = draws(function, lambda draw: function(draw["w"]), values)
            torch.testing.assert_close(got, expected)


def test_what_was_found_out_in_one_mode_is_not_taken_for_the_other():
    model = classifier()
    guide = AutoSignBernoulli(model)
    elbo = TraceBinary_ELBO(ScoreFunction(num_samples=6))
    for mode, runs in ((False, 2), (True, 6), (False, 2), (True, 6)):
        model.train(mode)
        elbo.terms(model, guide, *data())
        before = model.net[0].runs
        elbo.terms(model, guide, *data())
        assert model.net[0].runs - before == runs


def test_a_layer_whose_mode_changes_later_is_not_an_error():
    model = classifier()
    guide = AutoSignBernoulli(model)
    elbo = TraceBinary_ELBO(ScoreFunction(num_samples=6))
    normalisation = next(m for m in model.modules() if isinstance(m, nn.BatchNorm1d))
    normalisation.eval()
    elbo.terms(model, guide, *data())
    normalisation.train()
    elbo.terms(model, guide, *data())


def test_a_mode_that_cannot_be_seen_from_outside_is_not_an_error_either():
    model = classifier()
    guide = AutoSignBernoulli(model)
    elbo = TraceBinary_ELBO(ScoreFunction(num_samples=6))

    def closure(x, y):  # not a module: its layers are out of sight
        return model(x, y)

    model.eval()
    elbo.terms(closure, guide, *data())
    model.train()
    elbo.terms(closure, guide, *data())
    normalisation = next(m for m in model.modules() if isinstance(m, nn.BatchNorm1d))
    assert not torch.equal(normalisation.running_mean, torch.zeros_like(normalisation.running_mean))


# Nothing left behind


@pytest.mark.parametrize("name", ["classifier", "normalised, training", "normalised, evaluation"])
def test_running_statistics_are_those_of_the_loop(name, loop):
    torch.manual_seed(1)
    model = MODELS[name][0]()
    guide = AutoSignBernoulli(model)
    twin, twin_guide = copy.deepcopy((model, guide))
    for one, its_guide in ((model, guide), (twin, twin_guide)):
        if one is twin:
            loop()
        elbo = TraceBinary_ELBO(ScoreFunction(num_samples=4))
        torch.manual_seed(2)
        for _ in range(2):
            elbo.terms(one, its_guide, *data())
    for got, expected in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", MODELS)
def test_the_trial_leaves_the_random_generator_where_the_second_call_does(name):
    model = MODELS[name][0]()
    guide = AutoSignBernoulli(model, args=data())
    elbo = TraceBinary_ELBO(ScoreFunction(num_samples=4))
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        elbo.terms(model, guide, *data())
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_dropout_differs_from_draw_to_draw_and_has_its_mean():
    layer = nn.Dropout(0.5)
    draws, values = SeveralDraws(), {"w": [torch.ones(6)] * 400}
    torch.manual_seed(0)
    results = draws(layer, lambda draw: layer(draw["w"]).sum(), values)
    assert results[1:].unique().numel() > 4
    assert_within_standard_errors(results, 6.0)
    torch.manual_seed(0)
    again = draws(layer, lambda draw: layer(draw["w"]).sum(), values)
    assert torch.equal(results, again)


def test_the_loss_with_dropout_has_the_mean_of_the_loop(loop):
    torch.manual_seed(1)
    model = classifier(normalize=False, dropout=0.5).train()
    guide = AutoSignBernoulli(model)
    elbo = TraceBinary_ELBO(StraightThrough(num_samples=8))
    together = torch.stack([elbo.terms(model, guide, *data()).loss.detach() for _ in range(60)])
    loop()
    alone = torch.stack([elbo.terms(model, guide, *data()).loss.detach() for _ in range(60)])
    assert_within_standard_errors(together - alone, 0.0)
    model.eval()
    evaluated = torch.stack([elbo.terms(model, guide, *data()).loss.detach() for _ in range(60)])
    assert exceeds_standard_errors(alone - evaluated, 0.0)


def problem(options: dict[str, Any]) -> tuple[Any, Any, Batches]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = classifier(**options)
        guide = AutoSignBernoulli(model)
    x, y = data()
    return model, guide, Batches((x, y), batch_size=5)


STATEFUL: dict[str, Callable[[], Estimator]] = {
    "ScoreFunction": lambda: ScoreFunction(num_samples=4),
    "MovingAverage": lambda: ScoreFunction(3, MovingAverage()),
    "Learned": lambda: ScoreFunction(3, Learned()),
    "REBAR": lambda: REBAR(num_samples=3),
    "RELAX": lambda: RELAX(num_samples=3),
}


@pytest.mark.parametrize(
    "options", [{"normalize": False, "dropout": 0.3}, {"dropout": 0.3}], ids=str
)
@pytest.mark.parametrize("name", STATEFUL)
def test_a_fit_with_several_draws_resumes_exactly(name, options, tmp_path):
    def run(epochs: int, folder: Path) -> list[Tensor]:
        model, guide, batches = problem(options)
        estimator = STATEFUL[name]()
        fit(
            model,
            guide,
            batches,
            epochs=epochs,
            estimator=estimator,
            optimizers=make_optimizers(training_groups(guide, model, estimator)),
            checkpoint_dir=folder,
            progress=False,
        )
        modules = (model, guide, estimator)
        return [v.detach().clone() for m in modules for v in m.state_dict().values()]

    whole = run(4, tmp_path / "whole")
    midway = run(2, tmp_path / "parts")
    torch.rand(17)
    final = run(4, tmp_path / "parts")
    assert not all(torch.equal(a, b) for a, b in zip(midway, whole, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(final, whole, strict=True))
    assert len(checkpoints(tmp_path / "parts")) == 2


def test_what_was_found_out_does_not_keep_a_model_alive_and_is_not_copied():
    elbo = TraceBinary_ELBO(ScoreFunction(num_samples=4))
    model = classifier(normalize=False)
    elbo.terms(model, AutoSignBernoulli(model), *data())
    assert len(elbo._several_draws._possible) == 1
    assert len(copy.deepcopy(elbo)._several_draws._possible) == 0
    del model
    gc.collect()
    assert len(elbo._several_draws._possible) == 0


# Errors


def test_an_invalid_observation_is_an_error_with_many_draws():
    model = classifier(normalize=False)
    guide = AutoSignBernoulli(model)
    elbo = TraceBinary_ELBO(ScoreFunction(num_samples=8))
    x, y = data()
    for _ in range(2):
        elbo.terms(model, guide, x, y)
        with pytest.raises(ValueError, match=r"(?i)label|support|expected"):
            elbo.terms(model, guide, x, y + 5)


def test_an_invalid_observation_of_a_hand_written_model_is_an_error_with_many_draws():
    def model(y: Tensor) -> None:
        w = pyro.sample("w", SignBernoulli(natural=torch.zeros(3)).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Categorical(logits=w.expand(len(y), 3)), obs=y)

    guide = AutoSignBernoulli(model, args=(torch.tensor([0, 1]),))
    elbo = TraceBinary_ELBO(ScoreFunction(num_samples=8))
    elbo.terms(model, guide, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="support"):
        elbo.terms(model, guide, torch.tensor([0, 7]))


def test_an_error_of_the_models_own_is_raised_as_it_is():
    class Broken(RuntimeError):
        pass

    def broken(draw):
        raise Broken("of its own")

    with pytest.raises(Broken, match="of its own"):
        SeveralDraws()(broken, broken, some_draws(5))

    calls = 0

    def later(draw):
        nonlocal calls
        calls += 1
        if calls > 1:
            raise Broken("of its own")
        return evaluate(draw)

    with pytest.raises(Broken, match="of its own"):
        SeveralDraws()(later, later, some_draws(5))


def test_validation_is_on_again_afterwards():
    values = some_draws(5)
    SeveralDraws()(evaluate, evaluate, values)
    with pytest.raises(ValueError, match="constraint"):
        dist.Normal(0.0, -1.0)


# Every estimator through the ELBO


def small_classifier() -> tuple[Any, Any]:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2))
    model = Classifier(to_binary_(net, prior=0.3, scale=0.8), dataset_size=N)
    return model, AutoSignBernoulli(model, init_scale=0.3)


def moved(parameters: list[Tensor], before: list[Tensor]) -> bool:
    return all(bool((p != b).any()) for p, b in zip(parameters, before, strict=True))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_fit_trains_with_minibatches(name):
    model, guide = small_classifier()
    estimator = ESTIMATORS[name]()
    parameters = [*guide.parameters(), *model.parameters()]
    parameters += [p for p in estimator.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in parameters]
    result = fit(
        model, guide, Batches(data(), batch_size=6), epochs=2, estimator=estimator, progress=False
    )
    assert result.steps == 4 and all(torch.isfinite(p).all() for p in parameters)
    names = ("log_temperature", "eta", "constant")
    assert moved(list(guide.parameters()), before[: len(list(guide.parameters()))])
    for key, parameter in estimator.named_parameters():
        if key.split(".")[-1] in names:
            start = dict(ESTIMATORS[name]().named_parameters())[key]
            assert not torch.equal(parameter, start), key


@pytest.mark.parametrize("name", ESTIMATORS)
def test_svi_trains_the_guide_and_what_the_estimator_learns(name):
    model, guide = small_classifier()
    estimator = ESTIMATORS[name]()
    before = {key: p.detach().clone() for key, p in estimator.named_parameters()}
    naturals = [p.detach().clone() for p in guide.natural_parameters()]
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), TraceBinary_ELBO(estimator))
    losses = [svi.step(*data()) for _ in range(4)]
    assert all(torch.isfinite(torch.tensor(losses)))
    assert moved(list(guide.natural_parameters()), naturals)
    for key, parameter in estimator.named_parameters():
        if key.split(".")[-1] in ("log_temperature", "eta", "constant"):
            assert not torch.equal(parameter, before[key]), key


def test_rebar_under_svi_learns_eta_and_its_temperature():
    model, guide = small_classifier()
    estimator = REBAR()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), TraceBinary_ELBO(estimator))
    for _ in range(5):
        svi.step(*data())
    assert estimator.eta.item() != 1.0 and estimator.temperature != pytest.approx(0.5)


def linear_model(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", SignBernoulli(natural=torch.tensor([0.4, -0.2, 0.1])).to_event(1))
    with pyro.plate("data", N):
        pyro.sample("y", dist.Normal(torch.exp(0.3 * (x @ w)), 1.5), obs=y.to(x))


class Amortised(PyroModule):
    """Natural parameters that a module makes from two numbers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.code = PyroParam(torch.tensor([0.3, -0.5]))
        self.layer = nn.Linear(2, 3)

    def forward(self, x: Tensor, y: Tensor) -> None:
        pyro.sample("w", SignBernoulli(natural=self.layer(self.code)).to_event(1))


EXACT: dict[str, Callable[[], Estimator]] = {
    name: build for name, build in ESTIMATORS.items() if build().unbiased
}


@pytest.mark.parametrize("name", EXACT)
def test_a_guide_that_computes_its_natural_parameters_gets_the_exact_gradient(name):
    torch.manual_seed(4)
    guide = Amortised()
    code, natural = guide.code.detach(), guide.layer(guide.code)
    elbo = TraceBinary_ELBO(EXACT[name]())
    (leaf,) = (p for key, p in guide.named_parameters() if "code" in key)
    slopes = torch.stack(
        [
            torch.autograd.grad(elbo.differentiable_loss(linear_model, guide, *data()), leaf)[0]
            for _ in range(150)
        ]
    )
    x, y = data()
    prior = torch.tensor([0.4, -0.2, 0.1])

    def log_likelihood(w: Tensor) -> Tensor:
        return dist.Normal(torch.exp(0.3 * (x @ w)), 1.5).log_prob(y.to(x)).sum()

    lam = natural.detach()
    in_natural = (lam - prior) / torch.cosh(lam) ** 2 - oracles.gradient(log_likelihood, lam)
    assert_within_standard_errors(slopes, in_natural @ guide.layer.weight.detach())
    assert code.shape == (2,)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_plain_function_is_a_guide_too(name):
    module = nn.Linear(1, 3)

    def guide(x: Tensor, y: Tensor) -> None:
        pyro.module("guide", module)
        natural = module(torch.ones(1))
        pyro.sample("w", SignBernoulli(natural=natural).to_event(1))

    elbo = TraceBinary_ELBO(ESTIMATORS[name]())
    elbo.differentiable_loss(linear_model, guide, *data()).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in module.parameters())
    assert bool(module.bias.grad.any())


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_continuous_site_mixed_in_gets_its_gradient(name):
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
    model = Regressor(to_binary_(net, prior=-0.2, scale=0.8), dataset_size=N)
    guide = AutoSignBernoulli(model)
    x, _ = data()
    loss = TraceBinary_ELBO(ESTIMATORS[name]())(model, guide)
    loss(x, torch.sin(x[:, 0])).backward()
    for parameter in (*guide.natural_parameters(), *guide.real_parameters()):
        assert bool(torch.isfinite(parameter.grad).all()) and bool(parameter.grad.any())


@pytest.mark.parametrize("name", ESTIMATORS)
def test_without_gradients_there_is_a_loss(name):
    model, guide = small_classifier()
    with torch.no_grad():
        loss = TraceBinary_ELBO(ESTIMATORS[name]())(model, guide)(*data())
    assert bool(torch.isfinite(loss)) and not loss.requires_grad


def test_a_dependent_prior_is_averaged_exactly():
    guide = AutoSignBernoulli(dependent_prior, args=data(), init_scale=0.5)
    exact = TraceBinary_ELBO(Enumerate()).differentiable_loss(dependent_prior, guide, *data())
    parameters = list(guide.natural_parameters())
    expected = torch.cat(torch.autograd.grad(exact, parameters))
    for build in (lambda: DisARM(num_pairs=3), LocalExpectation):
        elbo = TraceBinary_ELBO(build())
        slopes = []
        for _ in range(100):
            loss = elbo.differentiable_loss(dependent_prior, guide, *data())
            slopes.append(torch.cat(torch.autograd.grad(loss, parameters)))
        assert_within_standard_errors(torch.stack(slopes), expected)


def test_the_batch_reaches_a_baseline_that_looks_at_it():
    seen = []

    class OfTheBatch(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            seen.append((x, y))
            return F.one_hot(y, 2).double().mean()

    model, guide = small_classifier()
    x, y = data()
    TraceBinary_ELBO(ScoreFunction(2, Learned(OfTheBatch()))).terms(model, guide, x, y=y)
    assert seen[0][0] is x and seen[0][1] is y


def test_local_reparameterization_runs_draw_by_draw():
    model = classifier(normalize=False)
    guide = AutoSignBernoulli(model)
    elbo = TraceBinary_ELBO(LocalReparameterization(num_samples=5))
    elbo.terms(model, guide, *data())
    before = model.net[0].runs
    elbo.terms(model, guide, *data())
    assert model.net[0].runs - before == 5
