"""`wcord-fast table`: published pairs x methods x seeds, our accuracies beside the paper's."""

from __future__ import annotations

import logging
import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml

from .. import distill
from ..data import Dataset, LazyFolder, source
from ..train.logs import to_screen
from ..train.meters import NonFiniteLoss
from ..train.recipe import DEFAULTS
from ..train.tables import text_table
from . import report
from .config import Config, spelled_methods
from .options import DryRun, check_fraction, check_paths, check_seeds, chosen
from .parser import CONFIGS, parse, read_config, show
from .usage import UsageError
from .workbench import Result, Workbench, data_spec, load_data, state_of

log = logging.getLogger(__name__)

PUBLISHED = Path(__file__).parent / "published_pairs.yaml"
OWN_REMARK = ("epochs", "clip_grad", "seed", "compile", "cuda_graph", "channels_last", "gradient_checkpointing")
CLIP = 5.0  # largest gradient norm on other data, for some of which the recipe's learning rate is too high


class Teacher(NamedTuple):
    """A trained teacher, its data, and its epochs if they are not those of the configuration."""

    data: Dataset | LazyFolder
    trained: Result
    epochs: int | None


@dataclass
class Row:
    """One method on one pair.

    Attributes:
        method: its name.
        accuracies: after the last epoch, one per seed.
        refused: the reason why the method cannot serve the pair; empty if it can.
        failed: one message per seed without an accuracy.
    """

    method: str
    accuracies: list[float] = field(default_factory=list)
    refused: str = ""
    failed: list[str] = field(default_factory=list)


def published() -> dict[str, dict[str, list[float]]]:
    """Pair ("teacher-student") -> method -> [mean, standard deviation if one is given], in percent."""
    return yaml.safe_load(PUBLISHED.read_text())


def recipe(pair: str) -> Path:
    """The configuration file of a published pair: DATA_TEACHER_STUDENT.yaml."""
    return next(CONFIGS.glob(f"*_{pair.replace('-', '_')}.yaml"))


def cifar_pairs() -> list[str]:
    """The published pairs on CIFAR-100."""
    return [pair for pair in published() if recipe(pair).stem.startswith("cifar100")]


def all_methods() -> list[str]:
    """Every registered method, each followed by its variant with a KD term if the paper has it."""
    with_kd = {method for rows in published().values() for method in rows if method.endswith(distill.PLUS_KD)}
    both = [(name, name + distill.PLUS_KD) for name in distill.names()]
    return [name for pair in both for name in pair if name in distill.names() or name in with_kd]


def pairs_or_all() -> list[str]:
    """The values of --pair."""
    return ["all", *published()]


def methods_or_all() -> list[str]:
    """The values of --methods."""
    return ["all", *all_methods()]


@dataclass
class TableOptions(DryRun):
    """Train every method on every pair with every seed, and print the accuracy after the last epoch beside the paper's.

    Finished runs are skipped and broken ones resumed, so the command can be repeated. On other data
    than the recipe's the norm of the gradient is clipped at 5 unless --clip-grad is given. A method whose loss becomes
    NaN with a seed is reported, and the others continue.

    Attributes:
        pair: comma-separated published pairs, or "all" for those of CIFAR-100.
        methods: comma-separated, or "all".
        seeds: comma-separated; the teacher is trained once, with the first.
        budget: fraction of the epochs and of the training images that is used; below 1 the result is marked as not
            comparable with the paper's.
        output_dir: where runs are kept and resumed, and the tables are written.
    """

    pair: Annotated[list[str], pairs_or_all] = field(default_factory=lambda: ["all"])
    methods: Annotated[list[str], methods_or_all] = field(default_factory=lambda: ["all"])
    seeds: list[int] = field(default_factory=lambda: [0])
    budget: float = 1.0
    output_dir: Annotated[str, "directory"] = "runs/table"

    def __post_init__(self) -> None:
        check_paths(self, "output_dir")
        check_seeds(self.seeds)
        check_fraction("budget", self.budget)
        self.pair = chosen("pair", self.pair, published(), of_all=cifar_pairs())
        if self.methods == ["all"]:
            self.methods = all_methods()
        elif "all" in self.methods:
            raise ValueError(
                f"methods: expected 'all' alone, or comma-separated methods, got {','.join(self.methods)!r}"
            )
        self.methods = spelled_methods(self.methods)


def run(argv: list[str]) -> None:
    """Run the table by the options `argv`; print it and write table.txt, .md and .csv.

    Raises:
        UsageError: an unknown pair, method or option, or a bad value.
    """
    options, texts = parse("table", TableOptions, argv)
    papers = published()
    lines: list[report.Line] = []
    remarks: dict[str, None] = {}  # ordered, without repetition
    configs = {pair: _config(options, pair, texts) for pair in options.pair}  # all are checked before the first is run
    if options.dry_run:
        print(_plan(options, configs))
        return
    to_screen(next(iter(configs.values())).quiet)
    teachers: dict[Path, Teacher] = {}
    for pair, config in configs.items():
        rows, images, skipped = _pair(pair, config, options, teachers)
        epochs = teachers[_teacher_run(config, options).directory].epochs
        config = replace(config, teacher_epochs=epochs)  # those that --extend has kept
        lines += [_line(pair, row, papers[pair]) for row in rows]
        remarks |= {remark: None for remark in [not_comparable(pair, config, images)] if remark}
        remarks |= {remark: None for remark in [report.left_out(skipped).strip()] if remark}
        remarks |= {f"{pair}: {row.method} is n/a. {row.refused}": None for row in rows if row.refused}
        remarks |= {f"{pair}: {row.method} failed with {reason}": None for row in rows for reason in row.failed}
    message = "\n".join(
        [
            *remarks,
            f"ours: accuracy after the last epoch, {over_seeds(options.seeds)}; "
            "paper: on CIFAR-100 the mean of 5 runs.",
        ]
    )
    text, home = f"{text_table(lines)}\n\n{message}\n", Path(options.output_dir)
    written = report.write_table(home, "table", text, lines, message)
    print(f"\n{text}\nWritten: {home}/{', '.join(written)}")


def mean_and_deviation(values: list[float]) -> str:
    """Mean and, for several values, sample standard deviation."""
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.2f}"


def over_seeds(seeds: list[int]) -> str:
    """The meaning of a column of `mean_and_deviation`, for the remarks below a table."""
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"mean ± standard deviation over {len(seeds)} seeds"


def _config(options: TableOptions, pair: str, texts: dict[str, str]) -> Config:
    teacher, student = pair.split("-")
    file = {"config": str(recipe(pair))}
    defaults = {"methods": ",".join(options.methods)}
    chosen = read_config({**file, **defaults, **texts})
    if chosen.data != read_config(file).data and chosen.clip_grad is None and "clip_grad" not in texts:
        defaults["clip_grad"] = str(CLIP)
    config = read_config({**file, **defaults, **texts})
    if (config.teacher, config.student) != (teacher, student):
        raise UsageError(f"teacher, student: the pair is {pair}, got {config.teacher} and {config.student}")
    if options.budget == 1:
        return config
    images = len(load_data(data_spec(config), config.data_dir).train_labels)
    return replace(
        config,
        epochs=max(1, round(config.epochs * options.budget)),
        teacher_epochs=max(1, round((config.teacher_epochs or config.epochs) * options.budget)),
        limit_train=max(1, round(images * options.budget)),
    )


def _teacher_run(config: Config, options: TableOptions) -> Config:
    home = Path(options.output_dir) / "teachers" / config.teacher
    return replace(config, seed=options.seeds[0], output_dir=str(home))


def _student_run(pair: str, config: Config, options: TableOptions, seed: int) -> Config:
    return replace(config, seed=seed, output_dir=str(Path(options.output_dir) / pair / f"seed{seed}"))


def _plan(options: TableOptions, configs: dict[str, Config]) -> str:
    """The first pair's resolved configuration, the others' differences from it, and the state of every run, in YAML."""
    text = {pair: config.resolved() for pair, config in configs.items()}
    first, *others = text.values()
    for values in (first, *others):  # every run has its own seed and folder
        del values["seed"], values["output_dir"]
    for values in others:
        for key in [key for key, value in values.items() if value == first[key]]:
            del values[key]
    state: dict[str, str] = {}
    for config in configs.values():
        if config.teacher_checkpoint is None:
            run = _teacher_run(config, options).directory / "teacher"
            state[str(run)] = state_of(run, config, "teacher")
    for pair, config in configs.items():
        for seed in options.seeds:
            home = _student_run(pair, config, options, seed).directory
            state |= {str(home / method): state_of(home / method, config, "student") for method in options.methods}
    return show({"pairs": text, "runs": state})


def _pair(
    pair: str, config: Config, options: TableOptions, teachers: dict[Path, Teacher]
) -> tuple[list[Row], int, int]:
    """Run every method with every seed; return the rows, the number of training images and that of skipped files.

    All pairs with one teacher share its run: `teachers` keeps each with its data, by the run's directory."""
    teacher_config = _teacher_run(config, options)
    if teacher_config.directory not in teachers:
        first = Workbench(teacher_config)
        pairs = [name for name in published() if name.startswith(f"{config.teacher}-")]
        trained = first.teacher([Path(options.output_dir) / name for name in pairs])
        teachers[teacher_config.directory] = Teacher(first.data, trained, first.config.teacher_epochs)
    data, teacher, _ = teachers[teacher_config.directory]
    rows = [Row(method) for method in options.methods]
    for seed in options.seeds:
        bench = Workbench(_student_run(pair, config, options, seed), data)
        for row in rows:
            if row.refused:
                continue
            try:
                row.accuracies.append(bench.student(row.method, teacher).history[-1]["test_top1"])
            except distill.CannotServe as error:
                row.refused = str(error)
                log.info("%s: not for this pair: %s", row.method, error)
            except NonFiniteLoss as error:
                row.failed.append(f"seed {seed}: {error}")
                log.warning("%s: %s", row.method, error)
    return (
        [Row("teacher", [teacher.history[-1]["test_top1"]]), *rows],
        len(data.train_labels),
        len(data.skipped),
    )


def _line(pair: str, row: Row, paper: dict[str, list[float]]) -> report.Line:
    reference = paper.get(row.method, [])
    gap = statistics.fmean(row.accuracies) - reference[0] if row.accuracies and reference else None
    return {
        "pair": pair,
        "method": row.method,
        "ours %": "n/a" if row.refused else mean_and_deviation(row.accuracies) if row.accuracies else "diverged",
        "seeds": str(len(row.accuracies)) if row.accuracies else "-",
        "paper %": " ± ".join(f"{x:.2f}" for x in reference) or "n/a",
        "ours - paper": "-" if gap is None else f"{gap:+.2f}",
    }


def _described(config: Config, method: str) -> dict[str, Any]:
    return distill.described(config.method_options(method))


def _changes(config: Config, published: Config) -> list[str]:
    """The options of the training recipe that are not the published: "lr 0.001, not 0.05"; and initial weights."""
    ours, theirs = (DEFAULTS | c.recipe("student") for c in (config, published))
    changes = [
        f"{name} {_plain(ours.get(name))}, not {_plain(theirs.get(name))}"
        for name in dict.fromkeys([*theirs, *ours])
        if name not in OWN_REMARK and ours.get(name) != theirs.get(name)
    ]
    our_lr, lr = (c.teacher_lr or c.lr for c in (config, published))
    if config.teacher_checkpoint is None and our_lr != lr:
        changes.append(f"the teacher's lr {our_lr:g}, not {lr:g}")
    given = [name for name in ("init_student", "init_teacher") if getattr(config, name) is not None]
    return [*changes, *(f"{name} is given" for name in given)]


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def not_comparable(pair: str, config: Config, images: int | None = None) -> str:
    """A sentence on why our numbers are not comparable with the paper's; empty if they are.

    Args:
        pair, config: the pair, and our configuration for it.
        images: our number of training images, where known."""
    recipe_config, reasons = read_config({"config": str(recipe(pair))}), []
    published_images = source(recipe_config.data).train_images
    if config.data != recipe_config.data:
        reasons.append(f"the data set is {config.data}, not {recipe_config.data}")
    if config.limit_train is not None:
        reasons.append(f"{config.limit_train:,} training images, not all")
    elif config.data == recipe_config.data and None not in (images, published_images) and images != published_images:
        reasons.append(f"{images:,} training images, not {published_images:,}")
    if config.data == recipe_config.data and config.image_size != recipe_config.image_size:
        reasons.append(f"images of {config.image_size} pixels, not {recipe_config.image_size}")
    if (config.epochs, config.teacher_epochs or config.epochs) != (recipe_config.epochs, recipe_config.epochs):
        teacher = config.teacher_epochs or config.epochs
        reasons.append(f"{config.epochs} epochs (teacher {teacher}), not {recipe_config.epochs}")
    changed = [name for name in config.methods if _described(config, name) != _described(recipe_config, name)]
    if changed:
        reasons.append(f"{', '.join(changed)} with other options than the published")
    reasons += _changes(config, recipe_config)
    if config.clip_grad is not None:
        reasons.append(f"gradients are clipped at norm {config.clip_grad:g}")
    return f"NOT COMPARABLE with the paper's numbers: {'; '.join(reasons)}." if reasons else ""
