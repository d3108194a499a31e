"""The scopes that weights are nested in: shapes, and an analysis of variance."""

from __future__ import annotations

import pytest
import torch

from bayesbin.core.nesting import scope_effects, scope_shapes, scope_shares


@pytest.mark.parametrize(
    "shape", [(4, 3, 2, 2), (5, 6), (7,), (), (1, 5), (3, 2, 1, 1), (0, 2)], ids=str
)
def test_effects_add_up_and_are_orthogonal(shape):
    values = torch.randn(shape) + 0.7
    effects = scope_effects(values, scope_shapes(shape))
    total = sum(effects.values(), torch.zeros(()))
    torch.testing.assert_close(total.expand(shape), values)
    whole = [effect.expand(shape).flatten() for effect in effects.values()]
    for i, one in enumerate(whole):
        for other in whole[:i]:
            assert abs((one @ other).item()) < 1e-10
    shares = scope_shares(values)
    assert sum(shares.values()) == pytest.approx(1.0 if values.numel() else 0.0)


def test_shares_tell_the_scopes_apart():
    layer, filters = torch.full((4, 3, 2, 2), 2.0), torch.tensor([1.0, -1.0, 3.0, -3.0])
    assert scope_shares(layer) == pytest.approx({"layer": 1, "filter": 0, "kernel": 0, "weight": 0})
    by_filter = filters.view(4, 1, 1, 1).expand(4, 3, 2, 2)
    assert scope_shares(by_filter)["filter"] == pytest.approx(1.0)
    both = scope_shares(layer + by_filter)  # mean squares 4 and 5
    assert both["layer"] == pytest.approx(4 / 9) and both["filter"] == pytest.approx(5 / 9)
    assert scope_shares(torch.zeros(2, 3)) == {"layer": 0.0, "filter": 0.0, "weight": 0.0}
