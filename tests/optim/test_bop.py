"""Bop and second-order Bop against their formulas, their copies and what they refuse."""

# A gradient is None until there is one, which the assertion at hand would tell.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import copy
import io
import json
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from bayesbin.data import Batches, two_moons
from bayesbin.guides import AutoSignDelta
from bayesbin.infer import fit
from bayesbin.nn import Classifier, binarize_, latents, to_binary_
from bayesbin.nn.binarizers import Signs
from bayesbin.optim import Bop, Schedule, SecondOrderBop, linear, step_decay


def signs(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape).sign())


class Reference:
    """Both rules as the papers have them, weight by weight."""

    def __init__(self, w: Tensor) -> None:
        self.w = w.detach().clone()
        self.m, self.v = torch.zeros_like(w), torch.zeros_like(w)

    def first(self, g: Tensor, threshold: float, gamma: float) -> int:
        self.m = (1 - gamma) * self.m + gamma * g
        return self.flip(self.m, threshold)

    def second(self, g: Tensor, threshold: float, gamma: float, sigma: float) -> int:
        self.m = (1 - gamma) * self.m + gamma * g
        self.v = self.v + sigma * (g * g - self.v)
        return self.flip(self.m / (self.v.sqrt() + 1e-10), threshold)

    def flip(self, evidence: Tensor, threshold: float) -> int:
        flips = self.w * evidence > threshold
        self.w = torch.where(flips, -self.w, self.w)
        return int(flips.sum())


@pytest.mark.parametrize("gamma", [1e-2, 0.3, 1.0])
@pytest.mark.parametrize("threshold", [0.0, 0.02, 0.3])
def test_bop_step_for_step(gamma, threshold):
    parameter = signs(20, 6)
    reference, bop = Reference(parameter), Bop([parameter], threshold, gamma)
    total = 0
    for _ in range(60):
        parameter.grad = torch.randn(20, 6) + 0.3
        flips = reference.first(parameter.grad, threshold, gamma)
        bop.step()
        assert torch.equal(parameter.detach(), reference.w)
        assert bop.flip_rate() == flips / 120
        assert bop.flip_metric() == pytest.approx(math.log(flips / 120 + math.exp(-9)))
        total += flips
    assert total > 0 or (gamma == 1e-2 and threshold == 0.3)


def test_second_order_bop_step_for_step():
    parameter = signs(20, 6)
    reference = Reference(parameter)
    bop = SecondOrderBop([parameter], threshold=0.4, gamma=0.2, sigma=0.1)
    total = 0
    for _ in range(60):
        parameter.grad = torch.randn(20, 6) * torch.logspace(-6, 6, 20)[:, None]
        total += reference.second(parameter.grad, 0.4, 0.2, 0.1)
        bop.step()
        assert torch.equal(parameter.detach(), reference.w)
    assert total > 0


def test_bias_correction_makes_the_first_ratio_the_sign_of_the_gradient():
    for corrected, flipped in ((True, True), (False, False)):
        parameter = nn.Parameter(torch.ones(3))
        bop = SecondOrderBop([parameter], 0.9, 0.01, 0.5, bias_correction=corrected)
        parameter.grad = torch.tensor([1e-5, 1.0, 1e5])
        bop.step()
        assert bool((parameter == (-1.0 if flipped else 1.0)).all())


def test_a_wrong_twin_is_told_apart():
    # Exchanging gamma and 1 - gamma, or flipping at |m| alone, gives other signs within a few steps.
    parameter = signs(200)
    reference, twin, bop = Reference(parameter), Reference(parameter), Bop([parameter], 0.05, 0.1)
    for _ in range(5):
        parameter.grad = torch.randn(200)
        reference.first(parameter.grad, 0.05, 0.1)
        twin.first(parameter.grad, 0.05, 0.9)
        bop.step()
    assert torch.equal(parameter.detach(), reference.w) and not torch.equal(reference.w, twin.w)


def test_fan_in_scaling_divides_the_threshold_by_the_root_of_the_inputs():
    wide, narrow = nn.Parameter(torch.ones(1, 100)), nn.Parameter(torch.ones(1, 4))
    kernel = nn.Parameter(torch.ones(1, 4, 5, 5))
    bop = Bop([wide, narrow, kernel], threshold=1.0, gamma=1.0, fan_in_scaling=True)
    for gradient, expected in ((0.09, (1, 1, 1)), (0.11, (-1, 1, -1)), (0.51, (1, -1, 1))):
        for parameter in (wide, narrow, kernel):
            parameter.grad = parameter.detach() * gradient  # asks for a flip
        bop.step()
        assert tuple(int(p.detach().mean()) for p in (wide, narrow, kernel)) == expected


def test_groups_have_thresholds_of_their_own_and_schedules_move_them():
    one, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    bop = Bop([{"params": [one], "threshold": 10.0}, {"params": [other]}], 0.1, gamma=1.0)
    one.grad = other.grad = torch.ones(3)
    bop.step()
    assert bool((one == 1).all()) and bool((other == -1).all()) and bop.flip_rate() == 0.5
    gamma = Schedule(bop, "gamma", step_decay(1e-2, 0.1, every=2))
    threshold = Schedule(bop, "threshold", linear(1e-5, 1e-8, epochs=4))
    seen = []
    for _ in range(5):
        seen.append((bop.param_groups[0]["gamma"], bop.param_groups[1]["threshold"]))
        gamma.step()
        threshold.step()
    torch.testing.assert_close([g for g, _ in seen], [1e-2, 1e-2, 1e-3, 1e-3, 1e-4])
    assert seen[0][1] == 1e-5 and seen[4][1] == pytest.approx(1e-8)


@pytest.mark.parametrize("storage", [None, torch.int8])
@pytest.mark.parametrize("rule", [Bop, SecondOrderBop])
def test_ten_steps_are_five_saved_loaded_and_five(rule, storage):
    gradients = torch.randn(10, 50)
    whole, halved = signs(50), signs(50)
    with torch.no_grad():
        halved.copy_(whole)
    one, two = (rule([p], 0.02, 0.2, storage=storage) for p in (whole, halved))
    for gradient in gradients:
        whole.grad = gradient.clone()
        one.step()
    for gradient in gradients[:5]:
        halved.grad = gradient.clone()
        two.step()
    file = io.BytesIO()
    torch.save(two.state_dict(), file)
    file.seek(0)
    fresh = nn.Parameter(halved.detach().clone() if storage is None else torch.ones(50))
    three = rule([fresh], 0.5, 0.5)
    state = torch.load(file, weights_only=True)
    if storage is not None:
        assert state["signs"][0].dtype == torch.int8
    three.load_state_dict(state)
    assert three.flip_rate() == two.flip_rate()
    for gradient in gradients[5:]:
        fresh.grad = gradient.clone()
        three.step()
    assert torch.equal(fresh, whole)


def test_copies_step():
    parameter = signs(5)
    bop = Bop([parameter], 0.0, 0.5, storage=torch.int8)
    for twin in (copy.deepcopy(bop), pickle.loads(pickle.dumps(bop))):
        twin.param_groups[0]["params"][0].grad = torch.ones(5)
        twin.step()
        assert "signs" in twin.state_dict()


def test_closures_and_parameters_without_a_gradient():
    parameter, idle = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    bop = Bop([parameter, idle], 0.1, 1.0)

    def closure():
        bop.zero_grad()
        loss = parameter.sum()
        loss.backward()
        return loss

    assert bop.flip_rate() == 0.0
    assert bop.step(closure).item() == 3.0
    assert bool((parameter == -1).all()) and bool((idle == 1).all()) and bop.flip_rate() == 0.6


@pytest.mark.parametrize("rule", [Bop, SecondOrderBop])
def test_what_is_refused(rule):
    with pytest.raises(ValueError, match="parameters of -1 and \\+1 alone"):
        rule([nn.Parameter(torch.tensor([1.0, 0.5]))])
    with pytest.raises(ValueError, match="got no parameters"):
        rule([])
    with pytest.raises(ValueError, match="threshold is a number of at least 0"):
        rule([signs(2)], threshold=-1.0)
    with pytest.raises(ValueError, match=r"gamma is in \(0, 1\]"):
        rule([signs(2)], gamma=0.0)
    with pytest.raises(ValueError, match=r"storage is torch\.int8"):
        rule([signs(2)], storage=torch.float16)
    bop = rule([signs(2)])
    with pytest.raises(ValueError, match="-1 and \\+1 alone"):
        bop.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(ValueError, match=r"sigma is in \(0, 1\]"):
        SecondOrderBop([signs(2)], sigma=2.0)


# In a plain network, and in a Pyro model


def moons_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2)
    )


def test_a_plain_network_learns_two_moons_without_normalisation():
    net = binarize_(moons_net(), Signs())
    moons = two_moons(seed=0)
    x, y = moons.x.double(), moons.y
    bop = Bop(latents(net).values(), threshold=2e-3, gamma=0.05, fan_in_scaling=True)
    owned = {id(p) for p in latents(net).values()}
    adam = torch.optim.Adam([p for p in net.parameters() if id(p) not in owned], lr=1e-2)
    losses = []
    for _ in range(300):
        loss = nn.functional.cross_entropy(net(x), y)
        net.zero_grad()
        loss.backward()
        bop.step()
        adam.step()
        losses.append(loss.item())
        assert all(bool((p.abs() == 1).all()) for p in latents(net).values())
    assert losses[0] > 0.55 and min(losses[-50:]) < 0.35


def test_in_a_pyro_model_through_fit(tmp_path):
    model = Classifier(to_binary_(moons_net().float()), dataset_size=200)
    guide = AutoSignDelta(model, binarizer=Signs())
    bop = Bop(guide.latents(), threshold=0.4, gamma=0.05, fan_in_scaling=True)
    owned = {id(p) for p in guide.latents()}
    rest = [p for p in [*model.parameters(), *guide.parameters()] if id(p) not in owned]
    result = fit(
        model, guide, Batches(two_moons(seed=0), batch_size=100), epochs=60, progress=False,
        optimizers=[bop, torch.optim.Adam(rest, lr=1e-2)],
        schedulers=[Schedule(bop, "gamma", step_decay(0.05, 0.5, every=20))],
        checkpoint_dir=tmp_path,
    )  # fmt: skip
    assert result.history[0]["lr"] == [None, 1e-2] and json.loads(result.to_json())["epochs"] == 60
    assert result.history[-1]["nll"] < 0.5 < result.history[0]["nll"]
    assert bop.param_groups[0]["gamma"] == pytest.approx(0.05 * 0.5**3)
    assert all(bool((p.abs() == 1).all()) for p in guide.latents())
    posterior = guide.posterior()
    for p, name in zip(guide.latents(), posterior, strict=True):
        assert torch.equal(posterior.signs(7)[name], p.detach())
