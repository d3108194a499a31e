"""Time of averaging S drawn networks on a GPU: packed kernels in Triton beside torch on the same GPU.

784-2048-2048-2048-10 with batch normalisation and ReLU or sign activations, weights at random natural
parameters. All contenders take turns within one process, timed by CUDA events, and ratios are medians over
the turns. The peaks of the GPU are measured in the same process: a matrix product of 8192 x 8192 bfloat16
numbers, and a copy of 2 GB. The inputs are on the GPU, the answers of the packed predictors on the CPU.

(a) naive: torch.bernoulli, to -1 and +1, F.linear in float32 without TF32, draw after draw
(b) the same as a CUDA graph of one draw, replayed
(c) naive in bfloat16, and that as a CUDA graph
(d) packed, exact (three products of bfloat16) and fast (one of float16)

    python examples/benchmarks/gpu.py --out gpu.json
    python examples/benchmarks/gpu.py --report gpu.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bayesbin as bb
from bayesbin.compile.device_model import DeviceModel
from bayesbin.compile.devices import why_no_triton
from bayesbin.compile.export import export_program
from bayesbin.compile.folding import fold
from bayesbin.nn import binary_sites, mlp, to_binary_
from bayesbin.runtime.model import Model

Contender = Callable[[], Any]


def make(kind: str, width: int) -> tuple[nn.Module, bb.BinaryPosterior]:
    torch.manual_seed(0)
    net = to_binary_(mlp(784, [width] * 3, 10, activation=kind)).eval()
    natural = {name: 0.7 * torch.randn(site.shape) for name, site in binary_sites(net).items()}
    return net, bb.BinaryPosterior(natural)


class Naive:
    """(a): the network, the probabilities of its signs, and the sum over draws, all on the GPU."""

    def __init__(
        self, net: nn.Module, posterior: bb.BinaryPosterior, x: Tensor, dtype: torch.dtype
    ):
        self.net = net
        state = {name: value.cuda() for name, value in net.state_dict().items()}
        self.state = {k: v.to(dtype) for k, v in state.items() if v.is_floating_point()}
        self.probs = {name: distribution.probs.cuda() for name, distribution in posterior.items()}
        self.x, self.total = x.to(dtype), torch.zeros(len(x), 10, device="cuda")

    def draw(self) -> None:
        signs = {name: torch.bernoulli(p) * 2.0 - 1.0 for name, p in self.probs.items()}
        drawn = {name: value.to(self.x.dtype) for name, value in signs.items()}
        logits = torch.func.functional_call(self.net, self.state | drawn, (self.x,))
        self.total += logits.float().softmax(-1)

    def run(self, num_samples: int) -> Tensor:
        self.total.zero_()
        for _ in range(num_samples):
            self.draw()
        return self.total / num_samples

    def as_graph(self, num_samples: int) -> Contender:
        """(b): one draw as a graph; its random numbers go on from replay to replay."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self.draw()  # what is set up at the first use must not be captured
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.draw()

        def run() -> Tensor:
            self.total.zero_()
            for _ in range(num_samples):
                graph.replay()
            return self.total / num_samples

        return run


def contenders(args: argparse.Namespace, kind: str, batch: int) -> dict[str, Contender]:
    net, posterior = make(kind, args.width)
    x = torch.randn(batch, 784, device="cuda")
    found: dict[str, Contender] = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        naive = Naive(net, posterior, x, dtype)
        found[f"naive torch, {name}"] = lambda naive=naive: naive.run(args.draws)
        found[f"CUDA graph, {name}"] = Naive(net, posterior, x, dtype).as_graph(args.draws)
    program = fold(export_program(net, (x[:2].cpu(),), posterior, args.draws, 0))
    for precision in ("exact", "fast"):
        model = DeviceModel(Model(program, {"kind": "classes"}, precision=precision), "cuda")
        found[f"packed, {precision}"] = lambda model=model: model.predict(x)
    return found


def seconds_of(run: Contender) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def peaks(size: int) -> dict[str, float]:
    """Operations per second of tensor cores and bytes per second of memory; the best of several runs."""
    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    source = torch.empty(size * size * 4, device="cuda")
    target = torch.empty_like(source)
    product = min(seconds_of(lambda: a @ a) for _ in range(10))
    copy = min(seconds_of(lambda: target.copy_(source)) for _ in range(10))
    return {"operations": 2 * size**3 / product, "bytes": 2 * source.nbytes / copy}


def measure(args: argparse.Namespace, kind: str, batch: int) -> dict[str, Any]:
    """Seconds of every contender, taken in turns; and how far its answer is from the packed exact one."""
    runs = contenders(args, kind, batch)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with torch.no_grad():
        for turn in range(args.turns + 1):
            for name, run in runs.items():
                elapsed = seconds_of(run)
                if turn:  # the first compiles kernels and warms up
                    seconds[name].append(elapsed)
        answers = {name: getattr(found := run(), "probs", found) for name, run in runs.items()}
    arrays = {name: a.cpu().numpy() if isinstance(a, Tensor) else a for name, a in answers.items()}
    exact = arrays["packed, exact"]
    apart = {name: float(abs(array - exact).max()) for name, array in arrays.items()}
    return {"network": kind, "batch": batch, "draws": args.draws, "seconds": seconds,
            "greatest_difference_of_probs": apart}  # fmt: skip


def report(record: dict[str, Any]) -> str:
    """Milliseconds, how many times faster the packed kernels are, and their share of the GPU's peaks."""
    lines = [
        "| network, batch, draws | contender | ms | exact is faster by | fast is faster by "
        "| of tensor-core peak | of memory bandwidth |",
        "|---|---|---|---|---|---|---|",
    ]
    width = record["width"]
    weights = 784 * width + 2 * width**2 + 10 * width
    for block in record["blocks"]:
        key = f"{block['network']}, {block['batch']}, {block['draws']}"
        for name, seconds in block["seconds"].items():
            ratios = []
            for precision in ("exact", "fast"):
                ours = block["seconds"][f"packed, {precision}"]
                ratio = [a / b for a, b in zip(seconds, ours, strict=True)]
                ratios.append(f"{statistics.median(ratio):.3g}")
            median = statistics.median(seconds)
            # The least that there is to do: each weight's product with each input, of which the exact
            # sums make three; and to read, for each draw, the 17 bits of a weight's posterior, or in
            # torch its probability.
            operations = 2 * weights * block["batch"] * block["draws"]
            size = 17 / 8 if name.startswith("packed") else 4.0
            cores = operations / median / record["peaks"]["operations"]
            memory = weights * size * block["draws"] / median / record["peaks"]["bytes"]
            lines.append(
                f"| {key} | {name} | {1000 * median:.3g} | {ratios[0]} | {ratios[1]} | {cores:.1%} "
                f"| {memory:.1%} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["relu", "sign"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 1000, 10_000])
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--report", type=Path, help="print the table of a JSON file")
    parser.add_argument("--smoke", action="store_true", help="a small network, one turn")
    args = parser.parse_args()
    if args.report:
        print(report(json.loads(args.report.read_text())))
        return
    if not torch.cuda.is_available():
        raise SystemExit("This benchmark needs a GPU, and torch finds none here.")
    if (reason := why_no_triton(torch.device("cuda"))) is not None:
        raise SystemExit(reason)
    if args.smoke:
        args.batches, args.draws, args.width, args.turns = [2, 70], 3, 64, 1
    import triton

    torch.backends.cuda.matmul.allow_tf32 = False
    record: dict[str, Any] = {
        "benchmark": "gpu", "width": args.width, "torch": torch.__version__,
        "triton": triton.__version__, "machine": torch.cuda.get_device_name(),
        "peaks": peaks(1024 if args.smoke else 8192), "seed": 0, "blocks": [],
    }  # fmt: skip
    for kind in args.networks:
        for batch in args.batches:
            record["blocks"].append(measure(args, kind, batch))
            args.out.write_text(json.dumps(record, indent=1))
    print(report(record))


if __name__ == "__main__":
    main()
