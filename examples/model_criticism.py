"""Model criticism: two likelihoods for one regression with binary weights, and what speaks against each.

    python model_criticism.py

Sums of eight features with unknown signs, and noise that now and then is very large. A Normal and a
Student likelihood are fitted. Would the model have produced such data? What does it predict of data left
out? Does the guide reach the posterior at all? Eight weights have 256 states, so each answer that is
estimated from draws stands beside the exact one.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import bayesbin as bb
from bayesbin.distributions import SignBernoulli
from bayesbin.estimators import Enumerate
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import fit
from bayesbin.infer.checks import (
    compare_loo,
    evidence_gap,
    pareto_khat,
    posterior_predictive_check,
    psis_loo,
)
from bayesbin.optim import BayesianLearningRule

NUM_WEIGHTS, NUM_DATA, SCALE = 8, 30, 3.0

Distribution = Callable[[Tensor], dist.TorchDistribution]
LIKELIHOODS: dict[str, Distribution] = {
    "Normal": lambda mean: dist.Normal(mean, SCALE),
    "Student": lambda mean: dist.StudentT(2.0, mean, SCALE),
}


def model_of(distribution: Distribution) -> Callable[[Tensor, Tensor], None]:
    def model(x: Tensor, y: Tensor) -> None:
        prior = SignBernoulli(natural=torch.zeros(NUM_WEIGHTS, dtype=x.dtype))
        w = pyro.sample("w", prior.to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", distribution(x @ w), obs=y)

    return model


def exact_loo(distribution: Distribution, x: Tensor, y: Tensor) -> float:
    """The sum over data of log p(y_n | all others), by sums over all states; the prior is uniform."""
    states = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=NUM_WEIGHTS)), dtype=x.dtype)
    log_likelihood = distribution(states @ x.T).log_prob(y)  # (states, data)
    whole = log_likelihood.sum(1, keepdim=True)
    others = (whole - log_likelihood).logsumexp(0)
    return (whole.logsumexp(0) - others).sum().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--smoke", action="store_true", help="a few steps only, to see that it runs"
    )
    arguments = parser.parse_args()
    steps, draws = (10, 50) if arguments.smoke else (arguments.steps, 1000)

    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)
    x = torch.randn(NUM_DATA, NUM_WEIGHTS, dtype=torch.float64)
    x = x + torch.randn(NUM_DATA, 1, dtype=x.dtype)  # correlated, and so are the weights then
    truth = torch.ones(NUM_WEIGHTS, dtype=x.dtype)
    truth[::2] = -1.0
    y = x @ truth + dist.StudentT(2.0, torch.zeros_like(x[:, 0]), SCALE).sample()

    found = {}
    columns = ("exact LOO", "LOO", "+-", "k > good", "KL(q||p)", "k-hat of q", "p(max |y|)")
    print(f"{'':<8}" + "".join(f"{column:>12}" for column in columns))
    for name, distribution in LIKELIHOODS.items():
        model = model_of(distribution)
        guide = AutoSignBernoulli(model, args=(x, y))
        rule = BayesianLearningRule(guide.natural_parameters(), lr=0.1)
        fit(
            model, guide, [(x, y)], dataset_size=NUM_DATA, estimator=Enumerate(), epochs=steps,
            kl_weight=1.0, optimizers=rule, seed=arguments.seed, progress=False,
        )  # fmt: skip
        data = bb.to_inference_data(guide.posterior(), model, (x, y), num_samples=draws)
        # Uncorrected, as ArviZ's own: the guide is taken for the posterior.
        loo = psis_loo(model, guide, (x, y), num_samples=draws, correct=False)
        weights = (torch.from_numpy(data.sample_stats[part].values[0]) for part in ("lp", "log_q"))
        new = torch.from_numpy(data.posterior_predictive["y"].values[0])
        check = posterior_predictive_check(lambda values: values.abs().max(), y, new)
        gap = evidence_gap(model, guide, (x, y), num_samples=200).gap
        khat = pareto_khat(*weights)
        row = (exact_loo(distribution, x, y), loo.elpd, loo.standard_error, loo.num_bad, gap, khat)
        print(f"{name:<8}" + "".join(f"{value:>12.2f}" for value in (*row, check.p_value)))
        found[name] = loo

    print(f"\n{compare_loo(found)}")
    print(
        "\nLOO and KL in nats; the larger LOO is the better. It is off where data have a k-hat that is too\n"
        "large (k > good: how many), for states that matter without such a datum are hardly ever drawn. The\n"
        "p-value is the share of replicated data whose largest |y| exceeds the observed one: near 0, the\n"
        "model does not produce such data. A k-hat of q above 0.7: the guide misses a part of the posterior."
    )


if __name__ == "__main__":
    main()
