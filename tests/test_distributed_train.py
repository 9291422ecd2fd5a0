"""The training loop on 2 and 3 gloo processes: one history, one set of files, elastic and damaged checkpoints."""

from __future__ import annotations

import logging
import resource
import shutil
import time
from itertools import pairwise

import pytest
import torch

from wcord_fast.data import TrainBatches
from wcord_fast.distributed import ranks
from wcord_fast.train import bank_files, loop
from wcord_fast.train.checkpoint import CheckpointError, load
from wcord_fast.train.files import OutputError
from wcord_fast.train.fill_banks import fill_banks

from .grid import grid, slow
from .rank_pool import Pool
from .train_tiny import TRAIN, dataset, make_run

SHARDED = {"wcord": {"num_negatives": 9, "feat_dim": 16, "shard": "rank"}}
REPLICATED = {"wcord": {"num_negatives": 9, "feat_dim": 16, "ot_scope": "global"}}
TUNED = {"init_banks": True, "ramp_gckt": 0.5, "z": "ramp", "lckt_pairs": "prior", "lckt_features": "mapped"}
BANK = "wcord.contrast.memory_v1.rows"


class Stopped(Exception):
    """Instead of the second epoch."""


@pytest.fixture(scope="module")
def pools():
    pools = {2: Pool(2), 3: Pool(3)}
    yield pools
    for pool in pools.values():
        pool.close()


def whole_state(run):
    """The student's and the method's state; sharded banks gathered."""
    method = run.method.state_dict()
    for name, bank in bank_files._sharded(run.method).items():
        parts = [None] * ranks().world
        torch.distributed.all_gather_object(parts, bank.rows) if ranks().world > 1 else parts.__setitem__(0, bank.rows)
        assert hasattr(method[f"{name}.rows"], "to_local") or ranks().world == 1
        method[f"{name}.rows"] = torch.cat(parts)
    return {"student": run.student.state_dict(), "method": method}


def train(directory, method, options, stop=False):
    """History and state after `fit`, or after its first epoch; in a process of any pool or in this one."""
    logging.disable(logging.CRITICAL)
    run = make_run(directory, method, epochs=2, **options)
    message = loop.epoch_line
    try:
        if stop:

            def halt(*args):
                raise Stopped

            loop.epoch_line = halt
        loop.fit(run)
    except Stopped:
        pass
    finally:
        loop.epoch_line = message
        logging.disable(logging.NOTSET)
    return run.history, whole_state(run)


def values(history):
    timing = ("images_per_s", "loss_share", "seconds")
    return [{k: v for k, v in row.items() if k not in timing} for row in history]


def assert_same(one, other):
    for part, tensors in one.items():
        for key, value in tensors.items():
            assert torch.equal(value.nan_to_num(), other[part][key].nan_to_num()), (part, key)


@pytest.mark.parametrize(
    ("world", "options"),
    grid([2, 3], [REPLICATED, {"wcord": SHARDED["wcord"] | TUNED}, {"wcord": REPLICATED["wcord"] | TUNED}, SHARDED]),
)
def test_all_ranks_end_equal_and_a_stopped_run_resumes_to_the_same_end(pools, tmp_path, world, options):
    whole = pools[world].run(train, tmp_path / "whole", "wcord", options)
    for history, state in whole[1:]:
        assert values(history) == values(whole[0][0])
        assert_same(state, whole[0][1])
    assert [row["epoch"] for row in whole[0][0]] == [1, 2]
    pools[world].run(train, tmp_path / "stopped", "wcord", options, True)
    (history, state), *_ = pools[world].run(train, tmp_path / "stopped", "wcord", options)
    assert values(history) == values(whole[0][0])
    assert_same(state, whole[0][1])
    names = {p.name for p in (tmp_path / "whole").iterdir()}
    banks = {"banks-000001", "banks-000002"} if "shard" in options["wcord"] else set()
    assert names == {".lock", "checkpoint.pt", "checkpoint.prev.pt", "metrics.csv", "student.pt"} | banks


def test_images_that_join_the_batch_before_are_trained_on_and_resumed(pools, tmp_path):
    """44 images in batches of 21: each of two processes would get one of the last 2. They make the last batch 23."""
    options = {**REPLICATED, "batch_size": 21}
    whole, *_ = pools[2].run(train, tmp_path / "whole", "wcord", options)
    pools[2].run(train, tmp_path / "stopped", "wcord", options, True)
    (history, state), *_ = pools[2].run(train, tmp_path / "stopped", "wcord", options)
    assert values(history) == values(whole[0]) and [row["epoch"] for row in history] == [1, 2]
    assert_same(state, whole[1])
    step = state["method"]["wcord.contrast.sampler.state"].tolist()
    assert 2 * 2 in step  # two batches in each of two epochs


def test_joined_epoch_equals_one_process():
    for world in (2, 3, 5):
        parts = [TrainBatches(dataset(), 16, seed=3, part=(r, world)) for r in range(world)]
        one = TrainBatches(dataset(), 16, seed=3)
        epochs = [list(p.epoch(1)) for p in parts]
        for i, batch in enumerate(one.epoch(1)):
            for whole, *pieces in zip(batch, *(e[i] for e in epochs), strict=True):
                assert torch.equal(torch.cat(pieces), whole)
            sizes = [len(e[i][2]) for e in epochs]
            assert max(sizes) - min(sizes) <= 1 and sum(p.weight(i) for p in parts) == pytest.approx(world)
            assert parts[0].weight(i) == pytest.approx(world * sizes[0] / sum(sizes))
    three = [TrainBatches(dataset(), 21, seed=0, part=(r, 3)) for r in range(3)]
    assert [[len(b.index) for b in p.epoch(0)] for p in three] == [[7, 7], [7, 8], [7, 8]]  # 2 images join the last 21
    assert TRAIN == 44 and len(three[0].whole()) == 3
    with pytest.raises(ValueError, match="batch_size"):
        TrainBatches(dataset(), 2, seed=0, part=(0, 3))


def filled(options):
    """The banks [44, 16] after they have been filled, before training; 44 images in batches of 16, the last of 12."""
    logging.disable(logging.CRITICAL)
    run = make_run("unused", "wcord", batch_size=14, **options)  # a last batch of 2, less than 3 ranks
    run.method.eval()
    fill_banks(run, run.teacher)
    logging.disable(logging.NOTSET)
    return {name: rows for name, rows in whole_state(run)["method"].items() if "memory" in name}


@pytest.mark.parametrize(("world", "options"), grid([2, 3], [REPLICATED, SHARDED]))
def test_filled_banks_equal_one_process(pools, world, options):
    one, everyone = filled({"wcord": REPLICATED["wcord"]}), pools[world].run(filled, options)
    assert len(one) == 2
    for banks in everyone:
        for name, rows in banks.items():
            torch.testing.assert_close(rows, one[name], atol=1e-5, rtol=1e-4)
            assert torch.equal(rows, everyone[0][name])


def resumed(directory, options):
    run = make_run(directory, "wcord", epochs=2, **options)
    loop.resume(run, torch.optim.SGD(run.parameters(), 0.1, momentum=0.9))
    return len(run.history), whole_state(run)


@pytest.mark.parametrize("options", [SHARDED, slow(REPLICATED)])
def test_a_checkpoint_of_any_number_of_processes_resumes_on_any_other(pools, tmp_path, options):
    worlds = (3, 2, 1) if options is SHARDED else (2, 3, 1)
    for before, after in (*pairwise(worlds), (1, 3)):
        directory = tmp_path / f"{before}to{after}"
        here = before == 1 or after == 1
        written = train(directory, "wcord", options, True) if before == 1 else None
        written = written or pools[before].run(train, directory, "wcord", options, True)[0]
        read = [resumed(directory, options)] if after == 1 else pools[after].run(resumed, directory, options)
        for epoch, state in read:
            assert epoch == 1
            assert_same(state, written[1])
        if not here:  # the run continues
            (history, _), *_ = pools[after].run(train, directory, "wcord", options)
            assert [row["epoch"] for row in history] == [1, 2]


@pytest.fixture(scope="module")
def finished(pools, tmp_path_factory):
    """A finished sharded run of two epochs by two processes, and its state after the first."""
    directory = tmp_path_factory.mktemp("finished")
    first = pools[2].run(train, directory, "wcord", SHARDED, True)[0][1]
    pools[2].run(train, directory, "wcord", SHARDED)
    return directory, first


def damage(file, how):
    content = bytearray(file.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "flipped":
        content[len(content) // 2] ^= 1
    file.write_bytes(content)
    if how == "missing":
        file.unlink()


def goes_on(source, directory):
    """The rest of the run in a copy of `source`: two whole checkpoints and their banks."""
    shutil.copytree(source, directory)
    history, _ = train(directory, "wcord", SHARDED)
    assert [row["epoch"] for row in history] == [1, 2]
    for epoch, name in ((2, "checkpoint.pt"), (1, "checkpoint.prev.pt")):
        state = load(directory / name)
        bank_files.verify(directory / name, state)
        assert state["epoch"] == epoch
    assert len(list(directory.glob("banks-*"))) == 2


@pytest.mark.parametrize(
    ("name", "how"), grid(["__1_0.distcp", ".metadata", "checkpoint.pt"], ["truncated", "missing", "flipped"])
)
def test_damaged_checkpoint_is_reported_and_the_previous_one_loads(finished, tmp_path, caplog, name, how):
    source, first = finished
    directory = tmp_path / "run"
    shutil.copytree(source, directory)
    assert resumed(directory, SHARDED)[0] == 2
    file = directory / name if name == "checkpoint.pt" else directory / "banks-000002" / name
    damage(file, how)
    caplog.clear()
    epoch, state = resumed(directory, SHARDED)
    assert epoch == 1
    assert_same(state, first)
    if not (name == "checkpoint.pt" and how == "missing"):
        assert str(file) in caplog.text and "going on from" in caplog.text
    goes_on(directory, tmp_path / "on")
    other = directory / name.replace("checkpoint", "checkpoint.prev") if name == "checkpoint.pt" else file
    damage(directory / "banks-000001" / "__0_0.distcp", "flipped")
    if other != file or how != "missing":
        with pytest.raises(CheckpointError, match="banks-000001"):
            resumed(directory, SHARDED)


def full_disk(directory, options, limit):
    """Epoch 1, then epoch 2 on a disk that takes files of `limit` bytes; returns the message."""
    train(directory, "wcord", options, True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        train(directory, "wcord", options)
        message = ""
    except OutputError as error:
        message = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    return message


def test_a_disk_that_is_full_keeps_the_last_checkpoint(pools, tmp_path):
    pool, directory = pools[2], tmp_path / "run"
    options = {**SHARDED, "wcord": {**SHARDED["wcord"], "feat_dim": 64}}
    for message in pool.run(full_disk, directory, options, 4096):
        assert "output_dir: cannot write" in message and "banks-000002" in message and "File too large" in message
    assert {p.name for p in directory.glob("banks-*")} == {"banks-000001"}
    assert load(directory / "checkpoint.pt")["epoch"] == 1
    assert [epoch for epoch, _ in pool.run(resumed, directory, options)] == [1, 1]
    (history, _), *_ = pool.run(train, directory, "wcord", options)  # there is room again
    assert [row["epoch"] for row in history] == [1, 2]


def saved_over_a_left_folder(directory):
    """Whether the folder of an interrupted run was still there when this rank began to write; rank 0 is slow."""
    run = make_run(directory, "wcord", **SHARDED)
    folder = directory / "banks-000001"
    remove, save, leftovers = shutil.rmtree, bank_files.dcp.save, []

    def slowly(path, **options):
        time.sleep(0.3)
        remove(path, **options)

    def look(*args, **kwargs):
        leftovers.append((folder / "left").exists())
        return save(*args, **kwargs)

    shutil.rmtree, bank_files.dcp.save = slowly, look
    try:
        bank_files.save(directory, {"epoch": 1, "method": {}}, run.method)
    finally:
        shutil.rmtree, bank_files.dcp.save = remove, save
    return leftovers


def test_no_rank_writes_before_the_folder_of_an_interrupted_run_is_gone(pools, tmp_path):
    (tmp_path / "banks-000001").mkdir()
    (tmp_path / "banks-000001" / "left").touch()
    assert pools[2].run(saved_over_a_left_folder, tmp_path) == [[False], [False]]


def test_a_stage_is_run_by_one_process_and_methods_without_state_train(pools, tmp_path):
    for method in ("ft", "kd"):
        (history, state), (others, other) = pools[2].run(train, tmp_path / method, method, {})
        assert values(history) == values(others)
        assert_same(state, other)
    assert (tmp_path / "ft" / "stage" / "checkpoint.pt").exists()
    accumulated = pools[2].run(train, tmp_path / "accumulated", "wcord", {**REPLICATED, "accumulate": 2})
    assert_same(accumulated[0][1], accumulated[1][1])


def save_in_own_folder(directory):
    """Each rank saves to a folder of its own, as without a common file system. Returns the error message."""
    run = make_run(directory / str(ranks().rank), "wcord", **SHARDED)
    (directory / str(ranks().rank)).mkdir()
    try:
        bank_files.save(run.directory, {"epoch": 1, "method": {}}, run.method)
    except OutputError as error:
        return str(error)
    return ""


def test_ranks_without_a_shared_file_system_raise_at_the_first_checkpoint(pools, tmp_path):
    message, *others = pools[3].run(save_in_own_folder, tmp_path)
    assert "no __1_0.distcp here" in message and "one file system" in message and others == ["", ""]
    assert not (tmp_path / "0" / "checkpoint.pt").exists()
