"""Time of averaging S drawn networks: packed kernels beside what torch and Pyro offer.

784-2048-2048-2048-10 with batch normalisation and ReLU or sign activations, and the convolutional network
32C5-64C5-512-10, weights at random natural parameters. All contenders take turns within one process, and
ratios are medians over the turns. Machines are noisy: read the quartiles too.

(a) naive: torch.bernoulli, to -1 and +1, F.linear, draw after draw
(b) best torch: 16-bit random integers compared with thresholds, float32 matrix products at
    set_float32_matmul_precision("medium"), or bfloat16 ones, whichever is faster
(c) vmap over all draws at once (small batches and few draws only: it holds every network in memory)
(d) pyro.infer.Predictive with the guide

    python examples/benchmarks/predict.py --out predict.json
    python examples/benchmarks/predict.py --report predict.json
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
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
from bayesbin.predict import PackedPredictive

Contender = Callable[[Tensor], Any]


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
    probs = {name: law.probs for name, law in posterior.items()}

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
        name: (law.probs * 65536.0 - 32768.0).round().clamp(-32768, 32767).to(torch.int16)
        for name, law in posterior.items()
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
            name: torch.bernoulli(law.probs.expand(num_samples, *law.probs.shape)) * 2.0 - 1.0
            for name, law in posterior.items()
        }
        run = torch.vmap(lambda signs: torch.func.functional_call(net, signs, (x,)).softmax(-1))
        return run(stacked).mean(0)

    return predict


def by_pyro(net: nn.Module, guide: Any, num_samples: int) -> Contender:
    """(d): the network as a Pyro model."""
    model = Classifier(net, dataset_size=10**9)
    predictive = Predictive(model, guide=guide, num_samples=num_samples, return_sites=("_RETURN",))
    return lambda x: F.one_hot(predictive(x)["_RETURN"], 10).float().mean(0)


def contenders(args: argparse.Namespace, kind: str, batch: int) -> dict[str, Contender]:
    net, posterior, (guide, _) = make(kind, args.width)
    found: dict[str, Contender] = {
        "naive torch": naive(net, posterior, args.draws),
        "best torch, float32": best_torch(net, posterior, args.draws, torch.float32),
        "best torch, bfloat16": best_torch(net, posterior, args.draws, torch.bfloat16),
        "Pyro Predictive": by_pyro(net, guide, args.draws),
        "streaming predict": lambda x: bb.predict.predict(net, posterior, x, args.draws),
    }
    if batch <= 32 and args.draws <= 8:
        found["vmap"] = by_vmap(net, posterior, args.draws)
    for precision in ("exact", "fast"):
        packed = PackedPredictive(
            net, posterior, args.draws, precision=precision, threads=args.threads
        )
        found[f"packed, {precision}"] = packed.predict
    return found


def measure(args: argparse.Namespace, kind: str, batch: int) -> dict[str, Any]:
    """Seconds of every contender, taken in turns."""
    *_, (_, shape) = make(kind, args.width)
    x = torch.randn(batch, *shape)
    runs = contenders(args, kind, batch)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    peaks: dict[str, float] = {}
    with torch.no_grad():
        for turn in range(args.turns + 1):
            for name, run in runs.items():
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                start = time.perf_counter()
                run(x)
                elapsed = time.perf_counter() - start
                if turn == 0:  # not timed: it warms caches up, and shows the memory that is needed
                    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                    peaks[name] = (after - before) / 1024
                else:
                    seconds[name].append(elapsed)
    return {"network": kind, "batch": batch, "draws": args.draws, "threads": args.threads,
            "seconds": seconds, "extra_peak_megabytes": peaks}  # fmt: skip


def report(record: dict[str, Any]) -> str:
    """Milliseconds, and how many times faster the packed kernels are; medians over turns."""
    lines = [
        "| network, batch, draws, threads | contender | ms | exact is faster by | fast is faster by |",
        "|---|---|---|---|---|",
    ]
    for block in record["blocks"]:
        key = f"{block['network']}, {block['batch']}, {block['draws']}, {block['threads']}"
        for name, seconds in block["seconds"].items():
            ratios = []
            for precision in ("exact", "fast"):
                ours = block["seconds"][f"packed, {precision}"]
                ratio = [a / b for a, b in zip(seconds, ours, strict=True)]
                ratios.append(f"{statistics.median(ratio):.3g}")
            ms = 1000 * statistics.median(seconds)
            lines.append(f"| {key} | {name} | {ms:.3g} | {ratios[0]} | {ratios[1]} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["relu", "sign", "conv"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 1000])
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("predict.json"))
    parser.add_argument("--report", type=Path, help="print the table of a JSON file")
    parser.add_argument("--smoke", action="store_true", help="small networks, one turn")
    args = parser.parse_args()
    if args.report:
        print(report(json.loads(args.report.read_text())))
        return
    if args.smoke:
        args.batches, args.draws, args.width, args.turns = [2], 3, 32, 1
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("medium")
    record: dict[str, Any] = {
        "benchmark": "predict", "width": args.width, "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(), "kernel": bb.predict.kernel_tier(),
        "blocks": [],
    }  # fmt: skip
    for kind in args.networks:
        for batch in args.batches:
            record["blocks"].append(measure(args, kind, batch))
            args.out.write_text(json.dumps(record, indent=1))
    print(report(record))


if __name__ == "__main__":
    main()
