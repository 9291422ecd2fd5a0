"""Random calls of the bank functions, and ways to spoil one argument of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from wcord_fast import NegativeSampler

FUNCTIONS = ("bank_nce", "bank_mean_score", "bank_log_z", "bank_infonce", "bank_sigmoid", "bank_update_")
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INDICES = (torch.int64, torch.int32)
LAYOUTS = ("contiguous", "transposed", "columns", "rows", "unaligned", "expanded")
DIMS = (1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 65, 127, 128, 129, 200, 2048)


@dataclass(repr=False)
class Call:
    """One call: anchors [B, D] against a bank [N, D]."""

    anchor: Tensor
    bank: Tensor
    index: Tensor
    negatives: NegativeSampler | Tensor
    log_z: Tensor
    tau: float
    anchor_offset: int
    plan: str
    backend: str

    def __repr__(self) -> str:
        def text(t: Tensor) -> str:
            return f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}, strides {t.stride()}"

        negatives = text(self.negatives) if isinstance(self.negatives, Tensor) else repr(self.negatives)
        return (
            f"anchor {text(self.anchor)}; bank {text(self.bank)}; index {text(self.index)}; negatives {negatives}; "
            f"log_z {float(self.log_z)}; tau {self.tau}; anchor_offset {self.anchor_offset}; plan {self.plan}"
        )

    @property
    def num_data(self) -> int:
        return self.bank.shape[0]

    def tensors(self) -> list[Tensor]:
        own = [self.negatives] if isinstance(self.negatives, Tensor) else list(self.negatives.buffers())
        return [self.anchor, self.bank, self.index, self.log_z, *own]

    def options(self) -> dict:
        chosen = {"anchor_offset": self.anchor_offset, "plan": self.plan, "backend": self.backend}
        return chosen | {"negatives": self.negatives}

    def in_float64(self) -> Call:
        """This call with inputs in float64, by the reference backend and the gather plan."""
        wide = {name: getattr(self, name).double() for name in ("anchor", "bank", "log_z")}
        return replace(self, **wide, plan="gather", backend="reference")


def with_gradient(function, call: Call, **options) -> tuple[Tensor, Tensor]:
    """Results [B], and the gradient of their sum in the anchors."""
    anchor = call.anchor.detach().requires_grad_()
    out = function(anchor, call.bank, call.index, **call.options(), **options)
    (grad,) = torch.autograd.grad(out.sum(), anchor)  # of an expanded grad_output
    return out.detach(), grad


def laid_out(t: Tensor, layout: str) -> Tensor:
    """The values of `t` [n, d] in another memory layout ("expanded": its first row n times)."""
    if layout == "transposed":
        return t.t().contiguous().t()
    if layout == "columns":
        return torch.stack((t, torch.full_like(t, math.nan)), 2).flatten(1)[:, ::2]
    if layout == "rows":
        return torch.stack((t, torch.full_like(t, math.nan)), 1).flatten(0, 1)[::2]
    if layout == "unaligned":
        return torch.cat((t.new_zeros(1), t.flatten()))[1:].view(t.shape)
    return t[:1].expand(t.shape) if layout == "expanded" else t


@st.composite
def samplers(draw, num_data: int, batch: int) -> NegativeSampler | Tensor:
    kind = draw(st.sampled_from(("none", "self", "class", "weighted", "given")))
    k = draw(st.sampled_from((1, 2, num_data, 3 * num_data, 600)) | st.integers(1, 100))
    g = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    if kind == "given":
        rows = torch.randint(0, num_data, (batch, k + 1), generator=g).to(draw(st.sampled_from(INDICES)))
        return draw(st.sampled_from((rows[:, 1:], rows[:1, 1:].expand(batch, -1), rows[:, 1:].t().contiguous().t())))
    seed, step = draw(st.integers(0, 2**64 - 1)), draw(st.integers(0, 2**40))
    if kind == "weighted":
        weights = torch.rand(num_data, generator=g) * (torch.arange(num_data) % 3 != 1)
        sampler = NegativeSampler(num_data, k, weights=weights, seed=seed)
    else:
        kind = "none" if num_data == 1 else kind
        options = draw(st.sampled_from(({}, {"replacement": True}, {"expected": True}, {"k": "all"})))
        labels = torch.arange(num_data) ** 2 % draw(st.integers(3, 9)) if num_data > 1 else None
        if labels is not None:
            labels -= draw(st.integers(0, 2))  # below 0: unknown
        sampler = NegativeSampler(num_data, **({"k": k, "labels": labels, "exclude": kind, "seed": seed} | options))
    sampler.step = step
    return sampler


@st.composite
def calls(draw) -> Call:
    num_data = draw(st.sampled_from((1, 2, 95, 96, 97, 700)) | st.integers(1, 300))
    batch, dim = draw(st.sampled_from((1, 2, 33, 65)) | st.integers(1, 9)), draw(st.sampled_from(DIMS))
    dim = min(dim, 200) if num_data > 100 or batch > 9 else dim
    g = torch.Generator().manual_seed(draw(st.integers(0, 1000)))

    def rows(n: int, scale: float) -> Tensor:
        unit = torch.nn.functional.normalize(torch.randn(n, dim, generator=g, dtype=torch.float64), dim=1) * scale
        return laid_out(unit.to(draw(st.sampled_from(FLOATS))), draw(st.sampled_from(LAYOUTS)))

    anchor, bank = rows(batch, draw(st.sampled_from((1.0, 0.0, 1e-4, 30.0)))), rows(num_data, 1.0)
    index = torch.randint(0, num_data, (batch,), generator=g).to(draw(st.sampled_from(INDICES)))
    return Call(
        anchor,
        bank,
        draw(st.sampled_from((index, index[:1].expand(batch), index.repeat_interleave(2)[::2]))),
        draw(samplers(num_data, batch)),
        torch.tensor(draw(st.sampled_from((-3.0, 0.0, 4.5, 12.0)))),
        draw(st.sampled_from((0.07, 0.004, 1.0, 1e4))),
        draw(st.sampled_from((0, 5, 2**32 - 1))),
        draw(st.sampled_from(("gather", "dense", "auto"))),
        "native",
    )


def arguments(function: str, call: Call) -> dict:
    """The keyword arguments of `functional.<function>` for this call."""
    common = {"bank": call.bank, "index": call.index}
    if function == "bank_update_":
        return common | {"bank": call.bank.contiguous(), "rows": call.anchor, "momentum": 0.5}
    common |= {"anchor": call.anchor} | call.options()
    if function not in ("bank_mean_score", "bank_sigmoid"):
        common["temperature"] = call.tau
    own = {
        "bank_nce": {"log_z": call.log_z},
        "bank_infonce": {"positive": call.anchor},
        "bank_sigmoid": {"positive": call.anchor, "scale": 8.0, "bias": torch.tensor(-3.0)},
    }
    return common | own.get(function, {})


def corrupted(name: str, call: Call) -> st.SearchStrategy:
    """Values that argument `name` must refuse."""
    number, dim, batch = call.num_data, call.bank.shape[1], call.index.shape[0]
    common = [None, "five", object()]
    index, rows = call.index.clone(), call.anchor.clone()
    if name == "positive":
        common = common[1:]  # None: the bank's rows
    if name in ("anchor", "rows", "bank", "positive"):
        bad = [rows.long(), rows.bool(), rows.to_sparse(), rows[0], rows[None], rows[:0], rows[:, :0], rows.numpy]
        if name != "bank":
            bad += [rows.to("meta"), torch.zeros(batch, dim + 1), [[1.0] * dim] * batch]
            bad += [torch.zeros(batch + 1, dim)] if name in ("rows", "positive") else []
            bad += [_with(rows, at, value) for at in ((0, 0), (-1, -1)) for value in (math.nan, math.inf, -math.inf)]
        else:
            bad += [call.bank.to("meta").contiguous(), call.bank.contiguous().view(torch.int8), 3]
    elif name == "index":
        bad = [index.float(), index.to(torch.uint8), index[:0], index[None], index.to("meta"), index.tolist(), 0]
        bad += [index + number, index - number]
        bad += [_with(index, -1, value) for value in (-1, number, torch.iinfo(index.dtype).min)]
    elif name == "negatives":
        rows = torch.zeros(batch, 3, dtype=torch.int64)
        bad = [rows.float(), rows[0], rows[:, :0], torch.cat((rows, rows)), rows.to("meta"), rows.tolist(), 5]
        bad += [rows - 1, _with(rows, (-1, -1), number), _with(rows, (0, 1), 2**62), NegativeSampler(number + 1, 1)]
    elif name == "log_z":
        bad = [
            torch.zeros(1),
            torch.zeros((), dtype=torch.int64),
            torch.zeros((), device="meta"),
            True,
            -math.inf,
            math.inf,
        ]
    elif name in ("scale", "bias"):
        bad = [torch.zeros(1), torch.zeros((), dtype=torch.int64), torch.zeros((), device="meta"), True]
        bad += [math.inf, math.nan, torch.tensor(math.nan), torch.tensor(-math.inf)]
    elif name == "temperature":
        bad = [0, -0.07, math.nan, math.inf, 1e-320, True, torch.tensor(0.07)]
    elif name == "anchor_offset":
        bad = [-1, 2**32, 1.5, True]
    elif name == "momentum":
        common, bad = common[1:], [-0.1, 1.1, math.nan, True, torch.tensor(0.5)]
    else:
        bad = ["Gather", "cuda", "", 3, "triton" if name == "plan" else "dense"]
    return st.sampled_from(common + bad)


def _with(t: Tensor, at, value) -> Tensor:
    """A copy of `t` with one other value."""
    t = t.clone()
    t[at] = value
    return t
