"""Problems for tests of the CUDA gather kernels on the CPU, and their checks against the float64 reference."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import torch

from wcord_fast.ops import status
from wcord_fast.ops.bank import native_cuda, reference
from wcord_fast.ops.bank.part import Part
from wcord_fast.ops.sampling.spec import ALL, DrawSpec

from . import draw_specs

TEMPERATURE = 0.07
SCALE, BIAS = torch.tensor(8.0), torch.tensor(-4.5, dtype=torch.float64)


def flags() -> int:
    return int(status.word(torch.device("cpu")))


class Problem:
    """Anchors, banks and draws; `source` may be "given" or "whole" (every pool row, class excluded) too."""

    def __init__(self, num_data, batch, k, dim, source="class", replacement="no", directions=2, dtype=torch.float32):
        g = torch.Generator().manual_seed(num_data * 1000 + dim)
        drawn = "class" if source in ("given", "whole", "expected") else source
        case = draw_specs.Case(random.Random(num_data + dim), num_data, batch, k, drawn, replacement)
        self.index, self.spec, self.num_data = torch.tensor(case.index), case.spec(), num_data
        if source == "given":
            self.spec = given(torch.randint(0, num_data, (batch, k), generator=g))
        if source in ("whole", "expected"):
            k = ALL if source == "whole" else k
            self.spec = DrawSpec("class", k, "no", source == "expected", 0, self.spec.tables)
        x = torch.randn(directions, batch, dim, generator=g, dtype=torch.float64)
        self.anchors = torch.nn.functional.normalize(x, dim=-1).to(reference.accumulation_dtype(x.to(dtype)))
        rows = torch.randn(directions, num_data, dim, generator=g)
        self.banks = list(torch.nn.functional.normalize(rows, dim=-1).to(dtype))
        self.log_z = torch.tensor([math.log(num_data) + 0.5, math.log(num_data) - 1.0][:directions])

    def exact(self) -> tuple:
        return self.anchors.double(), [bank.double() for bank in self.banks], self.index

    def check(self, scores=("nce", "mean", "log_z", "infonce", "sigmoid")) -> None:
        """Every score against the reference in float64, by tolerances of 1e-6 value, 1e-5 gradient."""
        wide = self.anchors.dtype == torch.float64 or self.banks[0].dtype == torch.float64
        value, slope = (1e-12, 1e-12) if wide else (1e-6, 1e-5)
        plan = ("gather", "reference")
        if "nce" in scores:
            actual = self.nce()
            expected = reference.bank_nce(*self.exact(), self.log_z.double(), self.spec, TEMPERATURE, True, *plan)
            assert_relative(actual[0], expected[0], value)
            close(actual[1], expected[1], slope)
        if "mean" in scores:
            actual = native_cuda.bank_mean_score(self.anchors, self.banks, self.index, self.spec, True, *plan)
            expected = reference.bank_mean_score(*self.exact(), self.spec, True, *plan)
            assert (actual[0] - expected[0]).abs().max() <= value  # a mean of values of both signs, each at most 1
            close(actual[1], expected[1], slope)
        if "log_z" in scores:
            actual = self.estimate()
            expected = reference.bank_log_z(*self.exact(), self.spec, TEMPERATURE, *plan)
            assert_relative(actual, expected, value)
        if "infonce" in scores:
            close_sums(self.infonce(), self.infonce(reference, *self.exact()), 2 * value, slope)
        if "sigmoid" in scores:
            close_sums(self.sigmoid(), self.sigmoid(reference, *self.exact()), 2 * value, slope)
        assert flags() == 0

    def check_parts(self, cuts) -> None:
        """Every score of every part, rows [lo, hi), against the reference's part, and their sums against the whole."""
        x, wide, index = self.exact()
        mine, theirs, end = (self.spec, TEMPERATURE, True, "gather", "auto"), (self.log_z.double(), self.spec), []
        limit = 1e-12 if self.anchors.dtype == torch.float64 else 1e-6
        for lo, hi in pairwise(cuts):
            part, banks, rows = Part(lo, self.num_data), [b[lo:hi] for b in self.banks], [b[lo:hi] for b in wide]
            loss, grad = native_cuda.bank_nce(self.anchors, banks, index, self.log_z, *mine, part)
            expected = reference.bank_nce(x, rows, index, *theirs, TEMPERATURE, True, "gather", "reference", part)
            assert_relative(loss, expected[0], 4 * limit)  # a share of few terms: nothing averages out
            close(grad, expected[1], 10 * limit)
            mean = native_cuda.bank_mean_score(self.anchors, banks, index, self.spec, True, "gather", "auto", part)
            expected = reference.bank_mean_score(x, rows, index, self.spec, True, "gather", "reference", part)
            torch.testing.assert_close(mean[0].double(), expected[0], rtol=0, atol=limit)
            close(mean[1], expected[1], 10 * limit)
            args = index, self.spec, TEMPERATURE, "gather", "reference", part
            total = native_cuda.bank_log_sum_exp(self.anchors, banks, *args)
            torch.testing.assert_close(total, reference.bank_log_sum_exp(x, rows, *args), rtol=0, atol=10 * limit)
            for score in (self.infonce, self.sigmoid):
                expected = score(reference, x, rows, part=part)
                close_sums(score(native_cuda, self.anchors, banks, part=part), expected, 4 * limit, 10 * limit)
            end.append((loss.double(), grad.double(), total))
        loss, grad, total = (torch.stack(t) for t in zip(*end, strict=True))
        expected = reference.bank_nce(x, wide, index, *theirs, TEMPERATURE, True, "gather", "reference")
        assert_relative(loss.sum(0), expected[0], limit)
        close(grad.sum(0), expected[1], 10 * limit)
        log_z = reference.normalised(total.logsumexp(0), index, self.num_data, self.spec)
        assert_relative(log_z, reference.bank_log_z(x, wide, index, *mine[:2], "gather", "reference"), limit)
        assert flags() == 0

    def nce(self, needs_grad=True):
        args = self.anchors, self.banks, self.index, self.log_z, self.spec, TEMPERATURE, needs_grad
        return native_cuda.bank_nce(*args, "gather", "auto")

    def infonce(self, module=native_cuda, anchors=None, banks=None, index=None, part=None, needs_grad=True):
        args = self.anchors if anchors is None else anchors, banks or self.banks, self.index, self.spec, TEMPERATURE
        return module.bank_infonce(*args, needs_grad, "gather", "reference", part)

    def sigmoid(self, module=native_cuda, anchors=None, banks=None, index=None, part=None, needs_grad=True):
        args = self.anchors if anchors is None else anchors, banks or self.banks, self.index, SCALE, BIAS, self.spec
        return module.bank_sigmoid(*args, needs_grad, "gather", "reference", part)

    def estimate(self, known=None):
        args = self.anchors, self.banks, self.index, self.spec, TEMPERATURE, "gather", "auto"
        return native_cuda.bank_log_z(*args, known)


def given(rows: torch.Tensor) -> DrawSpec:
    return DrawSpec("given", rows.shape[1], "no", False, 0, [rows])


def assert_relative(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=0)


def close_sums(actual: tuple, expected: tuple, value: float, slope: float) -> None:
    """Sums over negatives (critics.py): values [S, B], which may be -inf, then a row [S, B, D]."""
    for mine, theirs in zip(actual[:-1], expected[:-1], strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=value, atol=value)
    close(actual[-1], expected[-1], slope)


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Gradients: the error of a row against the row's norm."""
    assert actual.shape == expected.shape
    error = torch.linalg.vector_norm(actual.double() - expected, dim=-1)
    assert (error <= tolerance * torch.linalg.vector_norm(expected, dim=-1)).all(), (actual, expected)
