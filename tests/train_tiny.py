"""A training set, two networks and a run small enough for a test of the loop."""

import torch

from wcord_fast import distill, models
from wcord_fast.cli.config import Config, from_dict
from wcord_fast.cli.options import DryRun
from wcord_fast.cli.parser import parse, read_config
from wcord_fast.data import Dataset, TestBatches, TrainBatches
from wcord_fast.distributed import ranks
from wcord_fast.train.loop import Run

SMALL = {"wcord": {"num_negatives": 9, "feat_dim": 16}, "crd": {"num_negatives": 9, "feat_dim": 16}}
CLASSES, TRAIN, TEST = 4, 44, 12  # 44 images in batches of 16: the last batch is smaller


def config_of(*argv, **given):
    """The Config of arguments of `wcord-fast distill`. `given`: texts by key that come before them."""
    return read_config({**given, **parse("distill", DryRun, list(argv))[1]})


def dataset():
    """Noise with one bright row per class: learnable in a few steps."""
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 120, (TRAIN + TEST, 1, 8, 8), generator=g, dtype=torch.uint8)
    labels = torch.arange(TRAIN + TEST) % CLASSES
    images[torch.arange(TRAIN + TEST), 0, 2 * labels] = 255
    return Dataset(
        name="stripes",
        train_images=images[:TRAIN],
        train_labels=labels[:TRAIN],
        test_images=images[TRAIN:],
        test_labels=labels[TRAIN:],
        classes=tuple("abcd"),
        mean=(0.3,),
        std=(0.3,),
        padding=1,
        flip=False,
    )


def make_run(directory, method="ce", *, epochs=2, **config):
    """A run of resnet8 with a wrn_10_1 teacher; `config` are values of a Config, `tensorboard` off unless given."""
    settings: Config = from_dict({**SMALL, "batch_size": 16, "epochs": epochs, "tensorboard": False, **config})
    data = dataset()
    torch.manual_seed(settings.seed)
    student = models.create("resnet8", CLASSES, in_channels=1)
    teacher = models.create("wrn_10_1", CLASSES, in_channels=1).eval().requires_grad_(False)
    if settings.channels_last:
        student, teacher = (net.to(memory_format=torch.channels_last) for net in (student, teacher))
    pair = distill.pair_of(
        student,
        teacher,
        torch.zeros(2, 1, 8, 8),
        num_data=TRAIN,
        labels=data.train_labels,
        seed=settings.seed,
    )
    built = distill.build(method, pair, settings.method_options(method))
    return Run(
        name=method,
        directory=directory,
        spec={"recipe": settings.recipe("student"), "method": method},
        student=student,
        method=built,
        teacher=teacher if built.compares else None,
        train=TrainBatches(
            data, settings.batch_size, seed=settings.seed, channels_last=settings.channels_last, part=ranks()
        ),
        test=TestBatches(data, 5, channels_last=settings.channels_last),
        log_every=settings.log_every,
        log_grad_norms=settings.log_grad_norms,
        loggers=settings.chosen_loggers,
        quiet=True,
        restart=settings.restart,
    )
