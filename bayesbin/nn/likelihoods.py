"""Pyro models around a binary network: they own the plate and the scaling by the data-set size."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from bayesbin.core import networks
from bayesbin.core.arrays import as_tensor, class_labels, network_inputs
from bayesbin.core.checks import is_number, real_number, shown, whole_number
from bayesbin.distributions import SignBernoulli
from bayesbin.nn.effective import binary_sites
from bayesbin.nn.priors import checked_hyperpriors, hyperparameter_name, sample_natural


class Likelihood(PyroModule):
    """A network's binary weights as sample sites, declared with or without data."""

    def __init__(self, net: nn.Module, dataset_size: int, hyperprior: Any = None) -> None:
        super().__init__()
        if not binary_sites(net):
            raise ValueError(
                "The network has no binary weights. Convert it with bayesbin.nn.to_binary_(net), or "
                "build it from BinaryLinear and BinaryConv layers."
            )
        self.net = net
        self.dataset_size = whole_number("dataset_size", dataset_size, at_least=1)
        self.hyperpriors = checked_hyperpriors(hyperprior, binary_sites(net))

    @property
    def prediction_head(self) -> dict[str, Any]:
        """What the network's outputs are the parameters of, for whoever predicts with drawn networks.

        A kind ("classes", "normal", or "outputs" where nothing more is known) and its parameters by name: a
        number, or ``{"site": name}`` for a latent real-valued site, which has a value in each draw.
        """
        return {"kind": "outputs"}

    @property
    def real_latents(self) -> frozenset[str]:
        """The names of the model's latent real-valued sites."""
        return frozenset(map(hyperparameter_name, self.hyperpriors))

    def sample_weights(self) -> dict[str, Tensor]:
        """One sample statement per binary weight tensor, after that of its prior's hyperparameter."""
        values = {}
        for site in binary_sites(self.net).values():
            natural = sample_natural(site, self.hyperpriors.get(site.name))
            distribution = SignBernoulli(natural=natural, validate_args=False).expand(site.shape)
            values[site.name] = pyro.sample(site.name, distribution.to_event(len(site.shape)))
        return values

    def outputs(self, values: dict[str, Tensor], x: Any, y: Any = None) -> Tensor:
        """The network's outputs for a batch, which is checked, at the values of its weights."""
        return networks.call(self.net, values, self.batch(x, y)[0])

    def batch(self, x: Any, y: Any) -> tuple[Tensor, Tensor | None]:
        """A batch as tensors of the network's type and device, checked."""
        x = network_inputs(self.net, x)
        if x.dim() == 0 or len(x) == 0:
            raise ValueError(
                f"Expected a batch of inputs with at least one row; got {tuple(x.shape)}. Leave empty "
                "batches out: they say nothing about the posterior."
            )
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise ValueError("The inputs contain NaN or infinity; clean or impute them first.")
        if y is not None:
            y = as_tensor("targets", y).to(x.device)
            if y.shape[:1] != x.shape[:1]:
                raise ValueError(
                    f"Expected one target for each of the {len(x)} inputs; got shape {tuple(y.shape)}."
                )
        return x, y

    def batch_plate(self, x: Tensor) -> Any:
        """The plate over data: scales the batch to the data set, without drawing indices."""
        if len(x) > self.dataset_size:
            raise ValueError(
                f"A batch of {len(x)} is larger than dataset_size = {self.dataset_size}; pass the "
                "number of training data as dataset_size."
            )
        return pyro.plate(
            "data", self.dataset_size, subsample=torch.arange(len(x), device=x.device)
        )


class Classifier(Likelihood):
    r"""Classification with a binary network: y ~ Categorical(softmax(net(x))), as a Pyro model.

    .. math:: \log p(y | w) = \frac{N}{B} \sum_{b} \log \mathrm{softmax}(f_w(x_b))_{y_b}

    ``model()`` declares the weights without data, so that a guide can be built from it alone;
    ``model(x)`` draws labels; ``model(x, y)`` conditions on them.

    :param net: a network with binary weights; maps x (B, ...) to logits (B, C).
    :param dataset_size: N, the number of training data.
    :param hyperprior: the distribution of a prior that is learned, one independent hyperparameter per layer:
        a latent site ``"<weight>.prior"``, which the automatic guides approximate by a Normal in
        unconstrained space. A scalar Pyro distribution on [0, 1], such as ``Beta(2., 2.)``, is that of
        p = P(w = +1); one on the real line, such as ``Normal(0., 1.)``, that of a shift s of the
        layer's own natural parameter, w ~ SignBernoulli(natural=prior + s). A mapping from the names of
        some weights to distributions learns the priors of those alone. None: the layers' priors stay.
    :raises ValueError: if the network has no binary weights, or a hyperprior does not fit; at a call,
        for an empty batch, NaN or infinite inputs, logits that are not (B, C), labels that are not
        whole numbers in 0 .. C-1.

    Example::

        >>> import torch
        >>> from bayesbin.nn import BinaryLinear, Classifier
        >>> model = Classifier(BinaryLinear(4, 3), dataset_size=100)
        >>> model(torch.randn(5, 4)).shape
        torch.Size([5])
        >>> import pyro.distributions as dist
        >>> from bayesbin.guides import AutoSignBernoulli
        >>> learned = Classifier(BinaryLinear(4, 3), 100, hyperprior=dist.Beta(2.0, 2.0))
        >>> list(AutoSignBernoulli(learned).posterior().real)
        ['weight.prior']

    Source: Gelman et al. 2013, Bayesian Data Analysis, chapter 5 (hierarchical priors).
    """

    @property
    def prediction_head(self) -> dict[str, Any]:
        return {"kind": "classes"}

    def forward(self, x: Any = None, y: Any = None) -> Tensor | None:
        values = self.sample_weights()
        if x is None:
            return None
        x, y = self.batch(x, y)
        logits = networks.call(self.net, values, x)
        if logits.shape[:1] != x.shape[:1] or logits.dim() != 2:
            raise ValueError(
                f"Expected logits of shape ({len(x)}, classes) from the network; got "
                f"{tuple(logits.shape)}."
            )
        if y is not None:
            y = _checked_labels(y, logits.shape[1])
        with self.batch_plate(x):
            return pyro.sample("y", dist.Categorical(logits=logits, validate_args=False), obs=y)


class Regressor(Likelihood):
    r"""Regression with a binary network: y ~ Normal(net(x), noise), as a Pyro model.

    .. math:: \log p(y | w, \sigma) = \frac{N}{B} \sum_b \log N(y_b;\ f_w(x_b), \sigma^2)

    :param net: maps x (B, ...) to means (B,) or (B, 1).
    :param dataset_size: N, the number of training data.
    :param noise: sigma, a positive number, or its prior, a distribution on the positive numbers: then "noise"
        is a latent site of its own. Default LogNormal(-1, 1), for standardised targets.
    :param hyperprior: the distribution of priors that are learned, as for :class:`Classifier`.
    :raises ValueError: as :class:`Classifier`; for targets that are not finite or not (B,).

    Example::

        >>> import torch
        >>> from bayesbin.nn import BinaryLinear, Regressor
        >>> model = Regressor(BinaryLinear(4, 1), dataset_size=100, noise=0.1)
        >>> model(torch.randn(5, 4)).shape
        torch.Size([5])
    """

    def __init__(
        self, net: nn.Module, dataset_size: int, noise: Any = None, hyperprior: Any = None
    ) -> None:
        super().__init__(net, dataset_size, hyperprior)
        if is_number(noise):
            noise = real_number("noise", noise, above=0)
        elif noise is not None and not hasattr(noise, "log_prob"):
            raise ValueError(
                f"expected noise to be a positive standard deviation or a distribution; got {shown(noise)}."
            )
        self.noise = dist.LogNormal(-1.0, 1.0) if noise is None else noise

    @property
    def prediction_head(self) -> dict[str, Any]:
        noise = float(self.noise) if is_number(self.noise) else {"site": "noise"}
        return {"kind": "normal", "noise": noise}

    @property
    def real_latents(self) -> frozenset[str]:
        return super().real_latents | (frozenset() if is_number(self.noise) else {"noise"})

    def forward(self, x: Any = None, y: Any = None) -> Tensor | None:
        values = self.sample_weights()
        noise = self.noise
        if not is_number(noise):
            noise = pyro.sample("noise", noise)
        if x is None:
            return None
        x, y = self.batch(x, y)
        mean = networks.call(self.net, values, x)
        if mean.dim() == 2 and mean.shape[1] == 1:
            mean = mean.squeeze(1)
        if mean.shape != x.shape[:1]:
            raise ValueError(
                f"Expected one mean per input from the network; got {tuple(mean.shape)}."
            )
        y = None if y is None else y.to(mean.dtype)
        if y is not None and (y.shape != mean.shape or not bool(torch.isfinite(y).all())):
            raise ValueError(
                f"Expected {len(x)} finite targets of shape ({len(x)},); got shape {tuple(y.shape)}"
                f"{'' if y.shape != mean.shape else ' with NaN or infinity'}."
            )
        with self.batch_plate(x):
            return pyro.sample("y", dist.Normal(mean, noise, validate_args=False), obs=y)


def _checked_labels(y: Tensor, num_classes: int) -> Tensor:
    y = class_labels("labels", y)
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"Expected labels in 0 .. {num_classes - 1}, the network's classes; got {low} .. {high}."
        )
    return y
