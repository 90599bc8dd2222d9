"""The workflow files: what they may do, and that every command in them is one that is tested.

Where actionlint is on the path, it reads them too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
#: Owners whose actions are pinned by tag in cpu.yml, which has no secrets and no write access.
FULL_SHA = re.compile(r"^[\w.-]+/[\w./-]+@[0-9a-f]{40}$")
KEYS = {"name", "on", "permissions", "concurrency", "jobs", "env"}
JOB_KEYS = {"runs-on", "timeout-minutes", "steps", "env", "strategy", "needs", "if"}
STEP_KEYS = {"name", "uses", "with", "run", "env", "if", "id"}


def load(path: Path) -> dict[str, Any]:
    found = yaml.safe_load(path.read_text())
    # YAML 1.1 reads the key `on` as the truth value.
    return {"on" if key is True else key: value for key, value in found.items()}


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_there_are_workflows():
    assert {path.name for path in FILES} >= {"cpu.yml", "gpu.yml", "wheels.yml"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_only_known_keys(path):
    workflow = load(path)
    assert set(workflow) <= KEYS and {"name", "on", "permissions", "jobs"} <= set(workflow)
    for job in workflow["jobs"].values():
        assert set(job) <= JOB_KEYS and job["timeout-minutes"] <= 90
    for step in steps(workflow):
        assert set(step) <= STEP_KEYS and ("run" in step) != ("uses" in step)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_least_privilege(path):
    assert load(path)["permissions"] == {"contents": "read"}
    text = path.read_text()
    assert "secrets." not in text and "pull_request_target" not in text


@pytest.mark.parametrize("name", ["gpu.yml", "wheels.yml"])
def test_actions_are_pinned(name):
    workflow = load(ROOT / ".github" / "workflows" / name)
    used = [step for step in steps(workflow) if "uses" in step]
    assert used
    for step in used:
        assert FULL_SHA.match(step["uses"]), step["uses"]
        if step["uses"].startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_a_pull_request_cannot_reach_the_gpu_runner():
    workflow = load(ROOT / ".github" / "workflows" / "gpu.yml")
    assert set(workflow["on"]) == {"workflow_dispatch", "push"}
    assert workflow["on"]["push"]["branches"] == ["main"]
    assert all("self-hosted" in job["runs-on"] for job in workflow["jobs"].values())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_expression_inside_a_script(path):
    # What a person types into a form must not become part of a shell command.
    for step in steps(load(path)):
        assert "${{" not in step.get("run", "")


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_command_is_a_known_one(path):
    for step in steps(load(path)):
        for line in step.get("run", "").splitlines():
            words = line.split()
            if words[:2] == ["bash", ".ci/run"]:
                assert (ROOT / ".ci" / "run").is_file()
                continue
            assert words[0] == "make" and words[1] in make_targets(), line


def dry(*arguments: str) -> str:
    done = subprocess.run(
        ["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_targets_run_what_other_tests_run():
    # tests/test_bench_gpu.py runs the driver; tests below the rest.
    assert "python3 -m bench.gpu --out runs/gpu" in dry("gpu", "PYTHON=python3", "STAGE=")
    assert "--stage tests" in dry("gpu", "STAGE=tests")
    assert "sh tools/gpu_compare.sh a.json b" in dry("gpu-compare", "BASELINE=a.json", "OUT=b")
    assert "cibuildwheel --platform linux --output-dir dist" in dry("wheels")
    assert "tools/audit_wheel.py some.whl" in dry("wheel-audit", "WHEELS=some.whl")


def test_torch_is_tried_from_the_floor_to_the_default():
    job = load(ROOT / ".github" / "workflows" / "cpu.yml")["jobs"]["torch"]
    versions = job["strategy"]["matrix"]["torch"]
    makefile, project = ((ROOT / name).read_text() for name in ("Makefile", "pyproject.toml"))
    floor = re.search(r'"torch>=([\d.]+)"', project).group(1)
    default = re.search(r"^TORCH \?= torch==(\S+)$", makefile, re.M).group(1)
    assert versions[0].startswith(floor + ".") and versions[-1] == default
    for version in versions:
        for given in (version, f"torch=={version}"):
            text = dry("test-torch", f"TORCH={given}")
            assert f'VIRTUAL_ENV="{ROOT}/build/torch-{version}"' in text
            assert f'environment.sh test "torch=={version}"' in text
            assert f'found == "{version}"' in text


def compare(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'python'}"} | settings
    environment["PYTHON"] = sys.executable
    command = ["sh", "tools/gpu_compare.sh", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500
    )


@pytest.fixture(scope="module")
def gpu_folder(tmp_path_factory):
    """A dry run of the kernels, and baselines that it equals, beats and misses."""
    import json

    folder = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, "-m", "bench.gpu", "--dry-run", "--stage", "kernels"]
    command += ["--out", str(folder / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:]
    found = json.loads((folder / "run" / "gpu.json").read_text())
    for name, factor in (("slow", 1e6), ("fast", 1e-6)):
        scaled = json.loads(json.dumps(found))
        for entry in scaled["entries"].values():
            entry["ours"]["cold_us"] *= factor
        (folder / f"{name}.json").write_text(json.dumps(scaled))
    return folder


@pytest.mark.slow
def test_no_baseline_is_said(gpu_folder):
    done = compare(str(gpu_folder / "none.json"), str(gpu_folder / "run"))
    assert done.returncode == 0 and "nothing was compared" in done.stdout


def test_faster_than_the_baseline_passes(gpu_folder):
    done = compare(str(gpu_folder / "slow.json"), str(gpu_folder / "run"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "measuring again" not in done.stdout
    assert not (gpu_folder / "run-again").exists()


@pytest.mark.slow
def test_slower_twice_fails(gpu_folder):
    done = compare(str(gpu_folder / "fast.json"), str(gpu_folder / "run"), GPU_ARGS="--dry-run")
    assert done.returncode == 1
    assert "measuring again" in done.stdout and "SLOWER" in done.stdout
    assert (gpu_folder / "run-again" / "gpu.json").exists()


def test_a_comparison_that_cannot_be_made_fails(gpu_folder, tmp_path):
    (tmp_path / "broken.json").write_text("{")
    done = compare(str(tmp_path / "broken.json"), str(gpu_folder / "run"))
    assert done.returncode == 2 and "is not JSON" in done.stderr


def wheel_of(folder: Path, libraries: dict[str, Path], tag: str) -> Path:
    path = folder / f"bll_kernels-0-cp311-cp311-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, source in libraries.items():
            archive.write(source, f"bll_kernels/{name}")
    return path


def audit(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "audit_wheel.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.native
def test_the_audit_passes_our_libraries_and_no_others(tmp_path):
    import torch

    if shutil.which("nm") is None or shutil.which("readelf") is None:
        pytest.skip("nm and readelf of binutils are needed")
    ours = {path.name: path for path in (ROOT / "bll_kernels").glob("_C.*.so")}
    ours |= {path.name: path for path in (ROOT / "bll_kernels").glob("_core.*.so")}
    good = wheel_of(tmp_path, ours, "manylinux_2_28_x86_64")
    done = audit(str(good))
    assert done.returncode == 0, done.stderr
    local = wheel_of(tmp_path, ours, "linux_x86_64")
    assert audit(str(local), "--local").returncode == 0
    assert "expected a manylinux tag" in audit(str(local)).stderr
    # A library that uses torch's C++ ABI is found out, and so is one that is not there.
    foreign = Path(torch.__file__).parent / "lib" / "libtorch_python.so"
    done = audit(str(wheel_of(tmp_path, {"_C.abi3.so": foreign}, "manylinux_2_28_x86_64")))
    assert done.returncode == 1
    assert "of torch's C++ ABI" in done.stderr and "_core is missing" in done.stderr


def test_users_can_copy_the_block_of_the_docs():
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    block = re.search(r"```yaml\n(.*?)```", text, re.S)
    assert block is not None
    lines = block.group(1).strip().splitlines()
    assert len(lines) <= 10
    job = yaml.safe_load(block.group(1))
    commands = [step["run"] for step in job["bll-bench"]["steps"] if "run" in step]
    assert any("bll bench --quick --json bll.json" in command for command in commands)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_actionlint_finds_nothing(path):
    tool = shutil.which("actionlint")
    if tool is None:
        pytest.skip("actionlint is not installed; the checks above stand in for it")
    done = subprocess.run([tool, str(path)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout
