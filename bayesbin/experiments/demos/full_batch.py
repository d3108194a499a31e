"""How both demonstrations train: all data in one batch, from a seed, on one thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bayesbin import data
from bayesbin.core.turns import in_turn
from bayesbin.nn import Classifier, Regressor
from bayesbin.recipes import Recipe, recipe

# Test data come from the distribution of the training data, with a seed that no training run uses.
TEST_SEED = 1_000_003
NUM_TEST = 2000


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Initial states in float32 from ``seed``, and one thread; the caller's settings come back after.

    Layers this small gain nothing from a second thread, and on a busy machine wait for it at each step.
    """
    with in_turn(), torch.random.fork_rng(devices=[]):
        threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.set_default_dtype(dtype)


def train_full_batch(
    name: str,
    model: Classifier | Regressor,
    dataset: data.Dataset,
    *,
    epochs: int,
    seed: int,
    progress: bool | None,
    **settings: Any,
) -> Recipe:
    """Train a recipe with all data in one batch, and return it.

    :param name: of the recipe. :param settings: those that are not its defaults.
    """
    method = recipe(name, model, epochs=epochs, **settings)
    batches = data.Batches(dataset, batch_size=len(dataset), shuffle=False)
    method.fit(batches, seed=seed, progress=progress)
    return method
