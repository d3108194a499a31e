"""The base class of likelihoods: it owns the plate over data, the scaling, weights and masks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, ClassVar, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bayesbin.core import networks
from bayesbin.core.arrays import as_tensor, network_arguments
from bayesbin.core.checks import shown, whole_number
from bayesbin.core.turns import alone
from bayesbin.distributions import SignBernoulli
from bayesbin.nn.effective import binary_sites
from bayesbin.nn.priors import checked_hyperpriors, hyperparameter_name, on_device, sample_natural


class Likelihood(PyroModule):
    r"""A network with binary weights as a Pyro model; a subclass says what the outputs mean.

    .. math:: \log p(y | w, z) = \frac{N}{B} \sum_{b=1}^{B} c_b \sum_i m_{bi}
        \log p(y_{bi} | f_w(x_b), z)

    with sample weights c and a mask m, both 1 unless given. ``model()`` declares the weights and the latents
    without data, so that a guide can be built from it alone; ``model(x)`` draws targets; ``model(x, y)``,
    ``model(x, y, weight)`` and ``model(x, y, weight, mask)`` condition on them.

    A likelihood of your own is a subclass with one method, :meth:`distribution`. All other methods have
    defaults: :meth:`latents` (none), :meth:`targets` (finite numbers), :meth:`target_mask` and
    :meth:`target_weight` (none), :attr:`prediction_head` (the outputs as they are).

    A weight is a power: a datum of weight c counts as c copies of it. With whole numbers as weights the
    posterior is that of the data with these copies; with others it is a power posterior, in which weights
    that add up to N keep the amount of evidence.

    :param net: a network with binary weights; maps x to outputs with the batch as first axis.
    :param dataset_size: N, the number of training data.
    :param hyperprior: the distribution of a prior that is learned, one independent hyperparameter per layer:
        a latent site ``"<weight>.prior"``, which the automatic guides approximate by a Normal in
        unconstrained space. A scalar Pyro distribution on [0, 1], such as ``Beta(2., 2.)``, is that of
        p = P(w = +1); one on the real line, such as ``Normal(0., 1.)``, that of a shift s of the
        layer's own natural parameter, w ~ SignBernoulli(natural=prior + s). A mapping from the names of
        some weights to distributions learns the priors of those alone. None: the layers' priors stay.
    :raises ValueError: if the network has no binary weights, or a hyperprior does not fit; at a call,
        for an empty batch, NaN or infinite inputs, and for targets, weights or masks that do not fit.

    Example::

        >>> import pyro.distributions as dist
        >>> import torch
        >>> from bayesbin.nn import BinaryLinear, Likelihood
        >>> class Laplace(Likelihood):
        ...     def distribution(self, outputs):
        ...         return dist.Laplace(outputs.squeeze(-1), 0.5)
        >>> model = Laplace(BinaryLinear(4, 1), dataset_size=100)
        >>> model(torch.randn(5, 4)).shape
        torch.Size([5])
        >>> model.log_prob(torch.zeros(2, 1), torch.zeros(2)).shape
        torch.Size([2])

    Source: Gelman et al. 2013, Bayesian Data Analysis, chapter 5 (hierarchical priors).
    """

    shape_hint: ClassVar[str] = ""  # a sentence for targets of another shape

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

    # What a likelihood says about itself.

    def distribution(self, outputs: Any, **latents: Tensor) -> Any:
        """Return the distribution of the targets of a batch, given the outputs of the network.

        :param outputs: what the network returns for a batch, (B, ...).
        :param latents: a value for each of :meth:`latents`, by name.
        :returns: a Pyro distribution whose first batch axis is the batch. Further batch axes are several
            targets of a datum, independent given the outputs; event axes are one target.
        """
        raise NotImplementedError(
            f"{type(self).__name__} defines no distribution(outputs), the distribution of the targets."
        )

    def latents(self) -> dict[str, Any]:
        """Return the priors of the likelihood's own real-valued parameters, by the names of their sites."""
        return {}

    def targets(self, y: Tensor, outputs: Any) -> Tensor:
        """Return targets, checked, in the type that the distribution takes.

        :param y: of the shape of the distribution. Targets that do not count are replaced by one that does.
        :raises ValueError: for targets that the likelihood cannot have.
        """
        y = y.to(_first(outputs).dtype)
        if not bool(torch.isfinite(y).all()):
            raise ValueError(
                "expected finite targets; got some with NaN or infinity. Leave missing ones out by a mask."
            )
        return y

    def target_mask(self, y: Tensor) -> Tensor | None:
        """Return which targets count, judged by their values; None: all of them."""
        return None

    def target_weight(self, y: Tensor) -> Tensor | None:
        """Return a weight of each target, judged by checked targets; None: 1 for all of them."""
        return None

    @property
    def prediction_head(self) -> dict[str, Any]:
        """What the outputs are the parameters of, for those who predict with drawn networks.

        A kind, "outputs" where nothing more is known, and its parameters by name: a number, a list of
        numbers, or ``{"site": name}`` for a latent site, which has a value in each draw.
        """
        return {"kind": "outputs"}

    # What follows from it.

    @property
    def real_latents(self) -> frozenset[str]:
        """The names of the model's latent real-valued sites."""
        return frozenset(map(hyperparameter_name, self.hyperpriors)) | self.latents().keys()

    def log_prob(self, outputs: Any, y: Any, mask: Any = None, **latents: Tensor) -> Tensor:
        """Return the log-likelihood of each datum in nats, (B,): the sum over its targets that count.

        Masks apply, weights do not. The model's own site has the same values, scaled and weighted.

        :param outputs: of the network, (B, ...). :param y: targets. :param mask: which of them count.
        :param latents: a value for each of :meth:`latents`, by name.
        """
        observed = self.observed(outputs, y, mask, **latents)
        return _of_rows(observed.masked()).log_prob(observed.value)

    def observed(self, outputs: Any, y: Any, mask: Any = None, **latents: Tensor) -> Observed:
        """Return the distribution of a batch with its targets, checked, and which of them count."""
        like = _first(outputs)
        distribution = self._distribution(outputs, latents)
        shape = distribution.shape()
        y = as_tensor("targets", y).to(like.device)
        if y.shape[:1] != shape[:1]:
            raise ValueError(
                f"Expected one target for each of the {shape[0]} inputs; got shape {tuple(y.shape)}."
            )
        y = _in_shape(y, shape)
        if y.shape != shape:
            raise ValueError(
                f"expected targets of shape {tuple(shape)}, as many as the network has outputs for; got "
                f"{y.dtype} of shape {tuple(y.shape)}.{self.shape_hint}"
            )
        kept = self.target_mask(y)
        if mask is not None:
            given = _checked_mask(mask, distribution.batch_shape, like.device)
            kept = given if kept is None else kept & given
        if kept is None:
            return Observed(distribution, self.targets(y, outputs), None)
        chosen = y[kept]
        # What does not count may be NaN or out of range; it is replaced by what has a density.
        if len(chosen):
            by_event = kept.reshape(kept.shape + (1,) * (y.dim() - kept.dim()))
            value = self.targets(torch.where(by_event, y, chosen[0]), outputs)
        else:
            value = distribution.sample().detach()
        return Observed(distribution, value, kept)

    def forward(self, x: Any = None, y: Any = None, weight: Any = None, mask: Any = None) -> Any:
        """Declare the weights and, with x, draw targets or condition on y.

        :param x: a tensor; for a network of several inputs a tuple or list of tensors, or a mapping from
            the names of its arguments. :param y: targets, in the shape of the distribution.
        :param weight: of each datum, (B,), at least 0. :param mask: which targets count, truth values in
            the shape of y.
        """
        with alone(type(self).__name__):
            return self._run(x, y, weight, mask)

    def _run(self, x: Any, y: Any, weight: Any, mask: Any) -> Any:
        values = self.sample_weights()
        latents = self.sample_latents()
        if x is None:
            return None
        x = network_arguments(self.net, x)
        rows = len(x[0])
        outputs = networks.call(self.net, values, x)
        if len(first := _first(outputs)) != rows:
            raise ValueError(
                f"expected outputs with a first axis of {rows}, the batch, from the network; got "
                f"{tuple(first.shape)}."
            )
        scale = None
        if y is not None:
            observed = self.observed(outputs, y, mask, **latents)
            scale = None if weight is None else _checked_weight(weight, rows, first)
            distribution, scale = self._weighted(observed, scale, first.dtype)
        elif weight is None and mask is None:
            observed = Observed(self._distribution(outputs, latents), None, None)
            distribution = observed.distribution
        else:
            raise ValueError("expected targets y with a weight or a mask; got none.")
        with ExitStack() as stack:
            stack.enter_context(self.batch_plate(rows, first.device))
            kept: Any = None if observed.kept is None else observed.kept.reshape(rows, -1).any(1)
            if scale is not None:
                # Pyro takes no scale of 0: what has one is masked.
                kept = scale > 0 if kept is None else kept & (scale > 0)
                stack.enter_context(poutine.scale(scale=torch.where(scale > 0, scale, 1.0)))
            if kept is not None:
                stack.enter_context(poutine.mask(mask=kept))
            return pyro.sample("y", _of_rows(distribution), obs=observed.value)

    def sample_weights(self) -> dict[str, Tensor]:
        """One sample statement per binary weight tensor, after that of its prior's hyperparameter."""
        values = {}
        for site in binary_sites(self.net).values():
            natural = sample_natural(site, self.hyperpriors.get(site.name))
            distribution = SignBernoulli(natural=natural, validate_args=False).expand(site.shape)
            values[site.name] = pyro.sample(site.name, distribution.to_event(len(site.shape)))
        return values

    def sample_latents(self) -> dict[str, Tensor]:
        """One sample statement per latent of the likelihood itself."""
        device = next(iter(binary_sites(self.net).values())).prior.device
        values = {}
        for name, prior in self.latents().items():
            prior = on_device(prior, device)
            values[name] = pyro.sample(name, prior.to_event(len(prior.batch_shape)))
        return values

    def batch_plate(self, rows: int, device: torch.device) -> Any:
        """The plate over data: scales the batch to the data set, without drawing indices."""
        if rows > self.dataset_size:
            raise ValueError(
                f"A batch of {rows} is larger than dataset_size = {self.dataset_size}; pass the "
                "number of training data as dataset_size."
            )
        return pyro.plate("data", self.dataset_size, subsample=torch.arange(rows, device=device))

    def _distribution(self, outputs: Any, latents: Mapping[str, Tensor]) -> Any:
        """The distribution of a batch, checked to have an axis of the batch."""
        found, rows = self.distribution(outputs, **latents), len(_first(outputs))
        if not isinstance(found, TorchDistributionMixin):
            raise ValueError(
                f"expected a distribution of pyro.distributions from {type(self).__name__}.distribution; got "
                f"{type(found).__module__}.{type(found).__name__}."
            )
        if found.batch_shape[:1] != (rows,):
            raise ValueError(
                f"expected a distribution of batch shape ({rows}, ...), with one target or more for each "
                f"input; got {tuple(found.batch_shape)} from {type(self).__name__}.distribution, and outputs "
                f"of shape {tuple(_first(outputs).shape)}."
            )
        return found

    def _weighted(
        self, observed: Observed, scale: Tensor | None, dtype: torch.dtype
    ) -> tuple[Any, Tensor | None]:
        """The masked distribution and the scale of a datum, with the weights of targets in one of them."""
        by_target = self.target_weight(observed.value)
        if by_target is None:
            return observed.masked(), scale
        by_target = by_target.to(dtype)
        if by_target.dim() == 1:
            return observed.masked(), by_target if scale is None else scale * by_target
        return WeightedTargets(observed.masked(), by_target), scale


class Observed(NamedTuple):
    """Targets of a batch, and what is said of them.

    :param distribution: of the targets, unmasked. :param value: the targets, those that do not count
        replaced. :param kept: which targets count, of the distribution's batch shape; None: all.
    """

    distribution: Any
    value: Any
    kept: Tensor | None

    def counted(self) -> Tensor:
        """Which numbers of the targets count, in the shape of the targets."""
        if self.kept is None:
            return torch.ones_like(self.value, dtype=torch.bool)
        by_event = self.kept.shape + (1,) * (self.value.dim() - self.kept.dim())
        return self.kept.reshape(by_event).expand(self.value.shape)

    def masked(self) -> Any:
        """The distribution with a log-probability of 0 where targets do not count."""
        return self.distribution if self.kept is None else self.distribution.mask(self.kept)


class WeightedTargets(dist.TorchDistribution):
    """A distribution whose log-probability of each element is multiplied by a weight."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, base: Any, weight: Tensor) -> None:
        self.base_dist, self.weight = base, weight
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.base_dist.support

    @property
    def mean(self) -> Tensor:
        return self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        return self.base_dist.variance

    def expand(self, batch_shape: Any, _instance: Any = None) -> WeightedTargets:
        return WeightedTargets(self.base_dist.expand(batch_shape), self.weight.expand(batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.base_dist.sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.weight * self.base_dist.log_prob(value)


def _first(outputs: Any) -> Tensor:
    """The first tensor of what a network returns: its batch, type and device are those of all."""
    found = next((each for each in tree_leaves(outputs) if isinstance(each, Tensor)), None)
    if found is None or found.dim() == 0:
        raise ValueError(
            f"expected outputs (B, ...) from the network; got {shown(outputs)}. The first axis is the batch."
        )
    return found


def _of_rows(distribution: Any) -> Any:
    """The distribution with all of a datum's targets as one event."""
    return distribution.to_event(len(distribution.batch_shape) - 1)


def _in_shape(values: Tensor, shape: torch.Size) -> Tensor:
    """Values with a last axis of one added or taken away where that gives the shape."""
    if values.shape == (*shape, 1):
        return values.squeeze(-1)
    return values.unsqueeze(-1) if (*values.shape, 1) == shape else values


def _checked_mask(mask: Any, shape: torch.Size, device: torch.device) -> Tensor:
    mask = _in_shape(as_tensor("a mask", mask).to(device), shape)
    if mask.dtype is not torch.bool or mask.shape != shape:
        raise ValueError(
            f"expected a mask of truth values of shape {tuple(shape)}, True for targets that count; got "
            f"{mask.dtype} of shape {tuple(mask.shape)}."
        )
    return mask


def _checked_weight(weight: Any, rows: int, like: Tensor) -> Tensor:
    weight = as_tensor("weights", weight).to(like.device)
    if weight.shape != (rows,) or weight.dtype is torch.bool:
        raise ValueError(
            f"expected a weight for each of {rows} inputs, of shape ({rows},); got {weight.dtype} of shape "
            f"{tuple(weight.shape)}. Which targets count is a mask."
        )
    weight = weight.to(like.dtype)
    if not bool((weight.isfinite() & (weight >= 0)).all()):
        raise ValueError(
            "expected finite weights of at least 0; got some that are negative, NaN or infinite."
        )
    return weight
