"""How both demonstrations train: all data in one batch, from a seed, on one thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from bayesbin import data
from bayesbin.estimators import Estimator
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import fit
from bayesbin.nn import Classifier, Regressor
from bayesbin.optim import BayesianLearningRule
from bayesbin.posterior import BinaryPosterior

# Test data come from the distribution of the training data, with a seed that no training run uses.
TEST_SEED = 1_000_003
NUM_TEST = 2000


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Initial states in float32 from ``seed``, and one thread; the caller's settings come back after.

    Layers this small gain nothing from a second thread, and on a busy machine wait for it at each step.
    """
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.set_default_dtype(dtype)


def train_full_batch(
    model: Classifier | Regressor,
    dataset: data.Dataset,
    estimator: Estimator,
    *,
    epochs: int,
    seed: int,
    progress: bool | None,
    lr: float,
    kl_weight: float,
    init_scale: float,
    bound: float | str | None = "auto",
) -> BinaryPosterior:
    """Full-batch training: natural gradients for the signs, Adam for everything real, cosine decay.

    :param lr: of the rule, times the data-set size.
    """
    size = len(dataset)
    guide = AutoSignBernoulli(model, init_scale=init_scale)
    real = [*model.parameters(), *guide.real_parameters()]
    optimizers = [
        BayesianLearningRule(guide.natural_parameters(), lr=lr / size, momentum=0.9, bound=bound),
        Adam(real, lr=1e-2),
    ]
    fit(
        model,
        guide,
        data.Batches(dataset, batch_size=size, shuffle=False),
        estimator=estimator,
        epochs=epochs,
        kl_weight=kl_weight,
        optimizers=optimizers,
        schedulers=[CosineAnnealingLR(optimizer, epochs) for optimizer in optimizers],
        seed=seed,
        progress=progress,
    )
    return guide.posterior()
