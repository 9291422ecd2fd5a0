"""Everything that only a GPU can show, in one call of at most nine minutes: a schedule of items, riskiest first.

    python -m bench.gpu                    # build, chosen tests, sanitizer, ceilings, times, counters
    python -m bench.gpu --full             # every GPU test and every shape
    python -m bench.gpu --accuracy --data-dir DIR --work FOLDER    # resnet32x4 -> resnet8x4 on CIFAR-100, resumable
    python -m bench.gpu --dry-run          # the same on a machine without a GPU: tiny sizes, stand-ins for tools

Each item is a process with a time limit. It appends its rows to gpu.jsonl (under --out) as it makes them, and a last
row with its outcome. gpu.log has the output of all items. An item that fails, hangs or lacks its tool does not affect
the others. The exit status is 1 if an item failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import torch

from bench import gpu_items
from bench.gpu_schedule import Schedule, run
from bench.results_file import RESULTS


def parse(arguments: list[str]) -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kind = p.add_mutually_exclusive_group()
    kind.add_argument("--full", action="store_true", help="every GPU test and every shape")
    kind.add_argument("--accuracy", action="store_true", help="a short accuracy run")
    p.add_argument("--data-dir", help="CIFAR-100, for --accuracy: the folder of the python pickles, or an .npz")
    p.add_argument("--work", type=Path, help="folder of the runs of --accuracy, from which they are resumed")
    p.add_argument("--teacher-checkpoint", type=Path, help="of a resnet32x4, for --accuracy (default: one is trained)")
    p.add_argument("--out", type=Path, help="where results go (default: bench/results; in a dry run a new folder)")
    p.add_argument("--only", nargs="+", metavar="ITEM", help="items whose names contain one of these")
    p.add_argument(
        "--seconds", type=float, default=gpu_items.BUDGET, help="deadline of all of it (default %(default)s)"
    )
    p.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU; tests are only collected")
    options = p.parse_args(arguments)
    if options.accuracy and not options.dry_run and (options.data_dir is None or options.work is None):
        p.error("--accuracy: expected --data-dir and --work")
    return options


def schedule_of(options: argparse.Namespace) -> Schedule:
    """The items that the options select.

    Raises:
        ValueError: --only selects no item.
    """
    if options.accuracy:
        work = options.work or options.out / "work"
        teacher = options.teacher_checkpoint
        schedule = gpu_items.accuracy(options.out, options.data_dir or ".", work, teacher, options.dry_run)
    else:
        schedule = (gpu_items.full if options.full else gpu_items.first_contact)(options.out, options.dry_run)
    if options.only:
        kept = [[item for item in group if any(part in item.name for part in options.only)] for group in schedule]
        names = [item.name for group in schedule for item in group]
        schedule = [group for group in kept if group]
        if not schedule:
            raise ValueError(f"--only: expected parts of {names}, got {options.only}")
    return schedule


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        print("bench.gpu needs a CUDA device (or --dry-run); torch sees none", file=sys.stderr)
        return 2
    out = options.out or (Path(tempfile.mkdtemp(prefix="bench_gpu_")) if options.dry_run else RESULTS)
    options.out = out.resolve()
    os.chdir(gpu_items.ROOT)
    try:
        schedule = schedule_of(options)
        seconds = options.seconds * (gpu_items.DRY_FACTOR if options.dry_run else 1)
        rows = run(schedule, options.out, seconds, options.dry_run)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"\n{'item':<36}{'outcome':<18}{'seconds':>8}  of at most")
    for row in rows:
        ending = "" if row["exit"] == 0 else f"  {row['last_line'][:120]}"
        print(f"{row['item']:<36}{row['outcome']:<18}{row.get('seconds', 0):>8}  {row.get('limit_s', 0):>8}{ending}")
    print(f"written to {options.out}/gpu.jsonl and gpu.log")
    return int(any(row["exit"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
