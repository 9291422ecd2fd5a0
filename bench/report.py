"""`python -m bench report`: the pages' tables and measured sentences, and the plots, from committed result files.

A generated block stands between `<!-- bench: NAME -->` and `<!-- end -->`. With `--check` the command only compares
(tests/test_bench_report.py does so).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from bench import report_accuracy as accuracy
from bench import report_lines as lines
from bench import report_tables as tables
from bench.plan import plan_table
from bench.report_counts import counts_table
from bench.report_plots import plots
from bench.results_file import RESULTS, read
from bench.wheels import wheels_table

README = RESULTS.parent.parent / "README.md"
DOCS, OPS = README.parent / "docs", README.parent / "wcord_fast" / "ops"
PAGES = (
    README,
    *sorted(DOCS.rglob("*.md")),
    *sorted(OPS.glob("*/README.md")),
)
BLOCK = re.compile(r"(<!-- bench: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

BLOCKS: dict[str, tuple[str, Callable[..., str]]] = {  # name -> result files, maker of the block from the rows of each
    "accuracy": ("accuracy", accuracy.accuracy_table),
    "accuracy_line": ("accuracy", accuracy.accuracy_line),
    "accuracy_pairs": ("pairs/accuracy", accuracy.accuracy_table),
    "accuracy_differences": ("pairs/accuracy", accuracy.differences_table),
    "accuracy_digits": ("digits/accuracy digits_all/accuracy", accuracy.summary_table),
    "accuracy_local": ("pairs/accuracy", accuracy.local_line),
    "accuracy_summary": ("digits/accuracy pairs/accuracy whole/accuracy unlike/accuracy", accuracy.summary_table),
    "accuracy_tuned": ("pairs/accuracy", accuracy.tuned_line),
    "accuracy_unlike": ("unlike/accuracy", accuracy.accuracy_table),
    "accuracy_whole": ("whole/accuracy", accuracy.accuracy_table),
    "autograd": ("ot", lines.autograd_table),
    "bank": ("bank", tables.bank_table),
    "bank_critics": ("bank_critics", lines.bank_critics_table),
    "baselines": ("baselines", tables.baselines_table),
    "collapse": ("collapse", lines.collapse),
    "counts": ("counts", counts_table),
    "critic": ("critic", lines.critic_table),
    "given_cost": ("ot_matrix", lines.given_cost_table),
    "host": ("host", lines.host_table),
    "lckt_share": ("accuracy", accuracy.lckt_share),
    "ot": ("ot", tables.ot_table),
    "ot_lost": ("ot", lines.ot_lost),
    "plan": ("plan", plan_table),
    "project": ("project", lines.project_table),
    "sharded": ("sharded", tables.sharded_table),
    "step": ("step", tables.step_table),
    "update": ("update", lines.update_table),
    "wheels": ("wheels", wheels_table),
}


def rendered(text: str, folder: Path = RESULTS) -> str:
    """`text` with every block generated again.

    Raises:
        ValueError: a block has no known name, or its result file is missing.
    """

    def fill(match: re.Match[str]) -> str:
        name = match[2]
        if name not in BLOCKS:
            raise ValueError(f"block: expected one of {sorted(BLOCKS)}, got {name!r}")
        names, make = BLOCKS[name]
        files = {file: read(file, folder) for file in names.split()}
        for file, rows in files.items():
            if not rows:
                raise ValueError(f"block {name!r}: expected rows in {folder / file}.jsonl, found none")
        return match[1] + make(*files.values()) + match[3]

    return BLOCK.sub(fill, text)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is out of date")
    options = parser.parse_args(arguments)
    old = {page: page.read_text() for page in PAGES}
    new = {page: rendered(text) for page, text in old.items()}
    stale = [page.name for page in PAGES if new[page] != old[page]]
    if options.check:
        if stale:
            words = f"{', '.join(stale)}: tables that are not those of bench/results; run `python -m bench report`"
            print(words, file=sys.stderr)
        return int(bool(stale))
    for page in PAGES:
        page.write_text(new[page])
    print("written:", *PAGES, *plots(RESULTS))
    return 0
