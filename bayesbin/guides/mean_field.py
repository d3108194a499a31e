"""The mean-field guide: one natural parameter per binary weight."""

from __future__ import annotations

from torch import Tensor

from bayesbin.distributions import SignBernoulli
from bayesbin.guides.base import SignGuide


class AutoSignBernoulli(SignGuide):
    r"""Mean-field posterior over every binary weight of a model.

    .. math:: q(w) = \prod_j \mathrm{SignBernoulli}(w_j;\ \lambda_j)

    A site in plates has parameters for each of their rows, and a call uses those of its rows: of a plate
    with ``subsample_size=`` the guide draws the rows, of one with ``subsample=indices`` it learns them by
    running the model up to its plates, without gradients, which ``create_plates`` spares.

    Real-valued latent sites of the same model get independent Normal distributions in unconstrained
    space. The guide is built at once: ``state_dict``, optimizers, ``.to`` and pickling work before
    the first call.

    :param model: a Pyro model; it is run once, without keeping any data.
    :param args: positional arguments for that run, where the model needs data to run.
    :param kwargs: keyword arguments for that run.
    :param init_scale: standard deviation of the initial natural parameters (torch's global generator);
        with ``init`` a network, their root mean square.
    :param init: a pretrained real network (or its state dict), whose weights become natural
        parameters, or a ``BinaryPosterior`` to start from.
    :param init_loc_fn: where real-valued sites start: one of ``pyro.infer.autoguide``'s ``init_to_median``
        (of the prior; the default), ``init_to_mean``, ``init_to_sample``, ``init_to_feasible``,
        ``init_to_uniform``, ``init_to_value``, ``init_to_generated``, or a function of the site. Weights
        that ``init_to_value`` or a function gives are taken as those of ``init``.
    :param real_scale: initial standard deviation of the real-valued sites, in unconstrained space.
    :param create_plates: a function of the model's arguments that returns the plates of a call, one or
        several, as in Pyro's ``AutoNormal``; plates that it does not return are looked up in the model.
    :raises ValueError: if the model has no binary site, a latent site of another discrete distribution, a
        latent site in a loop over a part of its plate, or ``init`` does not fit.

    Example::

        >>> import torch
        >>> from bayesbin.guides import AutoSignBernoulli
        >>> from bayesbin.nn import BinaryLinear, Classifier
        >>> guide = AutoSignBernoulli(Classifier(BinaryLinear(4, 3), dataset_size=100))
        >>> [tuple(p.shape) for p in guide.natural_parameters()]
        [(3, 4)]

    Source: Meng, Bachmann and Khan 2020, arXiv 2002.10778.
    """

    def sign_distribution(self, natural: Tensor) -> SignBernoulli:
        return SignBernoulli(natural=natural, validate_args=False)
