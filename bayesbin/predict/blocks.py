"""Predictions for arrays larger than memory: in blocks, from file to file, by any number of processes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bayesbin.core.files import CorruptFileError, sha256, write_atomically
from bayesbin.predict.shipped import load

MANIFEST = "manifest.json"
_FORMAT, _VERSION = "bayesbin predictions", 1
_CLASSES = ("probs", "entropy", "expected_entropy", "mutual_information")
_REGRESSION = ("mean", "aleatoric", "epistemic")


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

    The folder gets ``probs.npy`` (N, C), ``entropy.npy``, ``expected_entropy.npy`` and
    ``mutual_information.npy`` (N,), in nats; of a regressor ``mean.npy``, ``aleatoric.npy`` and
    ``epistemic.npy``. A finished block leaves a file with the digests of what went in and came out. The
    same call again goes on with the others, and computes anew a block whose results were damaged.
    Several processes with parts of their own write the same bytes as one.

    :param model: a file that :func:`bayesbin.predict.pack` wrote. :param inputs: (N, ...), as
        :meth:`ShippedPredictive.predict` takes them. :param rows_per_block: affects no result.
    :param part: (i, n): of the blocks, those whose number is i modulo n.
    :param preprocess, threads: as for :func:`load` and :meth:`ShippedPredictive.predict`.
    :raises ValueError: for a folder with predictions of another model, input or block size, a part out
        of range, or inputs that the model does not take. :raises OSError: for files out of reach.

    Example::

        >>> import tempfile, numpy as np, torch
        >>> from bayesbin import BinaryPosterior
        >>> from bayesbin.nn import BinaryLinear
        >>> from bayesbin.predict import pack, predict_blocks
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     posterior = BinaryPosterior({"weight": torch.zeros(3, 4)})
        ...     model = pack(BinaryLinear(4, 3), posterior, f"{folder}/model.bbn", num_samples=8)
        ...     np.save(f"{folder}/x.npy", np.zeros((10, 4)))
        ...     found = predict_blocks(model, f"{folder}/x.npy", f"{folder}/out", rows_per_block=4)
        ...     found.arrays["probs"].shape, found.blocks, found.complete
        ((10, 3), 3, True)
    """
    index, parts = part
    if rows_per_block < 1 or parts < 1 or not 0 <= index < parts:
        raise ValueError(
            f"Blocks have at least 1 row, and a part (i, n) has 0 <= i < n; got {rows_per_block} rows "
            f"and part {part}."
        )
    x = _opened(Path(inputs))
    predictive = load(model, threads)
    if x.ndim == 0 or x.shape[1:] != predictive.model.input:
        wanted = ", ".join(map(str, predictive.model.input))
        raise ValueError(f"Inputs have the shape (N, {wanted}); {inputs} has {x.shape}.")
    if len(x) == 0:
        raise ValueError(f"There is no input to predict in {inputs}: it has {x.shape}.")
    classes = predictive.model.noise_variance is None
    manifest = {
        "format": _FORMAT,
        "version": _VERSION,
        "model": sha256(Path(model).read_bytes()),
        "inputs": {"shape": list(x.shape), "dtype": x.dtype.str},
        "preprocess": preprocess,
        "rows_per_block": rows_per_block,
        "quantities": list(_CLASSES if classes else _REGRESSION),
    }
    folder = Path(folder)
    _begin(folder, manifest)
    shapes = {
        name: (len(x), predictive.model.outputs) if name == "probs" else (len(x),)
        for name in manifest["quantities"]
    }
    arrays = {name: _array(folder / f"{name}.npy", shape) for name, shape in shapes.items()}
    blocks = -(-len(x) // rows_per_block)
    mine = range(index, blocks, parts)
    for block in tqdm(
        mine, desc="predicting", unit="block", disable=None if progress is None else not progress
    ):
        rows = slice(block * rows_per_block, (block + 1) * rows_per_block)
        batch = np.ascontiguousarray(x[rows])
        digest = sha256(batch.tobytes())
        if _is_done(folder, block, digest, arrays, rows):
            continue
        prediction = predictive.predict(batch, preprocess)
        for name, array in arrays.items():
            array[rows] = getattr(prediction, name)
            array.flush()  # what a finished block says must be there before it says so
        _finish(folder, block, digest, arrays, rows)
    for array in arrays.values():
        array.flags.writeable = False
    done = sum(_marker(folder, block).exists() for block in range(blocks))
    return BlockPredictions(folder, dict(arrays), done, blocks)


def _opened(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise CorruptFileError(path, f"expected an .npy array of numbers ({error}).") from error


def _begin(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, or refuse a folder whose manifest is another."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MANIFEST
    if path.exists():
        try:
            there = json.loads(path.read_bytes())
        except ValueError as error:
            raise CorruptFileError(path, "expected JSON; name another folder.") from error
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


def _array(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """The array in a file; of several processes one makes it, whole, and all map it."""
    if not path.exists():
        new = path.with_name(f"{path.stem}.{os.getpid()}.tmp")
        np.lib.format.open_memmap(new, mode="w+", dtype=np.float64, shape=shape).flush()
        try:
            os.link(new, path)  # unlike a renaming it fails if another was faster
        except FileExistsError:
            pass
        finally:
            new.unlink()
    array = np.lib.format.open_memmap(path, mode="r+")
    if array.shape != shape or array.dtype != np.float64:
        raise CorruptFileError(path, f"expected float64 of shape {shape}; name another folder.")
    return array


def _marker(folder: Path, block: int) -> Path:
    return folder / f"block-{block:08d}.json"


def _results(arrays: dict[str, np.memmap], rows: slice) -> Iterator[bytes]:
    return (array[rows].tobytes() for array in arrays.values())


def _finish(
    folder: Path, block: int, digest: str, arrays: dict[str, np.memmap], rows: slice
) -> None:
    record = {"inputs": digest, "outputs": sha256(b"".join(_results(arrays, rows)))}
    write_atomically(_marker(folder, block), json.dumps(record).encode())


def _is_done(
    folder: Path, block: int, digest: str, arrays: dict[str, np.memmap], rows: slice
) -> bool:
    """Whether a block was predicted and its results are what they were then."""
    path = _marker(folder, block)
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    if record.get("inputs") != digest:
        raise ValueError(
            f"Expected the inputs that block {block} of {folder} was predicted from, but they have "
            "changed; name another folder."
        )
    return record.get("outputs") == sha256(b"".join(_results(arrays, rows)))
