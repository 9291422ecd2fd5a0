"""WKD-F against Gaussians' Wasserstein distance with matrix square roots, in float64."""

import pytest
import torch

from wcord_fast.distill import METHODS, Batch, Outputs, Pair, build, options_for
from wcord_fast.distill.wkd_f import VARIANCE, full_distance

B = 3
STUDENT, TEACHER = ((4, 8, 8), (4, 6, 5), (6,)), ((6, 8, 8), (3, 6, 5), (9,))


def root(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ values.clamp_min(1e-300).sqrt().diag() @ vectors.T


def gaussians(s, t, ratio, covariance):
    """Squared distance of the Gaussians of two maps [C, n], whose samples are the n positions."""
    gap = ratio * (s.mean(1) - t.mean(1)).pow(2).sum()
    cov_s, cov_t = torch.cov(s), torch.cov(t)
    if covariance == "full":
        half = root(cov_s)
        return gap + cov_s.trace() + cov_t.trace() - 2 * root(half @ cov_t @ half).trace()
    sd_s, sd_t = ((c.diagonal() + 1e-5).sqrt() for c in (cov_s, cov_t))
    return gap + (sd_s - sd_t).pow(2).sum()


def made(covariance, **options):
    torch.manual_seed(1)
    section = METHODS["wkd_f"].options(covariance=covariance, **options)
    pair = Pair(STUDENT, TEACHER, 5, 5, 40, None, 0)
    method = build("wkd_f", pair, options_for("wkd_f", section)).double()
    g = torch.Generator().manual_seed(2)
    feats = [
        [torch.randn(B, *shape, generator=g, dtype=torch.float64) for shape in shapes] for shapes in (STUDENT, TEACHER)
    ]
    s = [f.requires_grad_() for f in feats[0]]
    empty, logits = torch.zeros(B, dtype=torch.int64), torch.zeros(B, 5, dtype=torch.float64)
    return (
        method,
        s,
        feats[1],
        method(Outputs(s, logits), Outputs(feats[1], logits), Batch(torch.zeros(B, 1, 8, 8), empty, empty)),
    )


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_value_and_gradient_equal_the_papers_formula(covariance):
    method, s, t, loss = made(covariance, mean_ratio=2.0)
    maps = method.regressor(s[1])
    expected = sum(gaussians(maps[b].flatten(1), t[1][b].flatten(1), 2.0, covariance) for b in range(B)) / B
    torch.testing.assert_close(loss.terms["gaussian"], expected.detach(), rtol=1e-9, atol=0)
    torch.testing.assert_close(loss.value, 0.08 * expected, rtol=1e-9, atol=0)
    inputs = [s[1], *method.regressor.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(loss.value, inputs), torch.autograd.grad(0.08 * expected, inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_cells_have_gaussians_of_their_own(covariance):
    method, s, t, loss = made(covariance, grid=2)
    maps, expected = method.regressor(s[1]), 0
    for b in range(B):
        for rows in (slice(0, 3), slice(3, 6)):
            for columns in (slice(0, 3), slice(2, 5)):  # as adaptive pooling cuts 5 in two
                expected += gaussians(
                    maps[b][:, rows, columns].flatten(1), t[1][b][:, rows, columns].flatten(1), 4.0, covariance
                )
    torch.testing.assert_close(loss.terms["gaussian"], (expected / (4 * B)).detach(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("positions", [2, 5, 40])
def test_any_ratio_of_channels_to_positions(positions):
    """The covariance has no full rank where there are few positions."""
    g = torch.Generator().manual_seed(0)
    s, t = (torch.randn(2, 8, positions, generator=g, dtype=torch.float64) for _ in range(2))
    expected = torch.stack([gaussians(a, b, 1.0, "full") for a, b in zip(s, t, strict=True)])
    torch.testing.assert_close(full_distance(s, t, 1.0), expected, rtol=1e-6, atol=1e-9)


def test_equal_and_dead_maps_have_distance_zero_and_a_finite_gradient():
    x = torch.randn(2, 4, 9, dtype=torch.float64)
    x[:, 1] = 0
    x[1] = 0
    s = x.clone().requires_grad_()
    distance = full_distance(s, x, 4.0)
    torch.testing.assert_close(distance, torch.zeros_like(distance), rtol=0, atol=1e-12)
    distance.sum().backward()
    torch.testing.assert_close(s.grad, torch.zeros_like(s), rtol=0, atol=1e-12)
    assert VARIANCE > 0


def test_orthogonal_maps_have_gradients_of_mean_and_variance_only():
    """The nuclear norm is 0 and has many subgradients: the shortest one is taken."""
    x = torch.randn(2, 4, 9, dtype=torch.float64)
    s, t = x * torch.tensor([1.0, 1, 0, 0])[:, None], x * torch.tensor([0, 0, 1.0, 1])[:, None]
    (ours,) = torch.autograd.grad(full_distance(s.requires_grad_(), t, 4.0).sum(), s)
    spread = (s - s.mean(2, keepdim=True)).square().sum() / 8 + 4 * (s.mean(2) - t.mean(2)).square().sum()
    torch.testing.assert_close(ours, torch.autograd.grad(spread, s)[0])


REFUSED = [
    ({"layer": 9}, None, "layer: expected a feature that both networks have, 2 .. 3, got 9"),
    ({"layer": 1}, None, "layer: .*got 1"),
    ({"grid": 6}, None, r"wkd_f: a variance needs two positions in each of 6 x 6 cells"),
    ({"grid": 0}, None, "grid: .*got 0"),
    ({"covariance": "diag"}, None, "covariance: .*did you mean 'diagonal'"),
    ({"decay": 1.5}, None, "decay: .*1.5"),
    ({}, ((6, 8, 8), (9,), (9,)), r"wkd_f: compares feature maps .*is \[9\]"),
    ({}, ((6, 8, 8), (3, 7, 8), (9,)), r"wkd_f: .*cannot be brought"),
]


@pytest.mark.parametrize(("options", "teacher", "words"), REFUSED)
def test_wkd_f_refuses_unsupported_pairs_and_options(options, teacher, words):
    with pytest.raises(ValueError, match=words):
        section = METHODS["wkd_f"].options(**options)
        build("wkd_f", Pair(STUDENT, teacher or TEACHER, 5, 5, 40, None, 0), options_for("wkd_f", section))
