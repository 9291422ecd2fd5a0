"""This process' rank in torch.distributed, and the few collectives that the library uses.

Rows are sent as bytes, by `gather_rows` and `scatter_sums`, so that every backend sends every dtype and `bytes_sent`
counts all. Sums are taken in rank order, so they do not depend on which rank arrives first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch._compile import _disable_dynamo as not_compiled  # torch.compiler.disable, which imports dynamo at once

REFUSED = -1  # the size that a rank sends in place of its own before it raises an error
_sent = 0


class Ranks(NamedTuple):
    """The rank of this process and the number of processes: (0, 1) without a process group."""

    rank: int
    world: int


def ranks() -> Ranks:
    """The rank and size of the default process group."""
    if not dist.is_available() or not dist.is_initialized():
        return Ranks(0, 1)
    return Ranks(dist.get_rank(), dist.get_world_size())


def bytes_sent() -> int:
    """Payload bytes that this process has sent so far: an all-gather passes them on world - 1 times, as a ring does."""
    return _sent


class RefusedElsewhereError(ValueError):
    """Another rank has refused its arguments and raises an error that gives the reason."""


@not_compiled
def sizes_of(count: int, device: torch.device) -> list[int]:
    """`count` of every rank, in rank order. The device is not synchronised if the group has a CPU backend."""
    world = ranks().world
    if world == 1:
        return [count]
    own = torch.tensor([count], device="cpu" if _has_cpu_backend() else device)
    gathered = [torch.empty_like(own) for _ in range(world)]
    dist.all_gather(gathered, own)
    _count(own.nbytes * (world - 1))
    sizes = [int(n) for n in gathered]
    if count != REFUSED and REFUSED in sizes:
        refusing = sizes.index(REFUSED)
        raise RefusedElsewhereError(f"rank {refusing} has refused the arguments of this call; its own error says why")
    return sizes


def refuse(device: torch.device) -> None:
    """Call it before raising an error about this rank's arguments, where the other ranks call `sizes_of`.

    Their call raises, too, so that none waits for this rank.
    """
    sizes_of(REFUSED, device)


@not_compiled
def gather_rows(tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """Each of `tensors` [n, ...] of every rank, joined in rank order: [sum(sizes), ...]. One message per rank.

    Ranks with fewer rows send padding, so that sizes may differ on every backend.

    Args:
        tensors: of any dtypes, with n = sizes[rank] rows each.
        sizes: rows of every rank.
    """
    world = ranks().world
    if world == 1:
        return [t.detach() for t in tensors]
    rows, largest = len(tensors[0]), max(sizes)
    parts = [_bytes(t) for t in tensors]
    widths = [p.shape[1] for p in parts]
    own = parts[0].new_zeros(largest, sum(widths))
    own[:rows] = torch.cat(parts, 1)
    gathered = own.new_empty(world, *own.shape)
    dist.all_gather(list(gathered.unbind()), own)
    _count(own.nbytes * (world - 1))
    joined = torch.cat([gathered[r, :n] for r, n in enumerate(sizes)])
    columns = joined.split(widths, 1)
    total = sum(sizes)
    return [c.contiguous().view(t.dtype).view(total, *t.shape[1:]) for c, t in zip(columns, tensors, strict=True)]


@not_compiled
def scatter_sums(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """The sum over ranks, in rank order, of this rank's rows of `values` [sum(sizes), ...]: [sizes[rank], ...].

    A reduce-scatter with uneven parts and a fixed order of additions.
    """
    rank, world = ranks()
    if world == 1:
        return values
    own = sizes[rank]
    flat = _bytes(values)  # [sum(sizes), bytes per row]
    parts = flat.new_empty(world * own, flat.shape[1])
    dist.all_to_all_single(parts, flat, [own] * world, list(sizes))
    _count((values.shape[0] - own) * flat.shape[1])
    parts = parts.view(values.dtype).view(world, own, *values.shape[1:])
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


def own_slice(sizes: Sequence[int]) -> slice:
    """The positions of this rank's rows among those of all ranks, in rank order."""
    starts, rank = list(accumulate(sizes, initial=0)), ranks().rank
    return slice(starts[rank], starts[rank + 1])


def same_on_all(value: int, device: torch.device | str = "cpu") -> int:
    """Rank 0's `value` (a signed 64-bit integer), on every rank."""
    if ranks().world == 1:
        return value
    if not _has_cpu_backend():
        device = torch.device("cuda", torch.cuda.current_device())
    message = torch.tensor([value], dtype=torch.int64, device=device)
    dist.broadcast(message, 0)
    _count(message.nbytes)
    return int(message)


def part_rows(total: int, part: Ranks) -> range:
    """The rows of `total` that rank `part` holds: parts of ceil(total / world), the last ones shorter or empty."""
    each = -(-total // part.world)
    first = min(part.rank * each, total)
    return range(first, min(first + each, total))


def _bytes(tensor: Tensor) -> Tensor:
    """[n, ...] -> uint8 [n, bytes per row]."""
    # A single row counts as contiguous whatever its stride, but is viewed as bytes only with that of a copy.
    tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
    width = math.prod(tensor.shape[1:])
    return tensor.view(tensor.shape[0], width).view(torch.uint8)


def _has_cpu_backend() -> bool:
    return "cpu" in dist.get_backend_config() or dist.get_backend() == "gloo"


def _count(size: int) -> None:
    global _sent
    _sent += size
