"""A whole averaged prediction as one operator of torch, and as a module around it.

``bayesbin::predict`` is a function of tensors: the inputs, and the bytes of a ``.bbn`` file in a tensor. It
is one node under ``torch.compile`` and ``torch.export``.
"""

from __future__ import annotations

import atexit
import dataclasses
import json
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bayesbin.compile.device_model import DeviceModel
from bayesbin.runtime import files
from bayesbin.runtime.model import Model
from bayesbin.runtime.predictor import Predictor
from bayesbin.runtime.program import DrawnSite

MODELS = 4  # that are kept after they were read
_BATCH = -1  # in the shapes of results


@torch.library.custom_op("bayesbin::predict", mutates_args=())
def predict(inputs: Sequence[Tensor], model: Tensor, results: str) -> list[Tensor]:
    """The averages over draws that the model's head has, or the outputs of each draw.

    A classifier gives ``log_probs``, ``expected_entropy`` and ``probs_std``; labels ``log_probs``,
    ``log_probs_absent``, ``expected_entropy`` and ``probs_std``; a regressor and counts ``mean``,
    ``aleatoric_variance`` and ``epistemic_variance``; a model of the head "outputs" its outputs of each draw,
    (S, B, ...). On a CPU they
    are those of :class:`bayesbin.runtime.predictor.Predictor`, to the bit; on other devices the network runs
    there. Nothing is differentiated.

    :param inputs: of each input a tensor (B, ...), as ``Predictor.predict`` takes them.
    :param model: uint8, the bytes of a model file.
    :param results: types and shapes of what comes out, as :func:`results_of` says of the model.
    :raises ValueError: for inputs that do not fit, bytes that are no model, or other results.
    """
    loaded = _loaded(model)
    if results != loaded.results:
        raise ValueError(
            f"expected results {loaded.results}, which are those of this model, got {results}; make the "
            "module of this model with bayesbin.compile.operator.module."
        )
    return loaded.predict(list(inputs))


@predict.register_fake
def _(inputs: Sequence[Tensor], model: Tensor, results: str) -> list[Tensor]:
    rows = inputs[0].shape[0]
    return [
        inputs[0].new_empty(
            [rows if size == _BATCH else size for size in shape], dtype=getattr(torch, dtype)
        )
        for dtype, shape in json.loads(results)
    ]


class PredictModule(nn.Module):
    """A predictor as one operator, for torch.compile, torch.export and other people's modules.

    Made by :func:`module`. It returns a tuple of tensors: of a classifier ``log_probs`` (B, ..., C),
    ``expected_entropy`` (B, ...) and ``probs_std`` (B, ..., C), float64; of labels ``log_probs``,
    ``log_probs_absent``, ``expected_entropy`` and ``probs_std``; of a regressor and of counts ``mean``,
    ``aleatoric_variance`` and ``epistemic_variance``, float64; of a network of the head "outputs" its
    outputs for each draw, (S, B, ...). On CPUs they are the predictor's, to the bit. All that it knows is in
    its buffer, the bytes of a model file. Nothing is differentiated.

    An exported program holds the operator by name: ``import bayesbin.compile.operator`` before it is loaded.

    Example::

        >>> import numpy as np, torch
        >>> from bayesbin.runtime.predictor import Predictor
        >>> from bayesbin.runtime.program import Constant, Program, Step, Value
        >>> weights = {"w": Constant(np.eye(3, dtype=np.float32)[None])}
        >>> step = Step("linear", ("x", "w"), ("logits",))
        >>> program = Program({"x": Value((3,), "f4")}, weights, {}, (step,), ("logits",))
        >>> predicting = module(Predictor(program, {"kind": "classes"}, backend="numpy"))
        >>> log_probs, expected_entropy, probs_std = predicting(torch.zeros(5, 3))
        >>> log_probs.shape, expected_entropy.shape, probs_std.shape
        (torch.Size([5, 3]), torch.Size([5]), torch.Size([5, 3]))
    """

    model: Tensor

    def __init__(self, data: bytes, results: str) -> None:
        super().__init__()
        self.results = results
        self.register_buffer("model", torch.frombuffer(bytearray(data), dtype=torch.uint8))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the model's head has for inputs (B, ...)."""
        given = [x.detach() for x in inputs]
        return tuple(torch.ops.bayesbin.predict(given, self.model, self.results))

    def extra_repr(self) -> str:
        return f"{len(self.model):,} bytes"


def module(predictor: Predictor) -> PredictModule:
    """The module of a predictor: everything it knows, in one buffer.

    The draws are kept as signs or as the posterior that they are drawn from, whichever is smaller.
    """
    model = predictor.model
    sites = [site for site in model.program.sites.values() if isinstance(site, DrawnSite)]
    # Of each weight 17 bits for each distribution, or one for each draw.
    smaller = sites and all(17 * len(site.mode) < model.program.num_draws for site in sites)
    data = files.to_bytes(model, "posterior" if smaller else "draws")
    return PredictModule(data, results_of(model))


def results_of(model: Model) -> str:
    """The types and shapes of what the operator returns, in JSON; -1 is the batch.

    A tensor of bytes has no contents while torch traces a program, so that shapes cannot be read from it.
    """
    program = model.program
    values = [program.values[name] for name in program.outputs]
    if model.averaging.kind == "outputs":
        shapes = [
            (np.dtype(value.dtype).name, [program.num_draws, _BATCH, *value.shape])
            for value in values
        ]
    else:  # those of a prediction for no rows
        head, sums = model.averaging, model.averaging.start()
        head.add(sums, [np.zeros((1, 0, *value.shape)) for value in values])
        shapes = [("float64", [_BATCH, *each.shape[1:]]) for each in _averages(head.finish(sums))]
    return json.dumps(shapes)


def _averages(prediction: Any) -> list[np.ndarray]:
    """The arrays that a prediction is made of."""
    names = [each.name for each in dataclasses.fields(prediction) if each.name != "num_samples"]
    return [getattr(prediction, name) for name in names]


class _Loaded:
    """A model that was read from a tensor of bytes, and what runs it on each device."""

    def __init__(self, data: Tensor) -> None:
        self._data = data.cpu().numpy().tobytes()
        # Off the CPU a copy is there, so that no byte is moved to be compared.
        self._copy = None if data.device.type == "cpu" else data.clone()
        self.model = files.from_bytes(self._data).model
        self.results = results_of(self.model)
        self._runners: dict[Any, Predictor | DeviceModel] = {}

    def is_of(self, data: Tensor) -> bool:
        """Whether the model was read from the same bytes on the same device."""
        if self._copy is None:  # torch.equal is slower for bytes
            return data.device.type == "cpu" and data.numpy().tobytes() == self._data
        if data.device != self._copy.device or data.shape != self._copy.shape:
            return False
        return torch.equal(data, self._copy)

    def predict(self, inputs: list[Tensor]) -> list[Tensor]:
        """The results for inputs, on their device."""
        device = inputs[0].device
        x = inputs[0] if len(inputs) == 1 else tuple(inputs)
        runner = self._runner(device)
        if self.model.averaging.kind == "outputs":
            arrays = runner.outputs(x)
            arrays = arrays if isinstance(arrays, tuple) else (arrays,)
        else:
            arrays = _averages(runner.predict(x))
        return [torch.tensor(array, device=device) for array in arrays]

    def _runner(self, device: torch.device) -> Predictor | DeviceModel:
        on_cpu = device.type == "cpu"
        key = torch.get_num_threads() if on_cpu else device
        if key not in self._runners:
            model = self.model
            self._runners[key] = (
                Predictor(
                    model.program,
                    model.head,
                    preprocessing=model.preprocessing,
                    precision=model.precision,
                    threads=torch.get_num_threads(),
                )
                if on_cpu
                else DeviceModel(model, device)
            )
        return self._runners[key]


_models: list[_Loaded] = []  # those used last come last
_lock = threading.Lock()
# torch keeps the operator, and with it this module, to the end: its models must be gone before.
atexit.register(_models.clear)


def _loaded(data: Tensor) -> _Loaded:
    """The model in a tensor of bytes, which is read once: the bytes are compared with those of the last few.

    :raises ValueError: for what holds no model.
    """
    if data.dtype != torch.uint8 or data.dim() != 1:
        raise ValueError(
            f"expected the bytes of a model, uint8 of one axis, got {data.dtype} of shape "
            f"{tuple(data.shape)}."
        )
    with _lock:
        for place in reversed(range(len(_models))):
            if _models[place].is_of(data):
                _models.append(_models.pop(place))
                return _models[-1]
        _models.append(_Loaded(data))
        del _models[:-MODELS]
        return _models[-1]
