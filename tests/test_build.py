"""Installing without a compiler, nvcc or pybind11: the install succeeds, or its error names the reason."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "csrc", "wcord_fast")

# Argument 1 names modules to hide: one that is None in sys.modules is one that cannot be found.
RUN_SETUP = """
import runpy, sys
sys.modules.update(dict.fromkeys(filter(None, sys.argv.pop(1).split(","))))
runpy.run_path("setup.py", run_name="__main__")
"""

# Argument 1: the installed package's folder. An editable install's finder would offer the working tree's module.
USE_PACKAGE = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "Editable" not in repr(finder)]
import torch, wcord_fast
from wcord_fast.ops import native_module
assert wcord_fast.__file__.startswith(sys.argv[1]), wcord_fast.__file__
native_module.load(), native_module.load()
print(native_module.unavailable_reason("cpu"), native_module.unavailable_reason("cuda"), sep="\\n")
print(list(wcord_fast.NegativeSampler(100, 5, seed=1).draw(torch.tensor([3])).shape))
"""

# Argument 1: the path of a compiled module.
USE_MODULE = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("_native", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.with_cuda, module.philox(0, 0, 0, 0, 0, 0)[0])
"""


def has_setuptools() -> bool:
    try:
        return int(metadata.version("setuptools").split(".")[0]) >= 77
    except metadata.PackageNotFoundError:
        return False


HAS_CXX = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
HAS_NINJA = bool(shutil.which("ninja")) or importlib.util.find_spec("ninja") is not None

pytestmark = pytest.mark.skipif(not has_setuptools(), reason="setuptools 77 or later is not installed here")
needs_cxx = pytest.mark.skipif(not HAS_CXX, reason="no C++ compiler")
needs_ninja = pytest.mark.skipif(not HAS_NINJA, reason="no ninja")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the project without anything built."""
    folder = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("*.so", "_build_info.json", "__pycache__")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=ignore)
        elif (ROOT / part).is_file():
            shutil.copy2(ROOT / part, folder / part)
    return folder


def python(code: str, *args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True)


def build(source: Path, out: Path, *, hide: str = "", **env: str) -> tuple[int, dict, str]:
    """(exit status, build record, output) of a build into `out` that cannot import the modules `hide`."""
    folders = ("--build-lib", str(out), "--build-temp", str(out / "temp"))
    done = python(RUN_SETUP, hide, "-q", "build_ext", *folders, cwd=source, **env)
    record = out / "wcord_fast" / "_build_info.json"
    return done.returncode, json.loads(record.read_text()) if record.exists() else {}, done.stdout + done.stderr


def modules(out: Path) -> list[Path]:
    return list((out / "wcord_fast").glob("_native*.so"))


def without_tools(tmp_path: Path) -> dict[str, str]:
    """An environment in which no compiler is found."""
    (tmp_path / "empty").mkdir(exist_ok=True)
    return {"PATH": str(tmp_path / "empty"), "CXX": "", "CUDA_HOME": str(tmp_path / "empty")}


def test_install_without_a_compiler_succeeds_with_one_message(source, tmp_path):
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--target"]
    env = {**os.environ, **without_tools(tmp_path)}
    subprocess.run([*pip, str(target), str(source)], env=env, check=True, capture_output=True)
    assert modules(target) == []
    assert files(target, "wcord_fast") == files(source, "wcord_fast") | {"wcord_fast/_build_info.json"}
    done = python(USE_PACKAGE, str(target), cwd=tmp_path, PYTHONPATH=str(target))
    assert done.returncode == 0, done.stderr
    why_cpu, why_cuda, shape = done.stdout.strip().splitlines()
    assert "no C++ compiler was found" in why_cpu and why_cuda == why_cpu
    assert shape == "[1, 5]"
    assert done.stderr.count("without its native module") == 1


def files(folder: Path, *parts: str) -> set[str]:
    paths = (path for part in parts for path in (folder / part).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)) for path in paths if path.suffix != ".pyc"}


def test_source_distribution_contains_every_needed_file(source, tmp_path):
    done = python(RUN_SETUP, "", "-q", "sdist", "-d", str(tmp_path), cwd=source)
    assert done.returncode == 0, done.stderr
    (packed,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(packed) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    wanted = files(source, "wcord_fast", "csrc") | set(PARTS[:4])
    assert not wanted - names, wanted - names


def test_reasons_for_a_missing_module_are_recorded(source, tmp_path):
    status, record, output = build(source, tmp_path / "a", **without_tools(tmp_path))
    assert status == 0 and record["native"] is False and "no C++ compiler" in record["unavailable_reason"]
    assert "built without the native module: no C++ compiler" in output
    status, record, _ = build(source, tmp_path / "b", CXX="/no/such/compiler")
    assert status == 0 and record["unavailable_reason"] == "CXX='/no/such/compiler' cannot be run"
    status, _, output = build(source, tmp_path / "c", WCORD_FAST_CUDA="maybe")
    assert status != 0 and "WCORD_FAST_CUDA: expected auto, 0 or 1, got 'maybe'" in output
    status, _, output = build(source, tmp_path / "d", WCORD_FAST_SANITIZE="yes")
    assert status != 0 and "WCORD_FAST_SANITIZE: expected 0 or 1, got 'yes'" in output
    status, _, output = build(source, tmp_path / "e", WCORD_FAST_SANITIZE="1", WCORD_FAST_CUDA="1")
    assert status != 0 and "WCORD_FAST_CUDA=1, but the CUDA code cannot be built: WCORD_FAST_SANITIZE=1" in output


@needs_cxx
@needs_ninja
def test_missing_build_tools_are_named(source, tmp_path):
    status, record, _ = build(source, tmp_path / "a", hide="pybind11,torch")
    assert status == 0 and "pybind11 was not found" in record["unavailable_reason"]
    (tmp_path / "bin").mkdir()
    cxx = next(compiler for name in ("c++", "g++", "clang++") if (compiler := shutil.which(name)))
    env = {"PATH": str(tmp_path / "bin"), "CXX": cxx}
    status, record, _ = build(source, tmp_path / "b", hide="ninja", **env)
    assert status == 0 and "ninja was not found" in record["unavailable_reason"]
    status, _, output = build(source, tmp_path / "c", WCORD_FAST_CUDA="1", CUDA_HOME=str(tmp_path / "bin"))
    assert status != 0 and "WCORD_FAST_CUDA=1, but the CUDA code cannot be built: nvcc was not found" in output


@needs_cxx
@needs_ninja
@pytest.mark.slow
def test_build_without_nvcc_records_the_reason(source, tmp_path, monkeypatch):
    """C++ only, if requested or if nvcc is missing or broken; pybind11 from torch; incremental; nothing stale.

    Without optimisation, which takes most of a compiler's time, and without assertions, which name files.
    """
    out, none = tmp_path / "out", str(tmp_path / "none")
    cxx = next(compiler for name in ("c++", "g++", "clang++") if (compiler := shutil.which(name)))
    monkeypatch.setenv("CXX", script(tmp_path / "unoptimised", f'exec {cxx} "$@" -O0 -D_GLIBCXX_NO_ASSERTIONS'))
    # Ninja as a binary on PATH only; one and the same throughout, since each version distrusts another's log.
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable), prepend=os.pathsep)
    status, record, output = build(source, out, hide="ninja", WCORD_FAST_CUDA="0")
    assert status == 0 and record["native"] and not record["cuda"], output
    assert record["cuda_unavailable_reason"] == "built with WCORD_FAST_CUDA=0"
    (module,) = modules(out)
    assert not re.findall(
        rb"/[\w.-]+/[\w./-]+\.(?:h|hpp|cpp|inl)\b", module.read_bytes()
    )  # no path of this machine in it
    done = python(USE_MODULE, str(module), cwd=tmp_path)
    assert done.stdout.split() == ["False", str(0x6627E8D5)], done.stderr

    def objects() -> dict[str, int]:
        return {p.name: p.stat().st_mtime_ns for p in (source / "build").rglob("*.o")}

    before = objects()
    status, record, _ = build(source, out, CUDA_HOME=none, hide="ninja")
    assert status == 0 and record["native"] and "nvcc was not found" in record["cuda_unavailable_reason"]
    assert objects() == before  # nothing was compiled again

    fake = tmp_path / "fake" / "bin" / "nvcc"
    fake.parent.mkdir(parents=True)
    fake.write_text("#!/bin/sh\necho this nvcc is broken >&2\nexit 1\n")
    fake.chmod(0o755)
    status, record, output = build(source, out, CUDA_HOME=str(tmp_path / "fake"), hide="ninja")
    assert status == 0 and record["native"] and not record["cuda"], output
    assert "this nvcc is broken" in record["cuda_unavailable_reason"]
    status, _, output = build(
        source, tmp_path / "refused", CUDA_HOME=str(tmp_path / "fake"), WCORD_FAST_CUDA="1", hide="ninja"
    )
    assert status != 0 and "this nvcc is broken" in output and modules(tmp_path / "refused") == []

    status, record, output = build(source, out, hide="ninja,pybind11", WCORD_FAST_CUDA="0")
    assert status == 0 and record["native"], output  # the headers that torch ships

    status, record, _ = build(source, out, **without_tools(tmp_path))
    assert status == 0 and not record["native"] and modules(out) == []


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("variable", "archs"),
    [
        ("", ["80", "90", "100"]),  # the architectures of the default that this nvcc knows
        ("90", ["90"]),
        ("10.0, 8.6 86", ["86", "100"]),
        ("native", ["86", "90"]),
    ],
)
def test_cuda_architectures_are_chosen_from_variable_or_device(variable, archs, tmp_path, monkeypatch):
    nvcc = script(tmp_path / "nvcc", "echo sm_80; echo sm_86; echo sm_90; echo sm_100")
    script(tmp_path / "nvidia-smi", "echo 9.0; echo 8.6; echo 9.0")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("WCORD_FAST_CUDA_ARCHS", variable)
    assert build_functions(monkeypatch)["cuda_archs"](nvcc) == archs


def test_a_gpu_that_nvcc_does_not_know_is_named(tmp_path, monkeypatch):
    nvcc = script(tmp_path / "nvcc", "echo sm_70")
    names = build_functions(monkeypatch)
    monkeypatch.setenv("WCORD_FAST_CUDA_ARCHS", "70 90")
    with pytest.raises(names["CannotBuild"], match=r"does not know \['90'\], but \['70'\]"):
        names["cuda_archs"](nvcc)
    monkeypatch.delenv("WCORD_FAST_CUDA_ARCHS")
    with pytest.raises(names["CannotBuild"], match="knows none"):
        names["cuda_archs"](nvcc)


@pytest.mark.parametrize("command", ["g++", "ccache g++", "/usr/bin/sccache clang++ -m64"])
def test_nvcc_gets_the_compiler_of_a_command_with_a_launcher(command, monkeypatch):
    assert build_functions(monkeypatch)["host_compiler"](command.split()) in ("g++", "clang++")


def test_pythons_share_the_objects_that_no_python_header_goes_into(tmp_path, monkeypatch):
    names = build_functions(monkeypatch)
    monkeypatch.setitem(names["compile_module"].__globals__, "run", lambda command: "")
    tools = SimpleNamespace(cxx=["g++"], ninja="ninja", includes=[], openmp=True, sanitize=[])
    folders, objects = set(), []
    for tag in ("cpython-311", "cpython-312"):
        monkeypatch.setattr(sys.implementation, "cache_tag", tag)
        folders.add(names["compile_module"](tmp_path, tools, None).parent)
        (file,) = tmp_path.glob("*/build.ninja")
        objects.append(set(re.findall(r"^build (\S+\.o):", file.read_text(), re.M)))
    shared = objects[0] & objects[1]
    assert len(folders) == 1 and {name.split("_")[0] for name in shared} == {"cpu"}
    assert objects[0] - shared == {f"cpython-311_csrc_{path.name}.o" for path in (ROOT / "csrc").glob("*.cpp")}


def build_functions(monkeypatch) -> dict:
    """The functions of setup.py, loaded without a build."""
    import setuptools

    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    return runpy.run_path(str(ROOT / "setup.py"))
