"""What an export is made of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from bayesbin.runtime import files
from bayesbin.runtime.model import Model


def model_of(predictor: Any, draws: Sequence[int] | None = None) -> Model:
    """The model of a predictor or of a ``.bbn`` file, with some of the draws or all of them.

    :raises ValueError: for draws that there are not, and a file that is damaged. :raises OSError: for a file
        that cannot be read.
    """
    if isinstance(predictor, str | os.PathLike):
        model = files.read(predictor).model
    else:
        model = predictor.model
    return model if draws is None else model.select([int(draw) for draw in draws])
