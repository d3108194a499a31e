"""Choosing a network for a new domain: of 100 draws, the one that fits 200 labelled examples best.

    python domain_shift.py                  scikit-learn's digits; the new domain: tilted and noisy ones
    python domain_shift.py --data FOLDER    MNIST in FOLDER/mnist; the new domain: USPS in FOLDER/usps

Nothing is trained on the new domain. The best of many is never the reported score: what is printed was
measured on the rest of the new domain, which had no part in the choice, beside the mode and the mean.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from bayesbin import nn
from bayesbin.data import Batches, Dataset, digits, idx_folder, usps_folder
from bayesbin.ensemble import Ensemble, select_network
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import fit


def tilted(images: Tensor, degrees: float, noise: float, seed: int) -> Tensor:
    """Images (N, H, W), turned anticlockwise about their centre, with Gaussian noise added."""
    angle = torch.tensor(degrees).deg2rad()
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(())
    turn = torch.stack([cos, -sin, zero, sin, cos, zero]).reshape(1, 2, 3).expand(len(images), 2, 3)
    grid = affine_grid(turn.contiguous(), [len(images), 1, *images.shape[1:]], align_corners=False)
    background = images.min()
    turned = grid_sample((images - background)[:, None], grid, align_corners=False)[:, 0]
    generator = torch.Generator().manual_seed(seed)
    return turned + background + noise * torch.randn(images.shape, generator=generator)


def of_16_by_16(images: Tensor) -> Tensor:
    """MNIST's 20 x 20 box, (N, 28, 28), in the size of USPS's, (N, 256)."""
    return interpolate(images[:, None, 4:24, 4:24], size=(16, 16), mode="area").flatten(1)


def domains(folder: str | None, seed: int) -> tuple[Dataset, Dataset, Dataset]:
    """(training set, test set of the same domain, examples of the new domain)."""
    if folder is None:
        # The new domain is made of the test half: no example is both trained on and tilted.
        splits = digits(seed, test_fraction=0.5)
        train, test, new = splits.train, splits.test, splits.test
        x = tilted(test.x.reshape(-1, 8, 8), degrees=20.0, noise=0.5, seed=seed).flatten(1)
        return train, test, Dataset(x, new.y, "tilted digits", num_classes=10)
    mnist = idx_folder(Path(folder) / "mnist", normalize=False, flatten=False, num_classes=10)
    usps = usps_folder(Path(folder) / "usps", normalize=False).test
    x = [of_16_by_16(mnist.train.x), of_16_by_16(mnist.test.x), usps.x]
    std, mean = torch.std_mean(x[0])
    y, names = [mnist.train.y, mnist.test.y, usps.y], ["MNIST", "MNIST", "USPS"]
    sets = [Dataset((x[i] - mean) / std, y[i], names[i], num_classes=10) for i in range(3)]
    return sets[0], sets[1], sets[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="folder with mnist and usps; without it: digits")
    parser.add_argument("--epochs", type=int, help="default: 5, for digits 60")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run for each")
    parser.add_argument("--candidates", type=int, default=100, help="draws to choose among")
    parser.add_argument("--labels", type=int, default=200, help="examples to choose by")
    parser.add_argument("--score", choices=["nll", "accuracy"], default="nll", help="to choose by")
    parser.add_argument(
        "--calibrate", choices=["source", "target"], default="source",
        help="normalise by training data, or by the examples to choose by, without their labels",
    )  # fmt: skip
    parser.add_argument("--out", help="save the scores to this .json file")
    parser.add_argument("--smoke", action="store_true", help="a few steps only: does it run?")
    arguments = parser.parse_args()
    epochs = arguments.epochs or (60 if arguments.data is None else 5)
    width, candidates = 512, arguments.candidates
    if arguments.smoke:
        epochs, width, candidates = 1, 32, 4
    runs = []
    for seed in arguments.seeds:
        torch.manual_seed(seed)
        train, test, new = domains(arguments.data, seed)
        order = torch.randperm(len(new), generator=torch.Generator().manual_seed(seed))
        first, rest = order[: arguments.labels], order[arguments.labels :]

        net = nn.to_binary_(nn.mlp(train.x.shape[1], [width, width], 10))
        model = nn.Classifier(net, dataset_size=len(train))
        guide = AutoSignBernoulli(model)
        batches = Batches(train, batch_size=100)
        progress = not arguments.smoke
        fit(model, guide, batches, epochs=epochs, kl_weight=0.03, seed=seed, progress=progress)

        # Each candidate is a network of its own and needs normalisation statistics of its own.
        inputs = {"source": train.x[:5000], "target": new.x[first]}[arguments.calibrate]
        ensemble = Ensemble(model, guide.posterior(), num_samples=candidates, seed=seed)
        selection = select_network(
            ensemble.calibrate(inputs), (new.x[first], new.y[first]),
            held_out=(new.x[rest], new.y[rest]), score=arguments.score,
        )  # fmt: skip
        mode = ensemble.mode.calibrate(train.x[:5000])  # as it is used on the domain it knows
        familiar = mode.evaluate(test.x, test.y)["mode"]["accuracy"]
        print(f"\nseed {seed}: accuracy of the mode on {train.name}'s own test set {familiar:.4f}")
        print(f"{new.name}, normalised by the {arguments.calibrate}\n{selection}")
        run = {"seed": seed, "new": new.name, "familiar": familiar}
        runs.append(run | {"selection": selection.to_dict()})
    if arguments.out:
        settings = {"epochs": epochs, "candidates": candidates, "calibrate": arguments.calibrate}
        Path(arguments.out).write_text(json.dumps({**settings, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
