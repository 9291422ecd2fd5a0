"""The bank ops in plain PyTorch, on any device and dtype: the oracle.

S directions (student anchors on the teacher's bank, and the reverse) are scored with one set of draws. Everything is
accumulated in fp32, or fp64 when the anchors or the bank are fp64. The formulas are derived in README.md beside this
file; memory is bounded by chunks of anchors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .. import checks
from ..sampling import draws
from ..sampling.reference import philox, pool_row, pool_size
from ..sampling.spec import ALL, DrawSpec
from ..tensors import accumulation_dtype
from .part import Part, whole

EPS = 1e-7  # CRD's own constant
MIN_NORM = 1e-12  # the divisor of a bank row is its norm, but at least this
CHUNK_BYTES = 64 << 20

# A block of scored negatives: anchors [lo, hi), weights [b, n] or None (all 1), and for each direction the scores
# [b, n] and a function from coefficients [b, n] to their weighted sum of rows [b, D].
Block = tuple[int, int, Tensor | None, list]


def counts(index: Tensor, num_data: int, spec: DrawSpec, dtype: torch.dtype) -> Tensor:
    """K_b, the charge of anchor b: [B]. The NCE constant is c_b = K_b / N."""
    if spec.k == ALL:
        return pool_size(index, num_data, spec).to(dtype)
    return torch.full(index.shape, float(spec.k), dtype=dtype, device=index.device)


# Banks may be one `part` of a longer bank: results are then this part's partials (see part.py).


def bank_nce(
    anchors, banks, index, log_z, spec, temperature, needs_grad, plan, draw_backend, part: Part | None = None
) -> tuple[Tensor, Tensor]:
    """CRD's NCE loss per anchor and its gradient: ([S, B], [S, B, D] or empty)."""
    x, acc = _prepare(anchors, banks)
    part = part or whole(banks)
    num_data = part.num_data
    k_b = counts(index, num_data, spec, acc)  # [B]
    log_c = torch.log(k_b / num_data + EPS)
    offset = log_c + log_z.to(acc)[:, None]  # [S, B]; u = s / tau - offset
    positive, held = _positives(banks, index, part, acc)
    u0 = (x * positive).sum(-1) / temperature - offset
    loss = torch.where(held, softplus(-u0) + k_b * torch.log1p(EPS * num_data / k_b), 0)
    grad = -torch.sigmoid(-u0)[..., None] * positive / temperature if needs_grad else x.new_empty(0)
    for lo, hi, weight, directions in _blocks(x, banks, index, spec, plan, draw_backend, part):
        for s, (score, combine) in enumerate(directions):
            u = score / temperature - offset[s, lo:hi, None]
            loss[s, lo:hi] += _weighted(softplus(u), weight).sum(-1)
            if needs_grad:
                grad[s, lo:hi] += combine(_weighted(torch.sigmoid(u), weight)) / temperature
    return loss, grad


def bank_mean_score(
    anchors, banks, index, spec, needs_grad, plan, draw_backend, part: Part | None = None
) -> tuple[Tensor, Tensor]:
    """Mean score of the negatives and its gradient, the mean negative row: ([S, B], [S, B, D] or empty)."""
    x, acc = _prepare(anchors, banks)
    part = part or whole(banks)
    inverse_k = 1 / counts(index, part.num_data, spec, acc)
    mean = x.new_zeros(x.shape[:2])
    grad = torch.zeros_like(x) if needs_grad else x.new_empty(0)
    for lo, hi, weight, directions in _blocks(x, banks, index, spec, plan, draw_backend, part):
        mean_weight = inverse_k[lo:hi, None] if weight is None else weight * inverse_k[lo:hi, None]
        for s, (score, combine) in enumerate(directions):
            mean[s, lo:hi] += (score * mean_weight).sum(-1)
            if needs_grad:
                grad[s, lo:hi] += combine(mean_weight.expand_as(score))
    return mean, grad


def bank_infonce(
    anchors, banks, index, spec, temperature, needs_grad, plan, draw_backend, part: Part | None = None
) -> tuple[Tensor, Tensor]:
    """log-sum-exp of each anchor's negative scores / tau, and their softmax mean: ([S, B], [S, B, D] or empty).

    A part that holds none of them gives -inf and zeros. critics.py makes the loss.
    """
    x, _ = _prepare(anchors, banks)
    log_sum = x.new_full(x.shape[:2], -torch.inf)
    mean = torch.zeros_like(x) if needs_grad else x.new_empty(0)
    for lo, hi, weight, directions in _blocks(x, banks, index, spec, plan, draw_backend, part or whole(banks)):
        for s, (score, combine) in enumerate(directions):
            scaled = score / temperature if weight is None else score / temperature + weight.log()
            before = log_sum[s, lo:hi].clone()
            log_sum[s, lo:hi] = torch.logaddexp(before, scaled.logsumexp(-1))
            if needs_grad:
                own = combine(portion(scaled, log_sum[s, lo:hi, None]))
                mean[s, lo:hi] = mean[s, lo:hi] * portion(before, log_sum[s, lo:hi])[:, None] + own
    return log_sum, mean


def bank_sigmoid(
    anchors, banks, index, scale, bias, spec, needs_grad, plan, draw_backend, part: Part | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over each anchor's negatives of softplus(u), sigmoid(u) and sigmoid(u) * row; u = scale * score + bias.

    `scale` and `bias` are scalar tensors. Returns ([S, B], [S, B], [S, B, D] or empty); critics.py makes the loss.
    """
    x, acc = _prepare(anchors, banks)
    scale, bias = scale.to(acc), bias.to(acc)
    value, slope = x.new_zeros(x.shape[:2]), x.new_zeros(x.shape[:2])
    rows = torch.zeros_like(x) if needs_grad else x.new_empty(0)
    for lo, hi, weight, directions in _blocks(x, banks, index, spec, plan, draw_backend, part or whole(banks)):
        for s, (score, combine) in enumerate(directions):
            u = scale * score + bias
            slopes = _weighted(torch.sigmoid(u), weight)
            value[s, lo:hi] += _weighted(softplus(u), weight).sum(-1)
            slope[s, lo:hi] += slopes.sum(-1)
            if needs_grad:
                rows[s, lo:hi] += combine(slopes)
    return value, slope, rows


def portion(log_part: Tensor, log_whole: Tensor) -> Tensor:
    """exp(log_part - log_whole), the portion of a part in a sum. It is 0 for an empty part, even of an empty whole."""
    return torch.where(log_part == -torch.inf, 0, torch.exp(log_part - log_whole))


def bank_log_z(anchors, banks, index, spec, temperature, plan, draw_backend) -> Tensor:
    """The batch's estimate of log Z, [S]: log of N times the mean over all anchors and their K_b + 1 scores of exp."""
    total = bank_log_sum_exp(anchors, banks, index, spec, temperature, plan, draw_backend)
    return normalised(total, index, banks[0].shape[0], spec).to(accumulation_dtype(anchors, *banks))


def bank_log_sum_exp(anchors, banks, index, spec, temperature, plan, draw_backend, part: Part | None = None) -> Tensor:
    """log of the sum of exp(score / tau) over all anchors and their K_b + 1 scores, fp64 [S]."""
    part = part or whole(banks)
    log_sum, _ = bank_infonce(anchors, banks, index, spec, temperature, False, plan, draw_backend, part)
    return with_positives(log_sum, anchors, banks, index, temperature, part)


def with_positives(log_sum: Tensor, anchors: Tensor, banks: list[Tensor], index, temperature, part: Part) -> Tensor:
    """log-sum-exp over all anchors, fp64 [S]: of `log_sum` [S, B] and the scores / tau of the positives in the part."""
    positive, held = _positives(banks, index, part, torch.float64)
    own = torch.where(held, (anchors.double() * positive).sum(-1) / temperature, -torch.inf)
    return torch.logaddexp(log_sum.double(), own).logsumexp(1)


def normalised(log_sum_exp: Tensor, index: Tensor, num_data: int, spec: DrawSpec) -> Tensor:
    """log Z [S] from the log of the sum over all scores of the anchors with rows `index`."""
    charged = (counts(index, num_data, spec, log_sum_exp.dtype) + 1).sum()
    return log_sum_exp - torch.log(charged) + math.log(num_data)


def bank_update_(bank: Tensor, index: Tensor, rows: Tensor, momentum: float) -> None:
    """Rows `index` of `bank` become normalise(momentum * row + (1 - momentum) * rows); the last duplicate wins."""
    new, norm = mixed(bank, index, rows, momentum)
    keep = checks.norms_in_range("rows", rows, norm, new.dtype) & last_of_each(index)
    new = new / norm.to(new.dtype).clamp_min(MIN_NORM)
    bank[index[keep]] = new[keep].to(bank.dtype)


def mixed(bank: Tensor, index: Tensor, rows: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    """momentum * row + (1 - momentum) * rows [B, D] in the accumulation dtype, and its norm [B, 1] in fp64."""
    acc = accumulation_dtype(bank)
    new = momentum * bank[index].to(acc) + (1 - momentum) * rows.to(acc)
    # Squares in fp64: neither overflow nor vanish for fp32 rows.
    return new, torch.linalg.vector_norm(new, dim=-1, keepdim=True, dtype=torch.float64)


def bank_init_(rows: Tensor, seed: int, bank_id: int, first_row: int = 0) -> None:
    """Fill `rows` [n, D], rows first_row .. first_row + n - 1 of bank `bank_id`, with uniform(-s, s), s = 1/sqrt(D/3).

    Counter based, so any slice of a bank can be made on its own: u = (q[d & 3] >> 8) * 2^-24 with
    q = Philox(key = seed, counter = (d >> 2, row, bank_id, 0xFFFFFFFF)).
    """
    n, dim = rows.shape
    scale = torch.tensor(1 / math.sqrt(dim / 3), dtype=torch.float32, device=rows.device)
    state = torch.tensor([seed], dtype=torch.int64, device=rows.device)
    key = (state & 0xFFFFFFFF, (state >> 32) & 0xFFFFFFFF)
    quads = torch.arange((dim + 3) // 4, device=rows.device)[None]
    step = max(1, CHUNK_BYTES // (64 * quads.shape[1]))
    for lo in range(0, n, step):
        row = torch.arange(lo, min(lo + step, n), device=rows.device)[:, None] + first_row
        last = torch.full_like(row, 0xFFFFFFFF)
        q = torch.stack(philox(quads, row, torch.full_like(row, bank_id), last, *key), -1)  # [n, D/4, 4]
        u = (q.flatten(1)[:, :dim] >> 8).float() * 2.0**-24
        rows[lo : lo + step] = (scale * (2 * u - 1)).to(rows.dtype)


def softplus(u: Tensor) -> Tensor:
    """log(1 + exp(u)) at full precision everywhere (`F.softplus` is linear above 20)."""
    return u.clamp_min(0) + torch.log1p(torch.exp(-u.abs()))


def last_of_each(index: Tensor) -> Tensor:
    """bool [B]: True where no later entry has the same value. O(B log B)."""
    value, order = index.sort(stable=True)
    last = torch.ones_like(value, dtype=torch.bool)
    last[:-1] = value[1:] != value[:-1]
    return torch.empty_like(last).scatter_(0, order, last)


def _prepare(anchors: Tensor, banks: list[Tensor]) -> tuple[Tensor, torch.dtype]:
    acc = accumulation_dtype(anchors, *banks)
    return anchors.to(acc), acc


def _positives(banks: list[Tensor], index: Tensor, part: Part, acc: torch.dtype) -> tuple[Tensor, Tensor]:
    """The anchors' own rows [S, B, D], zero where the part does not hold them, and bool [B]: where it does."""
    height = banks[0].shape[0]
    held, own = part.holds(index, height), part.local(index, height)
    return torch.stack([bank[own].to(acc) for bank in banks]) * held[:, None], held


def _weighted(values: Tensor, weight: Tensor | None) -> Tensor:
    return values if weight is None else values * weight


def _blocks(
    x: Tensor, banks: list[Tensor], index: Tensor, spec: DrawSpec, plan: str, draw_backend: str, part: Part
) -> Iterator[Block]:
    """Walk the negatives of all anchors by the chosen plan; both plans give the same sums to rounding."""
    walk = _dense_blocks if plan == "dense" else _gather_blocks
    yield from walk(x, banks, index, spec, draw_backend, part)


def _gather_blocks(x, banks, index, spec, draw_backend, part) -> Iterator[Block]:
    """Fetch each anchor's rows: cost ~ B * K * D, one [b, n, D] chunk at a time."""
    height = banks[0].shape[0]
    for lo, hi, rows, weight in _drawn_rows(x, index, part.num_data, spec, draw_backend):
        if height < part.num_data:  # a row that the part does not hold is replaced by one that it holds, with weight 0
            held = part.holds(rows, height).to(x.dtype)
            rows, weight = part.local(rows, height), held if weight is None else weight * held
        fetched = [bank[rows].to(x.dtype) for bank in banks]  # S x [b, n, D]
        yield (
            lo,
            hi,
            weight,
            [
                (torch.einsum("bd,bnd->bn", x[s, lo:hi], m), lambda g, m=m: torch.einsum("bn,bnd->bd", g, m))
                for s, m in enumerate(fetched)
            ],
        )


def _drawn_rows(x, index, num_data, spec, draw_backend) -> Iterator[tuple[int, int, Tensor, Tensor | None]]:
    """(lo, hi, rows [b, n], weight [b, n] or None) chunks that cover every negative of every anchor once."""
    pool = pool_size(index, num_data, spec)  # [B]
    width = int(pool.max()) if spec.whole_pool else spec.k
    budget = max(1, CHUNK_BYTES // (x.shape[-1] * x.element_size()))  # rows in flight
    wide = min(width, budget)
    for lo in range(0, index.shape[0], max(1, budget // wide)):
        own, limit = (t[lo : lo + max(1, budget // wide)] for t in (index, pool[:, None]))
        own_spec = draws.anchor_slice(spec, lo, lo + len(own))
        drawn = None if spec.whole_pool else draws.draw(own, num_data, own_spec, draw_backend)
        for start in range(0, width, wide):
            if drawn is not None:
                yield lo, lo + len(own), drawn[:, start : start + wide], None
            else:
                position = torch.arange(start, min(start + wide, width), device=index.device)[None]
                rows = pool_row(torch.minimum(position, limit - 1), own, own_spec)
                weight = spec.k / limit.double() if spec.expected else torch.ones_like(limit)
                yield lo, lo + len(own), rows, ((position < limit) * weight).to(x.dtype)


def _dense_blocks(x, banks, index, spec, draw_backend, part) -> Iterator[Block]:
    """Score a chunk of anchors against the whole bank, weighted by how often each row was drawn: cost ~ B * N * D."""
    num_data, height = part.num_data, banks[0].shape[0]
    matrices = [bank.to(x.dtype) for bank in banks]
    tall = max(1, CHUNK_BYTES // (num_data * x.element_size()))
    for lo in range(0, index.shape[0], tall):
        own = index[lo : lo + tall]
        chunk = draws.anchor_slice(spec, lo, lo + tall)
        weight = row_weights(own, num_data, chunk, x.dtype, draw_backend)  # [b, N]
        weight = weight[:, part.first : part.first + height]
        yield (
            lo,
            lo + len(own),
            weight,
            [(x[s, lo : lo + tall] @ m.T, lambda g, m=m: g @ m) for s, m in enumerate(matrices)],
        )


def row_weights(index: Tensor, num_data: int, spec: DrawSpec, dtype: torch.dtype, draw_backend: str) -> Tensor:
    """The number of times that each bank row is among an anchor's negatives: [B, N]."""
    weight = torch.zeros(index.shape[0], num_data, dtype=dtype, device=index.device)
    if not spec.whole_pool:
        rows = draws.draw(index, num_data, spec, draw_backend)
        return weight.scatter_add_(1, rows, torch.ones((), dtype=dtype, device=index.device).expand_as(rows))
    weight += 1
    if spec.source == "self":
        weight.scatter_(1, index[:, None], 0)
    elif spec.source == "class":
        label = spec.table("label")
        weight[label[index][:, None] == label[None]] = 0
    if spec.expected:
        weight *= spec.k / pool_size(index, num_data, spec).double()[:, None]
    return weight
