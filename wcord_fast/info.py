"""`python -m wcord_fast.info` prints what `wcord_fast.info()` returns."""

import sys
from types import ModuleType

from ._info import report


class _Info(ModuleType):
    """Importing this submodule puts it in the place of the function `wcord_fast.info`: so it can be called too."""

    def __call__(self) -> str:
        return report()


sys.modules[__name__].__class__ = _Info

if __name__ == "__main__":
    print(report())
