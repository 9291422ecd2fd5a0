"""The package's modules import one another without a cycle, and no file is too long to read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "wcord_fast"
MOST_LINES = 400


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in PACKAGE.rglob("*.py")}


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """A tree without the parts that only a type checker reads."""
    yield node
    for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    for child in node.orelse if for_types else ast.iter_child_nodes(node):
        yield from executed(child)


def imported(name: str, file: Path) -> Iterator[str]:
    """The package's modules that `file` imports, at its top or in a function: a cycle is no better for being late."""
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    for node in executed(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *filter(None, [node.module])])
            for alias in node.names:
                module = f"{base}.{alias.name}"
                yield from (m for m in (module if module in MODULES else base,) if m in MODULES)


def test_import_graph_has_no_cycle():
    graph = {name: set(imported(name, file)) for name, file in MODULES.items()}
    assert sum(map(len, graph.values())) > len(graph) > 100  # the parser above sees them
    list(TopologicalSorter(graph).static_order())  # a CycleError names the modules


def test_no_file_exceeds_the_line_limit():
    files = [f for folder in ("wcord_fast", "csrc", "bench", "tests", "examples") for f in (ROOT / folder).rglob("*")]
    code = [f for f in files if f.suffix in (".py", ".h", ".inl", ".cpp", ".cu")]
    assert len(code) > 300
    assert [f for f in code if len(f.read_text().splitlines()) > MOST_LINES] == []
