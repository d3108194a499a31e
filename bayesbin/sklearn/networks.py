"""Binary networks with scikit-learn's interface: a classifier and a regressor."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor, nn

from bayesbin.core.checks import whole_number, whole_numbers
from bayesbin.data import Batches
from bayesbin.ensemble import Ensemble
from bayesbin.estimators import Estimator
from bayesbin.infer.noise import seeded_float32
from bayesbin.nn import Classifier, Regressor, mlp, to_binary_
from bayesbin.posterior import Posterior, RealPosterior
from bayesbin.recipes import recipe as make_recipe
from bayesbin.runtime.predictor import Predictor
from bayesbin.runtime.preprocessing import bins_program, standardising_program
from bayesbin.runtime.program import Program
from bayesbin.sklearn.encoding import PiecewiseLinearEncoder

__all__ = ["BinaryNetworkClassifier", "BinaryNetworkRegressor"]

_BATCH_SIZE = 200


class _BinaryNetwork(BaseEstimator):
    """The settings that both have, and the fit of a multilayer perceptron with binary weights."""

    n_features_in_: int
    ensemble_: Ensemble
    posterior_: Posterior[Any]
    transformer_: Pipeline
    settings_: dict[str, Any]
    seed_: int
    _default_hidden: tuple[int, ...] = (128,)

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] | None = None,
        *,
        num_bins: int = 16,
        activation: str = "relu",
        recipe: str = "bayesbin",
        estimator: str | Estimator | None = None,
        lr: float | None = None,
        real_lr: float | None = None,
        kl_weight: float | None = None,
        init_scale: float | None = None,
        settings: Mapping[str, Any] | None = None,
        epochs: int = 100,
        batch_size: int | None = None,
        num_samples: int = 32,
        random_state: Any = None,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.num_bins = num_bins
        self.activation = activation
        self.recipe = recipe
        self.estimator = estimator
        self.lr = lr
        self.real_lr = real_lr
        self.kl_weight = kl_weight
        self.init_scale = init_scale
        self.settings = settings
        self.epochs = epochs
        self.batch_size = batch_size
        self.num_samples = num_samples
        self.random_state = random_state

    def _fit(
        self,
        X: np.ndarray,
        targets: Tensor,
        weight: np.ndarray | None,
        likelihood: Callable[..., Any],
        num_outputs: int,
    ) -> tuple[Any, Posterior[Any]]:
        """Train a network; the model around it, and its posterior."""
        num_bins = whole_number("num_bins", self.num_bins)
        whole_number("num_samples", self.num_samples)
        given = self.hidden_layer_sizes
        hidden = self._default_hidden if given is None else given
        none = isinstance(hidden, (list, tuple)) and not hidden
        widths = () if none else whole_numbers("hidden_layer_sizes", hidden)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        encoders = [PiecewiseLinearEncoder(num_bins)] if num_bins else []
        weighted = {} if weight is None else {"standardscaler__sample_weight": weight}
        self.transformer_ = make_pipeline(*encoders, StandardScaler()).fit(X, **weighted)
        x, size = self._transformed(X).float(), len(X)
        wanted = _BATCH_SIZE if self.batch_size is None else self.batch_size
        batch_size = min(whole_number("batch_size", wanted, at_least=1), size)
        with seeded_float32(seed):
            layers = mlp(
                x.shape[1], widths, num_outputs, activation=self.activation, normalize=False
            )
            net = to_binary_(layers)
            model = likelihood(net, dataset_size=size)
            method = make_recipe(self.recipe, model, epochs=self.epochs, **self._overrides())
            batches: Any = Batches((x, targets), batch_size)
            if weight is not None:
                batches = _WeightedBatches(x, targets, torch.from_numpy(weight), batch_size)
            result = method.fit(batches, seed=seed, progress=False)
        self.settings_ = method.settings
        self.history_ = result.history
        self.seed_ = seed
        return model, method.guide.posterior()

    def _keep(self, model: Any, posterior: Posterior[Any]) -> None:
        """Keep the drawn networks, or that of the mode, which are what predicts."""
        count = whole_number("num_samples", self.num_samples)  # 0 for the mode
        ensemble = Ensemble(model, posterior, max(count, 1), self.seed_)
        self.ensemble_ = ensemble if count else ensemble.mode
        self.posterior_ = posterior

    def _overrides(self) -> dict[str, Any]:
        """The recipe's settings that were given here: those of ``settings``, and those with a name."""
        names = ("estimator", "lr", "real_lr", "kl_weight", "init_scale")
        named = {name: value for name in names if (value := getattr(self, name)) is not None}
        further = {} if self.settings is None else dict(self.settings)
        if twice := [name for name in further if name in named]:
            raise ValueError(f"{', '.join(twice)} is given twice; leave it out of settings.")
        if isinstance(self.estimator, Estimator):  # some learn parameters of their own
            named["estimator"] = copy.deepcopy(self.estimator)
        return further | named

    def _transformed(self, X: np.ndarray) -> Tensor:
        return torch.from_numpy(self.transformer_.transform(X))

    def compile(self, **options: Any) -> Predictor:
        """A predictor of rows as :meth:`predict` takes them, which needs numpy alone; its ``save`` ships it.

        Bins, standardisation and the names of classes are part of it.

        :param options: of :meth:`bayesbin.Ensemble.compile`.
        """
        check_is_fitted(self)
        width = self.transformer_.transform(np.zeros((1, self.n_features_in_))).shape[1]
        predictor = self.ensemble_.compile(**{"input_shape": (width,), **options})
        return predictor.annotated(preprocessing=self._preprocessing(), labels=self._labels())

    def _preprocessing(self) -> Program:
        """What ``transformer_`` computes, as a program."""
        *encoders, scaler = (step for _, step in self.transformer_.steps)
        if encoders:
            return bins_program(encoders[0].edges_, scaler.mean_, scaler.scale_)
        return standardising_program(scaler.mean_, scaler.scale_)

    def _labels(self) -> list[str] | None:
        """The names of the classes; None of a regressor."""
        return None

    def _predicted(self, X: Any) -> Any:
        """The prediction of the drawn networks, in numpy; that of a row is the same in any batch."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return self.ensemble_.predict(self._transformed(X).float().numpy())


class _WeightedBatches:
    """Minibatches (x, y, weight), in the order that :class:`Batches` gives (x, y)."""

    def __init__(self, x: Tensor, y: Tensor, weight: Tensor, batch_size: int) -> None:
        self.y, self.weight = y, weight.to(x.dtype)
        self._rows = Batches((x, torch.arange(len(x))), batch_size)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for x, rows in self._rows:
            yield x, self.y[rows], self.weight[rows]


def _counting(
    X: np.ndarray, y: np.ndarray, sample_weight: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The data whose weight is above 0, and their weights; None: all weigh the same.

    :raises ValueError: for weights of another shape, negative ones, or none above 0.
    """
    if sample_weight is None:
        return X, y, None
    weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
    kept = weight > 0
    if not kept.any():
        raise ValueError("expected sample_weight to have a number above 0; got none.")
    weight = weight[kept]
    return X[kept], y[kept], None if (weight == 1.0).all() else weight


class BinaryNetworkClassifier(ClassifierMixin, _BinaryNetwork):
    """A Bayesian multilayer perceptron with binary weights, as a scikit-learn classifier.

    The inputs are the features in bins, see :class:`PiecewiseLinearEncoder`, standardised. The posterior is
    mean-field, and predictions are averaged over its draws: ``predict_proba`` is
    mean_s softmax(net_s(x)). Biases and the output scale are real numbers, fitted.

    :param hidden_layer_sizes: widths of the hidden layers. None: (128,), and (128, 128) for a regressor.
    :param num_bins: of a feature at most. 0: the features themselves, for many that are alike, such as
        pixels, and for classes that planes divide: a first layer of signs weighs all its inputs alike, and
        few other functions are such sums.
    :param activation: "relu", "tanh" or "sign".
    :param recipe: the method of training, one of ``bayesbin.recipes.names()``.
    :param estimator: of the gradient, an :class:`Estimator` or its name; for the recipe "bayesbin".
    :param lr: of the natural parameters: the typical change of lambda in one step. :param real_lr: of
        everything else, by Adam. Both fall to 0 by a cosine.
    :param kl_weight: beta in loss = E_q[-log p(y|x,w)] + beta KL(q||p); 1 is the ELBO. Smaller ones fit
        closer, and are too sure where there is much noise.
    :param init_scale: standard deviation of the initial natural parameters.
    :param settings: further settings of the recipe by name, see ``bayesbin.recipes.settings_of``. None, for
        this and for the five settings before it, takes the recipe's own.
    :param epochs: passes over the data. :param batch_size: None: 200, or all data if they are fewer.
    :param num_samples: draws that a prediction averages; 0 predicts with the mode, which is poor where
        the posterior is wide.
    :param class_weight: weights of classes by label, or "balanced" for n / (classes * data of the class).
    :param random_state: a number or RandomState makes fits repeatable and leaves other generators
        alone; None draws a seed from numpy's global generator, as scikit-learn does.
    :ivar classes_: labels, of any kind. :ivar ensemble_: the drawn networks, a ``bayesbin.Ensemble``,
        whose inputs are what ``transformer_`` makes of X. :ivar posterior_: of their weights.
    :ivar seed_: of training and of the draws. :ivar history_: a row per epoch.
    :ivar settings_: all settings of the recipe that was trained.
    :raises ValueError: at ``fit``, for settings out of range and whatever scikit-learn refuses in data.

    A sample weight is a power of the likelihood: a datum of weight 2 counts as two copies of it, one of
    weight 0 is left out. ``class_weight`` multiplies the weights of the data of a class.

    Example::

        >>> from bayesbin.sklearn import BinaryNetworkClassifier
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> classifier = BinaryNetworkClassifier(random_state=0).fit(X, y)
        >>> bool(classifier.score(X, y) > 0.9), classifier.predict_proba(X).shape
        (True, (150, 3))

    Source: Khan and Rue 2023, arXiv 2107.04562 (the learning rule); scikit-learn's developer's guide.
    """

    classes_: np.ndarray

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] | None = None,
        *,
        num_bins: int = 16,
        activation: str = "relu",
        recipe: str = "bayesbin",
        estimator: str | Estimator | None = None,
        lr: float | None = None,
        real_lr: float | None = None,
        kl_weight: float | None = None,
        init_scale: float | None = None,
        settings: Mapping[str, Any] | None = None,
        epochs: int = 100,
        batch_size: int | None = None,
        num_samples: int = 32,
        class_weight: Any = None,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            hidden_layer_sizes,
            num_bins=num_bins,
            activation=activation,
            recipe=recipe,
            estimator=estimator,
            lr=lr,
            real_lr=real_lr,
            kl_weight=kl_weight,
            init_scale=init_scale,
            settings=settings,
            epochs=epochs,
            batch_size=batch_size,
            num_samples=num_samples,
            random_state=random_state,
        )
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> BinaryNetworkClassifier:
        """Fit the posterior to inputs (n, features) and labels (n,); starts anew at each call.

        :param sample_weight: of each datum, (n,), at least 0; None: 1.
        """
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        X, y, weight = _counting(X, y, sample_weight)
        if self.class_weight is not None:
            by_class = compute_sample_weight(self.class_weight, y)
            weight = by_class if weight is None else weight * by_class
        self.classes_, labels = np.unique(y, return_inverse=True)
        targets = torch.from_numpy(labels.astype(np.int64))
        self._keep(*self._fit(X, targets, weight, Classifier, len(self.classes_)))
        return self

    def _labels(self) -> list[str]:
        return [str(label) for label in self.classes_]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes, averaged over draws, (n, classes)."""
        return self._predicted(X).probs

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest labels, (n,)."""
        probs = self.predict_proba(X)
        return self.classes_[probs.argmax(axis=1)]


class BinaryNetworkRegressor(RegressorMixin, _BinaryNetwork):
    """A Bayesian multilayer perceptron with binary weights, as a scikit-learn regressor.

    y ~ Normal(net(x), noise), the noise unknown: its posterior is fitted with that of the weights.
    Inputs and targets are standardised inside; predictions are in the units of y. Settings, attributes
    and errors as :class:`BinaryNetworkClassifier`.

    Example::

        >>> from bayesbin.sklearn import BinaryNetworkRegressor
        >>> from sklearn.datasets import load_diabetes
        >>> X, y = load_diabetes(return_X_y=True)
        >>> mean, std = BinaryNetworkRegressor(random_state=0).fit(X, y).predict(X, return_std=True)
        >>> mean.shape, bool((std > 0).all())
        ((442,), True)

    Source: as :class:`BinaryNetworkClassifier`.
    """

    y_mean_: Any
    y_scale_: Any
    _default_hidden = (128, 128)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> BinaryNetworkRegressor:
        """Fit the posterior to inputs (n, features) and targets; starts anew at each call.

        :param y: (n,), or (n, T) for T targets, each with a noise of its own.
        :param sample_weight: of each datum, (n,), at least 0; None: 1.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, multi_output=True)
        y = np.asarray(y, dtype=np.float64)
        y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
        X, y, weight = _counting(X, y, sample_weight)
        mean = np.average(y, axis=0, weights=weight)
        scale = np.sqrt(np.average((y - mean) ** 2, axis=0, weights=weight))
        scale = np.where(scale > 0, scale, 1.0)  # all targets the same: any scale will do
        self.y_mean_, self.y_scale_ = (float(mean), float(scale)) if y.ndim == 1 else (mean, scale)
        targets = torch.from_numpy((y - mean) / scale).float()
        several = () if y.ndim == 1 else y.shape[1:]
        noise = dist.LogNormal(torch.full(several, -1.0), torch.ones(several))
        likelihood = partial(Regressor, noise=noise if several else None)
        model, posterior = self._fit(X, targets, weight, likelihood, math.prod(several))
        model.net = _InUnits(model.net, mean, scale)
        self._keep(model, _with_noise_in_units(posterior, scale))
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """The predictive mean, (n,) or (n, T), and with ``return_std`` its standard deviation.

        The standard deviation has both parts, noise and disagreement of the draws.
        """
        found = self._predicted(X)
        return (found.mean, found.std) if return_std else found.mean


class _InUnits(nn.Sequential):
    """The layers of a network and then the units of its targets: mean + scale x, in float64."""

    mean: Tensor
    scale: Tensor

    def __init__(self, layers: nn.Sequential, mean: Any, scale: Any) -> None:
        super().__init__(*layers)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64))

    def forward(self, input: Tensor) -> Tensor:
        return self.mean + self.scale * super().forward(input).double()


def _with_noise_in_units(posterior: Posterior[Any], scale: Any) -> Posterior[Any]:
    """The posterior of noise standard deviations that are ``scale`` times as large, draw by draw."""
    noise = posterior.real["noise"]
    assert noise.support.kind == "positive"  # the logarithm is Normal
    changed = copy.copy(posterior)
    shift = torch.tensor(np.log(scale), dtype=noise.loc.dtype)
    moved = RealPosterior(noise.loc + shift, noise.scale, noise.support)
    changed.real = {**posterior.real, "noise": moved}
    return changed
