"""Cuts a call of the dense Triton plan into launches: chunks of anchors, pairs of banks, splits of the rows."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import status, triton_module
from ..precision import matmul_precision
from ..sampling import draws
from ..sampling.spec import ALL, DrawSpec
from ..status import Code
from .membership import draw_counts, draw_mask
from .part import Part, whole

CHUNK_BYTES = 64 << 20  # of a membership matrix
MAX_DIM = 4096
BLOCK_D = 128  # columns of a bank tile at most
MAX_STRIDE = 2**24  # elements from row to row of a matrix: within a tile of up to 64 rows offsets are int32
MAX_ROWS = 2**31 - 2**25  # row numbers are int32 in the kernels, the end of the last split included

_PRECISION_TERMS = {"highest": 3, "high": 2, "medium": 1}
DTYPE_TERMS = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}
# All lanes of a finish kernel store the sum of a product, each its own. Merged into multiply-adds, a sum over lanes
# rounds another factor in each lane, and the bits would depend on which store comes last.
FINISH_OPTIONS = {"enable_fp_fusion": False}
_CELLS = 8192  # of a tile in a program of four warps that works per anchor: 64 registers a thread


@dataclass(frozen=True)
class Blocks:
    """Tile shape and launch options of a kernel that walks the bank; `per_sm` programs fit on one multiprocessor."""

    block_b: int
    block_n: int
    warps: int
    stages: int
    per_sm: int


def blocks(major: int, dim: int, batch: int, m_terms: int, counts: bool) -> Blocks:
    """Tiles for compute capability `major`, rows of `dim` in `m_terms` bf16 terms, `batch` anchors, counts or bits.

    The bounds are shared memory (all terms of anchors and a bank tile) and registers (two fp32 tiles [BLOCK_B,
    BLOCK_D], and before Hopper the anchors' terms). A tile has at most 64 rows, since NCE's factors, up to 2 each, are
    multiplied. On sm_100 products end in tensor memory, whose 512 columns 128 anchors in three terms exceed.
    tests/test_bank_triton.py compiles the whole table and refuses a spilled register (with Triton 3.7; 3.6 and 3.9
    spill some bytes of a few).
    """
    tall = padded(batch)
    if dim > BLOCK_D:
        return Blocks(16, 32, 8, 2, 1)
    hopper = major == 9
    per_sm = 1 if major == 10 and tall >= 64 else 2  # a program takes all of the tensor memory
    if counts and m_terms == 1:
        return Blocks(min(64, tall), 32, 4, 2, per_sm)
    if major in (9, 10):  # 227 KB of shared memory, products fed from it
        if m_terms > 1:
            if tall == 64 and hopper and not counts:  # one warpgroup: two would take half of the columns each
                return Blocks(64, 32, 4, 2, 2)
            return Blocks(min(128 if hopper and not counts else 64, tall), 32, 8, 2, 1)
        block_n = 64 if hopper else 32
        return Blocks(128, block_n, 8, 3, 1) if batch > 64 else Blocks(tall, block_n, 4, 3, per_sm)
    if m_terms > 1:  # 99 KB suffice here and below
        return Blocks(min(32, tall), 64, 8, 2, 1)
    return Blocks(min(64, tall), 64 if major < 9 else 32, 4, 2, 2)


def padded(size: int) -> int:
    """The power of two, 16 at least, that holds `size`."""
    return max(16, 1 << (size - 1).bit_length())


def by_rows(matrix: Tensor) -> Tensor:
    """`matrix` [N, D] or, where the kernels cannot address its columns or its rows, a contiguous copy."""
    return matrix if matrix.stride(1) == 1 and matrix.stride(0) <= MAX_STRIDE else matrix.contiguous()


def unavailable_reason(anchors: Tensor, banks: list[Tensor], part: Part | None = None) -> str | None:
    """The reason why the kernels do not support these tensors, or None."""
    for t in (anchors, *banks):
        if t.dtype not in DTYPE_TERMS:
            return f"the Triton kernels take float32, bfloat16 and float16, got {t.dtype}"
    if anchors.shape[-1] > MAX_DIM:
        return f"the Triton kernels take D up to {MAX_DIM}, got {anchors.shape[-1]}"
    num_data = (part or whole(banks)).num_data
    if num_data > MAX_ROWS:
        return f"the Triton kernels take banks of up to {MAX_ROWS} rows, got {num_data}"
    return None


class Call:
    """One call of an op: the checked tensors, and the data that all its launches share.

    Raises:
        NotImplementedError: a plan other than "dense", or tensors that `unavailable_reason` refuses.
    """

    def __init__(
        self,
        anchors: Tensor,
        banks: list[Tensor],
        index: Tensor,
        spec: DrawSpec,
        plan: str,
        backend: str,
        part: Part | None = None,
    ):
        wrong = f"Triton has the dense plan only, got plan={plan!r}" if plan != "dense" else None
        if reason := wrong or unavailable_reason(anchors, banks, part):
            raise NotImplementedError(reason)
        self.anchors, self.index, self.spec = anchors, index.long().contiguous(), spec
        self.banks = [by_rows(bank) for bank in banks]
        self.batch, self.dim = anchors.shape[1:]
        self.part, self.num_rows = part or whole(banks), banks[0].shape[0]
        self.limit = _PRECISION_TERMS[matmul_precision()]
        self.draw_backend = "auto" if backend == "triton" else backend  # Triton draws nothing itself
        if spec.whole_pool:
            self.member, self.charge = spec.source, "pool" if spec.k == ALL else "expected"
        else:
            self.member, self.charge = "mask" if _distinct(spec) else "counts", "drawn"
        by_class = self.member == "class"
        self.label = spec.table("label") if by_class else self.index
        self.class_start = spec.table("class_start") if by_class else self.index

    def terms(self, tensor: Tensor) -> int:
        """How many bf16 terms stand for a value of `tensor`."""
        return min(DTYPE_TERMS[tensor.dtype], self.limit)

    def empty(self, *tail: int) -> Tensor:
        """fp32 [S, B, *tail]."""
        return self.anchors.new_empty((*self.anchors.shape[:2], *tail), dtype=torch.float32)

    def pieces(self, by_column: bool) -> Iterator[Piece]:
        """The launches: anchors in chunks whose membership matrix stays below CHUNK_BYTES, banks in twos.

        With `by_column` a program of the pass owns BLOCK_D columns of a result [S, B, D], else none.
        """
        chunk = self.batch
        if not self.spec.whole_pool:
            row = (self.num_rows + 31) // 32 * 4 if self.member == "mask" else self.num_rows * 4
            chunk = max(1, CHUNK_BYTES // row)
            chunk -= chunk % 64 if chunk > 64 else 0
        for lo in range(0, self.batch, max(1, chunk)):
            anchors = slice(lo, min(lo + chunk, self.batch))
            member = self._membership(anchors)
            for directions in self._pairs():
                yield Piece(self, anchors, directions, member, -(-self.dim // BLOCK_D) if by_column else 1)

    def _membership(self, anchors: slice) -> Tensor:
        if self.spec.whole_pool:
            return self.index[:, None]  # not read
        spec = draws.anchor_slice(self.spec, anchors.start, anchors.stop)
        draw = draw_mask if self.member == "mask" else draw_counts
        held = (self.part.first, self.num_rows)
        return draw(self.index[anchors], self.part.num_data, spec, self.draw_backend, held)

    def _pairs(self) -> Iterator[slice]:
        """Directions that one launch can take: two banks of one dtype and stride."""
        lo = 0
        while lo < len(self.banks):
            two = self.banks[lo : lo + 2]
            one_layout = len({(bank.dtype, bank.stride(0)) for bank in two}) == 1
            yield slice(lo, lo + (len(two) if one_layout else 1))
            lo += len(two) if one_layout else 1


class Piece:
    """The launches for a chunk of anchors and one or two banks: `terms`, then `walk`, then `finish`."""

    def __init__(self, call: Call, anchors: slice, directions: slice, member: Tensor, columns: int):
        self.anchors, self.directions = anchors, directions
        self.x = call.anchors[directions, anchors].contiguous()  # [S, B, D]
        banks = call.banks[directions]
        count, batch, dim = self.x.shape
        m_terms = call.terms(banks[0])
        self._x_terms = call.terms(self.x)
        self._blocks = blocks(capability(self.x.device), dim, batch, m_terms, call.member == "counts")
        tall = -(-batch // self._blocks.block_b) * columns
        tiles = -(-call.num_rows // self._blocks.block_n)
        wanted = self._blocks.per_sm * processors(self.x.device) // (tall * count)
        split_rows = -(-tiles // max(1, min(wanted, tiles))) * self._blocks.block_n
        self._splits = -(-call.num_rows // split_rows)
        self._walk_grid = (tall, self._splits, count)
        # Every kernel takes the values that its arguments name from here.
        self._args = {
            "x_ptr": self.x,
            "bank0_ptr": banks[0],
            "bank1_ptr": banks[-1],
            "bank_stride": banks[0].stride(0),
            "STRIDE_UNIT": math.gcd(banks[0].stride(0), 16),
            "index_ptr": call.index[anchors],
            "label_ptr": call.label,
            "class_start_ptr": call.class_start,
            "member_ptr": member,
            "member_stride": member.stride(0),
            "batch": batch,
            "num_data": call.part.num_data,
            "first_row": call.part.first,
            "num_rows": call.num_rows,
            "k": call.spec.k,
            "split_rows": split_rows,
            "splits": self._splits,
            "D": dim,
            "DP": padded(dim),
            "BLOCK_D": min(BLOCK_D, padded(dim)),
            "BLOCK_B": self._blocks.block_b,
            "BLOCK_N": self._blocks.block_n,
            "BLOCK": min(padded(self._splits), max(1, _CELLS // padded(dim))),
            "MEMBER": call.member,
            "CHARGE": call.charge,
            "X_TERMS": self._x_terms,
            "M_TERMS": m_terms,
            "LIMIT": call.limit,
            "INTERPRET": triton_module.interpreted(),
            "status_ptr": status.word(self.x.device),
            "INDEX_BIT": int(Code.INDEX),
            "ANCHOR_BIT": int(Code.ANCHOR),
        }

    def scratch(self, *tail: int) -> Tensor:
        """fp32 [splits, S, B, *tail]."""
        return self.x.new_empty((self._splits, *self.x.shape[:2], *tail), dtype=torch.float32)

    def output(self, name: str, tensor: Tensor) -> dict:
        """The kernel arguments for this piece's view of an output [S, B, ...] (any tensor where it is not written)."""
        view = tensor[self.directions, self.anchors] if tensor.numel() else tensor
        return {f"{name}_ptr": view, f"{name}_stride": tensor.stride(0)}

    def terms(self) -> Tensor:
        """The bf16 terms of the anchors: bf16 [X_TERMS, S, B, D]; anchors in bf16 are their own."""
        return bf16_terms(self.x, self._x_terms)

    def walk(self, kernel, **args) -> None:
        """The pass over the bank."""
        options = {"num_warps": self._blocks.warps, "num_stages": self._blocks.stages}
        self._launch(kernel, self._walk_grid, args, **options)

    def finish(self, kernel, **args) -> None:
        """One program per anchor and direction checks the anchor and adds the splits' results in order."""
        self._launch(kernel, (self.x.shape[1], self.x.shape[0]), args, **FINISH_OPTIONS)
        status.check_if_enabled(self.x.device)

    def _launch(self, kernel, grid, args: dict, **options) -> None:
        launch(kernel, grid, self._args | args, self.x.device, **options)


def launch(kernel, grid: tuple[int, ...], args: dict, device: torch.device, **options) -> None:
    """Launch on `device` with those of `args` that the kernel's arguments name."""
    # Triton launches on the current device; make it the tensors'.
    on = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with on:
        kernel[grid](**{name: args[name] for name in kernel.arg_names}, **options)


def bf16_terms(x: Tensor, count: int) -> Tensor:
    """`count` bf16 terms of each number: bf16 [count, *x.shape]; a bf16 tensor is its own. `x` is contiguous."""
    if x.dtype == torch.bfloat16:
        return x
    from .triton_anchor import terms_kernel

    terms = x.new_empty((count, *x.shape), dtype=torch.bfloat16)
    args = {"x_ptr": x, "terms_ptr": terms, "plane": x.numel(), "BLOCK": _CELLS}
    args |= {"X_TERMS": count, "INTERPRET": triton_module.interpreted()}
    launch(terms_kernel, (-(-x.numel() // _CELLS),), args, x.device)
    return terms


def _distinct(spec: DrawSpec) -> bool:
    """Whether an anchor's draws are distinct rows, so that one bit per row suffices."""
    return spec.source != "given" and spec.replacement == "no"


@functools.cache
def processors(device: torch.device) -> int:
    """How many multiprocessors a launch should fill (four stand for them in the interpreter)."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


@functools.cache
def capability(device: torch.device) -> int:
    """Major compute capability (8 in the interpreter)."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 8
