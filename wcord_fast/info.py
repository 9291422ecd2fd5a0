"""Installed versions, built parts and usable backends: `wcord_fast.info()`, `python -m wcord_fast.info`."""

from __future__ import annotations

import platform
import sys
from types import ModuleType

import torch

from . import __version__
from .ops import dispatch, native_module


def report() -> str:
    """Versions, build, devices and the support table, as text."""
    lines = [
        f"wcord_fast {__version__}, python {platform.python_version()}, torch {torch.__version__}",
        platform.platform(),
        f"threads: {torch.get_num_threads()}",
        *_devices(),
        *_native(),
        "",
        "op               plan    device  backend    here",
    ]
    for row in dispatch.SUPPORT:
        kind = "cpu" if row.device == "any" else row.device
        reason = dispatch.cannot_run(row.backend, kind)
        status = f"yes: {row.note}" if reason is None else f"no: {reason}"
        lines.append(f"{row.op:<16} {row.plan:<7} {row.device:<7} {row.backend:<10} {status}")
    return "\n".join(lines)


def _devices() -> list[str]:
    if not torch.cuda.is_available():
        return ["cuda: no device visible to torch"]
    return [f"cuda:{i}: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]


def _native() -> list[str]:
    module = native_module.load()
    if module is None:
        return [f"native module: absent: {native_module.unavailable_reason('cpu')}"]
    built = ", ".join(f"{key} {value}" for key, value in module.build_info().items())
    return [f"native module: {built}"]


class _Info(ModuleType):
    """Makes this module callable: `wcord_fast.info()`."""

    def __call__(self) -> str:
        """Versions, build, devices and the support table, as text."""
        return report()


sys.modules[__name__].__class__ = _Info

if __name__ == "__main__":
    print(report())
