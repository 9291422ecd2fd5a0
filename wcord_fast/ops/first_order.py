"""Only first derivatives exist, by `backward()` and `torch.autograd.grad`. Others are refused by name.

A kernel returns the value and its gradient, and has no rule for the transforms of `torch.func` or for tangents. torch
would drop their part in silence, or raise an error about its own classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

P = ParamSpec("P")
R = TypeVar("R")

INSTEAD = "take first derivatives by backward() or torch.autograd.grad, outside of any transform"


def transforms_active() -> bool:
    """Whether this runs within a transform of `torch.func` (`functional_call` is none)."""
    return torch._C._are_functorch_transforms_active()  # autograd.Function.apply tests this; there is no public name


def first_order(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, or the method `forward` of a module, that refuses other derivatives before it does anything."""
    name = function.__qualname__.removesuffix(".forward")

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if transforms_active():
            raise NotImplementedError(
                f"{name}: the transforms of torch.func (grad, vjp, jvp, jacrev, jacfwd, hessian, vmap) are not "
                f"supported; {INSTEAD}"
            )
        if forward_ad._current_level >= 0 and _any_tangent(*args, *kwargs.values()):
            raise NotImplementedError(f"{name}: forward-mode differentiation is not supported; {INSTEAD}")
        return function(*args, **kwargs)

    return checked


def _any_tangent(*args: Any) -> bool:
    tensors = [a for a in args if isinstance(a, Tensor)]
    tensors += [p for a in args if isinstance(a, nn.Module) for p in a.parameters()]
    return any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)
