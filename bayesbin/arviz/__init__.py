"""Posterior draws, and the model at them, as ArviZ takes them."""

from bayesbin.arviz.conversion import to_inference_data

__all__ = ["to_inference_data"]
