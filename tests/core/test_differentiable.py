"""Every autograd function of the package under the transforms of ``torch.func``, against plain autograd."""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, func
from torch.autograd import Function, forward_ad
from torch.distributions import kl_divergence

import bayesbin
from bayesbin import distributions, estimators
from bayesbin.compile.torch_kinds import _decide
from bayesbin.core import fused, numerics
from bayesbin.core.differentiable import Differentiable, applied
from bayesbin.distributions.relaxed import straight_through
from bayesbin.estimators.surrogate import with_gradient
from bayesbin.estimators.weight_draws import _scaled
from bayesbin.nn.straight_through import sign_through

# torch scripts its own rules of forward mode when the first is used.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

SHAPE = (2, 3)
LAM = torch.tensor([[0.7, -1.2, 0.05], [1.6, -0.4, 2.2]], dtype=torch.float64)
PRIOR = torch.tensor([[-0.3, -0.9, 0.8], [0.2, 1.4, -1.1]], dtype=torch.float64)
SIGNS = torch.tensor([[1.0, -1.0, -1.0], [1.0, 1.0, -1.0]], dtype=torch.float64)
NOISE = torch.tensor([[0.2, 0.7, 0.45], [0.9, 0.05, 0.6]], dtype=torch.float64)
UPSTREAM = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.3, -0.7]], dtype=torch.float64)
DELTA = torch.logit(NOISE) / 2


def all_functions() -> dict[str, type[Function]]:
    """The autograd functions of every module of the package, by name."""
    for module in pkgutil.walk_packages(bayesbin.__path__, "bayesbin."):
        if module.name.endswith("__main__"):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                importlib.import_module(module.name)
            except ImportError:
                continue  # an extra that is not installed here
    found, todo = {}, [Function]
    while todo:
        todo += (children := todo.pop().__subclasses__())
        found.update({c.__name__: c for c in children if c.__module__.startswith("bayesbin.")})
    return found


def log_cosh(x: Tensor) -> Tensor:
    return torch.log(torch.cosh(x))


def kl(q: Tensor, p: Tensor) -> Tensor:
    return (q - p) * torch.tanh(q) - log_cosh(q) + log_cosh(p)


def through(hard: Tensor, soft: Tensor) -> Tensor:
    return soft + (hard - soft).detach()


def window(x: Tensor) -> Tensor:
    return torch.where(x.abs() <= 1, x, 0.0)


def step(x: Tensor, soft: Tensor) -> Tensor:
    return through(torch.where(x >= 0, 1.0, -1.0), soft)


Map = Callable[[Tensor], Tensor]
# name -> (class, ours, the same in plain torch)
CASES: dict[str, tuple[str, Map, Map]] = {
    "mean": ("_Mean", numerics.mean, torch.tanh),
    "variance": ("_Variance", numerics.variance, lambda x: 1 - torch.tanh(x) ** 2),
    "log partition": (
        "_LogPartition",
        numerics.log_partition,
        lambda x: log_cosh(x) + numerics.LOG_2,
    ),
    "log prob": (
        "_LogProb",
        lambda x: numerics.log_prob(x, SIGNS),
        lambda x: x * SIGNS - log_cosh(x) - numerics.LOG_2,
    ),
    "log prob in the value": (
        "_LogProb",
        lambda x: numerics.log_prob(LAM, x),
        lambda x: x * LAM - log_cosh(LAM) - numerics.LOG_2,
    ),
    "entropy": (
        "_Entropy",
        numerics.entropy,
        lambda x: log_cosh(x) + numerics.LOG_2 - x * torch.tanh(x),
    ),
    "kl": ("_KL", lambda x: numerics.kl_divergence(x, PRIOR), lambda x: kl(x, PRIOR)),
    "kl in the prior": ("_KL", lambda x: numerics.kl_divergence(PRIOR, x), lambda x: kl(PRIOR, x)),
    "kl in both": ("_KL", lambda x: numerics.kl_divergence(x, x.sin()), lambda x: kl(x, x.sin())),
    "relaxed signs": (
        "_RelaxedSigns",
        lambda x: numerics.relaxed_signs(x + DELTA, torch.tensor(0.7)),
        lambda x: torch.tanh((x + DELTA) / 0.7),
    ),
    "relaxed signs in the temperature": (
        "_RelaxedSigns",
        lambda x: numerics.relaxed_signs(PRIOR, x.exp()),
        lambda x: torch.tanh(PRIOR / x.exp()),
    ),
    "safe sqrt": ("_SafeSqrt", lambda x: numerics.safe_sqrt(x**2 + 1), lambda x: (x**2 + 1).sqrt()),
    "fused mean": ("_Moments", lambda x: fused.moments(x)[0], torch.tanh),
    "fused variance": ("_Moments", lambda x: fused.moments(x)[1], lambda x: 1 - torch.tanh(x) ** 2),
    "kl sum": ("_KLSum", lambda x: fused.kl_sum(x, PRIOR), lambda x: kl(x, PRIOR).sum()),
    "kl sum of one prior": (
        "_KLSum",
        lambda x: fused.kl_sum(x, torch.tensor(0.4)),
        lambda x: kl(x, torch.tensor(0.4)).sum(),
    ),
    "kl sum to uniform": (
        "_KLSum",
        lambda x: fused.kl_sum(x, torch.zeros(()).expand(SHAPE)),
        lambda x: kl(x, torch.zeros(())).sum(),
    ),
    "kl sum in the prior": (
        "_KLSum",
        lambda x: fused.kl_sum(PRIOR, x),
        lambda x: kl(PRIOR, x).sum(),
    ),
    "kl sum in both": (
        "_KLSum",
        lambda x: fused.kl_sum(x, x.sin()),
        lambda x: kl(x, x.sin()).sum(),
    ),
    "signs through": (
        "_SignsThrough",
        lambda x: fused.signs_through(x, SIGNS),
        lambda x: through(SIGNS, torch.tanh(x)),
    ),
    "signs sloped": (
        "_SignsSloped",
        lambda x: fused.signs_sloped(x, SIGNS, PRIOR),
        lambda x: through(SIGNS, x * PRIOR),
    ),
    "relaxed draw": (
        "_RelaxedDraw",
        lambda x: fused.relaxed_draw(x, NOISE, 0.7),
        lambda x: torch.tanh((x + DELTA) / 0.7),
    ),
    "straight through": (
        "_StraightThrough",
        lambda x: straight_through(SIGNS, numerics.mean(x)),
        lambda x: through(SIGNS, torch.tanh(x)),
    ),
    "scaled noise": (
        "_Scaled",
        lambda x: _scaled(NOISE * x.exp().sqrt().detach(), x.exp()),
        lambda x: NOISE * x.exp().sqrt(),
    ),
    "with gradient": (
        "_WithGradient",
        lambda x: with_gradient(x.sin().sum(), {"w": x}, {"w": PRIOR}),
        lambda x: x.sin().sum() + through(torch.zeros(()), (x * PRIOR).sum()),
    ),
    "sign, identity": ("_SignThrough", lambda x: sign_through(x, "identity"), lambda x: step(x, x)),
    "sign, clipped": (
        "_SignThrough",
        lambda x: sign_through(x, "clipped"),
        lambda x: step(x, window(x)),
    ),
    "sign, polynomial": (
        "_SignThrough",
        lambda x: sign_through(x, "polynomial"),
        lambda x: step(x, torch.where(x.abs() <= 1, 2 * x - x * x.abs(), 0.0)),
    ),
    "sign, tanh-noise": (
        "_SignThrough",
        lambda x: sign_through(x, "tanh-noise"),
        lambda x: step(x, torch.tanh(x)),
    ),
    "decision": (
        "_Decision",
        lambda x: _decide(x, torch.tensor(0.1), torch.tensor([1.0, -1.0, 1.0])),
        lambda x: step(
            (x - 0.1) * torch.tensor([1.0, -1.0, 1.0]),
            window((x - 0.1) * torch.tensor([1.0, -1.0, 1.0])),
        ),
    ),
}
REVERSE = {
    "scaled noise"
}  # whose value is its argument's own memory, which forward mode cannot follow
ESTIMATED = {"signs sloped", "with gradient"}  # whose slope is an estimate: no second derivative

FORWARD = {"jvp", "jacfwd", "vmap of jvp", "dual"} | {
    *("hessian", "forward twice", "forward, then reverse", "third")
}


def once(f: Map) -> Iterator[tuple[str, Callable[[], Any]]]:
    """First derivatives, alone and in a batch, by every way to them."""

    def objective(x: Tensor) -> Tensor:
        return (f(x) * UPSTREAM).sum() + (f(x) ** 2).sum()

    batch = torch.stack([LAM, LAM + 0.3, LAM - 0.5])
    yield "value", lambda: func.vmap(f, in_dims=2)(batch.movedim(0, 2))
    yield "grad", lambda: func.grad(objective)(LAM)
    yield "jacrev", lambda: func.jacrev(f)(LAM)
    yield "jvp", lambda: func.jvp(f, (LAM,), (PRIOR,))[1]
    yield "jacfwd", lambda: func.jacfwd(f)(LAM)
    yield "vmap of grad", lambda: func.vmap(func.grad(objective))(batch)
    yield "vmap of jvp", lambda: func.vmap(lambda x: func.jvp(f, (x,), (PRIOR,))[1])(batch)
    yield "grad of vmap", lambda: func.grad(lambda b: func.vmap(objective)(b).prod())(batch)
    # Values that the batch shares, with gradients that it does not.
    yield "shared values", lambda: func.grad(lambda b: func.vmap(f)(b).sum())(batch)
    yield "is_grads_batched", lambda: torch.autograd.functional.jacobian(f, LAM, vectorize=True)

    def dual() -> Tensor | None:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(f(forward_ad.make_dual(LAM, PRIOR))).tangent

    yield "dual", dual


def twice(f: Map) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Second and third derivatives, by every order of modes."""

    def objective(x: Tensor) -> Tensor:
        return (f(x) * UPSTREAM).sum() + (f(x) ** 2).sum()

    yield "hessian", lambda: func.hessian(objective)(LAM)
    yield "reverse twice", lambda: func.jacrev(func.jacrev(objective))(LAM)
    yield "forward twice", lambda: func.jacfwd(func.jacfwd(objective))(LAM)
    yield "forward, then reverse", lambda: func.jacrev(func.jacfwd(objective))(LAM)
    yield "third", lambda: func.grad(lambda x: func.hessian(objective)(x).sum())(LAM)

    def double_backward() -> Tensor:
        x = LAM.clone().requires_grad_()
        (slope,) = torch.autograd.grad(objective(x), x, create_graph=True)
        return torch.autograd.grad((slope * PRIOR).sum(), x)[0]

    yield "double backward", double_backward


@pytest.mark.parametrize("name", CASES)
def test_transforms_give_the_numbers_of_plain_autograd(name):
    _, ours, plain = CASES[name]
    torch.testing.assert_close(ours(LAM), plain(LAM))
    ways = [once] if name in ESTIMATED else [once, twice]
    for way in ways:
        for (which, got), (_, expected) in zip(way(ours), way(plain), strict=True):
            if name in REVERSE and which in FORWARD:
                with pytest.raises(NotImplementedError, match="has no forward mode"):
                    got()
                continue
            torch.testing.assert_close(
                got(), expected(), msg=lambda m, which=which: f"{which}: {m}"
            )


@pytest.mark.parametrize("name", sorted(ESTIMATED))
def test_a_slope_that_is_an_estimate_has_no_second_derivative(name):
    for _, second in twice(CASES[name][1]):
        with pytest.raises(RuntimeError, match="The gradient here is an estimate"):
            second()


def test_every_autograd_function_of_the_package_can_be_transformed_and_is_under_test():
    functions = all_functions()
    for base in ("Differentiable", "Elementwise"):
        del functions[base]
    for name, function in functions.items():
        assert function.setup_context is not Function.setup_context, f"{name} lacks setup_context"
        assert function.vmap is not Function.vmap or function.generate_vmap_rule, (
            f"{name} lacks vmap"
        )
    # _FirstOrder refuses second derivatives.
    assert set(functions) - {"_FirstOrder"} == {function for function, _, _ in CASES.values()}


def test_a_wrong_derivative_is_noticed():
    class Biased(numerics._Mean):
        @staticmethod
        def partials(needed, natural):
            return (1.01 * numerics._fisher(natural),)

    ours = applied(Biased)
    for way in (once, twice):
        for (which, got), (_, expected) in zip(way(ours), way(torch.tanh), strict=True):
            if which != "value":
                assert not torch.allclose(got(), expected(), rtol=1e-4)


def test_a_function_without_a_forward_mode_says_so():
    class Reverse(Differentiable):
        @staticmethod
        def forward(x):
            return x.sin()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

    with pytest.raises(NotImplementedError, match="Reverse has no forward mode: take jacrev"):
        func.jvp(applied(Reverse), (LAM,), (LAM,))


def test_a_root_of_zero_has_no_slope_to_any_order():
    x = torch.tensor([0.0, -1e-9, 4.0])
    assert func.grad(lambda v: numerics.safe_sqrt(v).sum())(x).tolist() == [0.0, 0.0, 0.25]
    assert func.hessian(lambda v: numerics.safe_sqrt(v).sum())(x).diagonal().tolist() == [
        0.0,
        0.0,
        -1 / 32,
    ]


def test_large_layers_draw_noise_under_vmap():
    like = torch.zeros(1 << 18, dtype=torch.float32)
    drawn = func.vmap(lambda _: numerics.uniform_noise(like), randomness="different")(
        torch.zeros(2)
    )
    assert drawn.shape == (2, 1 << 18) and not torch.equal(drawn[0], drawn[1])
    assert 0 < drawn.min() and drawn.max() < 1 and abs(drawn.mean() - 0.5) < 4 / (2**9.5 * 12**0.5)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_torch_compile_traces_them_as_one_graph():
    def loss(x: Tensor) -> Tensor:
        return (numerics.mean(x) * fused.relaxed_draw(x, NOISE, 0.7)).sum() + fused.kl_sum(x, PRIOR)

    x = LAM.clone().requires_grad_()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    (got,), (expected,) = (torch.autograd.grad(f(x), x) for f in (compiled, loss))
    torch.testing.assert_close(got, expected)


# Distributions and estimators, which are made of them


def log_density(natural: Tensor) -> Tensor:
    q = distributions.RelaxedSignBernoulli(0.6, natural, validate_args=False)
    return q.log_prob(0.9 * torch.tanh(PRIOR)).sum()


def low_bit(natural: Tensor) -> distributions.LowBitCategorical:
    return distributions.LowBitCategorical((-1, 0, 1), natural, validate_args=False)


WHOLE: dict[str, Map] = {
    "SignBernoulli": lambda x: (
        distributions.SignBernoulli(x, validate_args=False).log_prob(SIGNS).exp().sum()
        + distributions.SignBernoulli(x, validate_args=False).entropy().square().sum()
    ),
    "kl_divergence": lambda x: kl_divergence(
        distributions.SignBernoulli(x, validate_args=False),
        distributions.SignBernoulli(PRIOR, validate_args=False),
    ).square().sum(),
    "RelaxedSignBernoulli": log_density,
    "LowBitCategorical": lambda x: (
        low_bit(x).log_prob(torch.tensor([0.0, 1.0])).sum() * low_bit(x).entropy().sum()
        + kl_divergence(low_bit(x), low_bit(PRIOR)).sum()
        + low_bit(x).variance.sum()
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_distributions_are_transformed(name):
    f = WHOLE[name]
    x = LAM.clone().requires_grad_()
    (slope,) = torch.autograd.grad(f(x), x)
    torch.testing.assert_close(func.grad(f)(LAM), slope)
    for second in (func.hessian(f), func.jacrev(func.jacrev(f)), func.jacfwd(func.jacfwd(f))):
        step = 1e-5
        away = torch.stack([LAM + step * PRIOR, LAM - step * PRIOR])
        up, down = func.vmap(func.grad(f))(away)
        got = (second(LAM) * PRIOR).sum((-1, -2))
        torch.testing.assert_close(got, (up - down) / (2 * step), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("make", [distributions.SignBernoulliStraightThrough, "relaxed"])
def test_reparameterised_draws_under_vmap_are_one_for_each(make):
    def draw(natural: Tensor) -> Tensor:
        if make == "relaxed":
            return distributions.RelaxedSignBernoulli(0.5, natural, validate_args=False).rsample()
        return make(natural=natural, validate_args=False).rsample()

    slopes = func.vmap(func.grad(lambda x: draw(x).sum()), randomness="different")(
        torch.zeros(64, 5)
    )
    assert slopes.shape == (64, 5)
    if make == "relaxed":
        assert len(slopes.unique()) == slopes.numel()
    else:
        assert bool((slopes == 1).all())


def objective(values):
    w = torch.stack(values["w"])
    return torch.exp(0.3 * w[:, 0] * w[:, 1]) + (w @ torch.tensor([1.0, 2.0, 3.0])) ** 2


# Local reparameterization draws outputs and not weights: tests/estimators has its gradient.
OF_OUTPUTS = {"local-reparameterization", "flipout", "flipout-where-shared"}
TRANSFORMED = [name for name in estimators.names() if name not in OF_OUTPUTS]


@pytest.mark.parametrize("name", TRANSFORMED)
def test_surrogates_give_func_grad_the_gradient_of_backward(name):
    estimator = estimators.named_estimator(name)
    natural = torch.tensor([0.3, -0.5, 0.8])

    def surrogate(lam: Tensor) -> Tensor:
        torch.manual_seed(3)
        return estimator(objective, {"w": lam})

    if name in ("rebar", "relax"):
        with pytest.raises(RuntimeError, match="not inside a transform of"):
            func.grad(surrogate)(natural)
        return
    lam = natural.clone().requires_grad_()
    (expected,) = torch.autograd.grad(surrogate(lam), lam)
    torch.testing.assert_close(func.grad(surrogate)(natural), expected)
    assert bool(expected.any())
