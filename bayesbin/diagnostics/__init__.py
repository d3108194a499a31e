"""What a posterior's predictions are worth."""

from bayesbin.diagnostics.scores import evaluate, scores
from bayesbin.diagnostics.selection import Selection, select_network

__all__ = ["Selection", "evaluate", "scores", "select_network"]
