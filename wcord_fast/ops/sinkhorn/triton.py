"""Streaming optimal transport on the GPU: `reference.ot_solve` in O((n + m) d) memory, for any n and m.

An iteration has four launches (sweep and combine, for the rows and for the columns). Their kernels and layouts are in
triton_kernels.py. Work on vectors of length n or m is plain PyTorch. Nothing waits for the device: an early stop is a
flag that the kernels read. So a CUDA graph can capture a solve after a first call has compiled its kernels.
"""

from __future__ import annotations

import contextlib
import functools
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..precision import matmul_precision
from .pairs import Pairs, below_dual
from .reference import (
    CHECK_EVERY,
    SolveOptions,
    SolveResult,
    _row_error,
    _unit_rows,
    damping,
    mass_grad,
    relaxation,
    wanted_rows,
)

if TYPE_CHECKING:
    from .triton_pairs import KnownPairs

SCALE = 2.0**12  # the kernels' UNIT: both numbers of a split stay above fp16's subnormals
PADDING = 128  # the kernels' PADDING
COMBINE_BLOCK = 256
MAX_STRIPS = 128  # combine adds them one after the other
INTERPRETED_PROCESSORS = 2  # SMs that the interpreter reports, so that tests run several strips


GIVEN = ("given", "shared")  # the kernels' COST where the matrix is an argument: one per problem, or one for all


class Tile(NamedTuple):
    """Block sizes of one kernel, and how many of its programs an SM holds."""

    m: int
    n: int
    k: int
    out: int
    warps: int
    stages: int
    resident: int


class Strips(NamedTuple):
    """The strips of columns in which a launch is cut."""

    number: int
    tiles: int  # column tiles in each


class Side(NamedTuple):
    """One of the two point clouds, laid out for the kernels."""

    cost: Tensor  # fp16 [G, n, D or 2 D] (cosine), fp32 [G, d, n padded] (distances)
    vectors: Tensor  # fp16 [G, n, D or 2 D] what P multiplies: unit rows, or centred rows over 2^exponent (sqeuclidean)
    exponent: Tensor  # int32 [G, 1, 1]
    centre: Tensor  # [G, 1, d], 0 for cosine
    unit: Tensor  # [G, n, d] unit rows (cosine), the features (distances)
    length: Tensor  # [G, n, 1] their lengths, 1 for distances


def unsupported(dtype: torch.dtype) -> str | None:
    """The reason why these kernels do not support inputs of `dtype`, or None."""
    if dtype == torch.float64:
        return "the Triton kernels compute in fp32; float64 input runs on the reference"
    return None


def ot_solve(
    x: Tensor,  # [G, n, d]
    y: Tensor,  # [G, m, d]
    a: Tensor,  # [G, n] fp32
    b: Tensor,  # [G, m] fp32
    options: SolveOptions,
    pairs: Pairs | None = None,  # labels [G, n] and [G, m]
) -> SolveResult:
    """Solve G problems and differentiate their values with respect to what is needed, as `reference.ot_solve`.

    Products are 3xTF32 in accuracy; `torch.set_float32_matmul_precision("high")` or "medium" makes them TF32.

    Raises:
        NotImplementedError: fp64 input.
    """
    why = unsupported(a.dtype)
    if why:
        raise NotImplementedError(why)
    with on_device(x.device):
        cost = options.cost
        a, b = a.contiguous(), b.contiguous()
        known = None
        if pairs is not None and pairs.rho > 0:
            from .triton_pairs import known_pairs

            known = known_pairs(a, b, pairs)
        solve = Solve(_side(x, cost), _side(y, cost), a, b, options, cost, x.shape[2], known)
        solve.iterate()
        solved = solve.finish()
    if known is None or pairs is None or options.value == "cost":
        return solved
    return solved._replace(value=solved.value - below_dual(known.kappa, pairs.rho, options.eps))


class Solve:
    """Buffers of one call and the launches that use them."""

    def __init__(
        self,
        x: Side,
        y: Side,
        a: Tensor,
        b: Tensor,
        options: SolveOptions,
        cost: str,  # the kernels' COST
        d: int,
        pairs: KnownPairs | None = None,
    ) -> None:
        from . import triton_kernels

        self.kernels = triton_kernels
        self.paired = pairs is not None
        unread = a.new_empty(0, dtype=torch.int32)
        rows, columns, self.kappa = pairs or (unread, unread, a)
        self.pairs = {"rows": (rows, columns), "columns": (columns, rows)}
        self.sides = {"rows": (x, y), "columns": (y, x)}
        self.a, self.b, self.d, self.options = a, b, d, options
        self.damp = {"rows": damping(options.reach_a, options.eps), "columns": damping(options.reach_b, options.eps)}
        self.log_mass = {"rows": a.log(), "columns": b.log()}
        self.cost = cost
        self.split = exact_products()
        g = a.shape[0]
        self.alpha = torch.empty_like(a)
        self.beta = torch.where(b > 0, 0.0, self.log_mass["columns"])
        self.ahead = self.beta.clone()  # 2 beta - the previous beta, which ipot's row step reads
        self.scale = a.new_zeros(g)
        self.active = torch.ones(g, dtype=torch.int32, device=a.device)  # 0: this problem has stopped
        self.all = torch.ones_like(self.active)
        self.iterations = torch.full_like(self.active, options.iters)
        self.tile = sweep_tile(cost, padded_width(d), self.paired)
        self.strips = {side: self._strips(side, self.tile) for side in self.sides}
        room = max(self.strips[side].number * self._sizes(side)[0] for side in self.sides) * g
        self.partials = a.new_empty(2, room)  # largest exponent and sum of every strip

    def start(self, active: Tensor) -> None:
        """Solve the problems of the mask `active` [G] only. The others are solved: their potentials are set."""
        self.active = active.int()
        going = active.unsqueeze(-1)
        self.beta = torch.where(going, torch.where(self.b > 0, 0.0, self.log_mass["columns"]), self.beta)
        self.ahead = self.beta.clone()
        self.iterations.masked_fill_(active, self.options.iters)

    def iterate(self) -> None:
        """alpha, beta, scale and iterations of the active problems after at most `iters` iterations."""
        ipot, eps, iters, tol = self.options.solver == "ipot", *self.options[2:5]
        for t in range(1, iters + 1):
            s = (t if ipot else 1) / eps
            self._log_sum_exp("rows", self.ahead if ipot else self.beta, s, self.alpha, self.active)
            self._log_sum_exp("columns", self.alpha, s, self.beta, self.active, extrapolate=ipot)
            if tol is not None and t % CHECK_EVERY == 0 and t < iters:
                going = self.active.bool()
                self.scale.masked_fill_(going, s)
                stop = going & (self._error(self._plan_sums("rows", gradient=False)[0]) <= tol)
                self.iterations.masked_fill_(stop, t)
                self.active.masked_fill_(stop, 0)
        self.scale.masked_fill_(self.active.bool(), s)

    def finish(self) -> SolveResult:
        """The results, with P recomputed tile by tile."""
        options = self.options
        rows, moved, pulled = self._plan_sums("rows", gradient=options.need_x)
        value, grad_x, grad_y, grad_a, grad_b = moved.sum(-1), *(self.a.new_empty(0) for _ in range(4))
        if options.need_x:
            grad_x = self._feature_grad("rows", rows, pulled)
        del pulled
        columns = self.b  # the column step ran last, so the columns of P sum to b
        if options.need_y or options.relaxed:
            sums, _, pulled = self._plan_sums("columns", gradient=options.need_y)
            grad_y = self._feature_grad("columns", sums, pulled) if options.need_y else grad_y
            columns = sums if options.relaxed else columns
        if options.value == "dual":
            f, g = self._potentials(options.eps)
            value = (rows * f).sum(-1) + (columns * g).sum(-1)
            if options.relaxed:
                value = value + relaxation(rows, columns, self.a, self.b, options).to(value.dtype)
            grad_a = mass_grad(f, self.b, options.reach_a, options) if options.need_a else grad_a
            grad_b = mass_grad(g, self.a, options.reach_b, options) if options.need_b else grad_b
        outcome = (self.alpha, self.beta, self.scale, self._error(rows), self.iterations)
        return SolveResult(value, *outcome, grad_x, grad_y, grad_a, grad_b)

    def _error(self, rows: Tensor) -> Tensor:
        """The marginal errors [G] of row sums [G, n]."""
        return _row_error(rows, wanted_rows(self.a, self.alpha, self.options))

    def _potentials(self, eps: float) -> tuple[Tensor, Tensor]:
        """f [G, n] and g [G, m], as `reference.potentials`."""
        f, g = torch.empty_like(self.alpha), torch.empty_like(self.beta)
        self._log_sum_exp("rows", self.beta, 1 / eps, f, self.all, plain=True)
        self._log_sum_exp("columns", self.alpha, 1 / eps, g, self.all, plain=True)
        f = torch.where(self.a > 0, self.alpha - self.log_mass["rows"], -self.damp["rows"] * f)
        g = torch.where(self.b > 0, self.beta - self.log_mass["columns"], -self.damp["columns"] * g)
        return f.mul_(eps), g.mul_(eps)

    def _log_sum_exp(
        self,
        side: str,
        h: Tensor,  # potentials of the other side
        s: float,
        out: Tensor,  # log mass - damp LSE_j(h_j - s C_ij), or LSE_j alone if `plain`
        active: Tensor,
        *,
        extrapolate: bool = False,
        plain: bool = False,
    ) -> None:
        (own, other), (n, m) = self.sides[side], self._sizes(side)
        strips, tile = self.strips[side], self.tile
        blocks = out.shape[0] * cdiv(n, tile.m)
        self.kernels.sweep_kernel[(blocks * strips.number,)](
            own.cost, other.cost, h, active, self.partials[0], self.partials[1], *self.pairs[side],
            self.kappa, s, n, m, *strips, self.cost, self._width(), tile.m, tile.n, tile.k, self.split, side == "rows",
            self.paired,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        self.kernels.combine_kernel[(out.shape[0] * cdiv(n, COMBINE_BLOCK),)](
            self.partials[0], self.partials[1], self.log_mass[side], active, out, self.ahead, self.damp[side], n,
            strips.number, extrapolate, plain, COMBINE_BLOCK, num_warps=4,
        )  # fmt: skip

    def _plan_sums(self, side: str, *, gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
        """sum_j P_ij and sum_j P_ij C_ij [G, n], and sum_j P_ij v_j [G, n, d] (or an empty tensor)."""
        (own, other), (n, m) = self.sides[side], self._sizes(side)
        g, width = self.a.shape[0], padded_width(self.d)
        tile = finish_tile(self.cost, width)
        chunks = width // tile.out if gradient else 1
        strips = self._strips(side, tile, chunks)
        sums = self.a.new_empty(2, g, strips.number, n)
        make = self.a.new_zeros if self.cost == "euclidean" else self.a.new_empty  # that kernel adds
        pulled = make(g, strips.number, n, width) if gradient else make(0)
        potentials = (self.alpha, self.beta) if side == "rows" else (self.beta, self.alpha)
        self.kernels.finish_kernel[(g * strips.number * chunks * cdiv(n, tile.m),)](
            own.cost, other.cost, other.vectors, *potentials, self.scale, sums[0], sums[1], pulled,
            *self.pairs[side], self.kappa, n, m, *strips, gradient, self.cost, self._width(), width, tile.m, tile.n,
            tile.k, tile.out, self.split, side == "rows", self.paired, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        mass, moved = sums.sum(2)
        if gradient:
            pulled = pulled.sum(1)[..., : self.d] if strips.number > 1 else pulled[:, 0, :, : self.d]
        return mass, moved, pulled

    def _feature_grad(self, side: str, mass: Tensor, pulled: Tensor) -> Tensor:
        """sum_j P_ij dC_ij / dx_i, [G, n, d], as `reference.feature_grad`."""
        own, other = self.sides[side]
        if self.cost == "cosine":
            along = (pulled * own.unit).sum(-1, keepdim=True)
            return (along * own.unit - pulled) / own.length
        if self.cost == "euclidean":
            return pulled
        return 2 * (mass.unsqueeze(-1) * (own.unit - other.centre) - torch.ldexp(pulled, other.exponent))

    def _strips(self, side: str, tile: Tile, chunks: int = 1) -> Strips:
        n, m = self._sizes(side)
        blocks = self.a.shape[0] * cdiv(n, tile.m) * chunks
        return plan_strips(blocks, cdiv(m, tile.n), processors(self.a.device) * tile.resident)

    def _sizes(self, side: str) -> tuple[int, int]:
        n, m = self.a.shape[1], self.b.shape[1]
        return (n, m) if side == "rows" else (m, n)

    def _width(self) -> int:
        return padded_width(self.d) if self.cost == "cosine" else self.d


def exact_products() -> bool:
    """Whether products have fp32's accuracy."""
    return matmul_precision() == "highest"


def padded_width(d: int) -> int:
    """The D of rows in memory: the width of one tensor-core tile, or a multiple of 128."""
    return max(16, 1 << (d - 1).bit_length()) if d <= 128 else cdiv(d, 128) * 128


def chunk_width(width: int) -> int:
    """The part of D in one product tile. Every kernel uses the same value, because the bits of a cost depend on it."""
    return width if width <= 128 else 64


GIVEN_TILE = Tile(64, 64, 0, 0, warps=8, stages=1, resident=2)  # square: both sides read runs of 64 numbers
GIVEN_FINISH_TILE = Tile(32, 64, 0, 1, warps=8, stages=1, resident=2)
DISTANCE_TILE = Tile(16, 128, 0, 0, warps=1, stages=1, resident=8)


# Chosen by what ptxas reports for sm_80 and sm_90 (no spills; shared memory below 160 KB), not by timings.
def sweep_tile(cost: str, width: int, paired: bool = False) -> Tile:
    """Blocks of sweep_kernel for rows of this padded width; `paired`: with known pairs, whose labels take registers."""
    if cost in GIVEN:
        return GIVEN_TILE
    if cost == "cosine":
        return Tile(128, 64, chunk_width(width), 0, warps=8, stages=2, resident=1)
    # One warp: 16 x 4 cells a thread, 17 loads for 128 flops.
    return DISTANCE_TILE._replace(resident=10 if paired else 12)


def finish_tile(cost: str, width: int) -> Tile:
    """Blocks of finish_kernel for rows of this padded width."""
    if cost in GIVEN:
        return GIVEN_FINISH_TILE
    if cost == "cosine":
        return Tile(64, 32, chunk_width(width), min(width, 128), warps=8, stages=2, resident=1)
    if cost == "euclidean":
        return DISTANCE_TILE._replace(n=64, out=width)  # weights take registers beside the costs
    return Tile(32, 32, 0, min(width, 128), warps=4, stages=2, resident=2)


@functools.lru_cache(maxsize=1024)
def plan_strips(blocks: int, tiles: int, slots: int) -> Strips:
    """The fastest strips. The model of time: rounds of programs times (tiles of a strip + 2 for a program's start).

    There are at most four rounds of programs, so the memory of partial results is bounded by the device's size.

    Args:
        blocks: programs with one strip.
        tiles: column tiles to share out.
        slots: programs that run at the same time.
    """

    def duration(number: int) -> int:
        return cdiv(blocks * number, slots) * (cdiv(tiles, number) + 2)

    most = min(tiles, MAX_STRIPS, max(1, 4 * slots // blocks))
    each = cdiv(tiles, min(range(1, most + 1), key=duration))
    return Strips(cdiv(tiles, each), each)


def split_rows(rows: Tensor, split: bool) -> Tensor:
    """fp16 hi, then lo if `split`, of fp32 [G, n, d] with entries in [-1, 1]: [G, n, D] each, side by side."""
    g, n, d = rows.shape
    width = padded_width(d)
    out = torch.zeros(g, n, width * (2 if split else 1), dtype=torch.float16, device=rows.device)
    scaled = rows * SCALE
    high = out[..., :d].copy_(scaled)
    if split:
        out[..., width : width + d] = scaled - high
    return out


def _side(features: Tensor, cost: str) -> Side:
    split = exact_products()
    features = features.float()
    g, n, d = features.shape
    nought, one = features.new_zeros(()), features.new_ones(())
    if cost == "cosine":
        unit, length = _unit_rows(features)
        halves = split_rows(unit, split)
        return Side(halves, halves, nought.int(), nought, unit, length)
    transposed = features.new_zeros(g, d, cdiv(n, PADDING) * PADDING)
    transposed[..., :n] = features.mT
    if cost == "euclidean":
        return Side(transposed, features.new_empty(0, dtype=torch.float16), nought.int(), nought, features, one)
    centre = features.mean(-2, keepdim=True)
    centred = features - centre
    peak = centred.abs().amax((-2, -1), keepdim=True)
    exponent = torch.frexp(peak).exponent.clamp(-100, 100)
    return Side(transposed, split_rows(torch.ldexp(centred, -exponent), split), exponent, centre, features, one)


def on_device(device: torch.device) -> AbstractContextManager:
    """Makes the tensors' device current, because Triton launches on the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@functools.cache
def processors(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def cdiv(a: int, b: int) -> int:
    return -(-a // b)
