"""The common part of CRD and WCoRD: two banks, one sampler, log Z, and the order of a training step."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..distributed.agreement import require_agreement, require_own_rows
from ..distributed.ddp import own_state
from ..distributed.ranks import gather_rows, ranks, refuse
from ..ops import checks
from ..ops.bank import directions
from ..ops.bank.reference import counts
from ..ops.bank.sharded import Joined, Shard, fetch, join
from ..ops.first_order import first_order
from ..ops.sampling.spec import DrawSpec
from ..ops.tensors import wide_dtype
from ..ops.without_nan import WithoutNaN
from .embed import Embed, check_features
from .loading import repdistiller_params, replace_misfits, replace_misfits_of_loss
from .memory_bank import MemoryBank
from .options import ContrastOptions, check_execution, facts_of
from .queue import FeatureQueue
from .row_buffer import RowBuffer
from .sampler import NegativeSampler, seed_bits
from .state import Record, StateModule

EMA = 0.99  # weight of the old Z under z="ema"


class Contrast(StateModule):
    """Student and teacher banks, the sampler and log Z. Direction 0: student anchors on the teacher's bank.

    Every entry of the state dict is a buffer. RepDistiller's names (`params` = [K, T, Z1, Z2, momentum], negative Z =
    unset, `memory_v1`, `memory_v2`), which earlier versions wrote, load as well, where `log_z` and `sampler.state`
    come before `params`. `made_with` records temperature and momentum, the sampler's its options and labels.
    `log_z` is fp32, or fp64 by default dtype or after `.double()`.

    In a process group a training step is collective and equals that of one process with the batches of all ranks
    joined in rank order: the anchors' numbers (and so the draws), log Z and the updates of the banks are equal.
    The state is bit-identical on all ranks, except the rows of a sharded bank. In eval mode each rank reads a
    replicated bank alone.
    """

    log_z: Tensor
    made_with: Tensor
    keeps_own_state = True  # see distributed.ddp
    wide = ("log_z",)
    constants = ("made_with",)
    beside = "log_z"

    def __init__(
        self,
        n_data: int,
        options: ContrastOptions,
        *,
        labels: Any = None,
        bank_dtype: torch.dtype = torch.float32,
        plan: str = "auto",
        backend: str = "auto",
        seed: int | None = None,
    ):
        super().__init__()
        check_execution(bank_dtype, plan, backend, seed)
        self.temperature, self.z, self.plan, self.backend = options.temperature, options.z, plan, backend
        seed = seed_bits(seed)
        self.sampler = NegativeSampler(
            n_data,
            options.num_negatives,
            labels=labels,
            exclude=options.exclude,
            replacement=options.replacement,
            seed=seed,
        )
        self.memory_v1, self.memory_v2 = (
            MemoryBank(
                n_data, options.feat_dim, options.momentum, bank_dtype, seed=seed, bank_id=bank, shard=options.shard
            )
            for bank in (0, 1)
        )
        self.register_buffer("log_z", torch.full((2,), math.nan, dtype=wide_dtype()))
        self._is_set = WithoutNaN()
        self.record = Record(temperature=self.temperature, momentum=self.memory_v1.momentum)
        self.register_buffer("made_with", self.moved(self.record.tensor("cpu")))
        self.register_load_state_dict_pre_hook(_fit_contrast)

    @property
    def sharded(self) -> bool:
        """Whether other ranks hold rows of the banks."""
        return self.memory_v1.ranks.world > 1

    def join(self, anchors: Tensor, idx: Tensor) -> Joined | None:
        """The batch of all ranks, if the call needs it (all ranks then call); else None."""
        needed = ranks().world > 1 and (self.training or self.sharded)
        return join(anchors, idx) if needed else None

    def nce(self, anchors: Tensor, idx: Tensor, contrast_idx: Tensor | None, joined: Joined | None) -> Tensor:
        """NCE losses [2, B] of anchors [2, B, D]; in training log Z is set, or moved under z="ema"."""
        positive, spec = self._negatives(idx, contrast_idx, joined)
        log_z = self._current_log_z(anchors, positive, spec, joined)
        return directions.nce(anchors, self.banks(), positive, log_z, spec, *self._options(), joined)

    def losses_and_gradient(
        self, anchors: Tensor, idx: Tensor, contrast_idx: Tensor | None, needs_grad: bool
    ) -> tuple[Tensor, Tensor]:
        """`nce` on one process: the losses [2, B] and, if `needs_grad`, their gradient at anchors [2, B, D]."""
        positive, spec = self._negatives(idx, contrast_idx)
        log_z = self._current_log_z(anchors, positive, spec, None)
        return directions.nce_and_gradient(
            anchors, self.banks(), positive, log_z, spec, *self._options(), needs_grad=needs_grad
        )

    def _current_log_z(self, anchors: Tensor, positive: Tensor, spec: DrawSpec, joined: Joined | None) -> Tensor:
        """Log Z [2] for scoring; in training it is set, or moved under z="ema"."""
        args = (anchors, self.banks(), positive)
        if self.z == "ema" and self.training:
            estimate = self._joint_log_z(torch.full_like(self.log_z, math.nan), *args, spec, joined)
            unset = torch.isnan(self.log_z)
            log_z = torch.where(unset, estimate, self.log_z)
            moved = torch.logaddexp(math.log(EMA) + self.log_z, math.log(1 - EMA) + estimate)
            self.log_z.copy_(torch.where(unset, estimate, moved))
        elif joined is None and self._is_set.known(self.log_z):  # ranks may notice it at different steps
            log_z = self.log_z
        else:
            log_z = self._joint_log_z(self.log_z, *args, spec, joined)
            self._is_set.start(self.log_z, filled=log_z if self.training else None)
        return log_z

    def pair_losses(self, anchors: Tensor, idx: Tensor, contrast_idx, joined, scores) -> Tensor:
        """Losses [2, B] of anchors [2, B, D] whose positives are the other network's rows of the batch.

        Args:
            scores: scale and bias of the sigmoid, or None for InfoNCE. Neither has a log Z.
        """
        index, spec = self._negatives(idx, contrast_idx, joined)
        args = (anchors, self.banks(), index, anchors.flip(0))
        if scores is None:
            return directions.infonce(*args, spec, *self._options(), joined)
        scale, bias = scores
        return directions.sigmoid(*args, scale, bias, spec, self.plan, self.backend, joined)

    def scores(
        self, anchors: Tensor, idx: Tensor, contrast_idx: Tensor | None, joined: Joined | None
    ) -> tuple[Tensor, Tensor]:
        """Scores of the bank's positives [2, B], mean scores of its negatives [2, B]."""
        positive, spec = self._negatives(idx, contrast_idx, joined)
        owners = (self.memory_v2, self.memory_v1)
        negative = directions.mean_score(anchors, self.banks(), positive, spec, self.plan, self.backend, owners, joined)
        return (anchors * self.rows_at(positive, joined).to(anchors.dtype)).sum(-1), negative

    def num_negatives(self, idx: Tensor, contrast_idx: Tensor | None) -> Tensor:
        """K_b, how many bank rows are the negatives of each anchor: [B]."""
        _, spec = self._negatives(idx, contrast_idx)
        return counts(self._clamped(idx), self.memory_v1.num_data, spec, self.log_z.dtype)

    def finish_step(self, anchors: Tensor, idx: Tensor, joined: Joined | None) -> None:
        """End a training step: update both banks from anchors [2, B, D] and advance the sampler's step."""
        self.update_(anchors, idx, joined)
        self.sampler.advance()

    def update_(self, anchors: Tensor, idx: Tensor, joined: Joined | None, momentum: float | None = None) -> None:
        """Update both banks from anchors [2, B, D], or from those of all ranks."""
        for side, bank in enumerate((self.memory_v1, self.memory_v2)):
            if joined is None:
                bank.update_(idx, anchors[side].detach(), momentum)
            else:
                bank.update_joined_(joined, side, momentum)

    def reset_parameters(self) -> None:
        """Restore the initial state: the banks' first rows, log Z unset, step 0. `made_with` never changes."""
        for module in (self.sampler, self.memory_v1, self.memory_v2):
            module.reset_parameters()
        self.log_z.fill_(math.nan)

    def __getstate__(self):
        return super().__getstate__() | {"_is_set": WithoutNaN()}

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, z={self.z!r}, plan={self.plan!r}, backend={self.backend!r}"

    def _joint_log_z(self, log_z, anchors, banks, positive, spec: DrawSpec, joined: Joined | None) -> Tensor:
        """`log_z` with its NaN entries replaced by the estimates over the anchors of all ranks."""
        own = directions.log_z(log_z, anchors, banks, positive, spec, *self._options(), joined)
        unset = torch.isnan(log_z)
        if joined is None or self.sharded or (unset.device.type == "cpu" and not bool(unset.any())):
            return own
        log_count = (counts(self._clamped(positive), self.memory_v1.num_data, spec, torch.float64) + 1).sum().log()
        sums = torch.cat([own.double() + log_count, log_count[None]])[None]  # [1, 3]: logs of sums, log of their count
        (gathered,) = gather_rows([sums], [1] * ranks().world)
        total = gathered.logsumexp(0)
        return torch.where(unset, (total[:2] - total[2]).to(log_z.dtype), log_z)

    def rows_at(self, index: Tensor, joined: Joined | None) -> Tensor:
        """Rows `index` of the banks, [2, B, D]."""
        banks = self.banks()
        if joined is None or not isinstance(banks[0], Shard):
            clamped = self._clamped(index)  # the op flags an index out of range, and its result is NaN there
            return torch.stack([bank[clamped] for bank in banks])
        if index is not joined.own_index:
            (gathered,) = gather_rows([index.long()], joined.sizes)
            joined = replace(joined, index=gathered)
        return fetch(banks, joined)

    def _clamped(self, idx: Tensor) -> Tensor:
        return idx.long().clamp(0, self.memory_v1.num_data - 1)

    def banks(self) -> list:
        """The rows that directions 0 and 1 score."""
        return [self.memory_v2.held(), self.memory_v1.held()]

    def _options(self) -> tuple[float, str, str]:
        return self.temperature, self.plan, self.backend

    def _negatives(
        self, idx: Tensor, contrast_idx: Tensor | None, joined: Joined | None = None
    ) -> tuple[Tensor, DrawSpec]:
        if self.sampler.num_data != self.memory_v1.num_data:
            raise ValueError(
                f"sampler: expected num_data={self.memory_v1.num_data}, as in the banks, got {self.sampler.num_data}"
            )
        if contrast_idx is None:  # a sharded bank numbers the anchors of all ranks by itself
            return idx, self.sampler.spec(0 if joined is None or self.sharded else joined.own.start)
        return contrast_idx[:, 0], directions.given(contrast_idx[:, 1:])


class ContrastiveLoss(StateModule):
    """Two embeddings and, where the loss scores a bank, a `Contrast`: the base of CRDLoss and WCoRDLoss.

    A state dict made with other labels, another `exclude`, K, temperature or momentum, or with other sizes, is refused
    with an error that names them. `load_state_dict(..., strict=False)` warns and loads the rest: everything but tensors
    of other sizes and a log Z that belongs to another temperature or to banks of other sizes.
    """

    embed_s: Embed
    embed_t: Embed
    contrast: Contrast | None
    n_data: int | None
    _options: ContrastOptions | None = None

    def __init__(self) -> None:
        super().__init__()
        self._agreed = False
        self._filled = True
        self.register_load_state_dict_pre_hook(_fit_loss)
        self.register_load_state_dict_post_hook(_forget_agreement)

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """The names of tensors that DistributedDataParallel must not broadcast."""
        return own_state(self)

    @first_order
    def init_banks(self, f_s: Tensor, f_t: Tensor, idx: Tensor) -> None:
        """Replace the random initial rows `idx` of both banks by the embeddings of these features.

        Call it on all batches of one pass of both networks over the training set, before training; banks otherwise
        begin as noise. In a process group all ranks call it, each with its own images.
        """
        if self.contrast is None:
            raise ValueError("init_banks: this loss scores no bank")
        self._check(f_s, f_t, idx, None, joins=True)
        with torch.no_grad():
            anchors = torch.stack((self.embed_s(f_s), self.embed_t(f_t)))
            self.contrast.update_(anchors, idx, join(anchors, idx) if ranks().world > 1 else None, momentum=0.0)

    def reset_z(self) -> None:
        """Forget log Z: the next training batch estimates it anew, as after a ramp of the weight. A loss without a bank
        has none."""
        if self.contrast is not None:
            self.contrast.log_z.fill_(math.nan)

    def reset_parameters(self) -> None:
        """The state after construction: the banks from their seed, the embeddings from torch's generator.

        It completes a loss made on meta after `to_empty`; resetting its modules one by one does, too.
        """
        self.embed_s.reset_parameters()
        self.embed_t.reset_parameters()
        if self.contrast is not None:
            self.contrast.reset_parameters()
        self._agreed = False

    def repdistiller_state_dict(self) -> dict[str, Tensor]:
        """A copy of the state under the names that RepDistiller's CRDLoss loads with `strict=True`.

        embed_s.linear.*, embed_t.linear.* (weights divided by their spectral norm where they have one),
        contrast.params = [K, T, Z1, Z2, momentum], contrast.memory_v1 and contrast.memory_v2, in fp32 or fp64. Log Z
        is clamped to the range of fp32, and the sampler's seed and step are missing: `state_dict` holds everything.
        With sharded banks or parameters all ranks call it, and each gets everything.

        Raises:
            ValueError: this loss scores no bank.
        """
        if self.contrast is None:
            raise ValueError("repdistiller_state_dict: this loss scores no bank, and RepDistiller's always does")
        state: dict[str, Tensor] = {}
        for name in ("embed_s", "embed_t"):
            weight, bias = getattr(self, name).linear.frozen()
            state |= {f"{name}.linear.weight": weight.clone(), f"{name}.linear.bias": bias.clone()}
        state["contrast.params"] = repdistiller_params(self.contrast)
        for name in ("memory_v1", "memory_v2"):
            rows = getattr(self.contrast, name).all_rows()
            state[f"contrast.{name}"] = rows.to(torch.promote_types(rows.dtype, torch.float32), copy=True)
        return state

    def require_filled(self) -> None:
        """RuntimeError if a buffer of this loss has had no values since `to_empty`."""
        for module in self.modules():
            if module is not self and isinstance(module, StateModule):
                module.require_filled()
        super().require_filled()
        self._filled = True

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self._filled = not any(isinstance(module, StateModule) and module._empty for module in self.modules())
        return self

    def require_agreement(self) -> None:
        """ValueError, on every rank, unless all ranks have equal options, labels, seed and step.

        Collective. In a process group the first training forward calls it, and the first after loading a state dict.
        """
        facts = facts_of(self._options, self.tables)
        for buffer in (buffers := [module for module in self.modules() if isinstance(module, RowBuffer)]):
            buffer.require_own_group()
        if self.contrast is not None:
            state = self.contrast.sampler.state
            facts += [self.contrast.sampler.fingerprint(), f"seed {self.contrast.sampler.seed}, step {int(state[1])}"]
        queues = (module for module in self.modules() if isinstance(module, FeatureQueue))
        facts += [f"queue of which {int(queue.pushed)} rows have been pushed" for queue in queues]
        require_agreement(self, facts, self.embed_s.linear.bias.device)
        require_own_rows(any(buffer.holds_rank_0s() for buffer in buffers), self.embed_s.linear.bias.device)
        self._agreed = True

    @property
    def needs_index(self) -> bool:
        """Whether a call needs `idx`, the images' row numbers."""
        return True

    @property
    def _is_collective(self) -> bool:
        """Whether a call in a process group needs all ranks. All such calls begin with `ranks.sizes_of`."""
        return self.contrast is not None and (self.training or self.contrast.sharded)

    def _check(self, f_s: Tensor, f_t: Tensor, idx: Tensor | None, contrast_idx: Tensor | None, joins=False) -> None:
        """Check all arguments, so that a refused call changes nothing. `joins`: all ranks take part in this call."""
        if not self._filled:
            self.require_filled()
        if ranks().world == 1 or torch.compiler.is_compiling():
            return self._check_arguments(f_s, f_t, idx, contrast_idx)
        must_agree = self.training and not self._agreed
        try:
            self._check_arguments(f_s, f_t, idx, contrast_idx)
        except (TypeError, ValueError):
            if must_agree or joins or self._is_collective:
                refuse(self.embed_s.linear.bias.device)
            raise
        if must_agree:
            self.require_agreement()

    def _check_arguments(self, f_s: Tensor, f_t: Tensor, idx: Tensor | None, contrast_idx: Tensor | None) -> None:
        """Check this rank's own arguments."""
        check_features("f_s", f_s, self.embed_s)
        batch = f_s.shape[0]
        check_features("f_t", f_t, self.embed_t, batch)
        tensors = {"f_s": f_s, "f_t": f_t}
        if idx is not None or self.needs_index:
            tensors["idx"] = checks.tensor("idx", idx, shape=(batch,), dtypes=checks.INDICES)
        if contrast_idx is not None:
            checks.tensor("contrast_idx", contrast_idx, shape=(batch, "K + 1"), dtypes=checks.INDICES)
            if contrast_idx.shape[1] < 2:
                raise ValueError(
                    f"contrast_idx: expected the positive and at least one negative, got {list(contrast_idx.shape)}"
                )
            tensors["contrast_idx"] = contrast_idx
        checks.same_device(**tensors, embed_s=self.embed_s.linear.bias)
        if self.n_data is not None and f_s.device.type == "cpu" and not torch.compiler.is_compiling():
            for name in ("idx", "contrast_idx"):
                if name in tensors:
                    checks.rows_in_range(name, tensors[name], self.n_data)


def _fit_contrast(module: Contrast, state_dict, prefix, _metadata, _strict, _missing, unexpected_keys, _errors) -> None:
    module.report_misfits(replace_misfits(module, state_dict, prefix), unexpected_keys)


def _fit_loss(module: ContrastiveLoss, state_dict, prefix, _metadata, _strict, _missing, unexpected_keys, _errors):
    """Refuse a state of other sizes or options, or keep its fitting entries, before anything is copied."""
    for embed, name in ((module.embed_s, "embed_s"), (module.embed_t, "embed_t")):
        embed.linear.rename_to_ours(state_dict, f"{prefix}{name}.linear.")
    module.report_misfits(replace_misfits_of_loss(module, state_dict, prefix), unexpected_keys)


def _forget_agreement(module: ContrastiveLoss, _keys) -> None:
    module._agreed = False
