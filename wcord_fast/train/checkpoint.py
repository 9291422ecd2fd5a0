"""Checkpoints: written whole or not at all, verified when read, refused when they belong to another run."""

from __future__ import annotations

import logging
import os
import random
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from . import files, safe_load
from .schedule import lengthened

log = logging.getLogger(__name__)

FORMAT = 1
ENTRIES = {"spec": dict, "epoch": int, "student": dict, "method": dict, "optimizer": dict, "rng": dict, "history": list}
CURRENT, PREVIOUS = "checkpoint.pt", "checkpoint.prev.pt"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message names the file and says why."""


def save(directory: Path, state: dict[str, Any]) -> None:
    """Write `state` as the directory's checkpoint; keep the previous one as `checkpoint.prev.pt`.

    One of the two files is complete at every moment, even if the process is killed or the disk is full.
    """
    current = directory / CURRENT
    with files.replacing(current) as file:
        torch.save({"format": FORMAT, **state}, file)
        if current.exists():  # after the new one is on the disk, before it takes this name
            file.sync()
            os.replace(current, directory / PREVIOUS)


def save_state_dict(path: Path, state: dict[str, Any]) -> None:
    """Write a plain state dict, atomically."""
    with files.replacing(path) as file:
        torch.save(state, file)


def load_latest(
    directory: Path,
    spec: dict[str, Any],
    verify: Callable[[Path, dict[str, Any]], None] | None = None,
    extend: bool = False,
) -> dict[str, Any] | None:
    """The directory's checkpoint, or the previous one if the last cannot be read; None if there is none.

    The previous one then replaces the damaged one, so that the next save does not keep the damaged one instead.

    Args:
        directory: the run's directory.
        spec: the run's identity: nested plain values, which must equal the checkpoint's.
        verify: a function of a checkpoint's path and state that raises CheckpointError if one of its files is damaged.
        extend: accept the checkpoint of a run of fewer epochs, too.
    Raises:
        CheckpointError: every file there is damaged, or the checkpoint belongs to another run (the message names the
            first values that differ).
        OutputError: the directory cannot be written.
    """
    damage: list[str] = []
    for path in (directory / CURRENT, directory / PREVIOUS):
        if not path.exists():
            continue
        try:
            state = load(path)
            if verify is not None:
                verify(path, state)
        except CheckpointError as error:
            damage.append(str(error))
            continue
        for line in damage:
            log.warning("%s; going on from %s (epoch %d)", line, path, state["epoch"])
        require_same(path, lengthened(state["spec"], spec) if extend else state["spec"], spec)
        if damage:
            _promote(path, directory / CURRENT)
        return state
    if damage:
        raise CheckpointError("; ".join(damage) + "; use --restart to start over")
    return None


def _promote(good: Path, damaged: Path) -> None:
    try:
        os.replace(good, damaged)
    except OSError as error:
        raise files.cannot_write(damaged, error) from None


def load(path: Path) -> dict[str, Any]:
    """One checkpoint written by `save`, verified.

    Raises:
        CheckpointError: the file is missing, damaged, or not a checkpoint of this package.
    """
    state = _read_plain(path)
    if not isinstance(state, dict) or "format" not in state or "spec" not in state:
        raise CheckpointError(
            f"{path}: not a checkpoint of this package (it holds no 'format' and 'spec'); a run's is its {CURRENT}"
        )
    if state["format"] != FORMAT:
        raise CheckpointError(f"{path}: expected checkpoint format {FORMAT}, got {state['format']!r}")
    for key, kind in ENTRIES.items():
        if not isinstance(state.get(key), kind):
            problem = f"{key!r} is {type(state[key]).__name__}, not {kind.__name__}" if key in state else f"no {key!r}"
            raise CheckpointError(f"{path}: an incomplete checkpoint ({problem})")
    require_finite(path, state["student"])
    return state


def restore(
    directory: Path, state: dict[str, Any], student: nn.Module, method: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Restore networks, optimiser and random generators from `state`, the checkpoint of `directory`."""
    with usable(directory):
        student.load_state_dict(state["student"])
        method.load_state_dict(state["method"])
        optimizer.load_state_dict(state["optimizer"])
        set_rng_state(state["rng"])


@contextmanager
def usable(path: Path) -> Iterator[None]:
    """A context that uses values of the checkpoint `path`; any error inside it becomes a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except KeyError as error:
        raise CheckpointError(f"{path}: an incomplete checkpoint (no {error})") from None
    except Exception as error:  # values of any type and shape may be in the file
        message = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{path}: an incomplete checkpoint, or one of other networks ({message[:300]})") from None


def require_finite(path: Path, weights: dict[str, Any]) -> None:
    """CheckpointError, naming the first such tensor, if a state dict holds NaN or infinity."""
    for name, value in weights.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
            raise CheckpointError(f"{path}: {name} holds NaN or infinite values")


def read(path: Path | str) -> Any:
    """The content of a file by `torch.save` or safetensors, on the CPU. None of the file's code runs.

    Beside tensors and plain values a file of another program may hold any objects: stand-ins take their place, and
    whole modules become their state dicts (see `safe_load.load`).

    Raises:
        CheckpointError: a missing, damaged (checksums are verified) or hostile file.
    """
    return _read(Path(path).expanduser(), safe_load.load)


def _read_plain(path: Path) -> Any:
    """`read` for our own files, which hold tensors and plain values only."""
    return _read(path, lambda path: torch.load(path, map_location="cpu", weights_only=True))


def _read(path: Path, load: Callable[[Path], Any]) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        if safe_load.is_safetensors(path):
            return safetensors.torch.load_file(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                bad = archive.testzip()
            if bad:
                raise CheckpointError(f"{path}: damaged, the checksum of {bad} is wrong")
        return load(path)
    except CheckpointError:
        raise
    except safe_load.HostileFile as error:
        raise CheckpointError(f"{path}: refused, {error}") from None
    except Exception as error:  # a damaged pickle can fail in any way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        if "weights_only" in reason or "Weights only" in reason:  # its message advises unsafe loading
            reason = "it holds more than tensors and plain values, and such a file can run code"
        if isinstance(error, KeyError):  # its message is the number of an unknown instruction
            reason = "it is no pickle"
        raise CheckpointError(f"{path}: damaged or not a PyTorch file ({reason})") from None


# How a user asks for a value that a spec has under another name.
OPTIONS = {"data.limit_train": "the number of training images (--limit-train, of students --limit-student)"}


def require_same(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """CheckpointError, naming the first three different values, unless two specs are equal."""
    wanted_values, saved_values = _flat(wanted), _flat(saved)
    differing = [
        key for key in dict.fromkeys([*wanted_values, *saved_values]) if wanted_values.get(key) != saved_values.get(key)
    ]
    if differing:
        text = "; ".join(
            f"{OPTIONS.get(key, key)} was {saved_values.get(key)!r}, now {wanted_values.get(key)!r}"
            for key in differing[:3]
        )
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        longer = differing == ["recipe.epochs"] and lengthened(saved, wanted) != saved
        go_on = "extend (--extend) to go on with it, " if longer else ""
        raise CheckpointError(
            f"{path} was made with another configuration: {text}{more}. Use another output folder (--output-dir) to "
            f"keep it, {go_on}or restart (--restart) to train every run in it anew"
        )


def fingerprint(network: nn.Module, weights: bool = True) -> str:
    """A short hash of a network's weights and buffers, names and values; `weights=False`: names and shapes."""
    digest = sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        if not weights:
            digest.update(str(getattr(value, "shape", "")).encode())
        elif isinstance(value, torch.Tensor):
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def rng_state() -> dict[str, Any]:
    """The state of torch's, numpy's and Python's generators, as tensors and plain values."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # type: ignore[misc]
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
        "python": [version, list(internal), gauss],
    }


def seed_everything(seed: int) -> None:
    """Seed torch's, numpy's and Python's generators, which `rng_state` saves."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # numpy's seeds have 32 bits
    random.seed(seed)


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore the generators to `state`, as `rng_state` returned it."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def _flat(spec: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in spec.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
