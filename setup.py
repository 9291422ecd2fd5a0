"""Builds the compiled core, `wcord_fast._native`: C++ always, CUDA when nvcc is found. The rest is in pyproject.toml.

csrc knows no torch, so neither does this file: it needs a C++17 compiler, pybind11's headers and ninja. Nothing is
downloaded. When the core cannot be built the install still succeeds, and `wcord_fast/_build_info.json` says why it is
without it.

WCORD_FAST_CUDA = auto (default): CUDA if nvcc is found and works, else C++ only, with the reason recorded
                  0: C++ only
                  1: CUDA, or the install fails with the reason
WCORD_FAST_CUDA_ARCHS = "80 90": the GPUs to make machine code for, by compute capability; the last one's PTX is for
                        newer ones. "native": those of this machine. Default: 80, 90, 100 and 120, as nvcc knows them
WCORD_FAST_SANITIZE = 1: AddressSanitizer and UndefinedBehaviorSanitizer in the C++ code, and no CUDA (CONTRIBUTING.md)
CXX, CUDA_HOME and MAX_JOBS mean what they usually mean.
"""

import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
CUDA_ARCHS = ("80", "90", "100", "120")  # by default, those of them that nvcc knows
CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-DNDEBUG", "-Wall", "-Wextra", "-ffp-contract=off"]
SANITIZE_FLAGS = ["-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"]
NVCC_FLAGS = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall"]
INFO_NAME = "_build_info.json"


class CannotBuild(Exception):
    """The reason why something cannot be built here, for the user to read."""


def run(command: list[str]) -> str:
    """Standard output of `command`, or CannotBuild with the end of what it printed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as e:
        raise CannotBuild(f"{command[0]} cannot be run: {e}") from e
    if done.returncode != 0:
        output = (done.stdout + done.stderr).strip().splitlines()
        raise CannotBuild(f"{Path(command[0]).name} failed: " + "\n".join(output[-25:]))
    return done.stdout


def find_cxx() -> list[str]:
    """The C++ compiler's command: $CXX, else the first of Python's own, c++, g++ and clang++ that is there."""
    named = os.environ.get("CXX")
    if named:
        command = shlex.split(named)
        if shutil.which(command[0]) is None:
            raise CannotBuild(f"CXX={named!r} cannot be run")
        return command
    own = shlex.split(sysconfig.get_config_var("CXX") or "")[:1]
    for name in [*own, "c++", "g++", "clang++"]:
        if shutil.which(name):
            return [name]
    raise CannotBuild("no C++ compiler was found (looked for $CXX, c++, g++ and clang++)")


def host_compiler(command: list[str]) -> str:
    """The compiler itself of a C++ command, for nvcc: CXX may begin with a launcher ("ccache g++")."""
    launchers = ("ccache", "sccache", "distcc", "icecc")
    return next((word for word in command if Path(word).stem not in launchers), command[0])


def find_ninja() -> str:
    """The ninja binary: the `ninja` package's, else one on PATH."""
    spec = importlib.util.find_spec("ninja")
    if spec is not None:
        import ninja

        for folder in (getattr(ninja, "BIN_DIR", None), os.path.dirname(sys.executable)):
            binary = shutil.which("ninja", path=folder) if folder else None
            if binary:
                return binary
    binary = shutil.which("ninja") or shutil.which("ninja-build")
    if not binary:
        raise CannotBuild("ninja was not found (pip install ninja)")
    return binary


def find_pybind11() -> Path:
    """The folder that holds pybind11/pybind11.h: its own, else the copy that torch ships (without importing torch)."""
    folders = []
    if importlib.util.find_spec("pybind11") is not None:
        import pybind11

        folders.append(Path(pybind11.get_include()))
    torch = importlib.util.find_spec("torch")
    if torch is not None:
        folders += [Path(p) / "include" for p in torch.submodule_search_locations or ()]
    for folder in folders:
        if (folder / "pybind11" / "pybind11.h").is_file():
            return folder
    raise CannotBuild("pybind11 was not found (pip install pybind11)")


def find_python_headers() -> Path:
    folder = Path(sysconfig.get_paths()["include"])
    if not (folder / "Python.h").is_file():
        raise CannotBuild(f"Python.h is not in {folder} (install the Python development package)")
    return folder


def find_nvcc() -> str:
    """$CUDA_HOME/bin/nvcc if CUDA_HOME is set, else nvcc on PATH, else /usr/local/cuda."""
    home = os.environ.get("CUDA_HOME")
    if home:
        nvcc = shutil.which("nvcc", path=os.path.join(home, "bin"))
        where = f"CUDA_HOME={home!r}"
    else:
        nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
        where = "PATH and /usr/local/cuda"
    if not nvcc:
        raise CannotBuild(f"nvcc was not found (looked in {where})")
    return nvcc


def cuda_archs(nvcc: str) -> list[str]:
    """The compute capabilities to compile for, "90" for 9.0, in ascending order, or CannotBuild."""
    known = {name.removeprefix("sm_") for name in run([nvcc, "--list-gpu-code"]).split()}
    architectures = os.environ.get("WCORD_FAST_CUDA_ARCHS", "").replace(",", " ").replace(".", "").split()
    if architectures == ["native"]:
        architectures = run(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]).replace(".", "").split()
    unknown = sorted(set(architectures) - known)
    if unknown:
        raise CannotBuild(f"WCORD_FAST_CUDA_ARCHS: {nvcc} does not know {unknown}, but {sorted(known, key=int)}")
    archs = sorted(set(architectures) or known.intersection(CUDA_ARCHS), key=int)
    if not archs:
        raise CannotBuild(f"{nvcc} knows none of the GPUs {CUDA_ARCHS}")
    return archs


def cuda_setting() -> str:
    value = os.environ.get("WCORD_FAST_CUDA", "auto").strip().lower() or "auto"
    if value not in ("auto", "0", "1"):
        raise SystemExit(f"WCORD_FAST_CUDA: expected auto, 0 or 1, got {value!r}")
    return value


def sanitizing() -> bool:
    value = os.environ.get("WCORD_FAST_SANITIZE", "0").strip() or "0"
    if value not in ("0", "1"):
        raise SystemExit(f"WCORD_FAST_SANITIZE: expected 0 or 1, got {value!r}")
    return value == "1"


class Tools:
    """The commands and folders of one build; finding them raises CannotBuild."""

    def __init__(self) -> None:
        self.cxx = find_cxx()
        self.ninja = find_ninja()
        self.includes = [f"-isystem{find_python_headers()}", f"-isystem{find_pybind11()}"]
        self.openmp = self._compiles("int main() { return 0; }", "-fopenmp")
        self.sanitize = SANITIZE_FLAGS if sanitizing() else []

    def _compiles(self, source: str, *flags: str) -> bool:
        """Whether a program compiles and links: proof of a flag, or of the compiler itself."""
        command = [*self.cxx, "-x", "c++", "-", "-o", os.devnull, *flags]
        return subprocess.run(command, input=source, text=True, capture_output=True).returncode == 0


def write_ninja(folder: Path, tools: Tools, nvcc: str | None) -> Path:
    """Writes folder/build.ninja and returns the path of the module that it makes."""
    openmp = ["-fopenmp"] if tools.openmp else []
    cxx = [*tools.cxx, *CXX_FLAGS, *openmp, *tools.sanitize]
    binding = [*cxx, "-O1", f"-DWCF_WITH_CUDA={int(nvcc is not None)}", *tools.includes]
    link = [*tools.cxx, "-shared", *openmp, *tools.sanitize]
    rules = {}
    if nvcc:
        archs = cuda_archs(nvcc)
        last = archs[-1]
        codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
        codes.append(f"-gencode=arch=compute_{last},code=compute_{last}")
        listed = " ".join([*(f"sm_{a}" for a in archs), f"compute_{last}"])
        binding += [f'-DWCF_CUDA_ARCHS="{listed}"', *cuda_includes(nvcc)]
        host = ["-ccbin", host_compiler(tools.cxx)]
        rules["cuda"] = [nvcc, *NVCC_FLAGS, *host, *codes]
        link = [nvcc, *host, "-shared", "-cudart", "static", *(x for f in openmp for x in ("-Xcompiler", f))]
    rules |= {"cxx": cxx, "binding": binding}
    lines = ["ninja_required_version = 1.5"]
    for name, command in rules.items():
        lines += [
            f"rule {name}",
            f"  command = {quoted(command)} -MD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
        ]
    lines += ["rule link", f"  command = {quoted(link)} $in -o $out"]
    objects = []
    for source in sources(with_cuda=nvcc is not None):
        rule = {".cu": "cuda", ".cpp": "binding" if source.parent == CSRC else "cxx"}[source.suffix]
        python = f"{sys.implementation.cache_tag}_" if rule == "binding" else ""  # the others suit every Python
        objects.append(f"{python}{source.parent.name}_{source.name}.o")
        path = re.sub(r"([$ :])", r"$\1", str(source))
        lines.append(f"build {objects[-1]}: {rule} {path}")
    target = folder / ("_native" + sysconfig.get_config_var("EXT_SUFFIX"))
    lines.append(f"build {target.name}: link {' '.join(objects)}")
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    return target


def quoted(command: list[str]) -> str:
    return shlex.join(command).replace("$", "$$")


def cuda_includes(nvcc: str) -> list[str]:
    """The flags that let the host compiler find cuda_runtime_api.h where nvcc does."""
    output = subprocess.run([nvcc, "-dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True).stderr
    line = next((x for x in output.splitlines() if "INCLUDES=" in x), "")
    folders = [Path(part.removeprefix("-I")) for part in shlex.split(line.partition("INCLUDES=")[2])]
    folders.append(Path(os.path.realpath(nvcc)).parent.parent / "include")
    return [f"-isystem{p}" for p in folders if (p / "cuda_runtime_api.h").is_file()]


def sources(*, with_cuda: bool) -> list[Path]:
    sources = [*sorted(CSRC.glob("*.cpp")), *sorted((CSRC / "cpu").glob("*.cpp"))]
    return sources + sorted((CSRC / "cuda").glob("*.cu")) if with_cuda else sources


def compile_module(temp: Path, tools: Tools, nvcc: str | None) -> Path:
    """Runs ninja in a folder of this compiler's own, kept so that the next build, of any Python, is incremental."""
    key = repr((tools.cxx, *tools.sanitize))
    folder = temp / f"native-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    target = write_ninja(folder, tools, nvcc)
    jobs = os.environ.get("MAX_JOBS")
    run([tools.ninja, "-C", str(folder), *(["-j", jobs] if jobs else []), target.name])
    return target


def build(temp: Path) -> tuple[Path | None, dict[str, object]]:
    """The compiled module, or None, and a record of the parts that were built and of the reasons for the others."""
    setting = cuda_setting()
    info: dict[str, object] = {
        "native": False,
        "unavailable_reason": None,
        "cuda": False,
        "cuda_unavailable_reason": None,
    }
    try:
        tools = Tools()
        info["compiler"] = run([*tools.cxx, "--version"]).splitlines()[0]
        nvcc = None
        if tools.sanitize and setting == "1":
            raise CannotBuild("WCORD_FAST_SANITIZE=1 builds none")
        if tools.sanitize or setting == "0":
            info["cuda_unavailable_reason"] = (
                f"built with {'WCORD_FAST_SANITIZE=1' if tools.sanitize else 'WCORD_FAST_CUDA=0'}"
            )
        else:
            try:
                nvcc = find_nvcc()
                info["nvcc"] = run([nvcc, "--version"]).strip().splitlines()[-1]  # first: a broken one is told as such
                built = compile_module(temp, tools, nvcc)
            except CannotBuild as e:
                if setting == "1":
                    raise
                nvcc, info["cuda_unavailable_reason"] = None, str(e)
                info.pop("nvcc", None)
        if nvcc is None:
            built = compile_module(temp, tools, None)
        info.update(native=True, cuda=nvcc is not None)
        return built, info
    except CannotBuild as e:
        if setting == "1":
            raise SystemExit(f"WCORD_FAST_CUDA=1, but the CUDA code cannot be built: {e}") from e
        info["unavailable_reason"] = str(e)
        return None, info


class BuildNative(build_ext):
    """Puts the module and the build record into the package: in the wheel, or in the source folder if editable."""

    def run(self) -> None:
        (extension,) = self.extensions
        module, info = build(self.objects_folder())
        name = self.get_ext_filename(self.get_ext_fullname(extension.name))
        for folder in [Path(self.build_lib), *([ROOT] if self.inplace else [])]:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if module:  # whole or not at all: another process may be importing it
                part = target.with_name(f".{target.name}.part")
                shutil.copy2(module, part)
                part.replace(target)
            else:
                target.unlink(missing_ok=True)  # never leave a module of an earlier build behind
            target.with_name(INFO_NAME).write_text(json.dumps(info, indent=1) + "\n")
        for key, part in (("unavailable_reason", "the native module"), ("cuda_unavailable_reason", "CUDA")):
            if info[key]:
                print(f"wcord_fast: built without {part}: {info[key]}", file=sys.stderr)

    def objects_folder(self) -> Path:
        """build/ in the source folder, where objects outlive pip's temporary folders; if that is read-only, those."""
        try:
            (ROOT / "build").mkdir(exist_ok=True)
        except OSError:
            return Path(self.build_temp).resolve()
        return ROOT / "build" if os.access(ROOT / "build", os.W_OK) else Path(self.build_temp).resolve()


setup(
    ext_modules=[
        Extension(
            "wcord_fast._native",
            sources=[str(p.relative_to(ROOT)) for p in sources(with_cuda=True)],
            depends=[str(p.relative_to(ROOT)) for p in sorted([*CSRC.rglob("*.h"), *CSRC.rglob("*.inl")])],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildNative},
)
