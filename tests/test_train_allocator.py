"""glibc's malloc keeps freed memory in the command's process, unless the user has set it up."""

import ctypes
import resource
import sys

import pytest
import torch

from tests.rank_pool import alone
from wcord_fast.train import allocator

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"),
    reason="no glibc",
)


def faults_of_steps(steps=20):
    """Page faults while tensors of 40 and 4 MiB, 124 in all, are made and freed again."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        tensors = [torch.zeros(size << 18) for size in (40, 40, 40, 4)]
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def measured():
    default = faults_of_steps()
    assert allocator.keep_freed_memory()
    faults_of_steps(1)
    kept = faults_of_steps()
    pages = 20 * (124 << 20) // resource.getpagesize()
    assert default > pages / 10 and kept < default / 50, (default, kept, pages)
    return 0


def test_freed_memory_is_kept(tmp_path):
    done = alone(tmp_path, measured)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "name, value", [("MALLOC_TRIM_THRESHOLD_", "131072"), ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")]
)
def test_settings_of_the_user_stay(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(ctypes, "CDLL", None)  # nothing may be called
    assert not allocator.keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    for variable in allocator.OWN_SETTINGS:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert not allocator.keep_freed_memory()
