"""The build: what it compiles, what it asks of torch, and that it never stands in the way."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "bll_kernels"


def run(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
        env={**os.environ, **environment},
    )


def setup_says(expression: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = f"import setup; from pathlib import Path; print({expression})"
    return run(sys.executable, "-c", code, **environment)


def copy_of_the_project(folder: Path) -> Path:
    """What a build reads, without what earlier builds left."""
    folder.mkdir()
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed.returncode != 0:
        pytest.skip("not a git checkout: cannot tell sources from build outputs")
    for name in filter(None, listed.stdout.split("\0")):
        folders = ("bll_kernels/", "python/", "csrc/", "tools/native_build/")
        wanted = name.startswith(folders) or "/" not in name
        if wanted and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def built(name: str) -> Path:
    found = sorted(PACKAGE.glob(f"{name}.*so"))
    if not found:
        pytest.skip(f"{name} is not built here")
    return found[0]


def test_setup_takes_every_source_of_its_folders():
    for folder in ("cpu", "torch", "numpy"):
        listed = setup_says(f"*setup.sources({folder!r}), sep=','")
        assert listed.returncode == 0, listed.stderr
        expected = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc" / folder).glob("*.cpp"))
        assert listed.stdout.strip().split(",") == expected
        assert expected


def test_cmake_takes_the_same_sources(tmp_path):
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("cmake or a C++ compiler is missing")
    configured = run("cmake", "-S", str(ROOT), "-B", str(tmp_path))
    assert configured.returncode == 0, configured.stderr
    of_cmake = sorted((tmp_path / "sources.txt").read_text().split(";"))
    listed = setup_says(
        "*(p for f in ('cpu', 'torch', 'numpy') for p in setup.sources(f)), sep=','"
    )
    assert of_cmake == sorted(listed.stdout.strip().split(","))


def test_flags_come_from_one_file():
    flags = (ROOT / "csrc" / "cxxflags.txt").read_text().split()
    assert "-ffast-math" not in flags and not any(f.startswith("-march") for f in flags)
    assert "csrc/cxxflags.txt" in (ROOT / "CMakeLists.txt").read_text()
    assert setup_says("*setup.cxx_flags()").stdout.split() == flags


def test_one_gpu_is_enough_to_compile_for():
    flags = (ROOT / "csrc" / "nvccflags.txt").read_text().split()
    targets = [target for word, target in itertools.pairwise(flags) if word == "-gencode"]
    assert len(targets) >= 3
    rest = [f for f in flags if f != "-gencode" and f not in targets]
    asked = "*setup.nvcc_flags()"
    assert setup_says(asked, BLL_CUDA_ARCHS="").stdout.split() == flags
    one = setup_says(asked, BLL_CUDA_ARCHS="90").stdout.split()
    assert one == [*rest, "-gencode", "arch=compute_90,code=sm_90"]
    two = setup_says(asked, BLL_CUDA_ARCHS="80;100").stdout.split()
    assert two[-3:] == ["arch=compute_80,code=sm_80", "-gencode", "arch=compute_100,code=sm_100"]
    for wrong in ("sm_90", "75", "9.0"):
        done = setup_says(asked, BLL_CUDA_ARCHS=wrong)
        assert done.returncode != 0 and f"such as 80,90; got {wrong!r}" in done.stderr


@pytest.mark.native
def test_torch_library_asks_for_stable_symbols_only():
    library = built("_C")
    if shutil.which("nm") is None:
        pytest.skip("nm is missing")
    symbols = {line.split()[-1] for line in run("nm", "-D", "-u", str(library)).stdout.splitlines()}
    of_torch = {s for s in symbols if re.match(r"(aoti_)?torch_", s)}
    assert "torch_parallel_for" in of_torch
    system = re.compile(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_|^(_ITM_|__gmon_start__|__cxa_finalize)")
    foreign = {s for s in symbols - of_torch if not system.search(s)}
    assert not foreign
    assert not any("Py" in s for s in symbols)


@pytest.mark.native
def test_torch_library_names_no_machine_path():
    library = built("_C")
    if shutil.which("readelf") is None:
        pytest.skip("readelf is missing")
    dynamic = run("readelf", "-d", str(library)).stdout
    assert "libtorch_cpu.so" in dynamic
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic
    assert str(ROOT).encode() not in library.read_bytes()


@pytest.mark.native
def test_build_info_says_what_was_built():
    built("_C")
    info = json.loads((PACKAGE / "_build_info.json").read_text())
    assert info["targets"].keys() == {"_core", "_C", "_C_cuda"}
    assert info["targets"]["_core"] is info["targets"]["_C"] is None
    assert info["mode"] in ("auto", "cpu", "cuda")
    for fact in ("torch_version", "python", "compiler", "flags", "machine", "time"):
        assert info[fact]


def test_unknown_mode_is_refused():
    done = run(sys.executable, "setup.py", "--version", BLL_BUILD="fast")
    assert done.returncode != 0
    assert "BLL_BUILD: expected one of auto, cpu, cuda, none, got 'fast'" in done.stderr


def reasons(mode: str, **environment: str) -> dict[str, str]:
    """Why targets are left out, of those that anything is missing for."""
    code = (
        "import json, setup\n"
        "found = {}\n"
        "for target in setup.TARGETS:\n"
        f"    try: target.needs({mode!r})\n"
        "    except setup.Missing as error: found[target.name] = str(error)\n"
        "print(json.dumps(found))"
    )
    done = run(sys.executable, "-c", code, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_which_modes_build_for_cuda(tmp_path):
    assert reasons("cpu")["_C_cuda"] == "BLL_BUILD=cpu"
    nowhere = {"CUDA_HOME": str(tmp_path), "PATH": str(tmp_path)}
    for mode in ("auto", "cuda"):
        assert reasons(mode, **nowhere)["_C_cuda"] == "nvcc not found (set CUDA_HOME)"
    expected = [set(), {"_core", "_C"}, {"_core", "_C", "_C_cuda"}, set()]
    listed = setup_says("[setup.required(mode) for mode in setup.MODES]")
    assert eval(listed.stdout) == expected


def test_an_automatic_build_for_cuda_needs_a_torch_with_cuda():
    missing = reasons("cuda")
    if "_C_cuda" in missing:
        pytest.skip(missing["_C_cuda"])
    with_cuda = (Path(torch.__file__).parent / "lib/libtorch_cuda.so").exists()
    assert ("_C_cuda" not in reasons("auto")) is with_cuda


def test_setup_never_imports_torch():
    done = run(
        sys.executable,
        "-X",
        "importtime",
        "-c",
        "import setup; setup.find_torch()",
        BLL_BUILD="auto",
    )
    assert done.returncode == 0, done.stderr
    assert not re.search(r"\|\s+torch$", done.stderr, re.M)


def test_a_missing_compiler_is_a_reason_and_an_error_where_asked_for(tmp_path):
    source = copy_of_the_project(tmp_path / "source")
    code = "import setup; print(setup.build_targets('auto').reasons)"
    found = run(sys.executable, "-c", code, cwd=source, CXX="no-such-compiler")
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("no C++ compiler found (looked for no-such-compiler)") == 3
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path / "out")]
    strict = run(*command, cwd=source, CXX="no-such-compiler", BLL_BUILD="cpu")
    assert strict.returncode != 0
    assert "BLL_BUILD=cpu: not everything could be built" in strict.stderr
    relaxed = run(*command, cwd=source, CXX="no-such-compiler", BLL_BUILD="auto")
    assert relaxed.returncode == 0, relaxed.stderr
    assert "bll_kernels._C: not built: no C++ compiler found" in relaxed.stdout


def test_an_old_torch_is_a_reason(tmp_path):
    folder = tmp_path / "torch"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "version.py").write_text("__version__ = '2.6.0+cpu'\n")
    code = (
        f"import sys, setup; sys.path.insert(0, {str(tmp_path)!r})\n"
        "try: setup.find_torch()\nexcept setup.Missing as error: print(error)"
    )
    done = run(sys.executable, "-c", code)
    assert done.stdout.strip() == "torch 2.6.0+cpu is too old (needs >= 2.11)", done.stderr


@pytest.mark.slow
def test_installs_and_works_without_compiled_parts(tmp_path):
    source = copy_of_the_project(tmp_path / "source")
    stale = source / "bll_kernels" / "_C.abi3.so"
    stale.write_bytes(b"left by an earlier build")
    target = tmp_path / "target"
    command = [sys.executable, "-m", "pip", "install", str(source), "--no-deps"]
    command += ["--no-build-isolation", "--disable-pip-version-check", "--target", str(target)]
    done = run(*command, cwd=tmp_path, BLL_BUILD="none")
    assert done.returncode == 0, done.stderr
    assert not list(target.rglob("*.so"))
    info = json.loads((target / "bll_kernels" / "_build_info.json").read_text())
    assert info["targets"] == dict.fromkeys(("_core", "_C", "_C_cuda"), "BLL_BUILD=none")
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r})\n"
        "import torch, bll_kernels\n"
        f"assert bll_kernels.__file__.startswith({str(target)!r})\n"
        "assert bll_kernels.available()['native'] is not None\n"
        "print(bll_kernels.posterior_kl(torch.zeros(2, 3), torch.ones(2, 3), 'bernoulli').item())"
    )
    used = run(sys.executable, "-c", code, cwd=tmp_path)
    assert used.returncode == 0, used.stderr
    assert float(used.stdout) > 0


@pytest.mark.slow
def test_core_tests_pass_under_ctest(tmp_path):
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("cmake or a C++ compiler is missing")
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(tmp_path)],
        ["cmake", "--build", str(tmp_path), "--parallel", "2"],
        ["ctest", "--test-dir", str(tmp_path), "--output-on-failure", "--no-tests=error"],
    ):
        done = run(*command)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
