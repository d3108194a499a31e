"""Programs on a GPU: signs are drawn there, and linear maps of signs are Triton's kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from bayesbin.compile import triton_signs
from bayesbin.compile.torch_backend import TorchProgram, Values
from bayesbin.compile.torch_kinds import TYPES
from bayesbin.compile.torch_products import aligned
from bayesbin.compile.triton_signs import SignDraws, thresholds_on, words_on
from bayesbin.core.checks import one_of
from bayesbin.runtime.model import PRECISIONS
from bayesbin.runtime.program import DrawnSite, Program, Site, Step


class TritonProgram(TorchProgram):
    """A program as :class:`~bayesbin.compile.torch_backend.TorchProgram`, with the same draws.

    Signs never leave the device, on which they are drawn. Linear maps with binary weights are
    :func:`bayesbin.compile.triton_signs.linear`, or ``linear_sign`` where the inputs are signs too; those
    that compute real inputs in float64, and convolutions, are torch's with one draw's signs as numbers. All
    other steps are the torch backend's. Nothing is differentiated.

    :param precision: "exact", or "fast": real inputs of linear maps under signs are rounded to 16 bits.
    """

    def __init__(self, program: Program, precision: str = "exact") -> None:
        super().__init__(program)
        self.fast = one_of("precision", precision, PRECISIONS) == "fast"
        cpu = torch.device("cpu")
        self._sites = {name: f"site_{place}" for place, name in enumerate(program.sites)}
        for name, prefix in self._sites.items():
            for part, tensor in _parts(program.sites[name], cpu).items():
                self.register_buffer(f"{prefix}_{part}", tensor, persistent=False)

    def run(self, inputs: Sequence[Tensor], draws: Sequence[int]) -> list[Tensor]:
        with torch.no_grad(), _current(inputs[0].device if inputs else torch.device("cpu")):
            return super().run(inputs, draws)

    def _outputs(
        self, step: Step, values: Values, draws: np.ndarray, device: torch.device
    ) -> tuple[Tensor, ...]:
        known = self.program.values
        if step.kind == "linear" and step.inputs[1] in self.program.sites:
            signs = known[step.inputs[0]].signs
            if signs or step.dtype == "f4":
                return (self._linear(step, values, draws, device, signs),)
        return super()._outputs(step, values, draws, device)

    def _linear(
        self, step: Step, values: Values, draws: np.ndarray, device: torch.device, signs: bool
    ) -> Tensor:
        """A linear map with the signs of a site; ``signs`` says whether its inputs are signs."""
        x = self._read(step.inputs[0], values, draws, device).float()
        weights = self._draws_of(step.inputs[1], draws)
        rows = x.flatten(1, -2)
        if signs:
            words = triton_signs.draw_words(weights) if weights.keys is not None else weights.words
            packed = triton_signs.pack_signs(rows)
            found = triton_signs.linear_sign(packed, words, weights.inputs)
        else:
            found = triton_signs.linear(rows, weights, fast=self.fast)
        out = TYPES[step.dtype]
        found = found.to(out).reshape(len(found), *x.shape[1:-1], found.shape[-1])
        if len(step.inputs) < 3 or not step.inputs[2]:
            return found
        return found + aligned(found, self._read(step.inputs[2], values, draws, device).to(out))[1]

    def _signs_of(self, name: str, draws: np.ndarray, device: torch.device) -> Tensor:
        """The signs of a site as numbers, float32 (D or 1, 1, ...)."""
        found = self._draws_of(name, draws)
        each = [triton_signs.dense(found.draws(d, d + 1)) for d in range(found.num_draws)]
        return torch.stack(each).reshape(-1, 1, *self.program.sites[name].shape)

    def _draws_of(self, name: str, draws: np.ndarray) -> SignDraws:
        """The signs of a site in some draws, or in all where they share them."""
        site, prefix = self.program.sites[name], self._sites[name]
        inputs = int(np.prod(site.shape[1:]))
        words = self.get_buffer(f"{prefix}_words")
        if not isinstance(site, DrawnSite):
            rows = None if site.rows is None else torch.from_numpy(site.rows[draws])
            return SignDraws(inputs, words[:1] if rows is None else words[rows.to(words.device)])
        thresholds, keys = (self.get_buffer(f"{prefix}_{p}") for p in ("thresholds", "keys"))
        keys = keys[torch.from_numpy(draws).to(keys.device)]
        of_rows = np.zeros(len(draws), np.int64) if site.rows is None else site.rows[draws]
        if (of_rows == of_rows[0]).all():
            row = int(of_rows[0])
            return SignDraws(inputs, words[row : row + 1], thresholds[row], keys)
        # The kernels draw from one distribution at a time.
        each = [
            SignDraws(inputs, words[row : row + 1], thresholds[row], keys[d : d + 1])
            for d, row in enumerate(of_rows.tolist())
        ]
        return SignDraws(inputs, torch.cat([triton_signs.draw_words(one) for one in each]))


def _parts(site: Site, device: torch.device) -> dict[str, Tensor]:
    """What a device holds of a site."""
    if not isinstance(site, DrawnSite):
        return {"words": words_on(site.bits, device)}
    keys = torch.tensor(site.keys.view(np.int64), device=device)
    return {
        "words": words_on(site.mode, device),
        "thresholds": thresholds_on(site.flip, device),
        "keys": keys,
    }


@contextlib.contextmanager
def _current(device: torch.device) -> Iterator[None]:
    """Makes a GPU the current one, on which Triton launches."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        yield
