"""Names for things of a user's own: registered, or offered by an installed package."""

# Contracts are broken on purpose.
# pyright: reportAttributeAccessIssue=false, reportAssignmentType=false, reportArgumentType=false

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import types

import pyro
import pytest
import torch
from torch import nn

import bayesbin as bb
from bayesbin import estimators, guides, recipes
from bayesbin.core.registry import Registry
from bayesbin.data import Batches
from bayesbin.estimators import Estimator, LocalReparameterization, StraightThrough
from bayesbin.estimators.named import ESTIMATORS
from bayesbin.guides import AutoLowBit, AutoSignBernoulli
from bayesbin.guides.named import GUIDES
from bayesbin.nn import Classifier, to_binary_
from bayesbin.optim import TrainingGroup
from bayesbin.recipes import METHODS, Method, Parts

ROOMS = {"estimators": ESTIMATORS, "guides": GUIDES, "recipes": METHODS}


@pytest.fixture(autouse=True)
def load_anew():
    """Entry points of one test are not those of the next."""
    yield
    for registry in ROOMS.values():
        registry._loaded.clear()


class Point:
    """An entry point of a package that is not installed."""

    def __init__(self, package, group, name, value):
        self.group, self.name, self.value = group, name, value
        self.dist = types.SimpleNamespace(name=package)
        self.load = importlib.metadata.EntryPoint(name, value, group).load


def install(monkeypatch, *points):
    """Pretend that packages with these (package, group, name, value) entry points are installed."""
    found = [Point(*point) for point in points]
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: [p for p in found if p.group == group]
    )


def module(monkeypatch, name, **contents):
    made = types.ModuleType(name)
    vars(made).update(contents)
    monkeypatch.setitem(sys.modules, name, made)


def problem():
    torch.manual_seed(0)
    x = torch.randn(40, 4)
    model = Classifier(to_binary_(nn.Linear(4, 2)), dataset_size=40)
    return model, Batches((x, (x[:, 0] > 0).long()), 20)


# Registries


def make(**more):
    return Registry("fruit", {"apple": 1}, group="bayesbin.tests", **more)


def test_own_registered_and_installed_names_in_this_order(monkeypatch):
    module(monkeypatch, "orchard", plum=3)
    install(monkeypatch, ("orchard", "bayesbin.tests", "plum", "orchard:plum"),
            ("orchard", "bayesbin.others", "nut", "orchard:nut"))  # fmt: skip
    fruit = make()
    fruit.register("pear", 2)
    assert fruit.names() == tuple(fruit) == ("apple", "pear", "plum") and len(fruit) == 3
    assert [fruit[name] for name in fruit] == [1, 2, 3]
    assert "plum" in fruit and "nut" not in fruit
    fruit.unregister("pear")
    assert fruit.names() == ("apple", "plum")


@pytest.mark.parametrize("name", ["", "two words", "tab\t", None, 3])
def test_names_without_spaces(name):
    with pytest.raises(ValueError, match="expected the fruit to have a name without spaces; got "):
        make().register(name, 2)


def test_a_name_that_is_taken(monkeypatch):
    install(monkeypatch, ("orchard", "bayesbin.tests", "plum", "orchard:plum"))
    fruit = make()
    fruit.register("pear", 2)
    for name, whose in (
        ("apple", "the package's own fruit"),
        ("pear", "a fruit registered before"),
        ("plum", "a fruit of orchard"),
    ):
        with pytest.raises(ValueError, match=f"name '{name}' is taken by {whose}"):
            fruit.register(name, 3)
    assert fruit["pear"] == 2
    with pytest.raises(
        ValueError, match="expected fruit to be one of apple, pear, plum; got 'fig'"
    ):
        fruit["fig"]
    with pytest.raises(ValueError, match="the registered fruit to be one of pear; got 'apple'"):
        fruit.unregister("apple")


@pytest.mark.parametrize(
    "value, message",
    [
        ("no_such_module:thing", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("orchard:missing", "AttributeError: module 'orchard' has no attribute 'missing'"),
        ("orchard:rotten", "ValueError: 'plum' is rotten"),
    ],
)
def test_a_broken_plug_in_is_listed_and_named_when_it_is_asked_for(monkeypatch, value, message):
    def check(name, thing):
        if thing == "rotten":
            raise ValueError(f"{name!r} is rotten")

    module(monkeypatch, "orchard", rotten="rotten")
    install(monkeypatch, ("orchard-pkg", "bayesbin.tests", "plum", value))
    fruit = make(check=check)
    assert fruit.names() == ("apple", "plum") and fruit["apple"] == 1
    for _ in range(2):  # not only the first time
        with pytest.raises(ValueError, match=f"'plum' comes from orchard-pkg .*{value}.*{message}"):
            fruit["plum"]


def test_a_module_that_exits_when_it_is_imported(monkeypatch, tmp_path):
    (tmp_path / "explosive.py").write_text("raise KeyError('of its own')")
    monkeypatch.syspath_prepend(str(tmp_path))
    install(monkeypatch, ("boom", "bayesbin.tests", "plum", "explosive:thing"))
    with pytest.raises(ValueError, match=r"comes from boom .* cannot be used: KeyError"):
        make()["plum"]


def test_two_packages_with_one_name(monkeypatch):
    point = ("bayesbin.tests", "plum", "orchard:plum")
    module(monkeypatch, "orchard", plum=3)
    install(monkeypatch, ("a", *point), ("b", *point))
    with pytest.raises(ValueError, match=r"Several packages define the fruit 'plum': a, b. Uninst"):
        make()["plum"]
    install(monkeypatch, ("a", *point), ("a", *point))  # one package, seen twice on the path
    assert make()["plum"] == 3
    install(monkeypatch, ("a", "bayesbin.tests", "apple", "orchard:plum"))
    assert make()["apple"] == 1  # the package's own names are its own


def test_an_import_loads_no_plug_in(tmp_path):
    """A real distribution on the path: broken when loaded, harmless until then."""
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    groups = "".join(f"[bayesbin.{room}]\nmine = broken_module:thing\n" for room in ROOMS)
    (info / "entry_points.txt").write_text(groups)
    (tmp_path / "broken_module.py").write_text("raise SystemError('broken on import')")
    program = """
import json, sys
sys.path.insert(0, sys.argv[1])
import bayesbin as bb
found = {}
for room in ("estimators", "guides", "recipes"):
    found[room] = getattr(bb, room).names()
from bayesbin.recipes import settings_of
messages = []
for name, overrides in (("mine", {}), ("bayesbin", {"estimator": "mine"}), ("bayesbin", {"guide": "mine"})):
    try:
        settings_of(name, **overrides)
    except ValueError as error:
        messages.append(str(error))
print(json.dumps([found, messages]))
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    output = subprocess.run(command, capture_output=True, check=True).stdout
    found, messages = json.loads(output)
    assert all(names[-1] == "mine" and len(names) > 3 for names in found.values())
    for message, kind in zip(messages, ("recipe", "estimator", "guide"), strict=True):
        assert message.startswith(
            f"The {kind} 'mine' comes from broken (entry point broken_module:"
        )
        assert "SystemError: broken on import" in message


# Estimators


class Mine(StraightThrough):
    """A legitimate estimator of a user's own."""


class WithoutDeclaration(Estimator):
    def forward(self, objective, natural):
        return LocalReparameterization()(objective, natural)


class Detached(LocalReparameterization):
    def forward(self, objective, natural):
        return super().forward(objective, {k: v.detach() for k, v in natural.items()})


class Constant(LocalReparameterization):
    def forward(self, objective, natural):
        return super().forward(objective, natural) * 0.0


class Vector(LocalReparameterization):
    def forward(self, objective, natural):
        return super().forward(objective, natural)[None]


class NotANumber(LocalReparameterization):
    def forward(self, objective, natural):
        return super().forward(objective, natural) / 0.0


class Failing(LocalReparameterization):
    def forward(self, objective, natural):
        raise IndexError("of its own")


class Demanding(StraightThrough):
    def __init__(self, size):
        super().__init__()


def maybe():
    made = StraightThrough()
    made.unbiased = "sometimes"
    return made


@pytest.mark.parametrize(
    "factory, message",
    [
        (WithoutDeclaration, "give WithoutDeclaration the attribute unbiased = True or False"),
        (maybe, "give StraightThrough the attribute unbiased"),
        (Detached, "does not reach lambda"),
        (Constant, "does not reach lambda"),
        (Vector, "without dimensions; got an array of shape"),
        (NotANumber, "to be a finite number"),
        (Failing, "fails on eight weights, with IndexError: of its own"),
        (Demanding, "to be made without arguments.*missing 1 required positional argument"),
        (lambda: "word", "to make a bayesbin.estimators.Estimator; got str"),
        (StraightThrough(), "to make a bayesbin.estimators.Estimator|made without arguments"),
        ("straight-through", "an Estimator class, or a function that makes one; got 'straight"),
    ],
)
def test_estimators_that_break_the_contract(factory, message):
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        estimators.register("mine", factory)
    assert "mine" not in estimators.names() and torch.equal(state, torch.get_rng_state())


def test_every_estimator_of_the_package_meets_the_contract():
    for name, factory in ESTIMATORS.own.items():
        estimators.register(f"my-{name}", factory)
        assert repr(estimators.named_estimator(f"my-{name}")) == repr(factory())


def test_a_registered_estimator_is_found_by_name(monkeypatch):
    from bayesbin.experiments.demos.estimators import compare_estimators
    from bayesbin.sklearn import BinaryNetworkClassifier

    estimators.register("mine", Mine)
    model, data = problem()
    parts = bb.recipe("bayesbin", model, epochs=1, estimator="mine", num_samples=3)
    assert type(parts.estimator) is Mine and parts.estimator.num_samples == 3
    assert parts.settings["estimator"] == "mine" and parts.fit(data, progress=False).epochs == 1
    assert recipes.parse_settings("bayesbin", ["estimator=mine"]) == {"estimator": "mine"}
    few = {"num_weights": 3, "num_samples": [2], "lambda_scales": [0.0], "num_replicates": 20}
    report = compare_estimators(["mine", "disarm"], **few).reports[0.0]
    assert [row.name for row in report.rows] == ["mine 2", "disarm 2"]
    x, y = data.x.numpy(), data.y.numpy()
    fitted = BinaryNetworkClassifier(4, estimator="mine", epochs=1, random_state=0).fit(x, y)
    assert fitted.settings_["estimator"] == "mine"
    with pytest.raises(ValueError, match="'mine' has no setting temperature"):
        recipes.settings_of("bayesbin", estimator="mine", temperature=0.5)


def test_an_installed_estimator_is_checked_when_it_is_used(monkeypatch):
    module(monkeypatch, "theirs", Good=Mine, Bad=Detached)
    install(monkeypatch, ("theirs-pkg", "bayesbin.estimators", "good", "theirs:Good"),
            ("theirs-pkg", "bayesbin.estimators", "bad", "theirs:Bad"))  # fmt: skip
    assert type(estimators.named_estimator("good")) is Mine
    with pytest.raises(ValueError, match=r"'bad' comes from theirs-pkg .*does not reach lambda"):
        estimators.named_estimator("bad")


# Guides


class Bare(nn.Module):
    """The least that a guide has: sites, posterior(), draws, parameters."""

    def __init__(self, model, init_scale=0.1):
        super().__init__()
        self.sites = {"weight": None}
        with pyro.poutine.trace() as found, pyro.poutine.block():
            self.natural = nn.Parameter(init_scale * torch.randn(2, 3))
        assert found is not None

    def posterior(self):
        return bb.BinaryPosterior({"weight": self.natural.detach().clone()})

    def forward(self, *args, **kwargs):
        signs = bb.SignBernoulli(natural=self.natural).to_event(2)
        return {"weight": pyro.sample("weight", signs)}

    def training_groups(self):
        yield TrainingGroup((self.natural,), "natural-gradient", "natural")


class NoSites(Bare):
    def __init__(self, model, init_scale=0.1):
        super().__init__(model, init_scale)
        del self.sites


class OtherSites(Bare):
    def __init__(self, model, init_scale=0.1):
        super().__init__(model, init_scale)
        self.sites = {"w": None}


class NoPosterior(Bare):
    posterior = None


class EmptyPosterior(Bare):
    def posterior(self):
        return {}


class Silent(Bare):
    def forward(self, *args, **kwargs):
        return {}


class Fixed(Bare):
    def __init__(self, model, init_scale=0.1):
        super().__init__(model, init_scale)
        self.natural.requires_grad_(False)


class WrongGroups(Bare):
    def training_groups(self):
        yield self.natural


@pytest.mark.parametrize(
    "factory, message",
    [
        (NoSites, "to say what it is over: sites"),
        (OtherSites, "in which the site 'weight' of a small model is missing"),
        (NoPosterior, "to have a method posterior"),
        (EmptyPosterior, "to be a mapping of site names to distributions"),
        (Silent, "draws no value for the site 'weight' when it is called; its sites are none"),
        (Fixed, "has nothing to train"),
        (WrongGroups, "yield .*TrainingGroup; got Parameter"),
        (lambda model: None, "cannot be built as .*unexpected keyword argument 'init_scale'"),
        (lambda model, init_scale: len(model), "cannot be built as .*TypeError"),
        (lambda model, init_scale: lambda: None, "to be a torch module"),
        ("mean-field", "a class or function that takes a model; got 'mean-field'"),
    ],
)
def test_guides_that_break_the_contract(factory, message):
    with pytest.raises(ValueError, match=message):
        guides.register("mine", factory)
    assert "mine" not in guides.names()


def test_registered_guides_are_found_by_name():
    guides.register("bare", Bare)
    guides.register("ternary", lambda model, **options: AutoLowBit(model, (-1, 0, 1), **options))
    torch.manual_seed(0)
    x = torch.randn(40, 3)
    data = Batches((x, (x[:, 0] > 0).long()), 20)
    for name, kind in (("bare", Bare), ("ternary", AutoLowBit)):
        model = Classifier(bb.nn.BinaryLinear(3, 2), dataset_size=40)
        parts = bb.recipe("bayesbin", model, epochs=2, guide=name, init_scale=0.5)
        assert type(parts.guide) is kind and len(parts.optimizers) == 2
        before = [p.detach().clone() for p in parts.guide.parameters()]
        parts.fit(data, progress=False)
        pairs = zip(before, parts.guide.parameters(), strict=True)
        assert not any(torch.equal(old, new) for old, new in pairs)
        with pytest.raises(ValueError, match=f"guide '{name}' has no setting sharing"):
            recipes.settings_of("bayesbin", guide=name, sharing=["filter"])


# Recipes


def build(given):
    guide = AutoSignBernoulli(given.model, **given.guide_options())
    optimizer = torch.optim.SGD(guide.natural_parameters(), lr=given.settings["rate"])
    return Parts(guide, StraightThrough(), [optimizer])


def changed(**parts):
    """A build with other parts."""

    def other(given):
        made = build(given)
        return Parts(**{"guide": made.guide, "estimator": made.estimator,
                        "optimizers": made.optimizers} | parts)  # fmt: skip

    return other


@pytest.mark.parametrize(
    "method, message",
    [
        (build, r"to be a bayesbin.recipes.Method\(build, settings\)"),
        (Method(lambda given: None, {}), "Parts.guide, estimator, optimizers.; got None"),
        (Method(lambda given: (1, 2, 3), {}), "build bayesbin.recipes.Parts"),
        (Method(changed(guide=None), {"rate": 0.1}), "to build a guide; got None"),
        (Method(changed(estimator="disarm"), {"rate": 0.1}), "Estimator; got 'disarm'"),
        (Method(changed(optimizers=["adam"]), {"rate": 0.1}), "of torch.optim's kind; got"),
        (Method(changed(schedules=[1.0]), {"rate": 0.1}), r"to have step\(\); got"),
        (Method(build, {}), "cannot be built for a network .*KeyError: 'rate'"),
        (Method(build, {"rate": torch.ones(3)}), "a number, a string, a list of these or None"),
        (Method(build, {"rate": 0.1, "kl_weight": float("nan")}), "JSON|finite"),
        (Method(build, {"rate": 0.1}, resolve=lambda s, g: s | {"extra": {1, 2}}), "JSON"),
    ],
)
def test_recipes_that_break_the_contract(method, message):
    with pytest.raises(ValueError, match=message):
        recipes.register("mine", method)
    assert "mine" not in recipes.names()


def test_a_registered_recipe_is_found_by_name():
    from bayesbin.sklearn import BinaryNetworkClassifier

    published = {"published": {"rate": 1e-4}}
    mine = Method(build, {"rate": 0.01, "kl_weight": 1.0, "tags": ["a"]}, "here", presets=published)
    recipes.register("mine", mine)
    model, data = problem()
    parts = bb.recipe("mine", model, epochs=2, rate=0.02)
    assert parts.optimizers[0].param_groups[0]["lr"] == 0.02 and parts.source == "here"
    assert parts.settings == recipes.settings_of("mine", rate=0.02)
    assert parts.settings == {"settings": "ours", "rate": 0.02, "kl_weight": 1.0, "tags": ["a"],
                              "real_lr": 0.01, "init_scale": 0.1, "schedule": "cosine"}  # fmt: skip
    assert parts.fit(data, progress=False).history[0]["kl_weight"] == 1.0
    assert recipes.parse_settings("mine", ["settings=published", "tags=a,b"]) == {
        "settings": "published",
        "tags": ["a", "b"],
    }
    assert recipes.settings_of("mine", settings="published")["rate"] == 1e-4
    for overrides, message in (
        ({"rate": "fast"}, "rate to be a finite number; got 'fast'"),
        ({"tags": 3.5j}, "tags to be a list of numbers or strings"),
        ({"lr": 0.1}, "'mine' has the settings settings, rate, kl_weight"),
    ):
        with pytest.raises(ValueError, match=message):
            recipes.settings_of("mine", **overrides)
    fitted = BinaryNetworkClassifier(4, recipe="mine", kl_weight=0.5, epochs=1, random_state=0)
    x, y = data.x.numpy(), data.y.numpy()
    assert fitted.fit(x, y).settings_["kl_weight"] == 0.5


def test_an_installed_recipe(monkeypatch):
    module(monkeypatch, "theirs", good=Method(build, {"rate": 0.1}), bad=build)
    install(monkeypatch, ("theirs-pkg", "bayesbin.recipes", "good", "theirs:good"),
            ("theirs-pkg", "bayesbin.recipes", "bad", "theirs:bad"))  # fmt: skip
    assert recipes.names()[-2:] == ("good", "bad")
    assert recipes.settings_of("good")["rate"] == 0.1
    with pytest.raises(ValueError, match=r"'bad' comes from theirs-pkg .*bayesbin.recipes.Method"):
        recipes.settings_of("bad")
