"""How a prediction draws a weight, keeps it and uses it, as a picture with the numbers themselves.

    python packed_layout.py --out packed_layout.png

Left: sixteen inputs of one unit: the 16 random bits of each weight against its threshold. Middle: the
signs of eight units, 64 inputs to a word. Right: the table of the sums that four inputs can make, and the
entry that four bits of the unit pick. The script checks that the picked entries add up to the layer's
output.
"""

from __future__ import annotations

import argparse

import matplotlib.pyplot as plt
import numpy as np
import torch

from bayesbin import BinaryPosterior
from bayesbin.core.canonical import FLIPS, half_words, key_of, pack_words

BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#999999"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", help="write the picture to this .png, .pdf or .svg file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="the same: it takes a second")
    arguments = parser.parse_args()

    # A posterior of 8 units with 64 inputs, and its draw 3.
    torch.manual_seed(arguments.seed)
    posterior = BinaryPosterior({"weight": 0.7 * torch.randn(8, 64)})
    index, unit = 3, 0
    thresholds = posterior.thresholds("weight", index, seed=arguments.seed)
    key = key_of(arguments.seed, index, "weight")
    plus = thresholds.draw(key)
    signs = posterior.signs(index, seed=arguments.seed)["weight"]
    assert np.array_equal(plus, (signs > 0).numpy())

    # The unit's sum, four inputs at a time from a table of 16.
    x = torch.randn(64).numpy()
    word = int(pack_words(plus)[unit, 0])
    tables = [sums_of_four(x[4 * j : 4 * j + 4]) for j in range(16)]
    picked = [word >> (4 * j) & 15 for j in range(16)]
    total = sum(table[entry] for table, entry in zip(tables, picked, strict=True))
    expected = float(signs[unit] @ torch.from_numpy(x))
    assert abs(total - expected) < 1e-5
    print(f"draw {index} of unit {unit}: word {word:#018x}")
    print(f"sixteen look-ups give {total:.6f}, 64 multiplications {expected:.6f}")
    if not arguments.out:
        return

    figure, (draw, keep, use) = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    random = half_words(key, plus.shape)[unit, :16] / FLIPS
    flip = thresholds.flip[unit, :16] / FLIPS
    flipped = random < flip
    places = np.arange(16)
    draw.bar(places, flip, color=GREY, label="threshold t: P(the other sign)")
    for chosen, color, label in (
        (~flipped, BLUE, "u, the mode stays"),
        (flipped, ORANGE, "u < t, the sign flips"),
    ):
        draw.plot(places[chosen], random[chosen], "o", color=color, label=label)
    draw.set(
        title="1. Draw: four weights from one hash\nu from (seed, draw, site), unit and input",
        xlabel="input", ylabel="fraction of 65,536", ylim=(0, 1.35), xticks=places[::4],
    )  # fmt: skip
    for edge in range(0, 17, 4):
        draw.axvline(edge - 0.5, color="0.85", lw=0.8, zorder=0)
    draw.legend(loc="upper right", fontsize=8)

    keep.imshow(plus, cmap="Greys", aspect="auto", vmin=-0.3, vmax=1.3)
    keep.axvspan(-0.5, 3.5, ymin=7 / 8, color=ORANGE, alpha=0.6)
    for edge in range(0, 65, 4):
        keep.axvline(edge - 0.5, color="0.6", lw=0.4)
    keep.set(
        title="2. Keep: a bit per weight\n64 inputs are a word; one draw at a time",
        xlabel="input = bit of the word (dark: +1)", ylabel="unit", xticks=range(0, 64, 8),
    )  # fmt: skip

    colors = [ORANGE if entry == picked[0] else GREY for entry in range(16)]
    use.barh(np.arange(16), tables[0], color=colors)
    use.set(
        title="3. Use: a table of the sums of inputs 0..3\n"
        "four bits of a unit pick one: nothing is multiplied",
        xlabel="sum", ylabel="bits of inputs 3 2 1 0", yticks=range(16),
        yticklabels=[f"{entry:04b}" for entry in range(16)],
    )  # fmt: skip
    use.tick_params(axis="y", labelsize=7)
    figure.savefig(arguments.out, dpi=110)


def sums_of_four(x: np.ndarray) -> np.ndarray:
    """Entry e is the sum of the four inputs, +x_i where bit i of e is set and -x_i elsewhere."""
    bits = np.arange(16)[:, None] >> np.arange(4) & 1
    return (2.0 * bits - 1.0) @ x


if __name__ == "__main__":
    main()
