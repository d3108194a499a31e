"""Networks with batch normalisation, and their posteriors, that the tests of ensembles share."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from bayesbin import BinaryPosterior
from bayesbin.nn import StateBatchNorm, binary_sites, to_binary_


def normalised(norm=nn.BatchNorm1d):
    torch.manual_seed(7)
    layers = nn.Sequential(
        nn.Linear(3, 6), norm(6), nn.Tanh(), nn.Linear(6, 4), norm(4), nn.Linear(4, 2)
    )
    return to_binary_(layers)


class Functional(nn.Module):
    """Batch normalisation that no module of torch's computes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(8)
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("spread", torch.ones(6))

    def forward(self, x):
        x = F.batch_norm(self.first(x), self.mean, self.spread, training=self.training)
        return self.last(x.relu())


class Images(nn.Module):
    """Normalised inputs, a residual block, and normalisation of channels."""

    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        torch.manual_seed(9)
        self.before = nn.BatchNorm2d(2)
        self.first = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = norm(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.again = norm(4, affine=False)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        x = self.norm(self.first(self.before(x))).relu()
        x = x + self.again(self.second(x))
        return self.last(x.relu().mean((2, 3)))


def posterior_of(net, scale=1.0, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return BinaryPosterior(
        {
            name: scale * torch.randn(site.shape, generator=generator)
            for name, site in binary_sites(net).items()
        }
    )


NETWORKS = {
    "batch norm": (normalised, (3,)),
    "state batch norm": (lambda: normalised(StateBatchNorm), (3,)),
    "without running statistics": (
        lambda: normalised(lambda size: nn.BatchNorm1d(size, track_running_stats=False)),
        (3,),
    ),
    "functional": (lambda: to_binary_(Functional()), (3,)),
    "images": (lambda: to_binary_(Images()), (2, 5, 5)),
}
