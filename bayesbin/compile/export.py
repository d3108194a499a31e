"""From a torch network to a program, by ``torch.export``: followed as it runs, or refused by name."""

from __future__ import annotations

import operator
import types
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from bayesbin.compile import (  # noqa: F401  (each puts its operators into the table)
    operators_elementwise,
    operators_lookup,
    operators_norm,
    operators_products,
    operators_recurrent,
    operators_shape,
    operators_windows,
)
from bayesbin.compile.layout import BATCH, Layout, Size
from bayesbin.compile.operators import symbolic, translate
from bayesbin.compile.refusal import NotCompiled
from bayesbin.compile.sites import check_posterior, drawn_sites, drawn_statistics
from bayesbin.compile.tracing import traced
from bayesbin.compile.translation import DTYPES, Fixed, Refused, Traced, Translation
from bayesbin.core.checks import whole_number
from bayesbin.core.copies import copy_network
from bayesbin.nn import binary_sites
from bayesbin.nn.state_norm import StateBatchNorm
from bayesbin.runtime.program import Program, Value

# Operators that check what they are given and make nothing.
_CHECKS = ("_assert", "sym_constrain", "_guards_fn")


def export_program(
    net: nn.Module,
    example_inputs: Sequence[Any],
    posterior: Any,
    num_samples: int,
    seed: int = 0,
    *,
    statistics: Any = None,
    draws: Sequence[int] | None = None,
) -> Program:
    """The program of a network whose binary weights are draws of a posterior.

    The network is run once by torch, on tensors without numbers, and what it did is written down: forward
    hooks, subclasses and weights that are computed from others are followed as they are. Normalisation is
    left as such, with its statistics as constants under their names in the network's state.

    :param example_inputs: one batch of inputs, the batch their first axis; of them, shapes and types count.
    :param posterior: over the network's binary weights, or None if it has none.
    :param num_samples: the program's draws are 0 .. num_samples - 1 of ``seed``; 0 for the mode alone.
    :param statistics: of normalisation in each draw: name of a buffer -> numbers (S, ...).
    :raises ValueError: for a posterior that is not of this network.
    :raises NotCompiled: for what has no step, mixes the rows of a batch, or cannot be exported.
    """
    check_posterior(net, posterior)
    if draws is None:
        draws = range(whole_number("num_samples", num_samples))
    draws = list(draws)
    worker = _prepared(net)
    inputs = tuple(_as_tensor(each) for each in example_inputs)
    trace = traced(worker, inputs)
    sites, levels = drawn_sites(posterior, draws, seed)
    states = drawn_statistics(statistics, draws)
    t = Translation({}, sites, levels | states, max(len(draws), 1), trace.rows)
    walk = _Walk(t, trace.exported, _aliases(worker, [*sites, *levels, *states]))
    return walk.program()


def _prepared(net: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose normalisation layers do not look at the values they are given."""
    worker = copy_network(net).cpu().eval()
    for module in worker.modules():
        if isinstance(module, StateBatchNorm) and type(module).forward is StateBatchNorm.forward:
            module.__dict__["forward"] = types.MethodType(_normalised, module)
    return worker


def _normalised(self: StateBatchNorm, input: Tensor) -> Tensor:
    return nn.functional.batch_norm(
        input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
    )


def _as_tensor(value: Any) -> Tensor:
    found = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    if found.dim() < 1 or len(found) < 1:
        raise ValueError(f"expected a batch of inputs, got a tensor of {tuple(found.shape)}.")
    return found.detach().cpu()


def _aliases(net: nn.Module, names: Sequence[str]) -> dict[str, str]:
    """Each name under which the network's state has a tensor -> the one of ``names`` it goes by."""
    state = dict(net.named_buffers(remove_duplicate=False))
    state |= dict(net.named_parameters(remove_duplicate=False))
    known = {id(site.signs): name for name, site in binary_sites(net).items()}
    known |= {id(state[name]): name for name in names if name in state}
    wanted = set(names)
    return {
        name: known[id(tensor)] for name, tensor in state.items() if known.get(id(tensor)) in wanted
    }


# The walk over the graph


class _Walk:
    """One pass over an exported graph."""

    def __init__(self, t: Translation, exported: ExportedProgram, aliases: dict[str, str]) -> None:
        self.t, self.exported, self.aliases = t, exported, aliases
        self.found: dict[torch.fx.Node, Any] = {}
        signature = exported.graph_signature
        self.inputs = {spec.arg.name: spec for spec in signature.input_specs}
        buffers = set(signature.buffers_to_mutate.values())
        self.changed = {spec.arg.name for spec in signature.input_specs if spec.target in buffers}

    def program(self) -> Program:
        needed = self._needed()
        for node in self.exported.graph.nodes:
            self.t.node = node
            if node.op == "placeholder":
                self.found[node] = self._placeholder(node, node in needed)
            elif node.op == "get_attr":
                self.found[node] = self._attribute(node)
            elif node.op == "call_function" and node in needed:
                self.found[node] = self._called(node)
                self._check(node)
            elif node.op == "output":
                return self._finished(node)
        raise AssertionError("a graph ends with its outputs")

    def _needed(self) -> set[torch.fx.Node]:
        """The nodes that the user's outputs depend on."""
        (output,) = (node for node in self.exported.graph.nodes if node.op == "output")
        queue = [x for x in self._user_outputs(output) if isinstance(x, torch.fx.Node)]
        needed: set[torch.fx.Node] = set()
        while queue:
            node = queue.pop()
            if node not in needed:
                needed.add(node)
                queue += node.all_input_nodes
        return needed

    def _user_outputs(self, output: torch.fx.Node) -> list[Any]:
        specs = self.exported.graph_signature.output_specs
        results: Any = output.args[0]
        return [
            result
            for result, spec in zip(results, specs, strict=True)
            if spec.kind == OutputKind.USER_OUTPUT
        ]

    def _placeholder(self, node: torch.fx.Node, needed: bool) -> Any:
        spec = self.inputs[node.name]
        if spec.kind == InputKind.USER_INPUT:
            return self._input(node)
        if not needed:
            return None
        if node.name in self.changed:
            return Refused(
                f"expected a function of the inputs alone, got one that changes its buffer {spec.target!r}"
            )
        target = str(spec.target)
        name = self.aliases.get(target)
        state = self.exported.state_dict
        tensor = state[target] if target in state else self.exported.constants[target]
        if not isinstance(tensor, Tensor):
            raise self.t.refuse("expected tensors as the state of the network")
        dtype = self.t.dtype_of(tensor.dtype)
        if name is not None:
            known = self.t.known(name)
            weights = name in self.t.sites or self.t.drawn[name].levels is not None
            return Traced(name, Layout.of(known.shape), dtype, weights=weights)
        named = spec.kind != InputKind.CONSTANT_TENSOR
        return Fixed(tensor.detach(), target if named else "")

    def _input(self, node: torch.fx.Node) -> Any:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return Refused("expected tensors as inputs")
        shape = self.t.shape()
        if shape[0] != Size(1, True):
            raise self.t.refuse("expected the batch as the first axis of each input")
        dtype = self.t.dtype_of(value.dtype)
        name = self.t.add_input(node.name, Value(tuple(size.count for size in shape[1:]), dtype))
        return Traced(name, Layout.of(shape), dtype)

    def _attribute(self, node: torch.fx.Node) -> Any:
        found = getattr(self.exported.graph_module, str(node.target), None)
        return Fixed(found.detach()) if isinstance(found, Tensor) else found

    def _called(self, node: torch.fx.Node) -> Any:
        value, target = node.meta.get("val"), node.target
        name = getattr(target, "__name__", str(target))
        if any(mark in str(target) for mark in _CHECKS):
            return None
        if value is not None and not isinstance(value, (Tensor, tuple, list)):
            return self._number(node, value)
        if target is operator.getitem:
            whole, place = self._resolved(node.args)
            return whole[place]
        if not isinstance(target, torch._ops.OpOverload):
            raise self.t.refuse(f"there is no step for {name}")
        args, kwargs = self._resolved(node.args), self._resolved(node.kwargs)
        try:
            return translate(self.t, target, args, kwargs)
        except NotCompiled:
            raise
        except Exception as error:  # the network still predicts in torch
            raise self.t.refuse(f"{type(error).__name__} while its steps were written") from error

    def _number(self, node: torch.fx.Node, value: Any) -> Any:
        """A number that torch computed with: a size, or of a tensor that is known."""
        args = self._resolved(node.args)
        if name_of_item(node.target) and isinstance(args[0], Fixed):
            return args[0].tensor.item()
        plain = all(isinstance(each, (int, float)) for each in args)
        if plain and not isinstance(node.target, torch._ops.OpOverload):
            return node.target(*args)  # type: ignore[operator]
        return symbolic(value, self.t.rows)

    def _resolved(self, value: Any) -> Any:
        """Arguments with what was found for nodes in their places."""
        if isinstance(value, torch.fx.Node):
            return self.found[value]
        if isinstance(value, (list, tuple)):
            return [self._resolved(each) for each in value]
        if isinstance(value, dict):
            return {name: self._resolved(each) for name, each in value.items()}
        return symbolic(value, self.t.rows) if type(value) is int else value

    def _check(self, node: torch.fx.Node) -> None:
        """Whether what was found has the shape that torch says."""
        value, found = node.meta.get("val"), self.found[node]
        pairs = [(value, found)]
        if isinstance(value, (list, tuple)) and isinstance(found, (list, tuple)):
            pairs = list(zip(value, found, strict=True))
        for place, (torchs, ours) in enumerate(pairs):
            if isinstance(torchs, Tensor) and isinstance(ours, Traced):
                wanted = self.t.shape(place if len(pairs) > 1 else None)
                if ours.layout.shape != wanted or ours.dtype != DTYPES[torchs.dtype]:
                    raise self.t.refuse(
                        f"expected a tensor {_shown(wanted)} of {torchs.dtype}, got "
                        f"{_shown(ours.layout.shape)} of {ours.dtype}: a fault of the compiler"
                    )

    def _finished(self, node: torch.fx.Node) -> Program:
        results = self._user_outputs(node)
        keys = self._output_names()
        keys = keys if len(keys) == len(results) else [""] * len(results)
        outputs, names = [], []
        for result, key in zip(results, keys, strict=True):
            if result is None:
                continue
            found = self._resolved(result)
            self.t.node = result if isinstance(result, torch.fx.Node) else None
            outputs.append(self._output(found))
            names.append(key)
        if not outputs:
            raise NotCompiled("expected the network to return tensors, got none")
        self.t.node = None
        try:
            return self.t.program(outputs, names)
        except ValueError as error:
            raise NotCompiled(str(error).removesuffix(".")) from None

    def _output_names(self) -> list[str]:
        """The keys of a dictionary, or the fields of a named tuple, that the network returns."""
        spec: Any = self.exported.call_spec.out_spec
        if spec is None or spec.num_leaves != spec.num_children:
            return []
        names = spec.context if spec.type is dict else getattr(spec.context, "_fields", ())
        return [name for name in names or () if isinstance(name, str)]

    def _output(self, found: Any) -> str:
        if isinstance(found, Refused):
            raise self.t.refuse(found.problem)
        if not isinstance(found, (Fixed, Traced)):
            raise NotCompiled(f"expected the network to return tensors, got {found!r}")
        value = self.t.settled(self.t.traced(found))
        axes = value.layout.axes
        if any(BATCH in axis and axis != (BATCH,) for axis in axes):
            raise self.t.mixes("an output whose rows are not those of the batch")
        name = self.t.arrange(value, [axis for axis in axes if axis != (BATCH,)])
        return self.t.as_output(name)


def name_of_item(target: Any) -> bool:
    """Whether an operator takes the number out of a tensor."""
    return str(target) in ("aten.item.default", "aten._local_scalar_dense.default")


def _shown(shape: Sequence[Size]) -> str:
    return str(tuple(f"{size.count}*batch" if size.batch else size.count for size in shape))
