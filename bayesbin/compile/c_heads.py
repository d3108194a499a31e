"""How the draws are averaged in C: one table, keyed by the kind of a head."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bayesbin.compile.c_writer import FOREVER, Ref, Source, converted, number
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
    """The probabilities averaged over draws, in logarithms, and the entropies of both."""
    (out,) = outputs
    classes = out.shape[-1]
    rows = math.prod(out.shape[:-1])
    logs, expected = _sums(source, rows * classes, "logs"), _sums(source, rows, "expected")
    added, line = source.helper("added_logs"), source.line
    over = f"for (int32_t k = r * {classes}; k < (r + 1) * {classes}; ++k)"
    source.use(out)
    _open_draws(source, arguments)
    source.open(f"for (int32_t r = 0; r < {rows}; ++r)")
    line("double m = -INFINITY, t = 0, e = 0;")
    line(f"{over} m = {_double(out, 'k')} > m ? {_double(out, 'k')} : m;")
    line(f"{over} t += exp({_double(out, 'k')} - m);")
    source.open(over)
    line(f"const double l = {_double(out, 'k')} - m - log(t), p = exp(l);")
    line(f"{logs}[k] = draw ? {added}({logs}[k], l) : l;")
    line("if (p != 0) e -= p * l;")
    source.close()
    line(f"{expected}[r] = draw ? {expected}[r] + e : e;")
    source.close(2)
    source.open(f"for (int32_t r = 0; r < {rows}; ++r)")
    line("double e = 0, apart;")
    source.open(over)
    line(
        f"const double l = {logs}[k] - {number(math.log(model.program.num_draws), 'f8')}, p = exp(l);"
    )
    line("if (p != 0) e -= p * l;")
    line("if (probs) probs[k] = p;")
    source.close()
    line(f"apart = e - {expected}[r] / BAYESBIN_DRAWS;")
    line("if (entropy) entropy[r] = e;")
    line("if (mutual_information) mutual_information[r] = apart < 0 ? 0 : apart;")
    source.close()
    return [
        Result("probs", out.shape, "probabilities of the classes"),
        Result("entropy", out.shape[:-1], "the total uncertainty, in nats"),
        Result("mutual_information", out.shape[:-1], "what the draws disagree about, in nats"),
    ]


def _moments(
    source: Source, model: Model, outputs: Sequence[Ref], arguments: str, names: Sequence[str]
) -> None:
    """Mean and variance over draws of each output, from the first draw on, into ``names``."""
    sums = [[_sums(source, ref.size, label) for label in ("first", "apart", "squares")]
            for ref in outputs]  # fmt: skip
    _open_draws(source, arguments)
    for ref, (first, apart, squares) in zip(outputs, sums, strict=True):
        source.use(ref)
        source.open(f"for (int32_t i = 0; i < {ref.size}; ++i)")
        source.line(f"if (!draw) {first}[i] = {_double(ref, 'i')};")
        source.line(f"const double d = {_double(ref, 'i')} - {first}[i];")
        source.line(f"{apart}[i] = draw ? {apart}[i] + d : d;")
        source.line(f"{squares}[i] = draw ? {squares}[i] + d * d : d * d;")
        source.close()
    source.close()
    pairs = zip(names[0::2], names[1::2], strict=True)
    for ref, (first, apart, squares), (mean, variance) in zip(outputs, sums, pairs, strict=True):
        source.open(f"for (int32_t i = 0; i < {ref.size}; ++i)")
        source.line(f"const double d = {apart}[i] / BAYESBIN_DRAWS;")
        source.line(f"const double s = {squares}[i] / BAYESBIN_DRAWS - d * d;")
        source.line(f"if ({mean}) {mean}[i] = {first}[i] + d;")
        source.line(f"if ({variance}) {variance}[i] = s < 0 ? 0 : s;")
        source.close()


def _normal(source: Source, model: Model, outputs: Sequence[Ref], arguments: str) -> list[Result]:
    (out,) = outputs
    shape = () if out.shape in ((), (1,)) else out.shape
    noise = np.asarray(model.head["noise"], dtype=np.float64)
    total = np.zeros(noise.shape[1:])
    for each in noise:  # one after another, as the predictor adds them
        total = total + np.square(each)
    table = source.table(np.broadcast_to(total / len(noise), shape), "f8", "noise")
    _moments(source, model, outputs, arguments, ["mean", "epistemic_variance"])
    source.line(f"if (aleatoric_variance) memcpy(aleatoric_variance, {table}, sizeof {table});")
    return [
        Result("mean", shape, "the mean of the draws"),
        Result("aleatoric_variance", shape, "the variance of the noise"),
        Result("epistemic_variance", shape, "the variance between draws"),
    ]


def _outputs(source: Source, model: Model, outputs: Sequence[Ref], arguments: str) -> list[Result]:
    results = []
    for place, ref in enumerate(outputs):
        end = f"_{place}" if len(outputs) > 1 else ""
        results.append(Result(f"mean{end}", ref.shape, "the mean of the draws"))
        results.append(Result(f"variance{end}", ref.shape, "the variance between draws"))
    _moments(source, model, outputs, arguments, [each.name for each in results])
    return results


Average = Callable[[Source, Model, Sequence[Ref], str], list[Result]]
HEADS: dict[str, Average] = {"classes": _classes, "normal": _normal, "outputs": _outputs}
