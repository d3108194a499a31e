"""Binary networks with scikit-learn's interface: a classifier, a regressor, and the code of their inputs."""

from bayesbin.sklearn.encoding import PiecewiseLinearEncoder
from bayesbin.sklearn.networks import BinaryNetworkClassifier, BinaryNetworkRegressor

__all__ = ["BinaryNetworkClassifier", "BinaryNetworkRegressor", "PiecewiseLinearEncoder"]
