"""Every way from a posterior to a prediction, under one signature.

A backend is made of a network in evaluation mode, a posterior, inputs that show shapes and types, and a
number of draws; what it gives predicts: inputs -> one array (S, B, ...) for each output of the network.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from prepared import SEED, copied
from reference import flat, stacked
from torch import Tensor, nn

import bayesbin as bb
from bayesbin.compile.c_source import export_c
from bayesbin.compile.export import export_program
from bayesbin.compile.folding import fold
from bayesbin.compile.onnx_export import export_onnx
from bayesbin.compile.torch_backend import TorchProgram
from bayesbin.runtime import reference as numpy_backend
from bayesbin.runtime.predictor import Predictor
from bayesbin.runtime.program import Program

Inputs = tuple[Tensor, ...]
Predict = Callable[[Inputs], list[np.ndarray]]
Backend = Callable[[nn.Module, Any, Inputs, int], Predict]
OUTPUTS = {"kind": "outputs"}


def users_network(net: nn.Module, posterior: Any, inputs: Inputs, num_draws: int) -> Predict:
    """The user's own network in torch, in its own type, one draw after another."""
    networks = [posterior.sample_network(net, draw, SEED) for draw in range(num_draws)]

    @torch.no_grad()
    def predict(inputs: Inputs) -> list[np.ndarray]:
        return stacked([flat(each(*copied(inputs))) for each in networks])

    return predict


def ensemble(net: nn.Module, posterior: Any, inputs: Inputs, num_draws: int) -> Predict:
    """``bayesbin.Ensemble``, which predicts in torch what does not compile."""
    whole = bb.Ensemble(net, posterior, num_samples=num_draws, seed=SEED).calibrate(None)
    return lambda inputs: flat(whole.outputs(_one_or_all(inputs)))


def in_numpy(net: nn.Module, posterior: Any, inputs: Inputs, num_draws: int) -> Predict:
    """The numpy backend, which defines the numbers."""
    program = _program(net, posterior, inputs, num_draws)
    return lambda inputs: numpy_backend.run(program, _arrays(inputs), range(num_draws))


def native(net: nn.Module, posterior: Any, inputs: Inputs, num_draws: int) -> Predict:
    """The compiled kernels."""
    predictor = Predictor(
        _program(net, posterior, inputs, num_draws), OUTPUTS, backend="native", threads=1
    )
    return lambda inputs: _outputs(predictor, inputs)


def in_torch(net: nn.Module, posterior: Any, inputs: Inputs, num_draws: int) -> Predict:
    """The program in torch, all draws at once."""
    program = TorchProgram(_program(net, posterior, inputs, num_draws))

    @torch.no_grad()
    def predict(inputs: Inputs) -> list[np.ndarray]:
        given = [torch.from_numpy(each) for each in _arrays(inputs)]
        return [each.numpy() for each in program.run(given, range(num_draws))]

    return predict


def bbn_file(net: nn.Module, posterior: Any, inputs: Inputs, num_draws: int) -> Predict:
    """A ``.bbn`` file, written and read again."""
    predictor = Predictor(_program(net, posterior, inputs, num_draws), OUTPUTS, threads=1)
    with tempfile.TemporaryDirectory() as folder:
        path = predictor.save(Path(folder) / "model.bbn")
        loaded = bb.load(path, threads=1)
    return lambda inputs: _outputs(loaded, inputs)


def onnx(net: nn.Module, posterior: Any, inputs: Inputs, num_draws: int) -> Predict:
    """An ONNX graph of all draws, run by onnxruntime."""
    import onnxruntime

    program = _program(net, posterior, inputs, num_draws)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(Predictor(program, OUTPUTS), Path(folder) / "model.onnx")
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs() if each.name.startswith("outputs")]

    def predict(inputs: Inputs) -> list[np.ndarray]:
        given = dict(zip(program.inputs, _arrays(inputs), strict=True))
        return [np.asarray(each) for each in session.run(names, given)]

    return predict


def c_source(net: nn.Module, posterior: Any, inputs: Inputs, num_draws: int) -> Predict:
    """C99 source, compiled by the system's compiler, called for one datum and draw after another."""
    program = _program(net, posterior, inputs, num_draws)
    with tempfile.TemporaryDirectory() as folder:
        source, library = export_c(Predictor(program, OUTPUTS), folder), Path(folder) / "model.so"
        options = ["-std=c99", "-O1", "-ffp-contract=off", "-shared", "-fPIC"]
        command = ["cc", *options, str(source / "model.c"), "-lm", "-o", str(library)]
        subprocess.run(command, check=True, capture_output=True)
        function = ctypes.CDLL(str(library)).bayesbin_outputs
    values = [program.values[name] for name in program.outputs]

    def of_one(draw: int, data: list[np.ndarray]) -> list[np.ndarray]:
        found = [np.empty(value.shape, _IN_C[value.dtype]) for value in values]
        pointers = [each.ctypes.data_as(ctypes.c_void_p) for each in (*data, *found)]
        if function(ctypes.c_int32(draw), *pointers):
            raise ValueError("the compiled C refuses an input")
        return [
            x.astype(bool) if v.dtype == "b1" else x for x, v in zip(found, values, strict=True)
        ]

    def predict(inputs: Inputs) -> list[np.ndarray]:
        arrays = [x.astype(np.uint8) if x.dtype == bool else x for x in _arrays(inputs)]
        rows = [[np.ascontiguousarray(x[i]) for x in arrays] for i in range(len(arrays[0]))]
        return stacked([stacked([of_one(draw, row) for row in rows]) for draw in range(num_draws)])

    return predict


BACKENDS: dict[str, Backend] = {
    "network": users_network,
    "ensemble": ensemble,
    "numpy": in_numpy,
    "native": native,
    "torch": in_torch,
    ".bbn": bbn_file,
    "ONNX": onnx,
    "C": c_source,
}
# What runs the user's code itself, and so predicts with what cannot become a program.
IN_TORCH = {"network", "ensemble"}
# What promises the same bits as the numpy backend.
SAME_BITS = {"native", ".bbn"}
_IN_C = {"f4": np.float32, "f8": np.float64, "i8": np.int64, "b1": np.uint8}
_last: tuple[Any, Program | Exception] | None = None


def _program(net: nn.Module, posterior: Any, inputs: Inputs, num_draws: int) -> Program:
    """The program of a network; the last one is kept, since every backend asks for it."""
    global _last
    if _last is None or _last[0] is not net:
        try:
            _last = net, fold(export_program(net, inputs, posterior, num_draws, SEED))
        except Exception as error:
            _last = net, error
    if isinstance(_last[1], Exception):
        raise _last[1]
    return _last[1]


def _arrays(inputs: Inputs) -> list[np.ndarray]:
    """Inputs as a program takes them: whole numbers of any width are int64."""
    arrays = [np.ascontiguousarray(each.numpy()) for each in inputs]
    return [each.astype(np.int64) if each.dtype.kind in "iu" else each for each in arrays]


def _one_or_all(inputs: Sequence[Any]) -> Any:
    return inputs[0] if len(inputs) == 1 else inputs


def _outputs(predictor: Predictor, inputs: Inputs) -> list[np.ndarray]:
    found = predictor.outputs(_one_or_all(tuple(_arrays(inputs))))
    return list(found) if isinstance(found, tuple) else [found]
