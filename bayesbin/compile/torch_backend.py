"""Programs in torch: on any device, and differentiable with respect to their inputs."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bayesbin.compile.torch_kinds import DECIDE, TYPES, compute
from bayesbin.runtime.program import DrawnSite, Program, Site, Step, Value

Values = dict[str, Tensor]

CACHED = 1 << 28  # bytes of signs that a program keeps, one of each weight
NUMBERS = 1 << 24  # in the largest value of a block: more draws or data go one block after another
_ON_DEVICES = 4  # times as many off the CPU
_PRODUCTS = {"linear", "conv"}
_WITHOUT_FLOAT64 = {"mps"}


class TorchProgram(nn.Module):
    """A :class:`~bayesbin.runtime.program.Program` as a module of torch.

    Values hold many draws at once, (draws or 1, data or 1, ...), as many as a bound on memory allows. What
    does not depend on a draw is computed once. Signs are drawn as :mod:`bayesbin.core.canonical` says, sent
    to the device in packed words and unpacked there; those used last are kept, up to ``CACHED`` bytes.

    The outputs agree with :mod:`bayesbin.runtime.reference` within 1e-6 of the largest; decisions are made
    in float64 and are the same. A sign passes the gradient where its input is in [-1, 1], as
    :class:`bayesbin.nn.Sign` does.

    :param program: what is run; its constants are this module's buffers, so that ``to(device)`` moves them.

    Example::

        >>> import numpy as np, torch
        >>> from bayesbin.core.canonical import pack_words
        >>> from bayesbin.runtime.program import Program, Step, StoredSite, Value
        >>> signs = StoredSite((1, 3), pack_words(np.array([[True, False, True]]))[None])
        >>> step = Step("linear", ("x", "weight"), ("y",))
        >>> program = Program({"x": Value((3,), "f4")}, {}, {"weight": signs}, (step,), ("y",))
        >>> TorchProgram(program)(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[[2.]]])
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self._signs = _SignCache(CACHED)
        self._constants: dict[str, str] = {}
        for place, (name, constant) in enumerate(program.constants.items()):
            self._constants[name] = f"constant_{place}"
            # Not in a state dict: it would hold a part of the program, without its signs.
            self.register_buffer(f"constant_{place}", torch.tensor(constant.data), persistent=False)
        values = program.values
        drawn = [step for step in program.steps if values[step.outputs[0]].drawn]
        shared = [step for step in program.steps if not values[step.outputs[0]].drawn]
        kept = {name for step in drawn for name in step.inputs} | set(program.outputs)
        self._shared, self._drawn = _released(shared, kept), _released(drawn, set(program.outputs))
        self._widest = max([1, *(v.size for n, v in values.items() if v.batched)])
        self._weights = max([1, *(v.size for v in values.values() if v.drawn and not v.batched)])

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The outputs of all draws, (S, B, ...); a tuple if there are several."""
        found = self.run(inputs, range(self.program.num_draws))
        return found[0] if len(found) == 1 else tuple(found)

    def run(self, inputs: Sequence[Tensor], draws: Sequence[int]) -> list[Tensor]:
        """The outputs for some draws, each (D, B, ...) in the type that the program gives it.

        :param inputs: in the order of ``program.inputs``, each (B, ...), on the device of the module.
        :param draws: at least one of 0..S-1.
        :raises ValueError: for inputs or draws that do not fit the program, or a module that was converted
            to another type.
        """
        rows, device = self._checked(inputs, draws)
        number = np.asarray(draws, dtype=np.int64)
        blocks = []
        with exact_products(device):
            size = max(1, _numbers(device) // self._widest)
            for first in range(0, max(rows, 1), size):
                block = {
                    name: x[first : first + size].to(TYPES[value.dtype])[None]
                    for x, (name, value) in zip(inputs, self.program.inputs.items(), strict=True)
                }
                blocks.append(self._block(block, min(size, rows - first), number, device))
        return [torch.cat(parts, 1) for parts in zip(*blocks, strict=True)]

    def _checked(self, inputs: Sequence[Tensor], draws: Sequence[int]) -> tuple[int, torch.device]:
        """The number of data, and the device."""
        declared = self.program.inputs
        if len(inputs) != len(declared) or not inputs:
            raise ValueError(f"expected {max(len(declared), 1)} inputs, got {len(inputs)}.")
        rows, device = inputs[0].shape[:1], inputs[0].device
        _check_device(self.program, device)
        for x, (name, value) in zip(inputs, declared.items(), strict=True):
            if x.shape != (*rows, *value.shape) or not rows:
                raise ValueError(
                    f"expected {name!r} of shape {('B', *value.shape)}, and B the same of all inputs, got "
                    f"{tuple(x.shape)}."
                )
            _check_type(name, x, value)
        if not len(draws) or min(draws) < 0 or max(draws) >= self.program.num_draws:
            raise ValueError(
                f"expected draws of 0..{self.program.num_draws - 1}, got {list(draws)[:10]}."
            )
        for name, buffer in self._constants.items():
            held = self.get_buffer(buffer)
            wanted = self.program.constants[name].data.dtype
            if held.dtype != torch.from_numpy(np.empty(0, wanted)).dtype:
                raise ValueError(
                    f"expected the constant {name!r} in the program's type {wanted}, got {held.dtype}. "
                    "Convert inputs, not the module."
                )
            if any(x.device != held.device for x in inputs):
                raise ValueError(
                    f"expected inputs on {held.device}, where the program is, got {inputs[0].device}; move "
                    "either with to(device)."
                )
        return rows[0], device

    def _block(
        self, inputs: Values, rows: int, draws: np.ndarray, device: torch.device
    ) -> list[Tensor]:
        """The outputs of some rows for all draws wanted."""
        shared = self._steps(self._shared, inputs, draws[:1], device)
        size = max(1, _numbers(device) // max(self._widest * rows, self._weights))
        parts: list[list[Tensor]] = []
        for first in range(0, len(draws), size):
            some = draws[first : first + size]
            values = self._steps(self._drawn, dict(shared), some, device)
            found = [self._read(name, values, some, device) for name in self.program.outputs]
            parts.append([value.expand(len(some), rows, *value.shape[2:]) for value in found])
        return [torch.cat(each) for each in zip(*parts, strict=True)]

    def _steps(
        self,
        steps: list[tuple[Step, list[str]]],
        values: Values,
        draws: np.ndarray,
        device: torch.device,
    ) -> Values:
        """Run steps one after another; a value is dropped after the last step that needs it."""
        for step, over in steps:
            found = self._outputs(step, values, draws, device)
            values.update(zip(step.outputs, found, strict=True))
            for name in over:
                values.pop(name, None)
        return values

    def _outputs(
        self, step: Step, values: Values, draws: np.ndarray, device: torch.device
    ) -> tuple[Tensor, ...]:
        """The outputs of one step."""
        inputs = [self._read(n, values, draws, device) if n else None for n in step.inputs]
        known = self.program.values
        whole = step.kind in _PRODUCTS and all(known[name].signs for name in step.inputs[:2])
        return compute(step, inputs, whole)

    def _read(self, name: str, values: Values, draws: np.ndarray, device: torch.device) -> Tensor:
        """A value, a constant or the signs of a site, (D or 1, B or 1, ...)."""
        if name in values:
            return values[name]
        if name in self.program.sites:
            return self._signs_of(name, draws, device)
        constant = self.program.constants[name]
        held = self.get_buffer(self._constants[name])
        if constant.rows is None:
            held = held[:1]
        else:
            held = held[torch.from_numpy(constant.rows[draws]).to(device)]
        if constant.levels is not None:
            held = held.new_tensor(constant.levels, dtype=torch.float32)[held.long()]
        return held[:, None]

    def _signs_of(self, name: str, draws: np.ndarray, device: torch.device) -> Tensor:
        """The signs of a site, int8 (D or 1, 1, ...)."""
        site = self.program.sites[name]
        drawn = self.program.values[name].drawn
        found = [
            self._signs.get(name, site, int(draw), device) for draw in draws[: None if drawn else 1]
        ]
        return torch.stack(found)[:, None]


def _numbers(device: torch.device) -> int:
    return NUMBERS if device.type == "cpu" else _ON_DEVICES * NUMBERS


def _released(steps: Sequence[Step], kept: set[str]) -> list[tuple[Step, list[str]]]:
    """Each step with the names that nothing after it needs."""
    seen = set(kept)
    found = []
    for step in reversed(steps):
        over = [name for name in {*step.inputs, *step.outputs} if name and name not in seen]
        seen.update(over)
        found.append((step, over))
    return found[::-1]


def _check_device(program: Program, device: torch.device) -> None:
    """Refuse a device that cannot decide as the others do."""
    wide = any(step.kind in DECIDE or step.dtype == "f8" for step in program.steps)
    if wide and device.type in _WITHOUT_FLOAT64:
        raise ValueError(
            f"expected a device that computes in float64, which this program needs, got {device}; run it on "
            "the CPU."
        )


def _check_type(name: str, x: Tensor, value: Value) -> None:
    """Whether an input may be converted to the type that the program takes."""
    wanted = TYPES[value.dtype]
    if x.dtype.is_complex or (x.dtype.is_floating_point and not wanted.is_floating_point):
        raise ValueError(f"expected {name!r} of {wanted}, got {x.dtype}.")


class _SignCache:
    """Signs on their devices, those used last, within a number of bytes."""

    def __init__(self, bound: int) -> None:
        self._bound, self._held = bound, 0
        self._signs: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:  # a copy begins empty
        return _SignCache, (self._bound,)

    def get(self, name: str, site: Site, draw: int, device: torch.device) -> Tensor:
        """The signs of one draw, int8 in the shape of the site."""
        key = name, draw if isinstance(site, DrawnSite) else site.row(draw), device
        with self._lock:
            if key in self._signs:
                self._signs.move_to_end(key)
                return self._signs[key]
        signs = _unpacked(site.words(draw), site.shape, device)
        with self._lock:
            if key not in self._signs:
                self._signs[key] = signs
                self._held += signs.numel()
            while self._held > self._bound:
                self._held -= self._signs.popitem(last=False)[1].numel()
        return signs


def _unpacked(words: np.ndarray, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Packed words as signs, int8, on a device: a bit of each weight is sent."""
    packed = torch.tensor(np.ascontiguousarray(words).astype("<u8").view(np.uint8), device=device)
    places = torch.arange(8, dtype=torch.uint8, device=device)
    bits = (packed[..., None] >> places) & 1
    inputs = int(np.prod(shape[1:]))
    return (2 * bits.flatten(1)[:, :inputs].to(torch.int8) - 1).reshape(shape)


@contextlib.contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Products of float32 are those of float32, without TF32 or autocast, whatever is set.

    On a GPU the settings are the process's, and are put back at the end.
    """
    with contextlib.ExitStack() as stack:
        if device.type != "meta" and torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        for owner, name, value in _SETTINGS if device.type == "cuda" else ():
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield


def _precision_settings() -> list[tuple[Any, str, Any]]:
    """What says that products of float32 are exact, in this version of torch."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(matmul, "fp32_precision"):
        conv: Any = getattr(cudnn, "conv")  # noqa: B009  older versions have none
        return [(matmul, "fp32_precision", "ieee"), (conv, "fp32_precision", "ieee")]
    return [(matmul, "allow_tf32", False), (cudnn, "allow_tf32", False)]


_SETTINGS = _precision_settings()
