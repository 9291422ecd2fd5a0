"""The pages' quoted messages, variables and files exist, and no measured number is typed by hand."""

from __future__ import annotations

import ast
import functools
import re
import tomllib

import pytest
import yaml

from bench import report

ROOT = report.README.parent
TROUBLE, VARIABLES = (report.DOCS / "troubleshooting.md").read_text().split("\n## Environment variables\n")
SEEN = [line.split(" | ")[0] for line in TROUBLE.splitlines() if line.startswith("| `")]
QUOTED = [quote for cell in SEEN for quote in re.findall(r"`([^`]+)`", cell)]
PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "wcord_fast").rglob("*.md"),
]
HOLE = "\0"  # where a message has a value
FROM_THE_SYSTEM = ("No space left on device",)


@functools.cache
def messages() -> list[str]:
    """Every string of the sources, values left open."""
    texts = []
    for path in [ROOT / "setup.py", *(ROOT / "wcord_fast").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(p.value if isinstance(p, ast.Constant) else HOLE for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def is_quoted(quote: str) -> bool:
    """Whether one message has the quote's pieces, in order, with values where the quote has dots or an example."""
    pieces = [re.escape(p) for part in quote.split("...") for p in re.split("|".join(FROM_THE_SYSTEM), part)]
    pattern = ".*".join(pieces)
    return any(re.search(pattern, message, re.DOTALL) for message in messages())


@pytest.mark.parametrize("quote", QUOTED)
def test_quoted_messages_stand_in_the_sources(quote):
    assert is_quoted(quote), quote


def test_message_missing_from_the_sources_is_noticed():
    assert not is_quoted("wcord_fast runs without its native module, quicker") and not is_quoted(
        "no C++ compiler was ... nvcc"
    )


def test_environment_variables_equal_those_of_the_sources():
    documented = set(re.findall(r"^\| `(WCORD_FAST_\w+)", VARIABLES, re.MULTILINE))
    used = {name for text in messages() for name in re.findall(r"\bWCORD_FAST_[A-Z_]*[A-Z]\b", text)}
    assert documented == used


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_citation_has_the_packages_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"] and citation["license"] == project["license"]


UNIT = r"(?:ms|us|MB|GB|%|percent|times|seconds|minutes|hours|images/s)"
MEASURED = re.compile(
    rf"(?<![\w.,^])(\d[\d,]*(?:\.\d+)?)\s?(?:{UNIT}(?![\w/])|s\b(?!\.)|x (?:faster|slower|naive|as ))"
)
NOT_MEASURED_HERE = {  # arithmetic, a limit that a test checks, or a number of another source
    "docs/paper.md": {"48.63", "61.4", "48.1"},  # the paper's: test_paper_page.py
    "wcord_fast/ops/bank/README.md": {"64", "16", "12", "8", "1", "1.1"},  # memory formulas: tests of plan and memory
}
NOT_MEASURED = ("## Plan: 10^9 rows", "Derived, not measured")  # paragraphs and sections that are marked so


def typed_numbers(text: str) -> set[str]:
    """Numbers with a unit, except in generated blocks, in code, and in passages listed in NOT_MEASURED."""
    text = report.BLOCK.sub("", text)
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for start in NOT_MEASURED:
        end = r"(?=^## |\Z)" if start.startswith("#") else r"(?=\n\n|\Z)"
        text = re.sub(re.escape(start) + ".*?" + end, "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^( {4}).*$|`[^`\n]*`", "", text, flags=re.MULTILINE)
    return {match[1] for match in MEASURED.finditer(text)}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_measured_number_is_typed_by_hand(page):
    name = str(page.relative_to(ROOT))
    assert typed_numbers(page.read_text()) <= NOT_MEASURED_HERE.get(name, set())


def test_a_typed_number_is_noticed():
    assert typed_numbers("ours takes 12.5 ms, 40 % of it\n\n<!-- bench: ot -->\n3 ms\n<!-- end -->\n") == {"12.5", "40"}
