"""NegativeSampler: the bank rows that are each anchor's negatives."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..distributed.ranks import same_on_all
from ..ops import checks
from ..ops.dispatch import BACKENDS
from ..ops.first_order import first_order
from ..ops.sampling.alias import alias_table
from ..ops.sampling.draws import draw_op
from ..ops.sampling.reference import pool_row, pool_size
from ..ops.sampling.spec import ALL, TABLES, DrawSpec
from ..ops.tensors import write_count
from ..ops.warn import warn
from .loading import replace_record
from .row_buffer import MAX_ROWS
from .state import Record, StateModule

MAX_DRAWS = 2**33  # two draws per 32-bit counter


class NegativeSampler(StateModule):
    """Negatives as a pure function of (seed, step, anchor): no index tensor is needed, on any backend.

    Anchor b = anchor_offset + position in the batch draws K rows from its pool: all rows (`exclude="none"`), all but
    its own (`"self"`), or all rows of other classes (`"class"`). Without replacement the sample is the image of [0, K)
    under a keyed permutation of the pool; with replacement draw k is one 64-bit Philox word scaled to the pool.

    Args:
        num_data: N, rows of the bank, 1 .. 2^31 - 1.
        k: K, negatives per anchor, or "all" (every pool row once, K_b = P_b).
        labels: integer class of each row, length N. Needed for `exclude="class"`. A label below 0 means that the class
            is unknown: under "class" such a row is no negative of itself, and may be one of every other row.
        exclude: "class" (default with labels of more than two known classes), "self" (default otherwise) or "none".
        replacement: None (default: without, except for an anchor whose pool is smaller than K; warned once), False
            (K > pool is an error) or True.
        weights: non-negative weight of each row, length N: draws with replacement in proportion to it, by an alias
            table. Only with `exclude="none"` and `replacement` None or True.
        expected: score every pool row with weight K / P_b, the expectation of a K-draw loss, in place of K draws.
            Nothing is drawn, so `replacement` is checked and has no effect.
        seed: 64-bit integer; None takes one from torch's default generator (rank 0's; then all ranks construct it).

    The state (seed, t) is a buffer `state`, int64 [2], so that resume is exact and CUDA graphs replay. Functions that
    take `negatives` read t and never advance it; `advance()` does, once per training step. A buffer `made_with`, uint8,
    records options and a checksum of labels or weights: a state dict with another record is refused, or loaded with
    a warning under `strict=False`; one without a record is loaded.

    Raises:
        ValueError: an empty pool, K > pool with `replacement=False`, labels or weights of the wrong length or value,
            or options that exclude each other.
        TypeError: an argument of the wrong type.

    Source: CRD (Tian et al., ICLR 2020), which draws on the host, with numpy.
    """

    state: Tensor
    made_with: Tensor
    keeps_own_state = True  # see distributed.ddp
    beside = "state"

    def __init__(
        self,
        num_data: int,
        k: int | str,
        *,
        labels: Any = None,
        exclude: str | None = None,
        replacement: bool | None = None,
        weights: Any = None,
        expected: bool = False,
        seed: int | None = None,
    ):
        super().__init__()
        self.num_data = checks.integer("num_data", num_data, least=1)
        if self.num_data > MAX_ROWS:
            raise ValueError(f"num_data: expected at most {MAX_ROWS} rows, got {num_data}")
        self.k = check_count("k", k)
        replacement = replacement_option(replacement)
        self.expected = checks.boolean("expected", expected)
        if exclude is None and weights is not None:
            exclude = "none"
        self.exclude, classes = exclusion_rule(exclude, labels, self.num_data)
        self._check_combination(replacement, weights)
        self.source = "weighted" if weights is not None else self.exclude
        tables = self._class_tables(classes) if classes is not None and self.source == "class" else {}
        if weights is not None:
            tables["threshold"], tables["alias"] = alias_table(_weights(weights, self.num_data))
        self.replacement = self._replacement_rule(replacement, tables)
        self._seed = seed_bits(seed)
        self.tables = tables
        self._current = self._seed  # replaced by a loaded state dict's seed
        self.register_buffer("state", torch.tensor([self._seed, 0], dtype=torch.int64))
        self._accept_writes()
        self.record = Record(
            num_data=self.num_data,
            k=self.k,
            source=list(TABLES).index(self.source),
            replacement=("no", "yes", "auto").index(self.replacement),
            expected=int(self.expected),
            tables=zlib.crc32(b"".join(t.numpy().tobytes() for t in tables.values())),
        )
        self.register_buffer("made_with", self.moved(self.record.tensor("cpu")))
        self.constants = ("made_with",)
        self.register_load_state_dict_pre_hook(_fit)

    @property
    def step(self) -> Tensor:
        """t, the step whose rows are drawn: int64 scalar on the sampler's device (`int(...)` reads it on the host)."""
        return self.state[1]

    @step.setter
    def step(self, value: int) -> None:
        self._undo_average()
        self.state[1] = checks.integer("step", value, least=0, below=2**63)
        self._accept_writes()

    @property
    def seed(self) -> int:
        """The seed, given or loaded, as an unsigned 64-bit integer."""
        self._undo_average()
        return self._current & 0xFFFFFFFFFFFFFFFF

    def advance(self) -> None:
        """t <- t + 1, in place on the device."""
        self._undo_average()
        self.state[1] += 1
        self._accept_writes()

    @first_order
    def draw(self, index: Tensor, anchor_offset: int = 0, *, backend: str = "auto") -> Tensor:
        """The rows that the bank functions score in this step.

        Args:
            index: int64 or int32 [B], each anchor's own row in [0, N), on the sampler's device.
            anchor_offset: global number of the first anchor (the lower ranks' batch sizes).
            backend: "auto", "native" or "reference".
        Returns:
            int64 [B, K]; column j is negative j. With K = "all" or `expected=True`, the whole pool in pool order.
        Raises:
            ValueError: an index out of [0, N), or a whole pool whose size differs between the anchors.
        """
        checks.tensor("index", index, shape=("B",), dtypes=checks.INDICES)
        checks.choice("backend", backend, ("auto", *BACKENDS))
        checks.same_device(index=index, sampler=self.state)
        spec = self.spec(anchor_offset)
        if spec.whole_pool:
            return self._whole_pool(index, spec)
        return draw_op(index, self.num_data, *_draw_args(spec), backend)

    def spec(self, anchor_offset: int = 0) -> DrawSpec:
        """The `DrawSpec` of this sampler in the current step."""
        self.require_filled()
        offset = checks.integer("anchor_offset", anchor_offset, least=0, below=2**32)
        self._undo_average()
        if self.state.dtype != torch.int64:
            raise TypeError(f"state: expected int64 [2], the seed and the step, got {self.state.dtype}")
        state = self.state.contiguous()
        tables = [state, *(self.table(name, state.device) for name in TABLES[self.source][1:])]
        return DrawSpec(self.source, self.k, self.replacement, self.expected, offset, tables)

    def fingerprint(self) -> str:
        """A line that differs between samplers of different labels or weights."""
        tables = [self.tables[name] for name in TABLES[self.source][1:]]
        sums = [checksum(t) for t in tables]
        return f"{self.source}, checksums of its tables {sums}"

    def extra_repr(self) -> str:
        k = "'all'" if self.k == ALL else self.k
        rule = f"exclude={self.exclude!r}, replacement={self.replacement!r}, expected={self.expected}"
        return f"num_data={self.num_data}, k={k}, {rule}"

    def reset_parameters(self) -> None:
        """Restore the seed of the constructor, and step 0; tables and `made_with` never change."""
        if not self.state.is_meta:
            self._current = self._seed
            self.state.copy_(torch.tensor([self._seed, 0], dtype=torch.int64, device="cpu"))
            self._accept_writes()

    def _accept_writes(self) -> None:
        """Accept all writes to the state so far."""
        if not torch.compiler.is_compiling():
            self._accepted = (self.state, write_count(self.state))

    def _undo_average(self) -> None:
        """Restore the seed if a rounded average of it was written to the state; accept any other written seed.

        An average of buffers (`AveragedModel(use_buffers=True)`) goes through fp32, which has no room for a seed.
        """
        if torch.compiler.is_compiling():
            return
        state = self.state
        known, writes = self._accepted
        if (known is state and writes == write_count(state)) or state.is_meta or _capturing(state):
            return
        seed = int(state[0])
        if seed != self._current and abs(seed - self._current) <= max(1, abs(self._current) >> 10):
            state[0] = self._current
        else:
            self._current = seed
        self._accept_writes()

    def _apply(self, fn, recurse=True):
        """Move the state; `to_empty` loses it only if it is on meta."""
        self._undo_average()
        before = self.state
        super()._apply(fn, recurse)
        after = self.state
        if after is not before and not before.is_meta and not after.is_meta:
            after.copy_(before)
        self._accept_writes()
        return self

    def __setstate__(self, state):
        super().__setstate__(state)
        self._accept_writes()

    def _save_to_state_dict(self, *args):
        self._undo_average()
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        super()._load_from_state_dict(state_dict, prefix, *args)
        if f"{prefix}state" in state_dict and not self.state.is_meta:
            self._current = int(self.state[0])
        self._accept_writes()

    def _whole_pool(self, index: Tensor, spec: DrawSpec) -> Tensor:
        checks.rows_in_range("index", index, self.num_data)
        sizes = pool_size(index.long(), self.num_data, spec)
        if int(sizes.min()) != int(sizes.max()):
            raise ValueError(
                "draw: to be written out as rows, every anchor's whole pool must have one size, got "
                f"{int(sizes.min())} to {int(sizes.max())}; score it by the bank functions, which need no index tensor"
            )
        position = torch.arange(int(sizes[0]), device=index.device).expand(len(index), -1)
        return pool_row(position, index.long(), spec)

    def _check_combination(self, replacement: bool | None, weights: Any) -> None:
        if weights is not None and (self.exclude != "none" or replacement is False or self.k == ALL or self.expected):
            raise ValueError(
                "weights: only with exclude='none', replacement None or True, an integer k and expected=False; got "
                f"exclude={self.exclude!r}, replacement={replacement}, k={'all' if self.k == ALL else self.k}, "
                f"expected={self.expected}"
            )
        if self.k == ALL and (replacement or self.expected):
            raise ValueError(
                f"k='all' scores every pool row once; got replacement={replacement}, expected={self.expected}"
            )

    def _class_tables(self, classes: np.ndarray) -> dict[str, Tensor]:
        order = np.argsort(classes, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        start = np.concatenate(([0], np.cumsum(np.bincount(classes))))
        arrays = {"label": classes, "order": order, "rank": rank, "class_start": start}
        return {name: torch.from_numpy(a.astype(np.int32)) for name, a in arrays.items()}

    def _replacement_rule(self, replacement: bool | None, tables: dict[str, Tensor]) -> str:
        n = self.num_data
        if self.source == "class":
            sizes = tables["class_start"].diff()
            smallest, largest = n - int(sizes.max()), n - int(sizes.min())
        else:
            smallest = largest = n - 1 if self.source == "self" else n
        if smallest == 0:
            raise ValueError(f"exclude={self.exclude!r} leaves an anchor no row to draw: num_data={n}")
        if self.source == "weighted" or replacement:
            return "yes"
        if self.k == ALL or self.k <= smallest or self.expected:
            return "no"
        if replacement is False:
            raise ValueError(
                f"k: expected at most the smallest pool, {smallest} rows, with replacement=False; got {self.k}"
            )
        warn(
            f"k = {self.k} exceeds a pool of {smallest} rows: such an anchor draws with replacement "
            "(pass replacement=True to say so, or a smaller k)"
        )
        return "yes" if self.k > largest else "auto"


def _fit(module: NegativeSampler, state_dict, prefix, _metadata, _strict, _missing, unexpected_keys, _errors) -> None:
    module.report_misfits(replace_record(module, state_dict, prefix), unexpected_keys)


def _capturing(state: Tensor) -> bool:
    """Whether a CUDA graph is being captured, which would write the present seed at every replay."""
    return state.is_cuda and torch.cuda.is_current_stream_capturing()


def checksum(tensor: Tensor) -> int:
    """A number that differs between tensors of different values, as good as always."""
    return zlib.crc32(tensor.cpu().contiguous().numpy().data)


def check_count(name: str, k: int | str) -> int:
    """A number of negatives, or ALL for "all"."""
    if isinstance(k, str) and k != "all":
        raise ValueError(f"{name}: expected an int or 'all', got {k!r}")
    return ALL if k == "all" else checks.integer(name, k, least=1, below=MAX_DRAWS)


def replacement_option(replacement: bool | None) -> bool | None:
    """None, True or False (numpy's too); 0, 1 and other values that equal a bool are refused."""
    if replacement is None:
        return None
    try:
        return checks.boolean("replacement", replacement)
    except TypeError:
        raise TypeError(f"replacement: expected None, True or False, got {replacement!r}") from None


def exclusion_rule(exclude: str | None, labels: Any, num_data: int) -> tuple[str, np.ndarray | None]:
    """The rule in force and int32 classes [N] or None.

    By default "class" with labels of more than two known classes, else "self". A row of unknown class is a class of
    its own; those follow the known classes, in the order of the rows.
    """
    classes, known = (None, 0) if labels is None else _classes(labels, num_data)
    if exclude is None:
        exclude = "class" if known > 2 else "self"
    checks.choice("exclude", exclude, ("class", "self", "none"))
    if exclude == "class" and classes is None:
        raise ValueError("exclude='class' needs labels, one integer per row; got labels=None")
    return exclude, classes


def _draw_args(spec: DrawSpec) -> tuple:
    return spec.tables, spec.source, spec.k, spec.replacement, spec.anchor_offset


def _classes(labels: Any, num_data: int) -> tuple[np.ndarray, int]:
    """Labels as int32 classes 0 .. C-1, [N], and how many of them are known; see `exclusion_rule`."""
    try:
        array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    except (TypeError, ValueError, RuntimeError) as error:  # bfloat16, meta, rows of unequal length
        raise TypeError(f"labels: expected {num_data} integers, got {type(labels).__name__} ({error})") from None
    if array.dtype.kind not in "iu":
        raise TypeError(f"labels: expected integers, got dtype {array.dtype}")
    if array.shape != (num_data,):
        raise ValueError(f"labels: expected one per row, shape [{num_data}], got {list(array.shape)}")
    known = array >= 0
    values, known_classes = np.unique(array[known], return_inverse=True)
    classes = np.empty(num_data, np.int32)
    classes[known] = known_classes
    classes[~known] = np.arange(len(values), len(values) + num_data - len(known_classes))
    return classes, len(values)


def _weights(weights: Sequence[float] | Tensor, num_data: int) -> Tensor:
    try:
        w = torch.as_tensor(weights, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as e:
        raise TypeError(f"weights: expected {num_data} numbers, got {type(weights).__name__} ({e})") from None
    if w.is_complex():
        raise TypeError(f"weights: expected real numbers, got dtype {w.dtype}")
    # `as_tensor` has rounded the numbers of a list to fp32.
    w = w.double() if hasattr(weights, "dtype") else torch.as_tensor(weights, dtype=torch.float64, device="cpu")
    if w.shape != (num_data,):
        raise ValueError(f"weights: expected one per row, shape [{num_data}], got {list(w.shape)}")
    if not bool(torch.isfinite(w).all()) or bool((w < 0).any()) or not float(w.max()) > 0:
        raise ValueError(
            f"weights: expected finite values >= 0 with a positive sum, got a range of {w.min()} to {w.max()}"
        )
    return w


def seed_bits(seed: int | None) -> int:
    """The bits of the seed as a signed 64-bit integer; None draws one (in a process group rank 0's, for all)."""
    if seed is None:
        return same_on_all(int(torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device="cpu")))
    seed = checks.integer("seed", seed, least=-(2**63))
    if seed >= 2**64:
        raise ValueError(f"seed: expected a 64-bit integer, got {seed}")
    return seed - 2**64 if seed >= 2**63 else seed
