"""The sizes of the wheels that `.ci/wheels` made: each in MB, and the compiled module that is inside.

`.ci/wheels` ends at the first wheel that cannot be installed and tried without a compiler: what it leaves in dist/
when it ends well has passed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from bench.options import keep, parsed, parser
from bench.report_lines import paragraph
from bench.report_tables import Row, table
from bench.results_file import commit

BUILD_INFO, MODULE = "wcord_fast/_build_info.json", "wcord_fast/_native"


def measured(wheel: Path, made_from: str) -> dict[str, Any]:
    """The row of a wheel.

    Raises:
        ValueError: another name than a wheel of this package has.
    """
    match = re.fullmatch(r"wcord_fast-(?P<version>[^-]+)-(?P<tag>cp\d+)-cp\d+-(?P<platform>\w+)\.whl", wheel.name)
    if match is None:
        raise ValueError(f"wheel: expected wcord_fast-VERSION-cpXY-cpXY-PLATFORM.whl, got {wheel.name!r}")
    with ZipFile(wheel) as archive:
        module = sum(item.file_size for item in archive.infolist() if item.filename.startswith(MODULE))
        info = json.loads(archive.read(BUILD_INFO))
    sizes = {"mb": round(wheel.stat().st_size / 1e6, 1), "module_mb": round(module / 1e6, 1)}
    return {**match.groupdict(), **sizes, "cuda": info["cuda"], "compiler": info["compiler"], "made_from": made_from}


def wheels_table(rows: list[Row]) -> str:
    """A line for each Python of the last run."""
    last = [row for row in rows if row["date"] == rows[-1]["date"]]
    lines = [
        [f"CPython {row['tag'][2]}.{row['tag'][3:]}", row["platform"], f"{row['mb']:.1f}", f"{row['module_mb']:.1f}"]
        for row in last
    ]
    code = "C++ and CUDA" if all(row["cuda"] for row in last) else "C++"
    note = (
        f"With {code} code, made by `.ci/wheels` from commit {last[0]['made_from']}. Each was installed into an empty "
        "environment without a compiler, where `.ci/smoke.py` ran a step. `python -m bench wheels`."
    )
    return table(["Python", "platform", "wheel, MB", "compiled module in it, MB"], lines) + "\n" + paragraph(note)


def main(arguments: list[str]) -> int:
    p = parser("wheels", __doc__, "all wheels, as without it")
    p.add_argument("folder", type=Path, nargs="?", default=Path("dist"))
    p.add_argument("--made-from", default=commit(), help="commit that the wheels were made from (default: this one)")
    a = parsed(p, arguments)
    wheels = sorted(a.folder.glob("*.whl"))
    if not wheels:
        p.error(f"folder: expected wheels in {a.folder}, found none; .ci/wheels makes them")
    rows = [measured(wheel, a.made_from) for wheel in wheels]
    for row in rows:
        print(json.dumps(row))
    keep("wheels", rows, a)
    return 0
