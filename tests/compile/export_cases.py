"""Networks that tests export, and the comparison of a program with torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bayesbin.compile.export import export_program
from bayesbin.compile.refusal import NotCompiled
from bayesbin.core import networks
from bayesbin.nn import binary_sites, to_binary_
from bayesbin.posterior import BinaryPosterior
from bayesbin.runtime import reference

DRAWS = 2


def posterior_of(net, scale=1.0):
    """A posterior of random natural parameters."""
    return BinaryPosterior(
        {name: scale * torch.randn(site.shape) for name, site in binary_sites(net).items()}
    )


def tensors_of(outputs):
    """The tensors of a network's outputs, in order."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    return [each for part in outputs if part is not None for each in tensors_of(part)]


def compared(net, *inputs, posterior=None, dtype=torch.float64, batch_axes=None, **more):
    """The program of a network, after a comparison with torch in each of its draws."""
    net = net.to(dtype).eval()
    inputs = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
    posterior = posterior or posterior_of(net)
    program = export_program(net, tuple(inputs), posterior, DRAWS, seed=3, **more)
    found = reference.run(program, [x.numpy() for x in inputs], range(DRAWS))
    for draw in range(DRAWS):
        own = {n: torch.from_numpy(each[draw]) for n, each in more.get("statistics", {}).items()}
        worker = networks.copy_with(net, posterior.signs(draw, seed=3), own)
        with torch.no_grad():
            wanted = tensors_of(worker(*inputs))
        assert len(wanted) == len(found)
        for place, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
            axis = 0 if batch_axes is None else batch_axes[place]
            theirs = np.moveaxis(theirs.numpy(), axis, 0)
            assert ours[draw].shape == theirs.shape
            limit = 1e-12 if dtype == torch.float64 else 2e-6
            assert ours.dtype == theirs.dtype
            far = ours[draw].astype(float) - theirs.astype(float)
            assert np.abs(far).max() <= limit * max(np.abs(theirs).max(), 1e-3)
    return program


def kinds(program):
    return [step.kind for step in program.steps]


def refusal(net, *inputs):
    """The sentence by which a network is refused."""
    to_binary_(net, where=(nn.Linear, nn.Conv2d))
    with pytest.raises(NotCompiled) as caught:
        export_program(net.eval(), inputs, posterior_of(net), DRAWS)
    return str(caught.value)


class Outputs(nn.Module):
    """Each of some functions of what a layer gives: f(h), or f(h, net) with parameters of the network."""

    def __init__(self, layer, functions):
        super().__init__()
        self.layer, self.functions = layer, functions
        self.vector = nn.Parameter(torch.randn(8))
        self.matrix = nn.Parameter(torch.randn(8, 8))
        self.cube = nn.Parameter(torch.randn(2, 4, 3))

    def forward(self, x):
        h = self.layer(x)
        return tuple(f(h, self) if "net" in _arguments(f) else f(h) for f in self.functions)


def _arguments(function):
    return getattr(getattr(function, "__code__", None), "co_varnames", ())
