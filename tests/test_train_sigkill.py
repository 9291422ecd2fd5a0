"""Killed with SIGKILL in the middle of an epoch and resumed, a run on the CPU is bit for bit the uninterrupted one."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.test_train_loop import assert_equal, everything
from tests.train_tiny import make_run
from wcord_fast.train.loop import fit

METHODS = ("ce", "crd", "wcord")
EPOCHS, STEPS = 4, 3  # batches of 16, 16 and 12 images
DIES_IN = 2 * STEPS + 2  # the second step of the third epoch
REPO = Path(__file__).resolve().parents[1]

VICTIM = f"""
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.train_tiny import make_run
from wcord_fast.train import loop

real, steps = loop.train_step, []

def dies(*args):
    steps.append(1)
    shares = real(*args)
    if len(steps) == {DIES_IN}:
        os.kill(os.getpid(), signal.SIGKILL)  # the step is done, its epoch is not
    return shares

loop.train_step = dies
loop.fit(make_run(Path(sys.argv[1]), sys.argv[2], epochs={EPOCHS}))
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Directory of each method's run, whose process was killed."""
    home = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-c", VICTIM]
    victims = {m: subprocess.Popen([*command, str(home / m), m], cwd=REPO) for m in METHODS}
    assert {m: victim.wait(timeout=200) for m, victim in victims.items()} == dict.fromkeys(METHODS, -signal.SIGKILL)
    return home


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_run_killed_by_sigkill_resumes_to_equal_results(killed, tmp_path, method):
    assert everything(killed / method)["epoch"] == 2
    torch.rand(5)  # the new process's generator is anywhere
    resumed = make_run(killed / method, method, epochs=EPOCHS)
    fit(resumed)
    fit(make_run(tmp_path, method, epochs=EPOCHS))
    assert len(resumed.history) == EPOCHS
    assert_equal(everything(killed / method), everything(tmp_path))
    banks = [name for name in everything(tmp_path)["method"] if "memory" in name]
    assert len(banks) == (0 if method == "ce" else 2)
