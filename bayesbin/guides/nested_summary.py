"""What a nested guide consists of, scope by scope, as a table that prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bayesbin.core import numerics
from bayesbin.core.nesting import scope_effects, scope_shapes, scope_shares
from bayesbin.core.numerics import LOG_2

if TYPE_CHECKING:
    from bayesbin.guides.nested import AutoNestedSignBernoulli


@dataclass(frozen=True)
class NestedRow:
    """One scope of one site.

    :param parameters: how many the guide has there, location and scale of a random effect apart.
    :param share: of the sum of squares of lambda that the scope explains (ANOVA; the layer's is its mean).
    :param entropy_bits: per weight, of signs whose lambda is averaged over what is finer than the scope.
    """

    site: str
    scope: str
    parameters: int
    share: float
    entropy_bits: float


@dataclass(frozen=True)
class NestedSummary:
    """The rows of a nested guide's summary, and its size beside others; ``str`` gives the table.

    :param scores: what ``diagnostics.evaluate`` found, if given, to be printed too.
    :param parameters: of the guide's binary sites, what a ``combine`` owns included.
    :param weights: the number of binary weights: of a mean-field guide's parameters, and of the bits
        of one network. A network of real weights has 32 bits for each.
    """

    rows: tuple[NestedRow, ...]
    parameters: int
    weights: int
    scores: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        width = max(4, *(len(row.site) for row in self.rows))
        lines = [
            f"{'site':<{width}}  {'scope':<6}  {'parameters':>10}  {'share of lambda^2':>17}  "
            f"{'entropy to here, bits/weight':>28}"
        ]
        for row in self.rows:
            lines.append(
                f"{row.site:<{width}}  {row.scope:<6}  {row.parameters:>10,}  {row.share:>17.1%}  "
                f"{row.entropy_bits:>28.3f}"
            )
        lines += [
            f"{self.parameters:,} parameters of the posterior ({self.parameters / 256:,.1f} KiB); "
            f"mean-field has {self.weights:,} ({self.parameters / max(self.weights, 1):.1%}).",
            f"One network drawn from it: {self.weights / 8192:,.1f} KiB; with real weights "
            f"{self.weights / 256:,.1f} KiB.",
        ]
        if self.scores is not None:
            draws = self.scores["draws"]
            lines += [
                f"{score}: {draws['mean'][score]:.4f} over {self.scores['num_samples']} draws, 95 % of "
                f"them in {draws['low'][score]:.4f} .. {draws['high'][score]:.4f}; of their mean "
                f"{self.scores['mean'][score]:.4f}, of the mode {self.scores['mode'][score]:.4f}"
                for score in draws["mean"]
            ]
        return "\n".join(lines)


def summarise(
    guide: AutoNestedSignBernoulli, scores: Mapping[str, Any] | None = None
) -> NestedSummary:
    """The summary of a guide as it is now."""
    rows = []
    posterior = guide.posterior()
    owned = 0
    for name, shape in guide.shapes.items():
        counts = _parameters(guide, name)
        owned += sum(counts.values())
        natural = posterior[name].natural.double()
        shares = scope_shares(natural)
        entropies = _entropies(natural)
        for scope in scope_shapes(shape):
            count = counts.get(scope, 0)
            rows.append(NestedRow(name, scope, count, shares[scope], entropies[scope]))
    if guide.combine is not None:
        owned += sum(p.numel() for p in guide.combine.parameters())
    return NestedSummary(tuple(rows), owned, posterior.num_weights, scores)


def _parameters(guide: AutoNestedSignBernoulli, name: str) -> Mapping[str, int]:
    counts: dict[str, int] = {}
    for key, parameter in guide.named_parameters():
        tree, _, rest = key.partition(".")
        site, _, scope = rest.rpartition(".")
        if tree in ("offset", "loc", "log_scale") and site == name:
            counts[scope] = counts.get(scope, 0) + parameter.numel()
    return counts


def _entropies(natural: Tensor) -> dict[str, float]:
    found: dict[str, float] = {}
    so_far: Tensor | float = 0.0
    for scope, effect in scope_effects(natural, scope_shapes(tuple(natural.shape))).items():
        so_far = so_far + effect
        entropy = numerics.entropy(so_far)
        found[scope] = entropy.mean().item() / LOG_2 if entropy.numel() else 0.0
    return found
