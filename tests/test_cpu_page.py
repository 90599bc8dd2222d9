"""Tables of CPU measurements on the pages are those of the newest result file."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def tool(monkeypatch):
    spec = importlib.util.spec_from_file_location("cpu_page", ROOT / "tools" / "cpu_page.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "cpu_page", module)
    spec.loader.exec_module(module)
    return module


def entry(name, ratio, goal):
    return {
        "name": name, "gate": {"error": 1.5e-7}, "of_limit": 0.5, "bound_by": "copy",
        "device_state": {"load_average": 0.25},
        "peers": {"free loss": {"ratio": ratio, "error": None}, "backprop": {"ratio": 12.345}},
        "goals": [{"peer": "free loss", "ratio": goal, "reached": ratio >= goal}],
    }  # fmt: skip


@pytest.fixture
def repository(tool, tmp_path, monkeypatch):
    runs, page = tmp_path / "runs", tmp_path / "page.md"
    runs.mkdir()
    for date, ratio in (("2026-01-02", 0.5), ("2026-01-10", 0.912)):
        entries = [entry("local step, MLP, slow loss", ratio, 0.97)]
        entries.append(entry("local step, MLP, quick loss", 1.0, 0.97))
        conditions = {
            "device_name": "Some CPU", "cpu_capability": "AVX9", "logical_processors": 2,
            "versions": {"torch": "9.9"}, "date": f"{date}T00:00:00Z", "commit": "0123456789abc",
        }  # fmt: skip
        text = json.dumps({"conditions": conditions, "entries": entries})
        (runs / f"{date}.json").write_text(text)
    (runs / "2026-12-31-busy.json").write_text("{}")
    marks = ["conditions", "steps", "missed"]
    page.write_text("".join(f"<!-- cpu: {m} -->\nold\n<!-- end -->\n" for m in marks))
    for name, value in (("RUNS", runs), ("PAGES", (page,)), ("ROOT", tmp_path)):
        monkeypatch.setattr(tool, name, value)
    return page


def test_the_pages_are_current(tool, capsys):
    assert tool.main(["--check"]) == 0, capsys.readouterr().err
    for page in tool.PAGES:
        assert "<!-- cpu: " in page.read_text()


def test_pages_are_filled_from_the_newest_file(tool, repository, capsys):
    assert tool.main(["--check"]) == 1
    assert "not current: page.md" in capsys.readouterr().err and "old" in repository.read_text()
    assert tool.main([]) == 0 and tool.main(["--check"]) == 0
    text = repository.read_text()
    assert "old" not in text
    assert "Some CPU with AVX9, 2 logical processors at a load of 0.2 to 0.2, torch 9.9" in text
    assert "`runs/2026-01-10.json` (commit 0123456789)" in text
    assert "| slow loss | 0.91 | 12.3 |" in text and "| quick loss | 1.00 | 12.3 |" in text
    assert "| local step, MLP, slow loss | free loss | 0.91 | 0.97 |" in text
    assert text.count("quick loss") == 1, "a goal that was reached is not missed"


def test_unknown_marks_and_absent_files(tool, repository):
    repository.write_text("<!-- cpu: stepps -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match=r"expected a table of kl, .*, got 'stepps'"):
        tool.main([])
    for path in tool.RUNS.glob("2026-01*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"expected a file YYYY-MM-DD\.json, there is none"):
        tool.main([])
