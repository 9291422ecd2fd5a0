"""How instructions are counted, and that the committed counts have not grown."""

from __future__ import annotations

import pytest

from bench import counts, counts_triton
from bench.counts_kernels import Way
from bench.machine_code import cheapest_round, loops, parsed, tool
from bench.results_file import read

GROWTH = 1.05
# A loop over loads whose scores take one of two ways, and inside of it a loop of three instructions.
LISTING = r"""
.text.kernel:
	//## File "/somewhere/csrc/cuda/kernel.cu", line 1
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDG.E R2, [R4.64] ;
.L_x_1:
	//## File "/somewhere/csrc/cuda/kernel.h", line 7
        /*0020*/                   FFMA R3, R2, R2, R3 ;
        /*0030*/                   ISETP.GE.AND P0, PT, R3, R5, PT ;
        /*0040*/              @!P0 BRA `(.L_x_1) ;
        /*0050*/                   BSSY B0, `(.L_x_4) ;
        /*0060*/               @P1 BRA `(.L_x_2) ;
        /*0070*/                   MUFU.EX2 R6, R3 ;
        /*0080*/                   MUFU.LG2 R6, R6 ;
        /*0090*/                   FADD R6, R6, R7 ;
        /*00a0*/                   BRA `(.L_x_3) ;
.L_x_2:
        /*00b0*/                   FADD R6, R6, R3 ;
.L_x_3:
        /*00c0*/                   BSYNC B0 ;
.L_x_4:
        /*00d0*/               @P2 BRA `(.L_x_0) ;
        /*00e0*/                   EXIT ;
.section .other
"""


@pytest.fixture
def blocks():
    return parsed(LISTING)["kernel"]


def test_loops_are_found_with_what_is_in_them(blocks):
    inner, outer = loops(blocks)
    assert inner.body < outer.body
    assert sum(len(blocks[b].instructions) for b in inner.body) == 3


def test_the_cheapest_round_takes_the_short_way(blocks):
    assert dict(cheapest_round(blocks, {"LDG": 1})) == {"global": 1, "float": 2, "integer": 1, "branch": 5}


def test_a_round_takes_the_way_that_it_is_told(blocks):
    round_ = cheapest_round(blocks, {"LDG": 1, "MUFU": 2})
    assert dict(round_) == {"global": 1, "float": 2, "integer": 1, "special": 2, "branch": 6}


def test_loops_inside_are_counted_as_often_as_they_go_round(blocks):
    assert dict(cheapest_round(blocks, {"LDG": 1}, [("kernel.h FFMA", 10)])) == {
        "global": 1,
        "float": 11,
        "integer": 10,
        "branch": 14,
    }


def test_a_loop_that_is_not_there_is_refused(blocks):
    with pytest.raises(ValueError, match=r"through: expected a loop with a path that has all of .*HMMA"):
        cheapest_round(blocks, {"HMMA": 1})


def test_ways_of_different_warps_are_added(blocks):
    kernel = counts.Kernel(
        name="k",
        unit="round of a block",
        source="kernel.cu",
        symbol="^kernel$",
        ways=(Way({"LDG": 1}, warps=14), Way({"LDG": 1, "MUFU": 2}, warps=2)),
        units=1,
        threads=512,
        dynamic_shared=0,
        total=1,
        work={"fp32": 67e12},
        processors=1,
    )
    used = {"kernel": {"registers": 32, "stack": 0, "shared": 0}}
    row = counts.row(kernel, "sm_90", {"kernel": blocks}, used)
    assert row["instructions"] == 14 * 9 + 2 * 12
    assert row["classes"] == {"branch": 82.0, "float": 32.0, "integer": 16.0, "global": 16.0, "special": 4.0}
    assert row["floor_us"] == 1e6  # fp32 at its ceiling for a second
    assert row["bound_us"] == 0.0  # 150 instructions by four schedulers


def test_blocks_of_a_multiprocessor():
    assert counts.resident("sm_90", 128, 256, 20_000) == 2  # by registers
    assert counts.resident("sm_90", 32, 512, 100_000) == 2  # by shared memory
    assert counts.resident("sm_120", 32, 512, 1_000) == 3  # by threads


def test_every_kernel_has_a_committed_count():
    committed = {(r["kernel"], r["target"]) for r in read("counts")}
    assert {(k.name, target) for k in counts.KERNELS for target in counts.TARGETS} <= committed
    walks = [counts_triton.name_of(*case) for case in counts_triton.CASES]
    assert {(name, target) for name in walks for target in counts_triton.TARGETS} <= committed


@pytest.mark.slow
@pytest.mark.skipif(counts.NVCC is None or tool("nvdisasm") is None, reason="nvcc or nvdisasm was not found")
@pytest.mark.parametrize("target", counts.TARGETS)
def test_no_count_has_grown(target):
    committed, compared = counts.latest(read("counts")), 0
    for row in counts.rows(targets=[target]):
        before = committed.get((row["kernel"], target, row["compiler"]))
        if before is None:
            continue  # another compiler
        compared += 1
        assert row["instructions"] <= GROWTH * before["instructions"], row
        assert row["spilled_bytes"] <= before["spilled_bytes"], row
    if not compared:
        pytest.skip(f"no committed count of nvcc {counts.compiler()}")
