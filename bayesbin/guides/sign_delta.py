"""Point estimates as a guide: one sign per weight, with a latent behind it and no spread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayesbin.distributions import LowBitCategorical
from bayesbin.guides.base import ParameterTree, Read, SignGuide
from bayesbin.nn.binarizers import Binarizer, Signs, SignSTE
from bayesbin.optim.assembly import TrainingGroup
from bayesbin.posterior import BinaryPosterior, LowBitPosterior

CERTAIN = 40.0  # |lambda| of a sign that is not to change: P(the other one) = 2e-35, never drawn
_SIGNS = (-1.0, 1.0)


class AutoSignDelta(SignGuide):
    r"""A single binary network: every weight is the sign of a latent, learned through a binarizer.

    .. math:: q(w) = \delta(w - \mathrm{binarizer}(v)), \qquad
        \mathcal L = -\log p(y | w) - \beta \log p(w)

    The guide for straight-through training, BinaryConnect, ReCU, SLB and, with ``binarizer=Signs()``, for
    Bop, in the model, the loss and the loop of the posteriors it is to be compared with. A draw is
    reparameterised, so that ``TraceBinary_ELBO`` differentiates it with whatever derivative the binarizer
    has, and its estimator has nothing to estimate. With the uniform prior p(w) is a constant.

    Real-valued latent sites get Normal distributions, as in every guide here. In training mode the
    binarizer may draw (BinaryConnect) or average (SLB); ``guide.eval()`` and :meth:`posterior` use
    its hard weights.

    :param model: a Pyro model, and the other arguments, as for :class:`AutoSignBernoulli`; ``init_scale`` is
        the size of the latents.
    :param binarizer: one of ``bayesbin.nn.binarizers``; it serves all sites. With levels other than signs
        (TernaryConnect, SLB) the prior of a site becomes one of levels, as for :class:`AutoLowBit`.
    :raises ValueError: for a binarizer that scales its signs, or as :class:`AutoSignBernoulli`.

    Example::

        >>> import torch
        >>> from bayesbin.guides import AutoSignDelta
        >>> from bayesbin.nn import BinaryLinear, Classifier
        >>> from bayesbin.nn.binarizers import BinaryConnect
        >>> from bayesbin.optim import clip_after_step
        >>> guide = AutoSignDelta(Classifier(BinaryLinear(4, 3), 100), binarizer=BinaryConnect())
        >>> optimizer = torch.optim.Adam(guide.latents(), lr=1e-3)
        >>> handle = clip_after_step(optimizer, guide.latents(), guide.binarizer.latent_bound)
        >>> bool((guide()["weight"] == guide.posterior()["weight"].mode).all())
        True

    Source: Courbariaux, Bengio and David 2015, arXiv 1511.00363; Helwegen et al. 2019, arXiv 1906.02107.
    """

    binarizer: Binarizer
    draws: ClassVar[str] = "point"

    def __init__(
        self, model: Callable[..., Any], *, binarizer: Binarizer | None = None, **options: Any
    ) -> None:
        binarizer = SignSTE() if binarizer is None else binarizer
        if not isinstance(binarizer, Binarizer):
            raise ValueError(f"binarizer is one of bayesbin.nn.binarizers; got {binarizer!r}.")
        if not binarizer.levels:
            raise ValueError(
                f"AutoSignDelta takes a binarizer to signs or fixed levels; {binarizer!r} scales them. Leave "
                "its scale out: the layers of to_binary_ have one of their own."
            )
        # Before torch's constructor, in which the sites are built.
        vars(self).update(_given_binarizer=binarizer)
        super().__init__(model, **options)

    def insert_natural(self, name: str, start: Tensor, *, random: bool) -> None:
        if "latent" not in self._modules:
            self.latent, self.binarizer = ParameterTree(), vars(self).pop("_given_binarizer")
        latent = self.binarizer.right_inverse(start).detach().clone()
        self._tree("latent").insert(name, nn.Parameter(latent))

    def latents(self) -> Iterator[nn.Parameter]:
        """The latent of each binary site, in site order; with ``Signs()`` the signs themselves."""
        return (self._parameter("latent", s.name) for s in self.sites.values() if s.is_binary)

    def natural_parameters(self) -> Iterator[nn.Parameter]:
        """None: a latent is not a natural parameter."""
        return iter(())

    def real_parameters(self) -> Iterator[nn.Parameter]:
        """Locations and log scales of the real-valued sites."""
        latents = {id(p) for p in self.latents()}
        return (p for p in self.parameters() if id(p) not in latents)

    def training_groups(self) -> Iterator[TrainingGroup]:
        """The latents by Adam, clipped where the binarizer says so, or, where they are the signs
        themselves, by a rule that flips them; the rest by Adam."""
        if isinstance(self.binarizer, Signs):
            yield TrainingGroup(tuple(self.latents()), "flips", "latents")
        else:
            bound = self.binarizer.latent_bound
            yield TrainingGroup(tuple(self.latents()), "adam", "latents", bound=bound)
        yield TrainingGroup(tuple(self.real_parameters()))

    @property
    def is_point(self) -> bool:
        """A single network: True, but for a binarizer that draws."""
        return True

    def prior_levels(self) -> dict[str, tuple[float, ...]]:
        levels = self.binarizer.levels
        if levels == _SIGNS:
            return {}
        return {name: levels for name, site in self.sites.items() if site.is_binary}

    def natural_of(self, name: str, read: Read | None = None) -> Tensor:
        """The latents of one site."""
        return (read or self._parameter)("latent", name)

    def sign_distribution(self, natural: Tensor) -> Any:
        return dist.Delta(self.binarizer(natural))

    def posterior(self) -> Any:
        """The hard weights as a posterior without spread: every draw is the mode.

        A :class:`BinaryPosterior` with lambda = +-40, whose other sign no draw ever shows (its probability,
        2e-35, is 0 at the 2^-17 to which draws meet probabilities); with other levels than signs a
        :class:`LowBitPosterior`.
        """
        levels = self.binarizer.levels
        hard = {
            name: self.binarizer.hard(self.natural_of(name).detach())
            for name, site in self.sites.items()
            if site.is_binary
        }
        if levels == _SIGNS:
            return BinaryPosterior({n: CERTAIN * w for n, w in hard.items()}, self.real_posterior())
        return LowBitPosterior(
            {name: _certain(levels, w) for name, w in hard.items()}, self.real_posterior()
        )


def _certain(levels: tuple[float, ...], weights: Tensor) -> LowBitCategorical:
    nearest = (weights[..., None] - weights.new_tensor(levels)).abs().argmin(-1)
    logits = 2.0 * CERTAIN * torch.nn.functional.one_hot(nearest, len(levels)).to(weights)
    return LowBitCategorical(levels, logits, validate_args=False)
