"""One thread per worker: the suite runs under pytest-xdist, and results must not depend on the thread count."""

from __future__ import annotations

import os
from contextlib import closing

import pytest
import torch
from hypothesis import settings

from wcord_fast.ops import dispatch, native_module

from .grid import slow
from .rank_pool import Pool

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

# The same examples on every run, more of them in .ci/run; `--hypothesis-profile=long` searches on with new ones.
settings.register_profile("default set", derandomize=True, deadline=None, max_examples=15)
settings.register_profile("all tests", derandomize=True, deadline=None, max_examples=40)
settings.register_profile("long", deadline=None, max_examples=3000)
settings.load_profile("default set")


@pytest.fixture(params=["reference", "native"])
def each_ot_backend(request):
    """Every backend of the transport op on the CPU in turn, for calls that name none."""
    why = dispatch.cannot_run(request.param, "cpu")
    if why:
        pytest.skip(why)
    with dispatch.use_backend(request.param):
        yield request.param


@pytest.fixture(params=["portable", "avx2", "avx512"])
def simd(request):
    """Each instruction set of the native code in turn."""
    module = native_module.module()
    before = module.simd()
    if not module.set_simd(request.param):
        pytest.skip(f"this CPU or build has no {request.param}")
    yield request.param
    module.set_simd(before)


@pytest.fixture
def threads():
    """A function that sets torch's number of threads; the old number returns after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=[2, slow(3)])
def pool(request):
    """Processes that form a group, in two sizes; see `tests.rank_pool.Pool`.

    By default three processes are those of test_sharded_queue.py and test_distributed_train.py.
    """
    with closing(Pool(request.param)) as processes:
        yield processes


@pytest.fixture(scope="module")
def two_ranks():
    """A pool of two processes."""
    with closing(Pool(2)) as processes:
        yield processes


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Each worker has a run of neighbouring tests, and takes some of another's at its end.

    The scheduler that `-n` stands for hands tests out in ever smaller pieces: every worker makes a module's fixtures.
    """
    if config.getoption("dist") == "load":
        from xdist.scheduler import WorkStealingScheduling

        return WorkStealingScheduling(config, log)


def pytest_collection_modifyitems(config, items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="torch sees no CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
