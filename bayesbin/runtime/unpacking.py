"""The binary weights of a predictor or a model file, as arrays of -1 and +1 by name."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bayesbin.core.canonical import unpack_words
from bayesbin.core.checks import is_number, shown, whole_number
from bayesbin.core.files import write_atomically
from bayesbin.runtime import files
from bayesbin.runtime.program import DrawnSite, Program, Site, signs_of


def unpack(predictor: Any, draw: int | str = 0) -> dict[str, np.ndarray]:
    """The weights as int8 arrays of -1 and +1, site name -> array of the weight's shape.

    Draw s of a file is draw s of the ensemble that was saved.

    :param predictor: a Predictor, a Program, or the path of a ``.bbn`` file.
    :param draw: the index of a draw; "mode", of a file that holds the posterior; or "all", which puts the
        draws into a first dimension.
    :raises ValueError: for a draw that there is not. :raises CorruptFileError: for a file that is damaged,
        foreign or of another version. :raises OSError: if it cannot be read.

    Example::

        >>> import tempfile
        >>> from bayesbin.core.canonical import pack_words
        >>> from bayesbin.runtime.predictor import Predictor
        >>> from bayesbin.runtime.program import Program, Step, StoredSite, Value
        >>> site = StoredSite((1, 2), pack_words(np.array([[True, False]]))[None])
        >>> step = Step("linear", ("x", "weight"), ("y",))
        >>> program = Program({"x": Value((2,), "f4")}, {}, {"weight": site}, (step,), ("y",))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     predictor = Predictor(program, {"kind": "outputs"}, backend="numpy")
        ...     unpack(predictor.save(f"{folder}/model.bbn"))
        {'weight': array([[ 1, -1]], dtype=int8)}
    """
    program = _program_of(predictor)
    if draw == "all":
        draws = range(program.num_draws)
        return {
            name: np.stack([signs_of(site, each, np.int8) for each in draws])
            for name, site in program.sites.items()
        }
    if draw == "mode":
        return {name: _mode_of(name, site) for name, site in program.sites.items()}
    index = whole_number("draw", draw, at_least=-1) if is_number(draw) else -1
    if not 0 <= index < program.num_draws:
        raise ValueError(
            f"expected a draw of 0 to {program.num_draws - 1}, 'mode' or 'all', got {shown(draw)}."
        )
    return {name: signs_of(site, index, np.int8) for name, site in program.sites.items()}


def _program_of(predictor: Any) -> Program:
    if isinstance(predictor, str | os.PathLike):
        return files.read(predictor, trusted=True).model.program  # nothing is predicted
    return predictor if isinstance(predictor, Program) else predictor.program


def _mode_of(name: str, site: Site) -> np.ndarray:
    """:raises ValueError: where there is none, or more than one."""
    if not isinstance(site, DrawnSite):
        raise ValueError(
            f"expected a file of the posterior for its mode; of {name!r} there are the signs of draws: "
            "name a draw, or save the mode."
        )
    if len(site.mode) > 1:
        raise ValueError(
            f"expected one posterior of {name!r} for its mode, got {len(site.mode)}; name a draw."
        )
    return np.where(unpack_words(site.mode[0], tuple(site.shape)), 1, -1).astype(np.int8)


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
        raise ValueError(f"expected a name that ends in .npz or .safetensors, got {path.name!r}.")
    write_atomically(path, payload)
    return path
