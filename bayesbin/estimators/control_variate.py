"""REBAR and RELAX: the score function with the relaxed objective as its control variate."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bayesbin.core import numerics
from bayesbin.core.checks import real_number, true_or_false, whole_number
from bayesbin.estimators.base import Estimator, Objective, Term
from bayesbin.estimators.baselines import RunningMoments
from bayesbin.estimators.plates import EvaluatedTerms, evaluate
from bayesbin.estimators.surrogate import score, signs_at, uniform_draws, with_gradient


class _ControlVariate(Estimator):
    r"""A score-function estimator less a differentiable function c of the noise z behind the draw.

    .. math::
        \hat g = (f(w) - c(\tilde z)) (w - \mu) + \partial_\lambda c(z) - \partial_\lambda c(\tilde z)

    with z = lambda + delta, w = sign(z), and z~ drawn given w. The two are coupled: z~ is given the very
    noise behind z, so that z~ = z in value, c is evaluated once, and only the slopes dz/d lambda = 1
    and dz~/d lambda = sigmoid(2 w lambda)(1 - exp(-2|z|)) differ. With s = tanh(z / tau):

    .. math::
        \hat g = (f(w) - c)(w - \mu) + \frac{\partial c}{\partial s}\,\frac{ds}{dz}
        \big(\sigma(-2w\lambda) + \sigma(2w\lambda)\, e^{-2|z|}\big)

    The parameters of c and tau are learned by the slope of E|g|^2, in units of its running mean: it falls
    with the variance, because the mean of g does not depend on them.
    """

    unbiased = True

    def __init__(self, temperature: float, num_samples: int, tune: bool) -> None:
        super().__init__()
        temperature = real_number("temperature", temperature, above=0)
        self.num_samples = whole_number("num_samples", num_samples, at_least=1)
        self.tune = tune = true_or_false("tune", tune)
        # As constructed, whatever is learned later: a record compares how runs were set up.
        self._settings = f"temperature={temperature:g}, num_samples={self.num_samples}, tune={tune}"
        self.sizes = RunningMoments(0.95)  # of |g|^2
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.requires_grad_(tune)

    @property
    def temperature(self) -> float:
        """The present temperature tau."""
        return self.log_temperature.exp().item()

    def extra_repr(self) -> str:
        return self._settings

    @abstractmethod
    def variate(
        self, objective: Objective, relaxed: Mapping[str, list[Tensor]], results: Tensor
    ) -> EvaluatedTerms:
        """c at the S relaxed draws, with a graph to them; in one term if it is not a sum over plates."""

    def forward(self, objective: Objective, natural: Mapping[str, Tensor]) -> Tensor:
        noise = uniform_draws(natural, self.num_samples)
        signs = signs_at(natural, noise)
        evaluation = evaluate(objective, signs)
        results = evaluation.total
        if not torch.is_grad_enabled():
            return results.mean()
        learned = [p for p in self.parameters() if p.requires_grad]
        shifted = {
            name: [_shifted(natural[name], u, w) for u, w in zip(us, signs[name], strict=True)]
            for name, us in noise.items()
        }
        relaxed = {name: [self._relaxed(z) for z in sequence] for name, sequence in shifted.items()}
        leaves = [draw for sequence in relaxed.values() for draw in sequence]
        variate = self.variate(objective, relaxed, results.detach())
        whole = variate.total
        slopes = torch.autograd.grad(
            whole.sum(), leaves, create_graph=bool(learned), materialize_grads=True
        )
        rest = {name: results.detach() - whole for name in natural}
        if variate.is_split:
            rest = {
                name: evaluation.of_site(name, lam.dim()).detach()
                - variate.of_site(name, lam.dim())
                for name, lam in natural.items()
            }
        draws = self._gradients(natural, signs, shifted, rest, slopes)
        surrogate = results.mean()
        if learned:
            surrogate = self._with_tuning(surrogate, learned, draws)
        means = {name: torch.stack(each).detach().mean(0) for name, each in draws.items()}
        return with_gradient(surrogate, natural, means)

    def _relaxed(self, shifted: Tensor) -> Tensor:
        temperature = self.log_temperature.exp().to(shifted)
        relaxed = numerics.relaxed_signs(shifted, temperature)
        try:
            return relaxed if relaxed.requires_grad else relaxed.requires_grad_()
        except RuntimeError as error:
            raise RuntimeError(
                f"{type(self).__name__} differentiates its control variate on the way, which works with "
                "backward() and torch.autograd.grad, and not inside a transform of torch.func."
            ) from error

    def _gradients(
        self,
        natural: Mapping[str, Tensor],
        signs: Mapping[str, list[Tensor]],
        shifted: Mapping[str, list[Tensor]],
        rest: Mapping[str, Tensor],
        slopes: tuple[Tensor, ...],
    ) -> dict[str, list[Tensor]]:
        """g for each site and draw, with a graph to what is learned."""
        flat = iter(slopes)
        gradients: dict[str, list[Tensor]] = {}
        for name, lam in natural.items():
            lam = lam.detach()
            gradients[name] = []
            for s, (w, z) in enumerate(zip(signs[name], shifted[name], strict=True)):
                temperature = self.log_temperature.exp().to(z)
                steepness = numerics.variance(z / temperature) / temperature
                correction = next(flat) * steepness * coupling_gap(lam, z)
                gradients[name].append(rest[name][s] * score(lam, w) + correction)
        return gradients

    def _with_tuning(
        self, surrogate: Tensor, learned: list[nn.Parameter], draws: Mapping[str, list[Tensor]]
    ) -> Tensor:
        """The surrogate, with the slope of -E|g|^2 over its running mean in the learned parameters."""
        size = sum(draw.square().sum() for sequence in draws.values() for draw in sequence)
        assert isinstance(size, Tensor)
        # The scale is that of recent draws, not of this one: the slope of log |g|^2 draw by draw would
        # be lowered by many tiny gradients and rare spikes.
        self.sizes.update(size.detach())
        mean = self.sizes.mean().to(size) if self.sizes.started else size.detach()
        in_units = size / mean.clamp_min(torch.finfo(size.dtype).tiny)
        found = torch.autograd.grad(in_units, learned, materialize_grads=True)
        named = {str(i): parameter for i, parameter in enumerate(learned)}
        downhill = {str(i): -slope for i, slope in enumerate(found)}  # the surrogate is maximised
        return with_gradient(surrogate, named, downhill)


def coupling_gap(natural: Tensor, noise: Tensor) -> Tensor:
    r"""1 - dz~/d lambda of the coupled noise, from its value z.

    Given its sign w, z~ = (w/2) softplus(logit v + softplus(2 w lambda)) with v uniform, so that at fixed v
    and w its slope is sigmoid(2 w lambda)(1 - exp(-2|z|)), and

    .. math:: 1 - \frac{d\tilde z}{d\lambda} = \sigma(-2 w \lambda) + \sigma(2 w \lambda)\, e^{-2 |z|},

    a sum that keeps its digits where lambda is saturated.
    """
    wide = 2.0 * natural.detach().to(noise.dtype)
    aligned = wide * torch.copysign(torch.ones_like(noise), noise)
    return torch.sigmoid(-aligned) + torch.sigmoid(aligned) * torch.exp(-2.0 * noise.abs())


def _shifted(natural: Tensor, uniform: Tensor, signs: Tensor) -> Tensor:
    """z = lambda + delta, on the side of zero that its sign is on."""
    noise = 0.5 * (torch.log(uniform) - torch.log1p(-uniform))
    shifted = natural.detach().to(noise.dtype) + noise
    # At a saturated lambda rounding may put the sum on the other side of the draw's threshold.
    return torch.copysign(shifted, signs.to(shifted.dtype)).to(natural.dtype)


class REBAR(_ControlVariate):
    r"""The score function with the objective at relaxed signs as its control variate.

    .. math::
        \hat g = (f(w) - \eta f(s(\tilde z))) (w - \mu) + \eta\, \partial_\lambda f(s(z))
        - \eta\, \partial_\lambda f(s(\tilde z)), \qquad s(z) = \tanh(z / \tau)

    Unbiased at every eta and tau, both of which are tuned to lower the variance by whatever optimizer
    trains the guide. z and z~ are coupled, so that each draw costs one evaluation of f at signs
    and one, with its gradient, at relaxed signs; tuning tau differentiates that gradient once more.
    f has to be differentiable, twice for tuning. Signs in a plate of the model are weighed by the terms of
    their own element, of f as of its relaxation.

    :param temperature: tau > 0 at the start. :param eta: at the start; 0 leaves ``ScoreFunction(
        baseline=None)``. :param num_samples: draws averaged per call.
    :param tune: whether to learn eta and tau.
    :raises ValueError: if the temperature or the number of draws is not positive, or eta not finite.

    Example::

        >>> import torch
        >>> from bayesbin.estimators import REBAR
        >>> natural = {"w": torch.zeros(3, requires_grad=True)}
        >>> objective = lambda values: torch.stack([w.exp().sum() for w in values["w"]])
        >>> estimator = REBAR()
        >>> estimator(objective, natural).backward()
        >>> natural["w"].grad.shape, estimator.eta.grad is not None
        (torch.Size([3]), True)

    Source: Tucker, Mnih, Maddison, Lawson and Sohl-Dickstein 2017, arXiv 1703.07370.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        eta: float = 1.0,
        num_samples: int = 1,
        *,
        tune: bool = True,
    ) -> None:
        super().__init__(temperature, num_samples, tune)
        eta = real_number("eta", eta)
        self.eta = nn.Parameter(torch.tensor(eta), requires_grad=tune)
        self._settings = f"eta={eta:g}, {self._settings}"

    def variate(
        self, objective: Objective, relaxed: Mapping[str, list[Tensor]], results: Tensor
    ) -> EvaluatedTerms:
        found = evaluate(objective, relaxed)
        scaled = [t._replace(values=self.eta.to(t.values) * t.values) for t in found.terms]
        return EvaluatedTerms(scaled, found.plates)


class RELAX(_ControlVariate):
    r"""The score function with a learned control variate.

    .. math::
        \hat g = (f(w) - c(\tilde z)) (w - \mu) + \partial_\lambda c(z) - \partial_\lambda c(\tilde z)

    By default c = h(f(s(z)), mean s(z)^2), with h a small network of two numbers, the objective at the
    relaxed signs and how far these are from being signs: it has a few dozen parameters whatever the
    size of the model, starts as f(s(z)), which is REBAR, and learns its own baseline. Unbiased
    whatever it has learned. c is one function of all signs: signs in a plate of the model are weighed by
    the whole of f - c, not by the terms of their own element.

    :param control_variate: a module that is called with ``{site: relaxed signs (S, *shape)}`` and
        returns (S,): f then need not be differentiable, and is evaluated once per draw. None: the
        default.
    :param temperature: tau > 0 at the start. :param num_samples: draws averaged per call.
    :param tune: whether to learn c and tau.
    :raises ValueError: if the temperature or the number of draws is not positive; at a call, if the
        module does not return one number per draw.

    Example::

        >>> import torch
        >>> from bayesbin.estimators import RELAX
        >>> natural = {"w": torch.zeros(3, requires_grad=True)}
        >>> hard = lambda values: torch.stack([(w.sum() > 0).float() for w in values["w"]])
        >>> class Linear(torch.nn.Linear):
        ...     def forward(self, relaxed):
        ...         return super().forward(relaxed["w"]).squeeze(-1)
        >>> RELAX(Linear(3, 1))(hard, natural).backward(); natural["w"].grad.shape
        torch.Size([3])

    Source: Grathwohl, Choi, Wu, Roeder and Duvenaud 2018, arXiv 1711.00123.
    """

    def __init__(
        self,
        control_variate: nn.Module | None = None,
        *,
        temperature: float = 0.5,
        num_samples: int = 1,
        tune: bool = True,
    ) -> None:
        super().__init__(temperature, num_samples, tune)
        if control_variate is not None and not isinstance(control_variate, nn.Module):
            raise ValueError(
                "control_variate is a torch module of {site: relaxed signs}, or None for the default; "
                f"got {control_variate!r}."
            )
        self.control_variate = control_variate
        self.default = ObjectiveVariate() if control_variate is None else None
        self.requires_grad_(tune)
        if control_variate is not None:
            self._settings = f"{type(control_variate).__name__}(...), {self._settings}"

    def variate(
        self, objective: Objective, relaxed: Mapping[str, list[Tensor]], results: Tensor
    ) -> EvaluatedTerms:
        if self.default is not None:
            return EvaluatedTerms([Term(self.default(objective, relaxed, results))], {})
        assert self.control_variate is not None
        stacked = {name: torch.stack(sequence) for name, sequence in relaxed.items()}
        variate = self.control_variate(stacked)
        if not isinstance(variate, Tensor) or variate.shape != results.shape:
            came = tuple(variate.shape) if isinstance(variate, Tensor) else type(variate).__name__
            raise ValueError(
                f"The control variate returns one number per draw, shape {tuple(results.shape)}; got "
                f"{came}. Reduce over everything but the first dimension."
            )
        return EvaluatedTerms([Term(variate.to(results.dtype))], {})


class ObjectiveVariate(nn.Module):
    r"""c = m + d h(t, q): a small network of the relaxed objective and of how relaxed the signs are.

    .. math::
        t = \frac{f(s) - m}{d}, \qquad q = \frac1D \sum_j s_j^2, \qquad
        h(t, q) = \eta\, t + b + v \cdot \tanh(U (\tanh \tfrac{t}{4},\, q) + a)

    m and d are the running mean and standard deviation of f at earlier draws, so that h works on numbers
    of the order of 1. h starts as t, that is c = f(s). It has 4 width + 2 parameters.

    :param width: of the hidden layer.

    >>> sum(p.numel() for p in ObjectiveVariate(width=8).parameters())
    34
    """

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        # A fixed fan of directions instead of random ones: the same estimator at every construction.
        angles = torch.arange(width) * (2.0 * torch.pi / width)
        self.eta = nn.Parameter(torch.ones(()))
        self.offset = nn.Parameter(torch.zeros(()))
        self.directions = nn.Parameter(torch.stack([angles.cos(), angles.sin()], 1))
        self.shift = nn.Parameter(torch.zeros(width))
        self.outputs = nn.Parameter(torch.zeros(width))
        self.moments = RunningMoments(0.9)

    def forward(
        self, objective: Objective, relaxed: Mapping[str, list[Tensor]], results: Tensor
    ) -> Tensor:
        value = objective(relaxed)
        centre, deviation = (m.to(value) for m in (self.moments.mean(), self.moments.deviation()))
        self.moments.update(results)
        standard = (value - centre) / deviation
        features = torch.stack([torch.tanh(standard / 4.0), self._hardness(relaxed).to(value)], 1)
        hidden = torch.tanh(features @ self.directions.to(value).T + self.shift.to(value))
        learned = hidden @ self.outputs.to(value) + self.offset.to(value)
        return centre + deviation * (self.eta.to(value) * standard + learned)

    @staticmethod
    def _hardness(relaxed: Mapping[str, list[Tensor]]) -> Tensor:
        count = sum(sequence[0].numel() for sequence in relaxed.values())
        draws = zip(*relaxed.values(), strict=True)
        sums = [sum(site.square().sum() for site in draw) for draw in draws]
        return torch.stack([torch.as_tensor(total) for total in sums]) / count
