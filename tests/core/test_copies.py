"""Copies of networks whose functions refer to them: nothing of the original is called or changed."""

from __future__ import annotations

import functools
import types

import pytest
import torch
from torch import nn

from bayesbin.core.copies import copy_network

KNOWN = {}  # what functions know by a global variable


def layers():
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


def bound_method():
    net = layers()
    before = net.forward
    net.forward = lambda x: 2.0 * before(x)
    return net


def closure():
    net = layers()
    net.forward = lambda x: net[1](net[0](x).relu())
    return net


def method():
    net = layers()
    net.forward = types.MethodType(lambda self, x: self[0](x), net)
    return net


def closure_over_a_list():
    net = layers()
    parts = {"all": [net[0], (net[1],)]}
    net.forward = lambda x: parts["all"][1][0](parts["all"][0](x))
    return net


def closure_over_a_tensor():
    net = layers()
    weight = net[0].weight
    net.forward = lambda x: x @ weight
    return net


def partial():
    net = layers()
    net.forward = functools.partial(lambda first, x, last: last(first(x)), net[0], last=net[1])
    return net


def defaults():
    net = layers()

    def forward(x, first=net[0], *, last=net[1]):
        return last(first(x))

    net.forward = forward
    return net


def recursion():
    net = layers()

    def forward(x, depth=2):
        return x if depth == 0 else forward(net[0](x), depth - 1)

    net.forward = forward
    return net


def function_in_a_function():
    net = layers()

    def make():
        return lambda x: net[0](x)

    net.forward = lambda x: make()(x)
    return net


def hook():
    net = layers()
    net[0].register_forward_hook(lambda module, inputs, output: output + net[1](inputs[0]))
    return net


def pre_hook():
    net = layers()
    net.register_forward_pre_hook(lambda module, inputs: (net[0](inputs[0]),))
    return net


def global_variable():
    KNOWN["net"] = net = layers()
    net.forward = lambda x: KNOWN["net"][1](KNOWN["net"][0](x)) + 1.0
    return net


class Listed(nn.Module):
    """A network with functions in containers and in an object of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 2)
        self.steps = [lambda x: self.first(x), torch.relu]
        self.named = {"last": (lambda x: self.last(x), 3)}
        self.helper = types.SimpleNamespace(scale=lambda x: x * self.last.bias)

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return self.helper.scale(self.named["last"][0](x))


CASES = [
    bound_method, closure, method, closure_over_a_list, closure_over_a_tensor, partial, defaults, recursion,
    function_in_a_function, hook, pre_hook, Listed, global_variable,
]  # fmt: skip


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_a_copy_computes_with_its_own_numbers(make):
    net, x = make(), torch.randn(3, 2)
    before = net(x).detach()
    copied = copy_network(net)
    assert torch.equal(copied(x), before)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(-0.5).add_(0.1)
    after = copied(x).detach()
    assert not torch.allclose(after, before)
    assert torch.equal(net(x), before)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3.0)
    assert torch.equal(copied(x), after)
    again = copy_network(copied)  # a copy can be copied
    assert torch.equal(again(x), after)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(again(x), after)


def test_functions_that_refer_to_nothing_of_the_network_are_shared():
    seen, net = [], layers()

    def record(module, inputs, output):
        seen.append(output)

    net.register_forward_hook(record)
    copied = copy_network(net)
    assert next(iter(copied._forward_hooks.values())) is record
    copied(torch.zeros(1, 2))
    assert len(seen) == 1


def test_a_variable_without_a_value_stays_so():
    net = layers()

    def outer():
        def forward(x):
            return net[0](x) if True else late

        net.forward = forward
        if False:
            late = 1

    outer()
    assert copy_network(net)(torch.zeros(1, 2)).shape == (1, 2)
