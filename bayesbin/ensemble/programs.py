"""The programs of an ensemble: exported once for a shape of inputs, folded, and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from bayesbin.compile.export import export_program
from bayesbin.compile.folding import fold
from bayesbin.compile.sites import drawn_sites
from bayesbin.core.copies import copy_network
from bayesbin.core.networks import inputs_of
from bayesbin.core.turns import in_turn
from bayesbin.ensemble.answers import description
from bayesbin.ensemble.inputs import Signature
from bayesbin.ensemble.members import Draw, Member, Statistics
from bayesbin.nn.batch_statistics import normalisations
from bayesbin.runtime import native_backend, reference
from bayesbin.runtime.joining import join
from bayesbin.runtime.predictor import Predictor
from bayesbin.runtime.program import Constant, Program


@dataclass(frozen=True)
class Compiled:
    """Whether predictions run through a compiled program: true or false.

    :param why: if not, why, in a sentence.
    """

    compiled: bool
    why: str = ""

    def __bool__(self) -> bool:
        return self.compiled

    def __str__(self) -> str:
        return "Predictions run through a compiled program." if self.compiled else self.why


class Programs:
    """The programs of some members, by the shape of inputs, and the predictors that run them."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members
        self._programs: dict[Signature, Program | ValueError] = {}
        self._predictors: dict[tuple[Any, ...], Predictor] = {}

    def predictor(self, signature: Signature) -> Predictor | None:
        """What predictions run through; None for a network that does not compile."""
        try:
            return self.compiled(signature)
        except ValueError:
            return None

    def compiled(
        self,
        signature: Signature,
        precision: str = "exact",
        backend: str = "auto",
        threads: int | None = None,
    ) -> Predictor:
        """A predictor for inputs of a shape.

        :raises ValueError: for a network that does not compile.
        """
        key = (signature, precision, backend, threads)
        if key not in self._predictors:
            self._predictors[key] = Predictor(
                self._program(signature),
                description(self._members),
                threads=threads,
                precision=precision,
                backend=backend,
            )
        return self._predictors[key]

    def state(self, signature: Signature) -> Compiled:
        """Whether the network compiles for inputs of a shape, and if not, why."""
        try:
            self._program(signature)
        except ValueError as error:
            return Compiled(False, str(error))
        return Compiled(True)

    def _program(self, signature: Signature) -> Program:
        if signature not in self._programs:
            try:
                with in_turn():  # torch.export is not made for several threads
                    self._programs[signature] = fold(self._joined(signature))
            except ValueError as error:  # kept: to find it out again would take as long
                self._programs[signature] = error
        found = self._programs[signature]
        if isinstance(found, ValueError):
            raise found
        return found

    def _joined(self, signature: Signature) -> Program:
        return join([raw_program(member, signature, member.draws) for member in self._members])

    # NetworkInputs that were not seen yet

    @property
    def dtype(self) -> torch.dtype:
        """The type of the network's numbers."""
        net = self._members[0].net
        tensors = (*net.parameters(), *net.buffers())
        return next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)

    def guessed(self) -> Signature | None:
        """What the network takes if it has one input and its first layer is linear; None for any other."""
        net = self._members[0].net
        if inputs_of(net)[1] > 1:
            return None
        for module in net.modules():
            if next(module.parameters(recurse=False), None) is None and not any(
                True for _ in module.buffers(recurse=False)
            ):
                continue
            return (((module.in_features,), self.dtype),) if isinstance(module, nn.Linear) else None
        return None


def raw_program(member: Member, signature: Signature, draws: Sequence[Draw]) -> Program:
    """The program of some of a member's draws, its normalisation and affine parts not folded yet.

    :param draws: their numbers, or those of the mode, which are None.
    :raises NotCompiled: (a ValueError) for a network that cannot be written as a program.
    """
    template = _template(member, signature)
    numbers = [draw for draw in draws if draw is not None]
    assert len(numbers) in (0, len(draws)), "the mode is by itself"
    sites, levels = drawn_sites(member.posterior, numbers, member.seed)
    tables = {} if member.statistics is None else _tables(member.statistics, draws)
    own = template.constants.keys()
    constants = {name: each for name, each in levels.items() if name in own}
    constants |= {
        name: Constant(table, np.arange(len(draws)))
        for name, table in tables.items()
        if name in own
    }
    return Program(
        template.inputs,
        {**template.constants, **constants},
        {name: sites[name] for name in template.sites},
        template.steps,
        template.outputs,
        len(draws),
    )


def _tables(statistics: Statistics, draws: Sequence[Draw]) -> dict[str, np.ndarray]:
    """The statistics of some draws, name -> (S, ...)."""
    states = [statistics.values[draw] for draw in draws]
    return {name: np.stack([state[name].numpy() for state in states]) for name in states[0]}


def _template(member: Member, signature: Signature) -> Program:
    """The program of a member's mode with the network's own statistics, exported once for a shape."""
    if signature not in member.templates:
        try:
            member.templates[signature] = _exported(member, signature)
        except ValueError as error:  # kept: to find it out again would take as long
            member.templates[signature] = error
    found = member.templates[signature]
    if isinstance(found, ValueError):
        raise found
    return found


def zeros(signature: Signature) -> tuple[torch.Tensor, ...]:
    """Two rows of inputs of a shape and type."""
    return tuple(torch.zeros((2, *shape), dtype=dtype) for shape, dtype in signature)


def normalisations_for(net: nn.Module, signature: Signature) -> tuple[tuple[str, str], ...]:
    """The buffers of statistics that a network normalises by, found without data."""
    try:
        return normalisations(net, zeros(signature))
    except ValueError:
        raise
    except Exception:  # zeros are no inputs of this network: run it on tensors without numbers
        copied = copy_network(net)
        try:
            with FakeTensorMode(allow_non_fake_inputs=True):
                return normalisations(copied, zeros(signature))
        except ValueError:
            raise
        except Exception as error:
            shapes = ", ".join(f"{shape} of {str(dtype)[6:]}" for shape, dtype in signature)
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"The network does not take inputs of the shape {shapes}: {reason} Let the ensemble see real "
                "inputs first, with predict(x), and call compile() without a shape."
            ) from error


def _exported(member: Member, signature: Signature) -> Program:
    example = zeros(signature)
    names = [name for pair in normalisations_for(member.net, signature) for name in pair]
    # As if each draw had its own, so that nothing is computed of them in advance.
    statistics = {name: member.net.get_buffer(name)[None].numpy() for name in names}
    program = export_program(member.net, example, member.posterior, 0, statistics=statistics)
    shared = {name: replace(each, rows=None) for name, each in program.constants.items()}
    return replace(program, constants=shared)


def runner(program: Program) -> Any:
    """What runs a program: the compiled kernels where they are there, or numpy.

    Called with inputs, draws and ``observe``; the same bits either way.
    """
    if native_backend.available():
        threads = torch.get_num_threads()
        return partial(native_backend.NativeProgram(program).run, threads=threads)
    return partial(reference.run, program)
