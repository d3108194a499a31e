"""The same learner without memory, and with all of it."""

from __future__ import annotations

from typing import Any

from bayesbin.continual.learner import ContinualLearner
from bayesbin.guides.base import SignGuide


def fine_tuning(model: Any, guide: SignGuide, *args: Any, **settings: Any) -> ContinualLearner:
    """No regularisation: each task starts where the last ended, and its likelihood is all there is.

    :param settings: of :class:`ContinualLearner`, but for ``prior_policy``.
    """
    return ContinualLearner(model, guide, *args, prior_policy="none", **settings)


def fixed_prior(model: Any, guide: SignGuide, *args: Any, **settings: Any) -> ContinualLearner:
    """The model's own prior at every task, which regularises and remembers nothing.

    :param settings: of :class:`ContinualLearner`, but for ``prior_policy``.
    """
    return ContinualLearner(model, guide, *args, prior_policy="fixed", **settings)


def joint_training(model: Any, guide: SignGuide, *args: Any, **settings: Any) -> ContinualLearner:
    """Training from the start on all tasks seen so far: the ceiling, at the price of keeping all data.

    :param settings: of :class:`ContinualLearner`, but for ``prior_policy`` and ``joint``.
    """
    return ContinualLearner(model, guide, *args, prior_policy="fixed", joint=True, **settings)
