"""The training loop: exact resume, interruption, several optimizers, errors in sentences."""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from bayesbin.data import Batches
from bayesbin.distributions import SignBernoulli
from bayesbin.estimators import LocalReparameterization, StraightThrough
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer.checkpoint import CheckpointWarning, checkpoints, read_checkpoint
from bayesbin.infer.fit import EpochReport, FitResult
from bayesbin.infer.fit import fit as fit_with_bar
from bayesbin.infer.noise import STEP_NOISE, NoiseStream, counter_word, ordered_batches
from bayesbin.nn import Classifier, to_binary_
from bayesbin.optim import DEFAULTS, BayesianLearningRule, make_optimizers, training_groups

N = 22  # batches of 6, 6, 6, 4


def fit(*args: Any, **kwargs: Any) -> FitResult:
    return fit_with_bar(*args, **{"progress": False, **kwargs})


def problem(dropout: float = 0.0) -> tuple[Any, Any, Batches]:
    """The same small network, guide and batches whenever it is called."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        x = torch.randn(N, 5)
        y = (x[:, 0] > 0).long()
        net = nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 2)
        )
        model = Classifier(to_binary_(net), dataset_size=N)
        guide = AutoSignBernoulli(model)
    return model, guide, Batches((x, y), batch_size=6)


def both_optimizers(model: Any, guide: Any) -> dict[str, Any]:
    """Momentum, Adam, and a scheduler on each."""
    rule = BayesianLearningRule(guide.natural_parameters(), lr=0.2 / N, momentum=0.9)
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    return {
        "optimizers": [rule, adam],
        "schedulers": [
            torch.optim.lr_scheduler.StepLR(rule, 2, gamma=0.5),
            torch.optim.lr_scheduler.MultiStepLR(adam, [3, 4], gamma=0.5),
        ],
    }


def constant(model: Any, guide: Any, *others: Any) -> dict[str, Any]:
    """The default optimizers without their cosines, for runs that are to be lengthened."""
    return {"optimizers": make_optimizers(training_groups(guide, model, *others))}


def snapshot(*modules: nn.Module) -> list[Tensor]:
    return [v.detach().clone() for m in modules for v in m.state_dict().values()]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def timeless(result: FitResult) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in result.history]


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@contextmanager
def at_step(step: int, action: Callable[[], Any]) -> Iterator[None]:
    """Do something within the ``step``-th training step, between gradients and update."""
    count = 0

    def hook(optimizer: Any, *_: Any) -> None:
        nonlocal count
        count += isinstance(optimizer, BayesianLearningRule)
        if count == step and isinstance(optimizer, BayesianLearningRule):
            action()

    handle = register_optimizer_step_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture
def validation_scores(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """Scores that the next validations give, from the front; draws noise as a real one does."""
    scores: list[dict[str, float]] = []

    def validation_metrics(
        model: Any, guide: Any, data: Any, calibration: Any, dataset_size: int, seed: int
    ) -> Any:
        torch.rand(7)
        model.eval()
        for _ in data:
            pass
        return scores.pop(0)

    module = types.ModuleType("bayesbin.infer.validation")
    module.validation_metrics = validation_metrics  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bayesbin.infer.validation", module)
    return scores


# What it does


def test_learns_and_reports() -> None:
    model, guide, data = problem()
    result = fit(model, guide, data, epochs=30, **both_optimizers(model, guide))
    first, last = result.history[0], result.history[-1]
    assert last["nll"] < 0.9 * first["nll"]
    assert (result.epochs, result.steps, result.stopped_early) == (30, 120, False)
    assert [row["epoch"] for row in result.history] == list(range(1, 31))
    for row in result.history:
        assert row["loss"] == pytest.approx(row["nll"] + row["kl_weight"] * row["kl"])
        assert row["seconds"] > 0 and len(row["lr"]) == 2
    assert first["lr"] == [0.2 / N, 1e-2] and last["lr"][0] < first["lr"][0]


def test_terms_are_nats_per_datum() -> None:
    # Frozen at lambda = 1, prior 0: KL is the number of weights times KL(1 || 0), per datum.
    model, guide, data = problem()
    with torch.no_grad():
        for parameter in guide.natural_parameters():
            parameter.fill_(1.0)
    optimizer = torch.optim.SGD([*guide.parameters(), *model.parameters()], lr=0.0)
    result = fit(model, guide, data, epochs=1, optimizers=optimizer)
    weights = sum(p.numel() for p in guide.natural_parameters())
    kl = math.tanh(1.0) - math.log(math.cosh(1.0))
    assert result.history[0]["kl"] == pytest.approx(weights * kl / N)


def test_result_is_json() -> None:
    rows = [{"epoch": 1, "nll": math.nan, "lr": [0.1], "validation_nll": math.inf}]
    result = FitResult(rows, epochs=1, steps=2, stopped_early=True)
    assert json.loads(result.to_json()) == {
        "history": [{"epoch": 1, "nll": None, "lr": [0.1], "validation_nll": None}],
        "epochs": 1,
        "steps": 2,
        "stopped_early": True,
        "choices": {},
    }


def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    model, guide, data = problem()
    fit(model, guide, data, epochs=2, progress=True)
    shown = capsys.readouterr().err
    assert "epoch 2/2" in shown and "nll=" in shown and "kl=" in shown
    fit(model, guide, data, epochs=2, progress=False)
    assert capsys.readouterr().err == ""


def test_default_optimizers() -> None:
    model, guide, data = problem()
    before = snapshot(model, guide)
    result = fit(model, guide, data, epochs=1)
    assert result.history[0]["lr"] == [DEFAULTS["lr"], DEFAULTS["real_lr"]]
    trained = [p for p in (*model.parameters(), *guide.parameters())]
    assert not any(any(p.shape == b.shape and torch.equal(p, b) for b in before) for p in trained)


def test_kl_weight_may_anneal() -> None:
    model, guide, data = problem()
    result = fit(model, guide, data, epochs=3, kl_weight=lambda epoch: epoch / 10)
    assert [row["kl_weight"] for row in result.history] == [0.1, 0.2, 0.3]
    with pytest.raises(ValueError, match=r"epoch 2 to be a number of at least 0; got -1\.0"):
        fit(model, guide, data, epochs=3, kl_weight=lambda epoch: 3.0 - 2.0 * epoch)


@pytest.mark.parametrize("kind", ["tuple", "list", "dict", "tensor"])
def test_kinds_of_batches(kind: str) -> None:
    x = torch.randn(6, 3)
    y = x.sum(1)

    def model(x: Tensor, y: Tensor | None = None) -> None:
        w = pyro.sample("w", SignBernoulli(natural=torch.zeros(3)).to_event(1))
        with pyro.plate("data", 6):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=x[:, 0] if y is None else y)

    batch = {"tuple": (x, y), "list": [x, y], "dict": {"y": y, "x": x}, "tensor": x}[kind]
    guide = AutoSignBernoulli(model, args=(x, y))
    assert fit(model, guide, [batch], epochs=2, dataset_size=6).steps == 2
    with pytest.raises(TypeError, match=r"expected a batch that is a tuple.*got str"):
        fit(model, guide, ["text"], epochs=1, dataset_size=6)


def test_modes_are_restored() -> None:
    model, guide, data = problem()
    model.eval()
    model.net[2].train()
    before = {module: module.training for module in (*model.modules(), *guide.modules())}
    seen = []
    with at_step(1, lambda: seen.append(model.net[1].training)):
        fit(model, guide, data, epochs=1)
    assert seen == [True]
    assert before == {module: module.training for module in before}


def test_callbacks() -> None:
    model, guide, data = problem()
    reports: list[EpochReport] = []

    def stop_at_two(report: EpochReport) -> bool:
        reports.append(report)
        return report.epoch == 2

    result = fit(model, guide, data, epochs=5, callbacks=[stop_at_two, lambda report: 1])
    assert (result.epochs, result.stopped_early) == (2, True)
    assert reports[1].model is model and reports[1].guide is guide
    with pytest.raises(TypeError):
        reports[0].row["loss"] = 0.0  # type: ignore[index]


# Noise


def test_counter_words() -> None:
    words = {counter_word(*k) for k in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (2**32, 0, 0))}
    assert len(words) == 5 and max(words) < 2**32
    assert counter_word(0, 0, 0) == counter_word(0, 0, 0)


def test_a_stream_continues_and_leaves_no_trace() -> None:
    outside = torch.get_rng_state()
    stream = NoiseStream(0, STEP_NOISE, 4)
    with stream.active():
        first = torch.rand(2)
    torch.rand(5)
    torch.set_rng_state(outside)
    with pytest.raises(RuntimeError), stream.active():
        second = torch.rand(2)
        raise RuntimeError
    assert torch.equal(torch.get_rng_state(), outside)
    with NoiseStream(0, STEP_NOISE, 4).active():
        assert torch.equal(torch.rand(4), torch.cat([first, second]))


def test_draws_elsewhere_change_nothing() -> None:
    def disturb(report: EpochReport) -> None:
        torch.rand(report.epoch)

    class Disturbing:
        """Batches whose consumer draws from the global stream between two of them."""

        def __init__(self, data: Batches) -> None:
            self.data = data

        def __len__(self) -> int:
            return len(self.data)

        def __iter__(self) -> Iterator[Any]:
            for batch in self.data:
                torch.rand(3)
                yield batch

    finals = []
    for data_kind, callbacks, draws in ((lambda d: d, [], 0), (Disturbing, [disturb], 11)):
        model, guide, data = problem(dropout=0.5)
        torch.rand(draws)
        outside = torch.get_rng_state()
        fit(model, guide, data_kind(data), epochs=3, callbacks=callbacks)
        if not callbacks:
            assert torch.equal(torch.get_rng_state(), outside)
        finals.append(snapshot(model, guide))
    assert same(*finals)


def test_seeds_differ() -> None:
    finals = []
    for seed in (7, 7 + 2**32):
        model, guide, data = problem()
        fit(model, guide, data, epochs=1, seed=seed)
        finals.append(snapshot(guide))
    assert not same(*finals)


def loaders(kind: str) -> Any:
    data = problem()[2]
    dataset = TensorDataset(data.x, data.y)
    own = torch.Generator().manual_seed(99)
    if kind == "global":
        return DataLoader(dataset, batch_size=6, shuffle=True)
    if kind == "generator":
        return DataLoader(dataset, batch_size=6, shuffle=True, generator=own)
    if kind == "sampler":
        return DataLoader(dataset, batch_size=6, sampler=RandomSampler(dataset, generator=own))
    return data


@pytest.mark.parametrize("kind", ["global", "generator", "sampler", "Batches"])
def test_data_order_is_a_function_of_seed_and_epoch(kind: str) -> None:
    def order(data: Any, seed: int, epoch: int) -> Tensor:
        return torch.cat([x[:, 0] for x, _ in ordered_batches(data, seed, epoch)])

    data = loaders(kind)
    outside = torch.get_rng_state()
    first = order(data, 0, 1)
    assert torch.equal(torch.get_rng_state(), outside)
    torch.rand(3)
    assert torch.equal(first, order(data, 0, 1))
    assert torch.equal(first, order(loaders(kind), 0, 1))
    assert not torch.equal(first, order(data, 0, 2))
    assert not torch.equal(first, order(data, 1, 1))


# Resume


@pytest.mark.parametrize("kind", ["Batches", "global", "generator", "sampler"])
def test_five_and_five_are_ten(tmp_path: Path, kind: str) -> None:
    def run(epochs: int, folder: Path) -> tuple[FitResult, list[Tensor]]:
        model, guide, _ = problem(dropout=0.3)
        settings = both_optimizers(model, guide)
        result = fit(model, guide, loaders(kind), epochs=epochs, checkpoint_dir=folder, **settings)
        return result, snapshot(model, guide)

    whole, expected = run(10, tmp_path / "whole")
    half, midway = run(5, tmp_path / "parts")
    torch.rand(17)
    resumed, final = run(10, tmp_path / "parts")
    assert not same(midway, expected)
    assert same(final, expected)
    assert timeless(resumed) == timeless(whole) and resumed.steps == whole.steps == 40
    assert resumed.history[:5] == half.history
    assert [p.name for p in checkpoints(tmp_path / "parts")] == [
        "epoch-000009.ckpt",
        "epoch-000010.ckpt",
    ]
    states = [read_checkpoint(tmp_path / k / "epoch-000010.ckpt") for k in ("whole", "parts")]
    for name in ("optimizers", "schedulers"):
        left, right = (repr(state[name]) for state in states)
        assert left == right


def test_resume_within_one_process_and_same_objects(tmp_path: Path) -> None:
    model, guide, data = problem()
    fit(model, guide, data, epochs=4, **both_optimizers(model, guide))
    expected = snapshot(model, guide)
    model, guide, data = problem()
    settings = both_optimizers(model, guide)
    for epochs in (1, 3, 4):
        fit(model, guide, data, epochs=epochs, checkpoint_dir=tmp_path, **settings)
    assert same(snapshot(model, guide), expected)


def test_finished_run_returns_at_once_with_its_state(tmp_path: Path) -> None:
    model, guide, data = problem()
    done = fit(model, guide, data, epochs=3, checkpoint_dir=tmp_path, **constant(model, guide))
    expected = snapshot(model, guide)
    model, guide, data = problem()
    with at_step(1, lambda: pytest.fail("trained on")):
        for epochs in (3, 2):
            settings = constant(model, guide)
            again = fit(model, guide, data, epochs=epochs, checkpoint_dir=tmp_path, **settings)
            assert again == done
    assert same(snapshot(model, guide), expected)


def test_resume_from_the_previous_checkpoint_if_the_last_is_damaged(tmp_path: Path) -> None:
    model, guide, data = problem()
    fit(model, guide, data, epochs=4, checkpoint_dir=tmp_path)
    expected = snapshot(model, guide)
    last = tmp_path / "epoch-000004.ckpt"
    last.write_bytes(last.read_bytes()[:-1])
    model, guide, data = problem()
    with pytest.warns(CheckpointWarning, match="epoch-000004"):
        result = fit(model, guide, data, epochs=4, checkpoint_dir=tmp_path)
    assert result.epochs == 4 and same(snapshot(model, guide), expected)


def test_a_run_is_not_mixed_with_another(tmp_path: Path) -> None:
    model, guide, data = problem()
    fit(model, guide, data, epochs=1, checkpoint_dir=tmp_path)
    with pytest.raises(FileExistsError, match="resume=False"):
        fit(model, guide, data, epochs=1, checkpoint_dir=tmp_path, resume=False)
    with pytest.raises(ValueError, match=r"over 1 epochs in the .* over 2 epochs now.* lengthened"):
        fit(model, guide, data, epochs=2, checkpoint_dir=tmp_path)
    for change, message in (
        ({"seed": 1}, "seed: 0 in the checkpoint, 1 now"),
        ({"kl_weight": 0.5}, r"KL weight: 0\.03 in the checkpoint, 0\.5 now"),
        ({"estimator": StraightThrough()}, "estimator: FlipoutWhere.* in the checkpoint, Straight"),
        (
            both_optimizers(model, guide),
            "optimizer 0 group 0: .*; scheduler 0: .* checkpoint, StepLR now",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            fit(model, guide, data, epochs=2, checkpoint_dir=tmp_path, **change)
    other = Classifier(to_binary_(nn.Linear(5, 2)), dataset_size=N)
    with pytest.raises(ValueError, match=r"parameter guide.*none now"):
        fit(other, AutoSignBernoulli(other), data, epochs=2, checkpoint_dir=tmp_path)


def test_parameters_that_no_module_owns_are_kept(tmp_path: Path) -> None:
    x = torch.randn(6, 3)

    def run(*epochs: int, folder: Path) -> Tensor:
        for end in epochs:
            shift = torch.nn.Parameter(torch.zeros(()))

            def model(x: Tensor, shift: Tensor = shift) -> None:
                w = pyro.sample("w", SignBernoulli(natural=torch.zeros(3)).to_event(1))
                with pyro.plate("data", 6):
                    pyro.sample("y", dist.Normal(x @ w + shift, 1.0), obs=x.sum(1) + 2.0)

            torch.manual_seed(0)
            guide = AutoSignBernoulli(model, args=(x,))
            rule = BayesianLearningRule(guide.natural_parameters(), lr=0.01)
            optimizers = [rule, torch.optim.Adam([shift], lr=0.1)]
            settings = {"dataset_size": 6, "optimizers": optimizers, "checkpoint_dir": folder}
            fit(model, guide, [x], epochs=end, **settings)
        return shift.detach()

    whole, parts = run(6, folder=tmp_path / "a"), run(3, 6, folder=tmp_path / "b")
    assert whole != 0 and torch.equal(whole, parts)


# Interruption


@pytest.mark.parametrize("step", [1, 6, 8])  # the first, one within, the last of an epoch
@pytest.mark.parametrize("kind", ["Batches", "generator"])
def test_interrupted_run_continues_exactly(tmp_path: Path, step: int, kind: str) -> None:
    model, guide, _ = problem(dropout=0.3)
    settings = both_optimizers(model, guide)
    whole = fit(model, guide, loaders(kind), epochs=4, **settings)
    expected = snapshot(model, guide)

    model, guide, _ = problem(dropout=0.3)
    before = signal.getsignal(signal.SIGINT)
    settings = {**both_optimizers(model, guide), "checkpoint_dir": tmp_path}
    message = rf"step {step}; the same call continues: .*ckpt"
    with at_step(step, interrupt), pytest.raises(KeyboardInterrupt, match=message):
        fit(model, guide, loaders(kind), epochs=4, **settings)
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoints(tmp_path)[-1].name.endswith(f"-step-{step:06d}.ckpt")
    assert read_checkpoint(checkpoints(tmp_path)[-1])["batch"] == (step - 1) % 4 + 1

    model, guide, _ = problem(dropout=0.3)
    settings = {**both_optimizers(model, guide), "checkpoint_dir": tmp_path}
    resumed = fit(model, guide, loaders(kind), epochs=4, **settings)
    assert same(snapshot(model, guide), expected)
    assert timeless(resumed) == timeless(whole) and resumed.steps == whole.steps


def test_interrupted_twice_in_one_epoch(tmp_path: Path) -> None:
    model, guide, data = problem()
    fit(model, guide, data, epochs=2)
    expected = snapshot(model, guide)
    for _ in range(3):
        model, guide, data = problem()
        with at_step(1, interrupt), pytest.raises(KeyboardInterrupt):
            fit(model, guide, data, epochs=2, checkpoint_dir=tmp_path)
    model, guide, data = problem()
    fit(model, guide, data, epochs=2, checkpoint_dir=tmp_path)
    assert same(snapshot(model, guide), expected)


@pytest.mark.parametrize("epochs", [1, 3])
def test_interrupted_in_a_callback(tmp_path: Path, epochs: int) -> None:
    model, guide, data = problem()
    with pytest.raises(KeyboardInterrupt):
        fit(
            model,
            guide,
            data,
            epochs=epochs,
            checkpoint_dir=tmp_path,
            callbacks=[lambda _: interrupt()],
        )
    assert [path.name for path in checkpoints(tmp_path)] == ["epoch-000001.ckpt"]


def test_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    model, guide, data = problem()
    fit(model, guide, data, epochs=1, checkpoint_dir=tmp_path, **constant(model, guide))
    expected = snapshot(model, guide)
    after = []

    def twice() -> None:
        interrupt()
        after.append("first")
        interrupt()
        after.append("second")

    with at_step(2, twice), pytest.raises(KeyboardInterrupt, match="twice"):
        fit(model, guide, data, epochs=3, checkpoint_dir=tmp_path, **constant(model, guide))
    assert after == ["first"]
    model, guide, data = problem()
    fit(model, guide, data, epochs=1, checkpoint_dir=tmp_path, **constant(model, guide))
    assert same(snapshot(model, guide), expected)


def test_interrupt_without_checkpoints_finishes_the_step() -> None:
    model, guide, data = problem()
    before = snapshot(guide)
    with at_step(1, interrupt), pytest.raises(KeyboardInterrupt, match=r"after step 1$"):
        fit(model, guide, data, epochs=1)
    assert not same(snapshot(guide), before)


def test_workers_that_die_of_the_interrupt_do_not_hide_it(tmp_path: Path) -> None:
    class Dying:
        """What a DataLoader does when Ctrl-C has ended its worker processes."""

        def __iter__(self) -> Iterator[Any]:
            yield from list(problem()[2])[:2]
            interrupt()
            raise RuntimeError("DataLoader worker (pid 1) exited unexpectedly")

    model, guide, _ = problem()
    with pytest.raises(KeyboardInterrupt, match="after step 2"):
        fit(model, guide, Dying(), epochs=1, checkpoint_dir=tmp_path)
    assert read_checkpoint(checkpoints(tmp_path)[-1])["batch"] == 2


def test_other_threads_and_ignored_signals() -> None:
    results = []

    def work() -> None:
        # Warning filters and the default dtype are the process's, the seed does not matter here.
        model, guide, data = problem()
        results.append(fit(model, guide, data, epochs=1).epochs)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        model, guide, data = problem()
        with at_step(1, interrupt):
            results.append(fit(model, guide, data, epochs=1).epochs)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert results == [1, 1]


# Validation


def test_validation_and_patience(tmp_path: Path, validation_scores: list[dict[str, float]]) -> None:
    def run(epochs: int, patience: int | None = 2, **kwargs: Any) -> FitResult:
        model, guide, data = problem(dropout=0.3)
        settings = {"validation": data, "patience": patience, **constant(model, guide), **kwargs}
        result = fit(model, guide, data, epochs=epochs, **settings)
        finals.append(snapshot(model, guide))
        return result

    finals: list[list[Tensor]] = []
    scores = [0.9, 0.8, 0.8, math.nan, 0.1]
    validation_scores += [{"nll": nll, "accuracy": 0.5} for nll in scores]
    result = run(9)
    assert (result.epochs, result.stopped_early) == (4, True)
    assert result.history[1]["validation_nll"] == 0.8
    assert result.history[1]["validation_accuracy"] == 0.5

    # The counters survive a resume, which stops at once when they say so.
    validation_scores[:] = [{"nll": nll} for nll in scores]
    for epochs in (3, 9, 9):
        result = run(epochs, checkpoint_dir=tmp_path)
    assert (result.epochs, result.stopped_early) == (4, True)

    # Validation, and patience that does not run out, leave training as it is without.
    validation_scores[:] = [{"nll": -i} for i in range(2)]
    run(4, validate_every=2)
    assert [("validation_nll" in row) for row in result.history] == [True] * 4
    run(4, patience=None, validation=None)
    assert same(finals[-1], finals[-2]) and same(finals[-1], finals[0])


def test_real_validation_leaves_training_as_it_is() -> None:
    finals = []
    for validated in (False, True):
        model, guide, data = problem(dropout=0.3)
        result = fit(model, guide, data, epochs=2, validation=data if validated else None)
        finals.append(snapshot(model, guide))
    assert {"validation_nll", "validation_accuracy"} <= set(result.history[0])
    assert same(*finals)


def test_plateau_scheduler_follows_the_validation_nll(
    validation_scores: list[dict[str, float]],
) -> None:
    model, guide, data = problem()
    settings = both_optimizers(model, guide)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(settings["optimizers"][1], patience=0)
    validation_scores += [{"nll": nll} for nll in (1.0, 2.0, 3.0)]
    settings["schedulers"] = plateau
    result = fit(model, guide, data, validation=data, epochs=3, **settings)
    assert [row["lr"][1] for row in result.history] == pytest.approx([1e-2, 1e-2, 1e-3])


# Errors


def test_unfit_data() -> None:
    model, guide, data = problem()
    with pytest.raises(TypeError, match="anew at each epoch, got a one-shot generator"):
        fit(model, guide, (batch for batch in data), epochs=1)
    with pytest.raises(TypeError, match="got a one-shot list_iterator"):
        fit(model, guide, data, epochs=1, validation=iter([1]))
    with pytest.raises(TypeError, match=r"got tensors; a single batch is \[\(x, y\)\]"):
        fit(model, guide, (data.x, data.y), epochs=1)
    with pytest.raises(TypeError, match="got Tensor"):
        fit(model, guide, data.x, epochs=1)
    for empty in ([], (), DataLoader(TensorDataset(torch.zeros(0, 5)))):
        with pytest.raises(ValueError, match="at least one batch, got none in epoch 1"):
            fit(model, guide, empty, epochs=1)


def test_data_that_is_used_up_by_one_epoch() -> None:
    class Once:
        def __init__(self, data: Any) -> None:
            self.iterator = iter(data)

        def __iter__(self) -> Iterator[Any]:
            return self.iterator

    model, guide, data = problem()
    with pytest.raises(ValueError, match="got none in epoch 2"):
        fit(model, guide, Once(data), epochs=2)


def test_dataset_size() -> None:
    model, guide, data = problem()
    assert fit(model, guide, data, epochs=1, dataset_size=N).epochs == 1
    with pytest.raises(ValueError, match=r"dataset_size=23 and model\.dataset_size=22"):
        fit(model, guide, data, epochs=1, dataset_size=23)

    def plain(x: Tensor, y: Tensor) -> Any:
        return model(x, y)

    with pytest.raises(ValueError, match="which the model does not say; pass dataset_size="):
        fit(plain, guide, data, epochs=1)


def test_optimizers_are_checked() -> None:
    model, guide, data = problem()
    natural = list(guide.natural_parameters())
    adam = torch.optim.Adam([*model.parameters(), natural[0]])
    rule = BayesianLearningRule(natural, lr=0.1)
    with pytest.raises(ValueError, match=r"one optimizer, got in several: guide.*natural"):
        fit(model, guide, data, epochs=1, optimizers=[rule, adam])
    with pytest.raises(TypeError, match="got none"):
        fit(model, guide, data, epochs=1, optimizers=[])
    with pytest.raises(TypeError, match="got str"):
        fit(model, guide, data, epochs=1, optimizers=["adam"])
    before = snapshot(model.net[0], model.net[4])
    with pytest.warns(UserWarning, match="No optimizer trains .*bias"):
        fit(model, guide, data, epochs=1, optimizers=rule)
    assert same(snapshot(model.net[0], model.net[4]), before)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with warnings.catch_warnings():
        # Pyro says of each frozen parameter that it is not in the param store, where none is.
        warnings.filterwarnings("ignore", ".*was not registered in the param store")
        fit(model, guide, data, epochs=1, optimizers=rule)


def test_settings_are_checked() -> None:
    model, guide, data = problem()
    for settings, message in (
        ({"epochs": 0}, "epochs to be a whole number of at least 1; got 0"),
        ({"epochs": 1, "validate_every": 0}, "validate_every to be .*; got 0"),
        ({"epochs": 1, "patience": 3}, "patience=3 waits for .* pass validation="),
        (
            {"epochs": 1, "patience": 0, "validation": data},
            "patience to be a whole number of at least 1; got 0",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            fit(model, guide, data, **settings)


def test_loss_that_is_not_finite(tmp_path: Path) -> None:
    model, guide, data = problem()
    fit(model, guide, data, epochs=1, checkpoint_dir=tmp_path, **constant(model, guide))
    expected = snapshot(model, guide)

    def poison() -> None:
        with torch.no_grad():
            model.net[4].bias[0] = torch.nan

    message = "finite loss, got .*nll = nan.* in epoch 2 at step 6; lower the learning rate"
    with warnings.catch_warnings(), pyro.validation_enabled(False), at_step(1, poison):
        warnings.simplefilter("ignore")  # Pyro warns of NaN in its own words
        with pytest.raises(FloatingPointError, match=message):
            fit(model, guide, data, epochs=3, checkpoint_dir=tmp_path, **constant(model, guide))
    model, guide, data = problem()
    fit(model, guide, data, epochs=1, checkpoint_dir=tmp_path, **constant(model, guide))
    assert same(snapshot(model, guide), expected)


def test_a_parameter_broken_by_the_last_step_is_not_saved(tmp_path: Path) -> None:
    model, guide, data = problem()
    settings = both_optimizers(model, guide)
    settings["optimizers"][1].param_groups[0]["lr"] = math.inf
    with pytest.raises(FloatingPointError, match=r"got NaN or infinity in model\..* in epoch 1"):
        one_step = [next(iter(data))]
        fit(model, guide, one_step, epochs=1, checkpoint_dir=tmp_path, **settings)
    assert checkpoints(tmp_path) == []


def test_a_failing_callback_does_not_cost_the_epoch(tmp_path: Path) -> None:
    model, guide, data = problem()

    def fail(report: EpochReport) -> None:
        raise OSError("plot could not be saved")

    with pytest.raises(OSError, match="plot"):
        fit(model, guide, data, epochs=2, checkpoint_dir=tmp_path, callbacks=[fail])
    assert [path.name for path in checkpoints(tmp_path)] == ["epoch-000001.ckpt"]


def test_estimator_parameters_are_trained_and_kept(tmp_path: Path) -> None:
    class Scaled(LocalReparameterization):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, objective: Any, natural: Any) -> Tensor:
            return super().forward(objective, natural) * self.scale.square()

    def run(*epochs: int, folder: Path) -> Tensor:
        for end in epochs:
            model, guide, data = problem()
            estimator = Scaled()
            settings = constant(model, guide, estimator)
            fit(
                model, guide, data, epochs=end, estimator=estimator, checkpoint_dir=folder,
                **settings,
            )  # fmt: skip
        return estimator.scale.detach()

    whole, parts = run(4, folder=tmp_path / "a"), run(2, 4, folder=tmp_path / "b")
    assert whole != 1 and torch.equal(whole, parts)


def test_a_network_with_real_parameters_leaves_nothing_in_the_store_and_can_be_pickled() -> None:
    net = to_binary_(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)))
    model = Classifier(net, dataset_size=8)
    guide = AutoSignBernoulli(model)
    pickle.dumps((net, guide))
    x = torch.linspace(-1.0, 1.0, 16).reshape(8, 2)
    data = Batches((x, (x[:, 0] > 0).long()), 4)
    fit_with_bar(model, guide, data, epochs=1, progress=False)
    assert list(pyro.get_param_store()) == []
    loaded = pickle.loads(pickle.dumps(net))
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.parameters(), net.parameters(), strict=True)
    )
