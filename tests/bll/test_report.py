"""The report: every form of measurement, a page that asks for nothing, comparisons, a browser."""

from __future__ import annotations

import copy
import csv
import html.parser
import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

import matplotlib.image
import pytest
from benchmark_runs import entry, gpu_run, run, summary

from bll.bench.report.compare import compare
from bll.bench.report.figures import pictures
from bll.bench.report.markdown import markdown
from bll.bench.report.read import read, read_run
from bll.bench.report.write import write_report
from bll.cli import main

ROOT = Path(__file__).resolve().parents[2]
REQUIRED = os.environ.get("BLL_REQUIRE", "").split(",")


def written(folder: Path, name: str, data: object) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A folder with a run, a training run beside its other files, and an accuracy table."""
    folder = tmp_path / "measured"
    written(folder, "quick.json", run())
    written(folder, "digits/summary.json", summary())
    written(folder, "digits/checkpoint/index.json", {"not": "a measurement"})
    rows = [
        {"dataset": "digits", "model": "mlp", "rule": rule, "family": "", "seed": seed}
        | {"test_accuracy": 90.0 + seed, "torch": "2.13.0", "commit": "abc"}
        for rule in ("bll", "bp")
        for seed in (0, 1)
    ]
    with (folder / "accuracy.csv").open("w") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder


class Page(html.parser.HTMLParser):
    """What a page loads, and the text beside its pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.captions: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "figcaption":
            self.captions.append(data)
            self.tags.append("")


def test_a_report_has_everything_its_files_have(measured, tmp_path):
    files = write_report([measured], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    names = {path.name for path in files}
    for part in ("speed-up-kernel", "roofline", "memory", "energy", "timeline", "training-digits"):
        assert any(name.startswith(part) for name in names), part
    assert any(name.startswith("accuracy") for name in names)
    pngs = [path for path in files if path.suffix == ".png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pngs)
    found = Page(page)
    assert len(found.captions) == len(pngs)
    for caption in found.captions:
        assert "torch 2.13.0" in caption or "Made-up processor" in caption, caption
        assert "commit" in caption
    # Names and reasons are text, not markup.
    assert "Liger &lt;Kernel&gt;" in page and "<Kernel>" not in page
    assert "missing: needs a GPU" in page
    assert "rejected: error 1.0e-01" in page
    assert "late entry" in page


def test_the_page_asks_for_nothing(measured, tmp_path):
    write_report([measured], tmp_path / "out")
    found = Page((tmp_path / "out" / "report.html").read_text())
    assert found.sources and all(s.startswith("data:image/png;base64,") for s in found.sources)
    assert not {"script", "link", "iframe", "object"} & set(found.tags)


def test_markdown_tables(measured):
    text = markdown(read([measured]))
    lines = text.splitlines()
    for first, second in itertools.pairwise(lines):
        if second.startswith("| ---"):
            assert first.count("|") == second.count("|")
    row = next(line for line in lines if line.startswith("| posterior_kl / a"))
    assert "| 1 ms | 3.00 [2.70, 3.30] | 0.80 [0.72, 0.88] | missing |" in row
    assert "50% of copy" in row
    assert "| gram_loss b | 2 ms |" in text and "| 0.4 |" in text
    assert "| memory net | executor | 2 | 15.7 MB |" in text
    assert "- missing: Liger <Kernel>: needs a GPU" in text
    assert "- no energy: RAPL: no package domain" in text
    assert "- REJECTED broken: error 1.0e-01" in text
    # Energy to the accuracy reached, with its factors apart: epochs x seconds x watts.
    assert "| digits | digits | mlp, 4 blocks | bll | 83.00 | 3 | 3 | 10 | 90 |" in text
    assert "| digits | mlp | bll |  | 90.00 / 91.00 |" in text


def test_committed_results_are_read(tmp_path):
    found = read([ROOT / "bench" / "results"])
    early = next(r for r in found.runs if r["source"] == "2026-11-20.json")
    first = early["entries"][0]
    assert first["name"] == "posterior_kl bernoulli stopped da [256, 4096] float32"
    assert first["peers"]["eager formula"]["ratio"] == pytest.approx(5.4508, abs=1e-4)
    assert first["bound_by"] == "copy" and first["of_limit"] == pytest.approx(0.1219, abs=1e-3)
    assert len(found.accuracy) >= 20
    assert "mlp-4-512-128.csv" in {path.name for path in found.other}
    with pytest.raises(ValueError, match="is not an accuracy table"):
        read([ROOT / "bench" / "results" / "executor" / "mlp-4-512-128.csv"])
    assert len(pictures(found)) >= 5
    for shown in found.runs:
        for each in shown["entries"]:
            assert each["rejected"] or "ours" in each or "memory" in each


def test_a_gpu_run_is_read(tmp_path):
    found = read_run(written(tmp_path, "gpu.json", gpu_run()))
    good, fast, wrong, failed = found["entries"]
    assert good["rejected"] is None
    assert good["peers"]["eager"]["ratio"] == pytest.approx(5.0)
    assert good["peers"]["distributions"]["missing"] == "OutOfMemoryError"
    assert good["of_limit"] == pytest.approx(0.5)
    assert fast["rejected"] == "impossibly fast"
    assert wrong["rejected"] == "error 5.0e-01"
    assert failed["rejected"] == "RuntimeError: no"
    assert "uncommitted changes" in markdown(read([tmp_path / "gpu.json"]))


def test_what_pytest_benchmark_writes_is_read(tmp_path):
    data = {
        "benchmarks": [{"extra_info": run()["entries"][0]}, {"extra_info": {}}],
        "machine_info": {"cpu": {"brand_raw": "Made-up processor"}, "python_version": "3.11"},
        "commit_info": {"id": "abc", "dirty": False},
        "datetime": "2026-11-24",
    }
    found = read_run(written(tmp_path, "saved.json", data))
    assert [e["name"] for e in found["entries"]] == ["posterior_kl | a"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "is not JSON"),
        ("a.json", "[]", "in no known form"),
        ("a.json", '{"x": 1}', "in no known form"),
        ("a.json", '{"environment": {}, "entries": [{}]}', "lacks what its form needs"),
        ("a.csv", "x,y\n1,2\n", "is not an accuracy table"),
    ],
)
def test_files_that_are_no_measurements(tmp_path, capsys, name, content, message):
    (tmp_path / name).write_text(content)
    assert main(["report", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_paths_that_are_not_there(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty")]) == 2
    assert "holds no .json or .csv" in capsys.readouterr().err


def slower(factor: float, name: str = "posterior_kl | a") -> dict:
    changed = copy.deepcopy(run())
    for each in changed["entries"]:
        if each["name"] == name:
            each["ours"]["seconds"] *= factor
            for peer in each["peers"].values():
                if "ratio" in peer:
                    peer["ratio"] /= factor
    return changed


def test_comparison_finds_what_became_slower():
    found = compare(run(), [slower(1.2)], "seconds")
    assert [change.name for change in found.regressions(0.1)] == ["posterior_kl | a"]
    assert found.changes[0].slower == pytest.approx(1.2)
    assert not found.regressions(0.25)
    assert len(compare(run(), [slower(1.2)], "ratio").regressions(0.1)) == 2
    assert not compare(run(), [slower(0.5)], "seconds").regressions(0.1)
    with pytest.raises(ValueError, match="by: expected one of seconds, ratio"):
        compare(run(), [run()], "feeling")
    with pytest.raises(ValueError, match="no entry in common"):
        compare(run(), [{"entries": [entry("other", 1.0, {})]}], "seconds")


def test_only_what_is_slower_twice_counts():
    assert not compare(run(), [slower(1.3), slower(1.05)], "seconds").regressions(0.1)
    assert not compare(run(), [slower(1.3), slower(1.3, "gram_loss b")], "seconds").regressions(0.1)
    assert len(compare(run(), [slower(1.3), slower(1.2)], "seconds").regressions(0.1)) == 1


def test_compare_on_the_command_line(tmp_path, capsys):
    base = str(written(tmp_path, "base.json", run()))
    same = str(written(tmp_path, "same.json", slower(1.05)))
    worse = str(written(tmp_path, "worse.json", slower(1.2)))
    lost = run()
    lost["entries"][0]["rejected"] = "error 1.0 is above 3e-07"
    lost = str(written(tmp_path, "lost.json", lost))
    assert main(["report", "--compare", base, same]) == 0
    assert "0 of 3 entries slower by more than 10%" in capsys.readouterr().out
    assert main(["report", "--compare", base, worse]) == 1
    captured = capsys.readouterr()
    assert "SLOWER  1.20 times  0.001 s -> 0.0012 s  posterior_kl | a" in captured.out
    assert "1 entries slower by more than 10%, 0 lost" in captured.err
    assert main(["report", "--compare", "--threshold", "0.3", base, worse]) == 0
    assert main(["report", "--compare", base, worse, same]) == 0
    assert main(["report", "--compare", base, lost]) == 1
    assert "MISSING posterior_kl | a" in capsys.readouterr().out
    assert main(["report", "--compare", base]) == 2
    assert main(["report", "--compare", "--threshold", "-1", base, same]) == 2


def test_a_browser_shows_the_page(measured, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if browser is None:
        if "browser" in REQUIRED:
            pytest.fail("BLL_REQUIRE asks for browser: no chromium was found")
        pytest.skip("no chromium was found")
    write_report([measured], tmp_path / "out")
    shot = tmp_path / "shot.png"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,3600"]
    command += [f"--screenshot={shot}", (tmp_path / "out" / "report.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert shot.exists(), done.stderr[-2000:]
    assert "Refused to" not in done.stderr  # a request the page's own policy stopped
    pixels = matplotlib.image.imread(shot)[..., :3]
    assert pixels.shape[:2] == (3600, 1000)
    inked = (pixels < 0.9).any(-1)
    # Text and pictures reach both halves, and the bars have their colours.
    assert 0.02 < inked[:1800].mean() < 0.6 and inked[1800:].mean() > 0.02
    for colour in ((0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00)):
        near = abs(pixels * 255 - colour).max(-1) < 12
        assert near.sum() > 2000, colour
