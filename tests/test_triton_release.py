"""Machine code is judged with the one release of Triton that the tiles were chosen with."""

from __future__ import annotations

import pytest

from . import triton_release


@pytest.mark.parametrize(
    "version, outcome", [(triton_release.TUNED, pytest.fail.Exception), ((3, 8), pytest.skip.Exception)]
)
def test_spills_fail_with_the_tuned_release_and_are_reported_with_others(monkeypatch, version, outcome):
    monkeypatch.setattr(triton_release, "release", lambda package: version)
    triton_release.judge([])
    with pytest.raises(outcome, match="sweep spills 8 bytes"):
        triton_release.judge(["sweep spills 8 bytes"])
