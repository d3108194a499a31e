"""What every binarizer is: a function from real latent weights to signs or levels."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from bayesbin.core.numerics import sign_of

SIGNS = (-1.0, 1.0)


class Binarizer(nn.Module, ABC):
    """Turns latent real weights into signs (or a few levels), with the derivative of a published method.

    For ``torch.nn.utils.parametrize.register_parametrization(layer, "weight", binarizer)``, for
    :func:`bayesbin.nn.binarize_`, and as ``AutoSignDelta(model, binarizer=...)``. It holds settings and no
    parameters, so that one binarizer may serve a whole network and one schedule then moves all of it.

    ``levels`` are the values that :meth:`hard` takes. ``latent_bound`` is where the published method clips
    the latents after each step, or None; ``bayesbin.optim.clip_after_step`` does that.
    """

    levels: tuple[float, ...] = SIGNS
    latent_bound: float | None = None

    @abstractmethod
    def forward(self, latent: Tensor) -> Tensor:
        """The weights of a forward pass, with the method's derivative; in evaluation :meth:`hard`."""

    def hard(self, latent: Tensor) -> Tensor:
        """The weights that predict: without noise, and without a graph."""
        return sign_of(latent.detach())

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Latents to start from at a real weight: the weight itself."""
        return weight
