"""Memory that the C library keeps for the next step: less time in page faults when training on a CPU."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # M_... of glibc's malloc.h
LARGEST, OLDER_LARGEST = 1 << 30, 32 << 20  # mmap thresholds that glibc takes from version 2.35 on, and before
OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep what is freed, for the whole process; whether it does from now on.

    A step's tensors are freed at its end and allocated again in the next. By default glibc gives large ones back to the
    kernel each time, which then clears every page anew. Memory that is kept stays with the process until it ends.

    Nothing is changed where the user has settings of malloc in the environment, or where there is no glibc.
    """
    if any(name in os.environ for name in OWN_SETTINGS) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    with suppress(OSError, AttributeError):  # other C libraries have no gnu_get_libc_version, or no mallopt
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018
        mapped = any(libc.mallopt(MMAP_THRESHOLD, size) == 1 for size in (LARGEST, OLDER_LARGEST))
        return mapped and libc.mallopt(TRIM_THRESHOLD, 2**31 - 1) == 1 and libc.mallopt(TOP_PAD, 64 << 20) == 1
    return False
