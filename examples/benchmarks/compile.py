"""From a network to a program: seconds to compile six networks, and to calibrate an ensemble.

Compiling is the export of the network, its steps folded for all draws, the kernels made ready, and one input
predicted. The first compilation of a process loads what torch exports with, and is reported by itself.
Calibrating computes the statistics of batch normalisation for some draws and for the mode, over some images:
draw by draw in torch, as for networks that do not compile, and by the compiled program, in turns. Ratios are
medians over the turns.

    python examples/benchmarks/compile.py --out compile.json
    python examples/benchmarks/compile.py --report compile.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bayesbin as bb
from bayesbin.ensemble.in_torch import statistics_of_draws
from bayesbin.nn import binary_sites, conv_net, mlp, resnet20, to_binary_
from bayesbin.runtime import kernel_isa


class Encoder(nn.Module):
    """A Transformer over the rows of an image, two layers."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self.embed = nn.Linear(28, 64)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x.squeeze(1))).mean(1))


class Reader(nn.Module):
    """An LSTM over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 32)
        self.lstm = nn.LSTM(32, 64, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(x))[0][:, -1])


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "perceptron 784-512-512-10": (lambda: mlp(784, [512, 512], 10), lambda n: torch.randn(n, 784)),
    "signs 784-512-512-10": (
        lambda: mlp(784, [512, 512], 10, activation="sign"),
        lambda n: torch.randn(n, 784),
    ),
    "convolutions 32C5-64C5-512-10": (
        lambda: conv_net((1, 28, 28)),
        lambda n: torch.randn(n, 1, 28, 28),
    ),
    "ResNet-20": (resnet20, lambda n: torch.randn(n, 3, 32, 32)),
    "Transformer encoder": (Encoder, lambda n: torch.randn(n, 1, 28, 28)),
    "embedding and LSTM": (Reader, lambda n: torch.randint(0, 100, (n, 20))),
}


CALIBRATED = ["convolutions 32C5-64C5-512-10", "perceptron 784-512-512-10"]


def ensemble_of(name: str, draws: int) -> tuple[bb.Ensemble, Tensor]:
    """An ensemble at random natural parameters, and one input."""
    torch.manual_seed(0)
    build, inputs = NETWORKS[name]
    net = to_binary_(build()).eval()
    sites = binary_sites(net).items()
    posterior = bb.BinaryPosterior({site: torch.randn(found.shape) for site, found in sites})
    return bb.Ensemble(net, posterior, draws), inputs(1)


def compile_block(name: str, draws: int, turns: int) -> dict[str, Any]:
    """Seconds from an ensemble to its first prediction, of one input, turn by turn."""
    seconds = []
    for _ in range(turns):
        ensemble, x = ensemble_of(name, draws)
        start = time.perf_counter()
        ensemble.calibrate(None).predict(x)
        seconds.append(time.perf_counter() - start)
    return {"network": name, "draws": draws, "seconds": seconds}


def calibrate_block(name: str, draws: int, images: int, turns: int) -> dict[str, Any]:
    """Seconds of both ways to calibrate, in turns; the program is compiled before."""
    found: dict[str, list[float]] = {"in torch": [], "by the program": []}
    ensemble, _ = ensemble_of(name, draws)
    x = NETWORKS[name][1](images)
    ensemble.calibrate(x[:2])
    (member,) = ensemble._members
    for _ in range(turns):
        start = time.perf_counter()
        for _each in statistics_of_draws(member, [*range(draws), None], [(x,)]):
            pass
        found["in torch"].append(time.perf_counter() - start)
        start = time.perf_counter()
        ensemble.calibrate(x)
        found["by the program"].append(time.perf_counter() - start)
    return {"network": name, "draws": draws, "images": images, "seconds": found}


def report(record: dict[str, Any]) -> str:
    """Two tables; medians over turns."""
    lines = [
        f"Kernels: {record['kernel']}, on {record['machine']}, {record['threads']} threads.",
        "",
        f"The first compilation of a process took {record['first']:.2f} s.",
        "",
        "| network | draws | seconds to compile |",
        "|---|---|---|",
    ]
    for block in record["compile"]:
        median = statistics.median(block["seconds"])
        lines.append(f"| {block['network']} | {block['draws']} | {median:.2f} |")
    lines += [
        "",
        "| calibration | draws | images | in torch, s | by the program, s | ratio (quartiles) |",
        "|---|---|---|---|---|---|",
    ]
    for block in record["calibrate"]:
        before, after = block["seconds"]["in torch"], block["seconds"]["by the program"]
        ratios = sorted(a / b for a, b in zip(before, after, strict=True))
        low, high = (ratios[round(share * (len(ratios) - 1))] for share in (0.25, 0.75))
        lines.append(
            f"| {block['network']} | {block['draws']} | {block['images']} | "
            f"{statistics.median(before):.2f} | {statistics.median(after):.2f} | "
            f"{statistics.median(ratios):.1f} ({low:.1f} to {high:.1f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=32, help="of the ensembles that are compiled")
    parser.add_argument("--calibrate", nargs="+", default=CALIBRATED)
    parser.add_argument("--calibration-draws", type=int, default=100)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("compile.json"))
    parser.add_argument("--report", type=Path, help="print the tables of a JSON file")
    parser.add_argument("--smoke", action="store_true", help="one turn of little")
    args = parser.parse_args()
    if args.report:
        print(report(json.loads(args.report.read_text())))
        return
    names = list(NETWORKS)
    if args.smoke:
        args.draws, args.calibration_draws, args.images, args.turns = 2, 2, 8, 1
        names, args.calibrate = names[:1], names[:1]
    torch.set_num_threads(args.threads)
    record: dict[str, Any] = {
        "benchmark": "compile", "torch": torch.__version__, "threads": args.threads,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "kernel": kernel_isa(), "first": 0.0, "compile": [], "calibrate": [],
    }  # fmt: skip
    if args.out.exists():
        record = json.loads(args.out.read_text())
    if not record["first"]:
        record["first"] = compile_block(names[0], args.draws, 1)["seconds"][0]
    for name in names:
        if name not in {block["network"] for block in record["compile"]}:
            record["compile"].append(compile_block(name, args.draws, args.turns))
            args.out.write_text(json.dumps(record, indent=1))
    for name in args.calibrate:
        if name not in {block["network"] for block in record["calibrate"]}:
            sizes = (args.calibration_draws, args.images, args.turns)
            record["calibrate"].append(calibrate_block(name, *sizes))
            args.out.write_text(json.dumps(record, indent=1))
    print(report(record))


if __name__ == "__main__":
    main()
