"""Update rules for natural parameters, as torch optimizers."""

from bayesbin.optim.bayesian_learning_rule import BayesianLearningRule

__all__ = ["BayesianLearningRule"]
