"""Writes docs/models.md: `python -m tools.model_matrix [--out FILE] [--only SOURCE]`."""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from tools.model_matrix.candidates import (
    own_candidates,
    timm_candidates,
    transformers_candidates,
)
from tools.model_matrix.check import Outcome, check

_SOURCES = {
    "bll": own_candidates,
    "transformers": transformers_candidates,
    "timm": timm_candidates,
}
_INTRO = """# Models

What `bll.wrap(model, num_classes=..., example=...)` makes of models it was not written for, without
a word on where to cut. Made by `python -m tools.model_matrix`, not edited by hand. {versions}.

For every model: no gradient of a block's loss leaves the block, evaluation runs the same operations
as before, the names in `state_dict` are the old ones and those under `bll.`, `unwrap` gives the
same tensors back. Models marked *meta* were asked on the meta device only; those marked *bits* also
ran with random weights, and evaluation had the bits of the plain model while wrapped and after
`unwrap`. A refused model is as it was; its reason is the error's text. *apart*: the executor may
run the blocks apart. Where automatic cuts are refused, cuts by name, `cut_tensors=True` or untied
weights may still do.
"""
_HEADER = "| family | model | parameters | blocks | checked | remark |"


def main() -> int:
    """Check every model, print a line for each, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="the page to write, such as docs/models.md")
    parser.add_argument("--only", choices=list(_SOURCES), action="append")
    parser.add_argument("--log", type=Path, help="outcomes as JSON lines, taken as done if there")
    parser.add_argument("--part", type=int, default=0, help="which of --parts to check")
    parser.add_argument("--parts", type=int, default=1, help="for several processes on one --log")
    given = parser.parse_args()
    torch.set_num_threads(1)
    outcomes, failures = _read(given.log), 0
    done = {(outcome.source, outcome.family) for outcome in outcomes}
    for source in given.only or _SOURCES:
        for candidate in _SOURCES[source]()[given.part :: given.parts]:
            if (source, candidate.family) in done:
                continue
            try:
                outcome = check(candidate)
            except Exception:
                print(f"{source} {candidate.name}: FAILED\n{traceback.format_exc()}", flush=True)
                failures += 1
                continue
            outcomes.append(outcome)
            if given.log:
                with given.log.open("a") as log:
                    log.write(json.dumps(asdict(outcome)) + "\n")
            result = outcome.refusal or f"{outcome.blocks} blocks {outcome.warned}"
            print(f"{source} {candidate.name}: {result} ({outcome.seconds:.1f} s)", flush=True)
    if failures:
        print(f"{failures} models failed; nothing is written")
    elif given.out:
        given.out.write_text(page(outcomes))
    return int(failures > 0)


def _read(log: Path | None) -> list[Outcome]:
    if log is None or not log.exists():
        return []
    return [Outcome(**json.loads(line)) for line in log.read_text().splitlines()]


def page(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes as a page."""
    names = ("torch", "timm", "transformers")
    used = [n for n in names if n == "torch" or any(o.source == n for o in outcomes)]
    parts = [_INTRO.format(versions=", ".join(f"{name} {version(name)}" for name in used))]
    for source in [s for s in _SOURCES if any(outcome.source == s for outcome in outcomes)]:
        rows = [outcome for outcome in outcomes if outcome.source == source]
        rows.sort(key=lambda row: row.family)
        wrapped = sum(not row.refusal for row in rows)
        parts.append(f"## {source}: {wrapped} of {len(rows)} wrapped\n")
        parts += [_HEADER, "|---|---|---|---|---|---|"]
        parts += [_line(row) for row in rows]
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def _line(row: Outcome) -> str:
    note = row.refusal or row.warned or ("apart" if row.apart else "")
    checked = "-" if row.refusal else ("bits" if row.values else "meta")
    blocks = "refused" if row.refusal else str(row.blocks)
    text = note.replace("|", "\\|").replace("\n", " ")
    cells = (row.family, f"`{row.name}`", f"{row.parameters:,}", blocks, checked, text)
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
