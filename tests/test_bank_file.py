"""Rows of a bank from a .npy file."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wcord_fast import MemoryBank
from wcord_fast.nn import memory_bank


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f2", ">f8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_of_a_file_are_not_normalised_or_changed(tmp_path, monkeypatch, kind, dtype):
    monkeypatch.setattr(memory_bank, "CHUNK_ROWS", 3)
    values = np.random.default_rng(0).standard_normal((7, 4)).astype(kind)
    np.save(tmp_path / "rows.npy", values)
    bank = MemoryBank(7, 4, dtype=dtype, seed=0)
    assert bank.load_rows_(tmp_path / "rows.npy") is bank
    assert torch.equal(bank.rows, torch.from_numpy(values.astype(kind[1:])).to(dtype))


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, torch.float32), (1e6, torch.float16), (1e39, torch.bfloat16)])
def test_a_row_that_is_not_finite_in_the_bank_is_named(tmp_path, monkeypatch, value, dtype):
    monkeypatch.setattr(memory_bank, "CHUNK_ROWS", 3)
    values = np.zeros((7, 4))
    values[5, 2] = value
    np.save(tmp_path / "rows.npy", values)
    bank = MemoryBank(7, 4, dtype=dtype, seed=0)
    with pytest.raises(ValueError, match=f"file: row 5 holds NaN, or a value that is infinite in {dtype}"):
        bank.load_rows_(tmp_path / "rows.npy")
    assert bool(bank.rows.isfinite().all())


def test_files_that_are_no_bank_are_refused(tmp_path):
    bank = MemoryBank(4, 3, seed=0)
    before = bank.rows.clone()
    np.savez(tmp_path / "archive.npz", rows=np.zeros((4, 3)))
    np.save(tmp_path / "objects.npy", np.array([None] * 4))
    (tmp_path / "text.npy").write_text("0 0 0\n" * 4)
    for name in ("archive.npz", "objects.npy", "text.npy"):
        with pytest.raises(ValueError, match=f"file: .*{name} is not a .npy file of numbers"):
            bank.load_rows_(tmp_path / name)
    for values, message in (
        (np.zeros((3, 4)), r"got float64 \[3, 4\]"),
        (np.zeros((4, 3), int), r"got int64 \[4, 3\]"),
        (np.zeros((4, 3), np.longdouble), "got .*float"),
    ):
        np.save(tmp_path / "rows.npy", values)
        with pytest.raises(ValueError, match=r"file: expected floats of shape \[4, 3\], " + message):
            bank.load_rows_(tmp_path / "rows.npy")
    with pytest.raises(FileNotFoundError, match="nothing"):
        bank.load_rows_(tmp_path / "nothing.npy")
    assert torch.equal(bank.rows, before)
