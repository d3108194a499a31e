"""Binary weights in a Pyro model of your own: a hand-written model and guide, and two ways to train it.

    python pyro_model.py

Noisy sums of six features with unknown signs. First with Pyro's own SVI and Trace_ELBO, whose gradient
is the score function's; then with TraceBinary_ELBO and an estimator made for signs. Six weights have
only 64 states, so the exact posterior is at hand to compare with.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ELBO, SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from torch import Tensor

from bayesbin.distributions import SignBernoulli
from bayesbin.estimators import LocalReparameterization
from bayesbin.infer import TraceBinary_ELBO

NUM_WEIGHTS, NUM_DATA, NOISE = 6, 10, 3.0


def model(x: Tensor, y: Tensor) -> None:
    prior = SignBernoulli(natural=torch.zeros(NUM_WEIGHTS))
    w = pyro.sample("w", prior.to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)


def guide(x: Tensor, y: Tensor) -> None:
    natural = pyro.param("natural", torch.zeros(NUM_WEIGHTS))
    pyro.sample("w", SignBernoulli(natural=natural).to_event(1))


def train(elbo: ELBO, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """The means of the six signs after training from scratch."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    # Steps that shrink, so that the noise of the gradients averages out in the end.
    decay = ClippedAdam({"lr": 0.05, "lrd": 0.02 ** (1.0 / steps)})
    svi = SVI(model, guide, decay, elbo)
    for _ in range(steps):
        svi.step(x, y)
    return SignBernoulli(natural=pyro.param("natural").detach()).mean


def log_joint(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    log_prior = SignBernoulli(natural=torch.zeros(NUM_WEIGHTS)).log_prob(w).sum()
    return log_prior + dist.Normal(x @ w, NOISE).log_prob(y).sum()


def exact_means(x: Tensor, y: Tensor) -> Tensor:
    """E[w | y], by summing over all joint states."""
    states = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=NUM_WEIGHTS)))
    posterior = torch.stack([log_joint(w, x, y) for w in states]).softmax(0)
    return posterior @ states


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument(
        "--smoke", action="store_true", help="a few steps only, to see that it runs"
    )
    arguments = parser.parse_args()
    steps = 5 if arguments.smoke else arguments.steps

    pyro.set_rng_seed(0)
    truth = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, -1.0])
    x = torch.randn(NUM_DATA, NUM_WEIGHTS)
    y = x @ truth + NOISE * torch.randn(NUM_DATA)

    # TraceBinary_ELBO goes wherever Pyro takes an ELBO. The plain sum x @ w is a linear map of the
    # weights, which is what LocalReparameterization asks for.
    losses: dict[str, Callable[[], ELBO]] = {
        "Trace_ELBO": lambda: Trace_ELBO(num_particles=4),
        "TraceBinary_ELBO": lambda: TraceBinary_ELBO(LocalReparameterization()),
    }
    rows = {"signs behind the data": truth, "exact posterior means": exact_means(x, y)}
    for name, loss in losses.items():
        rows[f"mean field, {name}"] = train(loss(), x, y, steps)
    for name, means in rows.items():
        print(f"{name:<29}" + "".join(f"{mean:>8.3f}" for mean in means.tolist()))
    print(
        "Mean field drops the correlations between signs, so its means are not quite the exact ones."
    )


if __name__ == "__main__":
    main()
