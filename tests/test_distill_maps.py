"""Feature maps of different sizes: pooled where they show one image at one aspect ratio, else refused when built."""

from __future__ import annotations

import warnings

import pytest
import torch

from wcord_fast import distill
from wcord_fast.distill.at import attention
from wcord_fast.distill.maps import same_size

METHODS = ("at", "nst", "ft", "vid", "fitnet", "ab", "fsp")
POOLING = ("at", "nst", "ft", "vid")
ALIKE = [((8, 8), (8, 8)), ((8, 8), (4, 4)), ((4, 4), (8, 8)), ((5, 7), (3, 4)), ((3, 4), (5, 7)), ((8, 4), (4, 2))]
OTHERS = [((8, 4), (8, 8)), ((8, 8), (8, 4)), ((8, 8), (4, 8)), ((4, 8), (8, 4)), ((10, 10), (5, 1)), ((8, 8), (2, 6))]


def pair(student, teacher, channels=(6, 6)):
    """Three features each: a stem and a stage of these sizes, and the vector."""
    s, t = ((c, *size) for c, size in zip(channels, (student, teacher), strict=True))
    return distill.Pair((s, s, s, (5,)), (t, t, t, (5,)), 3, 3, 12, torch.arange(12) % 3, 0)


def outputs(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    feats = [torch.randn(4, *shape, generator=generator).requires_grad_(seed == 0) for shape in shapes]
    return distill.Outputs(feats, torch.randn(4, 3, generator=generator).requires_grad_(seed == 0))


def value_of(method, made):
    """The method's loss on features of the shapes that it was built for; no warning of a broadcast."""
    student, teacher = outputs(made.student_shapes, 0), outputs(made.teacher_shapes, 1)
    batch = distill.Batch(torch.zeros(4, 3, 8, 8), torch.arange(4) % 3, torch.arange(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stage = method.stage
        loss = stage.loss(student.feats, teacher.feats) if stage else None
        return method(student, teacher, batch).value if method.has_own_loss else loss


@pytest.mark.parametrize("sizes", ALIKE)
@pytest.mark.parametrize("name", POOLING)
def test_maps_of_one_aspect_ratio_are_compared(name, sizes):
    made = pair(*sizes, channels=(6, 4))
    value = value_of(distill.build(name, made, distill.options_for(name)), made)
    assert bool(value.isfinite()) and value.item() > 0


@pytest.mark.parametrize("sizes", OTHERS)
@pytest.mark.parametrize("name", POOLING)
def test_maps_of_another_aspect_ratio_are_refused_when_built(name, sizes):
    message = rf"{name}: .*one aspect ratio, but the student's is \[6, {sizes[0][0]}, {sizes[0][1]}\] and the teacher's"
    with pytest.raises(ValueError, match=rf"{message} \[6, {sizes[1][0]}, {sizes[1][1]}\]"):
        distill.build(name, pair(*sizes), distill.options_for(name))


@pytest.mark.parametrize("sizes", [*ALIKE, *OTHERS, ((8, 13), (4, 7)), ((4, 7), (8, 13)), ((8, 8), (4, 1))])
@pytest.mark.parametrize("name", METHODS)
def test_method_that_was_built_accepts_its_maps(name, sizes):
    """Never an error, or a broadcast, in the first step."""
    made = pair(*sizes)
    try:
        method = distill.build(name, made, distill.options_for(name))
    except ValueError as error:
        assert str(error).startswith(f"{name}: ")
        return
    assert bool(value_of(method, made).isfinite())


def test_fsp_refuses_maps_whose_sizes_cross():
    made = distill.Pair(((4, 8, 4), (4, 4, 8), (5,)), ((4, 8, 8), (4, 4, 4), (5,)), 3, 3, 12, None, 0)
    with pytest.raises(ValueError, match=r"fsp: .*\[4, 8, 4\] is followed by \[4, 4, 8\]"):
        distill.build("fsp", made, distill.options_for("fsp"))


def test_the_larger_map_is_averaged():
    s, t = torch.arange(32.0).reshape(1, 1, 8, 4), torch.ones(1, 2, 4, 2)
    small = s.reshape(1, 1, 4, 2, 2, 2).mean((3, 5))
    for a, b in (same_size(s, t), same_size(t, s)[::-1]):
        torch.testing.assert_close(a, small)
        assert b is t
    made = pair((8, 4), (4, 2))
    student, teacher = outputs(made.student_shapes, 0), outputs(made.teacher_shapes, 1)
    pooled = student.feats[1].detach().reshape(4, 6, 4, 2, 2, 2).mean((3, 5))
    per_stage = (attention(pooled) - attention(teacher.feats[1])).square().mean()
    method = distill.build("at", made, distill.options_for("at"))
    pooled = student.feats[2].detach().reshape(4, 6, 4, 2, 2, 2).mean((3, 5))
    per_stage += (attention(pooled) - attention(teacher.feats[2])).square().mean()
    torch.testing.assert_close(value_of(method, made).detach(), 1000 * per_stage)
    with pytest.raises(ValueError, match=r"smaller in height and width, got \[8, 4\] and \[4, 8\]"):
        same_size(torch.ones(1, 1, 8, 4), torch.ones(1, 1, 4, 8))
