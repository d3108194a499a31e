"""VGG-small and ResNet-20 from pixels to predictions of draws: they train, predict, and agree."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bayesbin.data import Batches, RandomCropFlip
from bayesbin.ensemble import Ensemble
from bayesbin.estimators import LocalReparameterization, StraightThrough
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import fit
from bayesbin.nn import Classifier, resnet20, to_binary_, vgg_small
from bayesbin.optim import make_optimizers, training_groups

DRAWS, SEED = 2, 5


def trained(net: nn.Module, estimator, epochs: int = 1):
    """After an epoch on 64 random images, their mean brightness being the label."""
    x = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(3)).float()
    y = (x.mean((1, 2, 3)) > 0).long()
    model = Classifier(to_binary_(net).float(), dataset_size=len(x))
    guide = AutoSignBernoulli(model)
    before = [natural.detach().clone() for natural in guide.natural_parameters()]
    batches = Batches((x, y), 32, transform=RandomCropFlip(padding=2))
    result = fit(
        model, guide, batches, estimator=estimator, epochs=epochs, kl_weight=0.01, progress=False
    )
    assert result.steps == 2 * epochs
    after = list(guide.natural_parameters())
    assert all(bool((a != b).any()) for a, b in zip(after, before, strict=True))
    return guide.posterior(), x


@pytest.mark.parametrize("build", [vgg_small, resnet20])
@pytest.mark.parametrize("activation", ["relu", "sign"])
@pytest.mark.parametrize("estimator", [LocalReparameterization(), StraightThrough()], ids=repr)
def test_they_train_and_predictions_are_those_of_the_networks(build, activation, estimator):
    torch.manual_seed(0)
    net = build((3, 16, 16), 2, width=4, activation=activation)
    posterior, x = trained(net, estimator)
    model = Classifier(net, dataset_size=len(x))
    ensemble = Ensemble(model, posterior, DRAWS, SEED).calibrate(x)
    assert ensemble.compiled
    prediction = ensemble.predict(x)
    torch.testing.assert_close(prediction.probs.sum(-1), torch.ones(64, dtype=torch.float64))
    assert prediction.probs.std(0).min() > 0
    with torch.no_grad():
        expected = torch.stack(
            [ensemble.network(draw).double()(x.double()) for draw in range(DRAWS)]
        )
    found = ensemble.outputs(x).double()
    same = torch.isclose(found, expected, rtol=1e-4, atol=1e-4).all(-1)
    # Of some million real sums one may be so near to 0 that rounding decides the sign that follows.
    least = 1.0 if activation == "relu" else 0.95
    assert same.double().mean() >= least
    other = Ensemble(model, posterior, DRAWS, SEED + 1).calibrate(x).outputs(x).double()
    # Behind signs the outputs are sums of a few: two draws may well agree on a row, never on most.
    assert torch.isclose(other, expected, rtol=1e-4, atol=1e-4).all(-1).double().mean() < 0.5


def test_a_resumed_run_sees_the_crops_that_one_run_sees(tmp_path):
    x = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    batches = Batches((x, (x.mean((1, 2, 3)) > 0).long()), 10, transform=RandomCropFlip(2))

    def run(epochs: int, folder: str, seed: int = 0) -> list[torch.Tensor]:
        torch.manual_seed(1)
        model = Classifier(to_binary_(vgg_small((3, 8, 8), 2, width=2)), dataset_size=24)
        guide = AutoSignBernoulli(model)
        fit(
            model, guide, batches, epochs=epochs, seed=seed, checkpoint_dir=tmp_path / folder,
            progress=False, optimizers=make_optimizers(training_groups(guide, model)),
        )  # fmt: skip
        return [natural.detach() for natural in guide.natural_parameters()]

    whole = run(2, "whole")
    run(1, "parts")
    assert all(map(torch.equal, whole, run(2, "parts")))
    batches.transform = RandomCropFlip(2, flip=False)
    assert not all(map(torch.equal, whole, run(2, "no mirrors")))


@pytest.mark.parametrize("build", [vgg_small, resnet20])
def test_with_real_ends_they_train_and_predict(build):
    torch.manual_seed(0)
    net = build((3, 16, 16), 2, width=4, activation="sign", real_ends=True)
    ends = [net[0].weight.detach().clone(), net[-2].weight.detach().clone()]
    posterior, x = trained(net, LocalReparameterization())
    for end, before in zip((net[0], net[-2]), ends, strict=True):
        assert bool((end.weight != before).any())
    ensemble = Ensemble(Classifier(net, 64), posterior, DRAWS, SEED).calibrate(x)
    assert ensemble.compiled and ensemble.predict(x).probs.shape == (64, 2)
