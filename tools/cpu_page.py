"""Fills the tables of CPU measurements in docs/results.md and README.md from a result file.

    pytest bench -k "cpu and not executor and not batched" --bench-out DIR
    cp DIR/cpu.json bench/results/cpu/YYYY-MM-DD.json
    python tools/cpu_page.py            writes the pages
    python tools/cpu_page.py --check    exit status 1 if a page is not what would be written

The tables stand between marks ``<!-- cpu: NAME -->`` and ``<!-- end -->``; they are those of the
newest file whose name is a date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
PAGES: Final = (ROOT / "docs" / "results.md", ROOT / "README.md")
RUNS: Final = ROOT / "bench" / "results" / "cpu"
_MARK: Final = re.compile(r"(<!-- cpu: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}\.json")

Entry = dict[str, Any]
Maker = Callable[[list[Entry]], str]


def newest() -> Path:
    """The newest result file.

    Raises:
        ValueError: There is none.
    """
    found = sorted(path for path in RUNS.glob("*.json") if _DATE.fullmatch(path.name))
    if not found:
        raise ValueError(f"{RUNS}: expected a file YYYY-MM-DD.json, there is none")
    return found[-1]


def filled(page: str, path: Path) -> str:
    """The page with its tables made anew.

    Args:
        page: Text with marks.
        path: The result file.

    Raises:
        ValueError: A mark names no table.
    """
    run = json.loads(path.read_text())

    def replace(match: re.Match[str]) -> str:
        name = match[2]
        if name == "conditions":
            return f"{match[1]}{_conditions(run, path)}{match[3]}"
        if name not in TABLES:
            raise ValueError(f"page: expected a table of {', '.join(TABLES)}, got {name!r}")
        return f"{match[1]}{TABLES[name](run['entries'])}{match[3]}"

    return _MARK.sub(replace, page)


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    text = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in text)


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 2 else f"{value:.1f}"


def _peer(entry: Entry, peer: str) -> str:
    found = entry["peers"].get(peer)
    return "" if found is None else _ratio(found["ratio"])


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}".replace("e-0", "e-")


def _share(entry: Entry) -> str:
    return f"{100 * entry['of_limit']:.0f} % of {entry['bound_by']}"


def _named(entries: list[Entry], *starts: str) -> list[Entry]:
    return [entry for entry in entries if entry["name"].startswith(starts)]


def _kl(entries: list[Entry]) -> str:
    lines = []
    for entry in _named(entries, "posterior_kl"):
        if "next input" in entry["name"]:
            continue
        peers = ("eager formula", "torch.distributions", "compiled formula", "compiled one graph")
        errors = (entry["gate"]["error"], entry["peers"]["eager formula"]["error"])
        name = entry["name"].removeprefix("posterior_kl bernoulli ")
        cells = [name, *(_peer(entry, peer) for peer in peers), _share(entry)]
        lines.append([*cells, " / ".join(_error(error) for error in errors)])
    head = ["Bernoulli `posterior_kl`", "eager autograd", "`torch.distributions`"]
    head += ["compiled formula", "compiled one-graph gradient", "limit reached"]
    return _markdown([*head, "error of da, ours / eager"], lines)


def _listed(*starts: str) -> Maker:
    """One line for each entry and peer."""

    def make(entries: list[Entry]) -> str:
        lines = []
        for entry in _named(entries, *starts):
            for peer in entry["peers"]:
                limit = _share(entry) if entry.get("of_limit") else ""
                lines.append([entry["name"], peer, _peer(entry, peer), limit])
        return _markdown(["entry", "peer", "ratio", "limit reached"], lines)

    return make


def _steps(entries: list[Entry]) -> str:
    lines = [
        [entry["name"].split(", ")[-1], _peer(entry, "free loss"), _peer(entry, "backprop")]
        for entry in _named(entries, "local step")
    ]
    head = ["loss of the blocks", "against a free (constant-gradient) loss"]
    return _markdown([*head, "against backpropagation"], lines)


def _missed(entries: list[Entry]) -> str:
    lines = []
    for entry in entries:
        for goal in entry["goals"]:
            if not goal["reached"]:
                ratio = entry["peers"][goal["peer"]]["ratio"]
                wanted = _ratio(goal["ratio"])
                lines.append([entry["name"], goal["peer"], _ratio(ratio), wanted])
    return _markdown(["entry", "peer", "ratio", "goal"], lines) if lines else "None.\n"


def _summary(entries: list[Entry]) -> str:
    by_name = {entry["name"]: entry for entry in entries}
    lines = []
    for name, peer, text in SUMMARY:
        entry = by_name[name]
        compiled = min(
            (p["ratio"] for n, p in entry["peers"].items() if n.startswith("compiled")),
            default=None,
        )
        own, other = entry["gate"]["error"], entry["peers"][peer].get("error")
        lines.append(
            [
                text,
                f"{_peer(entry, peer)}x our time",
                "" if compiled is None else f"{_ratio(compiled)}x",
                f"{_error(own)} / {_error(other)}" if other is not None else "",
            ]
        )
    head = ["loss with gradients, one CPU thread, float32", "eager autograd takes"]
    return _markdown([*head, "best `torch.compile` form takes", "error of da, ours / eager"], lines)


def _conditions(run: dict[str, Any], path: Path) -> str:
    found = run["conditions"]
    loads = [entry["device_state"]["load_average"] for entry in run["entries"]]
    return (
        f"{found['device_name']} with {found['cpu_capability']}, {found['logical_processors']} "
        f"logical processors at a load of {min(loads):.1f} to {max(loads):.1f}, "
        f"torch {found['versions']['torch']}, {found['date'][:10]}; file "
        f"`{path.relative_to(ROOT)}` (commit {found['commit'][:10]}).\n"
    )


#: The lines of README's table: entry, the peer in its second column, and what it is called there.
SUMMARY: Final = (
    (
        "posterior_kl bernoulli stopped da [4096, 4096] float32",
        "eager formula",
        "Bernoulli `posterior_kl`, [4096, 4096]",
    ),
    (
        "posterior_kl bernoulli stopped da [4096, 4096] bfloat16",
        "eager formula",
        "the same in bfloat16",
    ),
    (
        "class_evidence_loss bernoulli [128, 4096] x 100",
        "eager autograd",
        "Bernoulli `class_evidence_loss`, [128, 4096] x 100 classes",
    ),
    (
        "class_evidence_loss gaussian [128, 4096] x 100",
        "linear + cross_entropy",
        "Gaussian `class_evidence_loss`, same size (peer: `F.linear` + `cross_entropy`)",
    ),
    (
        "local step, MLP 784-1024x4, batch 256, class_evidence_loss gaussian",
        "backprop",
        "whole local step, MLP 784-1024x4, batch 256, Gaussian (peer: backpropagation)",
    ),
)

TABLES: Final[dict[str, Maker]] = {
    "kl": _kl,
    "classes": _listed("class_evidence_loss", "linear_cross_entropy"),
    "steps": _steps,
    "others": _listed("gram_loss", "class_means", "posterior_kl bernoulli da and next input",
                      "posterior_kl gaussian", "posterior_kl categorical", "optimiser step"),
    "missed": _missed,
    "summary": _summary,
}  # fmt: skip


def main(words: Sequence[str] | None = None) -> int:
    """Writes the pages, or compares them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args(words).check
    path = newest()
    stale = []
    for page in PAGES:
        text = page.read_text()
        new = filled(text, path)
        if new != text:
            stale.append(page.name)
            if not check:
                page.write_text(new)
    if check and stale:
        print(f"not current: {', '.join(stale)}; run python tools/cpu_page.py", file=sys.stderr)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
