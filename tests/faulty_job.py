"""`wcord-fast distill` on several processes with an accident (see faulty_rank.py), and the files that remain."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from wcord_fast import models
from wcord_fast.data import digits
from wcord_fast.train.checkpoint import load

from . import faulty_rank
from .rank_pool import launch

ROOT = Path(__file__).parents[1]


def make_teacher(path):
    """The weights of an untrained resnet8, in a file."""
    torch.manual_seed(0)
    torch.save(models.create("resnet8", 10, in_channels=digits.load().channels).state_dict(), path)
    return path


def arguments(directory, teacher, *extra):
    return [
        *(
            "distill",
            "--data=digits",
            "--limit-train=100",
            "--epochs=3",
            "--batch-size=50",
            "--teacher=resnet8",
            "--student=resnet8",
        ),
        *(f"--teacher-checkpoint={teacher}", "--methods=wcord", "--wcord.feat-dim=8", "--wcord.num-negatives=9"),
        *("--no-tensorboard", f"--output-dir={directory}", "--wcord.shard=rank", *extra),
    ]


def command(directory, teacher, *extra, fault="", logs=None, world=2, agent=True):
    """`wcord-fast` on `world` processes."""
    return launch(world, logs or directory, faulty_rank.run, fault, arguments(directory, teacher, *extra), agent=agent)


def ours(text):
    return [line for line in text.splitlines() if line.startswith("wcord-fast ")]


def tracebacks(ended):
    return "".join(ended.err).count("Traceback (most recent")


def last_epoch(directory):
    """The epoch of the last whole checkpoint."""
    current = directory / "wcord" / "checkpoint.pt"
    return load(current if current.exists() else current.with_name("checkpoint.prev.pt"))["epoch"]


def torchrun(fault, directory, teacher, *options):
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *options]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "FAULT": fault}
    arguments_ = arguments(directory, teacher)
    return subprocess.run(
        [*program, faulty_rank.__file__, *arguments_], capture_output=True, text=True, env=env, check=False
    )
