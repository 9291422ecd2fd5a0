"""`wcord-fast sweep`: privileged distillation by method, and the paper's tables of lambda1 and lambda2."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import yaml

from .. import distill, models
from ..ops import checks
from ..train.logs import to_screen
from ..train.meters import NonFiniteLoss
from ..train.tables import text_table
from . import privileged, report
from .config import Config
from .options import DryRun, check_paths, check_seeds, chosen, distinct
from .parser import packaged, parse, read_config, show, usage
from .sweep_plot import plot
from .table import mean_and_deviation, not_comparable, over_seeds
from .task_bench import require_no_kd
from .usage import UsageError
from .workbench import Result, Workbench, state_of

log = logging.getLogger("wcord_fast")

TABLES = ("methods", "lambda1", "lambda2", "lambda2-cifar100")
ACCURACY_PAIR = "resnet32x4-resnet8x4"
STAND_IN = "wrn_16_2"  # for Inception-v3, where the images are too small for it


def tables_or_all() -> list[str]:
    """The values of --tables."""
    return ["all", *TABLES]


@dataclass
class SweepOptions(DryRun):
    """Privileged distillation: a frozen teacher of all classes at high resolution, and students that separate one class
    from the rest at low resolution, without a KD term; area under the ROC curve on the test images, beside the paper's.
    Finished runs are skipped and broken ones resumed, so the command can be repeated.

    --methods are those of the table "methods"; --image-size is the teacher's pixels per side, 16 for the digits, 32
    otherwise.

    Attributes:
        tables: comma-separated, or "all"; "methods" has a row per method and student; lambda1 and lambda2 sweep the
            weights of WCoRD's terms for the first student; lambda2-cifar100 sweeps one for resnet32x4 to resnet8x4 and
            measures accuracy.
        students: comma-separated; default: resnet8x4 and inception_v3, or wrn_16_2 for images below 75 pixels.
        seeds: comma-separated; the teacher is trained once, with the first.
        positive: the class that the students separate from the rest; default: 8 for the digits, the second
            of two classes.
        student_size: pixels per side that the student sees; default: a quarter of the teacher's.
        teacher_data_dir: another image folder, with its own classes, to train the teacher on.
        output_dir: where runs are kept and resumed, and the tables are written.
    """

    tables: Annotated[list[str], tables_or_all] = field(default_factory=lambda: list(TABLES[:3]))
    students: Annotated[list[str] | None, models.names] = None
    seeds: list[int] = field(default_factory=lambda: [0])
    positive: str | None = None
    student_size: int | None = None
    teacher_data_dir: Annotated[str | None, "directory"] = None
    output_dir: Annotated[str, "directory"] = "runs/sweep"

    def __post_init__(self) -> None:
        check_paths(self, "teacher_data_dir", "output_dir")
        check_seeds(self.seeds)
        self.tables = chosen("tables", self.tables, TABLES)
        if self.students is not None:
            distinct("students", self.students)
        if self.student_size is not None:
            checks.integer("student_size", self.student_size, least=1)


@dataclass(frozen=True)
class Point:
    """One row of a table: a method, WCoRD's two weights, and the paper's result."""

    table: str
    student: str
    setting: str
    method: str
    weights: tuple[float, float] | None
    paper: tuple[float, ...]

    @property
    def folder(self) -> str:
        """The folder of its run below a seed's folder. Points of two tables share a run if their weights are equal."""
        return "" if self.weights is None else f"lambda_{self.weights[0]:g}_{self.weights[1]:g}"


@dataclass
class Study:
    """The setting that the points of some tables share.

    Attributes:
        config: the recipe.
        home: folder of the runs.
        bench: configuration -> the workbench of the students.
        teacher_bench: configuration -> the workbench of the teacher.
        measure: (bench, trained student) -> percent.
        teacher: the trained teacher; None until it is trained.
        results: run -> percent, or the reason why there is none.
    """

    config: Config
    home: Path
    bench: Callable[[Config], Any]
    teacher_bench: Callable[[Config], Any]
    measure: Callable[[Any, Result], float]
    teacher: Result | None = None
    results: dict[Path, float | str] = field(default_factory=dict)

    def configured(self, point: Point, seed: int) -> Config:
        """The configuration of one run."""
        options = dict(self.config.options)
        if point.weights is not None:
            lambda1, lambda2 = point.weights
            options["wcord"] = replace(options["wcord"], lambda_gckt=lambda1, lambda_lckt=lambda2)  # type: ignore[call-arg]
        folder = self.home / point.student / f"seed{seed}" / point.folder
        return replace(self.config, student=point.student, seed=seed, output_dir=str(folder), options=options)

    def run_of(self, point: Point, seed: int) -> Path:
        return self.configured(point, seed).directory / point.method

    def value(self, point: Point, seed: int, first_seed: int) -> float | str:
        """Train (or resume, or skip) a run and measure it; text if the method cannot serve the pair or diverged."""
        run = self.run_of(point, seed)
        if run not in self.results:
            if self.teacher is None:
                home = self.home / "teachers" / self.config.teacher
                teacher_config = replace(self.config, seed=first_seed, output_dir=str(home))
                self.teacher = self.teacher_bench(teacher_config).teacher([self.home])
            bench = self.bench(self.configured(point, seed))
            try:
                self.results[run] = self.measure(bench, bench.student(point.method, self.teacher))
                log.info("%s: %.2f %%", run, self.results[run])
            except (distill.CannotServe, NonFiniteLoss) as error:
                self.results[run] = str(error)
                log.warning("%s: %s", run, error)
        return self.results[run]


def run(argv: list[str]) -> None:
    """Run the sweep by the options `argv`; print the tables and write sweep.txt, .md, .csv and the plots.

    Raises:
        UsageError: an unknown table, method, class or option, or a bad value.
    """
    options, texts = parse("sweep", SweepOptions, argv)
    tables, seeds = options.tables, options.seeds
    studies: dict[str, Study] = {}
    points: list[Point] = []
    remarks: list[str] = []
    if set(tables) - {"lambda2-cifar100"}:
        study, students, remark = _privileged(options, texts)
        require_no_kd(study.config.methods)
        studies |= {table: study for table in tables if table != "lambda2-cifar100"}
        points += [p for table in tables if table in studies for p in _points(table, students, study.config)]
        remarks.append(remark)
    if "lambda2-cifar100" in tables:
        studies["lambda2-cifar100"] = study = _accuracy(options, texts)
        points += _points("lambda2-cifar100", [study.config.student], study.config)
        remarks.append("lambda2-cifar100: top-1 accuracy after the last epoch; the paper's are means of 5 runs.")
        remarks.append(not_comparable(ACCURACY_PAIR, study.config))
    if options.dry_run:
        print(_plan(options, studies, points, seeds))
        return
    to_screen(next(iter(studies.values())).config.quiet)
    values = {p: [studies[p.table].value(p, seed, seeds[0]) for seed in seeds] for p in points}
    print(_report(Path(options.output_dir), tables, values, remarks, seeds))


def _privileged(options: SweepOptions, texts: dict[str, str]) -> tuple[Study, list[str], str]:
    """The study, its students, and the remark on how to read the result."""
    if "student" in texts:
        raise UsageError("student: this command trains several; name them with --students")
    config = read_config({"config": packaged("privileged"), **texts})
    task = usage(privileged.prepare, config, options.positive, options.student_size, options.teacher_data_dir)
    students = options.students or _default_students(task.student_size)
    for student in students:
        usage(replace, config, student=student)
    message = (
        f"AUC on the test images, {privileged.positives(task.student_data)}. The teacher saw {task.image_size} pixels "
        f"per side and {task.teacher_data.num_classes} classes, the students {task.student_size} pixels. NOT "
        "COMPARABLE: the paper's data are private; its numbers are there for orientation."
    )
    if STAND_IN in students:
        message += f" {STAND_IN} stands in for Inception-v3, whose numbers the paper's column has."
    study = Study(config, Path(options.output_dir), task.student_bench, task.teacher_bench, privileged.measured_auc)
    return study, students, message


def _accuracy(options: SweepOptions, texts: dict[str, str]) -> Study:
    """Table 4: the published pair, by accuracy."""
    config = read_config({"config": packaged("cifar100_resnet32x4_resnet8x4"), **texts})
    if f"{config.teacher}-{config.student}" != ACCURACY_PAIR:
        raise UsageError(f"teacher: lambda2-cifar100 is for {ACCURACY_PAIR}; name this table alone, without --teacher")
    home = Path(options.output_dir) / "cifar100"
    return Study(config, home, Workbench, Workbench, lambda _bench, result: result.history[-1]["test_top1"])


def _default_students(size: int) -> list[str]:
    return ["resnet8x4", "inception_v3" if size >= 75 else STAND_IN]


def _points(table: str, students: list[str], config: Config) -> list[Point]:
    """The rows of one table."""
    published = yaml.safe_load(privileged.PUBLISHED.read_text())[table]
    rows: list[Point] = []
    if table != "methods":
        fixed = published["fixed"]
        for value, paper in published["values"].items():
            weights = (float(value), fixed) if table == "lambda1" else (fixed, float(value))
            name = table.partition("-")[0]
            rows.append(Point(table, students[0], f"{name} = {value:g}", "wcord", weights, tuple(paper)))
        return rows
    wcord_options = config.method_options("wcord")
    for student in students:
        paper_results = published.get("inception_v3" if student == STAND_IN else student, {})
        for method in config.methods:
            point_weights = None
            if method == "wcord":
                point_weights = (wcord_options.lambda_gckt, wcord_options.lambda_lckt)  # type: ignore[attr-defined]
            rows.append(Point(table, student, method, method, point_weights, tuple(paper_results.get(method, ()))))
    return rows


def _plan(options: SweepOptions, studies: dict[str, Study], points: list[Point], seeds: list[int]) -> str:
    """The resolved configuration and the state of every run, in YAML."""
    text: dict[str, Any] = {}
    for study in studies.values():
        text["lambda2-cifar100" if study.home.name == "cifar100" else "privileged"] = study.config.resolved()
    runs = {studies[p.table].run_of(p, seed): studies[p.table].config for p in points for seed in seeds}
    text["sweep"] = {name: value for name, value in vars(options).items() if name != "dry_run"}
    text["runs"] = {str(run): state_of(run, config, "student") for run, config in runs.items()}
    return show(text)


def _report(
    home: Path, tables: list[str], values: dict[Point, list[float | str]], remarks: list[str], seeds: list[int]
) -> str:
    lines = [_line(point, result) for point, result in values.items()]
    for point, result in values.items():
        reasons = dict.fromkeys(v for v in result if isinstance(v, str))
        remarks += [f"{point.student}, {point.setting}: {reason}" for reason in reasons]
    message = "\n".join(remark for remark in [*remarks, f"ours: {over_seeds(seeds)}."] if remark)
    blocks = [text_table([line for line in lines if line["table"] == table]) for table in tables]
    text = "\n\n".join([*blocks, message]) + "\n"
    written = report.write_table(home, "sweep", text, lines, message)
    for table in tables:
        if table != "methods":
            rows = [
                (p, [v for v in result if not isinstance(v, str)]) for p, result in values.items() if p.table == table
            ]
            axis = 0 if table == "lambda1" else 1
            curve = [(p.weights[axis], ours, p.paper) for p, ours in rows if p.weights is not None]
            measure = "top-1 %" if table == "lambda2-cifar100" else "AUC %"
            plot(home / f"{table}.png", table.partition("-")[0], measure, rows[0][0].student, curve)
            written.append(f"{table}.png")
    return f"\n{text}\nWritten: {home}/{', '.join(written)}"


def _line(point: Point, results: list[float | str]) -> report.Line:
    values = [v for v in results if not isinstance(v, str)]
    return {
        "table": point.table,
        "student": point.student,
        "setting": point.setting,
        "ours %": mean_and_deviation(values) if values else "n/a",
        "seeds": str(len(values)) if values else "-",
        "paper %": " ± ".join(f"{x:.2f}" for x in point.paper) or "n/a",
    }
