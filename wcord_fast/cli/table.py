"""`wcord-fast table`: published pairs x methods x seeds, our accuracies beside the paper's."""

from __future__ import annotations

import argparse
import logging
import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from .. import distill
from ..ops import checks
from ..train.logs import to_screen
from ..train.meters import NonFiniteLoss
from . import arguments, report
from .config import Config
from .parser import CONFIGS, parse, take
from .usage import UsageError
from .workbench import Workbench, data_spec, load_data

log = logging.getLogger(__name__)

PUBLISHED = Path(__file__).parent / "published_pairs.yaml"
ALL_METHODS = [
    "ce",
    "kd",
    "fitnet",
    "at",
    "sp",
    "cc",
    "vid",
    "rkd",
    "pkt",
    "ab",
    "ft",
    "fsp",
    "nst",
    "crd",
    "crd+kd",
    "lckt",
    "gckt",
    "wcord",
    "wcord+kd",
]
TRAIN_IMAGES = {"cifar100": 50_000, "imagenet": 1_281_167}
CLIP = 5.0  # gradient norm on other data than the recipe's, whose learning rate is too high for some of it at first
HELP = """usage: wcord-fast table [--pair PAIRS] [--methods METHODS] [--seeds SEEDS] [--budget F] [--output-dir DIR] ...

Train every method on every pair with every seed, and print the accuracy after the last epoch beside the paper's.
Finished runs are skipped and broken ones resumed, so the same command can be given again and again.

  --pair PAIRS      by comma, or "all" (default) for those of CIFAR-100: {pairs}
  --methods METHODS by comma, or "all" (default): {methods}
  --seeds SEEDS     by comma, default 0; the teacher is trained once, with the first
  --budget F        this share of the epochs and of the training images, 0 < F <= 1; below 1 the result says that it is
                    not comparable with the paper's
  --output-dir DIR  default runs/table
  --dry-run         print the configurations and the runs

On other data than the recipe's the norm of the gradient is clipped at {clip:g} unless --clip-grad is given. A method
whose loss becomes NaN with a seed is reported, and the others go on.

Other options are those of `wcord-fast distill`.
"""


@dataclass
class Row:
    """One method on one pair: accuracies after the last epoch, one per seed, or the reason why there are none.

    failed: what went wrong with a seed that has no accuracy.
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


def run(argv: list[str]) -> None:
    """Run what `argv` asks for, print and write table.txt, table.md and table.csv.

    Raises:
        UsageError: an unknown pair, method or option, or a bad value.
    """
    if {"-h", "--help"} & set(argv):
        print(HELP.format(clip=CLIP, pairs=", ".join(published()), methods=", ".join(ALL_METHODS)), end="")
        return
    asked, rest = _arguments(argv)
    papers = published()
    lines: list[report.Line] = []
    remarks: dict[str, None] = {}  # in order, each once
    configs = {pair: _config(asked, pair, rest) for pair in asked.pair}  # all are checked before the first is run
    if asked.dry_run:
        print(_plan(asked, configs))
        return
    to_screen(next(iter(configs.values())).quiet)
    for pair, config in configs.items():
        rows, images, skipped = _pair(pair, config, asked)
        lines += [_line(pair, row, papers[pair]) for row in rows]
        remarks |= {remark: None for remark in [not_comparable(pair, config, images)] if remark}
        remarks |= {remark: None for remark in [report.left_out(skipped).strip()] if remark}
        remarks |= {f"{pair}: {row.method} is n/a. {row.refused}": None for row in rows if row.refused}
        remarks |= {f"{pair}: {row.method} failed with {why}": None for row in rows for why in row.failed}
    said = "\n".join(
        [
            *remarks,
            f"ours: accuracy after the last epoch, {over(asked.seeds)}; paper: on CIFAR-100 the mean of 5 runs.",
        ]
    )
    text, home = f"{report.text_table(lines)}\n\n{said}\n", Path(asked.output_dir)
    written = report.write_table(home, "table", text, lines, said)
    print(f"\n{text}\nWritten: {home}/{', '.join(written)}")


def spread(values: list[float]) -> str:
    """Mean and, of several values, sample standard deviation."""
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.2f}"


def over(seeds: list[int]) -> str:
    """What a column of `spread`s is, for the line below a table."""
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"mean ± standard deviation over {len(seeds)} seeds"


def _arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--pair", default="all")
    parser.add_argument("--methods", default="all")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--budget", default="1")
    parser.add_argument("--output-dir", default="runs/table")
    parser.add_argument("--dry-run", action="store_true")
    try:
        asked, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UsageError(str(error)) from None
    try:
        asked.output_dir = checks.path("output_dir", asked.output_dir)
        asked.pair = _choices("pair", asked.pair, tuple(published()), default=cifar_pairs())
        known = ALL_METHODS if asked.methods == "all" else asked.methods.split(",")
        if "all" in known:
            raise UsageError(f"methods: expected 'all' alone, or methods by comma, got {asked.methods!r}")
        parsed = [distill.parse(name) for name in known]
        asked.methods = [base + (distill.PLUS_KD if plus else "") for base, plus in parsed]
    except ValueError as error:
        raise UsageError(str(error)) from None
    asked.seeds, asked.budget = arguments.seeds_of(asked.seeds), arguments.share_of("budget", asked.budget)
    return asked, rest


def _choices(name: str, text: str, known: tuple[str, ...], default: list[str]) -> list[str]:
    if text == "all":
        return default
    by_case = {k.lower(): k for k in known}
    return [by_case[checks.choice(name, part.strip().lower(), by_case)] for part in text.split(",")]


def _config(asked: argparse.Namespace, pair: str, rest: list[str]) -> Config:
    teacher, student = pair.split("-")
    own = [f"--config={recipe(pair)}", f"--methods={','.join(asked.methods)}"]
    data, _ = take("--data", rest)
    if data not in (None, parse("table", own, "").data):
        own.append(f"--clip-grad={CLIP}")
    config = parse("table", [*own, *rest], "")
    if (config.teacher, config.student) != (teacher, student):
        raise UsageError(f"teacher, student: the pair is {pair}, got {config.teacher} and {config.student}")
    if asked.budget == 1:
        return config
    images = len(load_data(data_spec(config), config.data_dir).train_labels)
    return replace(
        config,
        epochs=max(1, round(config.epochs * asked.budget)),
        teacher_epochs=max(1, round((config.teacher_epochs or config.epochs) * asked.budget)),
        limit_train=max(1, round(images * asked.budget)),
    )


def _teacher_run(config: Config, asked: argparse.Namespace) -> Config:
    home = Path(asked.output_dir) / "teachers" / config.teacher
    return replace(config, seed=asked.seeds[0], output_dir=str(home))


def _student_run(pair: str, config: Config, asked: argparse.Namespace, seed: int) -> Config:
    return replace(config, seed=seed, output_dir=str(Path(asked.output_dir) / pair / f"seed{seed}"))


def _plan(asked: argparse.Namespace, configs: dict[str, Config]) -> str:
    """The first pair's resolved configuration, what differs in the others, and the state of every run, in YAML."""
    told = {pair: config.resolved() for pair, config in configs.items()}
    first, *others = told.values()
    for own in (first, *others):  # every run has its own seed and folder
        del own["seed"], own["output_dir"]
    for own in others:
        for key in [key for key, value in own.items() if value == first[key]]:
            del own[key]
    runs = [_teacher_run(config, asked).directory / "teacher" / "teacher.pt" for config in configs.values()]
    for pair, config in configs.items():
        homes = [_student_run(pair, config, asked, seed).directory for seed in asked.seeds]
        runs += [home / method / "student.pt" for home in homes for method in asked.methods]
    state = {str(run.parent): "finished" if run.exists() else "to do" for run in dict.fromkeys(runs)}
    return yaml.safe_dump({"pairs": told, "runs": state}, sort_keys=False, width=120).rstrip()


def _pair(pair: str, config: Config, asked: argparse.Namespace) -> tuple[list[Row], int, int]:
    """Every method with every seed, from one teacher, which all pairs with that teacher share; and how many training
    images there are, and files left out."""
    first = Workbench(_teacher_run(config, asked))
    teacher = first.teacher()
    rows = [Row(method) for method in asked.methods]
    for seed in asked.seeds:
        bench = Workbench(_student_run(pair, config, asked, seed), first.data)
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
        len(first.data.train_labels),
        len(first.data.skipped),
    )


def _line(pair: str, row: Row, paper: dict[str, list[float]]) -> report.Line:
    theirs = paper.get(row.method, [])
    gap = statistics.fmean(row.accuracies) - theirs[0] if row.accuracies and theirs else None
    return {
        "pair": pair,
        "method": row.method,
        "ours %": "n/a" if row.refused else spread(row.accuracies) if row.accuracies else "diverged",
        "seeds": str(len(row.accuracies)) if row.accuracies else "-",
        "paper %": " ± ".join(f"{x:.2f}" for x in theirs) or "n/a",
        "ours - paper": "-" if gap is None else f"{gap:+.2f}",
    }


def not_comparable(pair: str, config: Config, images: int | None = None) -> str:
    """Why our numbers from so many training images are not comparable with the paper's; empty if they are."""
    theirs, why = parse("table", [f"--config={recipe(pair)}"], ""), []
    if config.data != theirs.data:
        why.append(f"the data set is {config.data}, not {theirs.data}")
    if config.limit_train is not None:
        why.append(f"{config.limit_train:,} training images, not all")
    elif config.data == theirs.data and images not in (None, TRAIN_IMAGES[theirs.data]):
        why.append(f"{images:,} training images, not {TRAIN_IMAGES[theirs.data]:,}")
    if config.data == theirs.data and config.image_size != theirs.image_size:
        why.append(f"images of {config.image_size} pixels, not {theirs.image_size}")
    if (config.epochs, config.teacher_epochs or config.epochs) != (theirs.epochs, theirs.epochs):
        teacher = config.teacher_epochs or config.epochs
        why.append(f"{config.epochs} epochs (teacher {teacher}), not {theirs.epochs}")
    if config.clip_grad is not None:
        why.append(f"gradients are clipped at norm {config.clip_grad:g}")
    return f"NOT COMPARABLE with the paper's numbers: {'; '.join(why)}." if why else ""
