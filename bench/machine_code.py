"""The machine code of GPU kernels, read without a GPU: basic blocks, loops, and the cheapest way round a loop.

`nvdisasm -g -c` lists a binary that was compiled with -lineinfo. A call goes on behind it: the
instructions of a function that is called are not counted.
"""

from __future__ import annotations

import heapq
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CLASSES = {  # of instructions, by the first part of their names; the first that fits
    "tensor": r"HMMA|HGMMA|QGMMA|IMMA|DMMA|UTC|LDSM|LDTM|STTM",
    "float": r"F(FMA|MUL|ADD|SETP|SEL|MNMX|CHK|SET)|H(FMA2|MUL2|ADD2|MNMX2|SETP2)|D(FMA|MUL|ADD|SETP)",
    "special": r"MUFU",
    "convert": r"F2|I2|FRND",
    "global": r"LDG|STG|LD$|ST$|RED|ATOM$|ATOMG|LDGSTS|UBLKCP|UTMA",
    "shared": r"LDS|STS|ATOMS|SYNCS",
    "warp": r"SHFL|VOTE|REDUX|MATCH|WARPSYNC|CREDUX",
    "branch": r"BRA|BSSY|BSYNC|EXIT|CALL|RET|BRX|JMP|BREAK|YIELD|BAR|NANOSLEEP|NOP",
    "integer": r"",
}
_FUNCTION = re.compile(r"^\.text\.([\w$]+):")
_LABEL = re.compile(r"^(\.L_\w+):")
_LINE = re.compile(r'//## File "(?:[^"]*/)?([^"/]+)", line \d+')
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(.*?)\s*;")
_TARGET = re.compile(r"\.L_\w+")
_JUMPS = ("BRA", "JMP", "BRX", "BRXU", "EXIT", "RET", "BSYNC")
_RESOURCES = re.compile(r"Function (\w+):\s*\n?.*?REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass
class Block:
    """A run of instructions, each as "file instruction", that starts at a label or after a branch."""

    instructions: list[str] = field(default_factory=list)
    following: list[int] = field(default_factory=list)  # numbers of the blocks that may come next


@dataclass(frozen=True)
class Loop:
    head: int
    body: frozenset[int]
    ends: frozenset[int]  # the blocks that branch back to the head


def tool(name: str) -> str | None:
    """`cuobjdump` or `nvdisasm`, Triton's own or that of the path; None without either."""
    try:
        import triton
    except ImportError:
        return shutil.which(name)
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return str(path) if path.exists() else shutil.which(name)


def _run(name: str, *arguments: str) -> str:
    program = tool(name)
    if program is None:
        raise FileNotFoundError(f"{name} was found neither in Triton's package nor on the path")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout


def functions(cubin: Path) -> dict[str, list[Block]]:
    """The blocks of every function of a binary, by mangled name."""
    return parsed(_run("nvdisasm", "-g", "-c", str(cubin)))


def resources(binary: Path, target: str | None = None) -> dict[str, dict[str, int]]:
    """registers, stack and static shared bytes of every function, by mangled name; one with code for several GPUs needs
    a `target`."""
    chosen = ("-arch", target) if target else ()
    kernels = _RESOURCES.findall(_run("cuobjdump", "-res-usage", *chosen, str(binary)))
    return {name: {"registers": int(r), "stack": int(st), "shared": int(sh)} for name, r, st, sh, _ in kernels}


def parsed(listing: str) -> dict[str, list[Block]]:
    """The blocks of every function of a listing of nvdisasm."""
    result: dict[str, list[Block]] = {}
    lines: list[str] | None = None
    pieces: dict[str, list[str]] = {}
    for line in listing.splitlines():
        if match := _FUNCTION.match(line):
            lines = pieces.setdefault(match[1], [])
        elif line.lstrip().startswith(".section"):
            lines = None
        elif lines is not None:
            lines.append(line)
    for name, text in pieces.items():
        result[name] = _blocks(text)
    return result


def _blocks(lines: Sequence[str]) -> list[Block]:
    blocks, file = [Block()], ""
    labels: dict[str, int] = {}
    waits: dict[str, str] = {}  # barrier register -> the label where its threads meet again
    jumps: list[tuple[int, str]] = []  # from a block to a label
    closed = set()  # the blocks that the next one does not follow
    for line in lines:
        if match := _LABEL.match(line):
            if blocks[-1].instructions:
                blocks.append(Block())
            labels[match[1]] = len(blocks) - 1
        elif match := _LINE.search(line):
            file = match[1]
        elif match := _INSTRUCTION.match(line):
            text, at = match[2], len(blocks) - 1
            blocks[at].instructions.append(f"{file} {text}")
            name, targets = opcode(f" {text}"), _TARGET.findall(text)
            always = not text.startswith("@")
            if name == "BSSY":
                waits[text.split(",")[0].split()[-1]] = targets[0]
            elif name in _JUMPS or (name == "CALL" and targets):  # a call of a label is a far branch
                to = [waits[text.split()[-1]]] if name == "BSYNC" and text.split()[-1] in waits else targets
                jumps += [(at, label) for label in to]
                # A conditional branch has a predicate before its name or as an operand: BRA P0, `(.L_x_1).
                if always and not re.search(r"\b!?U?P\d,|BRA\.(DIV|CONV)", text):
                    closed.add(at)
                blocks.append(Block())
    for at in range(len(blocks) - 1):
        if at not in closed:
            blocks[at].following.append(at + 1)
    for at, label in jumps:
        if label in labels and labels[label] not in blocks[at].following:
            blocks[at].following.append(labels[label])
    return blocks


def opcode(instruction: str) -> str:
    """The first part of an instruction's name: "ATOMS" of "file.h @!P0 ATOMS.OR RZ, [R2], R3"."""
    words = instruction.split(" ")[1:]
    return next(word for word in words if not word.startswith("@") and word).split(".")[0]


def loops(blocks: Sequence[Block]) -> list[Loop]:
    """The natural loops, the smallest first; those with one head are one."""
    order, seen = [], set()
    stack = [(0, iter(blocks[0].following))]
    seen.add(0)
    while stack:
        at, rest = stack[-1]
        to = next((b for b in rest if b not in seen), None)
        if to is None:
            order.append(at)
            stack.pop()
        else:
            seen.add(to)
            stack.append((to, iter(blocks[to].following)))
    order.reverse()
    before: dict[int, list[int]] = {at: [] for at in order}
    for at in order:
        for to in blocks[at].following:
            before[to].append(at)
    dominators = {at: set(order) for at in order}
    dominators[0] = {0}
    changed = True
    while changed:
        changed = False
        for at in order[1:]:
            new = set.intersection(*(dominators[b] for b in before[at])) | {at}
            if new != dominators[at]:
                dominators[at], changed = new, True
    bodies: dict[int, set[int]] = {}
    ends: dict[int, set[int]] = {}
    for at in order:
        for head in blocks[at].following:
            if head not in dominators[at]:
                continue
            body, todo = bodies.setdefault(head, {head}), [at]
            ends.setdefault(head, set()).add(at)
            while todo:
                if (b := todo.pop()) not in body:
                    body.add(b)
                    todo += before[b]
    result = [Loop(head, frozenset(body), frozenset(ends[head])) for head, body in bodies.items()]
    return sorted(result, key=lambda loop: (sum(len(blocks[b].instructions) for b in loop.body), loop.head))


def cheapest_round(
    blocks: Sequence[Block], through: Mapping[str, float], trips: Sequence[tuple[str, float]] = ()
) -> Counter[str]:
    """Instructions by class of one round of a loop: the cheapest path that meets every pattern of `through`.

    Args:
        through: regular expression on "file instruction" -> how many such instructions the path has at least, each
            counted as often as it is executed. The loop is the smallest with such a path.
        trips: (pattern, rounds) of loops inside: all smaller loops in which the pattern is found. Others go round once.

    Raises:
        ValueError: no loop has such a path.
    """
    every_loop = loops(blocks)
    patterns, least = [re.compile(p) for p in through], tuple(through.values())
    meets = [tuple(sum(bool(p.search(x)) for x in block.instructions) for p in patterns) for block in blocks]
    for loop in every_loop:
        times = dict.fromkeys(loop.body, 1.0)
        for pattern, rounds in trips:
            expression = re.compile(pattern)
            for inner in every_loop:
                if inner.body < loop.body and _has(blocks, inner, expression):
                    times.update({b: times[b] * rounds for b in inner.body})
        if path := _path(blocks, loop, meets, least, times):
            counts: Counter[str] = Counter()
            for b in path:
                for instruction in blocks[b].instructions:
                    counts[kind(instruction)] += times[b]  # type: ignore[assignment]
            return counts
    raise ValueError(f"through: expected a loop with a path that has all of {dict(through)}, got none")


def kind(instruction: str) -> str:
    """The class of an instruction."""
    name = opcode(instruction)
    return next(c for c, pattern in CLASSES.items() if re.match(pattern, name))


def _has(blocks: Sequence[Block], loop: Loop, pattern: re.Pattern[str]) -> bool:
    return any(pattern.search(x) for b in loop.body for x in blocks[b].instructions)


def _path(blocks, loop, meets, least, times) -> list[int]:
    """The cheapest path from the head of the loop to one of its ends that meets enough; empty if there is none."""

    def met(before, at):
        return tuple(min(n, x + y * times[at]) for n, x, y in zip(least, before, meets[at], strict=True))

    start = (loop.head, met((0,) * len(least), loop.head))
    best = {start: len(blocks[loop.head].instructions) * times[loop.head]}
    came: dict[tuple, tuple] = {}
    queue = [(best[start], start)]
    while queue:
        cost, state = heapq.heappop(queue)
        if cost > best[state]:
            continue
        if state[0] in loop.ends and state[1] == least:
            path = [state[0]]
            while state in came:
                state = came[state]
                path.append(state[0])
            return path[::-1]
        for to in blocks[state[0]].following:
            if to not in loop.body or to == loop.head:
                continue
            new, price = (to, met(state[1], to)), cost + len(blocks[to].instructions) * times[to]
            if price < best.get(new, float("inf")):
                best[new], came[new] = price, state
                heapq.heappush(queue, (price, new))
    return []
