"""State dicts of the losses: names, entries that do not fit, earlier versions; meta construction; copies."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

from wcord_fast import CRDLoss, KDLoss, MemoryBank, NegativeSampler, OTLoss, WCoRDLoss

from .rank_pool import context
from .test_spectral import as_torch_names

N, K, S_DIM, T_DIM, D, B = 40, 7, 5, 6, 8, 4
LABELS = torch.arange(N) % 4


def make(kind, **options):
    options = {"feat_dim": D, "labels": LABELS, "seed": 9} | options
    if kind == "crd":
        return CRDLoss(S_DIM, T_DIM, N, **({"nce_k": K} | options))
    if kind == "mapped":
        return WCoRDLoss(S_DIM, T_DIM, N, num_negatives=K, lckt_features="mapped", **options)
    critic, _, negatives = kind.partition(" ")
    return WCoRDLoss(S_DIM, T_DIM, N, critic=critic, **({"num_negatives": K, "negatives": negatives or None} | options))


KINDS = ["crd", "nce_sn", "nce", "dual", "dual bank", "mapped"]
BANKED = ["crd", "nce_sn", "dual bank"]


def batch(step=0):
    g = torch.Generator().manual_seed(step)
    return torch.randn(B, S_DIM, generator=g), torch.randn(B, T_DIM, generator=g), torch.tensor([3, 0, 29, 6])


def same(a, b):
    assert list(a) == list(b)
    return all(torch.equal(a[k].double().nan_to_num(-7), b[k].double().nan_to_num(-7)) for k in a)


def snapshot(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def trained(kind, steps=2, **options):
    module = make(kind, **options)
    for step in range(steps):
        module(*batch(step))
    return module


@pytest.mark.parametrize("kind", KINDS)
def test_every_state_name_is_a_tensor_of_the_module(kind):
    model = torch.nn.ModuleDict({"student": torch.nn.Linear(2, 2), "loss": make(kind)})
    for name, value in model.state_dict().items():
        path, _, leaf = name.rpartition(".")
        assert getattr(model.get_submodule(path), leaf).data_ptr() == value.data_ptr()
    state = get_model_state_dict(model)
    assert list(state) == list(model.state_dict())
    other = torch.nn.ModuleDict({"student": torch.nn.Linear(2, 2), "loss": trained(kind, seed=10)})
    set_model_state_dict(other, state)
    assert same(snapshot(other), snapshot(model))
    set_model_state_dict(other, state, options=StateDictOptions(full_state_dict=True))


@pytest.mark.parametrize("kind", ["crd", "nce_sn", "dual bank"])
def test_states_of_earlier_versions_load(kind):
    module, other = trained(kind), make(kind, seed=10)
    old = snapshot(module)
    for side in ("embed_s.linear.", "embed_t.linear.") if module.embed_s.linear.spectral else ():
        part = {k: old.pop(k) for k in list(old) if k.startswith(side)}
        old |= as_torch_names(part, side)
    del old["contrast.made_with"], old["contrast.sampler.made_with"]
    for name in ("memory_v1", "memory_v2"):
        old[f"contrast.{name}"] = old.pop(f"contrast.{name}.rows")
    old["contrast.params"] = torch.tensor([K, 0.07, 1.0, 1.0, 0.5])
    other.load_state_dict(old)
    assert same(snapshot(other), snapshot(module))
    assert torch.equal(other(*batch(5)), module(*batch(5)))


OTHERS = {
    "labels": ({"labels": LABELS.flip(0)}, "made with other labels: it drew other negatives"),
    "exclude": ({"exclude": "self"}, "made with exclude = 'self', here 'class': it drew other negatives"),
    "no labels": ({"labels": None}, "made with exclude = 'self', here 'class'"),
    "replacement": ({"replacement": True}, "made with another rule of replacement"),
    "k": ({"k": 9}, "made with K = 9, this loss has 7"),
    "all": ({"k": "all"}, "made with K = all, this loss has 7"),
    "temperature": ({"t": 0.1}, "made with temperature = 0.1, this loss has 0.07"),
    "momentum": ({"m": 0.9}, "made with momentum = 0.9, this loss has 0.5"),
}


def spelt(kind, options):
    names = {"k": "nce_k", "t": "nce_t", "m": "nce_m"}
    if kind != "crd":
        names = {"k": "num_negatives", "t": "temperature", "m": "momentum"}
    return {names.get(k, k): v for k, v in options.items()}


@pytest.mark.parametrize("kind", BANKED)
@pytest.mark.parametrize("change", OTHERS)
def test_state_of_other_options_is_refused_unless_strict_is_false(kind, change):
    options, message = OTHERS[change]
    theirs, module = trained(kind, **spelt(kind, options)), trained(kind, seed=3)
    state, before = snapshot(theirs), snapshot(module)
    with pytest.raises(RuntimeError, match=rf"(?s){message}.*with strict=False the rest is loaded"):
        module.load_state_dict(state)
    assert same(snapshot(module), before)
    with pytest.warns(UserWarning, match=message) as seen:
        module.load_state_dict(state, strict=False)
    assert seen[0].filename == __file__ and len(seen) == 1
    now = snapshot(module)
    for name, value in now.items():
        own = name.endswith("made_with") or (name == "contrast.log_z" and change == "temperature")
        assert torch.equal(value.nan_to_num(), (before if own else state)[name].nan_to_num()), name
    module(*batch())
    module.load_state_dict(module.state_dict())  # its own record


SIZES = {
    "n": ({}, N + 1, S_DIM, r"size mismatch for contrast.memory_v1.rows: \[41, 8\] there, \[40, 8\] here"),
    "d": ({"feat_dim": 4}, N, S_DIM, r"size mismatch for contrast.memory_v2.rows: \[40, 4\] there, \[40, 8\] here"),
    "s_dim": ({}, N, 3, r"size mismatch for embed_s.linear.weight: \[8, 3\] there, \[8, 5\] here"),
}


@pytest.mark.parametrize("change", SIZES)
@pytest.mark.parametrize("form", ["ours", "RepDistiller's"])
def test_state_of_other_sizes_is_refused_and_loads_in_part_without_strict(change, form):
    options, n, s_dim, message = SIZES[change]
    theirs = CRDLoss(s_dim, T_DIM, n, **({"feat_dim": D, "nce_k": K, "labels": torch.arange(n) % 4} | options))
    theirs.contrast.log_z.fill_(2.0)
    state = theirs.repdistiller_state_dict() if form != "ours" else snapshot(theirs)
    module = trained("crd")
    before = snapshot(module)
    with pytest.raises(RuntimeError, match=message):
        module.load_state_dict(state)
    assert same(snapshot(module), before)
    with pytest.warns(UserWarning, match=message):
        module.load_state_dict(state, strict=False)
    now, kept = snapshot(module), {"s_dim": "embed_s.linear.weight"}.get(change, "contrast.log_z")
    assert torch.equal(now[kept], before[kept])
    rows = (theirs if change == "s_dim" else module).contrast.memory_v1.rows
    assert torch.equal(now["contrast.memory_v1.rows"], rows)
    taken = "embed_t.linear.weight" if change != "d" else "contrast.sampler.state"
    assert form != "ours" or torch.equal(now[taken], theirs.state_dict()[taken])
    module(*batch())


def test_score_map_of_another_size_is_kept_without_strict():
    theirs, mine = (
        WCoRDLoss(S_DIM, t_dim, N, feat_dim=D, critic="dual", lckt_features="mapped") for t_dim in (9, T_DIM)
    )
    with pytest.raises(RuntimeError, match=r"size mismatch for local.map.weight: \[9, 5\] there, \[6, 5\] here"):
        mine.load_state_dict(theirs.state_dict())
    with pytest.warns(UserWarning, match="size mismatch for local.map.bias"):
        mine.load_state_dict(theirs.state_dict(), strict=False)
    assert torch.equal(mine.embed_s.linear.weight, theirs.embed_s.linear.weight)


@pytest.mark.parametrize("change", ["labels", "exclude", "k"])
def test_nested_loss_loads_fitting_entries_and_torch_raises(change):
    options, message = OTHERS[change]
    theirs = torch.nn.ModuleDict({"loss": trained("crd", **spelt("crd", options))})
    mine = torch.nn.ModuleDict({"loss": make("crd", seed=4)})
    with pytest.raises(RuntimeError, match=rf"loss.contrast.sampler.made_with: the state dict was {message}"):
        mine.load_state_dict(theirs.state_dict())
    keys = mine.load_state_dict(theirs.state_dict(), strict=False)
    assert message in keys.unexpected_keys[0] and not keys.missing_keys
    assert torch.equal(mine["loss"].contrast.memory_v1.rows, theirs["loss"].contrast.memory_v1.rows)


def test_state_overwritten_in_place_is_checked_too():
    """torch.distributed.checkpoint reads into the tensors of `state_dict()`, before anything of ours is called."""
    theirs, module = trained("crd", labels=LABELS.flip(0)), make("crd")
    state = module.state_dict()
    for name, value in theirs.state_dict().items():
        state[name].copy_(value)
    with pytest.raises(RuntimeError, match="made with other labels"):
        module.load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": LABELS.flip(0)}, "other labels"),
        ({"exclude": "none"}, "exclude = 'none', here 'class'"),
        ({"labels": None, "weights": [1.0] * N}, "exclude = 'weighted', here 'class'"),
        ({"num_data": N + 1, "labels": torch.arange(N + 1) % 4}, "num_data = 41, here 40"),
        ({"expected": True}, "expected = True, here False"),
    ],
)
def test_sampler_alone_refuses_a_state_of_other_options(options, message):
    theirs = NegativeSampler(**({"num_data": N, "k": K, "labels": LABELS} | options))
    mine = NegativeSampler(N, K, labels=LABELS)
    before = snapshot(mine)
    with pytest.raises(RuntimeError, match=message):
        mine.load_state_dict(theirs.state_dict())
    assert same(snapshot(mine), before)
    with pytest.warns(UserWarning, match=message):
        mine.load_state_dict(theirs.state_dict(), strict=False)
    assert mine.seed == theirs.seed
    mine.load_state_dict({"state": theirs.state}, strict=False)  # of an earlier version


@pytest.mark.parametrize("kind", KINDS)
def test_loss_made_on_meta_equals_a_new_one_after_reset(kind):
    torch.manual_seed(2)
    made = make(kind)
    with torch.device("meta"):
        other = make(kind)
    assert all(t.is_meta for t in other.parameters())
    other.to_empty(device="cpu")
    for tensor in (*other.parameters(), *other.buffers()):
        if tensor.is_floating_point():
            tensor.data.fill_(torch.nan)  # stale memory; `data` counts no write
    empty = make_empty_says(kind)
    if empty:
        with pytest.raises(RuntimeError, match=rf"{empty} hold no values since to_empty"):
            other(*batch())
    torch.manual_seed(2)
    other.reset_parameters()
    assert same(snapshot(other), snapshot(made))
    for step in range(2):
        assert torch.equal(other(*batch(step)), made(*batch(step)))
    assert torch.equal(other.terms["gckt"], made.terms["gckt"]) if kind != "crd" else True
    torch.manual_seed(2)
    other.reset_parameters()
    torch.manual_seed(2)
    assert same(snapshot(other), snapshot(make(kind)))


def make_empty_says(kind):
    """The names with which the error for an empty buffer begins."""
    return {"crd": "log_z", "nce": "log_z"}.get(kind, "u, v")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["modules", "apply"])
def test_reset_of_every_module_initialises_the_loss(kind, order):
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(S_DIM, S_DIM), make(kind))
    model.to_empty(device="cpu")

    def reset(module):
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()

    for module in model.modules() if order == "modules" else ():
        reset(module)
    if order == "apply":
        model.apply(reset)
    fresh = make(kind)
    for (name, value), other in zip(model[1].named_buffers(), fresh.buffers(), strict=True):
        if not name.endswith((".u", ".v")):
            assert torch.equal(value.nan_to_num(), other.nan_to_num()), name
    linear = model[1].embed_s.linear
    if linear.spectral:
        assert 0.95 < torch.linalg.matrix_norm(linear.frozen()[0], 2) < 1.05
    assert torch.isfinite(model[1](*batch()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("assign", [False, True])
def test_loss_made_on_meta_works_after_loading(kind, assign):
    made = trained(kind)
    with torch.device("meta"):
        other = make(kind)
    if not assign:
        other.to_empty(device="cpu")
    state = copy.deepcopy(made.state_dict())
    other.load_state_dict(state, assign=assign)
    assert torch.equal(other(*batch(7)), made(*batch(7)))
    if kind != "crd":
        assert torch.equal(other.terms["lckt"], made.terms["lckt"])
    assert not [name for name, t in other.named_buffers() if t.is_meta]


def test_parts_used_by_themselves_say_that_they_are_empty():
    with torch.device("meta"):
        bank, sampler = MemoryBank(N, D, seed=1), NegativeSampler(N, K, seed=1)
    bank.to_empty(device="cpu")
    sampler.to_empty(device="cpu")
    with pytest.raises(RuntimeError, match="MemoryBank: rows hold no values since to_empty"):
        bank.update_(torch.tensor([1]), torch.ones(1, D))
    with pytest.raises(RuntimeError, match="NegativeSampler: state hold no values since to_empty"):
        sampler.draw(torch.tensor([1]))
    bank.reset_parameters()
    sampler.reset_parameters()
    assert torch.equal(bank.rows, MemoryBank(N, D, seed=1).rows)
    index = torch.arange(5)
    assert torch.equal(sampler.draw(index), NegativeSampler(N, K, seed=1).draw(index))
    sampler.advance()
    sampler.reset_parameters()
    assert int(sampler.step) == 0


def through_a_file(module):
    torch.save(module, file := io.BytesIO())
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": through_a_file}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_complete_and_independent(kind, how):
    module = trained(kind)
    other = COPIES[how](module)
    assert same(snapshot(other), snapshot(module))
    for step in range(3, 5):
        assert torch.equal(other(*batch(step)), module(*batch(step)))
    assert same(snapshot(other), snapshot(module))
    before = snapshot(module)
    other(*batch())
    assert same(snapshot(module), before)


@pytest.mark.parametrize("module", [OTLoss(eps=0.1), KDLoss(2.0), MemoryBank(3, 2), NegativeSampler(9, 2)])
def test_other_modules_survive_save_and_load(module):
    other = through_a_file(module)
    assert repr(other) == repr(module) and same(snapshot(other), snapshot(module))


def value_of(module, *args):
    torch.set_num_threads(1)
    return module(*args).item()


def test_losses_go_to_another_process():
    modules = [trained(kind) for kind in KINDS]
    here = [value_of(copy.deepcopy(m), *batch(4)) for m in modules]  # the other process has our memory
    with context().Pool(1) as pool:
        assert pool.starmap(value_of, [(m, *batch(4)) for m in modules]) == here


def test_the_teachers_features_get_their_gradient_from_crd_and_none_from_wcord():
    for kind in ("crd", "nce_sn"):
        f_s, f_t, idx = batch()
        make(kind)(f_s, f_t.requires_grad_(), idx).backward()
        assert (f_t.grad is not None) == (kind == "crd")


def test_repdistiller_state_gives_equal_losses():
    """Weights are saved divided by their spectral norm, so a plain critic that loads them has an equal loss."""
    module = trained("nce_sn", lambda_lckt=0.0).eval()
    other = make("nce", lambda_lckt=0.0).eval()
    other.load_state_dict(module.repdistiller_state_dict())
    other.contrast.sampler.load_state_dict(module.contrast.sampler.state_dict())
    torch.testing.assert_close(other(*batch(3)), module(*batch(3)))
    with pytest.raises(ValueError, match="scores no bank"):
        make("dual").repdistiller_state_dict()


def test_matching_state_gives_no_warning():
    module = trained("crd")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make("crd").load_state_dict(module.state_dict(), strict=False)
        make("crd").load_state_dict(module.repdistiller_state_dict(), strict=False)
