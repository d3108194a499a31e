"""The kernels one by one: how near they come to the processor's peak, and convolutions beside torch.

The first part compiles native/peak.cpp (cmake and a C++ compiler are needed) and runs it: products, or drawn
weights, per nanosecond on a layer of 2048 x 2048 weights and 1024 rows, beside the rate of the instructions
that each kernel is bound by. The second takes turns between a program of one step and F.conv2d, float32 at
set_float32_matmul_precision("medium"), both on one thread. Ratios are medians over the turns.

    python examples/benchmarks/kernels.py --out kernels.json
    python examples/benchmarks/kernels.py --report kernels.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from bayesbin.core.canonical import pack_words
from bayesbin.runtime import native_backend
from bayesbin.runtime.program import Program, Step, StoredSite, Value

ROOT = Path(__file__).parents[2]
# Channels, height and width of an image; units; the kernel's height and width; the padding
CONVOLUTIONS = [
    ((1, 28, 28), 32, (5, 5), (0, 0)),
    ((32, 12, 12), 64, (5, 5), (0, 0)),
    ((64, 14, 14), 64, (3, 3), (1, 1)),
]


def peaks(turns: int) -> dict[str, Any]:
    """What the compiled program prints."""
    with tempfile.TemporaryDirectory() as build:
        configure = ["cmake", "-S", str(ROOT), "-B", build, "-DBAYESBIN_PEAK=ON"]
        for command in (configure, ["cmake", "--build", build]):
            subprocess.run(command, check=True, capture_output=True)
        program = [str(Path(build) / "peak"), str(turns)]
        return json.loads(subprocess.run(program, check=True, capture_output=True).stdout)


def seconds(run: Callable[[], Any], repeat: int) -> float:
    """Processor time of one run by this thread: other work on the machine counts less."""
    start = time.thread_time()
    for _ in range(repeat):
        run()
    return (time.thread_time() - start) / repeat


def program(
    kind: str, shape: tuple[int, ...], plus: np.ndarray, kernel: Any, padding: Any
) -> native_backend.NativeProgram:
    """One convolution, of the images or of their signs."""
    site = StoredSite((len(plus), shape[0], *kernel), pack_words(plus)[None])
    attributes = {
        "stride": (1, 1),
        "padding": tuple((each, each) for each in padding),
        "dilation": (1, 1),
        "groups": 1,
    }
    steps = [Step("conv", ("x", "w"), ("y",), "f4", attributes)]
    if kind == "sign":
        steps = [
            Step("sign", ("x",), ("s",)),
            Step("conv", ("s", "w"), ("y",), "f4", attributes),
        ]
    made = Program({"x": Value(shape, "f4")}, {}, {"w": site}, tuple(steps), ("y",))
    return native_backend.NativeProgram(made)


def convolution(index: int, batch: int, turns: int) -> dict[str, Any]:
    """Seconds of every contender, taken in turns."""
    shape, units, kernel, padding = CONVOLUTIONS[index]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, *shape)).astype(np.float32)
    plus = rng.random((units, shape[0] * kernel[0] * kernel[1])) < 0.5
    weights = torch.from_numpy(np.where(plus, 1.0, -1.0).astype(np.float32))
    weights = weights.view(units, shape[0], *kernel)
    images = torch.from_numpy(x)
    programs = {kind: program(kind, shape, plus, kernel, padding) for kind in ("real", "sign")}
    runs: dict[str, Callable[[], Any]] = {
        "torch": lambda: F.conv2d(images, weights, padding=padding),
        "real": lambda: programs["real"].run([x], [0]),
        "sign": lambda: programs["sign"].run([x], [0]),
    }
    repeat = max(1, 64 // batch)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, run in runs.items():
            elapsed = seconds(run, repeat)
            if turn > 0:  # the first warms caches up
                taken[name].append(elapsed)
    pixels = [shape[i + 1] + 2 * padding[i] - kernel[i] + 1 for i in (0, 1)]
    return {"image": shape, "units": units, "kernel": kernel, "padding": padding, "batch": batch,
            "products": batch * pixels[0] * pixels[1] * plus.size, "seconds": taken}  # fmt: skip


def report(record: dict[str, Any]) -> str:
    """Two tables: the peaks, and the convolutions."""
    lines = [
        "| kernel | bound by | per ns | peak per ns | share of the peak |",
        "|---|---|---|---|---|",
    ]
    for row in record["peaks"]["kernels"]:
        known = row["ratio"] is not None
        peak = (f"{row['peak_per_ns']:.3g}", f"{row['ratio']:.0%}") if known else ("-", "-")
        lines.append(
            f"| {row['kernel']} | {row['bound_by']} | {row['per_ns']:.3g} | {peak[0]} | {peak[1]} |"
        )
    lines += [
        "",
        "| convolution, batch | torch, ms | real, ms | sign, ms | real is faster by | sign is faster by |",
        "|---|---|---|---|---|---|",
    ]
    for block in record["convolutions"]:
        image, kernel, taken = block["image"], block["kernel"], block["seconds"]
        name = f"{'x'.join(map(str, image))} to {block['units']}, {kernel[0]}x{kernel[1]}"
        ms = [f"{1000 * statistics.median(times):.3g}" for times in taken.values()]
        ratios = [
            statistics.median(a / b for a, b in zip(taken["torch"], taken[kind], strict=True))
            for kind in ("real", "sign")
        ]
        cells = [f"{name}, {block['batch']}", *ms, *(f"{ratio:.3g}" for ratio in ratios)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 1000])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("kernels.json"))
    parser.add_argument("--report", type=Path, help="print the tables of a JSON file")
    parser.add_argument("--smoke", action="store_true", help="one image, one turn")
    args = parser.parse_args()
    if args.report:
        print(report(json.loads(args.report.read_text())))
        return
    if args.smoke:
        args.batches, args.turns = [1], 1
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium")
    record: dict[str, Any] = {
        "benchmark": "kernels", "seed": 0, "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(), "isa": native_backend.isa(),
        "turns": args.turns, "peaks": peaks(args.turns), "convolutions": [],
    }  # fmt: skip
    with torch.no_grad():
        for index in range(len(CONVOLUTIONS)):
            for batch in args.batches:
                record["convolutions"].append(convolution(index, batch, args.turns))
    args.out.write_text(json.dumps(record, indent=1))
    print(report(record))


if __name__ == "__main__":
    main()
