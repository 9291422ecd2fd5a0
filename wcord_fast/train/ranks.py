"""The driver on several processes of torchrun: rank 0 writes, values are shared, and all end together.

Rank 0 alone writes files and prints; the others compute. The first process that fails reports the error, and torchrun
ends the others.
"""

from __future__ import annotations

import datetime
import inspect
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from ..distributed.ranks import RefusedElsewhereError, ranks
from ..models.taps import Tapped
from .meters import Meters

T = TypeVar("T")

# Rank 0 may pre-train or test for long while the others wait. The loss of a process is noticed without this timeout.
TIMEOUT = datetime.timedelta(days=1)
LOST = (
    "another process of this job ended without a word (killed, or its machine was lost), so all end; "
    "the same command (without --restart) goes on after the last finished epoch"
)


@contextmanager
def process_group() -> Iterator[None]:
    """A context with torch.distributed initialised, if torchrun started this process as one of several.

    Every rank but 0 prints errors only. With CUDA a process takes the device of its LOCAL_RANK.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ or dist.is_initialized():
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    store, rank, world = next(dist.rendezvous("env://", timeout=TIMEOUT))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(
        f"attempt {attempt}", store
    )  # after a restart it still holds the addresses of ended processes
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT)
    if not is_main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (until the process ends)
        warnings.simplefilter("ignore")  # rank 0 shows them
    yield  # on an error the process ends with its connections, which the others notice
    dist.barrier()
    dist.destroy_process_group()


def is_main() -> bool:
    """Whether this process writes files and prints."""
    return ranks().rank == 0


def is_first_to_report(error: BaseException | str = "") -> bool:
    """True in the first process of the job that calls it, which reports the error, and in a job of one process.

    A process whose `error` points to another rank's waits for that rank, two seconds at most.
    """
    rank, world = ranks()
    if world == 1:
        return True
    key = "wcord_fast/failed"
    try:
        store = dist.distributed_c10d._get_default_store()
        deadline = time.monotonic() + 2
        while isinstance(error, RefusedElsewhereError) and store.add(key, 0) == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        first = store.add(key, 1) == 1
        if (
            rank == 0 and "TORCHELASTIC_RUN_ID" not in os.environ
        ):  # it serves the store, which the others may still need
            deadline = time.monotonic() + 2
            while store.add(key, 0) < world and time.monotonic() < deadline:
                time.sleep(0.02)
    except RuntimeError:  # the store is gone, and with it the process that served it
        return True
    return first


def report_to_launcher(message: str) -> None:
    """Write `message` to torchrun's error file; torchrun repeats it at the end of its own report."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        with suppress(OSError):
            text = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
            Path(file).write_text(json.dumps({"message": text}))


def peer_lost(error: BaseException) -> bool:
    """Whether `error` reports that a collective has lost a process."""
    message = str(error)
    by_gloo = type(error) is RuntimeError and ("gloo" in message or "Connection" in message)
    return ranks().world > 1 and (by_gloo or isinstance(error, dist.DistError))


def from_main(make: Callable[[], T]) -> T:
    """The result of `make` on rank 0, sent to every rank (tensors on the CPU)."""
    if ranks().world == 1:
        return make()
    message: list[Any] = [make() if is_main() else None]
    dist.broadcast_object_list(message, 0, device=_host())
    return message[0]


def require_equal(message: str, make: Callable[[], object]) -> None:
    """ValueError with `message` on every rank if `make` returns different values. One process alone skips the call."""
    if ranks().world > 1:
        values: list[Any] = [None] * ranks().world
        dist.all_gather_object(values, make())
        if len(set(values)) > 1:
            raise ValueError(f"{message} (fingerprints {', '.join(map(str, values))})")


def require_alike(owner: str, facts: Mapping[str, object]) -> None:
    """ValueError on every rank unless `facts` are equal on all; it names the first difference. Collective."""
    if ranks().world == 1:
        return
    every: list[Any] = [None] * ranks().world
    dist.all_gather_object(every, {name: _comparable(value) for name, value in facts.items()})
    for rank, own in enumerate(every):
        for name in {**every[0], **own}:
            if own.get(name) != every[0].get(name):
                raise ValueError(
                    f"{owner}: expected equal arguments on all ranks, but rank {rank} has {name} {own.get(name)} "
                    f"where rank 0 has {every[0].get(name)}"
                )


def _comparable(value: object) -> str:
    """`repr` of a plain value; of an object, whose `repr` may hold its address, the type alone."""
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_comparable, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {_comparable(item)}' for key, item in value.items())}}}"
    return repr(value) if isinstance(value, (bool, int, float, str, type(None))) else type(value).__qualname__


def require_used(network: nn.Module) -> None:
    """ValueError if parameters under DDP got no gradient in a step: it would wait for them in the next one."""
    if isinstance(network, DistributedDataParallel):
        own = network.module.network if isinstance(network.module, Tapped) else network.module
        unused = [name for name, p in own.named_parameters() if p.requires_grad and p.grad is None]
        if unused:
            more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
            raise ValueError(
                f"network: no gradient arrived at {', '.join(unused[:3])}{more}; on several processes every parameter "
                "has to take part in each step: switch those off by requires_grad_(False)"
            )


def to_main(value: T) -> list[T]:
    """`value` of every rank, in rank order, on rank 0; an empty list on other ranks."""
    rank, world = ranks()
    if world == 1:
        return [value]
    values: list[Any] = [None] * world if rank == 0 else []
    dist.gather_object(value, values or None, dst=0)
    return values


def wrap(network: nn.Module) -> nn.Module:
    """`network` under DDP if there are several processes: gradients are averaged during the backward pass."""
    if ranks().world == 1 or not any(p.requires_grad for p in network.parameters()):
        return network
    known = inspect.signature(DistributedDataParallel).parameters  # newer versions rename the option
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {name: False}  # see average_statistics
    return DistributedDataParallel(network, **options)


def sync_if(last: bool, network: nn.Module):
    """A context for forward and backward of a micro-batch: only the last of a group exchanges gradients."""
    return nullcontext() if last or not isinstance(network, DistributedDataParallel) else network.no_sync()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their means over ranks, in one message. All ranks have gradients of the same parameters."""
    if ranks().world == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    if grads:
        _average(grads)


@torch.no_grad()
def average_statistics(*networks: nn.Module) -> None:
    """Replace the running statistics of batch normalisation by their means over ranks."""
    norms = [m for network in networks for m in network.modules() if isinstance(m, _NormBase)]
    result = [b for norm in norms for b in norm.buffers(recurse=False) if b.is_floating_point()]
    if ranks().world > 1 and result:
        _average(result)


@torch.no_grad()
def copy_from_main(*modules: nn.Module) -> None:
    """Copy rank 0's parameters and buffers to every rank, except the rows of sharded banks."""
    if ranks().world == 1:
        return
    shards = {m.rows for module in modules for m in module.modules() if getattr(m, "shard", None)}
    for module in modules:
        for value in [*module.parameters(), *module.buffers()]:
            if not any(value is rows for rows in shards):
                dist.broadcast(value, 0)


def join_meters(meters: Meters) -> None:
    """Add up the sums of all ranks, on every rank, so that `means` covers the whole batches."""
    if ranks().world == 1:
        return
    sums, weights, first_bad, count = meters.partials()
    for values in (sums, weights):
        dist.all_reduce(values)
    dist.all_reduce(first_bad, dist.ReduceOp.MIN)
    total = torch.tensor([count], device=sums.device)
    dist.all_reduce(total)
    meters.count = int(total)


def _average(tensors: list[Tensor]) -> None:
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        group = [t for t in tensors if t.dtype == dtype]
        flat = torch.cat([t.reshape(-1) for t in group])
        dist.all_reduce(flat)
        flat /= ranks().world
        for tensor, value in zip(group, flat.split([t.numel() for t in group]), strict=True):
            tensor.copy_(value.view_as(tensor))


def _host() -> torch.device:
    return torch.device("cpu")
