"""From a configuration to trained networks: the data, the teacher, and one student per method."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .. import data as datasets
from .. import distill, models
from ..data import Dataset, LazyFolder
from ..distill.stage import require_taps
from ..distributed import ranks
from ..models import hf_folder
from ..train import checkpoint
from ..train.allocator import keep_freed_memory
from ..train.checkpoint import CheckpointError
from ..train.evaluation import evaluate
from ..train.loggers import Row
from ..train.logs import to_screen
from ..train.loop import Run, fit
from ..train.ranks import from_main, require_equal
from ..train.views import View
from .config import PRETRAINED, Config

log = logging.getLogger(__name__)


@dataclass
class Result:
    """A trained network. `history` has one row per epoch; for a teacher from a file, one row with its test accuracy."""

    name: str
    network: nn.Module
    architecture: str
    history: list[Row]

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.network.parameters())


class Workbench:
    """A configuration's data set on its device, and its runs."""

    def __init__(self, config: Config, data: Dataset | LazyFolder | None = None) -> None:
        self.config = config
        self.device = config.torch_device
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # as the published recipe does: shapes repeat
        elif self.device.type == "cpu":
            keep_freed_memory()
        self.data = load_data(data_spec(config), config.data_dir).to(self.device) if data is None else data
        require_equal("data_dir: the processes read different images", lambda: self.data.fingerprint)
        config.require_runnable(self.device, ranks().world)
        layout = config.channels_last
        self.train = datasets.train_batches(
            self.data,
            config.batch_size,
            seed=config.seed,
            channels_last=layout,
            part=ranks(),
            transforms=config.transforms,
        )
        self.test = datasets.test_batches(self.data, config.eval_batch_size, channels_last=layout)

    @classmethod
    def start(cls, config: Config) -> Workbench:
        """A workbench. It sends the package's log to the screen from now on and logs the data set and the device."""
        to_screen(config.quiet)
        bench = cls(config)
        device, threads = bench.device, f" ({torch.get_num_threads()} threads)" if bench.device.type == "cpu" else ""
        log.info(
            "%s: %d training and %d test images, %d classes; %s%s; output in %s",
            bench.data.name,
            len(bench.data.train_labels),
            len(bench.data.test_labels),
            bench.data.num_classes,
            device,
            threads,
            config.directory,
        )
        return bench

    def of_student(self, seed: int) -> Workbench:
        """The workbench of one seed's students, which may have fewer images than the teacher."""
        config, data = self.config.of_student(seed), self.data
        if config.limit_train != self.config.limit_train and config.limit_train is not None:
            try:
                data = data.limit_train(config.limit_train)
            except ValueError as error:
                raise ValueError(str(error).replace("limit_train", "limit_student", 1)) from None
        return Workbench(config, data)

    def require_methods(self) -> None:
        """Build every method once, so that a method that cannot serve raises before the teacher is trained."""
        student, teacher = (self._network(name) for name in (self.config.student, self.config.teacher))
        pair = self._pair(student, teacher)
        for method in self.config.methods:
            try:
                require_taps(distill.build(method, pair, self.config.method_options(method)), pair)
            except ValueError as error:
                raise distill.CannotServe(f"{method}: {str(error).removeprefix(f'{method}: ')}") from None

    def teacher(self, students: Sequence[Path] = ()) -> Result:
        """The teacher, loaded from the given checkpoint, or else trained (or resumed) in the output directory.

        Args:
            students: folders below which there may be runs of students that learned from it; default: the output
                directory.
        """
        config = self.config = self._kept_teacher(students or [self.config.directory])
        network = self._network(config.teacher)
        is_folder = hf_folder.is_folder_name(config.teacher)  # which has brought its weights
        if config.teacher_checkpoint is not None or is_folder:
            if config.teacher_checkpoint is not None:
                path = _existing("teacher_checkpoint", config.teacher_checkpoint)
                load_teacher(network, path, self.spec("teacher", config.teacher, "ce"))
            tested = evaluate(network, self.test, config.precision)
            log.info("teacher   %s: test %.2f %%", config.teacher_checkpoint or config.teacher, tested["test_top1"])
            history = [{"epoch": 0, **tested, "best_top1": tested["test_top1"]}]
            return Result("teacher", network, config.teacher, history)
        spec = self.spec("teacher", config.teacher, "ce") | self._load_initial("teacher", network, config.init_teacher)
        history = fit(self._run("teacher", spec, network, teacher=None, export="teacher.pt"))
        return Result("teacher", network, config.teacher, history)

    def _kept_teacher(self, folders: Sequence[Path]) -> Config:
        """With `extend`, the configuration with the epochs of the finished teacher, from which students have learned.

        Raises:
            CheckpointError: teacher_epochs asks for more of a teacher that has students here, whose runs would be lost.
        """
        config, path = self.config, self.config.directory / "teacher" / checkpoint.CURRENT
        if not config.extend or config.teacher_checkpoint is not None:
            return config
        saved = from_main(lambda: _finished_epochs(path))
        if saved is None or saved >= config.recipe("teacher")["epochs"]:
            return config
        if config.teacher_epochs is None:
            log.info("teacher: keeps its %d epochs (--teacher-epochs N, in another --output-dir, gives it more)", saved)
            return replace(config, teacher_epochs=saved)
        found = (path for folder in folders for path in folder.rglob(checkpoint.CURRENT))
        students = [path for path in found if path.parent.name not in ("teacher", "stage")]
        if students:
            raise CheckpointError(
                f"teacher_epochs: {students[0].parent} learned from the teacher of {saved} epochs, which --extend "
                f"would replace by one of {config.teacher_epochs}; expected {saved}, or another --output-dir"
            )
        return config

    def student(self, method: str, teacher: Result | None) -> Result:
        """A student trained (or resumed) with `method`. Its initialisation does not depend on the method."""
        config = self.config
        network = self._network(config.student)
        spec = self.spec("student", config.student, method) | self._load_initial(
            "student", network, config.init_student
        )
        frozen = None
        if teacher is not None:
            frozen = teacher.network.eval().requires_grad_(False)
            spec["teacher"] = {"model": teacher.architecture, "weights": checkpoint.fingerprint(frozen)}
        history = fit(self._run(method, spec, network, teacher=frozen, export="student.pt"))
        return Result(method, network, config.student, history)

    def spec(self, role: Any, architecture: str, method: str) -> dict[str, Any]:
        """The identity of a run, in plain values: a directory's run is resumed if its spec is equal."""
        return {
            "role": role,
            "model": architecture,
            "data": {
                **data_spec(self.config),
                "classes": list(self.data.classes),
                "train_images": len(self.data.train_labels),
                "fingerprint": self.data.fingerprint,
            },
            "method": {"name": method, **distill.described(self.config.method_options(method))},
            "recipe": self.config.recipe(role),
        }

    def _load_initial(self, role: str, network: nn.Module, weights: str | None) -> dict[str, Any]:
        """Load the initial weights, if any, and return their entry of the run's spec."""
        architecture = getattr(self.config, role)
        if weights is None:
            return {"init": checkpoint.fingerprint(network)} if hf_folder.is_folder_name(architecture) else {}
        if weights == PRETRAINED:
            made = self._network(architecture, pretrained=True)
            network.load_state_dict(made.state_dict())
            size, own = (getattr(getattr(n, "prepare", None), "size", None) for n in (made, network))
            if size not in (None, own or self.data.image_size[0]):
                message = "--%s %s is made for images of %s pixels a side; --%s %s@%s resizes them"
                log.warning(message, *[role, architecture, size] * 2)
        else:
            load_weights(network, _existing(f"init_{role}", weights), f"--{role} {architecture}")
        return {"init": checkpoint.fingerprint(network)}

    def _network(self, architecture: str, pretrained: bool = False) -> nn.Module:
        torch.manual_seed(self.config.seed)
        return create_network(architecture, self.data, self.device, self.config.channels_last, pretrained=pretrained)

    def _run(self, name: str, spec: dict[str, Any], network: nn.Module, teacher: nn.Module | None, export: str) -> Run:
        config = self.config
        pair = self._pair(network, teacher)
        method = distill.build(spec["method"]["name"], pair, config.method_options(spec["method"]["name"]))
        checkpoint.seed_everything(config.seed)  # so that training does not depend on how many numbers the method drew
        return Run(
            name=name,
            directory=config.directory / name,
            spec=spec,
            student=network,
            method=method.to(self.device),
            teacher=teacher if method.compares else None,
            train=self.train,
            test=self.test,
            export=export,
            log_every=config.log_every,
            log_grad_norms=config.log_grad_norms,
            loggers=config.chosen_loggers,
            quiet=config.quiet,
            restart=config.restart,
            extend=config.extend,
        )

    @property
    def known_labels(self) -> Tensor | None:
        """The classes of the training images that the methods may use."""
        return self.data.train_labels

    def _pair(self, student: nn.Module, teacher: nn.Module | None) -> distill.Pair:
        return distill.pair_of(
            student,
            teacher,
            next(iter(self.test))[0][:2],
            num_data=len(self.data.train_labels),
            labels=self.known_labels,
            seed=self.config.seed,
        )


def state_of(run: Path, config: Config, role: Literal["teacher", "student"]) -> str:
    """What --dry-run says of a run: "finished", or "to do" if the command has to train it, or to go on with it."""
    if config.restart or not (run / f"{role}.pt").exists():
        return "to do"
    if not config.extend or (role == "teacher" and config.teacher_epochs is None):  # such a teacher is kept
        return "finished"
    epochs = _finished_epochs(run / checkpoint.CURRENT)
    return "finished" if epochs is not None and epochs >= config.recipe(role)["epochs"] else "to do"


def data_spec(config: Config) -> dict[str, Any]:
    """The entries of a run's spec that name its data set."""
    spec = {"name": config.data, "image_size": config.image_size, "limit_train": config.limit_train}
    return spec | ({"skip_corrupt": True} if config.skip_corrupt else {})


def load_data(spec: Mapping[str, Any], data_dir: str | None, test_only: bool = False) -> Dataset | LazyFolder:
    """The data set of a `data_spec`. With `skip_corrupt`, rank 0 looks for unreadable files, and all ranks skip them.

    Args:
        spec: a `data_spec`.
        data_dir: the folder of the data set's files.
        test_only: search the test files only for unreadable ones.
    """
    name, skip = spec["name"], spec.get("skip_corrupt", False)
    held = datasets.source(name).held
    result = datasets.load(name, data_dir=data_dir, image_size=spec["image_size"], skip_corrupt=skip and held)
    if skip and isinstance(result, LazyFolder):
        lazy = result
        result = lazy.without(from_main(lambda: lazy.unreadable(train=not test_only)))
    return result if spec["limit_train"] is None else result.limit_train(spec["limit_train"])


def create_network(
    architecture: str,
    data: Dataset | LazyFolder,
    device: torch.device,
    channels_last: bool = False,
    view: View | None = None,
    **options: Any,
) -> nn.Module:
    """A network for the classes of `data`, initialised from torch's generator.

    Args:
        architecture: name of the network.
        data: gives the number of classes, and the images' size, channels, mean and deviation.
        device, channels_last: device and memory format of the network.
        view: the view of the images that the network gets; None: the images themselves.
        **options: further options of `models.create`.
    """
    network_input = data if view is None else view
    size: Sequence[int] = data.image_size
    if view is not None:
        size = view.see(torch.zeros(1, data.channels, *size)).shape[-2:]
    options |= {
        "in_channels": network_input.channels,
        "mean": network_input.mean,
        "std": network_input.std,
        "image_size": size,
    }
    network = models.create(architecture, num_classes=data.num_classes, **options)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return network.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]


def _finished_epochs(path: Path) -> int | None:
    """The epochs of the run whose checkpoint is at `path`; None if it is not finished or not there."""
    with suppress(CheckpointError):
        state = checkpoint.load(path)
        epochs: int = state["spec"]["recipe"]["epochs"]
        return epochs if state["epoch"] == epochs else None
    return None


def _existing(option: str, path: str) -> Path:
    """`path` as a path; CheckpointError, which names the option, if nothing is there."""
    if not Path(path).exists():
        raise CheckpointError(f"{option}: no such file or run's directory, got {path!r}")
    return Path(path)


def load_teacher(network: nn.Module, path: Path, spec: dict[str, Any]) -> None:
    """Load a teacher's weights from our checkpoint (or its run's directory), or from any file with a state dict.

    A file of another program: see `models.load_weights`.

    Raises:
        CheckpointError: a missing or damaged file, another architecture or data set, keys that do not fit, or weights
            that are not finite.
    """
    if path.is_dir():
        path = path / checkpoint.CURRENT
    value = checkpoint.read(path)
    if isinstance(value, dict) and "spec" in value and "student" in value:
        with checkpoint.usable(path):
            result = {"model": models.spelled(value["spec"]["model"]), "data": _identity(value["spec"]["data"])}
        _require_same_teacher(path, result, {"model": spec["model"], "data": _identity(spec["data"])})
    load_weights(network, path, f"--teacher {spec['model']}", value)


def load_weights(network: nn.Module, path: Path, role: str, value: Any = None) -> None:
    """Load all weights of `network` from a checkpoint of ours, a run's directory, or any file with a state dict.

    Args:
        network: receives the weights.
        path: the file or directory.
        role: the network's name in the message.
        value: the content of `path`, if it has been read.
    Raises:
        CheckpointError: a missing or damaged file, keys that do not fit, or weights that are not finite.
    """
    path = path / checkpoint.CURRENT if path.is_dir() else path
    value = checkpoint.read(path) if value is None else value
    if isinstance(value, dict) and "spec" in value and "student" in value:
        value = value["student"]
    try:
        models.load_weights(network, value)
    except ValueError as error:
        raise CheckpointError(f"{path}: not the weights of {role}: {error}") from None
    checkpoint.require_finite(path, network.state_dict())


def _identity(data: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a data spec in which teacher and student must agree: all but the choice of images."""
    return {
        key: value
        for key, value in data.items()
        if key not in ("limit_train", "skip_corrupt", "train_images", "fingerprint")
    }


def _require_same_teacher(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key in wanted:
        if saved[key] != wanted[key]:
            raise CheckpointError(
                f"{path}: this teacher was trained with {key} {saved[key]}, not {wanted[key]}; "
                "name the same --teacher and --data, or another --teacher-checkpoint"
            )
