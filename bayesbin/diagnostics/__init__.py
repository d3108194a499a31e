"""What a posterior's predictions are worth."""

from bayesbin.diagnostics.scores import evaluate, scores

__all__ = ["evaluate", "scores"]
