"""pack, predict, unpack, inspect: model files. All but pack, and predict with a run, work without torch."""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path
from typing import Any

from bayesbin.experiments.cli.verbs import (
    RUN_DATA_HELP,
    add_verb,
    choice_options,
    chosen_run,
    path,
    progress_of,
    progress_option,
    require_writable,
    run_options,
)


def add_verbs(verbs: Any) -> None:
    """Add them to the parser."""
    model: dict[str, Any] = {
        "metavar": "MODEL.bbn",
        "type": path,
        "help": "what `bayesbin pack` wrote",
    }
    pack = add_verb(verbs, "pack", _pack, "write a run as one file that predicts without torch")
    pack.set_defaults(on_interrupt="Nothing was changed.")
    run_options(pack, "pack")
    pack.add_argument("--out", metavar="MODEL.bbn", type=path, required=True, help="the file")
    pack.add_argument(
        "--samples", "--num-samples", type=int, default=32, dest="num_samples", metavar="S",
        help="draws; 0: the mode (default: 32)",
    )  # fmt: skip
    pack.add_argument(
        "--posterior", action="store_true",
        help="17 bits per weight to draw from, instead of a bit per weight and draw",
    )  # fmt: skip
    pack.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    pack.add_argument("--precision", default="exact", help="exact (default) or fast")

    predict = add_verb(verbs, "predict", _predict, "predict with a model file, or a run")
    predict.set_defaults(
        on_interrupt="With --blocks the same command goes on; else nothing was written."
    )
    predict.add_argument(
        "model", metavar="MODEL", type=path,
        help="what `bayesbin pack` wrote; or the folder of a run",
    )  # fmt: skip
    predict.add_argument(
        "inputs", metavar="INPUT.npy", type=path, help="an array with a row for each input"
    )
    predict.add_argument(
        "--out", metavar="FILE.npy", type=path,
        help="where probabilities of classes or labels go (of a regressor and of counts: columns of mean, "
        "aleatoric and epistemic variance; of other networks: mean and variance of the outputs); a name that "
        "ends in .csv gets what is printed",
    )  # fmt: skip
    predict.add_argument(
        "--blocks", metavar="DIR", type=path,
        help="for arrays larger than memory: predict block by block into .npy files in this folder, and go "
        "on there if begun",
    )  # fmt: skip
    predict.add_argument(
        "--rows-per-block", type=int, default=4096, metavar="B", help="(default: 4096)"
    )
    predict.add_argument(
        "--part", type=_part, default=(0, 1), metavar="I/N",
        help="of N processes that share the blocks this is number I, from 0",
    )  # fmt: skip
    progress_option(predict)
    raw = predict.add_mutually_exclusive_group()
    raw.add_argument(
        "--raw", action="store_true",
        help="preprocess the inputs (default: if they are whole numbers, in whatever type)",
    )  # fmt: skip
    raw.add_argument(
        "--as-is", action="store_true", help="do not preprocess them, whatever they are"
    )
    predict.add_argument("--threads", type=int, help="(default: all)")
    of_run = predict.add_argument_group("of the folder of a run")
    choice_options(of_run, "use")
    of_run.add_argument("--data", metavar="FOLDER", type=path, help=RUN_DATA_HELP)
    of_run.add_argument("--num-samples", type=int, help="draws; 0: the mode (default: 32)")
    of_run.add_argument("--seed", type=int, help="of the draws (default: 0)")

    unpack = add_verb(
        verbs,
        "unpack",
        _unpack,
        "a model file as arrays of its weights, an ONNX graph, or C source",
    )
    unpack.set_defaults(on_interrupt="Nothing was written.")
    unpack.add_argument("model", **model)
    out = unpack.add_mutually_exclusive_group(required=True)
    out.add_argument(
        "--out", metavar="FILE", type=path,
        help="int8 arrays of -1 and +1, by name: .npz or .safetensors",
    )  # fmt: skip
    out.add_argument(
        "--onnx", metavar="FILE", type=path,
        help="an ONNX graph of the draws and their mean, which takes raw inputs",
    )  # fmt: skip
    out.add_argument(
        "--c", metavar="DIR", type=path,
        help="a folder for C99 source that predicts one input and needs nothing but the C library",
    )  # fmt: skip
    which = unpack.add_mutually_exclusive_group()
    which.add_argument(
        "--draw", type=int, metavar="I",
        help="one draw (default: of arrays draw 0, of ONNX and C all of them)",
    )  # fmt: skip
    which.add_argument(
        "--all", action="store_true", help="all draws; of arrays along a first dimension"
    )
    which.add_argument("--mode", action="store_true", help="the mode, of a file of the posterior")

    inspect = add_verb(verbs, "inspect", _inspect, "steps, draws, bytes and origin of a model file")
    inspect.set_defaults(on_interrupt="")
    inspect.add_argument("model", **model)
    inspect.add_argument(
        "--profile", type=int, nargs="?", const=100, metavar="B",
        help="measure the microseconds per step and draw for B inputs (default: 100)",
    )  # fmt: skip
    inspect.add_argument("--threads", type=int, default=1, help="to measure with (default: 1)")


def _pack(arguments: argparse.Namespace) -> tuple[Any, str]:
    from bayesbin.experiments import pack_run
    from bayesbin.runtime.inspection import inspect

    require_writable(arguments.out)
    path = pack_run(
        chosen_run(arguments, arguments.folder),
        arguments.out,
        num_samples=arguments.num_samples,
        seed=arguments.seed,
        contents="posterior" if arguments.posterior else "draws",
        precision=arguments.precision,
        data_folder=arguments.data,
    )
    found = inspect(path)
    return found.to_dict(), f"{found}\n\nnext: bayesbin predict {path} INPUT.npy"


def _predict(arguments: argparse.Namespace) -> tuple[Any, str]:
    import numpy as np

    if arguments.out:
        _require_ending(arguments.out, ".npy", ".csv")
        require_writable(arguments.out)
    preprocess = True if arguments.raw else False if arguments.as_is else None
    found: Any
    if Path(arguments.model).is_dir():
        found, labels = _predict_run(arguments, preprocess)
    else:
        _require_model_options(arguments)
        if arguments.blocks:
            return _predict_blocks(arguments, preprocess)
        from bayesbin.runtime.predictor import load

        predictor = load(arguments.model, arguments.threads)
        found, labels = predictor.predict(_array(arguments.inputs), preprocess), predictor.labels
    columns, saved = _columns(found, labels)
    if arguments.out:
        from bayesbin.core.files import write_atomically

        buffer = io.BytesIO()
        if arguments.out.endswith(".csv"):
            buffer.write(_csv(columns).encode())
        else:
            np.save(buffer, saved)
        write_atomically(arguments.out, buffer.getvalue())
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    report = {"model": str(arguments.model), "num_samples": found.num_samples, "out": arguments.out}
    return report | {"rows": rows}, _table(columns)


def _columns(found: Any, labels: Any) -> tuple[dict[str, list[Any]], Any]:
    """A prediction as columns, an entry for each input, and as the array that is saved."""
    import numpy as np

    if hasattr(found, "log_probs_absent"):
        return _label_columns(found, labels), found.probs
    if hasattr(found, "probs"):
        best = found.probs.argmax(-1)
        names = labels or tuple(map(str, range(found.probs.shape[-1])))
        columns = {
            "label": np.array(names, dtype=object)[best].tolist(),
            "probability": found.probs.max(-1).tolist(),
            "entropy": found.entropy.tolist(),
            "mutual_information": found.mutual_information.tolist(),
        }
        return columns, found.probs
    variances = ("aleatoric_variance", "epistemic_variance")
    if hasattr(found, variances[0]):
        shown, kept = ("mean", "std", *variances), ("mean", *variances)
    else:
        shown, kept = ("mean", "std"), ("mean", "variance")
    if isinstance(found.mean, tuple):
        raise ValueError(
            f"expected a network with one output for the command line, got {len(found.mean)}; use "
            "bayesbin.load(path).predict(x) in Python."
        )
    columns = {name: getattr(found, name).tolist() for name in shown}
    return columns, np.stack([getattr(found, name) for name in kept], axis=1)


def _label_columns(found: Any, labels: Any) -> dict[str, list[Any]]:
    """Of labels: those that are more likely to hold than not, and the numbers of all."""
    columns = {}
    if found.probs.ndim == 2:
        names = labels or tuple(map(str, range(found.probs.shape[1])))
        columns["labels"] = [
            [name for name, holds in zip(names, row, strict=True) if holds]
            for row in found.probs > 0.5
        ]
    numbers = ("probs", "entropy", "mutual_information")
    return columns | {name: getattr(found, name).tolist() for name in numbers}


def _predict_run(arguments: argparse.Namespace, preprocess: bool | None) -> tuple[Any, Any]:
    """The prediction of a run, and what its outputs stand for."""
    if arguments.blocks:
        raise ValueError("expected a model file for --blocks, got a run; pack it first.")
    from bayesbin.experiments import predict_run

    inputs = _array(arguments.inputs)
    run = chosen_run(arguments, arguments.model)
    found = predict_run(
        run,
        inputs,
        preprocess=preprocess,
        data_folder=arguments.data,
        num_samples=32 if arguments.num_samples is None else arguments.num_samples,
        seed=arguments.seed or 0,
    )
    return found, run.labels


def _require_model_options(arguments: argparse.Namespace) -> None:
    """Refuse options of a run beside a model file, whose draws were made when it was packed."""
    names = ("run", "task", "data", "num_samples", "seed")
    if given := [name for name in names if vars(arguments)[name] is not None]:
        raise ValueError(
            f"expected the folder of a run for --{given[0].replace('_', '-')}, got {arguments.model}; a "
            "model file has one network and its draws."
        )


def _predict_blocks(arguments: argparse.Namespace, preprocess: bool | None) -> tuple[Any, str]:
    from bayesbin.runtime.blocks import predict_blocks

    if arguments.out:
        raise ValueError("expected --out or --blocks, got both; blocks have a folder of their own.")
    require_writable(arguments.blocks, "folder")
    found = predict_blocks(
        arguments.model,
        arguments.inputs,
        arguments.blocks,
        rows_per_block=arguments.rows_per_block,
        part=arguments.part,
        preprocess=preprocess,
        threads=arguments.threads,
        progress=progress_of(arguments),
    )
    arrays = {name: list(array.shape) for name, array in found.arrays.items()}
    report = {
        "folder": str(found.folder),
        "arrays": arrays,
        "blocks": found.blocks,
        "done": found.done,
        "complete": found.complete,
    }
    shapes = ", ".join(f"{name}.npy {' x '.join(map(str, s))}" for name, s in arrays.items())
    return report, f"{found.done} of {found.blocks} blocks done in {found.folder}: {shapes}"


def _unpack(arguments: argparse.Namespace) -> tuple[Any, str]:
    if arguments.onnx or arguments.c:
        return _export(arguments)
    from bayesbin.runtime.unpacking import save_arrays, unpack

    draw = "mode" if arguments.mode else "all" if arguments.all else arguments.draw or 0
    which = draw if isinstance(draw, str) else f"draw {draw}"
    require_writable(arguments.out)
    arrays = unpack(arguments.model, draw)
    path = save_arrays(arguments.out, arrays)
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    lines = [f"{path}: {which}, -1 and +1 as int8"]
    lines += [f"{name}  {' x '.join(map(str, shape))}" for name, shape in shapes.items()]
    return {"out": str(path), "draw": draw, "arrays": shapes}, "\n".join(lines)


def _export(arguments: argparse.Namespace) -> tuple[Any, str]:
    """A model file as an ONNX graph or C source, of all draws or of one."""
    if arguments.mode:
        raise ValueError(
            "expected draws for an ONNX graph or C source; pack the mode with --samples 0, and unpack that."
        )
    draws = None if arguments.draw is None else [arguments.draw]
    which = "all draws" if draws is None else f"draw {arguments.draw}"
    if arguments.onnx:
        from bayesbin.compile.onnx_export import export_onnx

        require_writable(arguments.onnx)
        written = [export_onnx(arguments.model, arguments.onnx, draws)]
        out = arguments.onnx
    else:
        from bayesbin.compile.c_source import export_c

        require_writable(arguments.c, "folder")
        out = export_c(arguments.model, arguments.c, draws=draws)
        written = [out / name for name in ("model.h", "model.c", "main.c")]
    size = sum(path.stat().st_size for path in written)
    report = {"out": str(out), "draw": arguments.draw, "bytes": size}
    return report, f"{out}: {which}, {size:,} bytes"


def _inspect(arguments: argparse.Namespace) -> tuple[Any, str]:
    from bayesbin.runtime.inspection import inspect

    found = inspect(arguments.model, arguments.profile, arguments.threads)
    return found.to_dict(), str(found)


def _csv(columns: dict[str, list[Any]]) -> str:
    """The columns as text, with one for each of several numbers; labels that hold are in one field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names, cells = [], []
    for name, column in columns.items():
        several = bool(column) and isinstance(column[0], list) and name != "labels"
        parts = list(zip(*map(_flat, column), strict=True)) if several else [column]
        names += [f"{name}_{k}" for k in range(len(parts))] if several else [name]
        cells += parts
    writer.writerow(names)
    for row in zip(*cells, strict=True):
        writer.writerow([" ".join(each) if isinstance(each, list) else each for each in row])
    return text.getvalue()


def _flat(values: Any) -> list[Any]:
    if not isinstance(values, list):
        return [values]
    return [each for value in values for each in _flat(value)]


def _table(columns: dict[str, list[Any]]) -> str:
    heads = [name.replace("_", " ") for name in columns]
    cells = [[_cell(value) for value in column] for column in columns.values()]
    widths = [max(map(len, [head, *column])) for head, column in zip(heads, cells, strict=True)]
    rows = [heads, *zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def _cell(value: Any) -> str:
    """A text, a number, or several, cut where there are many."""
    if isinstance(value, list):
        text = f"[{' '.join(_cell(each) for each in value[:9])}{' ...' if len(value) > 9 else ''}]"
        return text if len(text) <= 60 else f"{text[:56]} ...]"
    return value if isinstance(value, str) else f"{value:.4f}"


def _array(path: str) -> Any:
    """The array in a .npy file; nothing in it is unpickled."""
    import numpy as np

    with open(path, "rb") as file:
        begin = file.read(6)
    if begin != b"\x93NUMPY":
        remedy = "save one array with numpy.save"
        if Path(path).suffix.lower() in (".csv", ".tsv", ".txt", ".dat"):
            remedy = (
                "numpy.save('inputs.npy', numpy.loadtxt(..., delimiter=',')) makes one of a table"
            )
        raise ValueError(f"expected an array of numbers in {path}, got another file; {remedy}.")
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, SyntaxError) as error:
        raise ValueError(
            f"expected an array of numbers in {path}, got another file ({error})."
        ) from error
    if found.dtype.kind not in "biuf":
        raise ValueError(f"expected an array of numbers in {path}, got one of {found.dtype}.")
    return found


def _part(text: str) -> tuple[int, int]:
    """I/N as numbers; argparse says what was wrong where it is not."""
    index, _, parts = text.partition("/")
    return int(index), int(parts)


def _require_ending(path: str, *endings: str) -> None:
    if Path(path).suffix not in endings:
        raise ValueError(f"expected a name that ends in {' or '.join(endings)}; got {path}.")
