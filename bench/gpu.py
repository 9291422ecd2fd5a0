"""Everything that only a GPU can show, in one call: `python -m bench.gpu` writes its results under bench/results/.

1. the GPU test suite (`pytest -m gpu`), 2. compute-sanitizer over the native kernels' tests, 3. kernels' device times.
Exits with 1 if a part failed; every part runs whatever the others did.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from bench.gpu_ot import ot_times
from bench.results_file import RESULTS, append

SANITIZED = (
    "test_draws_are_bit_identical or test_native_update or test_bad_rows "
    "or test_every_source or test_membership or test_bad_values"
)
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")


def run(name: str, command: list[str], out: Path) -> dict:
    """Run a command, keep its output in `out`/gpu-`name`.log, return a result row."""
    print("+", " ".join(command), flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (out / f"gpu-{name}.log").write_text(done.stdout + done.stderr)
    last = (done.stdout.strip().splitlines() or ["no output"])[-1]
    print(f"{name}: exit {done.returncode}: {last}", flush=True)
    return {"part": name, "exit": done.returncode, "last_line": last}


def kernel_times() -> list[dict]:
    """Device time in microseconds of the native kernels, median of CUDA-event timings over single calls."""
    from wcord_fast import NegativeSampler, use_backend
    from wcord_fast import functional as F
    from wcord_fast.ops.bank import membership, native_cuda

    rows = []
    for batch, k, num_data in ((64, 16384, 50_000), (256, 16384, 50_000), (1024, 65536, 1_281_167)):
        sampler = NegativeSampler(num_data, k, labels=torch.arange(num_data) % 100, seed=0).cuda()
        bank, other = torch.randn(2, num_data, 128, device="cuda")
        banks, narrow = [bank, other], [bank.bfloat16(), other.bfloat16()]
        index = torch.randint(0, num_data, (batch,), device="cuda")
        anchor = torch.randn(batch, 128, device="cuda")
        spec, log_z = sampler.spec(), torch.full((2,), 11.0, device="cuda")
        two = anchor.expand(2, -1, -1).contiguous()

        def gather(pair, two=two, index=index, log_z=log_z, spec=spec):
            return native_cuda.bank_nce(two, pair, index, log_z, spec, 0.07, True, "gather", "auto")

        for name, call in {
            "draw": lambda s=sampler, i=index: s.draw(i, backend="native"),
            "draw_mask": lambda i=index, n=num_data, s=spec: membership.draw_mask(i, n, s),
            "bank_update": lambda b=bank, i=index, a=anchor: F.bank_update_(b, i, a),
            "bank_nce gather fp32": lambda g=gather, p=banks: g(p),
            "bank_nce gather bf16": lambda g=gather, p=narrow: g(p),
        }.items():
            with use_backend("native"):
                micros = event_times(call)
            rows.append({"part": "time", "op": name, "batch": batch, "k": k, "num_data": num_data, "us": micros})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def event_times(call, repeats: int = 50) -> dict[str, float]:
    """p20, p50 and p80 of one call's device time, after a warm-up."""
    for _ in range(5):
        call()
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, stop in pairs:
        start.record()
        call()
        stop.record()
    torch.cuda.synchronize()
    times = torch.tensor([1e3 * start.elapsed_time(stop) for start, stop in pairs])
    return {f"p{q}": round(float(times.quantile(q / 100)), 2) for q in (20, 50, 80)}


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=RESULTS, help="where the results go (default: bench/results)")
    out = p.parse_args().out
    if not torch.cuda.is_available():
        print("bench.gpu needs a CUDA device; torch sees none", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests"]
    rows = [run("tests", pytest, out)]
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer:
        for tool in TOOLS:
            guard = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
            rows.append(run(tool, [*guard, *pytest, "-k", SANITIZED], out))
    else:
        rows.append({"part": "sanitizer", "exit": 1, "last_line": "compute-sanitizer is not on the PATH"})
    rows += kernel_times()
    rows += ot_times(event_times)
    print("written to", append("gpu", rows, out))
    return int(any(row.get("exit") for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
