"""Failures of the machine or of a file give one line; a defect of ours gives a traceback."""

import pickle

import numpy as np
import pytest

from wcord_fast.cli import evaluate
from wcord_fast.cli.main import main
from wcord_fast.data import cifar100


@pytest.mark.parametrize("label", [2**70, -(2**70), 100, -1])
def test_a_cifar_label_of_any_size_is_refused(tmp_path, label):
    content = {"data": np.zeros((2, 3072), np.uint8), "fine_labels": [1, label]}
    for part in ("train", "test"):
        (tmp_path / part).write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match=rf"train: 'fine_labels' must be 0 .. 99, got .*{abs(label)}"):
        cifar100.load(tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("backend='native': bank_init on cpu cannot run here: it was not built"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: 9 bytes"
        ),
        MemoryError("Unable to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_lack_of_memory_or_backend_gives_one_line(monkeypatch, capsys, error):
    def fails(_):
        raise error

    monkeypatch.setattr(evaluate, "run", fails)
    assert main(["evaluate"]) == 1
    output = capsys.readouterr().err
    assert output == f"wcord-fast evaluate: {str(error) or 'out of memory'}\n"


def test_programming_error_gives_a_traceback(monkeypatch):
    def fails(_):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(evaluate, "run", fails)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        main(["evaluate"])
