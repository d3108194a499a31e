"""The binary weights in a model file, as arrays of -1 and +1 by name."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bayesbin.core.checks import is_number, shown, whole_number
from bayesbin.core.files import write_atomically
from bayesbin.predict import packing
from bayesbin.predict.shipped_model import ShippedModel, read_model
from bayesbin.predict.shipped_program import bits_of_draw


def unpack(path: str | os.PathLike[str], draw: int | str = 0) -> dict[str, np.ndarray]:
    """The weights of a file as int8 arrays of -1 and +1, site name -> array of the weight's shape.

    Draw s is ``posterior.signs(s, seed=seed)`` of the posterior that was packed.

    :param draw: the index of a draw; "mode", for a file of the posterior or of 0 draws; or "all", which
        puts the draws into a first dimension.
    :raises ValueError: for a draw that the file does not have. :raises CorruptFileError: as
        :func:`bayesbin.predict.load`. :raises RuntimeError: for a draw from a file of the posterior
        where the kernels were not built.

    Example::

        >>> import tempfile, torch
        >>> from bayesbin import BinaryPosterior
        >>> from bayesbin.nn import BinaryLinear
        >>> from bayesbin.predict import pack, unpack
        >>> posterior = BinaryPosterior({"weight": torch.tensor([[9.0, -9.0]])})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pack(BinaryLinear(2, 1), posterior, f"{folder}/model.bbn", num_samples=2)
        ...     unpack(path, draw=1)
        {'weight': array([[ 1, -1]], dtype=int8)}
    """
    model, _ = read_model(path)
    if draw == "all":
        if not model.num_samples:
            raise ValueError('The file holds the mode and no draws; use draw="mode".')
        each = [signs_of_draw(model, index) for index in range(model.num_samples)]
        return {site.name: np.stack([signs[site.name] for signs in each]) for site in model.sites}
    return signs_of_draw(model, checked_draw(model, draw))


def checked_draw(model: ShippedModel, draw: int | str) -> int | None:
    """The index of a draw, None for the mode. :raises ValueError: if the model does not have it."""
    if draw == "mode":
        return None
    index = whole_number("draw", draw, at_least=-1) if is_number(draw) else -1
    if not 0 <= index < model.num_samples:
        have = f"0 .. {model.num_samples - 1}" if model.num_samples else 'none, but the "mode"'
        raise ValueError(f"The file has the draws {have}; got {shown(draw)}.")
    return index


def signs_of_draw(model: ShippedModel, draw: int | None) -> dict[str, np.ndarray]:
    """int8 arrays of one draw, or of the mode."""
    found = {}
    for site in model.sites:
        plus = packing.unpack(bits_of_draw(model, site.name, draw), site.shape)
        found[site.name] = (2 * plus.astype(np.int8) - 1).astype(np.int8)
    return found


def save_arrays(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> Path:
    """Write arrays as .npz or .safetensors, by the name's ending, atomically.

    :raises ValueError: for another ending. :raises OSError: if it cannot be written.
    """
    path = Path(path)
    if path.suffix == ".npz":
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **dict(arrays))  # pyright: ignore
        payload = buffer.getvalue()
    elif path.suffix == ".safetensors":
        from safetensors.numpy import save

        payload = save(dict(arrays))
    else:
        raise ValueError(f"Arrays are written as .npz or .safetensors; got {path.name!r}.")
    write_atomically(path, payload)
    return path
