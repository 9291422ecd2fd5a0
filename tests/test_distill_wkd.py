"""WKD-L and SinKD against their formulas, written out in float64 from the papers."""

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax

from wcord_fast import distill
from wcord_fast.distill import Batch, Outputs, Pair, class_cost
from wcord_fast.distill.wkd import class_transport, target_term

from . import ot_oracles
from .test_distill import fill, make, outputs, pair  # noqa: F401

B, CLASSES = 5, 7


def problem(seed=0):
    rng = np.random.default_rng(seed)
    logits = (torch.from_numpy(rng.normal(size=(B, CLASSES)) * 3) for _ in range(2))
    distance = rng.uniform(0, 1, (CLASSES, CLASSES))
    cost = torch.from_numpy((distance + distance.T) / 2).fill_diagonal_(0)
    return *logits, torch.from_numpy(rng.integers(0, CLASSES, B)), cost


def entropic_minimum(c, p, q, eps, iters=4000):
    """<P, C> + eps sum P log P + 2 eps H(p) of the optimal plan, from a converged scaling iteration."""
    plan = ot_oracles.sinkhorn(c, p, q, eps, iters)
    return (plan * c).sum() + eps * (plan * np.log(plan)).sum() - 2 * eps * (p * np.log(p)).sum()


@pytest.mark.parametrize("temperature", [1.0, 8.0])
def test_transport_equals_the_exact_minimum_over_non_target_classes(temperature):
    s, t, labels, cost = problem()
    expected = 0.0
    for zs, zt, y in zip(s.numpy(), t.numpy(), labels.tolist(), strict=True):
        p, q = (softmax(np.delete(z, y) / temperature) for z in (zt, zs))
        c = np.delete(np.delete(cost.numpy(), y, 0), y, 1)
        expected += entropic_minimum(c, p, q, 0.1) / B
    actual = class_transport(s, t, labels, cost, temperature, 0.1, 4000)
    assert float(actual) == pytest.approx(expected, rel=1e-9)


def test_transport_gradient_equals_that_of_the_minimum():
    s, t, labels, cost = problem(1)
    s.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: class_transport(z, t, labels, cost, 4.0, 0.2, 2000), s, atol=1e-7)


def test_target_term_equals_the_papers_formula():
    s, t, labels, _ = problem(2)
    rows = zip(s.numpy(), t.numpy(), labels.tolist(), strict=True)
    expected = -np.mean([softmax(zt)[y] * np.log(softmax(zs)[y]) for zs, zt, y in rows])
    assert float(target_term(s, t, labels)) == pytest.approx(expected, rel=1e-12)


def test_extreme_logits_have_a_finite_gradient():
    s = torch.full((2, 4), -200.0).index_fill_(1, torch.tensor([1]), 200.0).requires_grad_()
    t = s.detach().flip(1)
    labels, cost = torch.tensor([1, 3]), 1 - torch.eye(4)
    (600 * class_transport(s, t, labels, cost, 1.0, 0.05, 10) + target_term(s, t, labels)).backward()
    assert s.grad.isfinite().all()


def test_value_of_equal_distributions_is_not_negative():
    s, _, labels, cost = problem(4)
    assert 0 <= class_transport(s, s, labels, cost, 1.0, 0.05, 50) < 0.2


def test_cka_equals_its_definition():
    """Through the centred Gram matrices of the images, H K H."""
    x = np.random.default_rng(0).normal(size=(4, 6, 3))
    h = np.eye(6) - 1 / 6
    grams = [h @ f @ f.T @ h for f in x]
    similarity = [[(a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()) for b in grams] for a in grams]
    actual = class_cost.cka_distance(torch.from_numpy(x))
    torch.testing.assert_close(actual, torch.from_numpy(1 - np.array(similarity)), rtol=0, atol=1e-12)


def test_cka_in_chunks_equals_cka_and_constant_features_have_similarity_zero(monkeypatch):
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    x[2] = 1.0
    whole = class_cost.cka_distance(x)
    monkeypatch.setattr(class_cost, "CHUNK", 1)
    torch.testing.assert_close(class_cost.cka_distance(x), whole)
    assert whole[2].tolist() == [1, 1, 0, 1]


def test_cost_is_made_of_the_first_images_of_each_class():
    labels = torch.tensor([1, 0, -1, 1, 1, 0, 2, 2, 1])
    slots, size = class_cost.slots_of(labels, 3, None)
    assert size == 2 and slots.tolist() == [2, 0, -1, 3, -1, 1, 4, 5, -1]
    assert class_cost.slots_of(labels[:6], 2, 5)[1] == 2
    few = class_cost.slots_of(torch.tensor([0, 1, 1, 0]), 3, None)
    assert few[0].tolist() == [0, 2, 3, 1] and few[1] == 2  # class 2 has none
    assert class_cost.slots_of(torch.tensor([0, 1, 1]), 3, None)[0].tolist() == [-1, 2, 3]
    with pytest.raises(ValueError, match="two training images of a class, but none has"):
        class_cost.slots_of(torch.arange(3), 3, None)
    with pytest.raises(ValueError, match=r"in \[0, 2\), got 2"):
        class_cost.slots_of(labels, 2, None)


def test_method_computes_the_cost_from_teacher_features(pair):  # noqa: F811
    method = make("wkd", pair, sharpen=2.0)
    images = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        features = pair[1](images, return_features=True)[0][-1]
    classes = torch.stack([features[c::5] for c in range(5)])  # image i has class i % 5
    torch.testing.assert_close(method.cost, 1 - torch.exp(-2.0 * class_cost.cka_distance(classes)))


def test_unset_cost_raises_and_a_state_dict_restores_it(pair):  # noqa: F811
    student, teacher, batch = outputs(pair)
    known = make("wkd", pair)
    new = distill.create(
        "wkd",
        student=pair[0],
        teacher=pair[1],
        example=batch.images[:2],
        num_data=40,
        labels=torch.arange(40) % 5,
    )
    with pytest.raises(RuntimeError, match=r"wkd: the cost between classes is not known yet"):
        new(student, teacher, batch)
    with pytest.raises(RuntimeError, match="before fill_banks"):
        new.banks_filled()
    new.load_state_dict(known.state_dict())
    assert torch.equal(new(student, teacher, batch).value, known(student, teacher, batch).value)


@pytest.mark.parametrize("suffix", ["npy", "pt"])
def test_a_cost_is_read_from_a_file(pair, tmp_path, suffix):  # noqa: F811
    distance = torch.rand(5, 5)
    file = tmp_path / f"distance.{suffix}"
    torch.save(distance, file) if suffix == "pt" else np.save(file, distance.double().numpy())
    method = make("wkd", pair, cost=str(file), sharpen=0.0)
    assert torch.equal(method.cost, distance) and not method.fills_banks
    assert method(*outputs(pair)).value.isfinite()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.rand(4, 5), r"cost: expected a matrix \[5, 5\] .*got \[4, 5\]"),
        (-torch.rand(5, 5), "cost: expected finite numbers of at least 0"),
        (torch.full((5, 5), torch.nan), "cost: expected finite numbers"),
        ({"a": 1}, r"cost: expected a matrix .*got dict"),
        (None, "cost: .*cannot be read"),
    ],
)
def test_a_bad_file_is_refused_by_name(pair, tmp_path, content, words):  # noqa: F811
    file = tmp_path / "cost.pt"
    if content is not None:
        torch.save(content, file)
    with pytest.raises(ValueError, match=words):
        make("wkd", pair, cost=str(file))


def test_unsupported_pairs_and_labels_are_refused():
    shapes = ((4, 2, 2), (4,))
    build = distill.build
    options = distill.options_for("wkd")
    sinkd = distill.options_for("sinkd")
    with pytest.raises(ValueError, match=r"wkd: .*needs the labels"):
        build("wkd", Pair(shapes, shapes, 5, 5, 40, None, 0), options)
    with pytest.raises(ValueError, match=r"wkd: needs one label set, .* 5 classes and the teacher 6"):
        build("wkd", Pair(shapes, shapes, 5, 6, 40, torch.arange(40) % 5, 0), options)
    with pytest.raises(ValueError, match=r"wkd: .*there are 2"):
        build("wkd", Pair(shapes, shapes, 2, 2, 40, torch.arange(40) % 2, 0), options)
    with pytest.raises(ValueError, match=r"wkd: .*none has; give it by file"):
        build("wkd", Pair(shapes, shapes, 5, 5, 5, torch.arange(5), 0), options)
    with pytest.raises(ValueError, match="sinkd: needs one label set"):
        build("sinkd", Pair(shapes, shapes, 5, 6, 40, None, 0), sinkd)


@pytest.mark.parametrize("name", ["wkd", "wkd_f"])
def test_the_weight_falls_along_half_a_cosine(pair, name):  # noqa: F811
    method = make(name, pair, decay=0.5)
    given = outputs(pair)
    parts = []
    for done in (0, 50, 75, 100):
        method.at_step(done, per_epoch=10, epochs=10)
        parts.append(list(method.parts(*given).values())[-1].item())
    full = parts[0]
    assert parts == pytest.approx([full, full, 0.5 * full, 0], abs=1e-7 * abs(full))
    assert "decay" not in " ".join(method.state_dict())


def test_sinkd_equals_the_papers_plan_between_the_batchs_softmaxes():
    rng = np.random.default_rng(3)
    zs, zt = rng.normal(size=(B, CLASSES)), rng.normal(size=(B, CLASSES))
    s, t = (np.stack([softmax(z / 2) for z in rows]) for rows in (zs, zt))
    d = np.abs(s[:, None] - t[None]).sum(2)
    k = np.exp(-d / 0.1)
    for _ in range(20):  # rows, then columns, have sum 1: B times the plan of mass 1
        k = k / k.sum(1, keepdims=True)
        k = k / k.sum(0, keepdims=True)
    expected = (k * d).sum() / B
    shapes = ((4, 2, 2), (4,))
    method = distill.build("sinkd", Pair(shapes, shapes, CLASSES, CLASSES, 40, None, 0), distill.options_for("sinkd"))
    student = torch.from_numpy(zs).requires_grad_()
    empty = torch.zeros(B, dtype=torch.int64)
    value, terms = method(
        Outputs([], student), Outputs([], torch.from_numpy(zt)), Batch(torch.zeros(B, 1, 2, 2), empty, empty)
    )
    assert terms["sinkhorn"].item() == pytest.approx(expected, rel=1e-10)
    value.backward()
    held = torch.from_numpy(k / B)
    again = torch.from_numpy(zs).requires_grad_()
    cost = ((again / 2).softmax(1)[:, None] - torch.from_numpy(t)).abs().sum(2)
    torch.testing.assert_close(student.grad, 0.8 * torch.autograd.grad((held * cost).sum(), again)[0])


def test_filling_banks_does_not_change_the_networks(pair):  # noqa: F811
    method = make("wkd", pair)
    before = method.cost.clone()
    fill(method, pair)
    assert torch.equal(before, method.cost)
