"""The stand-in for compute-sanitizer or ncu in a dry run: reads their options and runs the program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# A launch in ncu's format, for the code that reads it.
_CSV = (
    '"ID","Kernel Name","Block Size","Grid Size","Metric Name","Metric Unit","Metric Value"\n'
    '"0","stand_in","(1, 1, 1)","(1, 1, 1)","gpu__time_duration.sum","ns","0"\n'
)


def main(arguments: list[str]) -> int:
    tool, *options = arguments
    if "--help" in options:
        print("--kernel-name")
        return 0
    print(f"a stand-in for {tool}: nothing is checked or measured", flush=True)
    begin = options.index(sys.executable)
    if "--log-file" in options[:begin]:
        Path(options[options.index("--log-file") + 1]).write_text(f"==PROF== stand-in\n{_CSV}")
    code = subprocess.run(options[begin:], check=False).returncode
    print(f"========= STAND-IN SUMMARY: {tool} did not run", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
