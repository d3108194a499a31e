"""What torch.export makes of a network, with a batch of any size, or why it cannot."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from bayesbin.compile.operators import function_of
from bayesbin.compile.refusal import NotCompiled, line_of, line_of_error
from bayesbin.nn.straight_through import sign_as_operator

_PRIMES = (1009, 1013, 1019, 1021, 1031, 1033, 1039, 1049)


_MOST_ROUNDS = 3  # of writing operators in others


@dataclass(frozen=True)
class Trace:
    """A network as torch has traced it.

    :param rows: how many rows the batch has in the graph, where it is a number there and not a symbol.
    """

    exported: ExportedProgram
    rows: int | None = None


def traced(net: nn.Module, inputs: tuple[Tensor, ...]) -> Trace:
    """The graph of a network in evaluation mode, with a batch of any size.

    :raises NotCompiled: if torch cannot trace it.
    """
    rows = _batch_size(net, inputs)
    example = tuple(x[:1].expand(rows, *x.shape[1:]).contiguous() for x in inputs)
    with _silent():
        try:
            return Trace(_functional(_exported(net, example, Dim("batch", min=1))))
        except Exception as error:
            if "Constraints violated" not in str(error):
                raise _failure(net, example, error) from None
            failure = _failure(net, example, error)
        try:
            return _by_two_sizes(net, inputs)
        except NotCompiled:
            raise
        except Exception:
            raise failure from None


def _exported(net: nn.Module, example: tuple[Tensor, ...], batch: Any) -> ExportedProgram:
    """torch's own export. :param batch: the first axis of each input, or None where it is a number."""
    shapes = _for_signature(net, tuple({0: batch} for _ in example)) if batch else None
    return torch.export.export(net, example, dynamic_shapes=shapes, strict=False)


def _functional(exported: ExportedProgram) -> ExportedProgram:
    """The same without operators that change what something else may look at, in operators of the table.

    What the table does not have is written in other operators where torch knows how.
    """
    if any(_changes_in_place(node) for node in exported.graph.nodes):
        exported = exported.run_decompositions({})
    for _ in range(_MOST_ROUNDS):
        unknown = {node.target for node in exported.graph.nodes if _is_unknown(node)}
        if not unknown:
            break
        every = torch.export.default_decompositions()
        rewritten = {target: every[target] for target in unknown if target in every}
        if not rewritten:
            break
        exported = exported.run_decompositions(rewritten)
    return exported


def _is_unknown(node: torch.fx.Node) -> bool:
    """Whether a node makes tensors by an operator that is not in the table."""
    made = isinstance(node.meta.get("val"), (Tensor, tuple, list))
    overload = isinstance(node.target, torch._ops.OpOverload)
    return made and overload and function_of(node.target) is None


def _by_two_sizes(net: nn.Module, inputs: tuple[Tensor, ...]) -> Trace:
    """The graph with the batch as a number, where torch cannot show that any other would do.

    It is traced twice, with different primes as the batch. What is a multiple of the one in one graph and
    the same multiple of the other in the other is a size of the batch; all else has to be equal.
    """
    sizes = _sizes(net, inputs)
    free = [prime for prime in _PRIMES if all(size % prime or not size for size in sizes)]
    rows = (free[0], free[1])
    found = [
        _functional(_exported(net, tuple(x.new_empty(many, *x.shape[1:]) for x in inputs), None))
        for many in rows
    ]
    _check_alike(found, rows)
    return Trace(found[0], rows[0])


def _check_alike(found: list[ExportedProgram], rows: tuple[int, int]) -> None:
    """Refuse a network whose graphs for two sizes of the batch differ in more than that size."""
    first, second = (list(each.graph.nodes) for each in found)
    if len(first) != len(second):
        raise _depends(None)
    places = [{node: place for place, node in enumerate(nodes)} for nodes in (first, second)]
    for a, b in zip(first, second, strict=True):
        if a.op != b.op or (a.op == "call_function" and a.target != b.target):
            raise _depends(a)
        if not _alike((a.args, a.kwargs), (b.args, b.kwargs), places, rows):
            raise _depends(a)


def _alike(a: Any, b: Any, places: list[dict[torch.fx.Node, int]], rows: tuple[int, int]) -> bool:
    """Whether two arguments are the same but for the size of the batch."""
    if isinstance(a, torch.fx.Node) and isinstance(b, torch.fx.Node):
        return places[0][a] == places[1][b]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(
            _alike(x, y, places, rows) for x, y in zip(a, b, strict=True)
        )
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[name], b[name], places, rows) for name in a)
    if type(a) is int and type(b) is int:
        return _alike_numbers(a, b, rows)
    return bool(type(a) is type(b) and a == b)


def _alike_numbers(a: int, b: int, rows: tuple[int, int]) -> bool:
    """Whether two numbers are equal and no multiple of the batch, or the same multiple of it."""
    multiples = (divmod(a, rows[0]), divmod(b, rows[1]))
    scales = multiples[0] == multiples[1] and not multiples[0][1]
    return scales if a != b else a == 0 or all(rest for _, rest in multiples)


def _depends(node: torch.fx.Node | None) -> NotCompiled:
    return NotCompiled(
        "expected every row of the batch to be computed by itself, got a network that computes with the "
        "number of rows",
        line=line_of(node),
        remedy="Use x.shape[0] for sizes of tensors alone.",
    )


def _for_signature(net: nn.Module, shapes: tuple[Any, ...]) -> Any:
    """Shapes as torch wants them: those of ``*args`` in a tuple of their own."""
    parameters = list(inspect.signature(net.forward).parameters.values())
    named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(named) >= len(shapes) or not any(p.kind == p.VAR_POSITIONAL for p in parameters):
        return shapes
    return (*shapes[: len(named)], shapes[len(named) :])


def _batch_size(net: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """A number of rows that is no other size of the network: what happens to be equal stays apart."""
    taken = _sizes(net, inputs)
    return next(
        n for n in (7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, *_PRIMES) if n not in taken
    )


def _sizes(net: nn.Module, inputs: tuple[Tensor, ...]) -> set[int]:
    """All sizes of inputs, parameters and buffers."""
    state = (*net.parameters(), *net.buffers())
    return {size for x in inputs for size in x.shape[1:]} | {n for x in state for n in x.shape}


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """torch's messages and warnings are left out."""
    quiet: Any = lambda record: False  # noqa: E731
    loggers = [
        each
        for name, each in logging.root.manager.loggerDict.items()
        if name.startswith("torch") and isinstance(each, logging.Logger)
    ]
    handlers = {handler for each in loggers for handler in each.handlers}
    for handler in handlers:
        handler.addFilter(quiet)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),
            _followed(),
            sign_as_operator(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(quiet)


@contextlib.contextmanager
def _followed() -> Iterator[None]:
    """torch's fused attention, and its search for an order of products, are left out of what it traces."""
    fast = torch.backends.mha.get_fastpath_enabled()
    einsum: Any = torch.backends.opt_einsum
    searches = einsum.enabled
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        einsum.enabled = False
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        einsum.enabled = searches


def _failure(net: nn.Module, example: tuple[Tensor, ...], error: Exception) -> Exception:
    """Why torch could not export a network, in a sentence."""
    line, text = line_of_error(error), str(error)
    if isinstance(error, NotCompiled):
        return error
    if "data-dependent" in text or "DataDependent" in type(error).__name__:
        return NotCompiled(
            "torch.export: expected one way through the network for all inputs, got a decision that "
            "depends on values",
            line=line,
            remedy="Write it by torch.where, or keep it: an ensemble predicts with it in torch all the same.",
        )
    if "specialized" in text or "Constraints violated" in text:
        return NotCompiled(
            "torch.export: expected any number of rows in a batch, got code that is for one number "
            "of them",
            line=line,
            remedy="Use x.shape[0] where the batch size is written as a number, and -1 in views.",
        )
    try:
        with torch.no_grad():
            net(*example)
    except Exception as own:
        first = str(own).strip().splitlines()[0][:200] if str(own).strip() else ""
        return NotCompiled(
            f"the network fails on inputs like these: {type(own).__name__}: {first}",
            line=line_of_error(own),
            remedy="Pass inputs that the network takes.",
        )
    if "numpy()" in text or "tolist" in text:
        return NotCompiled(
            "torch.export: expected a network of torch's operators, got one that leaves torch for numpy "
            "or lists",
            line=line,
            remedy="Write it in torch, or keep it: an ensemble predicts with it in torch all the same.",
        )
    first = text.strip().splitlines()[0][:200] if text.strip() else ""
    return NotCompiled(f"torch.export: {type(error).__name__}: {first}".rstrip(": "), line=line)


def _changes_in_place(node: torch.fx.Node) -> bool:
    """Whether a node changes a tensor that something else may look at."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or not schema.is_mutable:
        return bool(getattr(node.target, "__name__", "").startswith("wrap_with"))
    if node.target is torch.ops.aten.detach_.default:
        return False
    changed = node.args[0] if node.args else None
    if not isinstance(changed, torch.fx.Node) or changed.op != "call_function":
        return True
    made = getattr(changed.target, "_schema", None)
    if made is None or list(changed.users) != [node] or len(schema.returns) != 1:
        return True
    if made.is_mutable:  # a change after a change
        return _changes_in_place(changed)
    return any(each.alias_info is not None for each in made.returns)
