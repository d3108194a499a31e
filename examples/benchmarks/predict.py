"""Time of averaging S drawn networks: the compiled program beside what torch and Pyro offer.

784-2048-2048-2048-10 with batch normalisation and ReLU or sign activations, and the convolutional network
32C5-64C5-512-10, weights at random natural parameters. All contenders take turns within one process, and
ratios are medians over the turns. Machines are noisy: read the quartiles too.

(a) naive: torch.bernoulli, to -1 and +1, F.linear, draw after draw
(b) best torch: 16-bit random integers compared with thresholds, float32 matrix products at
    set_float32_matmul_precision("medium"), or bfloat16 ones, whichever is faster
(c) vmap over all draws at once (batches up to 32: it holds every network in memory)
(d) pyro.infer.Predictive with the guide
(e) streaming: the networks of the ensemble, one after another, in torch

Beside the times: memory that a process needs more when it predicts, and the time per draw as draws are
added. A file that is there already is continued.

    python examples/benchmarks/predict.py --out predict.json
    python examples/benchmarks/predict.py --report predict.json
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pyro.infer import Predictive
from torch import Tensor, nn
from torch.nn import functional as F

import bayesbin as bb
from bayesbin.guides import AutoSignBernoulli
from bayesbin.nn import Classifier, conv_net, mlp, to_binary_
from bayesbin.runtime import kernel_isa

Contender = Callable[[Tensor], Any]
PRECISIONS = ("exact", "fast")


def make(kind: str, width: int) -> tuple[nn.Module, bb.BinaryPosterior, Any]:
    """Network, posterior and the sizes of one input."""
    torch.manual_seed(0)
    if kind == "conv":
        net, shape = conv_net((1, 28, 28)), (1, 28, 28)
    else:
        net, shape = mlp(784, [width] * 3, 10, activation=kind), (784,)
    net = to_binary_(net).eval()
    guide = AutoSignBernoulli(Classifier(net, dataset_size=1), init_scale=0.7)
    return net, guide.posterior(), (guide, shape)


def naive(net: nn.Module, posterior: bb.BinaryPosterior, num_samples: int) -> Contender:
    """(a): every draw by torch.bernoulli, in float32."""
    probs = {name: distribution.probs for name, distribution in posterior.items()}

    def predict(x: Tensor) -> Tensor:
        total: Any = 0.0
        for _ in range(num_samples):
            signs = {name: torch.bernoulli(p) * 2.0 - 1.0 for name, p in probs.items()}
            total = total + torch.func.functional_call(net, signs, (x,)).softmax(-1)
        return total / num_samples

    return predict


def best_torch(
    net: nn.Module, posterior: bb.BinaryPosterior, num_samples: int, dtype: torch.dtype
) -> Contender:
    """(b): 16 random bits per weight, four at a time, compared with a threshold."""
    thresholds = {
        name: (distribution.probs * 65536.0 - 32768.0).round().clamp(-32768, 32767).to(torch.int16)
        for name, distribution in posterior.items()
    }
    state = {k: v.to(dtype) for k, v in net.state_dict().items() if v.is_floating_point()}

    def signs(threshold: Tensor) -> Tensor:
        words = torch.empty(-(-threshold.numel() // 4), dtype=torch.int64).random_()
        bits = words.view(torch.int16)[: threshold.numel()].view_as(threshold)
        return (bits < threshold).to(dtype).mul_(2.0).sub_(1.0)

    def predict(x: Tensor) -> Tensor:
        total: Any = 0.0
        for _ in range(num_samples):
            drawn = {name: signs(threshold) for name, threshold in thresholds.items()}
            logits = torch.func.functional_call(net, state | drawn, (x.to(dtype),))
            total = total + logits.float().softmax(-1)
        return total / num_samples

    return predict


def by_vmap(net: nn.Module, posterior: bb.BinaryPosterior, num_samples: int) -> Contender:
    """(c): all networks at once."""

    def predict(x: Tensor) -> Tensor:
        stacked = {
            name: torch.bernoulli(distribution.probs.expand(num_samples, *distribution.probs.shape))
            * 2.0
            - 1.0
            for name, distribution in posterior.items()
        }
        run = torch.vmap(lambda signs: torch.func.functional_call(net, signs, (x,)).softmax(-1))
        return run(stacked).mean(0)

    return predict


def by_pyro(net: nn.Module, guide: Any, num_samples: int) -> Contender:
    """(d): the network as a Pyro model."""
    model = Classifier(net, dataset_size=10**9)
    predictive = Predictive(model, guide=guide, num_samples=num_samples, return_sites=("_RETURN",))
    return lambda x: F.one_hot(predictive(x)["_RETURN"], 10).float().mean(0)


def by_network(net: nn.Module, posterior: bb.BinaryPosterior, num_samples: int) -> Contender:
    """(e): each draw as a network of torch; what an ensemble does that cannot be compiled."""
    worker = copy.deepcopy(net)
    sites = bb.nn.binary_sites(worker)

    def predict(x: Tensor) -> Tensor:
        total: Any = 0.0
        for index in range(num_samples):
            for name, signs in posterior.signs(index).items():
                sites[name].signs.copy_(signs)
            total = total + worker(x).double().softmax(-1)
        return total / num_samples

    return predict


def contenders(kind: str, width: int, batch: int, draws: int, threads: int) -> dict[str, Contender]:
    net, posterior, (guide, shape) = make(kind, width)
    found: dict[str, Contender] = {
        "naive torch": naive(net, posterior, draws),
        "best torch, float32": best_torch(net, posterior, draws, torch.float32),
        "best torch, bfloat16": best_torch(net, posterior, draws, torch.bfloat16),
        "Pyro Predictive": by_pyro(net, guide, draws),
        "streaming": by_network(net, posterior, draws),
    }
    if batch <= 32 and kind != "conv":
        found["vmap"] = by_vmap(net, posterior, draws)
    ensemble = bb.Ensemble(Classifier(net, dataset_size=1), posterior, draws).calibrate(None)
    for precision in PRECISIONS:
        if kind != "conv" or precision == "exact":  # convolutions have no fast kernels
            predictor = ensemble.compile(precision, threads=threads, input_shape=shape)
            found[f"program, {precision}"] = lambda x, p=predictor: p.predict(x.numpy())
    return found


def time_block(args: argparse.Namespace, kind: str, batch: int, draws: int, threads: int) -> Any:
    """Seconds of every contender, taken in turns after one draw each to warm up."""
    torch.set_num_threads(threads)
    *_, (_, shape) = make(kind, args.width)
    x = torch.randn(batch, *shape)
    with torch.no_grad():
        for run in contenders(kind, args.width, batch, 1, threads).values():
            run(x)
        runs = contenders(kind, args.width, batch, draws, threads)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.turns):
            for name, run in runs.items():
                start = time.perf_counter()
                run(x)
                seconds[name].append(time.perf_counter() - start)
    return {"network": kind, "batch": batch, "draws": draws, "threads": threads, "seconds": seconds}


def grow_block(args: argparse.Namespace, draws: int) -> dict[str, Any]:
    """Time per draw and extra memory of some contenders, in processes of their own, at batch 32."""
    found = {}
    for name in ("naive torch", "program, exact", "program, fast"):
        if name == "naive torch" and draws > 100:
            continue  # minutes, for a number that the others tell already
        command = [sys.executable, __file__, "--alone", name, "--width", str(args.width)]
        command += ["--draws", str(draws), "--batches", "32"]
        found[name] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return {"draws": draws, "contenders": found}


def alone(name: str, width: int, batch: int, draws: int) -> dict[str, float]:
    """Milliseconds per draw, and how much memory predicting takes at its peak; all on one thread."""
    torch.set_num_threads(1)
    x = torch.randn(batch, 784)
    run = contenders("relu", width, batch, draws, 1)[name]
    with torch.no_grad():
        torch.mm(torch.randn(256, 256), torch.randn(256, 256))  # what torch itself sets up
        before = forget_peak_memory()
        start = time.perf_counter()
        run(x)
        seconds = time.perf_counter() - start
    return {"ms_per_draw": 1e3 * seconds / draws, "extra_megabytes": status("VmHWM") - before}


def forget_peak_memory() -> float:
    """Megabytes in use, what was freed given back and the peak so far forgotten; Linux alone has this."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(name: str) -> float:
    """Megabytes, as the system counts them for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def report(record: dict[str, Any]) -> str:
    """Milliseconds per draw, and how many times faster the program is; medians over turns."""
    lines = [
        f"Kernels: {record['kernel']}, on {record['machine']}.",
        "",
        "| network, batch (threads) | naive | best torch | vmap | Pyro | streaming | exact | fast | "
        "exact over naive | over best | fast over naive | over best |",
        "|" + "---|" * 12,
    ]
    for block in record["blocks"]:
        seconds, draws = block["seconds"], block["draws"]
        best = min(
            ("best torch, float32", "best torch, bfloat16"),
            key=lambda name, seconds=seconds: statistics.median(seconds[name]),
        )
        cells = [
            f"{1e3 * statistics.median(seconds[name]) / draws:.3g}" if name in seconds else "-"
            for name in ("naive torch", best, "vmap", "Pyro Predictive", "streaming",
                         "program, exact", "program, fast")
        ]  # fmt: skip
        for precision in PRECISIONS:
            ours = seconds.get(f"program, {precision}")
            cells += [_ratio(seconds[name], ours) for name in ("naive torch", best)]
        key = f"{block['network']}, {block['batch']} ({block['threads']})"
        lines.append(f"| {key} | {' | '.join(cells)} |")
    if not record["growth"]:
        return "\n".join(lines)
    names = ("naive torch", "program, exact", "program, fast")
    lines += [
        "",
        f"| draws | {' | '.join(f'{name}: ms per draw | extra MB' for name in names)} |",
        "|" + "---|" * (1 + 2 * len(names)),
    ]
    for block in record["growth"]:
        cells = []
        for name in names:
            row = block["contenders"].get(name)
            cells += ["-", "-"] if row is None else [
                f"{row['ms_per_draw']:.3g}", f"{row['extra_megabytes']:.1f}"
            ]  # fmt: skip
        lines.append(f"| {block['draws']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(theirs: list[float], ours: list[float] | None) -> str:
    if ours is None:
        return "-"
    return f"{statistics.median(a / b for a, b in zip(theirs, ours, strict=True)):.3g}"


def processor() -> str:
    """The processor's name where the system tells, and its number of cores."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":")[1] for line in info.read_text().splitlines() if "model name" in line
        ]
        name = names[0].strip() if names else name
    return f"{name}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["relu", "sign", "conv"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 1000])
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--growth", type=int, nargs="*", default=[1, 10, 100, 1000])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("predict.json"))
    parser.add_argument("--report", type=Path, help="print the tables of a JSON file")
    parser.add_argument("--smoke", action="store_true", help="small networks, one turn")
    parser.add_argument("--alone", metavar="NAME", help="one contender in this process, as JSON")
    args = parser.parse_args()
    if args.report:
        print(report(json.loads(args.report.read_text())))
        return
    if args.alone:
        print(json.dumps(alone(args.alone, args.width, args.batches[0], args.draws)))
        return
    if args.smoke:
        args.batches, args.draws, args.width, args.turns = [2], 3, 32, 1
        args.threads, args.growth = [1], [1, 2]
    torch.set_float32_matmul_precision("medium")
    record: dict[str, Any] = {
        "benchmark": "predict", "width": args.width, "torch": torch.__version__, "turns": args.turns,
        "machine": processor(), "kernel": kernel_isa(), "blocks": [], "growth": [],
    }  # fmt: skip
    if args.out.exists():
        record = json.loads(args.out.read_text())
    done = {tuple(b[k] for k in ("network", "batch", "threads")) for b in record["blocks"]}
    for threads in args.threads:
        for kind in args.networks:
            for batch in args.batches:
                if (kind, batch, threads) in done:
                    continue
                record["blocks"].append(time_block(args, kind, batch, args.draws, threads))
                args.out.write_text(json.dumps(record, indent=1))
    for draws in args.growth:
        if draws not in {block["draws"] for block in record["growth"]}:
            record["growth"].append(grow_block(args, draws))
            args.out.write_text(json.dumps(record, indent=1))
    print(report(record))


if __name__ == "__main__":
    main()
