"""A predictor as C source: one file of C99 that needs the C library alone, and predicts one datum."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bayesbin.compile.c_heads import HEADS, Result
from bayesbin.compile.c_steps import EMIT
from bayesbin.compile.c_text import HELPERS
from bayesbin.compile.c_writer import (
    FOREVER,
    TYPES,
    Buffer,
    CCall,
    CSection,
    Ref,
    Source,
    converted,
)
from bayesbin.compile.shipped import model_of
from bayesbin.core.canonical import num_words
from bayesbin.core.files import write_atomically
from bayesbin.runtime.model import Model
from bayesbin.runtime.program import Constant, DrawnSite, Program, Site, Step, StoredSite

MOST_STEPS = 16  # of one function
AS_PRODUCTS = {"linear", "conv"}  # kinds that read packed signs as they are


def export_c(
    predictor: Any,
    folder: str | os.PathLike[str],
    *,
    draws: Sequence[int] | None = None,
    preprocessing: bool = True,
) -> Path:
    """Write ``model.h``, ``model.c`` and an example ``main.c`` into a folder, which is made if it is new.

    The source is C99, allocates nothing and needs <math.h>, <stdint.h> and <string.h> alone::

        gcc -std=c99 -O2 -ffp-contract=off model.c main.c -lm -o predict

    ``bayesbin_predict`` takes one datum and averages over the draws; ``bayesbin_outputs`` gives what the
    network of one draw returns; ``model.h`` says what they take. Both return 0, or 1 for whole numbers
    (tokens) out of range, for which there is no answer. They work in one static workspace; with
    ``bayesbin_predict_in`` and ``bayesbin_outputs_in`` each thread brings its own.

    Weights are packed signs: of all draws, or, where that is smaller, the mode and the probabilities from
    which each draw is made again when it is used. Linear maps, convolutions, decisions, pools and the
    formulas of float32 give the bits of the predictor, if the compiler neither contracts products and sums
    (``-ffp-contract=off``) nor has excess precision; functions such as exp, and sums over axes, agree to
    about 1e-6. Sums are exact for a predictor of precision "fast" too.

    :param predictor: a Predictor, or the path of a ``.bbn`` file.
    :param draws: which draws, None: all. :param preprocessing: False: inputs are those of the network.
    :returns: the folder.
    :raises ValueError: for draws that there are not, or a step that is not in C, by name.
    :raises OSError: if a file cannot be written.

    Example::

        >>> import tempfile
        >>> from bayesbin.runtime.predictor import Predictor
        >>> from bayesbin.runtime.program import Constant, Program, Step, Value
        >>> weight = Constant(np.eye(2, dtype=np.float32)[None])
        >>> step = Step("linear", ("x", "w"), ("y",))
        >>> program = Program({"x": Value((2,), "f4")}, {"w": weight}, {}, (step,), ("y",))
        >>> predictor = Predictor(program, {"kind": "classes"}, backend="numpy")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(path.name for path in export_c(predictor, folder).iterdir())
        ['main.c', 'model.c', 'model.h']
    """
    files = c_files(model_of(predictor, draws), preprocessing)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_atomically(folder / name, text.encode())
    return folder


def c_files(model: Model, preprocessing: bool = True) -> dict[str, str]:
    """The text of each file."""
    writer = _Network(model, model.preprocessing if preprocessing else None)
    return {
        "model.h": writer.header(),
        "model.c": writer.source_text(),
        "main.c": writer.example(),
    }


class _Steps:
    """Writes the steps of a program, and knows the array of each value."""

    def __init__(self, source: Source, program: Program, refs: Mapping[str, Ref]) -> None:
        self.source, self.program = source, program
        self.refs = dict(refs)
        self.words: dict[str, Ref] = {}

    def write_all(self, steps: Sequence[Step]) -> list[CSection]:
        """Write steps into functions of a size that compilers are quick with."""
        sections = [CSection()]
        self.source.section = sections[0]
        for place, step in enumerate(steps):
            if place and place % MOST_STEPS == 0:
                sections.append(CSection())
                self.source.section = sections[-1]
            self.write(step)
        return sections

    def write(self, step: Step) -> None:
        """Write one step. :raises ValueError: for one that C does not have, by name."""
        source, values = self.source, self.program.values
        source.now += 1
        title = f"{step.kind} -> {', '.join(step.outputs)}"
        source.line(f"/* {_comment(title)} */")
        if step.kind == "reshape" and values[step.inputs[0]].dtype == step.dtype:
            x = self.array(step.inputs[0])  # the numbers stay where they are
            shape = values[step.outputs[0]].shape
            self.refs[step.outputs[0]] = Ref(x.name, x.dtype, shape, x.buffer)
            return
        given: list[Ref | None] = []
        words: dict[int, Ref] = {}
        for place, name in enumerate(step.inputs):
            packed = place == 1 and step.kind in AS_PRODUCTS and name in self.program.sites
            if packed:
                words[place] = self.packed(name)
            given.append(None if not name or packed else self.array(name))
        made = [source.buffer(step.dtype, values[n].shape, n) for n in step.outputs]
        used = [values[name] if name else None for name in step.inputs]
        call = CCall(
            source, step, given, used, made, words, lambda place: self.array(step.inputs[place])
        )
        source.open()
        try:
            EMIT[step.kind](call)
        except (KeyError, ValueError) as error:
            reason = error if isinstance(error, ValueError) else "steps of this kind"
            raise ValueError(
                f"C source: the step {step.kind!r} (output {step.outputs[0]!r}) has no C: {reason}; "
                "predict with bayesbin.load, or export ONNX."
            ) from error
        source.close()
        for ref in made:  # outputs that nothing reads are needed while the step writes them
            source.use(ref)
        self.refs.update(zip(step.outputs, made, strict=True))

    def array(self, name: str) -> Ref:
        """A value as an array of numbers."""
        if name not in self.refs:
            if name in self.program.constants:
                found = self._constant(name, self.program.constants[name])
            else:
                found = self._signs(name, self.program.sites[name])
            self.refs[name] = found
        return self.source.use(self.refs[name])

    def _row(self, label: str, rows: np.ndarray | None) -> str:
        """The row of this draw, in C."""
        if rows is None or not len(np.unique(rows)) > 1:
            return str(0 if rows is None else int(rows[0]))
        if np.array_equal(rows, np.arange(len(rows))):
            return "draw"
        return f"{self.source.table(rows, 'n4', f'rows_of_{label}')}[draw]"

    def _pointer(self, label: str, dtype: str, table: str, row: str, shape: tuple[int, ...]) -> Ref:
        """The row of this draw in a table of all."""
        if row == "0":
            return Ref(table, dtype, shape)
        name, size = self.source.fresh(f"k_{label}"), max(1, math.prod(shape))
        text = f"const {TYPES[dtype]} *const {name} = {table} + (size_t){row} * {size};"
        return self.source.use(Ref(name, dtype, shape, None, text))

    def _constant(self, name: str, constant: Constant) -> Ref:
        dtype = "u1" if constant.levels is not None else constant.dtype
        table = self.source.table(constant.data, dtype, name)
        row = self._row(name, constant.rows)
        found = self._pointer(name, dtype, table, row, constant.shape)
        if constant.levels is None:
            return found
        levels = self.source.table(np.asarray(constant.levels, np.float32), "f4", "levels")
        made = self.source.buffer("f4", constant.shape, name)
        self.source.line(
            f"for (int32_t i = 0; i < {made.size}; ++i) {made.name}[i] = {levels}[{found.name}[i]];"
        )
        return made

    def packed(self, name: str) -> Ref:
        """The packed signs of a site, of this draw."""
        if name not in self.words:
            self.words[name] = self._packed(name, self.program.sites[name])
        return self.source.use(self.words[name])

    def _packed(self, name: str, site: Site) -> Ref:
        units, inputs = site.shape[0], math.prod(site.shape[1:])
        size, draws = units * num_words(inputs), self.program.num_draws
        if isinstance(site, DrawnSite) and not _is_smaller(site, draws):
            bits = np.stack([site.words(draw) for draw in range(draws)])
            site = StoredSite(site.shape, bits, np.arange(draws, dtype=np.int64))
        source, row = self.source, self._row(name, site.rows)
        if isinstance(site, StoredSite):
            return self._pointer(name, "u8", source.table(site.bits, "u8", name), row, (size,))
        mode = self._pointer(name, "u8", source.table(site.mode, "u8", name), row, (size,))
        flips = source.table(site.flip, "u2", f"flip_{name}")
        flip = self._pointer(f"flip_{name}", "u2", flips, row, (units * inputs,))
        keys = source.table(site.keys, "u8", f"keys_{name}")
        made = source.buffer("u8", (size,), name)
        source.line(
            f"{source.helper('drawn_words')}({mode.name}, {flip.name}, {keys}[draw], {units}, {inputs}, "
            f"{made.name});"
        )
        return made

    def _signs(self, name: str, site: Site) -> Ref:
        """The weights of a site as numbers, for steps that do not read packed signs."""
        source, words = self.source, self.packed(name)
        units, inputs = site.shape[0], math.prod(site.shape[1:])
        made = source.buffer("f4", site.shape, name)
        source.open(f"for (int32_t n = 0; n < {units}; ++n)")
        row = f"{words.name} + n * {num_words(inputs)}"
        source.line(
            f"for (int32_t k = 0; k < {inputs}; ++k) "
            f"{made.name}[n * {inputs} + k] = (float){source.helper('sign_of')}({row}, k);"
        )
        source.close()
        return made


def _is_smaller(site: DrawnSite, draws: int) -> bool:
    """Whether drawing signs again takes fewer bytes than the signs of all draws."""
    units, inputs = site.shape[0], math.prod(site.shape[1:])
    row = 8 * units * num_words(inputs)
    return len(site.mode) * (row + 2 * units * inputs) + 8 * draws < draws * row


class _Network:
    """The functions of a model, and the files they are in."""

    def __init__(self, model: Model, before: Program | None) -> None:
        self.model, self.program = model, model.program
        self.source = source = Source()
        self.inputs = (before or self.program).inputs
        one = len(self.inputs) == 1
        refs = {
            name: Ref(source.fresh("x" if one else f"x_{name}"), value.dtype, value.shape)
            for name, value in self.inputs.items()
        }
        self.arguments = list(refs.values())
        self.shared: list[CSection] = []
        if before is not None:
            refs = self._preprocessed(before, refs)
        steps = _Steps(source, self.program, refs)
        values = self.program.values
        drawn = [values[step.outputs[0]].drawn for step in self.program.steps]
        pairs = list(zip(self.program.steps, drawn, strict=True))
        self.shared += steps.write_all([step for step, differs in pairs if not differs])
        source.now += 1
        source.drawn_from = source.now
        self.drawn = steps.write_all([step for step, differs in pairs if differs])
        self.outputs = [self._output(steps, name) for name in self.program.outputs]
        source.now += 1
        source.section = average = CSection()
        kind = model.head["kind"]
        if kind not in HEADS:
            raise ValueError(f"C source: expected a head of {', '.join(HEADS)}, got {kind!r}.")
        self.results: list[Result] = HEADS[kind](source, model, self.outputs, self._names())
        self.average = average
        self.room = source.assign()

    def _preprocessed(self, before: Program, refs: dict[str, Ref]) -> dict[str, Ref]:
        steps = _Steps(self.source, before, refs)
        self.shared += steps.write_all(before.steps)
        found = {}
        for (name, value), made in zip(self.program.inputs.items(), before.outputs, strict=True):
            found[name] = self._copied(steps.array(made), value.dtype, name)
        return found

    def _copied(self, ref: Ref, dtype: str, label: str) -> Ref:
        if ref.dtype == dtype:
            return ref
        made = self.source.buffer(dtype, ref.shape, label)
        value = converted(f"{ref.name}[i]", ref.dtype, dtype)
        self.source.line(f"for (int32_t i = 0; i < {ref.size}; ++i) {made.name}[i] = {value};")
        return made

    def _output(self, steps: _Steps, name: str) -> Ref:
        """An output in room of its own, which stays until the draws are averaged."""
        source = self.source
        source.now += 1
        ref = steps.array(name)
        made = source.buffer(ref.dtype, ref.shape, f"out_{name}")
        assert made.buffer is not None
        made.buffer.last = FOREVER
        size = f"{ref.size} * sizeof *{made.name}"
        source.line(f"memcpy({made.name}, {ref.name}, {size});")
        return made

    # Text

    def _parameters(self) -> str:
        return ", ".join(f"const {TYPES[ref.dtype]} *{ref.name}" for ref in self.arguments)

    def _names(self) -> str:
        return ", ".join(ref.name for ref in self.arguments)

    def _result_parameters(self) -> str:
        return ", ".join(f"double *{each.name}" for each in self.results)

    def _output_parameters(self) -> str:
        return ", ".join(
            f"{TYPES[ref.dtype]} *{self._output_name(place)}"
            for place, ref in enumerate(self.outputs)
        )

    def _output_name(self, place: int) -> str:
        return "outputs" if len(self.outputs) == 1 else f"outputs_{place}"

    def _workspace(self) -> str:
        rows = [f"    {TYPES[t]} {t}[{max(1, self.room.get(t, 0))}];" for t in ("f4", "f8", "i8", "b1", "u8")
                if self.room.get(t)]  # fmt: skip
        return "\n".join(rows or ["    char none;"])

    def header(self) -> str:
        """The text of model.h."""
        takes = [
            f"   {ref.name}: {_counted(ref.shape)} ({_comment(name)})"
            for name, ref in zip(self.inputs, self.arguments, strict=True)
        ]
        gives = [f"   {each.name}: {_counted(each.shape)}, {each.meaning}" for each in self.results]
        outs = [
            f"   {self._output_name(place)}: {_counted(ref.shape)}"
            for place, ref in enumerate(self.outputs)
        ]
        labels = self.model.labels
        named = f"\n/* The classes in order: {_comment(', '.join(labels))} */\n" if labels else ""
        head = self._parameters()
        return f"""\
/* {_counted_words(self.program)} Compile with -std=c99 -O2 -ffp-contract=off and -lm;
   with other options the last digits may differ. Nothing is allocated. */
#ifndef BAYESBIN_MODEL_H
#define BAYESBIN_MODEL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define BAYESBIN_DRAWS {self.program.num_draws}
{named}
/* What a prediction is computed in. */
typedef struct {{
{self._workspace()}
}} bayesbin_workspace;

/* The prediction for one datum, averaged over the draws. Inputs, all of them finite:
{chr(10).join(takes)}
   Results, each of which may be NULL:
{chr(10).join(gives)}
   Returns 0; 1 if a whole number (a token) is out of range, and there is no answer. */
int bayesbin_predict({head}, {self._result_parameters()});

/* What the network of one draw, 0 to BAYESBIN_DRAWS - 1, returns:
{chr(10).join(outs)}
   Returns 0; 1 for a draw or a whole number out of range. */
int bayesbin_outputs(int32_t draw, {head}, {self._output_parameters()});

/* The same in a workspace of the caller's, for several threads at once: one workspace for each. */
int bayesbin_predict_in(bayesbin_workspace *work, {head}, {self._result_parameters()});
int bayesbin_outputs_in(bayesbin_workspace *work, int32_t draw, {head}, {self._output_parameters()});

#ifdef __cplusplus
}}
#endif

#endif
"""

    def source_text(self) -> str:
        """The text of model.c."""
        source, names = self.source, self._names()
        given = self._parameters()
        results = ", ".join(each.name for each in self.results)
        outs = ", ".join(self._output_name(place) for place in range(len(self.outputs)))
        copies = "\n".join(
            f"    memcpy({self._output_name(place)}, {_place(ref.buffer)}, {ref.size} * sizeof *"
            f"{self._output_name(place)});"
            for place, ref in enumerate(self.outputs)
        )
        helpers = "\n\n".join(HELPERS[name] for name in HELPERS if name in source.helpers)
        tables = "\n\n".join(source.tables)
        return f"""\
#include "model.h"

#include <math.h>
#include <string.h>

{tables}

{helpers}

/* What is the same in all draws. */
{self._functions("shared_steps", self.shared, given, names)}

/* What one draw computes, after the shared steps. */
{self._functions("steps_of_draw", self.drawn, f"int32_t draw, {given}", f"draw, {names}")}

int bayesbin_outputs_in(bayesbin_workspace *work, int32_t draw, {given}, {self._output_parameters()}) {{
    if (draw < 0 || draw >= BAYESBIN_DRAWS) return 1;
    if (shared_steps(work, {names}) || steps_of_draw(work, draw, {names})) return 1;
{copies}
    return 0;
}}

int bayesbin_predict_in(bayesbin_workspace *work, {given}, {self._result_parameters()}) {{
    if (shared_steps(work, {names})) return 1;
{self._function(self.average, "")}
}}

static bayesbin_workspace static_workspace;

int bayesbin_outputs(int32_t draw, {given}, {self._output_parameters()}) {{
    return bayesbin_outputs_in(&static_workspace, draw, {names}, {outs});
}}

int bayesbin_predict({given}, {self._result_parameters()}) {{
    return bayesbin_predict_in(&static_workspace, {names}, {results});
}}
"""

    def _functions(
        self, name: str, sections: Sequence[CSection], parameters: str, names: str
    ) -> str:
        """Functions of some steps each, and one that calls all of them."""
        found, calls = [], []
        for place, section in enumerate(sections):
            head = f"static int {name}_{place}(bayesbin_workspace *work, {parameters})"
            found.append(f"{head} {{\n{self._function(section, names)}\n}}\n")
            calls.append(f"{name}_{place}(work, {names})")
        return (
            "\n".join(found)
            + f"\nstatic int {name}(bayesbin_workspace *work, {parameters}) {{\n"
            + f"    return {' || '.join(calls)};\n}}"
        )

    def _function(self, section: CSection, names: str) -> str:
        body = "\n".join(section.lines)
        code = (line for line in section.lines if not line.lstrip().startswith("/*"))
        used = set(re.findall(r"\w+", "\n".join(code)))
        lines = [f"    {text}" for name, text in section.declared.items() if name in used]
        buffers = [buffer for buffer in section.buffers if buffer.name in used]
        lines += [f"    {TYPES[b.dtype]} *const {b.name} = {_place(b)};" for b in buffers]
        used |= set(re.findall(r"\w+", "\n".join(lines)))
        idle = [name for name in ["work", *names.split(", ")] if name and name not in used]
        return "\n".join([*(f"    (void){name};" for name in idle), *lines, body, "    return 0;"])

    def example(self) -> str:
        """The text of main.c."""
        formats = {"f4": '"%f"', "f8": '"%lf"', "i8": '"%" SCNd64', "b1": '"%hhu"'}
        reads, declared = [], []
        for ref in self.arguments:
            size = max(1, ref.size)
            declared.append(f"static {TYPES[ref.dtype]} {ref.name}[{size}];")
            reads.append(
                f"        for (int i = 0; i < {ref.size}; ++i, ++count)\n"
                f"            if ((found = scanf({formats[ref.dtype]}, &{ref.name}[i])) != 1)\n"
                "                return ended(found, count);"
            )
        prints = []
        for each in self.results:
            declared.append(f"static double {each.name}[{max(1, math.prod(each.shape))}];")
            prints.append(f'        print("{each.name}", {each.name}, {math.prod(each.shape)});')
        results = ", ".join(each.name for each in self.results)
        lines, total = "\n".join, sum(ref.size for ref in self.arguments)
        return f"""\
/* Reads numbers from standard input, one datum after another, and prints the prediction for each. */
#include "model.h"

#include <inttypes.h>
#include <stdio.h>

{lines(declared)}

static void print(const char *name, const double *numbers, int count) {{
    printf("%s", name);
    for (int i = 0; i < count; ++i) printf(" %.17g", numbers[i]);
    printf("\\n");
}}

/* The input ends after a whole datum; anything else is an error. */
static int ended(int found, long count) {{
    if (found < 0 && count == 0) return 0;
    fprintf(stderr, "expected {total} numbers for a datum, got %ld\\n", count);
    return 1;
}}

int main(void) {{
    for (;;) {{
        long count = 0;
        int found;
{lines(reads)}
        if (bayesbin_predict({self._names()}, {results})) {{
            fprintf(stderr, "a whole number is out of range\\n");
            return 1;
        }}
{lines(prints)}
    }}
}}
"""


def _place(buffer: Buffer | None) -> str:
    assert buffer is not None
    return f"work->{buffer.dtype} + {buffer.offset}"


def _comment(text: str) -> str:
    """Text that neither ends a comment nor begins another."""
    return " ".join(text.replace("*", "").split())


def _counted(shape: Sequence[int]) -> str:
    """A shape in words."""
    count = math.prod(shape)
    sizes = f", {' x '.join(map(str, shape))} in C order" if len(shape) > 1 else ""
    return f"{count} number{'' if count == 1 else 's'}{sizes}"


def _counted_words(program: Program) -> str:
    return (
        f"A binary network of {program.num_weights:,} binary weights, {program.num_draws} draw(s)."
    )
