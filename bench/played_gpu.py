"""A GPU that is played: tensors on the CPU that say they are on "cuda", and every kernel that a call launches, by name.

PyTorch's operators run on the CPU and are counted by a dispatch mode, one for each that is no view; some take several
kernels, so the true number is a little higher. Ours are taken from the records that the native launchers are given and
from the Triton launcher, and do not run: this is for counts, not for results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from wcord_fast.nn import native_step, wcord
from wcord_fast.ops import dispatch, library, native_module, status, without_nan
from wcord_fast.ops.bank import triton_launch

GPU = torch.device("cuda", 0)
PROCESSORS, SHARED_BYTES, CAPABILITY = 132, 227 << 10, 9  # an H100's
_NO_KERNEL = (
    "empty",
    "new_empty",
    "empty_like",
    "empty_strided",
    "new_empty_strided",
    "_unsafe_view",
    "lift_fresh",
    "promote_types",
)


class Played(Tensor):
    """A tensor in the CPU's memory whose device is a GPU."""

    device = property(lambda self: GPU)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl


class Play(TorchFunctionMode):
    """Tensors made on, or moved to, "cuda" are `Played`, and so are tensors made from them."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "namespace", None) == library.NAMESPACE:  # the op itself, not by torch's dispatcher
            with self:
                return library.implementations[func._schema.name.partition("::")[2]](*args, **kwargs)
        leaves = tree_leaves((args, kwargs))
        target = next((d for d in map(_device, leaves) if d is not None), None)
        if target is not None:
            args, kwargs = tree_map(lambda x: x if _device(x) is None else torch.device("cpu"), (args, kwargs))
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if target == "cpu" or name == "cpu":
            return tree_map(lambda x: x.as_subclass(Tensor) if isinstance(x, Played) else x, result)
        on_gpu = target == "cuda" or any(isinstance(x, Played) for x in leaves)
        return tree_map(_played, result) if on_gpu and name not in ("__get__", "__set__") else result


def _played(value: Any) -> Any:
    return value.as_subclass(Played) if isinstance(value, Tensor) and not isinstance(value, Played) else value


def _device(value: Any) -> str | None:
    """The kind of device that an argument names, or None."""
    if isinstance(value, torch.device):
        return value.type
    return value.partition(":")[0] if isinstance(value, str) and value.partition(":")[0] in ("cpu", "cuda") else None


class Launches(TorchDispatchMode):
    """The number of launches of each kernel: `own` and PyTorch's."""

    def __init__(self) -> None:
        super().__init__()
        self.own: Counter[str] = Counter()
        self.pytorch: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.partition("::")[2]
        if func.namespace == "aten" and not func.is_view and name not in _NO_KERNEL:
            self.pytorch[name] += 1
        return func(*args, **(kwargs or {}))


class PlayedModule:
    """The native module, but its `cuda_*` functions note the kernels that they would launch."""

    def __init__(self, own: Counter[str]):
        self._own, self._native = own, native_module.module()

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda_"):
            return getattr(self._native, name)
        kernels = getattr(self, f"_{name}_kernels")

        def call(record) -> int:
            self._own.update(kernels(record))
            return 0

        return call

    def cuda_ot_plan(self, record) -> int:
        """Resident while the matrix fits in one block, else a cooperative grid."""
        resident = 4 * record.n * record.m <= SHARED_BYTES
        record.regime = self._native.OT_REGIMES["resident" if resident else "cooperative"]
        record.blocks, record.rows = PROCESSORS, record.n if resident else -(-record.n // PROCESSORS)
        record.sms, record.shared_bytes = PROCESSORS, SHARED_BYTES
        return 0

    @staticmethod
    def cuda_ot_memory(record) -> None:
        record.scratch_bytes = record.zeroed_bytes = 8

    def _cuda_bank_score_kernels(self, record) -> list[str]:
        names = ["gather_rows_kernel", "gather_finish_kernel"]
        return [*names, "log_z_kernel"] if record.op == self._native.BANK_OPS["log_z"] and record.value else names

    @staticmethod
    def _cuda_membership_kernels(_record) -> list[str]:
        return ["zero_kernel", "membership_kernel"]  # one split, as for many anchors, needs no zeros

    @staticmethod
    def _cuda_draw_kernels(_record) -> list[str]:
        return ["draw_kernel"]

    @staticmethod
    def _cuda_bank_update_kernels(_record) -> list[str]:
        return ["bank_update_kernel"]

    @staticmethod
    def _cuda_bank_init_kernels(_record) -> list[str]:
        return ["bank_init_kernel"]

    @staticmethod
    def _cuda_step_embed_kernels(_record) -> list[str]:
        return ["step_embed_kernel"]

    @staticmethod
    def _cuda_step_finish_kernels(_record) -> list[str]:
        return ["step_finish_kernel"]

    @staticmethod
    def _cuda_spectral_iterate_kernels(_record) -> list[str]:
        return ["spectral_iterate_kernel"]

    @staticmethod
    def _cuda_spectral_gradient_kernels(_record) -> list[str]:
        return ["spectral_gradient_kernel"]

    @staticmethod
    def _cuda_ot_solve_kernels(_record) -> list[str]:
        return ["sinkhorn_kernel"]

    @staticmethod
    def _cuda_ot_matrix_gradient_kernels(_record) -> list[str]:
        return ["plan_kernel"]


@contextmanager
def played() -> Iterator[Launches]:
    """Inside, tensors on "cuda" can be made, and every backend for them can run. Yields the launches."""
    launches = Launches()
    module = PlayedModule(launches.own)
    cannot_run, unavailable_reason = dispatch.cannot_run, native_module.unavailable_reason

    def launched(kernel, _grid, _args, _device, **_options) -> None:
        launches.own[kernel.fn.__name__] += 1

    patches = [
        mock.patch.object(native_module, "module", lambda: module),
        mock.patch.object(native_module, "stream_of", lambda tensor: (0, 0)),
        mock.patch.object(status, "_words", {}),
        mock.patch.object(
            dispatch, "cannot_run", lambda backend, on: None if on == "cuda" else cannot_run(backend, on)
        ),
        mock.patch.object(
            native_module, "unavailable_reason", lambda on: None if on == "cuda" else unavailable_reason(on)
        ),
        # The modes that play the device are not those that an eager step makes way for.
        mock.patch.object(native_step, "eager", lambda: True),
        mock.patch.object(wcord, "eager", lambda: True),
        mock.patch.object(native_step, "PLAIN", (*native_step.PLAIN, Played)),
        mock.patch.object(without_nan, "can_test", lambda tensor: tensor.is_cuda),
        mock.patch.object(without_nan, "result_later", lambda flag: partial(bool, bool(flag))),
        mock.patch.object(triton_launch, "launch", launched),
        mock.patch.object(triton_launch, "processors", lambda device: PROCESSORS),
        mock.patch.object(triton_launch, "capability", lambda device: CAPABILITY),
    ]
    with ExitStack() as stack:
        for context in (*patches, launches, Play()):
            stack.enter_context(context)
        yield launches
