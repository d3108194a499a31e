"""A run as one file that predicts."""

from __future__ import annotations

import os
from pathlib import Path

from bayesbin.experiments.record import POSTERIOR, Run
from bayesbin.experiments.train import calibrated, splits_of
from bayesbin.posterior import BinaryPosterior
from bayesbin.predict import pack


def pack_run(
    run: Run,
    path: str | os.PathLike[str],
    *,
    num_samples: int = 32,
    seed: int = 0,
    contents: str = "draws",
    precision: str = "exact",
    data_folder: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a run's draws, or its posterior, to a file for :func:`bayesbin.predict.load`.

    Normalisation statistics of each draw are computed from training data first, as for
    :func:`evaluate_run`. The file says what its pixels were put through, and where it came from: the
    data set, the digests of data and posterior, and the name of the run's folder.

    :param contents: "draws" or "posterior", as for :func:`bayesbin.predict.pack`.
    :returns: the path.
    :raises ValueError: for weights that are not signs, and as :func:`bayesbin.predict.pack`.
    :raises DataError: if the data cannot be read or are not those of the run.
    :raises OSError: if the file cannot be written.
    """
    posterior = run.posterior
    if not isinstance(posterior, BinaryPosterior):
        raise ValueError(
            f"expected a run with signs, got {posterior.kind} weights in {run.folder}; a packed file holds "
            "one bit for each. Predict with bayesbin.predict.predict, which draws in torch."
        )
    splits = splits_of(run, data_folder)
    train = splits.train
    return pack(
        run.net,
        posterior,
        path,
        num_samples,
        seed,
        statistics=calibrated(run, splits, num_samples, seed),
        contents=contents,
        precision=precision,
        input_shape=tuple(train.x.shape[1:]),
        labels=None if train.num_classes is None else [str(y) for y in range(train.num_classes)],
        preprocessing=splits.preprocessing,
        provenance={
            "data set": run.config.dataset,
            "data sha256": run.record["data"]["sha256"],
            "posterior sha256": run.record["files"][POSTERIOR],
            "run": run.folder.resolve().name,
        },
    )
