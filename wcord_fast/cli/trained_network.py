"""The network of a checkpoint and its data set, for `evaluate` and `export`."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from .. import models
from ..data import Dataset, LazyFolder
from ..dotted import is_path
from ..train import checkpoint
from ..train.checkpoint import CheckpointError
from .workbench import load_data

log = logging.getLogger("wcord_fast")


@dataclass(frozen=True)
class TrainedNetwork:
    """A run's checkpoint, read and checked.

    Attributes:
        path: the checkpoint file.
        model, method: names of the architecture and of the method that trained it.
        epoch: the number of finished epochs.
        classes: the classes' names, in the order of the logits.
        precision: the precision of its training and tests.
        data: its data set's name, image_size, limit_train and, if it was given, skip_corrupt.
        history: one row per epoch.
        recipe: options of the training, by name.
        task: the view of the images that the network saw, in a run of `sweep` or `crossmodal`; None in others.
    """

    path: Path
    model: str
    method: str
    epoch: int
    classes: list[str]
    precision: str
    data: dict[str, Any]
    history: list[dict[str, Any]]
    recipe: dict[str, Any]
    task: str | None
    _weights: dict[str, Any]
    _input: dict[str, Any] | None
    _fingerprint: str | None

    def dataset(self, data_dir: str | None) -> Dataset | LazyFolder:
        """The data set that it was trained on, on the CPU; CheckpointError if the data set here has other classes."""
        data = load_data(self.data, data_dir, test_only=True)
        if list(data.classes) != self.classes:
            raise CheckpointError(
                f"{self.path}: trained on {len(self.classes)} classes {self.classes[:5]} ..., "
                f"but the data set here has {data.num_classes}: {list(data.classes)[:5]} ..."
            )
        if self._input is None or (self.task is not None and "view" not in self._input):
            return data  # an old checkpoint
        shape = [data.channels, *data.image_size]
        if self._input["shape"] != shape or self._input["mean"] is None:
            seen = f"{self.task or 'images'}, {self._input['shape']}"
            raise CheckpointError(f"{self.path}: its network sees {seen}, but the images here are {shape}")
        if isinstance(data, Dataset):
            whole = self.task is None and self.data["limit_train"] is None and "skip_corrupt" not in self.data
            if whole and data.fingerprint != self._fingerprint:
                log.warning("%s: trained on other files than the data set here has", self.path)
            # Normalised as in training, also if the files here have other statistics.
            data = replace(data, mean=tuple(self._input["mean"]), std=tuple(self._input["std"]))
        return data

    def network(self, channels: int) -> nn.Module:
        """The trained network, on the CPU, in eval mode."""
        with checkpoint.usable(self.path):
            network = self.untrained(channels)
            network.load_state_dict(self._weights)
        return network.eval()

    def untrained(self, channels: int) -> nn.Module:
        """A network of this architecture for these images, with new weights."""
        known: dict[str, Any] = {}  # an old checkpoint holds nothing of its images
        if self._input is not None:
            known = {"mean": self._input["mean"], "std": self._input["std"], "image_size": self._input["shape"][1:]}
        return models.create(self.model, num_classes=len(self.classes), in_channels=channels, **known)

    def images(self, data_dir: str | None) -> dict[str, Any]:
        """Shape [C, H, W] of its images, and `mean` and `std` per channel by which pixels in [0, 1] are normalised."""
        if self.task is not None and (self._input is None or self._input.get("mean") is None):
            raise CheckpointError(
                f"{self.path}: its network sees a view of the images ({self.task}) whose normalisation is not in the "
                "checkpoint, so it cannot be exported; student.pt or teacher.pt beside it holds the weights"
            )
        if self.task is not None and "view" not in self._input:  # type: ignore[operator]
            raise CheckpointError(f"{self.path}: written by an older version, without its view's normalisation")
        if self._input is not None:
            return self._input
        data = self.dataset(data_dir)  # an old checkpoint, which does not hold them
        return {"shape": [data.channels, *data.image_size], "mean": list(data.mean), "std": list(data.std)}


def _data_name(name: str) -> str:
    """A data set's name in lower case and without "-", or a dotted path as it is; nothing is imported."""
    return name if is_path(name) else name.strip().lower().replace("-", "")


def load(path: Path, *, model: str | None = None, data: str | None = None) -> TrainedNetwork:
    """The checkpoint at `path`, a file or the directory of a run.

    Args:
        path: the checkpoint.
        model, data: the network and data set that the caller expects; None: any that is not a dotted path.
    Raises:
        CheckpointError: no checkpoint (the runs in the directory are named), a damaged or incomplete one, one of
            another network or data set, or of a user's code that the caller does not name.
    """
    file = path / checkpoint.CURRENT if path.is_dir() else path
    if not file.exists() and path.is_dir():
        below = (f"*/{checkpoint.CURRENT}", f"*/*/{checkpoint.CURRENT}")  # METHOD, and seedS/METHOD
        runs = sorted(str(p.parent) for pattern in below for p in path.glob(pattern))
        hint = f"; the runs in it: {', '.join(runs)}" if runs else ""
        if (previous := path / checkpoint.PREVIOUS).exists():  # killed between the two renames
            hint = f"; {previous} is there: name it, or let the run go on"
        raise CheckpointError(f"{path}: expected a run's directory, with a {checkpoint.CURRENT}{hint}")
    state = checkpoint.load(file)
    with checkpoint.usable(file):
        spec = state["spec"]
        if "name" not in spec["data"]:
            raise CheckpointError(
                f"{file}: written by distill.fit, whose data and network have no name to find them by"
            )
        for option, name, expected, spelled in (
            ("model", spec["model"], model, models.spelled),
            ("data", spec["data"]["name"], data, _data_name),
        ):
            if expected is not None and spelled(name) != spelled(expected):
                raise CheckpointError(f"{file}: its {option} is {name!r}, but --{option} says {expected!r}")
            if expected is None and is_path(name, libraries=option == "model"):
                raise CheckpointError(
                    f"{file}: names {name!r}, code outside of this library, which runs only if you name it too: "
                    f"expected --{option} {name}"
                )
        return TrainedNetwork(
            path=file,
            model=spec["model"],
            method=spec["method"]["name"],
            epoch=state["epoch"],
            classes=list(spec["data"]["classes"]),
            precision=spec["recipe"]["precision"],
            data={key: spec["data"][key] for key in ("name", "image_size", "limit_train")}
            | {key: value for key, value in spec["data"].items() if key == "skip_corrupt"},
            history=state["history"],
            recipe=spec["recipe"],
            task=spec["task"]["view"] if "task" in spec else None,
            _weights=state["student"],
            _input=state.get("images"),
            _fingerprint=spec["data"].get("fingerprint"),
        )
