"""Tables of text cells, for the screen and for Markdown."""

from __future__ import annotations

Line = dict[str, str]
WORDS = ("method", "network", "pair", "table", "student", "setting", "module", "shape")  # left-aligned


def text_table(lines: list[Line]) -> str:
    """Aligned columns: words to the left, numbers to the right."""
    widths = {c: max(len(c), *(len(line[c]) for line in lines)) for c in lines[0]}

    def row(cells: Line) -> str:
        return "  ".join(cells[c].ljust(w) if c in WORDS else cells[c].rjust(w) for c, w in widths.items()).rstrip()

    rule = "  ".join("-" * w for w in widths.values())
    return "\n".join([row({c: c for c in widths}), rule, *(row(line) for line in lines)])


def markdown_table(lines: list[Line]) -> str:
    """The table as Markdown."""
    head = list(lines[0])
    rows = [head, ["---"] * len(head), *([line[c] for c in head] for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
