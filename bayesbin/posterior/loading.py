"""Reading a posterior of either kind."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bayesbin.posterior import file
from bayesbin.posterior.base import real_sites
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
    return _kind(header)._of_file(path, tensors, header)


def posterior_of_contents(
    tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> BinaryPosterior | LowBitPosterior:
    """The posterior that tensors and a header, as its :meth:`~Posterior.contents` gives them, are of."""
    return _kind(header)._from_contents(tensors, header, real_sites(tensors, header["real"]))


def _kind(header: Mapping[str, Any]) -> type[BinaryPosterior] | type[LowBitPosterior]:
    return BinaryPosterior if BinaryPosterior._entry in header else LowBitPosterior
