"""`python -m wcord_fast.info` prints what `wcord_fast.info()` returns."""

from ._info import report

if __name__ == "__main__":
    print(report())
