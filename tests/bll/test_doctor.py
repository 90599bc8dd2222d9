"""``bll doctor``: the diagnosis as tables and as JSON."""

from __future__ import annotations

import json
import subprocess
import sys

import torch

import bll_kernels
from bll.cli import main
from bll.commands import doctor
from bll.training import machine


def test_json_on_standard_output_and_in_a_file_agree(tmp_path, capsys):
    assert main(["doctor", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert main(["doctor", "--json", str(tmp_path / "report.json")]) == 0
    assert capsys.readouterr().out == ""
    assert json.loads((tmp_path / "report.json").read_text()) == printed
    assert printed["versions"]["torch"] == torch.__version__
    assert set(printed["backends"]) == set(bll_kernels.available())
    for name, reason in bll_kernels.available().items():
        assert printed["backends"][name]["usable"] == (reason is None)
    for function, served in printed["functions"].items():
        assert served["cpu"] == bll_kernels.backend_for(function, device="cpu")
    assert "bll" in printed["rules"]


def test_tables_name_versions_backends_and_functions(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for word in (torch.__version__, "reference", "native", "posterior_kl", "safetensors"):
        assert word in printed


def test_what_was_built_is_printed_as_it_is(capsys, monkeypatch):
    """Brackets, as in nvcc's flags, are no markup."""
    flags = "code=[sm_100,compute_100]"
    found = {**doctor.diagnose(), "build": {"cuda_flags": flags}}
    monkeypatch.setattr(doctor, "diagnose", lambda: found)
    assert main(["doctor"]) == 0
    assert flags in capsys.readouterr().out


def test_python_dash_m_bll_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "bll", "doctor", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["versions"]["torch"] == torch.__version__


def test_backends_of_a_run_cover_the_public_losses():
    served = machine.backends(torch.device("cpu"), torch.float32)
    assert set(served) == set(machine.OPERATIONS)
    assert set(served.values()) <= set(bll_kernels.available())


def test_commit_is_that_of_the_work_tree_or_unknown(monkeypatch):
    revision, has_changes = machine.commit()
    assert (revision is None) == (has_changes is None)
    assert revision is None or len(revision) == 40
    monkeypatch.setenv("PATH", "")
    assert machine.commit() == (None, None)


def test_peak_memory_is_that_of_this_process():
    assert 50e6 < machine.peak_memory_bytes(torch.device("cpu")) < 1e12
