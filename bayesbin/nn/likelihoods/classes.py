"""Likelihoods of labels: classes, several labels at once, and ordered levels."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints as pyro_constraints
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from bayesbin.core.arrays import class_labels
from bayesbin.core.checks import real_numbers, shown, whole_number
from bayesbin.nn.likelihoods.base import Likelihood

_ONE_HOT = " One-hot labels: y.argmax(-1)."


class Classifier(Likelihood):
    r"""Classification with a binary network: y ~ Categorical(softmax(net(x))), as a Pyro model.

    .. math:: \log p(y | w) = \frac{N}{B} \sum_{b,i} c_{y_{bi}}
        \log \mathrm{softmax}(f_w(x_b)_i)_{y_{bi}}

    :param net: a network with binary weights; maps x (B, ...) to logits (B, C), or (B, ..., C) for several
        labels of a datum, such as pixels or tokens.
    :param dataset_size: N, the number of training data, the first axis of y.
    :param class_dim: the axis of the classes: -1, or 1 for logits (B, C, ...) as torch's convolutions give.
    :param ignore_index: a label that does not count, such as that of padding; None: all do.
    :param class_weights: c, a number for each class, at least 0. They weigh the log-likelihood and are not
        divided by their sum: weights that are 1 on average over the data keep the amount of evidence.
    :param hyperprior: the distribution of priors that are learned, as for :class:`Likelihood`.
    :raises ValueError: as :class:`Likelihood`; for labels that are not whole numbers in 0 .. C-1.

    Example::

        >>> import torch
        >>> from bayesbin.nn import BinaryLinear, Classifier
        >>> model = Classifier(BinaryLinear(4, 3), dataset_size=100)
        >>> model(torch.randn(5, 4)).shape
        torch.Size([5])
        >>> model(torch.randn(5, 7, 4)).shape  # a label for each of 7 tokens
        torch.Size([5, 7])
        >>> import pyro.distributions as dist
        >>> from bayesbin.guides import AutoSignBernoulli
        >>> learned = Classifier(BinaryLinear(4, 3), 100, hyperprior=dist.Beta(2.0, 2.0))
        >>> list(AutoSignBernoulli(learned).posterior().real)
        ['weight.prior']
    """

    shape_hint = _ONE_HOT

    def __init__(
        self,
        net: nn.Module,
        dataset_size: int,
        class_dim: int = -1,
        ignore_index: int | None = -100,
        class_weights: Any = None,
        hyperprior: Any = None,
    ) -> None:
        super().__init__(net, dataset_size, hyperprior)
        if class_dim not in (-1, 1):
            raise ValueError(f"expected class_dim to be -1 or 1; got {shown(class_dim)}.")
        self.class_dim = class_dim
        if ignore_index is not None:
            ignore_index = whole_number("ignore_index", ignore_index, at_least=-(1 << 63))
        self.ignore_index = ignore_index
        if class_weights is not None:
            class_weights = real_numbers("class_weights", class_weights, at_least=0)
        self.class_weights = class_weights

    @property
    def prediction_head(self) -> dict[str, Any]:
        last = {} if self.class_dim == -1 else {"class_dim": self.class_dim}
        return {"kind": "classes", **last}

    def distribution(self, outputs: Any, **latents: Tensor) -> Any:
        if outputs.dim() < 2:
            raise ValueError(
                "Expected logits of shape "
                f"({len(outputs)}, classes) from the network; got {tuple(outputs.shape)}."
            )
        logits = outputs.movedim(self.class_dim, -1)
        if self.class_weights is not None and logits.shape[-1] != len(self.class_weights):
            raise ValueError(
                f"expected a weight for each of {logits.shape[-1]} classes; got {len(self.class_weights)}."
            )
        return dist.Categorical(logits=logits, validate_args=False)

    def targets(self, y: Tensor, outputs: Any) -> Tensor:
        y = class_labels("labels", y.reshape(-1)).reshape(y.shape)
        return in_range("labels", y, outputs.shape[self.class_dim], "the network's classes")

    def target_mask(self, y: Tensor) -> Tensor | None:
        if self.ignore_index is None:
            return None
        counts = y != self.ignore_index
        return None if bool(counts.all()) else counts

    def target_weight(self, y: Tensor) -> Tensor | None:
        if self.class_weights is None:
            return None
        return torch.tensor(self.class_weights, dtype=torch.float64, device=y.device)[y]


class MultiLabel(Likelihood):
    r"""Several labels that may hold at once: y_l ~ Bernoulli(sigmoid(net(x)_l)), independent given x.

    .. math:: \log p(y | w) = \frac{N}{B} \sum_{b,l} -\mathrm{softplus}\big((1 - 2 y_{bl}) f_w(x_b)_l\big)

    :param net: a network with binary weights; maps x (B, ...) to log-odds (B, L), or of any other shape
        (B, ...); of one label (B,) or (B, 1).
    :param dataset_size: N, the number of training data.
    :param hyperprior: the distribution of priors that are learned, as for :class:`Likelihood`.
    :raises ValueError: as :class:`Likelihood`; for targets other than 0 and 1.

    Example::

        >>> import torch
        >>> from bayesbin.nn import BinaryLinear, MultiLabel
        >>> model = MultiLabel(BinaryLinear(4, 3), dataset_size=100)
        >>> model(torch.randn(5, 4)).shape
        torch.Size([5, 3])
    """

    @property
    def prediction_head(self) -> dict[str, Any]:
        return {"kind": "labels"}

    def distribution(self, outputs: Any, **latents: Tensor) -> Any:
        return dist.Bernoulli(logits=without_column(outputs), validate_args=False)

    def targets(self, y: Tensor, outputs: Any) -> Tensor:
        if not bool(((y == 0) | (y == 1)).all()):
            raise ValueError(
                "expected labels 0 and 1, one for each output; got other numbers. Classes that exclude one "
                "another are a Classifier's."
            )
        return y.to(outputs.dtype)


class Ordinal(Likelihood):
    r"""Levels with an order: y > k with log-odds net(x) - c_k, the cumulative logistic model.

    .. math:: P(y \le k | x) = \mathrm{sigmoid}(c_k - f_w(x)), \qquad k = 0 .. K-2

    .. math:: \log P(y = k) = \log \sigma(c_k - f) + \log \sigma(f - c_{k-1})
        + \log(1 - e^{-(c_k - c_{k-1})})

    :param net: a network with binary weights; maps x (B, ...) to one number, (B,) or (B, 1).
    :param dataset_size: N, the number of training data.
    :param levels: K, at least 2; targets are 0 .. K-1.
    :param cutpoints: c, K-1 increasing numbers, or their prior, a distribution of increasing vectors
        (support ``ordered_vector``): then "cutpoints" is a latent site of its own. By default the prior of
        a first cut point and of logarithms of distances, Normals with standard deviation 1 around those of
        equally likely levels.
    :param hyperprior: the distribution of priors that are learned, as for :class:`Likelihood`.
    :raises ValueError: as :class:`Likelihood`; for targets that are not whole numbers in 0 .. K-1.

    Example::

        >>> import torch
        >>> from bayesbin.nn import BinaryLinear, Ordinal
        >>> model = Ordinal(BinaryLinear(4, 1), dataset_size=100, levels=5, cutpoints=[-2, -1, 0, 1])
        >>> model(torch.randn(5, 4)).shape
        torch.Size([5])

    Source: McCullagh 1980, "Regression models for ordinal data", JRSS B 42.
    """

    def __init__(
        self,
        net: nn.Module,
        dataset_size: int,
        levels: int,
        cutpoints: Any = None,
        hyperprior: Any = None,
    ) -> None:
        super().__init__(net, dataset_size, hyperprior)
        self.levels = whole_number("levels", levels, at_least=2)
        self.cutpoints = _cutpoints(cutpoints, self.levels)

    @property
    def prediction_head(self) -> dict[str, Any]:
        given = isinstance(self.cutpoints, tuple)
        return {
            "kind": "ordinal",
            "cutpoints": list(self.cutpoints) if given else {"site": "cutpoints"},
        }

    def latents(self) -> dict[str, Any]:
        return {} if isinstance(self.cutpoints, tuple) else {"cutpoints": self.cutpoints}

    def distribution(self, outputs: Any, cutpoints: Any = None, **latents: Tensor) -> Any:
        score = without_column(outputs)
        if score.dim() != 1:
            raise ValueError(
                f"expected one number per input from the network, (B,) or (B, 1); got {tuple(outputs.shape)}."
            )
        cuts = score.new_tensor(self.cutpoints) if cutpoints is None else cutpoints.to(score.dtype)
        return dist.Categorical(logits=level_log_probs(score, cuts), validate_args=False)

    def targets(self, y: Tensor, outputs: Any) -> Tensor:
        return in_range(
            "levels", class_labels("levels", y), self.levels, f"of {self.levels} levels"
        )


def level_log_probs(score: Tensor, cutpoints: Tensor) -> Tensor:
    """Log-probabilities of ordered levels, (..., K), from a number (...) and K-1 increasing cut points.

    >>> level_log_probs(torch.zeros(1), torch.tensor([0.0])).exp()
    tensor([[0.5000, 0.5000]])
    """
    above = score[..., None] - cutpoints
    at_most = logsigmoid(-above)  # of the level at the cut point or a lower one
    beyond = logsigmoid(above)
    apart = torch.log(-torch.expm1(-cutpoints.diff(dim=-1)))
    between = at_most[..., 1:] + beyond[..., :-1] + apart
    return torch.cat([at_most[..., :1], between, beyond[..., -1:]], -1)


def in_range(name: str, y: Tensor, count: int, whose: str) -> Tensor:
    """Labels, after checking that they are in 0 .. count-1."""
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= count:
        raise ValueError(f"Expected {name} in 0 .. {count - 1}, {whose}; got {low} .. {high}.")
    return y


def without_column(outputs: Tensor) -> Tensor:
    """Outputs (B, 1) as (B,), others as they are."""
    return outputs.squeeze(1) if outputs.dim() == 2 and outputs.shape[1] == 1 else outputs


def _cutpoints(given: Any, levels: int) -> Any:
    count = levels - 1
    if given is None:
        even = torch.logit(torch.arange(1, levels, dtype=torch.float64) / levels)
        start = torch.cat([even[:1], even.diff().log()]).to(torch.get_default_dtype())
        base = dist.Normal(start, 1.0).to_event(1)
        return dist.TransformedDistribution(base, [dist.transforms.OrderedTransform()])
    if hasattr(given, "log_prob"):
        if given.shape() != (count,) or given.support is not pyro_constraints.ordered_vector:
            raise ValueError(
                f"expected cutpoints as a distribution of {count} increasing numbers (ordered_vector) for "
                f"{levels} levels; got a {type(given).__name__} of shape {tuple(given.shape())} on "
                f"{given.support}."
            )
        return given
    numbers = real_numbers("cutpoints", given)
    if len(numbers) != count or any(b <= a for a, b in pairwise(numbers)):
        raise ValueError(
            f"expected {count} increasing cutpoints for {levels} levels; got {shown(list(numbers))}."
        )
    return numbers
