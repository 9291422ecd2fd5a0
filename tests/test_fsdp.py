"""FSDP2 round modules that hold our losses, and torch.distributed.checkpoint: two gloo processes on the CPU."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from wcord_fast import CRDLoss, MemoryBank, WCoRDLoss
from wcord_fast.distributed import ranks

from .grid import grid

N, K, S_DIM, T_DIM, D, B = 41, 7, 6, 9, 8, 4
LABELS = torch.arange(N) % 4
WHOLE = StateDictOptions(full_state_dict=True)
LOSSES = {
    "crd": (CRDLoss, {"nce_k": K, "labels": LABELS}),
    "nce_sn": (WCoRDLoss, {"num_negatives": K, "labels": LABELS, "ot_scope": "global"}),
    "frozen too": (WCoRDLoss, {"num_negatives": K, "lckt_trains_embed": False, "ot_scope": "global"}),
    "dual batch": (WCoRDLoss, {"critic": "dual", "labels": LABELS, "ot_scope": "global"}),
    "sigmoid queue": (WCoRDLoss, {"critic": "sigmoid", "negatives": "queue", "queue_size": 11, "ot_scope": "global",
                                  "lambda_gckt": 0.02}),  # log_scale learns fast
    "lckt": (WCoRDLoss, {"lambda_gckt": 0.0, "lambda_lckt": 1.0, "ot_scope": "global"}),
}  # fmt: skip
WAYS = ("whole", "parts")


class Distilled(nn.Module):
    """A student, a frozen teacher and a loss, as a framework is given them."""

    def __init__(self, name: str, seed: int = 5, **options):
        super().__init__()
        torch.manual_seed(seed)
        self.student = nn.Linear(5, S_DIM)
        self.teacher = nn.Linear(5, T_DIM).requires_grad_(False)
        kind, own = LOSSES[name]
        self.loss = kind(S_DIM, T_DIM, N, feat_dim=D, seed=seed, **own, **options)

    def forward(self, x, idx):
        return self.loss(self.student(x), self.teacher(x), idx)


def batch(step, rank=None):
    g = torch.Generator().manual_seed(step)
    x, idx = torch.randn(2 * B, 5, generator=g).bfloat16().float(), torch.randint(N, (2 * B,), generator=g)
    at = slice(None) if rank is None else slice(B * rank, B * rank + B)
    return x[at], idx[at]


def shard(model, how="whole", **policy):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    if how == "parts":  # each layer separately, as recipes do
        for module in list(model.modules()):
            if isinstance(module, nn.Linear) and any(p.requires_grad for p in module.parameters()):
                fully_shard(module, mesh=mesh, **policy)
    return fully_shard(model, mesh=mesh, **policy)


def train(model, steps, rank=None, rate=0.1):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], rate, momentum=0.9)
    values = []
    for step in steps:
        value = model(*batch(step, rank))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    return values, optimizer


def state_of(model):
    return {k: v.clone() for k, v in get_model_state_dict(model, options=WHOLE).items()}


def sharded_training(name, how):
    model = shard(Distilled(name), how)
    values, _ = train(model, range(3), ranks().rank)
    assert isinstance(model.loss.embed_s.linear.weight, DTensor)
    assert not any(isinstance(b, DTensor) for b in model.buffers())
    return values, state_of(model)


@pytest.mark.parametrize(("name", "how"), grid([*LOSSES], WAYS))
def test_fsdp_equals_one_process(two_ranks, name, how):
    alone = Distilled(name)
    values, _ = train(alone, range(3))
    parts = two_ranks.run(sharded_training, name, how)
    for step, value in enumerate(values):
        assert sum(p[0][step] for p in parts) / 2 == pytest.approx(value, rel=2e-5)
    for _, state in parts:
        assert list(state) == list(alone.state_dict())
        for key, value in alone.state_dict().items():
            torch.testing.assert_close(state[key], value, rtol=1e-4, atol=1e-5, equal_nan=True, msg=key)


def half_training(name, how, cast):
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = Distilled(name)
    if cast:  # bf16 everywhere, the optimiser's copies too
        model = shard(model.bfloat16(), how)
        model.register_forward_pre_hook(lambda _, args: (args[0].bfloat16(), args[1]))
    else:
        model = shard(model, how, mp_policy=policy)
    values, _ = train(model, range(3), ranks().rank)
    loss = model.loss
    buffers = {name: b.dtype for name, b in loss.named_buffers() if b.is_floating_point()}
    grads = [p.grad.full_tensor() for p in loss.parameters() if p.grad is not None]
    return values, buffers, grads


@pytest.mark.parametrize(("name", "way"), grid([*LOSSES], [*itertools.product(WAYS, [False, True])]))
def test_parameters_in_bfloat16(two_ranks, name, way):
    how, cast = way
    alone = Distilled(name)
    with torch.no_grad():
        for p in alone.parameters():
            p.copy_(p.bfloat16())
    values, _ = train(alone, range(3))
    parts = two_ranks.run(half_training, name, how, cast)
    for step, value in enumerate(values):
        assert sum(p[0][step] for p in parts) / 2 == pytest.approx(value, rel=0.02, abs=0.02)
    for _, dtypes, grads in parts:
        for key, dtype in dtypes.items():
            narrow = cast and key.endswith("rows")  # a cast by name
            assert dtype == (torch.bfloat16 if narrow else torch.float32), key
        theirs = [p.grad for p in alone.loss.parameters() if p.grad is not None]
        for mine, grad in zip(grads, theirs, strict=True):
            assert (mine.float() - grad).norm() < 0.1 * grad.norm() + 1e-3


def linear_in_bfloat16():
    """The critic's values with parameters in bf16, where only they are rounded."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = Distilled("nce_sn")
    rounded = copy.deepcopy(model.loss)
    with torch.no_grad():
        for p in rounded.parameters():
            p.copy_(p.bfloat16())
    loss = shard(model.loss, mp_policy=policy)
    f_s, f_t = torch.randn(B, S_DIM).bfloat16().float(), torch.randn(B, T_DIM).bfloat16().float()
    return float(loss(f_s, f_t, torch.arange(B)).detach()), float(rounded(f_s, f_t, torch.arange(B)).detach())


def test_mixed_precision_rounds_parameters_only(two_ranks):
    for ours, expected in two_ranks.run(linear_in_bfloat16):
        assert ours == pytest.approx(expected, rel=1e-6)


def saved_and_read(name, folder, options):
    """Train, save by torch.distributed.checkpoint, read into a model of another seed, and continue with both."""
    rank = ranks().rank
    model = shard(Distilled(name, **options))
    _, optimizer = train(model, range(2), rank)
    states = get_state_dict(model, optimizer)
    dcp.save(dict(zip(("model", "optimizer"), states, strict=True)), checkpoint_id=folder)
    other = shard(Distilled(name, seed=6, **options))
    _, its = train(other, range(7, 8), rank)
    fresh = dict(zip(("model", "optimizer"), get_state_dict(other, its), strict=True))
    dcp.load(fresh, checkpoint_id=folder)
    set_state_dict(other, its, model_state_dict=fresh["model"], optim_state_dict=fresh["optimizer"])
    results = []
    for each, opt in ((model, optimizer), (other, its)):
        losses = []
        for step in range(2, 5):
            value = each(*batch(step, rank))
            opt.zero_grad()
            value.backward()
            opt.step()
            losses.append(float(value.detach()))
        results.append((losses, state_of(each)))
    return results


@pytest.mark.parametrize(
    ("name", "sharded"),
    [
        *grid(["crd", "nce_sn", "frozen too"], [True, False]),
        *((name, False) for name in ("dual batch", "sigmoid queue", "lckt")),  # without a bank
    ],
)
def test_a_checkpoint_resumes_exactly(two_ranks, tmp_path, name, sharded):
    options = {"shard": "rank"} if sharded else {}
    for (a, there), (b, here) in two_ranks.run(saved_and_read, name, str(tmp_path), options):
        assert a == b
        assert all(torch.equal(there[k].nan_to_num(), here[k].nan_to_num()) for k in there)
    if not sharded:
        return
    alone = Distilled(name, seed=6)  # one process reads what two have written
    state = {"model": get_model_state_dict(alone)}
    dcp.load(state, checkpoint_id=str(tmp_path), no_dist=True)
    set_model_state_dict(alone, state["model"])
    twin = Distilled(name)
    train(twin, range(2))
    rows = "memory_v1.rows", "memory_v2.rows"
    for row in rows:
        assert len(alone.loss.contrast.get_buffer(row)) == N
        torch.testing.assert_close(alone.loss.contrast.get_buffer(row), twin.loss.contrast.get_buffer(row))


def of_other_labels(folder):
    model = shard(Distilled("crd"))
    dcp.save(get_model_state_dict(model), checkpoint_id=folder)
    other = Distilled("crd")
    other.loss = CRDLoss(S_DIM, T_DIM, N, feat_dim=D, nce_k=K, labels=LABELS.flip(0))
    state = get_model_state_dict(shard(other))
    dcp.load(state, checkpoint_id=folder)
    with pytest.raises(RuntimeError, match="made with other labels"):
        set_model_state_dict(other, state)


def test_a_checkpoint_of_other_labels_is_refused(two_ranks, tmp_path):
    two_ranks.run(of_other_labels, str(tmp_path))


def made_on_meta(name, how, broadcast):
    """The recipe for large models: made on meta, sharded, given memory, reset; then a whole state from rank 0."""
    expected = Distilled(name, seed=8)
    with torch.device("meta"):
        model = Distilled(name)
    shard(model, how)
    model.to_empty(device="cpu")
    torch.manual_seed(11)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    fresh = model(*batch(0, ranks().rank))
    fresh.backward()  # which shards the parameters again
    state = expected.state_dict() if not broadcast or ranks().rank == 0 else {}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=broadcast)
    set_model_state_dict(model, copy.deepcopy(dict(state)), options=options)
    same = {k: torch.equal(v.nan_to_num(), expected.state_dict()[k].nan_to_num()) for k, v in state_of(model).items()}
    return float(fresh.detach()), [k for k, equal in same.items() if not equal]


@pytest.mark.parametrize(
    ("name", "way"), grid(["crd", "nce_sn", "dual batch"], [*itertools.product(WAYS, [False, True])])
)
def test_a_model_made_on_meta(two_ranks, name, way):
    how, broadcast = way
    for fresh, unlike in two_ranks.run(made_on_meta, name, how, broadcast):
        assert math.isfinite(fresh) and not unlike


def vectors_after_reset():
    """The spectral norms of a sharded weight, which are equal on all ranks, whatever their generators."""
    with torch.device("meta"):
        model = Distilled("nce_sn")
    shard(model).to_empty(device="cpu")
    torch.manual_seed(ranks().rank)
    model.loss.reset_parameters()
    linear = model.loss.embed_s.linear
    return linear.u, linear.v, linear.frozen()[0]


def test_spectral_norms_of_sharded_weights_equal_one_process(two_ranks):
    (u, v, weight), (u1, v1, other) = two_ranks.run(vectors_after_reset)
    assert torch.equal(u, u1) and torch.equal(v, v1) and torch.equal(weight, other)
    torch.testing.assert_close(torch.linalg.matrix_norm(weight, 2), torch.tensor(1.0), rtol=1e-4, atol=1e-4)


def sharded_bank_states():
    """A sharded bank's state dict, and the forms that it loads: a DTensor, all rows, its own rows."""
    bank, whole = MemoryBank(N, D, seed=1, shard="rank"), MemoryBank(N, D, seed=1).rows
    state = bank.state_dict()
    took = []
    for rows in (state["rows"], whole, bank.rows.clone()):
        other = MemoryBank(N, D, seed=2, shard="rank")
        other.load_state_dict({"rows": rows})
        took.append(torch.equal(other.rows, bank.rows))
    return torch.equal(state["rows"].full_tensor(), whole) and torch.equal(bank.all_rows(), whole), took


def test_state_of_a_sharded_bank_has_all_rows(two_ranks):
    assert two_ranks.run(sharded_bank_states) == [(True, [True] * 3)] * 2
