"""A folded network with its packed posterior, from which programs for the kernels are made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bayesbin.core.canonical import key_of
from bayesbin.distributions import SignBernoulli
from bayesbin.posterior import BinaryPosterior
from bayesbin.predict.folding import Folded, Operation
from bayesbin.predict.kernel_program import Program
from bayesbin.predict.packing import pack
from bayesbin.predict.program import Activation, Add, Pool, Push, Swap, Weighted


@dataclass(frozen=True)
class PackedLayer:
    """What the signs of a site are drawn by.

    :param mode: packed, (N, words). :param thresholds: uint16 (N, K). :param keys: uint64 (draws,).
    """

    mode: np.ndarray
    thresholds: np.ndarray
    keys: np.ndarray


class PackedNetwork:
    """The operations of a network, and for each site how its signs are drawn.

    :param draws: indices of draws; [None] is the mode.
    :param fast: whether linear layers of real inputs that feed no sign are summed in 16 bits.
    :raises ValueError: for a site that the posterior does not have, or of another shape.
    """

    def __init__(
        self,
        operations: Sequence[Operation],
        posterior: BinaryPosterior,
        draws: Sequence[int | None],
        seed: int,
        fast: bool,
    ) -> None:
        self.operations = list(operations)
        self.kinds = _kinds(self.operations, fast)
        self.draws = list(draws)
        self._posterior, self._seed = posterior, seed
        self.layers: dict[str, PackedLayer] = {}
        for step in self.operations:
            if isinstance(step, Weighted):
                _check_site(step, posterior)
                if step.site not in posterior.effects and None not in self.draws:
                    self.layers[step.site] = self._layer(step)

    def _layer(self, step: Weighted) -> PackedLayer:
        thresholds = self._posterior.thresholds(step.site, 0, seed=self._seed)
        keys = [key_of(self._seed, index, step.site) for index in self.draws if index is not None]
        units, inputs = step.shape[0], math.prod(step.shape[1:])
        return PackedLayer(
            pack(thresholds.mode),
            np.ascontiguousarray(thresholds.flip.reshape(units, inputs)),
            np.array(keys, dtype=np.uint64),
        )

    def program(self, image: tuple[int, int, int], first: int, last: int) -> Program:
        """The program of draws ``first`` to ``last`` for inputs of shape ``image``."""
        program = Program(image, last - first)
        for place in range(len(self.operations)):
            self.add(program, place, first, last)
        return program

    def shapes(self, image: tuple[int, int, int]) -> list[tuple[int, int, int]]:
        """The shape that goes into each operation, and the one that comes out of the last."""
        program = Program(image, 1)
        found = [program.shape]
        for place in range(len(self.operations)):
            self.add(program, place, 0, 1)
            found.append(program.shape)
        return found

    def add(self, program: Program, place: int, first: int, last: int) -> None:
        """Add one operation to a program of draws ``first`` to ``last``."""
        step, kind = self.operations[place], self.kinds[place]
        if isinstance(step, Weighted):
            self._add_weights(program, step, kind, first, last)
        elif isinstance(step, Folded):
            program.affine(_of(step.slope, first, last), _of(step.shift, first, last))
        elif isinstance(step, Activation):
            program.activation(step.kind, step.low, step.high)
        elif isinstance(step, Pool):
            program.pool(step.kind, step.size, step.stride, step.padding)
        elif isinstance(step, Push):
            program.push()
        elif isinstance(step, Swap):
            program.swap()
        elif isinstance(step, Add):
            program.add()
        else:
            program.flatten()

    def _add_weights(
        self, program: Program, step: Weighted, kind: str, first: int, last: int
    ) -> None:
        where = (step.shape, step.stride or (1, 1), step.padding or (0, 0), kind)
        layer = self.layers.get(step.site)
        if layer is not None:
            program.drawn(layer.mode, layer.thresholds, layer.keys[first:last], *where)
        else:  # the mode, or effects, which give every draw thresholds of its own
            bits = [self._bits(step.site, index) for index in self.draws[first:last]]
            program.given(np.stack(bits), *where)

    def _bits(self, site: str, index: int | None) -> np.ndarray:
        if index is None:
            return pack((self._posterior.signs()[site] > 0).cpu().numpy())
        thresholds = self._posterior.thresholds(site, index, seed=self._seed)
        return pack(thresholds.draw(key_of(self._seed, index, site)))


def _kinds(operations: Sequence[Operation], fast: bool) -> list[str]:
    """How the sums of each weighted step are computed; "" for the others."""
    kinds = ["" for _ in operations]
    signs = False  # whether the values are all -1 and +1 at this place
    stack: list[bool] = []  # and those that were put aside
    for place, step in enumerate(operations):
        if isinstance(step, Weighted):
            # Convolutions have no 16-bit kernel: they are exact in either precision.
            image = step.stride is not None
            exact = not fast or image or _may_feed_a_sign(operations[place + 1 :])
            kinds[place] = "sign" if signs else "real" if exact else "fast"
            signs = False
        elif isinstance(step, Activation):
            signs = step.kind == "sign"
        elif isinstance(step, Folded) or (isinstance(step, Pool) and step.kind == "avg"):
            signs = False
        elif isinstance(step, Push):
            stack.append(signs)
        elif isinstance(step, Swap):
            signs, stack[-1] = stack[-1], signs
        elif isinstance(step, Add):
            stack.pop()
            signs = False
    return kinds


def _may_feed_a_sign(rest: Sequence[Operation]) -> bool:
    """Whether the next activation is a sign: a sum rounded across 0 would be another answer.

    Values put aside may come to a sign on another way than those that go on: they count as if they did.
    """
    for step in rest:
        if isinstance(step, (Push, Swap)):
            return True
        if isinstance(step, Activation):
            return step.kind == "sign"
        if isinstance(step, Weighted):
            return False
    return False


def _check_site(step: Weighted, posterior: BinaryPosterior) -> None:
    if step.site not in posterior:
        raise ValueError(
            f"The posterior has no site {step.site!r} (it has {', '.join(posterior)}). A posterior is "
            "used with the network it was trained on."
        )
    if not isinstance(distribution := posterior[step.site], SignBernoulli):
        raise ValueError(
            f"Packed networks hold signs, one bit each; {step.site!r} has the levels "
            f"{distribution.levels}. Predict with bayesbin.predict.predict, which draws in torch."
        )
    shape = tuple(distribution.natural.shape)
    if shape != step.shape:
        raise ValueError(
            f"The network's weight {step.site!r} has shape {step.shape}, the posterior's {shape}. A "
            "posterior is used with the network it was trained on."
        )


def _of(values: np.ndarray, first: int, last: int) -> np.ndarray:
    return values if len(values) == 1 else values[first:last]
