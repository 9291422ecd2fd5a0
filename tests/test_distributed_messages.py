"""An error on several processes gives one message and ends them all."""

from __future__ import annotations

import pytest

from . import faulty_rank
from .faulty_job import command, last_epoch, make_teacher, ours, torchrun, tracebacks
from .grid import slow
from .rank_pool import launch


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return make_teacher(tmp_path_factory.mktemp("teacher") / "teacher.pt")


@pytest.mark.parametrize("rank", [0, slow(1)])
def test_a_defect_on_one_rank_is_shown_once_and_ends_all(teacher, tmp_path, rank):
    ended = command(tmp_path, teacher, fault=f"bug:{rank}")
    assert ended.codes == [1, 1]
    assert "LookupError: of a user's network" in ended.err[rank] and tracebacks(ended) == 1
    assert ended.err[1 - rank] == ""
    assert last_epoch(tmp_path) == 1


def test_a_defect_of_all_ranks_is_shown_once(teacher, tmp_path):
    ended = command(tmp_path, teacher, fault="bug:all")
    assert ended.codes == [1, 1]
    assert "".join(ended.err).count("LookupError: of") == 1 and tracebacks(ended) == 1


@pytest.mark.parametrize("rank", ["1", slow("all")])
def test_nan_loss_on_one_rank_gives_one_message(teacher, tmp_path, rank):
    ended = command(tmp_path, teacher, fault=f"nan:{rank}")
    assert ended.codes == [1, 1]
    (message,) = "".join(ended.err).splitlines()
    assert message.startswith("wcord-fast distill: the loss term 'ce' became NaN or infinite in step 1 of epoch 2")
    assert last_epoch(tmp_path) == 1


@pytest.mark.parametrize("fault, message", [("step:1", "ended without a word"), slow("nan:1", "'ce' became NaN")])
def test_other_launchers_also_end_with_one_message(teacher, tmp_path, fault, message):
    ended = command(tmp_path, teacher, fault=fault, agent=False)
    assert 0 not in ended.codes
    (line,) = [line for text in ended.err for line in ours(text)]
    assert message in line


def test_users_mistake_gives_one_message(teacher, tmp_path):
    ended = command(tmp_path, teacher, "--batch-size=1")
    message = [line for text in ended.err for line in ours(text)]
    assert message == ["wcord-fast distill: batch_size: expected at least one image for each of 2 processes, got 1"]


def test_full_disk_at_rank_0_gives_one_message_and_the_run_resumes(teacher, tmp_path):
    ended = command(tmp_path, teacher, fault="disk:0")
    assert ended.codes == [1, 1]
    (message,) = "".join(ended.err).splitlines()
    assert (
        message
        == f"wcord-fast distill: output_dir: cannot write {tmp_path}/wcord/checkpoint.pt: No space left on device"
    )
    assert last_epoch(tmp_path) == 1
    again = command(tmp_path, teacher)
    assert again.codes == [0, 0], again.err
    assert "going on after epoch 1" in again.out[0]


def test_a_warning_is_given_by_one_rank(teacher, tmp_path):
    ended = command(tmp_path, teacher, "--epochs=1", "--wcord.num-negatives=95")
    assert ended.codes == [0, 0]
    assert ["exceeds a pool of 90 rows" in text for text in ended.err] == [True, False]


@pytest.mark.parametrize("name", ["table", "evaluate"])
def test_single_process_commands_refuse_several_ranks(tmp_path, name):
    ended = launch(2, tmp_path, faulty_rank.run, "", [name, "--help"])
    message = [line for text in ended.err for line in ours(text)]
    assert message == [f"wcord-fast {name}: expected one process, got 2; distill and teacher run on several"]
    assert ended.codes == [2, 2]


@pytest.mark.slow
def test_torchrun_output_ends_with_the_error(teacher, tmp_path):
    done = torchrun("nan:1", tmp_path, teacher)
    assert done.returncode == 1
    _, _, report = done.stderr.partition("Root Cause")
    assert "wcord-fast distill: the loss term 'ce' became NaN" in report
