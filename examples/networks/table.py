"""Run every network of the catalogue in every backend, and compare with the network itself in float64.

    python examples/networks/table.py --out networks.json                 # all; continues where it stopped
    python examples/networks/table.py --out networks.json --only lstm gru --backends numpy
    python examples/networks/table.py --out networks.json --page          # prints docs/reference/networks.md

One row for each network and backend: whether it runs, the largest deviation of an output over all draws and
data, relative to the largest output; whether every label is the same; whether two data alone give the same
bits as among five; or the sentence that refuses the network. A row that was begun and never ended is kept
as that: the process died.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from backends import BACKENDS, IN_TORCH
from catalogue import Network
from page import page
from prepared import NUM_DRAWS, Prepared, catalogue, prepare
from reference import Reference, compare, default_dtype, reference

from bayesbin.nn import binary_sites

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}  # by the type of the network
FEW = slice(1, 3)  # the data that are predicted once more, alone

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True, type=Path, help="JSON file of the rows")
    parser.add_argument(
        "--only", nargs="*", metavar="NETWORK", help="these networks alone, once more"
    )
    parser.add_argument("--backends", nargs="*", metavar="NAME", help=f"of {', '.join(BACKENDS)}")
    parser.add_argument("--page", action="store_true", help="print the page of a finished table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = read(arguments.out)
    networks = catalogue()
    if arguments.page:
        print(page(networks, list(rows.values())))
        return
    unknown = [
        name
        for given, known in ((arguments.only, networks), (arguments.backends, BACKENDS))
        for name in given or ()
        if name not in known
    ]
    if unknown:
        parser.error(f"no network or backend named {', '.join(unknown)}")
    for name, network in networks.items():
        if arguments.only is not None and name not in arguments.only:
            continue
        again = arguments.only is not None
        wanted = [b for b in arguments.backends or BACKENDS if again or (name, b) not in rows]
        run(network, wanted, rows, arguments.out)
    write(arguments.out, {(n, b): rows[n, b] for n in networks for b in BACKENDS if (n, b) in rows})


def run(network: Network, backends: list[str], rows: dict[tuple[str, str], Row], out: Path) -> None:
    """The rows of one network, written to the file one by one."""
    if not backends:
        return
    prepared = prepare(network)
    right = _right(prepared)
    for name in backends:
        common = {"network": network.name, "group": network.group, "backend": name}
        rows[network.name, name] = {**common, "status": "died"}
        write(out, rows)
        rows[network.name, name] = common | row(prepared, name, right)
        write(out, rows)
        shown = rows[network.name, name]
        print(
            network.name,
            name,
            shown["status"],
            shown.get("deviation", shown.get("why")),
            flush=True,
        )


def row(prepared: Prepared, name: str, right: Reference | None) -> Row:
    """What became of one network in one backend."""
    runs, in_torch = prepared.network.expected == "runs", name in IN_TORCH
    try:
        with default_dtype(torch.float32):
            predict = BACKENDS[name](prepared.net, prepared.posterior, prepared.inputs, NUM_DRAWS)
            found = predict(prepared.inputs)
            few = predict(tuple(x[FEW] for x in prepared.inputs)) if runs else found
    except Exception as error:
        return {"status": "refused", "error": type(error).__name__, "why": _sentence(error)}
    if not runs:
        return {"status": "in torch" if in_torch else "runs though it should be refused"}
    assert right is not None
    try:
        agreement = compare(found, right.outputs)
    except ValueError as error:
        return {"status": "wrong", "why": str(error)}
    tolerance = TOLERANCE[next(iter(binary_sites(prepared.net).values())).signs.dtype]
    agrees = agreement.deviation <= tolerance and agreement.labels
    same = [np.array_equal(a[:, FEW], b) for a, b in zip(found, few, strict=True)]
    return {
        "status": "agrees" if agrees else "differs",
        "deviation": _short(agreement.deviation),
        "labels": agreement.labels,
        "same_bits_alone": all(same),
        "nearest_decision": _short(right.decisions.nearest),
        "exact_ties": right.decisions.ties,
        "bits": digest(found),
    }


def _short(number: float) -> float | None:
    """A number to three digits; None if it is not finite."""
    return float(f"{number:.3g}") if math.isfinite(number) else None


def _right(prepared: Prepared) -> Reference | None:
    return reference(prepared) if prepared.network.expected == "runs" else None


def digest(outputs: list[np.ndarray]) -> str:
    """A digest of every bit of the outputs, by which backends are compared; -0 counts as 0."""
    sha = hashlib.sha256()
    for each in outputs:
        sha.update(np.ascontiguousarray(each + 0.0 if each.dtype.kind == "f" else each).tobytes())
    return sha.hexdigest()[:16]


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:600]


def read(path: Path) -> dict[tuple[str, str], Row]:
    """Rows by network and backend; none where there is no file."""
    if not path.exists():
        return {}
    return {(row["network"], row["backend"]): row for row in json.loads(path.read_text())}


def write(path: Path, rows: dict[tuple[str, str], Row]) -> None:
    """Write the rows, all or none of them."""
    aside = path.with_suffix(".part")
    lines = ",\n".join(json.dumps(row, allow_nan=False) for row in rows.values())
    aside.write_text(f"[\n{lines}\n]\n")
    aside.replace(path)


if __name__ == "__main__":
    main()
