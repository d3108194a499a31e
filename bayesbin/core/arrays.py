"""Arrays of public functions: tensors, numpy arrays and lists of numbers, taken or refused in a sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bayesbin.core import networks
from bayesbin.core.checks import is_number, shown

_KINDS = "a tensor, a numpy array or a list of numbers"


def as_tensor(name: str, values: Any) -> Tensor:
    """Return values as a tensor: a tensor as it is, an array with its own type, a list as torch takes it.

    A number becomes a tensor without dimensions. A numpy array shares its memory with the tensor where
    torch can do that; byte-swapped, reversed and read-only arrays are copied.

    :param name: what the values are, as the message should call them.
    :raises ValueError: for anything that is no rectangular array of real numbers: strings, objects, rows
        of different lengths, masked and sparse arrays, complex numbers, data sets and loaders.

    >>> as_tensor("inputs", [[1.0, 2.0], [3.0, 4.0]]).shape
    torch.Size([2, 2])
    """
    if isinstance(values, Tensor):
        return _dense(name, values)
    if hint := _remedy(values):
        raise ValueError(f"expected {name} as {_KINDS}; got {type(values).__name__}{hint}.")
    if isinstance(values, (list, tuple)) and values and all(isinstance(v, Tensor) for v in values):
        if len({(v.shape, v.dtype, v.device) for v in values}) > 1:
            raise ValueError(f"expected {name} as {_KINDS}; got tensors that differ, stack them.")
        return as_tensor(name, torch.stack(list(values)))
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:  # rows of different lengths; GPU tensors
        raise ValueError(f"expected {name} as {_KINDS}; got {shown(values)} ({error}).") from error
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"expected {name} as {_KINDS}; got {type(values).__name__} of {_content(array)}, convert "
            "it first."
        )
    found = _from_numpy(name, array)
    listed = not hasattr(values, "dtype") and not hasattr(values, "__array__")
    return found.to(torch.get_default_dtype()) if listed and array.dtype.kind == "f" else found


def network_inputs(net: nn.Module, x: Any, name: str = "inputs") -> Tensor:
    """Return inputs as a tensor of a network's floating-point type on its device.

    Floating-point numbers are rounded to the network's type. Whole numbers and truth values are converted
    where the type holds them exactly, except those of the type uint8: as raw pixels they need the
    preprocessing of the training data first. A network with embeddings keeps whole numbers as they are.

    :raises ValueError: as :func:`as_tensor`; for inputs that become infinite, whole numbers that would be
        rounded, and uint8.

    >>> import numpy as np
    >>> network_inputs(nn.Linear(2, 1, dtype=torch.float32), np.ones((3, 2))).dtype
    torch.float32
    """
    x = as_tensor(name, x)
    own = next(_numbers_of(net), None)
    if own is None:
        return x
    x = x.to(own.device)
    if x.dtype == own.dtype:
        return x
    if not x.is_floating_point():
        if any(isinstance(module, (nn.Embedding, nn.EmbeddingBag)) for module in net.modules()):
            return x
        return _exact(name, x, own.dtype)
    converted = x.to(own.dtype)
    if bool((converted.isinf() & ~x.isinf()).any()):
        raise ValueError(
            f"expected {name} that {own.dtype}, the type of the network, can hold; got {x.dtype} up to "
            f"{float(x.abs().max()):g}. Scale them, or use another type for the network."
        )
    return converted


def network_arguments(net: nn.Module, x: Any) -> tuple[Tensor, ...]:
    """Return a batch of inputs as the arguments of a network: tensors with one number of rows.

    :param x: a tensor, an array or nested lists of numbers; for a network of several inputs a tuple or list
        of tensors or arrays, or a mapping from the names of its arguments. Of several inputs, whole numbers
        and truth values keep their types.
    :raises ValueError: for inputs of other numbers, names or rows, no rows, NaN or infinity, and as
        :func:`network_inputs`.

    >>> [a.shape[1] for a in network_arguments(nn.Bilinear(2, 3, 1), (torch.zeros(4, 2), torch.zeros(4, 3)))]
    [2, 3]
    """
    names, required, any_number = networks.inputs_of(net)
    several = isinstance(x, (tuple, list)) and len(x) > 0 and all(map(_has_rows, x))
    if isinstance(x, Mapping):
        columns = tuple(_argument(net, name, x[name]) for name in networks.named_inputs(names, x))
    elif several and (len(names) > 1 or any_number):
        columns = tuple(_argument(net, f"input {k}", each) for k, each in enumerate(x))
    else:
        columns = (network_inputs(net, x),)
    if len(columns) < required or (len(columns) > len(names) and not any_number):
        raise ValueError(
            f"expected inputs {', '.join(names)}, which the network takes; got {len(columns)}. Pass a tuple "
            "of tensors, or a mapping from these names."
        )
    _check_rows(columns)
    return columns


def _argument(net: nn.Module, name: str, values: Any) -> Tensor:
    """One of several inputs: floating-point numbers in the type of the network, others in their own."""
    values = as_tensor(name, values)
    if values.is_floating_point():
        return network_inputs(net, values, name)
    own = next(_numbers_of(net), None)
    return values if own is None else values.to(own.device)


def _check_rows(columns: tuple[Tensor, ...]) -> None:
    for x in columns:
        if x.dim() == 0 or len(x) == 0:
            raise ValueError(
                f"Expected a batch of inputs with at least one row; got {tuple(x.shape)}. Leave empty "
                "batches out: they say nothing about the posterior."
            )
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise ValueError("The inputs contain NaN or infinity; clean or impute them first.")
    if len({len(x) for x in columns}) > 1:
        shapes = ", ".join(str(tuple(x.shape)) for x in columns)
        raise ValueError(f"expected as many rows (B, ...) of each input; got {shapes}.")


def _has_rows(values: Any) -> bool:
    return isinstance(values, (Tensor, np.ndarray)) and values.ndim > 0


def network_batches(net: nn.Module, data: Any, batch_size: int = 1000) -> list[Tensor]:
    """Return inputs as a list of batches for a network: see :func:`network_inputs`.

    :param data: inputs (N, ...) as a tensor, a numpy array or nested lists of numbers; a data set with
        ``x`` and ``y``, or torch's TensorDataset; or an iterable of batches, each x or (x, y, ...): a
        list of tensors or arrays, a DataLoader, :class:`bayesbin.data.Batches`.
    :param batch_size: how many rows of a tensor, an array or a data set are in a batch, at most.
    :raises ValueError: for anything else, and as :func:`network_inputs`.

    >>> [len(x) for x in network_batches(nn.Linear(2, 1), torch.zeros(5, 2), batch_size=2)]
    [2, 2, 1]
    >>> [len(x) for x in network_batches(nn.Linear(2, 1), [torch.zeros(3, 2), torch.zeros(1, 2)])]
    [3, 1]
    """
    if isinstance(data, torch.utils.data.TensorDataset):
        data = data.tensors[0]
    elif hasattr(data, "num_classes") and hasattr(data, "x"):  # bayesbin.data.Dataset
        data = data.x
    if not isinstance(data, (str, bytes, Mapping)) and isinstance(data, Iterable):
        if not _is_array(data):
            parts = [batch[0] if isinstance(batch, (tuple, list)) else batch for batch in data]
            return [network_inputs(net, part, "a batch of inputs") for part in parts]
        x = network_inputs(net, data)
        if x.dim() > 0:
            # Of equal size: a last batch of one row has no batch statistics.
            return list(x.tensor_split(max(1, math.ceil(len(x) / batch_size))))
    raise ValueError(
        f"expected inputs (N, ...) as {_KINDS}, or an iterable of batches; got {shown(data)}"
        f"{_remedy(data)}."
    )


def class_labels(name: str, y: Any) -> Tensor:
    """Return labels as int64 of one dimension: whole numbers or truth values of any type.

    :raises ValueError: as :func:`as_tensor`; for fractions and other numbers of dimensions.

    >>> class_labels("labels", [0, 2, 1])
    tensor([0, 2, 1])
    """
    y = as_tensor(name, y)
    if y.dim() != 1 or y.is_floating_point():
        raise ValueError(
            f"expected {name} as whole numbers of shape (N,); got {y.dtype} of shape {tuple(y.shape)}. "
            "One-hot labels: y.argmax(-1); strings: sklearn.preprocessing.LabelEncoder."
        )
    return y.long()


def _is_array(data: Any) -> bool:
    """Whether data are one array, nested lists of numbers among them, and no iterable of batches."""
    if isinstance(data, Tensor) or hasattr(data, "__array__"):
        return True
    while isinstance(data, (list, tuple)) and data:
        data = data[0]
        if isinstance(data, Tensor) or hasattr(data, "shape"):
            return not getattr(data, "shape", None)  # numbers of numpy's, and tensors of none
    return is_number(data) or isinstance(data, bool)


def _numbers_of(net: nn.Module) -> Iterator[Tensor]:
    """The floating-point parameters and buffers of a network."""
    for found in (net.parameters, net.buffers):
        yield from (values for values in found() if values.is_floating_point())


def _exact(name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
    converted = x.to(dtype)
    if x.dtype is torch.uint8:
        raise ValueError(
            f"expected {name} of floating-point numbers for this network; got uint8, the type of raw "
            "pixels. Preprocess them as the training data were (x / 255, say), or use x.float()."
        )
    if x.dtype is not torch.bool and not bool((converted.to(x.dtype) == x).all()):
        raise ValueError(
            f"expected {name} that {dtype}, the type of the network, holds exactly; got whole numbers "
            f"up to {int(x.abs().max())}. Scale them first."
        )
    return converted


def _dense(name: str, values: Tensor) -> Tensor:
    """A tensor as it is, after checking that it is dense and real."""
    if values.layout is not torch.strided:
        raise ValueError(f"expected {name} in a dense tensor; got a sparse one, use .to_dense().")
    if values.is_complex():
        raise ValueError(f"expected {name} of real numbers; got {values.dtype}.")
    return values


def _from_numpy(name: str, array: np.ndarray) -> Tensor:
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)  # torch has no larger type
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # torch computes with few of these
        if array.size and int(array.max()) > np.iinfo(np.int64).max:
            raise ValueError(f"expected {name} within int64; got {int(array.max())}.")
        array = array.astype(np.int64)
    if any(stride < 0 for stride in array.strides) or not array.flags.writeable:
        array = array.copy()
    return torch.from_numpy(array)


def _remedy(values: Any) -> str:
    """What to do with values that are no array; nothing for those that may be one."""
    kinds: tuple[tuple[Callable[[Any], bool], str], ...] = (
        (lambda v: v is None or isinstance(v, (str, bytes, Mapping, AbstractSet)), ""),
        (lambda v: isinstance(v, np.ma.MaskedArray), ", fill it with .filled(value)"),
        (lambda v: hasattr(v, "toarray"), ", use .toarray()"),
        (
            lambda v: isinstance(v, torch.utils.data.DataLoader),
            ", join its batches: torch.cat([x for x, y in loader])",
        ),
        (
            lambda v: hasattr(v, "x") and hasattr(v, "y") and not hasattr(v, "__array__"),
            ", take its .x or .y",
        ),
        (
            lambda v: isinstance(v, torch.utils.data.Dataset),
            ", stack its examples: torch.stack([x for x, y in dataset])",
        ),
        (lambda v: isinstance(v, Iterator), ", make a list of it"),
    )
    for matches, remedy in kinds:
        if matches(values):
            return remedy or ", which is none"
    return ""


def _content(array: np.ndarray) -> str:
    if array.dtype.kind in "USO":
        return "strings or objects"
    return str(array.dtype)
