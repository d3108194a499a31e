"""Weights that are scale times signs, read under their own name: one mechanism for every torch module.

A module's tensor becomes binary by a change of the module's class: to a subclass of its own class with a
property in place of the tensor. The signs lie in the module's buffers under the tensor's own name, so that
they move, are saved and are substituted as any buffer; whoever reads the attribute, be it the module's own
``forward``, another module, or an inference path of torch, gets scale times signs.
"""

from __future__ import annotations

import math
import types
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesbin.core.networks import ties_of
from bayesbin.core.numerics import sign_of
from bayesbin.core.wrappers import named_modules

Module = TypeVar("Module", bound=nn.Module)
Number = float | Tensor

# Powers of two multiply these without rounding, short of numbers that no network holds. The range of float16
# is narrow enough for ordinary inputs to leave it.
_WIDE = (torch.float32, torch.float64, torch.bfloat16)


@dataclass(frozen=True)
class BinarySite:
    """One tensor of binary weights in a network: what Pyro, guides and prediction need to know of it.

    The weight that the network uses, ``layer.weight`` say, is ``scale * signs``.

    :param name: dotted parameter name, the Pyro site.
    :param shape: shape of the signs.
    :param prior: natural parameter of the prior, a scalar tensor or one of ``shape``.
    :param signs: the signs that the network itself holds, -1 and +1; writing into them changes the network.
    :param scale: a number, or a tensor that broadcasts to ``shape``.
    """

    name: str
    shape: torch.Size
    prior: Tensor
    signs: Tensor
    scale: Number


class EffectiveWeights:
    """Mixin of modules some of whose tensors are scale times signs; ``binary_leaves`` names them.

    Signs are the buffer ``<leaf>``, the prior's natural parameter the buffer ``<leaf>_prior``, the scale the
    attribute ``<leaf>_scale``: a number, or a buffer if it is a tensor. A leaf may also have latents,
    the parameter ``<leaf>``, and a module ``<leaf>_binarizer`` that makes signs of them.
    """

    binary_leaves: ClassVar[tuple[str, ...]] = ()

    def extra_repr(self) -> str:
        own: Any = self
        parts = [super().extra_repr()]  # type: ignore[misc]
        for leaf in type(self).binary_leaves:
            scale = scale_of(own, leaf)
            name = "scale" if leaf == "weight" else f"{leaf}_scale"
            parts.append(
                f"{name}={scale:.4g}" if isinstance(scale, float) else f"{name}=per output"
            )
        return ", ".join(part for part in parts if part)

    def __setattr__(self, name: str, value: Any) -> None:
        own: Any = self
        if (
            name not in type(self).binary_leaves
            or own.__dict__.get("_buffers", {}).get(name) is None
        ):
            super().__setattr__(name, value)
            return
        signs = own._buffers[name]
        if not isinstance(value, Tensor) or value.shape != signs.shape or not _are_signs(value):
            raise ValueError(
                f"expected signs of shape {tuple(signs.shape)} for {name!r}, which is binary: scale times "
                "signs of -1 and +1. Assign signs, or write them into binary_sites(net)[...].signs."
            )
        value = value.detach()
        for module, leaf in ties_of(own, name):
            module._buffers[leaf] = value

    def __delattr__(self, name: str) -> None:
        own: Any = self
        if name in type(self).binary_leaves and own._buffers.get(name) is not None:
            raise AttributeError(
                f"{name!r} is binary in this {type(self).__name__} and cannot be deleted. Methods that put "
                "another tensor in its place (pruning, weight normalisation) come before to_binary_."
            )
        super().__delattr__(name)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        own: Any = super()._apply(fn, recurse)  # type: ignore[misc]
        for leaf in type(self).binary_leaves:  # tied weights stay one tensor
            for module, other in ties_of(own, leaf):
                module._buffers[other] = own._buffers[leaf]
        return own

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own: Any = self
        given = dict(state_dict)
        real = set()  # keys of signs that were found to be real weights
        for leaf in _sign_leaves(own):
            key = prefix + leaf
            if isinstance(given.get(key), Tensor) and given[key].shape == own._buffers[leaf].shape:
                signs, problem = _signs_to_load(given[key], own._buffers[leaf])
                if problem:
                    error_msgs.append(f"{key} {problem}.")
                elif not _are_signs(given[key]):
                    real.add(leaf)
                given[key] = signs
        missing: list[str] = []
        super()._load_from_state_dict(  # type: ignore[misc]
            given, prefix, local_metadata, strict, missing, unexpected_keys, error_msgs
        )
        # A network of real weights knows neither scales nor priors: those at hand stay.
        spared = {f"{prefix}{leaf}{end}" for leaf in real for end in ("_prior", "_scale")}
        missing_keys += [key for key in missing if key not in spared]
        for leaf in _sign_leaves(own):  # a hook of the user's may have renamed a checkpoint's keys
            signs = own._buffers[leaf]
            if not signs.is_meta and not _are_signs(signs):
                error_msgs += [f"{prefix}{leaf} contains NaN."] if bool(signs.isnan().any()) else []
                signs.copy_(sign_of(signs.nan_to_num()))
                real.add(leaf)
        if real:
            _tell_once(missing_keys, prefix + min(real))

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(protocol)
        kind = type(self)
        if isinstance(reduced, str) or "_converted_from" not in vars(kind):
            return reduced
        # The class is made at run time and cannot be found by its name: what it was made of can.
        make, args, *rest = reduced
        base, leaves = vars(kind)["_converted_from"]
        return _remade, (make, tuple(base if a is kind else a for a in args), base, leaves), *rest


def _remade(make: Any, args: tuple[Any, ...], base: type, leaves: tuple[str, ...]) -> Any:
    """A module of a class made by :func:`binary_class`, before its state is restored."""
    module = make(*args)
    module.__class__ = binary_class(base, leaves)
    return module


def effective(leaf: str) -> property:
    """The property under which a converted tensor is read: scale times signs."""

    def read(self: Any) -> Tensor:
        source = _source(self, leaf)
        if source is None:  # not converted yet, as while torch's constructor runs
            raise AttributeError(leaf)
        # Always a new tensor: what is done to it in place never reaches the signs.
        return source * scale_of(self, leaf)

    return property(read, doc=f"The weight ``{leaf}`` as the module uses it: scale times signs.")


def _source(module: Any, leaf: str) -> Tensor | None:
    """The signs (or whatever is substituted for them), or those made of latents."""
    signs = module._buffers.get(leaf)
    if signs is not None:
        return signs
    binarizer = module._modules.get(f"{leaf}_binarizer")
    return None if binarizer is None else binarizer(module._parameters[leaf])


def scale_of(module: nn.Module, leaf: str) -> Number:
    """The scale of a converted tensor, a number or a tensor that broadcasts to it."""
    name = f"{leaf}_scale"
    found = module.__dict__.get(name)
    scale = module._buffers[name] if found is None else found
    assert scale is not None
    return scale


def signs_of(module: nn.Module, leaf: str = "weight") -> Tensor:
    """The signs themselves of a converted tensor."""
    signs = module._buffers[leaf]
    assert signs is not None
    return signs


def _sign_leaves(module: Any) -> list[str]:
    return [leaf for leaf in type(module).binary_leaves if module._buffers.get(leaf) is not None]


def is_power_of_two(number: float) -> bool:
    """Whether a multiplication by the number never rounds."""
    return math.frexp(number)[0] == 0.5


def input_and_weight(module: Any, input: Tensor) -> tuple[Tensor, Tensor]:
    """What a linear map may use in place of its input and effective weight: the same bits for less work.

    A power of two is applied to the input, which is far smaller than the weight: it commutes with every
    rounding of products and sums. Any other scale is applied to the weight, as the weight is read.
    """
    scale = scale_of(module, "weight")
    if isinstance(scale, float) and is_power_of_two(scale) and _is_wide(input):
        source = _source(module, "weight")
        assert source is not None
        return (input if scale == 1.0 else input * scale), source
    return input, module.weight


def _is_wide(input: Tensor) -> bool:
    if input.dtype not in _WIDE:
        return False
    device = input.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return True
    return torch.get_autocast_dtype(device) in _WIDE


def linear_forward(self: Any, input: Tensor) -> Tensor:
    """``nn.Linear.forward`` with the scale where it is cheapest."""
    input, weight = input_and_weight(self, input)
    return F.linear(input, weight, self.bias)


def convolution_forward(self: Any, input: Tensor) -> Tensor:
    """``forward`` of torch's convolutions with the scale where it is cheapest."""
    input, weight = input_and_weight(self, input)
    return self._conv_forward(input, weight, self.bias)


def _fast_forward(base: Any) -> Any:
    """The forward that may stand for that of a class whose weight is converted, or None."""
    if base.forward is nn.Linear.forward:
        return linear_forward
    for known in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        if base.forward is known.forward and base._conv_forward is known._conv_forward:
            return convolution_forward
    return None


class _RecurrentWeights:
    """Mixin of converted RNNs: their list of weights is made for each call, and nothing of it is kept."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.__dict__["_weights_in_use"] = self._flat_weights  # torch reads the list several times
        try:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            del self.__dict__["_weights_in_use"]

    @property
    def _flat_weights(self) -> list[Any]:
        own: Any = self
        if (found := own.__dict__.get("_weights_in_use")) is not None:
            return found
        return [getattr(own, name, None) for name in own._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, weights: Any) -> None:
        pass

    def _init_flat_weights(self) -> None:
        pass

    def _update_flat_weights(self) -> None:
        pass

    def flatten_parameters(self) -> None:
        """Nothing: converted weights are computed at each call, where cuDNN copies them."""


_LAYERS: dict[type, type] = {}  # torch's class -> ours, whose weight alone is binary


def layer_of(torch_class: type) -> Any:
    """Decorator: instances of a torch class become this class when their weight alone is converted."""

    def register(layer: type) -> type:
        _LAYERS[torch_class] = layer
        return layer

    return register


@cache
def binary_class(base: type, leaves: tuple[str, ...]) -> type:
    """The subclass of a module class in which the named tensors are scale times signs.

    :param base: a class that can be found by its name. :param leaves: without those that are already so.
    """
    if "weight" in leaves and base in _LAYERS:
        rest = tuple(leaf for leaf in leaves if leaf != "weight")
        return binary_class(_LAYERS[base], rest) if rest else _LAYERS[base]
    mixins: list[type] = [EffectiveWeights]
    if issubclass(base, nn.RNNBase):
        mixins.append(_RecurrentWeights)
    if issubclass(base, EffectiveWeights):  # a layer of ours, of which more is converted
        mixins = []
    namespace: dict[str, Any] = {leaf: effective(leaf) for leaf in leaves}
    if "weight" in leaves and (forward := _fast_forward(base)) is not None:
        namespace["forward"] = forward
    namespace |= {
        "binary_leaves": (*getattr(base, "binary_leaves", ()), *leaves),
        "_converted_from": (base, leaves),
        "__module__": base.__module__,
        "__doc__": f"{base.__name__} with binary {', '.join(leaves)}: scale times signs.",
    }
    name = base.__name__ if mixins == [] else f"Binary{base.__name__}"
    return types.new_class(name, (*mixins, base), exec_body=lambda ns: ns.update(namespace))


def converted_class(module: nn.Module, leaf: str) -> type:
    """The class that a module has once one more tensor of it is converted."""
    kind = type(module)
    base, leaves = vars(kind).get("_converted_from", (kind, ()))
    if leaf in getattr(base, "binary_leaves", ()):  # a layer of ours, under construction
        return kind
    return binary_class(base, (*leaves, leaf))


def make_binary(module: nn.Module, leaf: str, prior: Tensor, scale: Number) -> None:
    """Convert one parameter of a module, in place: its signs become a buffer of its name."""
    weight = module._parameters.pop(leaf)
    assert weight is not None
    _become(module, leaf, scale)
    module.register_buffer(leaf, sign_of(weight.detach()))
    module.register_buffer(f"{leaf}_prior", prior)


def make_latent(module: nn.Module, leaf: str, binarizer: nn.Module, scale: Number) -> None:
    """Put a binarizer before one parameter of a module, in place: the parameter holds latents from now on."""
    setattr(module, f"{leaf}_binarizer", binarizer)
    _become(module, leaf, scale)


def _become(module: nn.Module, leaf: str, scale: Number) -> None:
    own: Any = module
    own.__class__ = converted_class(module, leaf)
    if isinstance(module, nn.RNNBase):
        own.__dict__.pop("_flat_weights", None)
        own._flat_weight_refs = []
    if isinstance(scale, Tensor):
        module.register_buffer(f"{leaf}_scale", scale)
    else:
        own.__dict__[f"{leaf}_scale"] = scale


def tie(members: list[tuple[nn.Module, str]]) -> None:
    """Make converted tensors one: the same signs, also after moves, loads and substitutions."""
    first, leaf = members[0]
    for module, other in members:
        module._buffers[other] = first._buffers[leaf]
        # In a plain dictionary, where torch does not take the other modules for children.
        module.__dict__.setdefault("_binary_ties", {})[other] = members


def walk_binary(net: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Dotted name, owner and leaf of every converted tensor, each tied one once, in the order of modules."""
    seen: set[tuple[int, str]] = set()
    for path, module in named_modules(net, seen=set()):
        for leaf in getattr(type(module), "binary_leaves", ()):
            if (id(module), leaf) not in seen:
                seen |= {(id(other), name) for other, name in ties_of(module, leaf)}
                yield (f"{path}.{leaf}" if path else leaf), module, leaf


def binary_sites(net: nn.Module) -> dict[str, BinarySite]:
    """The binary weights of a network by site name, in the order of ``net.named_modules()``.

    The names are those without wrappers, as of ``torch.compile``. A weight that is tied between layers is one
    site, under its first name.

    Example::

        >>> import torch
        >>> from bayesbin.nn import BinaryLinear, binary_sites
        >>> net = torch.nn.Sequential(BinaryLinear(4, 2))
        >>> site = binary_sites(net)["0.weight"]
        >>> bool((net[0].weight == site.scale * site.signs).all())
        True
    """
    sites = {}
    for name, module, leaf in walk_binary(net):
        signs = module._buffers.get(leaf)
        if signs is not None:
            prior = module._buffers[f"{leaf}_prior"]
            assert prior is not None
            sites[name] = BinarySite(name, signs.shape, prior, signs, scale_of(module, leaf))
    return sites


def _are_signs(value: Tensor) -> bool:
    if value.is_meta:
        return True
    return not value.is_complex() and bool((value.detach().abs() == 1).all())


def _signs_to_load(value: Tensor, signs: Tensor) -> tuple[Tensor, str]:
    """The signs of a checkpoint's tensor, itself if it is such, and why it cannot be loaded, or ""."""
    if value.is_meta:
        return value, ""
    if value.is_complex():
        return signs, "is complex: there is no sign of it"
    if value.is_floating_point():
        if _are_signs(value):
            return value, ""
        if bool(value.isnan().any()):
            return signs, "contains NaN: there is no sign of it"
        return sign_of(value.detach()), ""
    if value.dtype == torch.bool or not _are_signs(value):
        return signs, f"holds whole numbers ({value.dtype}) other than -1 and +1"
    return value.to(signs.dtype), ""


# One load_state_dict, one warning: torch hands the same list to every module it loads.
_LAST_TOLD: ContextVar[list[str] | None] = ContextVar("last list of missing keys", default=None)


def _tell_once(missing_keys: list[str], key: str) -> None:
    if _LAST_TOLD.get() is missing_keys:
        return
    _LAST_TOLD.set(missing_keys)
    warnings.warn(
        f"The state dict holds real weights where this network has signs ({key!r} first): their signs were "
        "taken, scales and priors stay as they are.",
        stacklevel=6,
    )
