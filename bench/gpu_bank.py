"""CRD steps on a GPU: every plan of ours, the naive form and plain PyTorch, with the share of the derived floors."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import torch

from bench.bank import CHECKED, SLACK, errors
from bench.bank_providers import Case, Naive, Ours, Plain
from bench.gpu_measure import call_times, eager_times, graphed, peak_megabytes, tried
from wcord_fast import NegativeSampler, use_backend
from wcord_fast import functional as F
from wcord_fast.ops.bank import membership

SHAPES = ((64, 16384, 50_000), (256, 16384, 50_000), (1024, 65536, 1_281_167))
# Microseconds on an H200, derived from bytes and operations (D = 128, bf16 banks): what no kernel of the plan can beat.
FLOORS = {"gather": (90, 358, 9500), "dense": (12, 48, 2800)}
LARGEST = 1 << 33  # bytes of [B, K, D] above which the naive form is left out
LIMITS = {"fp32": {"loss": 1e-6, "grad": 1e-5}, "bf16": {"loss": 1e-4, "grad": 1e-2}}  # of ours, relative


def moved(case: Case, device: torch.device, dtype: torch.dtype) -> Case:
    """The case with its tensors on `device` and its banks rounded to `dtype`."""
    there = copy.copy(case)
    there.anchors, there.index, there.log_z = (t.to(device) for t in (case.anchors, case.index, case.log_z))
    there.banks = [bank.to(device, dtype, copy=True) for bank in case.banks]
    there.sampler = copy.deepcopy(case.sampler).to(device)
    return there


def forms(case: Case, device: torch.device) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """(name, precision of the bank, maker of a provider)."""

    def full() -> Case:
        return moved(case, device, torch.float32)

    def half() -> Case:
        return moved(case, device, torch.bfloat16)

    if 4 * case.batch * case.k * case.dim <= LARGEST:
        yield "naive", "fp32", lambda: Naive(full())
        yield "plain", "fp32", lambda: Plain(full())
    backend = "auto" if device.type == "cuda" else "native"
    for plan in ("gather", "dense"):
        yield plan, "fp32", lambda plan=plan: Ours(full(), plan, backend, copy=False)
        yield plan, "bf16", lambda plan=plan: Ours(half(), plan, backend, copy=False)

    def every_row() -> Ours:
        there = half()
        labels = torch.arange(case.num_data) % 100
        there.sampler = NegativeSampler(case.num_data, "all", labels=labels, seed=1).to(device)
        return Ours(there, "dense", backend, copy=False)

    yield "dense, all rows", "bf16", every_row


def step_rows(shapes=SHAPES, device: torch.device | None = None, dim: int = 128) -> list[dict]:
    """A row per shape and form: device time of a graph replay, eager time, memory, errors, percent of the floor."""
    device = device or torch.device("cuda")
    rows = []
    for number, shape in enumerate(shapes):
        case = Case(*shape, dim)
        rounded = moved(case, torch.device("cpu"), torch.bfloat16)
        count = min(CHECKED, case.batch)
        expected = {"fp32": case.answers(count), "bf16": rounded.answers(count)}
        for name, precision, make in forms(case, device):
            row = {
                "part": "step",
                "form": name,
                "bank": precision,
                **dict(zip(("batch", "k", "num_data"), shape, strict=True)),
            }

            def measure(name=name, precision=precision, make=make, number=number, expected=expected) -> dict[str, Any]:
                provider = make()
                found: dict[str, Any] = {}
                if name != "dense, all rows":
                    want = [t.to(device) for t in expected[precision]]
                    found["error"] = errors(provider, want)
                    limits, slack = LIMITS[precision], SLACK.get(name, 1)
                    found["right"] = all(found["error"][key] <= limits[key] * slack for key in limits)
                found["peak_mb"] = peak_megabytes(provider.step, device)
                found["eager_us"] = eager_times(provider.step, device)
                found["us"] = call_times(graphed(provider.step, device), device)
                floors = FLOORS.get(name.split(",")[0])
                if floors and precision == "bf16" and dim == 128 and shapes is SHAPES:
                    found["floor_us"] = floors[number]
                    found["percent_of_floor"] = round(100 * floors[number] / found["us"]["p50"], 1)
                return found

            rows.append(tried(row, measure))
            print(json.dumps(rows[-1]), flush=True)
    return rows


def part_rows(shapes=SHAPES, device: torch.device | None = None, dim: int = 128) -> list[dict]:
    """Device times of the draws, the membership mask and the bank update alone."""
    device = device or torch.device("cuda")
    rows = []
    for shape in shapes:
        case = moved(Case(*shape, dim), device, torch.float32)
        calls = {
            "draw": lambda c=case: c.sampler.draw(c.index, backend="native"),
            "draw_mask": lambda c=case: membership.draw_mask(c.index, c.num_data, c.sampler.spec()),
            "bank_update": lambda c=case: F.bank_update_(c.banks[0], c.index, c.anchors[0]),
        }
        for name, call in calls.items():
            row = {"part": "time", "op": name, **dict(zip(("batch", "k", "num_data"), shape, strict=True))}
            with use_backend("native"):
                rows.append(tried(row, lambda call=call: {"us": call_times(call, device)}))
            print(json.dumps(rows[-1]), flush=True)
    return rows
