"""The report as one page that needs no other file and asks for none."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

from bll.bench.report.figures import Picture
from bll.bench.report.markdown import energy_reasons
from bll.bench.report.read import Measurements
from bll.bench.text import (
    HEADINGS,
    HOW_TO_READ,
    busy_text,
    condition_lines,
    error_text,
    limit_text,
    seconds_text,
)

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff;
  margin: 0 auto; max-width: 62rem; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .4rem; border-bottom: 1px solid #ddd; }
h3 { font-size: 1.02rem; margin: 1.6rem 0 .3rem; }
p { margin: .35rem 0; }
.conditions, figcaption, .how { color: #555; font-size: .85rem; }
.warn { background: #fff4d6; border-left: 4px solid #e69f00; padding: .4rem .7rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: .6rem 0 1rem; font-size: .86rem; }
th, td { text-align: left; padding: .24rem .9rem .24rem 0; vertical-align: top; }
th { font-weight: 600; border-bottom: 2px solid #999; }
td { border-bottom: 1px solid #eee; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.limit { white-space: nowrap; }
th.number { text-align: right; }
tr.entry td { font-weight: 600; border-top: 1px solid #bbb; }
tr.peer td:first-child { padding-left: 1.2rem; }
.faster { color: #00603f; }
.slower { color: #b03a00; }
.missing { color: #777; }
.rejected { color: #b00020; }
figure { margin: .6rem 0 1.8rem; }
figure img { width: 100%; height: auto; border: 1px solid #eee; }
"""


def _cell(text: str, kind: str = "") -> str:
    return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"


def _peer_row(name: str, peer: dict[str, Any]) -> str:
    if "missing" in peer:
        reason = escape(peer["missing"])
        return (
            f'<tr class="peer missing"><td>{escape(name)}</td>'
            f'<td colspan="4">missing: {reason}</td></tr>'
        )
    faster = "faster" if peer["ratio"] >= 1 else "slower"
    spread = f"{peer['ratio_low']:.2f} to {peer['ratio_high']:.2f}"
    return (
        f'<tr class="peer">{_cell(name)}{_cell(seconds_text(peer["seconds"]), "number")}'
        f'<td class="number"><span class="{faster}">{peer["ratio"]:.2f}x</span> '
        f'<span class="missing">{spread}</span></td>'
        f"{_cell(error_text(peer.get('error')), 'number')}<td></td></tr>"
    )


def _entry_rows(entry: dict[str, Any]) -> str:
    if entry["rejected"]:
        return (
            f'<tr class="entry rejected">{_cell(entry["name"])}'
            f'<td colspan="4">rejected: {escape(entry["rejected"])}</td></tr>'
        )
    rows = (
        f'<tr class="entry">{_cell(entry["name"])}'
        f"{_cell(seconds_text(entry['ours']['seconds']), 'number')}<td></td>"
        f"{_cell(error_text(entry['gate']['error']), 'number')}"
        f"{_cell(limit_text(entry), 'limit')}</tr>"
    )
    return rows + "".join(_peer_row(name, peer) for name, peer in entry["peers"].items())


def _table(entries: list[dict[str, Any]]) -> str:
    head = (
        '<tr><th></th><th class="number">time</th><th class="number">ours is faster by</th>'
        '<th class="number">error</th><th>of what is possible</th></tr>'
    )
    rows = "".join(map(_entry_rows, entries))
    return f'<div class="scroll"><table>{head}{rows}</table></div>'


def _run(run: dict[str, Any], pictures: Sequence[Picture]) -> str:
    parts = [f"<h2>{escape(run['source'])}</h2>"]
    parts += [
        f'<p class="conditions">{escape(line)}</p>' for line in condition_lines(run["conditions"])
    ]
    busy = busy_text(run["conditions"])
    if busy:
        parts.append(f'<p class="warn">{escape(busy)}</p>')
    shown = [entry for entry in run["entries"] if "ours" in entry or entry["rejected"]]
    for group in dict.fromkeys(entry.get("group", "failed") for entry in shown):
        parts.append(f"<h3>{escape(HEADINGS.get(group, group))}</h3>")
        parts.append(_table([e for e in shown if e.get("group", "failed") == group]))
    notes = [f"No energy: {reason}." for reason in energy_reasons(run["entries"])]
    if run["left_out"]:
        notes.append(f"Left out, the time budget was used up: {', '.join(run['left_out'])}")
    parts += [f'<p class="conditions">{escape(note)}</p>' for note in notes]
    parts += [_picture(picture) for picture in pictures if picture.source == run["source"]]
    return "\n".join(parts)


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    return (
        f"<h3>{escape(picture.title)}</h3>\n"
        f'<figure id="{picture.name}"><img alt="{escape(picture.title, quote=True)}" '
        f'src="data:image/png;base64,{data}"><figcaption>{escape(picture.caption)}</figcaption>'
        "</figure>"
    )


def page(found: Measurements, pictures: Sequence[Picture], tables: str) -> str:
    """The page.

    Args:
        found: What was measured.
        pictures: Its pictures.
        tables: The tables of training runs and accuracy, as HTML.
    """
    of_runs = {run["source"] for run in found.runs}
    body = [
        "<h1>Benchmark report</h1>",
        f'<p class="how">{escape(" ".join(HOW_TO_READ))}</p>',
        *(_run(run, pictures) for run in found.runs),
        tables,
        *(_picture(picture) for picture in pictures if picture.source not in of_runs),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>Benchmark report</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def table_from_markdown(lines: Sequence[str]) -> str:
    """A Markdown table as `bll.bench.report.markdown` writes it, with its heading, as HTML."""
    parts, rows = [], []
    for line in lines:
        if line.startswith("## "):
            parts.append(f"<h2>{escape(line[3:])}</h2>")
        elif line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    if rows:
        head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows[2:])
        parts.append(f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>')
    return "\n".join(parts)
