"""Binarizers: published ways from real latent weights to signs or a few levels."""

from bayesbin.nn.binarizers.base import Binarizer
from bayesbin.nn.binarizers.connect import BinaryConnect, TernaryConnect
from bayesbin.nn.binarizers.recu import (
    LatentReadout,
    ReCU,
    clamped_laplace_entropy,
    latent_histogram,
)
from bayesbin.nn.binarizers.register import binarize_, latents
from bayesbin.nn.binarizers.slb import SLB
from bayesbin.nn.binarizers.soft import SoftSign
from bayesbin.nn.binarizers.straight_through import ApproxSign, Signs, SignSTE

__all__ = [
    "SLB",
    "ApproxSign",
    "Binarizer",
    "BinaryConnect",
    "LatentReadout",
    "ReCU",
    "SignSTE",
    "Signs",
    "SoftSign",
    "TernaryConnect",
    "binarize_",
    "clamped_laplace_entropy",
    "latent_histogram",
    "latents",
]
