"""Binary layers, conversion of networks, residual blocks, normalisation per weight state, likelihoods."""

from bayesbin.nn.activations import Sign
from bayesbin.nn.architectures import conv_net, mlp
from bayesbin.nn.architectures_colour import resnet20, vgg_small
from bayesbin.nn.binarizers import binarize_, latents
from bayesbin.nn.convert import conversion, to_binary_
from bayesbin.nn.effective import BinarySite, binary_sites
from bayesbin.nn.layers import BinaryConv1d, BinaryConv2d, BinaryLinear, Scale
from bayesbin.nn.likelihoods import (
    Classifier,
    Likelihood,
    MultiLabel,
    NegativeBinomial,
    Ordinal,
    Poisson,
    Regressor,
)
from bayesbin.nn.residual import Residual
from bayesbin.nn.state_norm import StateBatchNorm, to_state_batch_norm_

__all__ = [
    "BinaryConv1d",
    "BinaryConv2d",
    "BinaryLinear",
    "BinarySite",
    "Classifier",
    "Likelihood",
    "MultiLabel",
    "NegativeBinomial",
    "Ordinal",
    "Poisson",
    "Regressor",
    "Residual",
    "Scale",
    "Sign",
    "StateBatchNorm",
    "binarize_",
    "binary_sites",
    "conv_net",
    "conversion",
    "latents",
    "mlp",
    "resnet20",
    "to_binary_",
    "to_state_batch_norm_",
    "vgg_small",
]
