"""Model files: their size, the time from nothing to a first prediction, images per second.

Multilayer perceptrons with batch normalisation, 784-WIDTHS-10, weights at random natural parameters,
statistics of normalisation per draw. Cold starts are whole processes, interpreter and all, in turns:

    interpreter    python -c pass
    numpy          import numpy
    file           bayesbin.load of the file, first prediction; neither torch nor pyro
    torch          the ensemble from its safetensors file, compiled, first prediction

    python examples/benchmarks/ship.py --data mnist_folder --out ship.json
    python examples/benchmarks/ship.py --report ship.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

import bayesbin as bb
from bayesbin.core.preprocessing import Preprocessing
from bayesbin.data import idx_folder
from bayesbin.guides import AutoSignBernoulli
from bayesbin.nn import Classifier, mlp, to_binary_
from bayesbin.runtime import kernel_isa

FROM_FILE = """
import numpy as np
import bayesbin as bb
bb.load({model!r}, threads={threads}).predict(np.load({x!r}))
"""
IN_TORCH = """
import numpy as np, bayesbin as bb
from bayesbin.nn import Classifier, mlp, to_binary_
from bayesbin.runtime import kernel_isa
model = Classifier(to_binary_(mlp(784, {widths}, 10)), dataset_size=1)
ensemble = bb.Ensemble.load({ensemble!r}, model)
ensemble.compile(threads={threads}).predict(np.load({x!r}))
"""


def make(widths: list[int], draws: int) -> bb.Ensemble:
    torch.manual_seed(0)
    model = Classifier(to_binary_(mlp(784, widths, 10)).eval(), dataset_size=1)
    posterior = AutoSignBernoulli(model, init_scale=0.7).posterior()
    return bb.Ensemble(model, posterior, draws)


def sizes(args: argparse.Namespace, widths: list[int], folder: Path) -> list[dict[str, Any]]:
    """Bytes of the files of one network, beside float32 weights and a bit per weight and draw."""
    x = torch.randn(1000, 784)
    rows = []
    for draws in args.file_draws:
        ensemble = make(widths, draws)
        weights = ensemble.posteriors[0].num_weights
        net = ensemble.calibrate(x).network(0)
        state = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
        checkpoint = len(safetensors.torch.save(state))
        for kind, data in (("running", None), ("per draw", x)):
            predictor = ensemble.calibrate(data).compile()
            for contents in ("draws", "posterior"):
                path = predictor.save(folder / "sized.bbn", contents=contents)
                per_weight = draws if contents == "draws" else 17
                rows.append({
                    "widths": widths, "weights": weights, "draws": draws,
                    "contents": contents, "normalisation": kind, "bytes": path.stat().st_size,
                    "bits": weights * per_weight, "float_checkpoint": checkpoint,
                })  # fmt: skip
    return rows


def cold_starts(args: argparse.Namespace, widths: list[int], folder: Path) -> dict[str, Any]:
    """Seconds of whole processes, taken in turns."""
    ensemble = make(widths, args.draws).calibrate(None)
    model, saved, x = (
        str(folder / name) for name in ("cold.bbn", "cold.safetensors", "cold_x.npy")
    )
    ensemble.compile().save(model)
    ensemble.save(saved)
    np.save(x, np.random.default_rng(0).standard_normal((1, 784)).astype(np.float32))
    names = {"model": model, "ensemble": saved, "x": x, "draws": args.draws, "widths": widths,
             "threads": args.threads}  # fmt: skip
    programs = {"interpreter": "pass", "numpy": "import numpy", "file": FROM_FILE.format(**names),
                "torch": IN_TORCH.format(**names)}  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(args.turns + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], check=True, env=os.environ)
            if turn:  # the first run warms the disk's cache up
                seconds[name].append(time.perf_counter() - start)
    return {"widths": widths, "draws": args.draws, "threads": args.threads, "seconds": seconds}


def throughput(args: argparse.Namespace, widths: list[int], folder: Path) -> dict[str, Any]:
    """Seconds for all images, block by block."""
    preprocessing, pixels = Preprocessing(255.0, 0.13, 0.31), None
    if args.data:
        raw = idx_folder(args.data, normalize=False)
        images = torch.cat([raw.train.x, raw.test.x])
        pixels = images.mul(255.0).round().to(torch.uint8).numpy()
    else:
        pixels = np.random.default_rng(0).integers(0, 256, (args.images, 784), dtype=np.uint8)
    predictor = make(widths, args.draws).calibrate(None).compile(precision=args.precision)
    path = predictor.save(folder / "blocks.bbn", preprocessing=preprocessing)
    predictive = bb.load(path, threads=args.threads)
    seconds = []
    for first in range(0, len(pixels), args.block):
        start = time.perf_counter()
        predictive.predict(pixels[first : first + args.block])
        seconds.append(time.perf_counter() - start)
    return {"widths": widths, "draws": args.draws, "threads": args.threads, "images": len(pixels),
            "source": "idx files" if args.data else "noise", "block": args.block,
            "precision": args.precision, "seconds": seconds}  # fmt: skip


def name_of(widths: list[int]) -> str:
    return "-".join(map(str, [784, *widths, 10]))


def report(record: dict[str, Any]) -> str:
    """Three tables: sizes, cold starts, images per second."""
    lines = [
        "| network | contents | normalisation | draws | kB | over its bits | of the float checkpoint |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in record["sizes"]:
        over, share = 8 * row["bytes"] / row["bits"] - 1.0, row["bytes"] / row["float_checkpoint"]
        lines.append(
            f"| {name_of(row['widths'])} | {row['contents']} | {row['normalisation']} | "
            f"{row['draws']} | {row['bytes'] / 1000:,.1f} | {over:+.1%} | {share:.3f} |"
        )
    lines += [
        "",
        "| network, draws, threads | process | ms, median | quartiles |",
        "|---|---|---|---|",
    ]
    for block in record["cold_starts"]:
        key = f"{name_of(block['widths'])}, {block['draws']}, {block['threads']}"
        for name, seconds in block["seconds"].items():
            low, middle, high = np.quantile(1000 * np.array(seconds), [0.25, 0.5, 0.75])
            lines.append(f"| {key} | {name} | {middle:.0f} | {low:.0f} .. {high:.0f} |")
    lines += ["", "| network, draws, threads | images | blocks of | precision | seconds | images/s |",
              "|---|---|---|---|---|---|"]  # fmt: skip
    for block in record["throughput"]:
        key = f"{name_of(block['widths'])}, {block['draws']}, {block['threads']}"
        total = sum(block["seconds"])
        lines.append(
            f"| {key} | {block['images']:,} ({block['source']}) | {block['block']:,} | "
            f"{block['precision']} | {total:.1f} | {block['images'] / total:,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["512,512", "2048,2048,2048"])
    parser.add_argument("--draws", type=int, default=32, help="of cold starts and throughput")
    parser.add_argument("--file-draws", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=7, help="cold starts of each process")
    parser.add_argument("--data", help="folder of MNIST's idx files; without it, noise")
    parser.add_argument("--images", type=int, default=70_000, help="of noise")
    parser.add_argument("--block", type=int, default=10_000)
    parser.add_argument("--precision", default="exact")
    parser.add_argument("--out", type=Path, default=Path("ship.json"))
    parser.add_argument("--report", type=Path, help="print the tables of a JSON file")
    parser.add_argument("--smoke", action="store_true", help="a small network, one turn")
    args = parser.parse_args()
    if args.report:
        print(report(json.loads(args.report.read_text())))
        return
    if args.smoke:
        args.networks, args.draws, args.file_draws, args.turns = ["16"], 3, [2], 1
        args.images, args.block = 50, 30
    networks = [[int(width) for width in network.split(",")] for network in args.networks]
    record: dict[str, Any] = {
        "benchmark": "ship", "torch": torch.__version__, "numpy": np.__version__, "seed": 0,
        "python": platform.python_version(), "machine": platform.processor() or platform.machine(),
        "kernel": kernel_isa(), "sizes": [], "cold_starts": [], "throughput": [],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for widths in networks:
            record["sizes"] += sizes(args, widths, Path(folder))
            record["cold_starts"].append(cold_starts(args, widths, Path(folder)))
            record["throughput"].append(throughput(args, widths, Path(folder)))
            args.out.write_text(json.dumps(record, indent=1))
    record["median_ratio_of_cold_starts"] = [
        statistics.median(a / b for a, b in zip(c["seconds"]["torch"], c["seconds"]["file"], strict=True))
        for c in record["cold_starts"]
    ]  # fmt: skip
    args.out.write_text(json.dumps(record, indent=1))
    print(report(record))


if __name__ == "__main__":
    main()
