"""Predictions for arrays larger than memory: in blocks, from file to file, by any number of processes."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bayesbin.core.checks import whole_number
from bayesbin.core.files import CorruptFileError, sha256, write_atomically
from bayesbin.runtime.predictor import Predictor, load

MANIFEST = "manifest.json"
_FORMAT, _VERSION = "bayesbin predictions", 2
_LOOKED_AT = 4096  # rows by which it is found out whether inputs are raw, whatever the blocks


@dataclass(frozen=True)
class BlockPredictions:
    """Predictions in a folder, one float64 array (.npy) per quantity.

    :param arrays: read-only maps of the files, a row per input; rows of blocks to come are 0.
    :param done: finished blocks. :param blocks: all of them.
    """

    folder: Path
    arrays: dict[str, np.ndarray]
    done: int
    blocks: int

    @property
    def complete(self) -> bool:
        """Whether every row is predicted."""
        return self.done == self.blocks


def predict_blocks(
    model: str | os.PathLike[str],
    inputs: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    rows_per_block: int = 4096,
    part: tuple[int, int] = (0, 1),
    preprocess: bool | None = None,
    threads: int | None = None,
    progress: bool | None = False,
) -> BlockPredictions:
    """Predict every row of an ``.npy`` file with a model file; memory holds one block at a time.

    The folder gets an array for each quantity of the prediction: ``probs.npy`` (N, ..., C), ``entropy.npy``,
    ``expected_entropy.npy`` and ``mutual_information.npy`` (N, ...), in nats, of classes and labels;
    ``mean.npy``, ``aleatoric_variance.npy`` and ``epistemic_variance.npy`` of a regressor and of counts; of
    other outputs ``mean.npy`` and ``variance.npy``. A finished block leaves a file with the digests of what
    went in and came out. The same call again goes on with the others, and computes anew a block whose results
    were damaged. Several processes with parts of their own write the same bytes as one.

    :param model: a file that :meth:`bayesbin.runtime.predictor.Predictor.save` wrote, of a network with
        one input and one output. :param inputs: (N, ...), as :meth:`Predictor.predict` takes them.
    :param rows_per_block: affects no result.
    :param part: (i, n): of the blocks, those whose number is i modulo n.
    :param preprocess, threads: as for :meth:`Predictor.predict` and :func:`load`. Whether inputs are raw
        is found out by the first 4,096 rows.
    :param progress: whether to draw a bar; None: where standard error is a terminal.
    :raises ValueError: for a folder with predictions of another model, input or block size, a part out
        of range, or inputs that the model does not take. :raises OSError: for files out of reach.
    """
    rows_per_block = whole_number("rows_per_block", rows_per_block, at_least=1)
    index, parts = (whole_number("each of part", number) for number in part)
    if index >= parts:
        raise ValueError(f"expected a part (i, n) with 0 <= i < n, got {(index, parts)}.")
    x = open_array(Path(inputs))
    if x.ndim == 0 or len(x) == 0:
        raise ValueError(f"expected inputs to predict in {inputs}, got an array of {x.shape}.")
    predictor = load(model, threads)
    shapes = _shapes_of(predictor, len(x))
    if preprocess is None:
        preprocess = predictor.is_raw(x[:_LOOKED_AT])
    manifest = {
        "format": _FORMAT,
        "version": _VERSION,
        "model": sha256(Path(model).read_bytes()),
        "inputs": {"shape": list(x.shape), "dtype": x.dtype.str},
        "preprocess": bool(preprocess),
        "rows_per_block": rows_per_block,
        "quantities": list(shapes),
    }
    folder = Path(folder)
    _begin(folder, manifest)
    arrays = {name: _array(folder / f"{name}.npy", shape) for name, shape in shapes.items()}
    blocks = -(-len(x) // rows_per_block)
    for block in _shown(range(index, blocks, parts), progress):
        rows = slice(block * rows_per_block, (block + 1) * rows_per_block)
        batch = np.ascontiguousarray(x[rows])
        digest = sha256(batch.tobytes())
        if _is_done(folder, block, digest, arrays, rows):
            continue
        prediction = predictor.predict(batch, preprocess)
        for name, array in arrays.items():
            array[rows] = getattr(prediction, name)
            _flush(array)  # what a finished block says must be there before it says so
        _finish(folder, block, digest, arrays, rows)
    for array in arrays.values():
        array.flags.writeable = False
    done = sum(_marker(folder, block).exists() for block in range(blocks))
    return BlockPredictions(folder, dict(arrays), done, blocks)


def open_array(path: Path, mode: Any = "r") -> np.ndarray:
    """The array in an ``.npy`` file, mapped into memory.

    :param mode: "r" to read, "r+" to write to it as well.
    :raises CorruptFileError: for whatever else is in the file, and for pipes and devices.
    :raises OSError: if it cannot be read.
    """
    mode_of = path.stat().st_mode
    if not stat.S_ISREG(mode_of) and not stat.S_ISDIR(mode_of):
        raise CorruptFileError(path, "expected an .npy array, got a pipe or a device.")
    try:
        found = np.load(path, mmap_mode=mode, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # numpy reads a header as Python, which fails in many ways
        reason = " ".join(str(error).split())[:200]
        raise CorruptFileError(path, f"expected an .npy array of numbers ({reason}).") from error
    if not isinstance(found, np.ndarray):
        raise CorruptFileError(path, "expected an .npy array of numbers, got several arrays.")
    return found


def _shapes_of(predictor: Predictor, rows: int) -> dict[str, tuple[int, ...]]:
    """The quantities that a model has, with their shapes for all rows."""
    program = predictor.program
    if len(program.inputs) != 1 or len(program.outputs) != 1:
        raise ValueError(
            f"expected a model with one input and one output, got {len(program.inputs)} inputs and "
            f"{len(program.outputs)} outputs."
        )
    nothing = predictor.predict(np.zeros((0, *_input_shape(predictor))), preprocess=False)
    return {name: (rows, *getattr(nothing, name).shape[1:]) for name in nothing.quantities}


def _input_shape(predictor: Predictor) -> tuple[int, ...]:
    (value,) = predictor.program.inputs.values()
    return value.shape


def _shown(blocks: range, progress: bool | None) -> Any:
    if progress is False:
        return blocks
    from tqdm import tqdm  # which prediction alone does without

    disable = None if progress is None else False
    return tqdm(blocks, desc="predicting", unit="block", disable=disable)


def _begin(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, or refuse a folder whose manifest is another."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MANIFEST
    if path.exists():
        there = _json_of(path)
        if there is None:
            raise CorruptFileError(path, "expected a JSON object; name another folder.")
        different = [key for key in manifest if there.get(key) != manifest[key]]
        if different:
            raise ValueError(
                f"Expected predictions of this model and these inputs in {folder}, but they differ in "
                f"{', '.join(different)}; name another folder."
            )
    elif any(not entry.name.startswith(".") for entry in folder.iterdir()) and not path.exists():
        raise ValueError(
            f"Expected a new or empty folder, or predictions begun; {folder} is neither."
        )
    else:  # of several processes that come here at once all write the same
        write_atomically(path, json.dumps(manifest, indent=1).encode())


def _json_of(path: Path) -> dict[str, Any] | None:
    """The object in a file; None where there is none."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _array(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The array in a file; of several processes one makes it, whole, and all map it."""
    if not path.exists():
        new = path.with_name(f".{path.stem}.{os.getpid():016x}.tmp")
        np.lib.format.open_memmap(new, mode="w+", dtype=np.float64, shape=shape).flush()
        try:
            os.link(new, path)  # unlike a renaming it fails if another was faster
        except FileExistsError:
            pass
        finally:
            new.unlink()
    array = open_array(path, "r+")
    if array.shape != shape or array.dtype != np.float64:
        raise CorruptFileError(path, f"expected float64 of shape {shape}; name another folder.")
    return array


def _flush(array: np.ndarray) -> None:
    if isinstance(array, np.memmap):
        array.flush()


def _marker(folder: Path, block: int) -> Path:
    return folder / f"block-{block:08d}.json"


def _results(arrays: Mapping[str, np.ndarray], rows: slice) -> Iterator[bytes]:
    return (array[rows].tobytes() for array in arrays.values())


def _finish(
    folder: Path, block: int, digest: str, arrays: Mapping[str, np.ndarray], rows: slice
) -> None:
    record = {"inputs": digest, "outputs": sha256(b"".join(_results(arrays, rows)))}
    write_atomically(_marker(folder, block), json.dumps(record).encode())


def _is_done(
    folder: Path, block: int, digest: str, arrays: Mapping[str, np.ndarray], rows: slice
) -> bool:
    """Whether a block was predicted and its results are what they were then."""
    record = _json_of(_marker(folder, block))
    if record is None:
        return False
    if record.get("inputs") != digest:
        raise ValueError(
            f"Expected the inputs that block {block} of {folder} was predicted from, but they have "
            "changed; name another folder."
        )
    return record.get("outputs") == sha256(b"".join(_results(arrays, rows)))
