"""Binary layers, conversion of torch networks, normalisation per weight state, and likelihoods."""

from bayesbin.nn.activations import Sign
from bayesbin.nn.architectures import conv_net, mlp
from bayesbin.nn.convert import to_binary_
from bayesbin.nn.layers import (
    BinaryConv1d,
    BinaryConv2d,
    BinaryLinear,
    BinarySite,
    Scale,
    binary_sites,
)
from bayesbin.nn.likelihoods import Classifier, Regressor
from bayesbin.nn.state_norm import StateBatchNorm, Statistics, recalibrate, to_state_batch_norm_

__all__ = [
    "BinaryConv1d",
    "BinaryConv2d",
    "BinaryLinear",
    "BinarySite",
    "Classifier",
    "Regressor",
    "Scale",
    "Sign",
    "StateBatchNorm",
    "Statistics",
    "binary_sites",
    "conv_net",
    "mlp",
    "recalibrate",
    "to_binary_",
    "to_state_batch_norm_",
]
