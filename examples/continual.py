"""Learn five tasks in turn: with the last posterior as the next prior, and by fine-tuning, which forgets.

    python continual.py --out continual.png

Each task is the digits with their pixels in another order. The learner that takes its posterior as the next
prior pays for every weight that it flips. Fine-tuning flips weights freely and forgets the earlier tasks.
"""

from __future__ import annotations

import argparse

import torch

from bayesbin import plots
from bayesbin.continual import (
    ContinualLearner,
    ContinualResult,
    PermutedPixels,
    continual_network,
    fine_tuning,
    learn,
)
from bayesbin.data import digits
from bayesbin.guides import AutoSignBernoulli
from bayesbin.nn import Classifier, binary_sites
from bayesbin.posterior import BinaryPosterior

LEARNERS = {"posterior as prior": ContinualLearner, "fine-tuning": fine_tuning}


def learner(name: str, width: int, epochs: int, seed: int) -> ContinualLearner:
    torch.manual_seed(seed)
    # Binary weights and layer normalisation, nothing real-valued: all that is learned has a posterior.
    # The first prior is a random guess about each sign: a task flips some weights and leaves the others.
    net = continual_network(64, (width,), prior=lambda name, weight: torch.randn_like(weight))
    model = Classifier(net, dataset_size=1)  # the learner sets the size, task by task
    prior = BinaryPosterior({name: site.prior for name, site in binary_sites(net).items()})
    return LEARNERS[name](
        model,
        AutoSignBernoulli(model, init=prior),
        optimizer="adam",  # a setting of the recipe; the learning rate falls to 0 over each task
        epochs=epochs,
        batch_size=50,
        seed=seed,
        progress=False,
    )


def describe(name: str, result: ContinualResult) -> str:
    values = result.metrics()
    last = result.reports[-1]
    return (
        f"{name:<22} average {values['average_accuracy']:.3f}, when learned "
        f"{values['learning_accuracy']:.3f}, forgotten {values['forgetting_final']:.3f}; entropy "
        f"{last.entropy_bits:.2f} bits per weight, {last.saturated:.0%} of them decided"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", help="write the picture to this .png, .pdf or .svg file")
    parser.add_argument("--tasks", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10, help="passes over each task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="two tasks, an epoch")
    args = parser.parse_args()
    if args.smoke:
        args.tasks, args.epochs = 2, 1
    torch.set_num_threads(1)  # layers this small gain nothing from a second thread

    stream = PermutedPixels(digits(), args.tasks, seed=args.seed)
    results = {}
    for name in LEARNERS:
        # Every task is scored after every task: R[i, j] is the accuracy on task j after task i.
        results[name] = learn(learner(name, 200, args.epochs, args.seed), stream, progress=False)
        print(describe(name, results[name]))

    if args.out:
        figure = plots.Figure(figsize=(8.4, 3.2), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (name, result) in zip(panels, results.items(), strict=True):
            plots.plot_task_accuracies(result, axes).set_title(name, loc="left")
        panels[1].set_ylabel("")
        plots.save_figure(figure, args.out)
        print(f"picture: {args.out}")


if __name__ == "__main__":
    main()
