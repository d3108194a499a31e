"""MCMC as the judge: two moons, a small network, and the fitted posterior beside draws of the exact one.

    python mcmc.py --out mcmc.png

The guide takes the signs to be independent, and the posterior does not. Discrete Langevin moves, corrected
by Metropolis' rule, draw from the posterior itself, whatever its shape, at a price that only small networks
can pay. Both keep the biases and the scale that were fitted, so the signs alone are judged: the guide's
probabilities over the plane, those of the chains, and how far the two are apart.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping

import pyro.poutine as poutine
import torch
from torch import Tensor

from bayesbin import nn, plots
from bayesbin.data import Batches, two_moons
from bayesbin.ensemble import Ensemble
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import fit, run_mcmc
from bayesbin.runtime import ClassPrediction


def prediction(log_probs: Tensor) -> ClassPrediction:
    """The prediction averaged over the draws of chains, (S, B, 2)."""
    log_probs = log_probs.double()
    mean = log_probs.logsumexp(0) - math.log(len(log_probs))
    expected = torch.special.entr(log_probs.exp()).sum(-1).mean(0)
    std = log_probs.exp().std(0, correction=0)
    return ClassPrediction(mean.numpy(), expected.numpy(), std.numpy(), len(log_probs))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", help="write the picture to this .png, .pdf or .svg file")
    parser.add_argument("--epochs", type=int, default=1500)
    parser.add_argument("--hidden", type=int, default=16)
    parser.add_argument("--draws", type=int, default=800, help="of each of two chains")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few steps only: does it run?")
    args = parser.parse_args()
    if args.smoke:
        args.epochs, args.draws, args.hidden = 2, 10, 4
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # layers this small gain nothing from a second thread

    train = two_moons(100, noise=0.15, seed=args.seed)
    net = nn.to_binary_(nn.mlp(2, [args.hidden], 2, activation="tanh", normalize=False))
    model = nn.Classifier(net, dataset_size=len(train))
    guide = AutoSignBernoulli(model, init_scale=0.5)
    batches = Batches(train, batch_size=len(train))
    fit(model, guide, batches, epochs=args.epochs, kl_weight=1.0, seed=args.seed, progress=False)
    posterior = guide.posterior()
    area = plots.grid((-3.0, -3.0), (3.0, 3.0), num_points=10 if args.smoke else 60)
    guided = Ensemble(model, posterior, num_samples=256).predict(area.points.numpy())

    # The network's biases and scale stay as they are: for the chains they are numbers, not sites.
    chains = run_mcmc(
        poutine.block(model, hide_types=["param"]), (train.x, train.y), num_samples=args.draws,
        num_warmup=args.draws // 2, num_chains=2, seed=args.seed,
    )  # fmt: skip

    def log_probs(draw: Mapping[str, Tensor]) -> Tensor:
        signs = {name: draw[name].float() for name in posterior}
        return torch.func.functional_call(net, signs, (area.points,)).log_softmax(-1)

    everything = chains.values(log_probs)
    agreement = chains.convergence(lambda draw: log_probs(draw)[:: len(area.points) // 25, 1].exp())
    print(chains)
    print(f"probabilities at points of the plane: {agreement}")

    exact = prediction(everything.flatten(0, 1))
    halves = [prediction(chain).probs[:, 1] for chain in everything]
    for name, a, b in (
        ("guide and chains", guided.probs[:, 1], exact.probs[:, 1]),
        ("one chain and the other", *halves),
    ):
        apart = abs(a - b)
        print(
            f"{name}: probabilities apart by {apart.mean():.3f} on average, {apart.max():.3f} at most"
        )
    for name, found in (("guide", guided), ("chains", exact)):
        print(f"{name}: mutual information {found.mutual_information.mean():.3f} nats on average")

    if args.out:
        planes = {"mean-field guide": guided, "MCMC": exact}
        figure = plots.Figure(figsize=(9.6, 5.4), layout="constrained")
        plots.plot_uncertainty_panel(planes, area, train.x, train.y, figure)
        plots.save_figure(figure, args.out)
        print(f"picture: {args.out}")


if __name__ == "__main__":
    main()
