"""How the draws are averaged in C: one table, keyed by the kind of a head."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bayesbin.compile.c_writer import FOREVER, Ref, Source, converted, number
from bayesbin.runtime.class_heads import ClassesHead
from bayesbin.runtime.heads import MOST_LOG_NOISE, NormalHead
from bayesbin.runtime.model import Model


@dataclass(frozen=True)
class Result:
    """An array that a prediction is written into."""

    name: str
    shape: tuple[int, ...]
    meaning: str


def _sums(source: Source, size: int, label: str) -> str:
    """Numbers that stay from draw to draw."""
    ref = source.buffer("f8", (size,), label)
    assert ref.buffer is not None
    ref.buffer.first, ref.buffer.last = 0, FOREVER
    return ref.name


def _open_draws(source: Source, arguments: str) -> None:
    source.open("for (int32_t draw = 0; draw < BAYESBIN_DRAWS; ++draw)")
    source.line(f"if (steps_of_draw(work, draw, {arguments})) return 1;")


def _double(ref: Ref, index: str) -> str:
    return converted(f"{ref.name}[{index}]", ref.dtype, "f8")


def _classes(source: Source, model: Model, outputs: Sequence[Ref], arguments: str) -> list[Result]:
    """Classes of a softmax along one axis: the C entries of row r are ``inner`` apart."""
    (out,) = outputs
    head = model.averaging
    assert isinstance(head, ClassesHead)
    classes, inner = out.shape[head.axis - 1], math.prod(out.shape[head.axis :])
    place = f"r / {inner} * {classes * inner} + r % {inner}" if inner > 1 else f"r * {classes}"
    logit = _double(out, f"{place} + c * {inner}" if inner > 1 else f"{place} + c")
    over = f"for (int32_t c = 0; c < {classes}; ++c)"
    before = [
        "double m = -INFINITY, t = 0;",
        f"{over} m = {logit} > m ? {logit} : m;",
        f"{over} t += exp({logit} - m);",
    ]
    shape = (*head.targets, classes)
    return _one_of(source, model, out, arguments, shape, before, f"{logit} - m - log(t)")


def _ordinal(source: Source, model: Model, outputs: Sequence[Ref], arguments: str) -> list[Result]:
    """Ordered classes between the cut points of each draw, as the predictor computes them."""
    (out,) = outputs
    cuts, log_sigmoid = model.averaging.numbers["cutpoints"], source.helper("log_sigmoid")
    count = cuts.shape[1]
    with np.errstate(divide="ignore"):
        apart = np.log(-np.expm1(-np.diff(cuts, axis=1)))
    first = source.table(cuts, "f8", "cutpoints")
    row = f"draw * {count}" if len(cuts) > 1 else "0"
    cut, score = f"{first}[{row} + {{}}]", _double(out, "r")
    below = f"{log_sigmoid}({cut.format('c')} - {score})"
    beyond = f"{log_sigmoid}({score} - {cut.format('c - 1')})"
    between = "0"
    if count > 1:
        gaps = source.table(apart, "f8", "gaps")
        place = f"draw * {count - 1}" if len(cuts) > 1 else "0"
        between = f"{below} + {beyond} + {gaps}[{place} + c - 1]"
    log_prob = f"c == 0 ? {below} : c == {count} ? {beyond} : {between}"
    shape = (*model.averaging.targets, count + 1)
    return _one_of(source, model, out, arguments, shape, [], log_prob)


def _labels(source: Source, model: Model, outputs: Sequence[Ref], arguments: str) -> list[Result]:
    """Labels as two classes each, present and absent."""
    (out,) = outputs
    logit, log_sigmoid = _double(out, "r"), source.helper("log_sigmoid")
    log_prob = f"{log_sigmoid}(c ? -{logit} : {logit})"
    shape = (*model.averaging.targets, 2)
    return _one_of(source, model, out, arguments, shape, [], log_prob, kept=1)


def _one_of(
    source: Source,
    model: Model,
    out: Ref,
    arguments: str,
    shape: tuple[int, ...],
    before: Sequence[str],
    log_prob: str,
    kept: int | None = None,
) -> list[Result]:
    """The probabilities averaged over draws, in logarithms, and the entropies of both.

    :param shape: of the probabilities; classes come last. :param before: lines for each row r.
    :param log_prob: log-probability of class c in row r and a draw. :param kept: of how many classes the
        probabilities are results; None: of all.
    """
    classes, rows = shape[-1], math.prod(shape[:-1])
    logs, expected = _sums(source, rows * classes, "logs"), _sums(source, rows, "expected")
    added, line = source.helper("added_logs"), source.line
    over = f"for (int32_t c = 0; c < {classes}; ++c)"
    source.use(out)
    _open_draws(source, arguments)
    source.open(f"for (int32_t r = 0; r < {rows}; ++r)")
    line("double e = 0;")
    for each in before:
        line(each)
    source.open(over)
    line(f"const double l = {log_prob}, p = exp(l);")
    line(f"const int32_t k = r * {classes} + c;")
    line(f"{logs}[k] = draw ? {added}({logs}[k], l) : l;")
    line("if (p != 0) e -= p * l;")
    source.close()
    line(f"{expected}[r] = draw ? {expected}[r] + e : e;")
    source.close(2)
    source.open(f"for (int32_t r = 0; r < {rows}; ++r)")
    line("double e = 0, apart;")
    source.open(over)
    count = number(math.log(model.program.num_draws), "f8")
    line(f"const double l = {logs}[r * {classes} + c] - {count}, p = exp(l);")
    line("if (p != 0) e -= p * l;")
    if kept is None:
        line(f"if (probs) probs[r * {classes} + c] = p;")
    else:
        line(f"if (probs && c < {kept}) probs[r * {kept} + c] = p;")
    source.close()
    line(f"apart = e - {expected}[r] / BAYESBIN_DRAWS;")
    line("if (entropy) entropy[r] = e;")
    line("if (mutual_information) mutual_information[r] = apart < 0 ? 0 : apart;")
    source.close()
    return [
        Result("probs", shape if kept is None else shape[:-1], "probabilities"),
        Result("entropy", shape[:-1], "the total uncertainty, in nats"),
        Result("mutual_information", shape[:-1], "what the draws disagree about, in nats"),
    ]


@dataclass(frozen=True)
class _Moments:
    """An array whose mean and variance over draws is taken.

    :param at: its entry i in a draw, an expression. :param names: of the results, mean and variance.
    """

    size: int
    at: str
    names: tuple[str, str]


def _moments(
    source: Source,
    outputs: Sequence[Ref],
    arguments: str,
    averaged: Sequence[_Moments],
    noise: str = "",
) -> None:
    """Mean and variance over draws, from the first draw on; of ``noise``, an expression, the mean alone."""
    sums = [[_sums(source, each.size, label) for label in ("first", "apart", "squares")]
            for each in averaged]  # fmt: skip
    added = _sums(source, averaged[0].size, "noise") if noise else ""
    for ref in outputs:
        source.use(ref)
    _open_draws(source, arguments)
    for each, (first, apart, squares) in zip(averaged, sums, strict=True):
        source.open(f"for (int32_t i = 0; i < {each.size}; ++i)")
        source.line(f"const double v = {each.at};")
        source.line(f"if (!draw) {first}[i] = v;")
        source.line(f"const double d = v - {first}[i];")
        source.line(f"{apart}[i] = draw ? {apart}[i] + d : d;")
        source.line(f"{squares}[i] = draw ? {squares}[i] + d * d : d * d;")
        if noise:
            source.line(f"{added}[i] = draw ? {added}[i] + ({noise}) : {noise};")
        source.close()
    source.close()
    for each, (first, apart, squares) in zip(averaged, sums, strict=True):
        mean, variance = each.names
        source.open(f"for (int32_t i = 0; i < {each.size}; ++i)")
        source.line(f"const double d = {apart}[i] / BAYESBIN_DRAWS;")
        source.line(f"const double s = {squares}[i] / BAYESBIN_DRAWS - d * d;")
        source.line(f"if ({mean}) {mean}[i] = {first}[i] + d;")
        source.line(f"if ({variance}) {variance}[i] = s < 0 ? 0 : s;")
        if noise:
            source.line(
                f"if (aleatoric_variance) aleatoric_variance[i] = {added}[i] / BAYESBIN_DRAWS;"
            )
        source.close()


def _three(shape: tuple[int, ...]) -> list[Result]:
    return [
        Result("mean", shape, "the mean of the draws"),
        Result("aleatoric_variance", shape, "the variance of the noise"),
        Result("epistemic_variance", shape, "the variance between draws"),
    ]


def _normal(source: Source, model: Model, outputs: Sequence[Ref], arguments: str) -> list[Result]:
    (out,) = outputs
    head = model.averaging
    assert isinstance(head, NormalHead)
    shape, size = head.targets, math.prod(head.targets)
    averaged = [_Moments(size, _double(out, "i"), ("mean", "epistemic_variance"))]
    if head.heteroscedastic:
        most, log = number(MOST_LOG_NOISE, "f8"), _double(out, f"{size} + i")
        noise = f"exp(2 * ({log} > {most} ? {most} : {log} < -{most} ? -{most} : {log}))"
        _moments(source, outputs, arguments, averaged, noise)
        return _three(shape)
    given = head.numbers["noise"]
    total = np.zeros(given.shape[1:])
    for each in given:  # one after another, as the predictor adds them
        total = total + np.square(each)
    table = source.table(np.broadcast_to(total / len(given), shape), "f8", "noise")
    _moments(source, outputs, arguments, averaged)
    source.line(f"if (aleatoric_variance) memcpy(aleatoric_variance, {table}, sizeof {table});")
    return _three(shape)


def _counts(source: Source, model: Model, outputs: Sequence[Ref], arguments: str) -> list[Result]:
    (out,) = outputs
    head, shape = model.averaging, model.averaging.targets
    size = math.prod(shape)
    mean = f"{source.helper('rate')}({_double(out, 'i')})"
    noise = "v"
    if "concentration" in head.numbers:
        given = head.numbers["concentration"]
        per_target = given.size > len(given)
        table = source.table(given, "f8", "concentration")
        row = f"draw * {given[0].size}" if len(given) > 1 else "0"
        noise = f"v + v * v / {table}[{row}{' + i' if per_target else ''}]"
    averaged = [_Moments(size, mean, ("mean", "epistemic_variance"))]
    _moments(source, outputs, arguments, averaged, noise)
    return _three(shape)


def _outputs(source: Source, model: Model, outputs: Sequence[Ref], arguments: str) -> list[Result]:
    results = []
    for place, ref in enumerate(outputs):
        end = f"_{place}" if len(outputs) > 1 else ""
        results.append(Result(f"mean{end}", ref.shape, "the mean of the draws"))
        results.append(Result(f"variance{end}", ref.shape, "the variance between draws"))
    pairs = zip(results[0::2], results[1::2], strict=True)
    averaged = [
        _Moments(ref.size, _double(ref, "i"), (mean.name, variance.name))
        for ref, (mean, variance) in zip(outputs, pairs, strict=True)
    ]
    _moments(source, outputs, arguments, averaged)
    return results


Average = Callable[[Source, Model, Sequence[Ref], str], list[Result]]
HEADS: dict[str, Average] = {
    "classes": _classes,
    "ordinal": _ordinal,
    "labels": _labels,
    "normal": _normal,
    "poisson": _counts,
    "negative_binomial": _counts,
    "outputs": _outputs,
}
