"""A run on the CPU that is killed with SIGKILL in mid-epoch and resumed equals the uninterrupted run bit for bit."""

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
FATAL_STEP = 2 * STEPS + 2  # the second step of the third epoch
REPO = Path(__file__).resolve().parents[1]

VICTIM = f"""
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.train_tiny import make_run
from wcord_fast.train import loop

train_step, steps = loop.train_step, []

def step_then_die(*args):
    steps.append(1)
    result = train_step(*args)
    if len(steps) == {FATAL_STEP}:
        os.kill(os.getpid(), signal.SIGKILL)  # the step is done, its epoch is not
    return result

loop.train_step = step_then_die
loop.fit(make_run(Path(sys.argv[1]), sys.argv[2], epochs={EPOCHS}))
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder with a run of each method, each killed in its third epoch."""
    home = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-c", VICTIM]
    victims = {m: subprocess.Popen([*command, str(home / m), m], cwd=REPO) for m in METHODS}
    assert {m: victim.wait(timeout=200) for m, victim in victims.items()} == dict.fromkeys(METHODS, -signal.SIGKILL)
    return home


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_run_killed_by_sigkill_resumes_to_equal_results(killed, tmp_path, method):
    assert everything(killed / method)["epoch"] == 2
    torch.rand(5)  # the generator of a new process is in another state
    resumed = make_run(killed / method, method, epochs=EPOCHS)
    fit(resumed)
    fit(make_run(tmp_path, method, epochs=EPOCHS))
    assert len(resumed.history) == EPOCHS
    assert_equal(everything(killed / method), everything(tmp_path))
    banks = [name for name in everything(tmp_path)["method"] if "memory" in name]
    assert len(banks) == (0 if method == "ce" else 2)
