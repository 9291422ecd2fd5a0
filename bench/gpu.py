"""Everything that only a GPU can show, in one call: `python -m bench.gpu` writes its results under bench/results/.

1. the GPU test suite (`pytest -m gpu`), 2. compute-sanitizer over the native kernels' tests, 3. times of steps and of
kernels beside the naive forms, plain PyTorch, peers and floors, 4. a profile of training steps. Under ten minutes: a
part that takes longer than its share is stopped and said to have been. Exits with 1 if a part failed or one of ours is
wrong; every part runs whatever the others did, and each part's rows are written as soon as they are there.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from bench.contest import BASES
from bench.results_file import RESULTS, append

# The native kernels (Triton's are compiled under the sanitizer for minutes) without what is only big or only timing.
SANITIZED = ["tests/test_gpu.py", "tests/test_gpu_bank.py", "tests/test_gpu_sinkhorn.py"]
LEFT_OUT = "not two_billion and not nothing_syncs and not no_sync and not modules_give"
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
TESTS_SECONDS, TOOL_SECONDS = 200, 60


def run(name: str, command: list[str], out: Path, timeout: float) -> dict:
    """Run a command for at most `timeout` seconds, keep its output in `out`/gpu-`name`.log, return a result row."""
    print("+", " ".join(command), flush=True)
    log = out / f"gpu-{name}.log"
    with log.open("w") as f:
        try:
            code = subprocess.run(command, stdout=f, stderr=subprocess.STDOUT, timeout=timeout, check=False).returncode
        except subprocess.TimeoutExpired:
            code = 124
            f.write(f"\nstopped after {timeout} s\n")
    last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
    print(f"{name}: exit {code}: {last}", flush=True)
    return {"part": name, "exit": code, "last_line": last}


def checks(out: Path) -> list[dict]:
    """The GPU tests, and the native ones again under each tool of compute-sanitizer."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu"]
    rows = [run("tests", [*pytest, "tests"], out, TESTS_SECONDS)]
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        return [*rows, {"part": "sanitizer", "exit": 1, "last_line": "compute-sanitizer is not on the PATH"}]
    for tool in TOOLS:
        guard = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
        rows.append(run(tool, [*guard, *pytest, *SANITIZED, "-k", LEFT_OUT], out, TOOL_SECONDS))
    return rows


def fails(row: dict) -> bool:
    """Whether a part of this row did not run, or a form of ours is wrong."""
    return bool(row.get("exit")) or (row.get("right") is False and row.get("form") not in BASES)


def profile(out: Path, device: torch.device, steps: int = 10) -> list[dict]:
    """Where the time of WCoRD training steps (resnet32x4 -> resnet8x4, batch 64) goes: a table in gpu-profile.log."""
    from wcord_fast import WCoRDLoss, models

    teacher = models.create("resnet32x4", num_classes=100).to(device).eval().requires_grad_(False)
    student = models.create("resnet8x4", num_classes=100).to(device)
    wcord = WCoRDLoss(student.feature_dim, teacher.feature_dim, 50_000, labels=torch.arange(50_000) % 100).to(device)
    sgd = torch.optim.SGD([*student.parameters(), *wcord.parameters()], lr=0.01)
    images = torch.randn(64, 3, 32, 32, device=device)
    index = torch.arange(64, device=device)

    def step() -> None:
        features, logits = student(images, return_features=True)
        with torch.no_grad():
            features_t, _ = teacher(images, return_features=True)
        loss = torch.nn.functional.cross_entropy(logits, index % 100)
        loss = loss + wcord(features[-1], features_t[-1], index)
        sgd.zero_grad()
        loss.backward()
        sgd.step()

    step()
    with torch.profiler.profile() as seen:
        for _ in range(steps):
            step()
    by = "cuda_time_total" if device.type == "cuda" else "cpu_time_total"
    (out / "gpu-profile.log").write_text(seen.key_averages().table(sort_by=by, row_limit=60))
    return [{"part": "profile", "steps": steps, "last_line": "see gpu-profile.log"}]


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=RESULTS, help="where the results go (default: bench/results)")
    p.add_argument("--only", nargs="+", choices=("checks", "times", "profile"), help="these parts (default: all)")
    options = p.parse_args()
    out = options.out
    if not torch.cuda.is_available():
        print("bench.gpu needs a CUDA device; torch sees none", file=sys.stderr)
        return 2
    from bench import gpu_bank, gpu_ot  # after the check: they load the ops

    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda")
    parts = {
        "checks": (lambda: checks(out),),
        "times": (gpu_bank.step_rows, gpu_bank.part_rows, gpu_ot.ot_rows),
        "profile": (lambda: profile(out, device),),
    }
    failed = False
    for name, makers in parts.items():
        for make in makers if options.only is None or name in options.only else ():
            rows = make()
            failed |= any(map(fails, rows))
            print("written to", append("gpu", rows, out), flush=True)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
