"""What a run writes: one JSON, one Markdown table, one log, flushed as results come."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Final

import torch

from bench.gpu.tables import markdown
from bll.atomic import write_atomically
from bll.bench.conditions import command_output
from bll.bench.conditions import gpu_state as device_state

__all__ = ["ROOT", "SECTIONS", "Record", "conditions", "device_state", "source_digest"]

ROOT: Final = Path(__file__).resolve().parents[2]
#: Where a commit is named that git cannot tell, as in a copy of the tree without `.git`.
COMMIT_VARIABLE: Final = "BLL_COMMIT"
#: Parts of the JSON beside the conditions. "plans": what a stage means to do; "without": parts of
#: an entry that ended the process that measured it, with the reason.
SECTIONS: Final = ("stages", "entries", "executors", "suites", "checks", "plans", "without")
_SOURCES: Final = ("bench", "bll_kernels", "csrc", "examples", "python", "tests", "tools")
_SUFFIXES: Final = frozenset({".py", ".h", ".cpp", ".cu", ".cuh", ".txt", ".toml"})
#: What a run was made of; a second one goes on only where all of it is the same.
_SAME: Final = ("sources", "device", "torch")


def source_digest(root: Path = ROOT) -> str:
    """SHA-256 of the names and bytes of everything that decides what a run finds."""
    digest = hashlib.sha256()
    files = [p for name in _SOURCES for p in (root / name).rglob("*") if p.suffix in _SUFFIXES]
    for path in sorted([*files, root / "setup.py"]):
        name = path.relative_to(root)
        if path.is_file() and name.parts[:2] != ("bench", "results"):
            digest.update(f"{name}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _commit() -> dict[str, Any]:
    """The commit, who names it, and whether tracked files differ from it (None: not known)."""
    git = ("git", "-C", str(ROOT))
    # A copy below somebody else's work tree must not report that project's commit.
    if command_output(*git, "ls-files", "--error-unmatch", "setup.py") is not None:
        changes = command_output(*git, "status", "--porcelain", "--untracked-files=no")
        return {
            "commit": command_output(*git, "rev-parse", "HEAD"),
            "commit_from": "git",
            "uncommitted_changes": None if changes is None else bool(changes),
        }
    named = os.environ.get(COMMIT_VARIABLE) or None
    source = None if named is None else COMMIT_VARIABLE
    return {"commit": named, "commit_from": source, "uncommitted_changes": None}


def conditions() -> dict[str, Any]:
    """What every number of a run depends on; what serves is added when it is built."""
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **_commit(),
        "sources": source_digest(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "device_state": device_state(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


class Record:
    """The results of a run in a folder.

    A second run of the same sources, torch and device continues the first. One process writes at a
    time: a stage's own, while the one that started it waits and then reads what there is.

    Args:
        folder: Of gpu.json, gpu.md and gpu.log.
        joined: This process works for the run that wrote what lies there.
    """

    def __init__(self, folder: Path, *, joined: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.stages: dict[str, dict[str, Any]] = {}
        self.entries: dict[str, dict[str, Any]] = {}
        self.executors: dict[str, dict[str, Any]] = {}
        self.suites: dict[str, dict[str, Any]] = {}
        self.checks: dict[str, dict[str, Any]] = {}
        self.plans: dict[str, list[str]] = {}
        self.without: dict[str, dict[str, str]] = {}
        self.now: dict[str, Any] = {}
        if joined:
            self.reload()
            return
        self.finished()
        self.now = conditions()
        if not self._path.is_file():
            return
        before = json.loads(self._path.read_text())
        if all(before["conditions"].get(name) == self.now[name] for name in _SAME):
            self._take(before)

    @property
    def _path(self) -> Path:
        return self.folder / "gpu.json"

    def _take(self, plain: dict[str, Any]) -> None:
        for name in SECTIONS:
            setattr(self, name, plain.get(name, {}))

    def reload(self) -> None:
        """Reads what another process has filed, and clears away what it was ended over."""
        for part in self.folder.glob(".gpu.*.part"):
            part.unlink(missing_ok=True)
        plain = json.loads(self._path.read_text())
        self.now = plain["conditions"]
        self._take(plain)

    def log(self, text: str) -> None:
        """Appends to the log and prints."""
        print(text, flush=True)
        with (self.folder / "gpu.log").open("a") as file:
            file.write(text.rstrip() + "\n")

    def stage(self, name: str, **result: Any) -> None:
        """Files how a stage ended."""
        self.stages[name] = result
        self.flush()

    def entry(self, name: str, result: dict[str, Any]) -> None:
        """Files one measured kernel."""
        self.file("entries", name, result)

    def executor(self, name: str, result: dict[str, Any]) -> None:
        """Files one network of the executor's stage."""
        self.file("executors", name, result)

    def file(self, section: str, name: str, result: dict[str, Any]) -> None:
        """Files a result; nothing is under way any more."""
        getattr(self, section)[name] = result
        self.flush()
        self.finished()

    def plan(self, stage: str, names: list[str]) -> None:
        """What a stage means to file; what is missing at its end was not reached."""
        self.plans[stage] = names
        self.flush()

    def leave_out(self, name: str, part: str, reason: str) -> None:
        """A part of an entry that ended its process: the next one goes without it."""
        self.without.setdefault(name, {})[part] = reason
        self.flush()
        self.finished()

    def begin(self, section: str, name: str, part: str, *, optional: bool = False) -> None:
        """What is under way from now on, for who must say what ended this process.

        Args:
            section: Where the entry will be filed.
            name: Of the entry.
            part: Of the entry.
            optional: Whether the entry can do without this part.
        """
        now = {"section": section, "name": name, "part": part, "optional": optional}
        write_atomically(self._under_way, json.dumps({**now, "since": time.time()}).encode())

    def finished(self) -> None:
        """Nothing is under way."""
        self._under_way.unlink(missing_ok=True)

    def under_way(self) -> dict[str, Any] | None:
        """What `begin` said last, if it is not filed."""
        try:
            found: dict[str, Any] = json.loads(self._under_way.read_text())
        except FileNotFoundError:
            return None
        return found

    @property
    def _under_way(self) -> Path:
        return self.folder / "gpu.now"

    def flush(self) -> None:
        """Writes the JSON and the table; whole files, since the process may be ended any time."""
        plain = {"conditions": self.now, **{name: getattr(self, name) for name in SECTIONS}}
        write_atomically(self._path, (json.dumps(plain, indent=1) + "\n").encode())
        write_atomically(self.folder / "gpu.md", markdown(plain).encode())
