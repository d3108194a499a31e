"""The numbers of a posterior at a glance, site by site, as a table that prints."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SummaryRow:
    """One site: number of weights, mean |E[w]|, mean entropy per weight in bits, KL of the site in bits,
    fraction of weights with |lambda| > 3, or with other levels than signs P(one level) > 99.75 %."""

    site: str
    shape: tuple[int, ...]
    weights: int
    mean_abs_mean: float
    entropy_bits: float
    kl_bits: float
    saturated: float


@dataclass(frozen=True)
class Summary:
    """The rows of a posterior's summary, and the bits of a weight; ``str`` gives the table."""

    rows: tuple[SummaryRow, ...]
    bits: int = 1

    @property
    def decided(self) -> str:
        """The heading of ``saturated``."""
        return "|lambda| > 3" if self.bits == 1 else "p > 99.75 %"

    def total(self) -> SummaryRow:
        """The same quantities over all sites together."""
        weights = sum(row.weights for row in self.rows)

        def average(name: str) -> float:
            return sum(getattr(row, name) * row.weights for row in self.rows) / max(weights, 1)

        return SummaryRow(
            "total", (), weights, average("mean_abs_mean"), average("entropy_bits"),
            sum(row.kl_bits for row in self.rows), average("saturated"),
        )  # fmt: skip

    def __str__(self) -> str:
        rows = [*self.rows, self.total()]
        width = max(4, *(len(row.site) for row in rows))
        lines = [
            f"{'site':<{width}}  {'weights':>10}  {f'KiB ({self.bits} bit)':>11}  {'mean |E[w]|':>11}  "
            f"{'entropy, bits/weight':>20}  {'KL, bits':>10}  {self.decided:>12}"
        ]
        for row in rows:
            lines.append(
                f"{row.site:<{width}}  {row.weights:>10,}  {row.weights * self.bits / 8192:>11.2f}  "
                f"{row.mean_abs_mean:>11.3f}  {row.entropy_bits:>20.3f}  {row.kl_bits:>10.1f}  "
                f"{row.saturated:>11.1%}"
            )
        if self.bits == 1:
            lines.append(
                "binary weights themselves: posterior.binary_state_dict(), or mode_network(net)"
            )
        return "\n".join(lines)
