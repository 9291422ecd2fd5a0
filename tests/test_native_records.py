"""The records that native ops take: filled by name, and the codes and constants that come with them."""

from __future__ import annotations

import pytest
import torch

from wcord_fast.ops import native_module
from wcord_fast.ops.bank import native, native_cpu, reference
from wcord_fast.ops.sampling.spec import TABLES

from .bank_cases import TAU, problem, relative_error

NATIVE = native_module.load()
pytestmark = pytest.mark.skipif(NATIVE is None, reason=f"no native module: {native_module.unavailable_reason('cpu')}")

INIT = {"out": 64, "dtype": 1, "num_rows": 2, "dim": 3, "seed": 2**64 - 1, "bank_id": 5, "first_row": -6}
RECORDS = [t for t in vars(NATIVE).values() if isinstance(t, type) and hasattr(t, "address")] if NATIVE else []


def test_record_fields_are_set_by_name():
    record = NATIVE.BankInit(**INIT)
    assert {name: getattr(record, name) for name in INIT} == INIT
    assert record.threads == 0  # not given
    again = NATIVE.BankInit(**dict(reversed(INIT.items())))
    assert {name: getattr(again, name) for name in INIT} == INIT
    record.dim, record.threads = 7, 2
    assert (record.dim, record.threads, record.num_rows) == (7, 2, 2)


@pytest.mark.parametrize("name", INIT)
def test_a_field_that_is_missing_is_named(name):
    fields = {key: value for key, value in INIT.items() if key != name}
    with pytest.raises(TypeError, match=f"BankInit: missing {name}$"):
        NATIVE.BankInit(**fields)


def test_a_field_that_does_not_exist_is_refused():
    with pytest.raises(TypeError, match="no field 'colour'"):
        NATIVE.BankInit(**INIT, colour=1)
    with pytest.raises(AttributeError):
        NATIVE.BankInit(**INIT).colour = 1
    with pytest.raises(TypeError, match="by name"):
        NATIVE.BankInit(*INIT.values())


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("dim", 1.5, TypeError),
        ("dim", None, TypeError),
        ("dim", 2**63, OverflowError),
        ("dtype", 2**31, OverflowError),
        ("dtype", -(2**31) - 1, OverflowError),
        ("out", -1, OverflowError),
        ("seed", 2**64, OverflowError),
    ],
)
def test_a_value_that_does_not_fit_is_refused(name, value, error):
    with pytest.raises(error, match=f"BankInit.{name}"):
        NATIVE.BankInit(**{**INIT, name: value})
    record = NATIVE.BankInit(**INIT)
    with pytest.raises(error, match=f"BankInit.{name}"):
        setattr(record, name, value)
    with pytest.raises(TypeError, match="deleted"):
        delattr(record, name)


@pytest.mark.parametrize("record", RECORDS, ids=lambda t: t.__name__)
def test_fields_of_a_record_do_not_overlap(record):
    """Each field keeps its number when all fields are set, so no two overlap."""
    names = [name for name, kind in vars(record).items() if type(kind).__name__ == "getset_descriptor"]
    names.remove("address")
    made = record(**{name: number + 1 for number, name in enumerate(names)})
    assert [getattr(made, name) for name in names] == [number + 1 for number in range(len(names))]
    for number, name in enumerate(names):
        setattr(made, name, -number if number and name in ("dim", "n", "m") else 1000 + number)
        rest = [getattr(made, other) for other in names[number + 1 :]]
        assert rest == [other + 1 for other in range(number + 1, len(names))]


def test_a_record_of_another_op_is_refused():
    with pytest.raises(TypeError, match=r"expected a BankUpdate, got wcord_fast\._native\.BankInit"):
        NATIVE.cpu_bank_update(NATIVE.BankInit(**INIT))
    with pytest.raises(TypeError, match="expected a BankInit, got int"):
        NATIVE.cpu_bank_init(3)


def test_exported_codes_match_pythons_names():
    assert set(NATIVE.SOURCES) | {"given"} == set(TABLES)
    assert set(NATIVE.REPLACEMENTS) == {"no", "yes", "auto"}
    assert all(isinstance(getattr(torch, name), torch.dtype) for name in NATIVE.DTYPES)
    codes = [table for table in vars(NATIVE).values() if isinstance(table, dict) and table and "__" not in str(table)]
    assert all(sorted(table.values()) == list(range(len(table))) for table in codes)


@pytest.mark.parametrize("plan", ["gather", "dense"])
def test_constant_of_the_nce_loss_is_defined_once(monkeypatch, plan):
    """With another constant the native loss equals the reference's with it, so no part has a constant of its own."""
    p = problem("class")
    args = p.anchors, p.banks, p.index, p.log_z, p.spec, TAU, True, plan, "native"
    before = native_cpu.bank_nce(*args)[0]
    for module in (reference, native_cpu):
        monkeypatch.setattr(module, "EPS", 0.01)
    loss, grad = native_cpu.bank_nce(*args)
    wide = p.anchors.double(), [bank.double() for bank in p.banks], *args[2:7]
    expected = reference.bank_nce(*wide, "gather", "reference")
    assert relative_error(loss, expected[0]) < 1e-5 and relative_error(grad, expected[1]) < 1e-4
    assert relative_error(before, expected[0]) > 1e-3


def test_least_norm_of_a_bank_row_is_defined_once(monkeypatch):
    monkeypatch.setattr(native, "MIN_NORM", 60.0)
    bank = torch.zeros(1, 4)
    native.bank_update_(bank, torch.tensor([0]), torch.full((1, 4), 3.0), 0.0)
    assert torch.equal(bank, torch.full((1, 4), 3.0 / 60))
