"""Reading a posterior of either kind."""

from __future__ import annotations

import os

from bayesbin.posterior import file
from bayesbin.posterior.binary_posterior import BinaryPosterior
from bayesbin.posterior.low_bit_posterior import LowBitPosterior


def load_posterior(path: str | os.PathLike[str]) -> BinaryPosterior | LowBitPosterior:
    """The posterior in a file, over signs or over a few levels.

    :raises CorruptFileError: for a damaged or foreign file. :raises OSError: if it cannot be read.

    >>> import pathlib, tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "posterior.safetensors"
    ...     BinaryPosterior({"w": torch.zeros(3)}).save(path)
    ...     load_posterior(path)
    BinaryPosterior(3 weights; w: (3,))
    """
    tensors, header = file.read(path)
    kind = BinaryPosterior if BinaryPosterior._entry in header else LowBitPosterior
    return kind._of_file(path, tensors, header)
