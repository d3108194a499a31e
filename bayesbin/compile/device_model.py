"""Models on a device of torch: the network runs there, and draws are averaged there, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesbin.compile.devices import program_on
from bayesbin.compile.torch_backend import NUMBERS
from bayesbin.compile.torch_kinds import TYPES
from bayesbin.runtime.class_heads import ClassesHead
from bayesbin.runtime.head import Head
from bayesbin.runtime.heads import NormalHead
from bayesbin.runtime.meaning import Inputs
from bayesbin.runtime.model import Model
from bayesbin.runtime.predictions import ClassPrediction, NormalPrediction, OutputsPrediction


class DeviceModel:
    """A model on a device: :class:`bayesbin.runtime.predictor.Predictor` for devices other than the CPU.

    Its answers agree with the predictor's within rounding, and decisions are the same.

    :param backend: as for :func:`bayesbin.compile.devices.program_on`, of which errors are.

    Example::

        >>> import numpy as np
        >>> from bayesbin.runtime.program import Constant, Program, Step, Value
        >>> weights = {"w": Constant(np.eye(3, dtype=np.float32)[None])}
        >>> step = Step("linear", ("x", "w"), ("logits",))
        >>> program = Program({"x": Value((3,), "f4")}, weights, {}, (step,), ("logits",))
        >>> model = DeviceModel(Model(program, {"kind": "classes"}), "cpu")
        >>> model.predict(np.eye(3)).probs.argmax(1).tolist()
        [0, 1, 2]
    """

    def __init__(self, model: Model, device: torch.device | str, backend: str = "auto") -> None:
        self.model, self.device = model, torch.device(device)
        self._inputs = Inputs(model.program, model.preprocessing)
        self._network = program_on(model.program, device, backend, model.precision)
        before = model.preprocessing
        self._before = None if before is None else program_on(before, device, "torch")

    def predict(self, x: Any, preprocess: bool | None = None) -> Any:
        """The averages over draws, as :meth:`bayesbin.runtime.predictor.Predictor.predict` gives them."""
        head = self.model.averaging
        average = AVERAGES.get(head.kind, _in_numpy)
        return head.join([average(head, outputs) for outputs in self._blocks(x, preprocess)])

    def outputs(self, x: Any, preprocess: bool | None = None) -> Any:
        """What the network of each draw returns, (S, B, ...); a tuple for several outputs."""
        blocks = [[_array(y) for y in outputs] for outputs in self._blocks(x, preprocess)]
        found = tuple(np.concatenate(each, axis=1) for each in zip(*blocks, strict=True))
        return found[0] if len(found) == 1 else found

    def _blocks(self, x: Any, preprocess: bool | None) -> Iterator[list[Tensor]]:
        """The outputs of all draws for some rows, and for some more."""
        inputs, raw = self._read(x, preprocess)
        program = self.model.program
        numbers = sum(program.values[name].size for name in program.outputs)
        size = max(1, NUMBERS // max(program.num_draws * numbers, 1))
        for first in range(0, max(len(inputs[0]), 1), size):
            rows: Sequence[Tensor] = [each[first : first + size] for each in inputs]
            with torch.no_grad():
                if raw and self._before is not None:
                    rows = [each[0] for each in self._before.run(rows, range(1))]
                yield self._network.run(rows, range(program.num_draws))

    def _read(self, x: Any, preprocess: bool | None) -> tuple[list[Tensor], bool]:
        """The inputs on the device, and whether they are raw."""
        there = self._as_they_are(x)
        if there is not None and not preprocess:
            return there, False
        arrays, raw = self._inputs.read(x, preprocess)
        return [torch.tensor(array, device=self.device) for array in arrays], raw

    def _as_they_are(self, x: Any) -> list[Tensor] | None:
        """Finite numbers of the shapes expected that are on the device already; None: they are to be read."""
        wanted = self.model.program.inputs.values()
        given = list(x) if isinstance(x, (tuple, list)) else [x]
        if self.model.preprocessing is not None or len(given) != len(wanted):
            return None
        found = []
        for each, value in zip(given, wanted, strict=True):
            if not isinstance(each, Tensor) or each.device != self.device or not each.dim():
                return None
            floats = each.is_floating_point() and TYPES[value.dtype].is_floating_point
            if not floats or each.shape[1:] != value.shape or len(each) != len(given[0]):
                return None
            found.append(each.detach().to(TYPES[value.dtype]))
        finite = all(bool(torch.isfinite(each).all()) for each in found)
        return found if finite else None


# Averages over draws, one for each kind of head that is averaged on the device


def _classes(head: Head, outputs: Sequence[Tensor]) -> ClassPrediction:
    assert isinstance(head, ClassesHead)
    log_probs = torch.log_softmax(outputs[0].double().movedim(head.axis + 1, -1), -1)
    probs = log_probs.exp()
    count = len(probs)
    return ClassPrediction(
        _array(log_probs.logsumexp(0) - math.log(count)),
        _array(torch.special.entr(probs).sum(-1).mean(0)),
        _array(_moments(probs)[1].sqrt()),
        count,
    )


def _normal(head: Head, outputs: Sequence[Tensor]) -> NormalPrediction:
    assert isinstance(head, NormalHead)
    if head.heteroscedastic:
        return _in_numpy(head, outputs)
    values, _ = head.parts(outputs)
    mean, variance = (_array(each) for each in _moments(values))
    noise = np.square(head.numbers["noise"]).mean(axis=0)
    return NormalPrediction(mean, np.broadcast_to(noise, mean.shape).copy(), variance, len(values))


def _outputs(head: Head, outputs: Sequence[Tensor]) -> OutputsPrediction:
    pairs = [[_array(each) for each in _moments(values)] for values in outputs]
    means, variances = (tuple(each) for each in zip(*pairs, strict=True))
    if len(pairs) == 1:
        return OutputsPrediction(means[0], variances[0], len(outputs[0]))
    return OutputsPrediction(means, variances, len(outputs[0]))


AVERAGES: dict[str, Callable[[Head, Sequence[Tensor]], Any]] = {
    "classes": _classes,
    "normal": _normal,
    "outputs": _outputs,
}


def _in_numpy(head: Head, outputs: Sequence[Tensor]) -> Any:
    """Any other head averages as it does in a predictor."""
    sums = head.start()
    head.add(sums, [_array(values) for values in outputs])
    return head.finish(sums)


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance over draws; draws that agree have a variance of exactly 0."""
    apart = values.double() - values[0].double()
    mean = apart.mean(0)
    variance = (apart.square().mean(0) - mean.square()).clamp(min=0.0)
    return values[0].double() + mean, variance


def _array(values: Tensor) -> np.ndarray:
    return values.cpu().numpy()
