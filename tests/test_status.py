"""The status word: bits set without a host branch, read and cleared by `wcord_fast.check()`."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import wcord_fast
from wcord_fast.ops import status
from wcord_fast.ops.status import MESSAGES, Code


def test_check_names_every_flag_once_and_clears():
    cpu = torch.device("cpu")
    for code in Code:
        status.word(cpu).fill_(int(code))
        with pytest.raises(ValueError) as error:
            wcord_fast.check(cpu)
        assert MESSAGES[code] in str(error.value) and "cpu" in str(error.value)
        wcord_fast.check()
    status.word(cpu).fill_(int(Code.INDEX | Code.ANCHOR))
    with pytest.raises(ValueError) as error:
        wcord_fast.check()
    assert MESSAGES[Code.INDEX] in str(error.value) and MESSAGES[Code.ANCHOR] in str(error.value)
    wcord_fast.check("cpu")


def test_concurrent_threads_share_one_status_word(monkeypatch):
    device, both = torch.device("cpu"), threading.Barrier(2, timeout=10)
    monkeypatch.setattr(status, "_words", {})
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *args, **kwargs: (both.wait(), zeros(*args, **kwargs))[1])
    with ThreadPoolExecutor(2) as pool:
        words = list(pool.map(status.word, [device, device]))
    assert words[0] is words[1] is status.word(device)


def test_a_word_made_in_inference_mode_can_be_written_outside(monkeypatch):
    monkeypatch.setattr(status, "_words", {})
    with torch.inference_mode():
        status.word(torch.device("cpu"))
    status.word(torch.device("cpu")).bitwise_or_(torch.tensor(0, dtype=torch.int32))


@pytest.mark.parametrize("device", ["nowhere", 3.5, "cuda:99", "mps:7", "meta"])
def test_invalid_device_is_refused(device):
    with pytest.raises(ValueError, match=f"device: expected one of this machine, got {device!r}"):
        wcord_fast.check(device)


def test_guard_raises_the_first_bad_position_on_the_cpu():
    bad = torch.tensor([[False, False], [True, True]])
    with pytest.raises(KeyError, match="1, 0"):
        status.guard(bad, Code.INDEX, lambda at: KeyError(f"{at[0]}, {at[1]}"))
    status.guard(torch.zeros(3, dtype=torch.bool), Code.INDEX, lambda at: KeyError(at))
    status.guard(torch.ones(3, dtype=torch.bool, device="meta"), Code.INDEX, lambda at: KeyError(at))


def test_every_launcher_that_hands_out_the_word_checks_it_when_asked():
    launchers = [f.read_text() for f in Path(status.__file__).parent.rglob("*.py") if "check_launch(" in f.read_text()]
    flagging = [text for text in launchers if "native_module.on_cuda(" in text]
    assert len(flagging) >= 5
    assert all(text.count("native_module.on_cuda(") == text.count("status.check_if_enabled(") for text in flagging)
