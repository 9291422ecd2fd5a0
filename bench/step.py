"""The driver's step: teacher forward, student forward and backward, loss, optimiser; and the loss's share of it.

    python -m bench step [--methods ce,kd,crd,wcord] [--forms eager,channels_last] [--device cpu] [--quick]

Random images of CIFAR-100's size and number, batch 64, resnet32x4 -> resnet8x4, through the very function that training
calls. Forms: eager, channels_last, compile, cuda_graph (CUDA), bf16, and several joined by "+". One process,
interleaved, medians. A ratio to eager is printed only where the first step's loss is eager's.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.measure import interleaved
from bench.options import keep, parsed, parser
from wcord_fast import distill
from wcord_fast.cli.config import Config
from wcord_fast.cli.workbench import create_network
from wcord_fast.data import Dataset, TestBatches, TrainBatches
from wcord_fast.train.cuda_graph import WARM_UP
from wcord_fast.train.loop import Run
from wcord_fast.train.meters import Meters, Stopwatch
from wcord_fast.train.step import micro_batch, train_step

FORMS: dict[str, dict[str, Any]] = {
    "eager": {},
    "channels_last": {"channels_last": True},
    "compile": {"compile": True},
    "cuda_graph": {"cuda_graph": True},
    "bf16": {"precision": "bf16"},
}
QUICK = ("ce,wcord", "wrn_10_1,resnet8", 1280)  # methods, pair, images
CLOSE = {"fp32": 1e-4, "bf16": 3e-2}  # relative, of the first step's loss


def random_images(num_data: int) -> Dataset:
    """CIFAR-100's shapes, noise for pixels."""
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num_data + 100, 3, 32, 32), dtype=torch.uint8, generator=g)
    labels, classes = torch.arange(num_data + 100) % 100, tuple(map(str, range(100)))
    parts = (images[:num_data], labels[:num_data], images[num_data:], labels[num_data:])
    return Dataset("random", *parts, classes=classes, mean=(0.5,) * 3, std=(0.25,) * 3)


class Stepper:
    """One method in one form: its networks and one batch after another."""

    def __init__(self, method: str, config: Config, data: Dataset) -> None:
        device = config.torch_device
        nets = []
        for name in (config.student, config.teacher):
            torch.manual_seed(0)
            nets.append(create_network(name, data, device, config.channels_last))
        student, teacher = nets[0], nets[1].eval().requires_grad_(False)
        train = TrainBatches(data, config.batch_size, seed=0, channels_last=config.channels_last, drop_last=True)
        test = TestBatches(data, 10)
        example = next(iter(test))[0][:2]
        num, labels = len(data.train_labels), data.train_labels
        pair = distill.pair_of(student, teacher, example, num_data=num, labels=labels, seed=0)
        built = distill.build(method, pair, config.method_options(method)).to(device)
        spec = {"recipe": config.recipe("student")}
        self.run = Run(method, Path(tempfile.gettempdir()), spec, student, built, teacher, train, test)
        self.optimizer = torch.optim.SGD(self.run.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        self.watch, self.meters, self.steps = Stopwatch(device), Meters(0), 0
        self.spent: list[float] = []
        self._batches = train.epoch(0)
        self._sync: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        student.train()
        built.train()

    def step(self) -> None:
        """One training step, finished when it returns."""
        began = time.perf_counter()
        batch = next(self._batches)
        train_step(self.run, self.optimizer, batch, self.meters, self.watch, False, micro_batch(self.steps, 10**9, 1))
        self.steps += 1
        self._sync()
        self.spent.append(time.perf_counter() - began)
        self.watch.sample()

    def first(self) -> float:
        """The first step's loss; with a graph, also its warm-up and its recording."""
        self.step()
        loss = self.meters.means()["loss"]
        for _ in range(WARM_UP if self.run.graphed is not None else 1):
            self.step()
        self.watch, self.spent = Stopwatch(self.run.train.device), []
        return loss


def options_of(form: str) -> dict[str, Any]:
    """The driver's options of a form, of several joined by "+"."""
    return {key: value for part in form.split("+") for key, value in FORMS[part].items()}


def stepper(method: str, form: str, data: Dataset, teacher: str, student: str, device: str = "cpu") -> Stepper:
    config = Config(teacher=teacher, student=student, device=device, **options_of(form))
    return Stepper(method, config, data.to(device))


def measure(
    method: str, forms: list[str], repeats: int, data: Dataset, device: str, pair: tuple[str, str], clock: str = "wall"
) -> list[dict[str, Any]]:
    """One row per form."""
    rows = []
    steppers = {form: stepper(method, form, data, *pair, device) for form in forms}
    first = {form: one.first() for form, one in steppers.items()}
    times = interleaved({form: one.step for form, one in steppers.items()}, repeats, clock)
    for form, t in times.items():
        loss, whole = steppers[form].watch.seconds(), sum(steppers[form].spent)
        off = abs(first[form] - first[forms[0]]) / abs(first[forms[0]])
        right = off <= CLOSE[options_of(form).get("precision", "fp32")]
        row = {"method": method, "form": form, "batch": 64, "num_data": len(data.train_labels), "ms": t}
        row |= {"teacher": pair[0], "student": pair[1], "loss_share": round(loss / whole, 4), "right": right}
        row |= {"clock": clock, "loss_ms": round(loss / whole * t["p50"], 3), "images_per_s": round(64e3 / t["p50"], 1)}
        if right and form != forms[0]:
            row[f"times_{forms[0]}"] = round(times[forms[0]]["p50"] / t["p50"], 2)
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    for r in rows:
        t = r["ms"]
        ratio = "".join(f"  {value:.2f}x {key[6:]}" for key, value in r.items() if key.startswith("times_"))
        print(
            f"{r['method']:9} {r['form']:20} {t['p50']:9.2f} ms ({t['p20']:.2f}-{t['p80']:.2f}) "
            f"{r['images_per_s']:8.1f} images/s  loss {r['loss_ms']:8.2f} ms = {r['loss_share']:.1%}"
            f"{'' if r['right'] else '  WRONG'}{ratio}",
            flush=True,
        )


def main(arguments: list[str]) -> int:
    p = parser("step", __doc__, "two methods, small networks, 1,280 images")
    p.add_argument("--methods", default="ce,kd,crd,wcord", help="by comma")
    p.add_argument("--forms", default="eager,channels_last", help="by comma; ratios are to the first")
    p.add_argument("--pair", default="resnet32x4,resnet8x4", help="TEACHER,STUDENT")
    p.add_argument("--num-data", type=int, default=50_000, help="rows of the banks")
    p.add_argument("--device", default="cpu")
    a = parsed(p, arguments)
    if a.quick:
        a.methods, a.pair, a.num_data = QUICK
    forms = a.forms.split(",")
    if unknown := sorted({part for form in forms for part in form.split("+")} - set(FORMS)):
        p.error(f"--forms: expected some of {', '.join(FORMS)}, got {', '.join(unknown)}")
    teacher, student = a.pair.split(",")
    data = random_images(a.num_data)
    rows = []
    for method in a.methods.split(","):
        part = measure(method, forms, a.repeats, data, a.device, (teacher, student), a.clock)
        show(part)
        rows += part
    keep("step", rows, a, torch.device(a.device).type)
    return 0 if all(r["right"] for r in rows) else 1
