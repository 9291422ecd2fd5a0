"""What CRD and WCoRD share: two banks, one sampler, log Z, and the order in which a training step uses them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..distributed.alike import require_alike
from ..distributed.ddp import own_state
from ..distributed.ranks import gather_rows, ranks
from ..functional.bank import draw_spec, log_z_pair, mean_score_pair, nce_pair
from ..functional.sharded import Joined, Shard, fetch, join
from ..ops import checks
from ..ops.bank.plan import PLANS
from ..ops.bank.reference import counts
from ..ops.dispatch import BACKENDS
from ..ops.sampling.spec import ALL, DrawSpec
from .embed import Embed, check_features
from .memory_bank import MemoryBank
from .sampler import NegativeSampler, replacement_option, seed_bits

EMA = 0.99  # weight of the old Z under z="ema"
Z_RULES = ("first", "ema")
SMALLEST, LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


class Contrast(nn.Module):
    """Student and teacher banks, the sampler and log Z. Direction 0: student anchors on the teacher's bank.

    State-dict names are RepDistiller's (`params` = [K, T, Z1, Z2, momentum], negative Z = unset, `memory_v1`,
    `memory_v2`) plus `log_z` and `sampler.state`, which are optional on load and win when present (Z itself is cut to
    the range of fp32, log Z is not). `log_z` is fp32, fp64 by default dtype or after `.double()`, and never narrower.

    In a process group a training step is collective and does what one process would do with the batches of all ranks
    joined in rank order: the anchors' numbers (and so the draws), log Z and the updates of the banks are the same.
    State is equal to the bit on all ranks, but for the rows of a sharded bank. In eval mode a replicated bank is read
    by each rank alone.
    """

    log_z: Tensor
    keeps_own_state = True  # see distributed.ddp

    def __init__(
        self,
        n_data: int,
        feat_dim: int,
        *,
        k: int | str,
        temperature: float,
        momentum: float,
        labels: Any,
        exclude: str | None,
        replacement: bool | None,
        z: str,
        bank_dtype: torch.dtype,
        plan: str,
        backend: str,
        seed: int | None,
        shard: str | None,
    ):
        super().__init__()
        self.temperature = checks.divisor("temperature", temperature)
        self.z = checks.choice("z", z, Z_RULES)
        self.plan = checks.choice("plan", plan, ("auto", *PLANS))
        self.backend = checks.choice("backend", backend, ("auto", *BACKENDS))
        seed = seed_bits(seed)
        self.sampler = NegativeSampler(n_data, k, labels=labels, exclude=exclude, replacement=replacement, seed=seed)
        self.memory_v1 = MemoryBank(n_data, feat_dim, momentum, bank_dtype, seed=seed, bank_id=0, shard=shard)
        self.memory_v2 = MemoryBank(n_data, feat_dim, momentum, bank_dtype, seed=seed, bank_id=1, shard=shard)
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.register_buffer("log_z", torch.full((2,), math.nan, dtype=dtype))
        self.register_state_dict_post_hook(_to_repdistiller)
        self.register_load_state_dict_pre_hook(_from_repdistiller)

    @property
    def sharded(self) -> bool:
        """Whether other ranks hold rows of the banks."""
        return self.memory_v1.ranks.world > 1

    def join(self, anchors: Tensor, idx: Tensor) -> Joined | None:
        """The batch of all ranks, where a call needs it (all ranks then make it); else None."""
        needed = ranks().world > 1 and (self.training or self.sharded)
        return join(anchors, idx) if needed else None

    def nce(self, anchors: Tensor, idx: Tensor, contrast_idx: Tensor | None, joined: Joined | None) -> Tensor:
        """NCE losses [2, B] of anchors [2, B, D]; in training sets log Z, or moves it under z="ema"."""
        positive, spec = self._negatives(idx, contrast_idx, joined)
        args = (anchors, self._banks(), positive)
        if self.z == "ema" and self.training:
            estimate = self._joint_log_z(torch.full_like(self.log_z, math.nan), *args, spec, joined)
            unset = torch.isnan(self.log_z)
            log_z = torch.where(unset, estimate, self.log_z)
            moved = torch.logaddexp(math.log(EMA) + self.log_z, math.log(1 - EMA) + estimate)
            self.log_z.copy_(torch.where(unset, estimate, moved))
        else:
            log_z = self._joint_log_z(self.log_z, *args, spec, joined)
            if self.training:
                self.log_z.copy_(log_z)
        return nce_pair(*args, log_z, spec, *self._options(), joined)

    def scores(
        self, anchors: Tensor, idx: Tensor, contrast_idx: Tensor | None, joined: Joined | None
    ) -> tuple[Tensor, Tensor]:
        """Scores of the bank's positives [2, B], mean scores of its negatives [2, B]."""
        positive, spec = self._negatives(idx, contrast_idx, joined)
        owners = (self.memory_v2, self.memory_v1)
        negative = mean_score_pair(anchors, self._banks(), positive, spec, self.plan, self.backend, owners, joined)
        return (anchors * self._rows(positive, joined).to(anchors.dtype)).sum(-1), negative

    def num_negatives(self, idx: Tensor, contrast_idx: Tensor | None) -> Tensor:
        """K_b, how many bank rows are the negatives of each anchor: [B]."""
        _, spec = self._negatives(idx, contrast_idx)
        return counts(self._clamped(idx), self.memory_v1.num_data, spec, self.log_z.dtype)

    def finish_step(self, anchors: Tensor, idx: Tensor, joined: Joined | None) -> None:
        """The end of a training step: update both banks from anchors [2, B, D], advance t."""
        self.update_(anchors, idx, joined)
        self.sampler.advance()

    def update_(self, anchors: Tensor, idx: Tensor, joined: Joined | None, momentum: float | None = None) -> None:
        """Update both banks from anchors [2, B, D], or from those of all ranks."""
        for side, bank in enumerate((self.memory_v1, self.memory_v2)):
            if joined is None:
                bank.update_(idx, anchors[side].detach(), momentum)
            else:
                bank.update_joined_(joined, side, momentum)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, z={self.z!r}, plan={self.plan!r}, backend={self.backend!r}"

    def _apply(self, fn, recurse=True):
        log_z = self.log_z
        super()._apply(fn, recurse)
        if self.log_z.itemsize < log_z.itemsize:
            self.log_z = log_z.to(self.log_z.device, torch.float32)
        return self

    def _joint_log_z(self, log_z, anchors, banks, positive, spec: DrawSpec, joined: Joined | None) -> Tensor:
        """`log_z` with its NaN entries replaced by the estimates over the anchors of all ranks."""
        own = log_z_pair(log_z, anchors, banks, positive, spec, *self._options(), joined)
        unset = torch.isnan(log_z)
        if joined is None or self.sharded or (unset.device.type == "cpu" and not bool(unset.any())):
            return own
        charged = (counts(self._clamped(positive), self.memory_v1.num_data, spec, torch.float64) + 1).sum().log()
        sums = torch.cat([own.double() + charged, charged[None]])[None]  # [1, 3]: logs of sums, log of their count
        (everyone,) = gather_rows([sums], [1] * ranks().world)
        total = everyone.logsumexp(0)
        return torch.where(unset, (total[:2] - total[2]).to(log_z.dtype), log_z)

    def _rows(self, index: Tensor, joined: Joined | None) -> Tensor:
        """Rows `index` of the banks, [2, B, D]."""
        banks = self._banks()
        if joined is None or not isinstance(banks[0], Shard):
            own = self._clamped(index)  # what is out of range is flagged by the op, whose result is NaN there
            return torch.stack([bank[own] for bank in banks])
        if index is not joined.own_index:
            (everyone,) = gather_rows([index.long()], joined.sizes)
            joined = replace(joined, index=everyone)
        return fetch(banks, joined)

    def _clamped(self, idx: Tensor) -> Tensor:
        return idx.long().clamp(0, self.memory_v1.num_data - 1)

    def _banks(self) -> list:
        return [self.memory_v2.held(), self.memory_v1.held()]

    def _options(self) -> tuple[float, str, str]:
        return self.temperature, self.plan, self.backend

    def _negatives(
        self, idx: Tensor, contrast_idx: Tensor | None, joined: Joined | None = None
    ) -> tuple[Tensor, DrawSpec]:
        if contrast_idx is None:  # a sharded bank numbers the anchors of all ranks by itself
            return idx, self.sampler.spec(0 if joined is None or self.sharded else joined.own.start)
        return contrast_idx[:, 0], draw_spec(contrast_idx[:, 1:], len(idx), self.memory_v1.num_data)


def check_options(temperature, momentum, replacement, z, bank_dtype, plan, backend, seed) -> None:
    """What `Contrast` says of these options, also where none is built."""
    checks.divisor("temperature", temperature)
    checks.fraction("momentum", momentum)
    replacement_option(replacement)
    checks.choice("z", z, Z_RULES)
    if bank_dtype not in checks.FLOATS:
        raise TypeError(f"bank_dtype: expected one of {', '.join(map(str, checks.FLOATS))}, got {bank_dtype}")
    checks.choice("plan", plan, ("auto", *PLANS))
    checks.choice("backend", backend, ("auto", *BACKENDS))
    if seed is not None:
        seed_bits(seed)


class ContrastiveLoss(nn.Module):
    """Two embeddings and, where the loss scores a bank, a `Contrast`: the base of CRDLoss and WCoRDLoss."""

    embed_s: Embed
    embed_t: Embed
    contrast: Contrast | None
    n_data: int

    def __init__(self) -> None:
        super().__init__()
        self._alike = False
        self.register_load_state_dict_pre_hook(_refuse_misfits)
        self.register_load_state_dict_post_hook(_unsure)

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """What DistributedDataParallel reads of a module that it wraps."""
        return own_state(self)

    def init_banks(self, f_s: Tensor, f_t: Tensor, idx: Tensor) -> None:
        """Replace the random initial rows `idx` of both banks by the embeddings of these features.

        One pass of both networks over the training set before training starts; banks otherwise begin as noise. In a
        process group all ranks call it, each with images of its own.
        """
        if self.contrast is None:
            raise ValueError("init_banks: this loss scores no bank")
        self._check(f_s, f_t, idx, None)
        with torch.no_grad():
            anchors = torch.stack((self.embed_s(f_s), self.embed_t(f_t)))
            self.contrast.update_(anchors, idx, join(anchors, idx) if ranks().world > 1 else None, momentum=0.0)

    def reset_z(self) -> None:
        """Forget log Z: the next training batch estimates it anew, as after a ramp of the weight. A loss without a bank
        has none."""
        if self.contrast is not None:
            self.contrast.log_z.fill_(math.nan)

    def require_alike(self) -> None:
        """ValueError, on every rank, unless all ranks have made this loss alike: options, labels, seed, step.

        Collective. In a process group the first training forward does it, and the first after a state dict was loaded.
        """
        facts = []
        if self.contrast is not None:
            bank, state = self.contrast.memory_v1, self.contrast.sampler.state
            if bank.shard is not None and bank.ranks != ranks():
                raise ValueError(
                    f"shard: the banks were made by rank {bank.ranks.rank} of {bank.ranks.world}, this is rank "
                    f"{ranks().rank} of {ranks().world}; make the loss after init_process_group"
                )
            facts = [self.contrast.sampler.fingerprint(), f"seed {self.contrast.sampler.seed}, step {int(state[1])}"]
        require_alike(self, facts, self.embed_s.linear.bias.device)
        self._alike = True

    def _check(self, f_s: Tensor, f_t: Tensor, idx: Tensor, contrast_idx: Tensor | None) -> None:
        """Everything that can be said before any work: a refused call has changed nothing."""
        check_features("f_s", f_s, self.embed_s)
        batch = f_s.shape[0]
        check_features("f_t", f_t, self.embed_t, batch)
        checks.tensor("idx", idx, shape=(batch,), dtypes=checks.INDICES)
        tensors = {"f_s": f_s, "f_t": f_t, "idx": idx}
        if contrast_idx is not None:
            checks.tensor("contrast_idx", contrast_idx, shape=(batch, "K + 1"), dtypes=checks.INDICES)
            if contrast_idx.shape[1] < 2:
                raise ValueError(
                    f"contrast_idx: expected the positive and at least one negative, got {list(contrast_idx.shape)}"
                )
            tensors["contrast_idx"] = contrast_idx
        checks.same_device(**tensors, embed_s=self.embed_s.linear.bias)
        if idx.device.type == "cpu" and not torch.compiler.is_compiling():
            checks.rows_in_range("idx", idx, self.n_data)
            if contrast_idx is not None:
                checks.rows_in_range("contrast_idx", contrast_idx, self.n_data)
        if self.training and not self._alike and ranks().world > 1:
            self.require_alike()


def _to_repdistiller(module: Contrast, state_dict, prefix, *_):
    for name in ("memory_v1", "memory_v2"):
        state_dict[f"{prefix}{name}"] = state_dict.pop(f"{prefix}{name}.rows")
    z = module.log_z.double().exp().clamp(SMALLEST, LARGEST).nan_to_num(-1.0)
    params = torch.tensor([module.sampler.k, module.temperature, 0, 0, module.memory_v1.momentum], device=z.device)
    params[2:4] = z
    state_dict[f"{prefix}params"] = params.float()


def _refuse_misfits(module: ContrastiveLoss, state_dict, prefix, *_):
    """A state dict of another shape or other options is refused before anything of it is copied."""
    errors = []
    mine = module.state_dict()
    for name, value in mine.items():
        theirs = state_dict.get(f"{prefix}{name}")
        if theirs is None and name.endswith("parametrizations.weight.original"):  # a plain weight is taken as well
            theirs = state_dict.get(f"{prefix}{name.removesuffix('parametrizations.weight.original')}weight")
        if isinstance(theirs, Tensor) and theirs.shape != value.shape:
            errors.append(f"size mismatch for {prefix}{name}: {list(theirs.shape)} there, {list(value.shape)} here")
    params = state_dict.get(f"{prefix}contrast.params")
    if module.contrast is not None and isinstance(params, Tensor) and params.shape == (5,):
        errors += _other_options(module.contrast, f"{prefix}contrast.", params)
    if errors:
        raise RuntimeError("\n\t".join([f"Error(s) in loading state_dict for {type(module).__name__}:", *errors]))


def _unsure(module: ContrastiveLoss, _keys) -> None:
    module._alike = False


def _from_repdistiller(module: Contrast, state_dict, prefix, _metadata, _strict, _missing, _unexpected, error_msgs):
    for name in ("memory_v1", "memory_v2"):
        if f"{prefix}{name}" in state_dict:
            state_dict[f"{prefix}{name}.rows"] = state_dict.pop(f"{prefix}{name}")
    params = state_dict.pop(f"{prefix}params", None)
    if params is not None:
        error_msgs += _other_options(module, prefix, params)
        z = params[2:4].to(module.log_z)
        state_dict.setdefault(f"{prefix}log_z", torch.where(z < 0, math.nan, z.clamp(SMALLEST, LARGEST).log()))
    state_dict.setdefault(f"{prefix}sampler.state", module.sampler.state.clone())


def _other_options(module: Contrast, prefix: str, params: Tensor) -> list[str]:
    """What is different in `params` = [K, T, Z1, Z2, momentum] of a state dict."""
    errors: list[str] = []
    k, temperature, momentum = (float(params[i]) for i in (0, 1, 4))
    mine = {"K": module.sampler.k, "temperature": module.temperature, "momentum": module.memory_v1.momentum}
    for (name, own), value in zip(mine.items(), (k, temperature, momentum), strict=True):
        if not math.isclose(own, value, rel_tol=1e-5):
            there, here = ("all" if v == ALL and name == "K" else f"{v:g}" for v in (value, own))
            errors.append(f"{prefix}params: the state dict was made with {name} = {there}, this loss has {here}")
    return errors
