"""Parameters that model and guide declare while they run: fit trains them, or says that it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

import bayesbin as bb
from bayesbin.data import Batches
from bayesbin.distributions import SignBernoulli
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import fit

N, TRUTH = 40, torch.tensor([1.0, -1.0, 1.0, 1.0], dtype=torch.float64)
X = torch.randn(N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(N, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = 0.5 * (X @ TRUTH) + 0.1 * NOISE
ESTIMATOR = bb.estimators.LocalReparameterization()


def regression(size: Any, x: Tensor, y: Tensor | None) -> None:
    """y ~ Normal(size * (x @ w), .3); ``size`` is a function of nothing."""
    w = pyro.sample("w", SignBernoulli(natural=torch.zeros(4)).to_event(1))
    scale = size()
    with pyro.plate("data", N, subsample_size=len(x)):
        pyro.sample("y", dist.Normal(scale * (x @ w), 0.3), obs=y)


def positive() -> Tensor:
    return pyro.param("size", torch.tensor(0.4), constraint=constraints.positive)


def unconstrained() -> Tensor:
    return pyro.param("size", lambda: torch.tensor(0.4))


def simplex() -> Tensor:
    return pyro.param("shares", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)[0]


def function_of(size: Callable[[], Tensor]) -> Any:
    return lambda x, y=None: regression(size, x, y)


class Declaring(nn.Module):
    """A module whose forward calls pyro.param."""

    def __init__(self, size: Callable[[], Tensor] = positive) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        regression(self.size, x, y)


class PyroDeclaring(PyroModule):
    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        regression(positive, x, y)


class Attribute(PyroModule):
    """A module with a parameter of Pyro's as an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.size = PyroParam(torch.tensor(0.4), constraints.positive)

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        regression(lambda: self.size, x, y)


class Nested(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Attribute()

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        self.inner(x, y)


MODELS: dict[str, Callable[[], Any]] = {
    "function": lambda: function_of(positive),
    "unconstrained": lambda: function_of(unconstrained),
    "simplex": lambda: function_of(simplex),
    "module": Declaring,
    "module with a simplex": lambda: Declaring(simplex),
    "Pyro module": PyroDeclaring,
    "attribute": Attribute,
    "attribute within": Nested,
}


def guide_of(model: Any) -> Any:
    """A guide that is all but sure of the signs."""
    return AutoSignBernoulli(model, args=(X[:2], Y[:2]), init={"w": TRUTH}, init_scale=3.0)


def size_of(model: Any) -> float:
    store = pyro.get_param_store()
    if "shares" in store:
        return store["shares"][0].item()
    if "size" in store:
        return store["size"].item()
    inner: Any = model.inner if isinstance(model, Nested) else model
    return inner.size.item()


def train(model: Any, guide: Any, epochs: int, **settings: Any) -> Any:
    settings = {"estimator": ESTIMATOR, "dataset_size": N, "progress": False, **settings}
    return fit(model, guide, Batches((X, Y), 20), epochs=epochs, **settings)


@pytest.mark.parametrize(
    ("kind", "local"),
    [(kind, False) for kind in MODELS]
    + [(kind, True) for kind in ("function", "module", "attribute within")],
    # Pyro itself refuses pyro.param in the forward of a PyroModule in local mode.
)
def test_it_is_trained(kind: str, local: bool) -> None:
    """From .4 to the truth, .5."""
    with pyro.settings.context(module_local_params=local):
        model = MODELS[kind]()
        train(model, guide_of(model), 12)
        assert abs(size_of(model) - 0.5) < 0.05


@pytest.mark.parametrize("kind", ["function", "module with a simplex", "Pyro module", "attribute"])
@pytest.mark.parametrize("cleared", [True, False])
def test_checkpoints_hold_it_to_the_bit(kind: str, cleared: bool, tmp_path: Path) -> None:
    """2 + 2 epochs are 4, in a new process (an empty store) or the same one; a finished run is restored."""

    def run(folder: Path, *ends: int) -> float:
        model = None
        for end in ends:
            if cleared:
                pyro.clear_param_store()
            torch.manual_seed(0)
            model = MODELS[kind]()
            guide = guide_of(model)
            stop = [lambda report, end=end: report.epoch == end]
            train(model, guide, 4, checkpoint_dir=folder, callbacks=stop)
        return size_of(model)

    whole = run(tmp_path / "a", 4)
    pyro.clear_param_store()
    assert run(tmp_path / "b", 2, 4) == whole != 0.4
    assert run(tmp_path / "a", 4) == whole  # nothing left to train


class Branching(nn.Module):
    """Declares a shift from its fifth call in training on: in a later epoch."""

    def __init__(self, also: bool = True) -> None:
        super().__init__()
        self.calls, self.after, self.also = 0, 10_000, also

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        def size() -> Tensor:
            early = positive() if self.also else torch.tensor(0.5)
            if self.calls < self.after:
                return early
            return early + pyro.param("late", torch.tensor(-0.2))

        regression(size, x, y)


def late_from(epoch: int, model: Branching) -> Callable[[Any], None]:
    def callback(report: Any) -> None:
        model.after = 0 if report.epoch >= epoch else 10_000

    return callback


def test_a_branch_that_is_taken_later(tmp_path: Path) -> None:
    def run(folder: Path | None, interrupt: int) -> tuple[float, float]:
        for stop in ([interrupt] if interrupt else []) + [99]:
            pyro.clear_param_store()
            torch.manual_seed(0)
            model = Branching()
            model.after = 0 if stop == 99 and interrupt > 2 else 10_000
            guide = guide_of(model)
            callbacks = [late_from(2, model), lambda report, stop=stop: report.epoch == stop]
            train(model, guide, 6, checkpoint_dir=folder, callbacks=callbacks)
        store = pyro.get_param_store()
        return store["size"].item(), store["late"].item()

    size, late = run(None, 0)
    assert late != -0.2 and size != 0.4
    for interrupt in (1, 3, 5):  # before the branch is taken, and after
        assert run(tmp_path / str(interrupt), interrupt) == (size, late)


def test_the_first_of_all_comes_too_late() -> None:
    model = Branching(also=False)
    guide = guide_of(model)
    with pytest.raises(ValueError, match="got 'late' as the first of them in epoch 3"):
        train(model, guide, 4, callbacks=[late_from(2, model)])


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
# A plain module is a network to a recipe.
@pytest.mark.parametrize("kind", [kind for kind in MODELS if not kind.startswith("module")])
def test_a_recipe_trains_it_by_its_own_rate(kind: str, schedule: str) -> None:
    """From .4 to the truth, .5, and nowhere with a rate of nearly 0; a cosine equals fit without a recipe."""

    def trained(real_lr: float) -> float:
        pyro.clear_param_store()
        model = MODELS[kind]()
        made = bb.recipe(
            "bayesbin", model, args=(X[:2], Y[:2]), guide=guide_of(model), estimator=ESTIMATOR,
            dataset_size=N, epochs=12, real_lr=real_lr, schedule=schedule,
        )  # fmt: skip
        made.fit(Batches((X, Y), 20), progress=False)
        return size_of(model)

    assert trained(1e-9) == pytest.approx(0.4, abs=1e-4)
    assert abs((found := trained(0.01)) - 0.5) < 0.06
    if schedule == "cosine":
        pyro.clear_param_store()
        model = MODELS[kind]()
        train(model, guide_of(model), 12)
        assert size_of(model) == found


@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan"), "0.1", True])
def test_a_rate_is_a_positive_number(lr: Any) -> None:
    model = MODELS["function"]()
    with pytest.raises(ValueError, match="expected declared_lr"):
        train(model, guide_of(model), 1, declared_lr=lr)


@pytest.mark.parametrize("kind", ["function", "module", "Pyro module"])
def test_optimizers_of_the_users_own(kind: str) -> None:
    model = MODELS[kind]()
    guide = guide_of(model)
    rule = bb.optim.BayesianLearningRule(guide.natural_parameters(), lr=0.01)
    with pytest.warns(UserWarning, match="No optimizer trains size, which model or guide declares"):
        train(model, guide, 1, optimizers=rule)
    assert pyro.param("size").item() == pytest.approx(0.4)
    parameter: Any = pyro.param("size")
    adam = torch.optim.Adam([parameter.unconstrained()], lr=0.1)
    train(model, guide, 1, optimizers=[rule, adam])
    assert pyro.param("size").item() > 0.41


def test_guides_that_make_their_parameters_at_the_first_call(tmp_path: Path) -> None:
    """A list of our guide and one of Pyro's, which has no parameter before it has run."""

    def model(x: Tensor, y: Tensor | None = None) -> None:
        size = pyro.sample("size", dist.LogNormal(torch.tensor(-2.0), 1.0))
        regression(lambda: size, x, y)

    module = Declaring(lambda: pyro.sample("size", dist.LogNormal(torch.tensor(-2.0), 1.0)))

    def run(program: Any, folder: Path, *ends: int) -> list[Tensor]:
        for end in ends:
            pyro.clear_param_store()
            torch.manual_seed(0)
            guide = AutoGuideList(program)
            ours = AutoSignBernoulli(poutine.block(program, hide=["size"]), args=(X[:2], Y[:2]))
            guide.append(ours)
            guide.append(AutoNormal(poutine.block(program, hide=["w"])))
            stop = [lambda report, end=end: report.epoch == end]
            train(program, guide, 4, checkpoint_dir=folder, callbacks=stop)
        names = [name for name, _ in guide.named_parameters()]
        assert names == ["0.natural.w", "1.locs.size_unconstrained", "1.scales.size_unconstrained"]
        return [p.detach().clone() for p in guide.parameters()]

    for kind, program in (("function", model), ("module", module)):
        whole = run(program, tmp_path / f"{kind} a", 4)
        parts = run(program, tmp_path / f"{kind} b", 2, 4)
        assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
        assert whole[1] > -1.5


@pytest.mark.parametrize("kind", ["function", "module", "Pyro module", "attribute"])
def test_two_fits_do_not_share_by_accident(kind: str) -> None:
    """A parameter that another model and guide trained under the same name is told of; one's own is not."""
    first, second = MODELS[kind](), MODELS[kind]()
    guide = guide_of(first)
    train(first, guide, 1)
    train(first, guide, 1)  # the same goes on, without a word
    reached = size_of(first)
    with pytest.warns(UserWarning, match="A fit of another model and guide trained size of Pyro"):
        train(second, guide_of(second), 1)
    assert reached != size_of(second) == size_of(first)
    pyro.clear_param_store()
    third = MODELS[kind]()
    train(third, guide_of(third), 1)


def test_local_parameters_are_not_shared() -> None:
    with pyro.settings.context(module_local_params=True):
        models: list[Any] = [Attribute(), Attribute()]
        for model in models:
            train(model, guide_of(model), 1)
    assert models[0].size.unconstrained() is not models[1].size.unconstrained()
