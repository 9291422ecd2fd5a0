"""Random steps of the loss modules: native backends against the reference's, bad input against its message.

`python -m pytest tests/test_fuzz_modules.py --hypothesis-profile=long` draws many more (see conftest.py).
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.bank_fuzz import LAYOUTS, laid_out
from wcord_fast import CRDLoss, KDLoss, OTLoss, WCoRDLoss, use_backend
from wcord_fast.ops import native_module

pytestmark = [
    pytest.mark.skipif(native_module.load() is None, reason="no native module"),
    pytest.mark.filterwarnings("ignore:k = "),  # a small pool is drawn from with replacement, which is told
]
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WIDTHS = (1, 3, 8, 17, 64)


@st.composite
def losses(draw) -> nn.Module:
    """A CRD or WCoRD loss on the reference backend."""
    s_dim, t_dim, num_data = draw(st.sampled_from(WIDTHS)), draw(st.sampled_from(WIDTHS)), draw(st.integers(4, 200))
    count = draw(st.sampled_from((1, 7, 65, 600, "all")))
    options = {
        "feat_dim": draw(st.sampled_from(WIDTHS)),
        "labels": torch.arange(num_data) % 3 - draw(st.integers(0, 1)) if draw(st.booleans()) else None,
        "bank_dtype": draw(st.sampled_from(FLOATS[:3])),
        "z": draw(st.sampled_from(("first", "ema"))),
        "plan": draw(st.sampled_from(("auto", "gather", "dense"))),
        "backend": "reference",
        "seed": draw(st.integers(0, 2**31)),
    }
    torch.manual_seed(draw(st.integers(0, 100)))
    if draw(st.booleans()):
        return CRDLoss(s_dim, t_dim, num_data, nce_k=count, **options)
    options["critic"] = draw(st.sampled_from(("nce_sn", "nce", "dual")))
    options |= draw(
        st.sampled_from(
            (
                {},
                {"embed_norm": "ball"},
                {"lambda_gckt": 0.0},
                {"lambda_lckt": 0.0},
                {"lckt_reduction": "sum", "ot_solver": "sinkhorn", "ot_eps": 0.1},
                {"lckt_trains_embed": False, "ot_cost": "sqeuclidean"},
            )
        )
    )
    if options["critic"] == "dual":
        options["negatives"] = draw(st.sampled_from(("batch", "bank", "bank_negatives")))
    return WCoRDLoss(s_dim, t_dim, num_data, num_negatives=count, **options)


@st.composite
def batches(draw, module: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    size = draw(st.sampled_from((2, 3, 9, 33)))

    def features(embed: nn.Module) -> Tensor:
        rows = torch.randn(size, embed.linear.in_features, generator=g) * draw(st.sampled_from((1.0, 0.01, 30.0)))
        return laid_out(rows.to(draw(st.sampled_from(FLOATS))), draw(st.sampled_from(LAYOUTS[:-1])))

    index = torch.randint(0, module.n_data, (size,), generator=g).to(draw(st.sampled_from((torch.int64, torch.int32))))
    return features(module.embed_s), features(module.embed_t), index


def on_native(module: nn.Module) -> nn.Module:
    """A copy that uses the native backends."""
    twin = copy.deepcopy(module)
    for part in twin.modules():
        if getattr(part, "backend", None) == "reference":
            part.backend = "native"
        if isinstance(getattr(part, "ot", None), dict):
            part.ot["backend"] = "native"
    return twin


def near(ours: Tensor, expected: Tensor, fraction: float, least: float = 0.0, name: str = "") -> None:
    """Every number is as near as `fraction` of the largest, or `least`."""
    ours, expected = ours.detach().double(), expected.detach().double()
    room = fraction * float(expected.abs().max()) + least if expected.numel() else 0.0
    assert ours.shape == expected.shape and bool(((ours - expected).abs() <= room).all()), (name, ours, expected, room)


@given(st.data())
def test_two_steps_equal_the_reference(data):
    plain = data.draw(losses())
    fast = on_native(plain)
    for _ in range(2):
        f_s, f_t, index = data.draw(batches(plain))
        before = [t.clone() for t in (f_s, f_t, index)]
        actual = []
        for module, backend in ((fast, "native"), (plain, "reference")):
            x = f_s.detach().requires_grad_()
            with use_backend(backend):  # of the update too, which has no option
                loss = module(x, f_t, index)
            trained = [p for p in module.parameters() if p.requires_grad]
            grads = torch.autograd.grad(loss, [x, *trained], allow_unused=True)
            actual.append((loss, [g for g in grads if g is not None]))
        (loss, grads), (expected, wants) = actual
        rounded = torch.finfo(f_s.dtype).eps if f_s.dtype in (torch.bfloat16, torch.float16) else 0.0
        near(loss, expected, 3e-5, 1e-6)
        assert len(grads) == len(wants)
        for ours, theirs in zip(grads, wants, strict=True):
            near(ours, theirs, 1e-3 + 2 * rounded, 1e-6)
        assert all(torch.equal(s, t) for s, t in zip(before, (f_s, f_t, index), strict=True))
        for (name, ours), theirs in zip(fast.state_dict().items(), plain.state_dict().values(), strict=True):
            stored = torch.finfo(ours.dtype).eps if ours.dtype in (torch.bfloat16, torch.float16) else 0.0
            near(ours.nan_to_num(-7), theirs.nan_to_num(-7), 3e-5 + stored, 1e-6, name)


@given(st.data())
def test_bad_input_is_named_and_changes_nothing(data):
    module = on_native(data.draw(losses()))
    f_s, f_t, index = data.draw(batches(module))
    name = data.draw(st.sampled_from(("f_s", "f_t", "idx")))
    t = {"f_s": f_s, "f_t": f_t, "idx": index}[name]
    bad: list[object] = [None, "five", t.tolist(), t.to("meta"), t[:0], t[None], t.bool()]
    if name == "idx":
        bad += [t.float(), t + module.n_data, t - module.n_data, t[:1].expand(len(t) + 1), 0]
    else:
        bad += [t.long(), t[0], torch.cat((t, t), 1), t.to_sparse()]
        for value in (math.nan, math.inf, -math.inf):
            bad.append(t.clone().index_put_((torch.tensor([-1]), torch.tensor([0])), torch.tensor(value).to(t.dtype)))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    either = "f_s|f_t|idx" if name != "idx" else "idx"  # of two that do not fit together, either
    for value in bad:
        call = {"f_s": f_s, "f_t": f_t, "idx": index} | {name: value}
        with pytest.raises((ValueError, TypeError), match=rf"\b({either})\b"):
            module(**call)
    for key, value in module.state_dict().items():
        assert torch.equal(value.nan_to_num(-7), before[key].nan_to_num(-7)), key


@given(st.data())
def test_ot_loss_and_kd_loss(data):
    draw = data.draw
    g = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    n, m, d = (draw(st.sampled_from(WIDTHS)) for _ in "nmd")
    dtype = draw(st.sampled_from(FLOATS))
    x, y = torch.randn(n, d, generator=g).to(dtype), torch.randn(m, d, generator=g).to(dtype)
    options = {"reduction": draw(st.sampled_from(("mean", "sum"))), "debias": draw(st.booleans()), "iters": 7}
    fast, plain = (OTLoss(backend=backend, **options) for backend in ("native", "reference"))
    near(fast(x, y), plain(x, y), 1e-4, 1e-5 * max(n, m))

    temperature = draw(st.sampled_from((0.5, 1.0, 4.0, 50.0)))
    logits, theirs = (torch.randn(n, d, generator=g, dtype=torch.float64) * 10 for _ in range(2))
    p = torch.softmax(theirs / temperature, 1)
    log_ratio = torch.log_softmax(theirs / temperature, 1) - torch.log_softmax(logits / temperature, 1)
    expected = temperature**2 * (p * log_ratio).sum() / n
    near(KDLoss(temperature)(logits, theirs), expected, 1e-10, 1e-12)
