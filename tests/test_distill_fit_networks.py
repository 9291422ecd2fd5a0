"""`distill.fit` with networks that are partly frozen, share modules, or cannot be trained; and across processes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from tests.rank_pool import Pool
from tests.test_distill_fit import fitted, network, tensors
from tests.train_tiny import CLASSES
from wcord_fast import data, distill
from wcord_fast.distributed import ranks


def test_weights_that_the_frozen_teacher_holds_are_refused():
    teacher = network(8, 1)
    student = nn.Sequential(*teacher[:6], nn.Flatten(), nn.Linear(8, CLASSES))
    words = "student: expected weights of its own, but it shares 0.weight, 0.bias, 1.weight and 6 more with the teacher"
    with pytest.raises(ValueError, match=words):
        fitted("kd", student=student, teacher=teacher)
    with pytest.raises(ValueError, match=r"it shares .* with the teacher"):
        fitted("kd", student=teacher, teacher=teacher)
    assert teacher.training and all(p.requires_grad for p in teacher.parameters())


def test_the_teachers_frozen_classifier_may_be_the_students():
    teacher = network(8, 1)
    head = teacher[8].requires_grad_(False)
    before = head.weight.clone()
    student = nn.Sequential(*network(8, 2)[:8], head)
    fitted("kd", student=student, teacher=teacher)
    assert torch.equal(head.weight, before)


def test_constants_may_be_shared():
    class Normalise(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.tensor(0.1))

        def forward(self, x):
            return x - self.mean

    shared = Normalise()
    fitted("kd", student=nn.Sequential(shared, network(4)), teacher=nn.Sequential(shared, network(8, 1)))


def test_a_lazy_layer_is_made_before_the_networks_are_compared():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.LazyLinear(CLASSES)

        def forward(self, x, return_features=False):
            logits = self.head(x.flatten(1))
            return ([x, x.flatten(1)], logits) if return_features else logits

    fitted("kd", student=Lazy(), teacher=Lazy())


def test_reading_a_test_batch_early_changes_no_draw():
    def histories(batches):
        test = DataLoader(tensors("test"), batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(3))
        first = fitted("crd", test_loader=test).history
        second = fitted("crd", test_loader=batches(test)).history
        drop = ("seconds", "images_per_s", "loss_share")
        return [[{k: v for k, v in row.items() if k not in drop} for row in rows] for rows in (first, second)]

    class Unread:
        """Batches of a loader that is not read before the first epoch."""

        def __init__(self, loader):
            self.loader = loader

        def __iter__(self):
            self.loader.generator.manual_seed(3) if not hasattr(self, "begun") else None
            self.begun = True
            return iter(self.loader)

    first, second = histories(Unread)
    assert first == second


@pytest.mark.parametrize("method", ["wcord", "crd", "at", "kd", "rkd", "vid"])
def test_a_student_trains_behind_a_frozen_trunk(method):
    student = network(4)
    student[:7].requires_grad_(False)
    kept, head = student[0].weight.clone(), student[8].weight.clone()
    fitted(method, student=student, log_grad_norms=True)
    assert torch.equal(student[0].weight, kept) and not torch.equal(student[8].weight, head)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_student_that_cannot_train_is_named():
    with pytest.raises(ValueError, match="student: expected parameters that train, but all 8 have requires_grad=False"):
        fitted("kd", student=network(4).requires_grad_(False))
    with torch.no_grad(), pytest.raises(RuntimeError, match="fit: gradients are switched off"):
        fitted("kd")
    scripted = torch.jit.script(network(8, 1))
    with pytest.raises(TypeError, match="teacher: network: expected a module in Python, got TorchScript's"):
        fitted("kd", teacher=scripted)


def test_every_module_gets_its_own_mode_back():
    student = network(4)
    student[1].eval()
    fitted("kd", student=student)
    assert student.training and not student[1].training
    student = network(4).eval()
    student[0].train()
    fitted("kd", student=student)
    assert not student.training and student[0].training


@pytest.mark.parametrize(
    "batches, error, words",
    [
        ([], ValueError, "test_loader: expected at least one batch, got none"),
        ([(torch.zeros(4, 1, 8, 8), torch.full((4,), 9))], ValueError, r"test_loader: expected labels in \[0, 4\)"),
        ([{"a": 1}], TypeError, "test_loader: expected tensors"),
        ([(torch.zeros(4, 3, 8, 8), torch.zeros(4).long())], RuntimeError, "cannot take the test_loader's images"),
    ],
)
def test_bad_test_batches_are_found_before_an_epoch_is_trained(batches, error, words):
    student = network(4)
    before = student[0].weight.clone()
    with pytest.raises(error, match=words):
        fitted("ce", student=student, test_loader=batches)
    assert torch.equal(student[0].weight, before)


def test_a_method_on_features_before_the_activation_refuses_other_networks():
    with pytest.raises(
        ValueError, match=r"its stage needs features before the activation.* for the student and the teacher"
    ):
        fitted("ab")


def differing(change):
    rank = ranks().rank
    options = {"lr": 0.01, "batches": 1, "seed": 0, "method": "kd", "test": None, "width": 8} | (change if rank else {})
    rows = data.Indexed(tensors())
    batches = DataLoader(rows, batch_size=4 * options["batches"], sampler=DistributedSampler(rows, shuffle=False))
    test = options["test"] and [(torch.zeros(2, 1, 8, 8), torch.zeros(2).long())]
    teacher = network(options["width"], 1 + options["seed"])
    try:
        distill.fit(
            network(4), teacher, batches, options["method"], lr=options["lr"], epochs=1, quiet=True, test_loader=test
        )
    except ValueError as error:
        return str(error)
    return "trained"


def idle(_):
    """A student of which a layer is never used."""

    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.idle = network(4), nn.Linear(2, 2)

        def forward(self, x):
            return self.body(x)

    rows = data.Indexed(tensors())
    batches = DataLoader(rows, batch_size=4, sampler=DistributedSampler(rows, shuffle=False))
    try:
        distill.fit(Idle(), network(8, 1), batches, "kd", epochs=1, quiet=True, student_features="body.3")
    except ValueError as error:
        return str(error)
    return "trained"


@pytest.fixture(scope="module")
def pool():
    pool = Pool(2)
    yield pool
    pool.close()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"lr": 0.02}, "rank 1 has recipe lr 0.02 where rank 0 has 0.01"),
        ({"seed": 1}, "rank 1 has teacher weights"),
        ({"method": "crd"}, "rank 1 has method name 'crd' where rank 0 has 'kd'"),
        ({"test": True}, "rank 1 has test_loader True where rank 0 has False"),
        ({"batches": 2}, "rank 1 has"),
    ],
)
def test_arguments_that_differ_between_processes_are_named(pool, change, words):
    messages = pool.run(differing, change)
    assert all("fit: expected equal arguments on all ranks, but" in m and words in m for m in messages), messages
    assert pool.run(differing, {}) == ["trained"] * 2


def test_parameters_without_a_gradient_are_named_on_several_processes(pool):
    for message in pool.run(idle, None):
        assert "network: no gradient arrived at idle.weight, idle.bias; on several" in message


def test_one_process_trains_a_student_with_an_unused_layer():
    student = network(4)
    student[0].register_module("idle", nn.Linear(2, 2))
    before = student[0].weight.clone()
    fitted("kd", student=student)
    assert not torch.equal(student[0].weight, before)
