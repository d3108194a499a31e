"""Every way from a posterior to a prediction, under one signature.

A backend is made of a network in evaluation mode, a posterior, inputs that show shapes and types, and a
number of draws; what it gives predicts: inputs -> one array (S, B, ...) for each output of the network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from prepared import SEED, copied
from reference import flat, stacked
from torch import Tensor, nn

Inputs = tuple[Tensor, ...]
Predict = Callable[[Inputs], list[np.ndarray]]
Backend = Callable[[nn.Module, Any, Inputs, int], Predict]


def users_network(net: nn.Module, posterior: Any, inputs: Inputs, num_draws: int) -> Predict:
    """The user's own network in torch, in its own type, one draw after another."""
    networks = [posterior.sample_network(net, draw, SEED) for draw in range(num_draws)]

    @torch.no_grad()
    def predict(inputs: Inputs) -> list[np.ndarray]:
        return stacked([flat(each(*copied(inputs))) for each in networks])

    return predict


BACKENDS: dict[str, Backend] = {"network": users_network}
