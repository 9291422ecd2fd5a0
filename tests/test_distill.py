"""Methods by name: their formulas, weights, options and refused inputs."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from wcord_fast import KDLoss, distill, models
from wcord_fast.distill import Batch, Outputs

N, B, CLASSES = 40, 6, 5
# fsp needs equal channels, which this pair has not; after its stage ab is cross entropy: both in test_distill_stage.py.
ALL = [*(n for n in distill.names() if n not in ("fsp", "ab")), "ce+kd", "crd+kd", "wcord+kd", "gckt+kd", "lckt+kd"]
SMALL = {"crd": {"num_negatives": 7, "feat_dim": 16}, "wcord": {"num_negatives": 7, "feat_dim": 16}}


@pytest.fixture
def pair():
    torch.manual_seed(0)
    student = models.create("resnet8", CLASSES, in_channels=1)
    teacher = models.create("wrn_10_2", CLASSES, in_channels=1).eval()
    return student, teacher


def make(name, pair, teacher=True, **options):
    student, frozen = pair
    base, _ = distill.parse(name)
    section = distill.METHODS[base].section
    labels = torch.arange(N) % CLASSES
    method = distill.create(
        name,
        student=student,
        teacher=frozen if teacher else None,
        example=torch.randn(2, 1, 8, 8),
        num_data=N,
        labels=labels,
        seed=3,
        **SMALL.get(section, {}) | options,
    )
    if section == "wkd" and method.fills_banks:
        fill(method, pair)
    return method


def fill(method, pair):
    """Every training image once, in eval mode, as the trainer does for a method with `fills_banks`."""
    images = torch.randn(N, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        for index in torch.arange(N).split(16):
            student, teacher = (Outputs(*net.eval()(images[index], return_features=True)) for net in pair)
            method.fill_banks(student, teacher, index)
    method.banks_filled()
    pair[0].train()


def outputs(pair):
    images, index = torch.randn(B, 1, 8, 8), torch.randperm(N)[:B]
    batch = Batch(images, index % CLASSES, index)
    with torch.no_grad():
        teacher = Outputs(*pair[1](images, return_features=True))
    return Outputs(*pair[0](images, return_features=True)), teacher, batch


def numpy_kd(s, t, temperature):
    def log_softmax(x):
        x = x / temperature
        return x - x.max(1, keepdims=True) - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True))

    log_s, log_t = log_softmax(s), log_softmax(t)
    return temperature**2 * (np.exp(log_t) * (log_t - log_s)).sum() / len(s)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 0.5])
def test_kd_loss_is_the_formula(temperature):
    s = torch.randn(7, 9, dtype=torch.float64, requires_grad=True)
    t = torch.randn(7, 9, dtype=torch.float64, requires_grad=True)
    loss = KDLoss(temperature)(s, t)
    assert loss.item() == pytest.approx(numpy_kd(s.detach().numpy(), t.detach().numpy(), temperature), rel=1e-12)
    loss.backward()
    gap = (s.detach() / temperature).softmax(1) - (t.detach() / temperature).softmax(1)
    torch.testing.assert_close(s.grad, gap * temperature / len(s))
    assert t.grad is None


def test_kd_loss_is_zero_for_equal_logits_and_fp32_under_autocast():
    s = torch.randn(4, 6)
    assert KDLoss()(s, s + 3.0).item() == pytest.approx(0.0, abs=1e-6)
    t = torch.randn(4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = KDLoss()(s.bfloat16(), t.bfloat16())
    assert half.dtype == torch.float32
    exact = KDLoss()(s.bfloat16().double(), t.bfloat16().double())
    assert half.item() == pytest.approx(exact.item(), rel=1e-5)


def test_kd_loss_refuses_bad_arguments():
    with pytest.raises(ValueError, match=r"temperature: .* got 0"):
        KDLoss(0.0)
    with pytest.raises(ValueError, match=r"teacher_logits: .*\[2, 3\], got \[2, 4\].* same classes"):
        KDLoss()(torch.randn(2, 3), torch.randn(2, 4))
    with pytest.raises(TypeError, match="student_logits"):
        KDLoss()(torch.zeros(2, 3, dtype=torch.int64), torch.randn(2, 3))


def test_published_weights_are_the_defaults():
    weights = {name: distill.options_for(name) for name in ALL}
    assert (weights["kd"].ce_weight, weights["kd"].kd_weight) == (0.1, 0.9)
    assert (weights["crd"].ce_weight, weights["crd"].kd_weight, weights["crd"].weight) == (1, 0, 0.8)
    assert (weights["crd+kd"].ce_weight, weights["crd+kd"].kd_weight, weights["crd+kd"].weight) == (1, 1, 0.8)
    assert (weights["wcord"].lambda_gckt, weights["wcord"].lambda_lckt) == (0.8, 0.05)
    assert (weights["gckt"].lambda_gckt, weights["gckt"].lambda_lckt) == (0.8, 0)
    assert (weights["lckt"].lambda_gckt, weights["lckt"].lambda_lckt) == (0, 0.05)
    assert weights["wcord+kd"].kd_weight == 1 and weights["wcord"].kd_temperature == 4


@pytest.mark.parametrize("name", ALL)
def test_value_is_the_weighted_sum_of_the_terms(name, pair):
    method = make(name, pair)
    student, teacher, batch = outputs(pair)
    value, terms = method(student, teacher, batch)
    options = method.options
    weights = {"kd": options.kd_weight, "gckt": -getattr(options, "lambda_gckt", 0.0)}
    weights |= {"lckt": getattr(options, "lambda_lckt", 0.0)}
    weights |= {"target": getattr(options, "target_weight", 0.0)}
    weights |= {"tckd": getattr(options, "alpha", 0.0), "nckd": getattr(options, "beta", 0.0)}
    own = getattr(options, "weight", 0.0)  # of the one term of most methods
    expected = sum(weights.get(term, own) * x.item() for term, x in terms.items())
    assert value.item() == pytest.approx(expected, rel=1e-5, abs=1e-7)
    base, plus = distill.parse(name)
    assert ("kd" in terms) == (plus or base == "kd")
    assert bool(set(terms) - {"kd"}) == method.has_own_loss


@pytest.mark.parametrize("name", [n for n in ALL if n != "ce"])
def test_gradient_reaches_the_student_and_not_the_teacher(name, pair):
    method = make(name, pair)
    student, teacher, batch = outputs(pair)
    method(student, teacher, batch).value.backward()
    assert sum(p.grad.abs().sum() for p in pair[0].parameters() if p.grad is not None) > 0
    assert all(p.grad is None for p in pair[1].parameters())


@pytest.mark.parametrize("name", [n for n in ALL if n != "ce"])
def test_loss_equals_the_sum_of_its_terms_and_reading_them_changes_nothing(name, pair):
    method = make(name, pair)
    student, teacher, batch = outputs(pair)
    method(student, teacher, batch)  # so that log Z is set and the banks have moved
    before = {k: v.clone() for k, v in method.state_dict().items()}
    parts = method.parts(student, teacher, batch)
    after = method.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    assert method.training
    method.eval()
    value = method(student, teacher, batch).value
    assert sum(p.item() for p in parts.values()) == pytest.approx(value.item(), rel=1e-5, abs=1e-7)


def test_plain_ce_has_no_distillation_loss_and_needs_no_teacher(pair):
    method = make("ce", pair, teacher=False)
    student, _, batch = outputs(pair)
    value, terms = method(student, None, batch)
    assert not method.needs_teacher and value.item() == 0 and not value.requires_grad and terms == {}
    assert method.parts(student, None, batch) == {}


@pytest.mark.parametrize("name", [n for n in ALL if n != "ce"])
def test_a_forgotten_teacher_is_refused(name, pair):
    method = make(name, pair)
    student, teacher, batch = outputs(pair)
    method(student, teacher, batch)
    before = copy.deepcopy(method.state_dict())
    for call in (method, method.parts):
        with pytest.raises(ValueError, match=r"^teacher: expected the teacher's outputs, which \w+ needs, got None"):
            call(student, None, batch)
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())


def test_after_its_stage_ab_needs_a_teacher_for_kd_alone():
    net = models.create("resnet8", CLASSES, in_channels=1)
    student, _, batch = outputs((net, net))
    assert make("ab", (net, net))(student, None, batch).value.item() == 0
    with pytest.raises(ValueError, match=r"teacher: .*AB needs, got None"):
        make("ab+kd", (net, net))(student, None, batch)


@pytest.mark.parametrize("name", [n for n in ALL if n != "ce"])
def test_rows_of_another_batch_are_refused(name, pair):
    method = make(name, pair)
    student, teacher, batch = outputs(pair)
    method(student, teacher, batch)  # so that log Z is set
    one = Outputs([f[:1] for f in teacher.feats], teacher.logits[:1])
    before = copy.deepcopy(method.state_dict())
    given = {
        r"teacher.logits: .* \[6, 5\], got \[1, 5\]": (student, one, batch),
        r"batch.labels: .* \[6, 5\], got \[1\]": (student, teacher, batch._replace(labels=batch.labels[:1])),
        r"batch.index: .* \[6, 5\], got \[\]": (student, teacher, batch._replace(index=batch.index[0])),
    }
    if method.features_used != 0:
        given[r"teacher.feats\[\d\]: .*, got \[1, "] = (student, Outputs(one.feats, teacher.logits), batch)
        given["student.feats: expected .* features?, got 0"] = (student._replace(feats=[]), teacher, batch)
    if method.features_used is None:
        given["teacher.feats: expected 5 features, got 4"] = (student, teacher._replace(feats=teacher.feats[1:]), batch)
    for words, arguments in given.items():
        for call in (method, method.parts):
            with pytest.raises(ValueError, match=f"^{words}"):
                call(*arguments)
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())


@pytest.mark.parametrize("name", ["pkt", "rkd", "cc", "crd", "wcord"])
def test_the_penultimate_features_alone_are_enough(name, pair):
    method = make(name, pair).eval()
    student, teacher, batch = outputs(pair)
    last = [out._replace(feats=out.feats[-1:]) for out in (student, teacher)]
    assert torch.equal(method(*last, batch).value, method(student, teacher, batch).value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name, options", [*((n, {}) for n in ALL if n != "ce"), ("wkd_f", {"covariance": "full"})])
def test_the_loss_is_computed_in_fp32_under_autocast(name, options, dtype, pair):
    """Only what a method trains is in half precision: the others' values are those of fp32 for the rounded outputs."""
    method = make(name, pair, **options)
    plain = copy.deepcopy(method)
    *networks, batch = outputs(pair)
    half = [Outputs([f.detach().to(dtype) for f in out.feats], out.logits.detach().to(dtype)) for out in networks]
    wide = [Outputs([f.float() for f in out.feats], out.logits.float()) for out in half]
    with torch.autocast("cpu", dtype=dtype):
        value, terms = method(*half, batch)
    expected, _ = plain(*wide, batch)
    assert value.dtype == torch.float32 and {term.dtype for term in terms.values()} == {torch.float32}
    if distill.parse(name)[0] in ("fitnet", "cc", "vid", "ft", "wkd_f"):
        torch.testing.assert_close(value, expected, rtol=2e-3, atol=0)
    else:
        assert torch.equal(value, expected)


def test_k_is_capped_at_a_third_of_the_training_set(pair):
    method = make("crd", pair, num_negatives=None)
    assert method.crd.contrast.sampler.k == N // 3
    assert distill.options_for("crd").num_negatives is None


@pytest.mark.parametrize(
    "name, options, error, words",
    [
        ("wrod", {}, ValueError, "got 'wrod'; did you mean 'wcord'"),
        ("kd+kd", {}, ValueError, "KD twice"),
        (3, {}, TypeError, "expected a str"),
        ("crd", {"wieght": 1.0}, TypeError, "no option 'wieght'; did you mean 'weight'"),
        ("crd", {"weight": -1.0}, ValueError, "weight: .*got -1"),
        ("wcord", {"critic": "duel"}, ValueError, "critic: .*did you mean 'dual'"),
        (
            "wcord",
            {"lambda_gckt": 0.0, "lambda_lckt": 0.0},
            ValueError,
            "lambda_gckt: expected a weight above 0",
        ),
        ("wcord", {"lckt_features": "raw"}, ValueError, "student has 64 and the teacher 128"),
    ],
)
def test_bad_method_names_and_options_are_named(name, options, error, words, pair):
    with pytest.raises(error, match=words):
        if name == 3:
            distill.create(3, student=pair[0], example=torch.randn(2, 1, 8, 8), num_data=N)
        make(name, pair, **options)


@pytest.mark.parametrize("name", ["kd", "vid", "crd"])
@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"seed": "x"}, TypeError, "seed: expected an int, got 'x'"),
        ({"seed": 1.5}, TypeError, "seed: expected an int, got 1.5"),
        ({"seed": 2**64}, ValueError, "seed: expected a 64-bit integer"),
        ({"student": None}, TypeError, "student: expected a torch.nn.Module, got NoneType"),
        ({"teacher": "t"}, TypeError, "teacher: expected a torch.nn.Module, got str"),
        (
            {"student": nn.Linear(3, 3)},
            TypeError,
            "student: expected a call that takes return_features=True, which that of Linear does not; models.Tapped",
        ),
    ],
)
def test_bad_networks_and_seeds_are_named(name, change, error, words, pair):
    given = {"student": pair[0], "teacher": pair[1], "example": torch.randn(2, 1, 8, 8), "num_data": N} | change
    with pytest.raises(error, match=f"^{words}"):
        distill.create(name, **given)


def test_unsupported_pairs_are_refused(pair):
    for name in ("kd", "crd", "wcord"):
        with pytest.raises(ValueError, match="got None"):
            make(name, pair, teacher=False)
    other = models.create("resnet8", CLASSES + 1, in_channels=1)
    with pytest.raises(ValueError, match="student has 5 classes and the teacher 6"):
        make("crd+kd", (pair[0], other))
    assert make("crd", (pair[0], other)).needs_teacher  # features need no common label set


def test_features_without_vector_shape_are_refused(pair):
    class Maps(nn.Module):
        def forward(self, x, return_features=False):
            return ([x], x.mean((2, 3)))

    with pytest.raises(ValueError, match=r"student: expected its last feature to be a vector .*got \[1, 8, 8\]"):
        make("crd", (Maps(), pair[1]))


def test_building_a_method_changes_no_modules_mode(pair):
    student, _ = pair
    student.train()
    frozen = student.layer1[0].bn1.eval()
    make("wcord", pair)
    assert not frozen.training and student.training and student.layer1[0].conv1.training


def test_parts_change_no_modules_mode(pair):
    method = make("wcord+kd", pair).train()
    inside = next(m for m in method.wcord.modules() if m is not method.wcord)
    inside.eval()
    method.parts(*outputs(pair))
    assert not inside.training and method.training and method.wcord.training


@pytest.mark.parametrize("name", ["kd", "crd"])
def test_labels_of_any_integer_sequence(pair, name):
    student, teacher = pair
    wanted = [i % CLASSES for i in range(N)]

    def build(labels):
        options = SMALL.get(name, {})
        example = torch.randn(2, 1, 8, 8)
        return distill.create(
            name, student=student, teacher=teacher, example=example, num_data=N, labels=labels, **options
        )

    expected = build(torch.tensor(wanted)).state_dict()
    for labels in (wanted, np.array(wanted), np.array(wanted, np.uint8), tuple(wanted), torch.tensor(wanted).int()):
        for key, value in build(labels).state_dict().items():
            assert value.shape == expected[key].shape and value.dtype == expected[key].dtype
    with pytest.raises(ValueError, match=r"labels: expected one per training image, \[40\], got \[39\]"):
        build(wanted[1:])
    with pytest.raises(ValueError, match=r"labels: expected one per training image, \[40\], got \[40, 1\]"):
        build(np.array(wanted)[:, None])
    with pytest.raises(TypeError, match="labels: expected integers, got float64"):
        build(np.array(wanted, float))
    with pytest.raises(TypeError, match="labels: expected 40 integers, got list"):
        build(["a"] * N)
