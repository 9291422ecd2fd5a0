"""The options of CRDLoss and WCoRDLoss, each defined once with its default, check and meaning.

A record gives a module its keywords, and the driver's configuration a section.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from ..functional.ot import DEFAULT_RHO
from ..ops import checks
from ..ops.bank.plan import PLANS
from ..ops.dispatch import BACKENDS
from .own_critic import BUILT_IN, checked_critic, critics
from .row_buffer import MAX_ROWS
from .sampler import check_count, checksum, replacement_option, seed_bits

T = TypeVar("T")
Check = Callable[[str, Any], Any]


def option(default: Any, check: Check | None = None, *, later: bool = False, identifies: bool = True) -> Any:
    """A field of an option record.

    Args:
        default: its default.
        check: a function of the name and a value that returns the value to keep, or raises.
        later: whether the option is newer than some checkpoints. At its default it is not part of a run's identity, so
            that their runs continue.
        identifies: whether the option is part of a run's identity. An option that only sets others is not.
    """
    return dataclasses.field(default=default, metadata={"check": check, "later": later, "identifies": identifies})


def check_fields(record: object) -> None:
    """Check every field of a record: by its own check, or by its type if that is a Literal, None or bool."""
    kind: Any = type(record)
    for name, check in _checks_of(kind).items():
        setattr(record, name, check(name, getattr(record, name)))


@functools.cache
def _checks_of(kind: type) -> dict[str, Check]:
    hints = get_type_hints(kind)
    names = [f.name for f in fields(kind)]
    result = {name: _declared_check(kind, name) or _check_by_type(hints[name]) for name in names}
    return {name: check for name, check in result.items() if check is not None}


def _declared_check(kind: type, name: str) -> Check | None:
    """The check that a record, or the nearest of its bases, declares for a field: another default keeps it."""
    declared = (cls.__dict__.get("__dataclass_fields__", {}).get(name) for cls in kind.__mro__)
    result = (f.metadata.get("check") for f in declared if f is not None)
    return next((check for check in result if check is not None), None)


def _check_by_type(hint: Any) -> Check | None:
    if hint is bool:
        return checks.boolean
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if not all(kind is NoneType or get_origin(kind) is Literal for kind in kinds):
        return None
    words = tuple(word for kind in kinds for word in ((None,) if kind is NoneType else get_args(kind)))
    return lambda name, value: checks.choice(name, value, words)


def make_record(kind: type[T], keywords: dict[str, Any], renamed: dict[str, str]) -> T:
    """A record from a caller's keywords (`renamed`: option -> its name there); errors use the caller's names."""
    options = {name: option for option, name in renamed.items()}
    try:
        return kind(**{options.get(name, name): value for name, value in keywords.items()})
    except (TypeError, ValueError) as error:
        option, colon, rest = str(error).partition(":")
        raise type(error)(renamed.get(option, option) + colon + rest) from None


def facts_of(options: Any, tables: Mapping[str, Tensor]) -> list[str]:
    """One line for each field of an option record, or none for None, and for each table: what all ranks have alike."""
    known = [] if options is None else [f"{f.name}={getattr(options, f.name)!r}" for f in fields(options)]
    return known + [f"{name} of the images, checksum {checksum(table)}" for name, table in tables.items()]


def _count(name: str, k: int | str) -> int | str:
    count = check_count(name, k)
    return "all" if isinstance(k, str) else count


def count_or_none(name: str, k: int | str | None) -> int | str | None:
    """K, or None where the caller chooses it."""
    return None if k is None else _count(name, k)


def _size_or_none(name: str, size: int | None) -> int | None:
    return None if size is None else checks.integer(name, size, least=1, below=MAX_ROWS + 1)


def _mean_weight(name: str, weight: float | str) -> float | str:
    if isinstance(weight, str):
        if weight != "M":
            raise ValueError(f"{name}: expected a number or 'M', got {weight!r}")
        return weight
    return checks.non_negative(name, weight)


def _rho(name: str, rho: float) -> float:
    if checks.fraction(name, rho) == 1:
        raise ValueError(f"{name}: expected a number in [0, 1), got 1; use lckt_pairs='only'")
    return rho


@dataclass
class ContrastOptions:
    """Options of the banks, the draws and log Z, which CRD and WCoRD share.

    Attributes:
        feat_dim: D, width of the embeddings.
        num_negatives: K, negatives per anchor, or "all".
        temperature: tau, which divides the scores of the NCE critics.
        momentum: weight of the old row when a bank row is updated.
        exclude: which rows are no negatives: "class", "self" or "none"; default: "class" with labels of more than
            two classes, else "self".
        replacement: draw with replacement; default: only when there are fewer rows than negatives.
        z: normalising constant from the "first" batch, or a moving average ("ema", decay 0.99).
        shard: "rank": with several processes, each holds a part of the rows of banks and queues; default: each
            holds all.
    """

    feat_dim: int = option(128, functools.partial(checks.integer, least=1))
    num_negatives: int | Literal["all"] = option(16384, _count)
    temperature: float = option(0.07, checks.divisor)
    momentum: float = option(0.5, checks.fraction)
    exclude: Literal["class", "self", "none"] | None = None
    replacement: bool | None = option(None, lambda _, value: replacement_option(value))
    z: Literal["first", "ema"] = "first"
    shard: Literal["rank"] | None = None

    def __post_init__(self) -> None:
        check_fields(self)


PAIRED = ("infonce", "sigmoid")
CRITICS_OF: dict[str | None, tuple[str, ...]] = {  # where negatives may come from -> critics
    None: BUILT_IN,
    "bank": BUILT_IN,
    "batch": ("dual", *PAIRED),
    "queue": PAIRED,
    "bank_negatives": ("dual",),
}


@dataclass
class WCoRDLossOptions(ContrastOptions):
    """Options of WCoRDLoss; the defaults are the paper's.

    Attributes:
        lambda_gckt: weight of the global contrastive term (lambda1); 0 turns it off, and the teacher's embedding is
            then a frozen random projection.
        lambda_lckt: weight of the local transport term (lambda2); 0 turns it off.
        critic: the global term's objective: "nce_sn" (CRD's NCE on spectrally normalised embeddings), "nce" (CRD's
            NCE), "dual" (eq. 10: dual_scale * (score of the positive - neg_weight * mean score of the negatives),
            spectrally normalised), "infonce" (CLIP's softmax) or "sigmoid" (SigLIP's, whose scale and bias are
            trained, from 10 and -10).
        negatives: rows of the "bank" (default), of the "batch" itself (dual, its default, infonce and sigmoid; under
            dual the other side is detached), of a "queue" of earlier batches (infonce and sigmoid) or "bank_negatives"
            (dual only: batch positives, bank negatives). Under "dual" both bank forms compare rows of different age,
            which the critic can separate by age alone; they drift to collapse.
        queue_size: rows of each of the two queues; default: num_negatives.
        neg_weight: weight of the mean negative score under "dual": 1 (eq. 10) or "M", the number of negatives (eq. 11
            to the letter: unbounded under a shift of the critic and maximised by collapse; degenerate, never needed).
        dual_scale: scale of the dual critic.
        embed_norm: embeddings on the unit "sphere" or inside the unit "ball", see `Embed`.
        lckt_features: transport between the critic's embeddings ("embed"), between "raw" features of equal width, or
            between the teacher's features and the student's, "mapped" to the teacher's width by a trained linear map.
            "auto" is "raw" for equal widths, else "mapped".
        lckt_reduction: transport cost of a plan of mass 1 ("mean") or of mass batch size ("sum"). With mass 1 and
            weight 0.05 its gradient is below 1 % of the cross-entropy's.
        lckt_trains_embed: let the local term train the student's embedding too; false is Algorithm 1's student-only
            step.
        ot_solver: "ipot" (the paper's) or "sinkhorn".
        ot_eps: the solver's regularisation.
        ot_iters: the solver's iterations.
        ot_cost: ground cost between features.
        ot_scope: with several processes, transport within each "rank"'s part of the batch or in the "global" batch (all
            ranks then call the loss, in eval mode too): the value of one process with the joined batch, on every rank.
        lckt_pairs: "none" (the paper's: the plan does not use which rows are of one image), "prior" (it starts from a
            reference plan that does) or "only" (no plan: the mean cost of the pairs, the limit lckt_rho -> 1).
        lckt_rho: mass of that reference plan on the pairs, below 1, see `functional.ot_cost`.
        lckt_pairs_by: the pairs under "prior": rows of one "image" (equal idx), or of one "class" (labels).
        lckt_center: the mean subtracted from both sides, since raw features share a large component: "none", the mean
            of the "batch", or the "running" mean of the training batches, a constant for the gradient and part of the
            state dict.
        lckt_center_momentum: weight of the old mean when a training batch moves the running mean. The first batches are
            averaged plainly, until that average has a larger weight; 1 averages all batches.
    """

    lambda_gckt: float = option(0.8, checks.non_negative)
    lambda_lckt: float = option(0.05, checks.non_negative)
    critic: Annotated[str, critics] = option("nce_sn", checked_critic)
    negatives: Literal["bank", "batch", "queue", "bank_negatives"] | None = None
    queue_size: int | None = option(None, _size_or_none, later=True)
    neg_weight: float | Literal["M"] = option(1.0, _mean_weight)
    dual_scale: float = option(4.0, checks.positive)
    embed_norm: Literal["sphere", "ball"] = "sphere"
    lckt_features: Literal["embed", "raw", "mapped", "auto"] = "embed"
    lckt_reduction: Literal["mean", "sum"] = "mean"
    lckt_trains_embed: bool = True
    ot_solver: Literal["ipot", "sinkhorn"] = "ipot"
    ot_eps: float = option(0.5, checks.positive)
    ot_iters: int = option(50, functools.partial(checks.integer, least=1, below=2**31))
    ot_cost: Literal["cosine", "sqeuclidean"] = "cosine"
    ot_scope: Literal["rank", "global"] = "rank"
    lckt_pairs: Literal["none", "prior", "only"] = option("none", later=True)
    lckt_rho: float = option(DEFAULT_RHO, _rho, later=True)
    lckt_pairs_by: Literal["image", "class"] = option("image", later=True)
    lckt_center: Literal["none", "batch", "running"] = option("none", later=True)
    lckt_center_momentum: float = option(0.9, checks.fraction, later=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = CRITICS_OF[self.negatives]
        own_critic = self.critic not in BUILT_IN and self.negatives in (None, "bank")
        if own_critic and (self.num_negatives == "all" or self.shard is not None):
            option = "num_negatives='all'" if self.shard is None else "shard='rank'"
            raise ValueError(f"critic: {self.critic!r} scores rows one by one, which {option} does not allow")
        if not own_critic and self.critic not in allowed:
            needed = " or ".join(map(repr, allowed))
            raise ValueError(f"negatives: {self.negatives!r} needs critic={needed}, got critic={self.critic!r}")
        if self.negatives == "queue":
            if self.num_negatives is not None:  # None: the caller chooses it when the training images are known
                self.rows_of_queue()
        elif self.queue_size is not None:
            raise ValueError(f"queue_size: needs negatives='queue', got {self.negatives!r}")
        checks.divisor("ot_eps", self.ot_eps, dividend=self.ot_iters if self.ot_solver == "ipot" else 1)
        if self.lckt_pairs_by == "class" and self.lckt_pairs != "prior":
            raise ValueError(f"lckt_pairs_by='class' needs lckt_pairs='prior', got {self.lckt_pairs!r}")

    def rows_of_queue(self) -> int:
        """Rows of each queue: `queue_size`, or by default the number of negatives."""
        if self.queue_size is not None:
            return self.queue_size
        if not isinstance(self.num_negatives, int):
            raise ValueError("queue_size: expected a number with num_negatives='all', got None")
        return self.num_negatives


def check_execution(bank_dtype: Any, plan: Any, backend: Any, seed: Any) -> None:
    """Check the arguments for the execution of a `Contrast`, even if none is built."""
    if bank_dtype not in checks.FLOATS:
        raise TypeError(f"bank_dtype: expected one of {', '.join(map(str, checks.FLOATS))}, got {bank_dtype}")
    checks.choice("plan", plan, ("auto", *PLANS))
    checks.choice("backend", backend, ("auto", *BACKENDS))
    if seed is not None:
        seed_bits(seed)
