"""The page of the documentation that shows the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from catalogue import Network

HEAD = """# Networks

Networks as people write them, in every way from a posterior to a prediction. Each network is small,
converted by `to_binary_`, and given a posterior with random natural parameters. Three draws are predicted
for five data and compared with the user's own network in torch, in float64, with the same draws
substituted. The number is the largest difference of an output, relative to the largest output; a network
*agrees* at 1e-6, of float64 at 1e-12, with every label the same. `network` is the user's network in its
own type: it shows what float32 itself does.

The definitions are in `examples/networks/`, and a script there prints this page:

```bash
python examples/networks/table.py --out docs/benchmarks/networks.json
python examples/networks/table.py --out docs/benchmarks/networks.json --page > docs/reference/networks.md
```
"""


def page(networks: Mapping[str, Network], rows: Sequence[Mapping[str, Any]]) -> str:
    """The page in Markdown: a summary, one table for each group, and the sentences that refuse."""
    found = {(row["network"], row["backend"]): row for row in rows}
    backends = list(dict.fromkeys(row["backend"] for row in rows))
    parts = [HEAD, _summary(networks, found, backends)]
    for group in dict.fromkeys(network.group for network in networks.values()):
        parts.append(_group(group, networks, found, backends))
    parts.append(_sentences(networks, found, backends))
    return "\n".join(parts)


def _summary(networks: Any, found: Any, backends: list[str]) -> str:
    expected = [name for name, network in networks.items() if network.expected == "runs"]
    lines = [
        f"{len(networks)} networks; {len(networks) - len(expected)} of them cannot become a program, and are "
        "here to be refused by name.\n",
        "| backend | agrees | differs | refused | worst deviation | same bits as numpy |",
        "|---|---|---|---|---|---|",
    ]
    for backend in backends:
        rows = [found[name, backend] for name in expected if (name, backend) in found]
        status = Counter(row["status"] for row in rows)
        other = sum(status.values()) - status["agrees"] - status["refused"]
        worst = max((row["deviation"] for row in rows if row["status"] == "agrees"), default=0.0)
        bits = [
            (row["bits"], found.get((row["network"], "numpy"), {}).get("bits"))
            for row in rows
            if "bits" in row
        ]
        same = sum(ours == theirs for ours, theirs in bits)
        lines.append(
            f"| {backend} | {status['agrees']} | {other} | {status['refused']} | {worst:.1e} | {same} |"
        )
    return "\n".join(lines) + "\n"


def _group(group: str, networks: Any, found: Any, backends: list[str]) -> str:
    lines = [
        f"## {group[0].upper()}{group[1:]}\n",
        f"| network | what it is | {' | '.join(backends)} |",
        "|" + "---|" * (2 + len(backends)),
    ]
    for name, network in networks.items():
        if network.group == group:
            cells = [_cell(found.get((name, backend))) for backend in backends]
            lines.append(f"| {name} | {network.line} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    if "deviation" not in row:
        return row["status"]
    labels = "" if row["labels"] else ", other labels"
    deviation = "infinite" if row["deviation"] is None else f"{row['deviation']:.0e}"
    number = f"{deviation}{labels}"
    return number if row["status"] == "agrees" else f"**{number}**"


def _sentences(networks: Any, found: Any, backends: list[str]) -> str:
    lines = ["## Why networks are refused\n", "| network | backend | sentence |", "|---|---|---|"]
    for name in networks:
        said: dict[str, list[str]] = {}
        for backend in backends:
            row = found.get((name, backend), {})
            if row.get("why"):
                said.setdefault(row["why"], []).append(backend)
        for why, where in said.items():
            lines.append(f"| {name} | {', '.join(where)} | {why.replace('|', '/')} |")
    return "\n".join(lines) + "\n"
