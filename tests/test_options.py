"""Options that are written once: records, their checks, and the functions that take them as keywords."""

from dataclasses import dataclass, fields
from inspect import signature
from typing import Literal

import pytest
import torch

import wcord_fast
from wcord_fast import distill, nn
from wcord_fast import functional as F
from wcord_fast.nn.options import check_fields, option
from wcord_fast.ops import checks
from wcord_fast.ops.keywords import keywords_of


@dataclass
class Base:
    rate: float = option(1.0, checks.positive)
    kind: Literal["a", "b"] | None = None
    flag: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass
class Child(Base):
    rate: float = 2.0  # another default keeps the check
    kind: Literal["a", "b", "c"] = "c"


@pytest.mark.parametrize("kind", [Base, Child])
@pytest.mark.parametrize(("name", "value"), [("rate", 0.0), ("rate", "1"), ("kind", "d"), ("flag", 1)])
def test_a_record_checks_its_fields(kind, name, value):
    with pytest.raises((TypeError, ValueError), match=name):
        kind(**{name: value})


def test_subclass_may_allow_other_choices():
    assert Child(kind="c").kind == "c" and Base(kind=None).kind is None
    for record, word in ((Base, "c"), (Child, None)):
        with pytest.raises(ValueError, match="kind"):
            record(kind=word)


@keywords_of(Base, without=("flag",), renamed={"kind": "sort"})
def front(x, *, own=3, **options):
    return x, own, options


def test_keyword_front_accepts_exactly_the_records_options():
    assert front(1, rate=5.0) == (1, 3, {"rate": 5.0, "sort": None})
    assert list(signature(front).parameters) == ["x", "own", "rate", "sort"]
    for word, hint in (("rat", "'rate'"), ("kind", "'sort'"), ("flag", "")):
        with pytest.raises(TypeError, match=f"front.*{word!r}.*{hint}"):
            front(1, **{word: 1})


@pytest.mark.parametrize(
    ("module", "record", "names"),
    [
        (wcord_fast.WCoRDLoss, nn.WCoRDLossOptions, {}),
        (
            wcord_fast.CRDLoss,
            nn.ContrastOptions,
            {"num_negatives": "nce_k", "temperature": "nce_t", "momentum": "nce_m"},
        ),
    ],
)
def test_a_loss_takes_the_options_of_its_record(module, record, names):
    shown = signature(module).parameters
    assert {names.get(f.name, f.name): f.default for f in fields(record)}.items() <= {
        name: p.default for name, p in shown.items()
    }.items()


@pytest.mark.parametrize("name", ["nce_k", "nce_t", "nce_m"])
def test_an_error_calls_an_option_by_the_name_that_was_given(name):
    with pytest.raises(ValueError, match=f"^{name}: "):
        wcord_fast.CRDLoss(4, 4, 20, **{name: -1})


@pytest.mark.parametrize(("method", "record"), [("wcord", nn.WCoRDLossOptions), ("crd", nn.ContrastOptions)])
def test_driver_section_equals_the_losss_record(method, record):
    options = distill.METHODS[method].options
    assert issubclass(options, record)
    own = {name for name in options.__annotations__ if name in {f.name for f in fields(record)}}
    assert own == {"num_negatives", "z"}  # which the driver can choose in more ways


def test_the_transport_functions_have_one_list_of_options():
    cost, matrix = (
        {name: p.default for name, p in signature(f).parameters.items() if p.kind is p.KEYWORD_ONLY}
        for f in (F.ot_cost, F.ot_cost_from_matrix)
    )
    for f, options in ((F.ot_solve, cost), (F.ot_plan, cost), (F.ot_solve_from_matrix, matrix)):
        shown = {name: p.default for name, p in signature(f).parameters.items() if p.kind is p.KEYWORD_ONLY}
        assert shown == options
    x = torch.eye(3)
    with pytest.raises(TypeError, match=r"ot_plan.*'iter'.*'iters'"):
        F.ot_plan(x, x, iter=3)
