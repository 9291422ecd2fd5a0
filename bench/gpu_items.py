"""The items of the three commands of bench.gpu, riskiest first, and the seconds of each."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.gpu_schedule import Item, Schedule

ROOT = Path(__file__).resolve().parent.parent
BUDGET = 540
DRY_FACTOR = 10  # a dry run, on a machine that may be slow and busy, has so many times the seconds
WARMERS = 12  # processes that compile Triton kernels while the native module is built
SHAPES = ((64, 16384, 50_000), (256, 16384, 50_000), (1024, 65536, 1_281_167))
MORE_SHAPES = ((64, 4096, 50_000), (1024, 4096, 1_281_167))
TINY = (4, 64, 1000)
ACCURACY = ("plain", "KD", "CRD", "WCoRD", "CRD+KD", "WCoRD+KD")

BUILD_ENV = {"WCORD_FAST_CUDA": "1", "WCORD_FAST_CUDA_ARCHS": "native"}
# Item, its seconds, and pytest's arguments.
NATIVE_TESTS = (
    ("draws", 15, ["tests/test_gpu.py"]),
    ("transport", 25, ["tests/test_gpu_sinkhorn.py"]),
    # Without the problems whose float64 reference on the CPU takes seconds each.
    ("given costs", 10, ["tests/test_gpu_sinkhorn_given.py", "-k", "not (1024-1000 and (own or dtype0 or dtype2))"]),
    ("bank", 30, ["tests/test_gpu_bank.py", "-k", "not two_billion"]),
    ("steps", 20, ["tests/test_gpu_step.py"]),
)
DENSE = (
    "(sampler_and_bank and (dtype1 or (self and dtype0))) or narrow or lower_matmul or long_bank or "
    "(repeats and class) or (parts_of and weights and dtype1) or (test_shapes and (16-12 or 40-129)) or "
    "(other_critics and class and dtype1)"
)
STREAMING = (
    "(accuracy and cosine and (0.05 or 0.0001)) or (test_shapes and cosine and 4096) or (graph and None) or "
    "bits_repeat or tol_stops"
)
DENSE_TESTS = (
    ("dense", 30, ["tests/test_gpu_bank_triton.py", "-k", DENSE]),
    ("streaming", 25, ["tests/test_gpu_sinkhorn_triton.py", "-k", STREAMING]),
    ("contrast", 15, ["tests/test_gpu_batch.py", "-k", "not dtype2"]),
)
PLAIN_TESTS = ("without kernels", 15, ["tests/test_gpu_plain.py"])
TRITON_TESTS = [
    *(arguments for _, _, arguments in DENSE_TESTS),
    PLAIN_TESTS[2],
    ["tests/test_gpu.py", "-k", "modules_give"],
    ["tests/test_gpu_step.py", "-k", "dense or graph"],
]
# No tests of graphs, which PyTorch captures with its caching allocator only, and no large or timed tests.
SANITIZED_FILES = [
    "tests/test_gpu.py",
    "tests/test_gpu_bank.py",
    "tests/test_gpu_sinkhorn.py",
    "tests/test_gpu_step.py",
]
SANITIZED = (
    ("memcheck", 35, "bit_identical_on_every or (native_update and 33) or (every_dtype and nce and (dtype0 or dtype1)) "
     "or (every_source and 20) or given_rows or mean_score or (membership and 1000) or bad_values or "
     "(solvers and 0.01) or dual_in_fp64 or (steps_equal and gather)"),
    ("racecheck", 25, "(every_dtype and 128 and dtype1) or (every_dtype and nce and 33 and dtype1) or "
     "(parts_equal and 128-class-no) or (membership and 900-no-1000) or dual_in_fp64 or side_by_side or "
     "(mean_score and 20) or (steps_equal and wcord and gather)"),
    ("synccheck", 20, "(every_dtype and 128 and dtype1) or (parts_equal and 128-class-no) or "
     "(membership and 900-no-1000) or (solvers and 0.01) or side_by_side or (steps_equal and ball and gather)"),
)  # fmt: skip


class Commands:
    """Makes the items; in a dry run with tiny sizes, few processes and shares of the seconds that suffice here."""

    def __init__(self, out: Path, dry_run: bool):
        self.out, self.dry_run = out, dry_run

    def item(self, name: str, module: str, seconds: float, *arguments: str, **env: str) -> Item:
        common = ["--item", name, "--out", str(self.out), *(["--dry-run"] if self.dry_run else [])]
        return self.timed(name, [sys.executable, "-m", module, *common, *arguments], seconds, env)

    def timed(self, name: str, command: list[str], seconds: float, env: dict[str, str] | None = None) -> Item:
        return Item(name, command, seconds * (DRY_FACTOR if self.dry_run else 1), env or {})

    def tests(self, name: str, seconds: float, arguments: list[str], *options: str) -> list[Item]:
        return [self.item(f"tests {name}", "bench.gpu_pytest", seconds, *options, "--", *arguments)]

    def build(self, seconds: float, warmers: int) -> list[Item]:
        """The native module for this card, in the source folder: the tests run there, where an installed copy of the
        package would be hidden by the source without its module. And the processes beside it."""
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        if self.dry_run:
            command = [sys.executable, "-m", "bench.gpu_stand_in", "the build", sys.executable, "setup.py", "--version"]
        count = min(warmers, 2) if self.dry_run else warmers
        warm = [
            self.item(f"warm {n}", "bench.gpu_warm", seconds, "--number", str(n), "--of", str(count))
            for n in range(count)
        ]
        return [self.timed("build", command, seconds, BUILD_ENV), *warm]

    def environment(self) -> list[Item]:
        return [self.item("environment", "bench.gpu_tools", 15, "environment")]

    def ceilings(self) -> list[Item]:
        return [self.item("ceilings", "bench.gpu_floors", 12)]

    def times(self, shape: tuple[int, int, int], seconds: float) -> list[Item]:
        sizes = ",".join(map(str, TINY if self.dry_run else shape))
        subjects = ("kernels", "steps", "modules")
        name = f"times {','.join(map(str, shape))}"
        return [self.item(name, "bench.gpu_times", seconds, *subjects, "--shape", sizes)]

    def transport(self, seconds: float, *sizes: int) -> list[Item]:
        rows = ["64"] if self.dry_run else list(map(str, sizes))
        name = f"times transport {' '.join(map(str, sizes))}"
        return [self.item(name, "bench.gpu_times", seconds, "transport", "--sizes", *rows)]


def first_contact(out: Path, dry_run: bool = False) -> Schedule:
    """The items for a card on which nothing has run yet."""
    c = Commands(out, dry_run)
    return [
        c.environment(),
        c.build(125, WARMERS),
        *(c.tests(*test) for test in (*NATIVE_TESTS, *DENSE_TESTS, PLAIN_TESTS)),
        *(
            [c.item(tool, "bench.gpu_tools", seconds, tool, "--", *SANITIZED_FILES, "-k", chosen)]
            for tool, seconds, chosen in SANITIZED
        ),
        c.ceilings(),
        c.times(SHAPES[0], 20),
        c.transport(15, 64, 256),
        c.times(SHAPES[1], 20),
        c.transport(15, 1024, 4096),
        c.times(SHAPES[2], 30),
        [c.item("ncu", "bench.gpu_tools", 23, "ncu", "--", *_profiled(dry_run))],
    ]


def _profiled(dry_run: bool) -> list[str]:
    shape = TINY if dry_run else SHAPES[0]
    return ["kernels", "modules", "transport", "--shape", ",".join(map(str, shape)), "--sizes", "64"]


def full(out: Path, dry_run: bool = False) -> Schedule:
    """Every GPU test, on several processes where pytest-xdist is installed, and every shape."""
    c = Commands(out, dry_run)
    return [
        c.environment(),
        c.build(100, 0),
        c.tests("all", 235, ["tests"], "--workers", "12"),
        c.ceilings(),
        *(c.times(shape, 30) for shape in (*MORE_SHAPES[:1], *SHAPES[:2])),
        c.transport(28, 64, 256, 1024, 4096),
        *(c.times(shape, 30) for shape in (MORE_SHAPES[1], SHAPES[2])),
    ]


def accuracy(out: Path, data_dir: str, work: Path, teacher: Path | None, dry_run: bool = False) -> Schedule:
    """resnet32x4 -> resnet8x4 on CIFAR-100 for a short schedule: a teacher, then as many students as there is time for.

    Every run is resumed by the next call with the same `work`; a run that has its row is skipped.
    """
    c = Commands(out, dry_run)
    names = ("resnet8", "resnet8") if dry_run else ("resnet32x4", "resnet8x4")
    on = {"data": "digits"} if dry_run else {"data": "cifar100", "data-dir": data_dir, "precision": "bf16"}
    on |= {"device": "cpu"} if dry_run else {"device": "cuda", "cuda-graph": "true", "channels-last": "true"}
    epochs = {"teacher-epochs": "1"} if dry_run else {"teacher-epochs": "20"}
    options = {**on, **epochs, "teacher": names[0], "output-dir": str(work / "teacher"), "tensorboard": "false"}
    command = [sys.executable, "-m", "wcord_fast", "teacher"]
    command += [word for name, value in options.items() for word in (f"--{name}", value)]
    trained = teacher or work / "teacher" / "teacher"
    students = ["-m", "bench", "accuracy", "--data", on["data"], "--data-dir", data_dir, "--teacher", names[0]]
    students += ["--teacher-checkpoint", str(trained), "--student", names[1], "--work", str(work), "--out", str(out)]
    students += ["--result-file", "gpu_accuracy", "--device", on["device"], "--precision", "bf16"]
    students += ["--images", "200", "--epochs", "1", "--seeds", "0"] if dry_run else ["--images", "50000"]
    students += ["--variants", *(ACCURACY[2:3] if dry_run else ACCURACY)]
    return [
        c.environment(),
        c.build(100, 0),
        *([] if teacher else [[c.timed("teacher", command, 170)]]),
        [c.timed("students", [sys.executable, *students], 255)],
    ]
