"""Replicated and sharded banks on 2 and 3 gloo processes against one process with the joined batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from wcord_fast import CRDLoss, MemoryBank, NegativeSampler, WCoRDLoss
from wcord_fast import functional as F
from wcord_fast.distributed import bytes_sent, exclude_state, ranks

N, D, S_DIM, T_DIM = 61, 12, 7, 9
LABELS = torch.arange(N) % 5
SIZES = {2: [[4, 4], [5, 2], [1, 3]], 3: [[3, 3, 3], [4, 1, 2], [1, 1, 5]]}  # of the ranks, step by step
CPU = torch.device("cpu")

LOSSES = {
    "crd": (CRDLoss, {"nce_k": 9, "labels": LABELS}),
    "crd self": (CRDLoss, {"nce_k": 20, "exclude": "self", "replacement": True, "z": "ema"}),
    "crd all": (CRDLoss, {"nce_k": "all", "labels": LABELS}),
    "crd dense": (CRDLoss, {"nce_k": 30, "exclude": "none", "plan": "dense", "z": "ema"}),
    "crd reference": (CRDLoss, {"nce_k": 9, "labels": LABELS, "backend": "reference"}),
    "nce_sn": (WCoRDLoss, {"num_negatives": 11, "labels": LABELS, "ot_scope": "global"}),
    "nce_sn sum": (WCoRDLoss, {"num_negatives": 11, "ot_scope": "global", "lckt_reduction": "sum", "lambda_lckt": 1.0}),
    "lckt": (WCoRDLoss, {"lambda_gckt": 0, "ot_scope": "global", "lckt_features": "embed"}),
    "lckt prior": (WCoRDLoss, {"lambda_gckt": 0, "lambda_lckt": 1.0, "ot_scope": "global",
                               "lckt_pairs": "prior", "lckt_center": "batch", "ot_solver": "sinkhorn", "ot_eps": 0.2}),
    "lckt class": (WCoRDLoss, {"lambda_gckt": 0, "lambda_lckt": 1.0, "ot_scope": "global", "labels": LABELS,
                               "lckt_pairs": "prior", "lckt_pairs_by": "class", "lckt_rho": 0.5}),
    "lckt only": (WCoRDLoss, {"lambda_gckt": 0, "lambda_lckt": 1.0, "ot_scope": "global", "lckt_features": "mapped",
                              "lckt_pairs": "only"}),
    "lckt running": (WCoRDLoss, {"lambda_gckt": 0, "lambda_lckt": 1.0, "ot_scope": "global", "lckt_features": "mapped",
                                 "lckt_pairs": "only", "lckt_center": "running"}),
    "dual batch": (WCoRDLoss, {"critic": "dual", "labels": LABELS, "ot_scope": "global"}),
    "dual bank": (WCoRDLoss, {"critic": "dual", "negatives": "bank", "num_negatives": "all", "labels": LABELS,
                              "ot_scope": "global"}),
    "dual self": (WCoRDLoss, {"critic": "dual", "negatives": "bank_negatives", "num_negatives": 8, "neg_weight": "M",
                              "ot_scope": "global"}),
    "infonce batch": (WCoRDLoss, {"critic": "infonce", "negatives": "batch", "labels": LABELS, "ot_scope": "global"}),
    "sigmoid batch": (WCoRDLoss, {"critic": "sigmoid", "negatives": "batch", "exclude": "none", "ot_scope": "global"}),
    "infonce queue": (WCoRDLoss, {"critic": "infonce", "negatives": "queue", "queue_size": 9, "ot_scope": "global"}),
    "sigmoid queue": (WCoRDLoss, {"critic": "sigmoid", "negatives": "queue", "queue_size": 9, "labels": LABELS,
                                  "ot_scope": "global"}),
    "infonce bank": (WCoRDLoss, {"critic": "infonce", "num_negatives": 11, "labels": LABELS, "ot_scope": "global",
                                 "backend": "reference"}),
    "sigmoid bank": (WCoRDLoss, {"critic": "sigmoid", "num_negatives": "all", "ot_scope": "global",
                                 "backend": "reference"}),
    "dual all self": (WCoRDLoss, {"critic": "dual", "negatives": "bank", "num_negatives": "all", "ot_scope": "global"}),
}  # fmt: skip
PAIRED = ("infonce batch", "sigmoid batch", "infonce queue", "sigmoid queue")
BANKLESS = ("lckt", "lckt prior", "lckt class", "lckt only", "lckt running", "dual batch", *PAIRED)


def build(name, **options):
    torch.manual_seed(5)
    kind, own = LOSSES[name]
    return kind(S_DIM, T_DIM, N, **{"feat_dim": D, "seed": 11, **own, **options}).train()


def batches(world, rank=None):
    """The batches of the steps: of `rank`, or joined. Row 3 comes from every rank."""
    g = torch.Generator().manual_seed(1)
    for sizes in SIZES[world]:
        total = sum(sizes)
        f_s, f_t = torch.randn(total, S_DIM, generator=g), torch.randn(total, T_DIM, generator=g)
        idx = torch.randint(N, (total,), generator=g)
        ends = np.cumsum([0, *sizes])
        idx[ends[:-1]] = 3
        at = slice(None) if rank is None else slice(ends[rank], ends[rank + 1])
        yield f_s[at], f_t[at], idx[at], 1 if rank is None else len(sizes) * sizes[rank] / total


def train(name, rank=None, world=None, **options):
    """Losses, the gradients of every step, and the state at the end; on ranks by DDP."""
    loss = build(name, **options)
    module = loss if rank is None else DistributedDataParallel(loss)
    parameters = [p for p in loss.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, 0.1)
    values, grads = [], []
    for f_s, f_t, idx, weight in batches(world, rank):
        f_s = f_s.requires_grad_()
        value = module(f_s, f_t, idx)
        optimizer.zero_grad()
        (value * weight).backward()
        values.append(float(value.detach()) * weight)
        grads.append([f_s.grad, *(p.grad.clone() for p in parameters)])
        optimizer.step()
    return values, grads, whole_state(loss)


def own_state(loss):
    """The state dict; of a sharded bank the rows of this rank."""
    return {k: (v.to_local() if hasattr(v, "to_local") else v).clone() for k, v in loss.state_dict().items()}


def whole_state(loss):
    """The state dict and, where they are kept, the class sums of both banks."""
    state = own_state(loss)
    for name, bank in loss.named_modules():
        if isinstance(bank, MemoryBank) and (sums := bank.current_sums()):
            state[f"class sums of {name}"] = sums.sums.clone()
    return state


def on_rank(name, options):
    return train(name, *ranks(), **options)


def assert_equals_one_process(pool, name, options, tolerance=2e-5):
    values, grads, state = train(name, None, pool.world)
    everyone = pool.run(on_rank, name, options)
    for step, value in enumerate(values):
        assert sum(r[0][step] for r in everyone) / pool.world == pytest.approx(value, rel=tolerance)
        features = torch.cat([r[1][step][0] for r in everyone]) / pool.world
        torch.testing.assert_close(
            features, grads[step][0], rtol=tolerance, atol=tolerance * float(grads[step][0].max())
        )
        for mine, *theirs in zip(grads[step][1:], *(r[1][step][1:] for r in everyone), strict=True):
            assert all(torch.equal(theirs[0], t) for t in theirs)
            torch.testing.assert_close(theirs[0], mine, rtol=tolerance, atol=tolerance * float(mine.abs().max()))
    return state, [r[2] for r in everyone]


@pytest.mark.parametrize("name", LOSSES)
def test_replicas_are_bit_identical_and_equal_one_process(pool, name):
    state, states = assert_equals_one_process(pool, name, {})
    for key, value in state.items():
        for other in states:
            assert torch.equal(other[key].nan_to_num(), states[0][key].nan_to_num()), key
        torch.testing.assert_close(states[0][key], value, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert_state_is_complete(name, state)


def assert_state_is_complete(name, state):
    """`state`, which the checks above compare between the ranks, has every entry of the loss."""
    kept = {key.rsplit(".", 1)[-1] for key in state}
    assert {"log_z", "state", "rows"} <= kept or name in BANKLESS
    assert {"rows", "pushed"} <= kept or not name.endswith("queue")
    assert {"u", "v"} <= kept or name.startswith(("crd", "infonce", "sigmoid"))
    assert ("class sums of contrast.memory_v1" in state) == (name in ("dual bank", "dual all self"))


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in BANKLESS])
def test_shards_equal_one_process(pool, name):
    state, states = assert_equals_one_process(pool, name, {"shard": "rank"})
    for key, value in state.items():
        if key.startswith("contrast.memory_v"):
            assert sum(len(s[key]) for s in states) == N and max(len(s[key]) for s in states) <= -(-N // pool.world)
            torch.testing.assert_close(torch.cat([s[key] for s in states]), value, rtol=1e-4, atol=1e-5)
        elif key.startswith("class sums"):  # each of its own rows
            torch.testing.assert_close(sum(s[key] for s in states), value, rtol=1e-4, atol=1e-5)
        else:
            assert all(torch.equal(s[key].nan_to_num(), states[0][key].nan_to_num()) for s in states), key
            torch.testing.assert_close(states[0][key], value, rtol=1e-4, atol=1e-5, equal_nan=True)


def running_state(scope):
    """The running mean after the steps on ranks, or of one process with the joined batches of so many ranks."""
    rank, world = ranks()
    loss = build("lckt running", ot_scope=scope)
    for f_s, f_t, idx, _ in batches(world, rank):
        loss(f_s, f_t, idx)
    return own_state(loss)


def test_running_mean_covers_all_ranks(pool):
    states = pool.run(running_state, "rank")
    alone = build("lckt running")
    for f_s, f_t, idx, _ in batches(pool.world):
        alone(f_s, f_t, idx)
    for key in ("local.running.mean", "local.running.steps"):
        assert all(torch.equal(s[key], states[0][key]) for s in states)
        torch.testing.assert_close(states[0][key], alone.state_dict()[key], rtol=1e-5, atol=1e-6)


def with_given_rows(name, shard, alone=0):
    """Loss, gradient and a bank after a step with explicit contrast_idx, whose positives are not the anchors' own rows.

    alone: one process with the joined batch of so many ranks.
    """
    rank, world = ranks()
    loss = build(name, shard=shard)
    total = sum(SIZES[alone or world][1])
    given = torch.randint(N, (total, 7), generator=torch.Generator().manual_seed(3))
    f_s, f_t, idx, weight = list(batches(alone or world, None if alone else rank))[1]
    first = 0 if alone else sum(SIZES[world][1][:rank])
    f_s = f_s.requires_grad_()
    value = loss(f_s, f_t, idx, given[first : first + len(idx)]) * weight
    value.backward()
    return float(value.detach()), f_s.grad, loss.contrast.memory_v1.rows


@pytest.mark.parametrize("shard", [None, "rank"])
@pytest.mark.parametrize("name", ["crd", "dual self"])
def test_explicit_rows_equal_one_process(pool, name, shard):
    value, grad, rows = with_given_rows(name, None, alone=pool.world)
    parts = pool.run(with_given_rows, name, shard)
    assert sum(p[0] for p in parts) / pool.world == pytest.approx(value, rel=2e-5)
    ours = torch.cat([p[1] for p in parts]) / pool.world
    torch.testing.assert_close(ours, grad, rtol=2e-5, atol=2e-5 * float(grad.abs().max()))
    held = torch.cat([p[2] for p in parts]) if shard else parts[0][2]
    torch.testing.assert_close(held, rows, rtol=1e-4, atol=1e-5)


def wrapped(whole_model):
    """Each rank marks a row of its bank. Returns the marks that are there after two steps of DDP."""
    rank, world = ranks()
    loss = build("nce_sn")
    model = torch.nn.ModuleDict({"head": loss})
    model.forward = loss.forward
    loss.contrast.memory_v1.rows[0] = rank + 1.0
    module = DistributedDataParallel(exclude_state(model) if whole_model else loss)
    for f_s, f_t, idx, _ in list(batches(world, rank))[:2]:
        module(f_s, f_t, idx.clamp_min(1)).backward()
    return loss.contrast.memory_v1.rows[0].unique().tolist()


@pytest.mark.parametrize("whole_model", [False, True])
def test_ddp_does_not_broadcast_the_banks(pool, whole_model):
    assert pool.run(wrapped, whole_model) == [[rank + 1.0] for rank in range(pool.world)]


def overwritten(excluded):
    """A sharded loss within a larger module: its rows are its own only if DDP leaves them alone."""
    loss = CRDLoss(S_DIM, T_DIM, 60, feat_dim=D, nce_k=5, seed=2, shard="rank")
    model = torch.nn.ModuleDict({"head": loss})
    model.forward = loss.forward
    module = DistributedDataParallel(exclude_state(model) if excluded else model)
    try:
        module(torch.randn(3, S_DIM), torch.randn(3, T_DIM), torch.tensor([1, 2, 3])).backward()
    except ValueError as error:
        return str(error)
    return "trained"


def test_rows_that_ddp_has_overwritten_are_noticed(pool):
    assert pool.run(overwritten, True) == ["trained"] * pool.world
    assert all("exclude_state(model) before it wraps the model" in m for m in pool.run(overwritten, False))


def many_steps(shard):
    torch.manual_seed(dist.get_rank())
    loss = CRDLoss(S_DIM, T_DIM, N, feat_dim=D, nce_k=5, bank_dtype=torch.bfloat16, shard=shard)  # the seed is rank 0's
    torch.manual_seed(7)
    for p in loss.parameters():
        torch.nn.init.normal_(p, 0, 0.3)
    torch.manual_seed(100 + dist.get_rank())
    for _ in range(40):
        size = int(torch.randint(1, 6, ()))
        idx = torch.randint(8, (size,))  # few rows, so that they meet across ranks and within one
        loss(torch.randn(size, S_DIM), torch.randn(size, T_DIM), idx)
    return own_state(loss)


def test_replicas_are_bit_identical_after_many_uneven_steps(pool):
    replicas, shards = pool.run(many_steps, None), pool.run(many_steps, "rank")
    for key, value in replicas[0].items():
        assert all(torch.equal(r[key], value) for r in replicas), key
        if key.startswith("contrast.memory_v"):
            assert torch.equal(torch.cat([s[key] for s in shards]), value)
    assert int(replicas[0]["contrast.sampler.state"][1]) == 40


def sampler_of(source, k, expected):
    options = {
        "class": {"labels": LABELS},
        "unlabelled": {"labels": LABELS - 1},
        "weighted": {"weights": torch.arange(N) % 4 + 0.5},
    }
    return NegativeSampler(N, k, seed=2, expected=expected, **options.get(source, {"exclude": source}))


def functional_values(source, k, plan, expected):
    """The three functions on a sharded MemoryBank, and the bank after an update with duplicates across ranks."""
    rank, world = ranks()
    f_s, _, idx, _ = list(batches(world, rank))[1]
    negatives = sampler_of(source, k, expected)
    anchor = torch.nn.functional.pad(f_s, (0, D - S_DIM)).requires_grad_()
    bank = MemoryBank(N, D, seed=4, shard="rank")
    log_z = F.bank_log_z(anchor, bank, idx, negatives=negatives, plan=plan)
    nce = F.bank_nce(anchor, bank, idx, negatives=negatives, log_z=log_z, plan=plan)
    mean = F.bank_mean_score(anchor, bank, idx, negatives=negatives, plan=plan)
    rows = torch.randint(N, (len(idx), 6), generator=torch.Generator().manual_seed(rank))
    given = F.bank_nce(anchor, bank, idx, negatives=rows, log_z=log_z)
    (grad,) = torch.autograd.grad((nce + 3 * mean).sum(), anchor)
    F.bank_update_(bank, idx, anchor)
    return anchor.detach(), idx, rows, log_z, nce.detach(), mean.detach(), given.detach(), grad, bank.rows


SAMPLERS = [("class", 7), ("none", "all"), ("self", 7), ("weighted", 9), ("class", "all"), ("self", 60), ("none", 61)]
SAMPLERS += [("unlabelled", 7), ("unlabelled", "all")]


@pytest.mark.parametrize(
    "source, k, plan, expected",
    [(*s, plan, False) for s in SAMPLERS for plan in ("auto", "gather", "dense") if (s[1], plan) != ("all", "gather")]
    + [(*s, "auto", True) for s in (("class", 7), ("self", 20))],
)
def test_functions_on_a_sharded_bank(pool, source, k, plan, expected):
    parts = pool.run(functional_values, source, k, plan, expected)
    anchor, idx, rows, _, nce, mean, given, grad, held = (
        torch.cat([p[i] for p in parts]) if i != 3 else None for i in range(9)
    )
    negatives = sampler_of(source, k, expected)
    bank, anchor = MemoryBank(N, D, seed=4), anchor.requires_grad_()
    log_z = F.bank_log_z(anchor, bank, idx, negatives=negatives, plan=plan)
    ours = F.bank_nce(anchor, bank, idx, negatives=negatives, log_z=log_z, plan=plan)
    means = F.bank_mean_score(anchor, bank, idx, negatives=negatives, plan=plan)
    close = {"rtol": 2e-5, "atol": 1e-5}
    for p in parts:
        torch.testing.assert_close(p[3], log_z, **close)
    torch.testing.assert_close(nce, ours.detach(), **close)
    torch.testing.assert_close(mean, means.detach(), **close)
    torch.testing.assert_close(given, F.bank_nce(anchor, bank, idx, negatives=rows, log_z=log_z).detach(), **close)
    torch.testing.assert_close(grad, torch.autograd.grad((ours + 3 * means).sum(), anchor)[0], **close)
    F.bank_update_(bank, idx, anchor)
    assert torch.equal(held, bank.rows)


def traffic(shard, n, k, z):
    """Bytes of one training step's collectives, counted at torch.distributed itself, and by the library."""
    loss = CRDLoss(S_DIM, T_DIM, n, feat_dim=D, nce_k=k, seed=1, exclude="self", shard=shard)
    if z:
        loss.contrast.log_z.fill_(8.0)
    loss.require_agreement()  # once in a loss's life
    seen = {"all_gather": 0, "all_to_all_single": 0}
    originals = {name: getattr(dist, name) for name in seen}

    def counting(name):
        def call(out, own, *args):
            seen[name] += own.nbytes
            return originals[name](out, own, *args)

        return call

    everything = {n: getattr(dist, n) for n in ("all_reduce", "broadcast", "reduce_scatter", "send", "all_to_all")}
    for name in seen:
        setattr(dist, name, counting(name))
    for name in everything:
        setattr(dist, name, None)  # would raise
    try:
        before = bytes_sent()
        loss(torch.randn(4, S_DIM).requires_grad_(), torch.randn(4, T_DIM), torch.arange(4)).backward()
        return seen, bytes_sent() - before
    finally:
        for name, function in (originals | everything).items():
            setattr(dist, name, function)


def test_traffic_of_a_step_equals_its_formula_and_is_independent_of_k_and_n(pool):
    world, batch = pool.world, 4 * pool.world
    message = 8 + 4 * (2 * D * 4 + 8)  # the size, then 4 anchors of two directions and their row numbers
    for n, k in ((50, 3), (50, 40), (1000, 3), (1000, 900)):
        for seen, sent in pool.run(traffic, None, n, k, True):
            assert seen == {"all_gather": message, "all_to_all_single": 0}
            assert sent == (world - 1) * message
        for seen, sent in pool.run(traffic, "rank", n, k, True):
            cells = batch * 2 * (1 + D) * 4
            assert seen == {"all_gather": message, "all_to_all_single": cells}
            assert sent == (world - 1) * message + cells * (world - 1) // world
        assert (
            pool.run(traffic, "rank", n, k, False)[0][0]["all_gather"] == message + 16
        )  # once: log Z of two directions
