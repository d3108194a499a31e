"""Turn the weights of any torch network into binary weights, in place, and tell what was converted."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.parameter import is_lazy

from bayesbin.core.networks import recompute, ties_of
from bayesbin.core.wrappers import named_modules
from bayesbin.nn.effective import make_binary, scale_of, tie, walk_binary
from bayesbin.nn.scales import Axes, LayerPrior, LayerScale, checked_prior, scale_for_all
from bayesbin.nn.selection import Candidate, Where, candidates, chosen

Network = TypeVar("Network", bound=nn.Module)
Prior = LayerPrior | Mapping[str, Any] | Callable[[str, Tensor], LayerPrior]
SiteScale = LayerScale | Mapping[str, LayerScale] | Callable[[str, Tensor], LayerScale]

_LARGE = 0.1  # the share of a network's weights above which to_binary_ warns that they stayed real
_MOST_NAMED = 5


def to_binary_(
    module: Network,
    where: Where = None,
    *,
    scale: SiteScale = "fan-in",
    prior: Prior = 0.0,
    inputs: Mapping[str, Axes] | None = None,
) -> Network:
    r"""Replace the chosen weights of a network by scaled signs, in place, and return the network.

    .. math:: W_\text{effective} = s\,\mathrm{sign}(W), \qquad s = 2^{-k} \approx 1 / \sqrt{\text{fan-in}}

    Read as ``layer.weight``, or under whatever name a module has for it, a converted weight is the one that
    the module uses. Signs are those of the real weights, +1 at 0, kept as buffers under the weights' names.

    By default the weights of Linear, Conv, ConvTranspose, Bilinear, RNN, LSTM, GRU and their cells,
    MultiheadAttention, and of subclasses of these become binary. Biases, normalisation, embeddings, pruned
    and parametrized weights, frozen ones, and parameters that a module of your own declares stay real unless
    ``where`` asks for them. A weight that is tied between modules is one site. :func:`conversion` tells what
    became of each weight.

    :param where: the weights to convert: a predicate ``where(name, owner) -> bool`` for the dotted parameter
        name and the module that owns the parameter; a module class, for the weights in its instances; the
        name of a parameter or of a module; or a list of these. Frozen parameters are converted by name only.
    :param scale: "fan-in", a power of two, with the fan-in of the module at hand: the number of inputs of a
        unit, 1 of an embedding; a positive number; or a tensor of one for each output. One for all weights, a
        mapping from site name to one, or ``scale(name, weight)``. Padding rows of embeddings have scale 0.
    :param prior: natural parameter of the prior, half the log-odds of +1, or the prior itself:
        ``SignBernoulli(probs=0.3)`` for P(w = +1) = 0.3. One number, tensor or distribution for all
        weights, a mapping from site name to one (a ``BinaryPosterior`` is such), or ``prior(name, weight)``.
    :param inputs: name -> axis, or axes, that the network sums over, for parameters of modules of your own:
        ``inputs={"W": 0}`` where it computes ``x @ W``, ``{"W": 1}`` where ``F.linear(x, W)``.
    :raises ValueError: if nothing is chosen; for a weight that is binary already, not materialised yet or
        has NaN; if a scale or a prior does not fit, or an axis of a parameter of your own is not given.

    Warns once if, by default, more than a tenth of the weights stay real that nobody asked to leave real.

    Example::

        >>> import torch
        >>> from bayesbin.nn import binary_sites, to_binary_
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> list(binary_sites(to_binary_(net, where=lambda name, owner: name == "0.weight")))
        ['0.weight']
        >>> net[0].weight.abs().unique().tolist()
        [1.0]
        >>> from bayesbin.distributions import SignBernoulli
        >>> few = to_binary_(torch.nn.Linear(2, 8), prior=SignBernoulli(probs=0.1))
        >>> round(binary_sites(few)["weight"].prior.item(), 4)
        -1.0986
    """
    found = chosen(module, where)
    inputs = _checked_inputs(inputs, found)
    names = [candidate.name for candidate in found]
    prior_of, scale_of_site = _lookup("prior", prior, names), _lookup("scale", scale, names)
    # Whatever does not fit is found before anything is replaced: an error leaves the network whole.
    plans = []
    for each in found:
        weight = each.parameter
        scale_found = scale_for_all(
            scale_of_site(each.name, weight), each.name, each.members, weight, inputs.get(each.name)
        )
        plans.append((each, checked_prior(prior_of(each.name, weight), weight), scale_found))
    if where is None:
        _warn_of_real_weights(candidates(module), found)
    for each, natural, size in plans:
        for owner, leaf in each.members:
            make_binary(owner, leaf, natural, size)
        if len(each.members) > 1:
            tie(each.members)
        for owner, _ in each.members:
            recompute(owner)
    return module


@dataclass(frozen=True)
class ConversionRow:
    """One parameter: its name and shape, whether it is binary, and why it is or is not."""

    name: str
    shape: tuple[int, ...]
    binary: bool
    why: str


@dataclass(frozen=True)
class Conversion:
    """What became of each parameter of a network; ``str`` gives a table.

    ``binary`` and ``real`` are the names of the binary sites and of the real-valued parameters.
    """

    rows: tuple[ConversionRow, ...]

    @property
    def binary(self) -> tuple[str, ...]:
        """Names of the parameters that are scaled signs: the sites."""
        return tuple(row.name for row in self.rows if row.binary)

    @property
    def real(self) -> tuple[str, ...]:
        """Names of the parameters that are real numbers."""
        return tuple(row.name for row in self.rows if not row.binary)

    def __str__(self) -> str:
        cells = [("weight", "shape", "", "why")]
        for row in self.rows:
            kind = "binary" if row.binary else "real"
            cells.append((row.name, " x ".join(map(str, row.shape)) or "-", kind, row.why))
        widths = [max(len(row[column]) for row in cells) for column in range(3)]
        return "\n".join(
            "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]).rstrip()
            for row in cells
        )


def conversion(net: nn.Module) -> Conversion:
    """Tell of each parameter of a network whether it is binary, and why.

    Works before :func:`to_binary_`, too: then it tells what would stay real by default.

    Example::

        >>> import torch
        >>> from bayesbin.nn import conversion, to_binary_
        >>> print(conversion(to_binary_(torch.nn.Sequential(torch.nn.Linear(4, 2)))))
        weight    shape          why
        0.weight  2 x 4  binary  scale 0.5
        0.bias    2      real    no weight: a bias or a factor of its own for each output
    """
    rows = []
    for name, module, leaf in walk_binary(net):
        signs = module._buffers.get(leaf)
        if signs is None:
            continue  # latents: a real parameter
        scale = scale_of(module, leaf)
        why = f"scale {scale:.4g}" if isinstance(scale, float) else "a scale for each output"
        ties = ties_of(module, leaf)
        if len(ties) > 1:
            why += f"; tied between {len(ties)} modules"
        rows.append(ConversionRow(name, tuple(signs.shape), True, why))
    for each in candidates(net):
        shape = () if is_lazy(each.parameter) else tuple(each.parameter.shape)
        why = each.reason or "to_binary_ would convert it by default"
        if len(each.members) > 1:
            why += f"; tied between {len(each.members)} modules"
        rows.append(ConversionRow(each.name, shape, False, why))
    order = {name: place for place, name in enumerate(_names_in_order(net))}
    return Conversion(tuple(sorted(rows, key=lambda row: order.get(row.name, len(order)))))


def _names_in_order(net: nn.Module) -> list[str]:
    """Binary and real tensors by module, the binary ones of a module first."""
    names = []
    for path, module in named_modules(net, seen=set()):
        prefix = f"{path}." if path else ""
        leaves = (*getattr(type(module), "binary_leaves", ()), *module._parameters)
        names += [f"{prefix}{leaf}" for leaf in dict.fromkeys(leaves)]
    return names


def has_convertible_weights(net: nn.Module) -> bool:
    """Whether ``to_binary_(net)`` would find a weight to convert."""
    return any(each.is_weight and not each.reason for each in candidates(net))


def _warn_of_real_weights(every: list[Candidate], found: list[Candidate]) -> None:
    names = {each.name for each in found}
    staying = [c for c in every if c.is_weight and not c.wish and c.name not in names]
    real = sum(c.parameter.numel() for c in staying if not is_lazy(c.parameter))
    total = real + sum(c.parameter.numel() for c in found)
    if real <= _LARGE * total:
        return
    by_size = sorted(staying, key=lambda c: -c.parameter.numel())
    listed = "; ".join(f"{c.name} ({c.reason})" for c in by_size[:_MOST_NAMED])
    more = f"; and {len(by_size) - _MOST_NAMED} more" if len(by_size) > _MOST_NAMED else ""
    warnings.warn(
        f"to_binary_ left {real:,} of {total:,} weights real: {listed}{more}. Ask for them in where=, or say "
        "with where= which weights you want; bayesbin.nn.conversion(net) lists all.",
        stacklevel=3,
    )


def _checked_inputs(inputs: Any, found: list[Candidate]) -> dict[str, Axes]:
    """Axes by first name, whatever name of a parameter they were given for."""
    if inputs is None:
        return {}
    if not isinstance(inputs, Mapping):
        raise ValueError(
            f'expected inputs= to be a mapping from names to axes, such as {{"W": 0}}; got {inputs!r}.'
        )
    by_name = {name: each.name for each in found for name in each.names}
    if unknown := [name for name in inputs if name not in by_name]:
        raise ValueError(
            f"inputs= names {', '.join(map(repr, unknown))}, which to_binary_ does not convert here; it "
            f"converts {', '.join(each.name for each in found)}."
        )
    return {by_name[name]: axes for name, axes in inputs.items()}


def _lookup(what: str, given: Any, names: list[str]) -> Callable[[str, Tensor], Any]:
    """An argument for each site: the same for all, from a mapping, or from a function."""
    if isinstance(given, Mapping):
        if missing := [name for name in names if name not in given]:
            raise ValueError(f"The {what} has no entry for {', '.join(missing)}.")
        return lambda name, weight: given[name]
    if callable(given) and not isinstance(
        given, Distribution
    ):  # Pyro's distributions can be called, too
        return given
    return lambda name, weight: given
