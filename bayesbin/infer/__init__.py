"""Inference: the ELBO for models with binary sites, and the training loop."""

from bayesbin.infer.elbo import Terms, TraceBinary_ELBO

__all__ = ["Terms", "TraceBinary_ELBO"]
