"""The documentation site: built without a warning, links that lead somewhere, every public name on an API page."""

from __future__ import annotations

import importlib
import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = {
    "wcord_fast.nn": "nn",
    "wcord_fast.functional": "functional",
    "wcord_fast.distill": "distill",
    "wcord_fast.models": "models",
    "wcord_fast.data": "data",
    "wcord_fast.train": "train",
    "wcord_fast.distributed": "distributed",
}
pytestmark = pytest.mark.slow


def build(folder: Path, config: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, cwd=config.parent)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_link_and_picture_is_there(site):
    pages = {page.relative_to(site).as_posix(): page.read_text() for page in site.rglob("*.html")}
    anchors = {name: set(re.findall(r'\bid="([^"]+)"', text)) for name, text in pages.items()}
    missing = []
    for name, text in pages.items():
        for link in re.findall(r'\b(?:href|src)="([^"]+)"', text) if name != "404.html" else ():
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = posixpath.join(posixpath.dirname(name), unquote(url.path)) if url.path else name
            target = posixpath.normpath(target)
            target = posixpath.join(target, "index.html") if (site / target).is_dir() else target
            if not (site / target).is_file() or (url.fragment and unquote(url.fragment) not in anchors.get(target, ())):
                missing.append(f"{name}: {link}")
    assert len(pages) > 20 and not missing


def test_no_page_asks_another_host_for_anything(site):
    for page in site.rglob("*.html"):
        assert not re.findall(r'<(?:script|img|link)\b[^>]*\b(?:src|href)="https?:[^"]*"', page.read_text()), page


def test_an_inner_product_is_not_taken_for_a_tag(site):
    assert "&lt;P, C&gt;" in (site / "concepts" / "transport.html").read_text()
    for page in site.rglob("*.html"):
        assert not re.search(r"<\w+, ", page.read_text()), page


@pytest.mark.parametrize("module", MODULES)
def test_the_api_pages_have_every_public_name(site, module):
    page = (site / "api" / f"{MODULES[module]}.html").read_text()
    values = {name: getattr(importlib.import_module(module), name) for name in importlib.import_module(module).__all__}
    shown = {name for name, value in values.items() if callable(value)}
    assert {name for name in shown if not re.search(rf'id="{module}(?:\.\w+)?\.{name}"', page)} == set()


def test_the_top_level_names_are_on_some_page(site):
    import wcord_fast

    pages = "".join(page.read_text() for page in (site / "api").glob("*.html"))
    absent = [name for name in wcord_fast.__all__ if not re.search(rf'id="wcord_fast(?:\.\w+)?\.{name}"', pages)]
    assert [name for name in absent if f"wcord_fast.{name}" not in MODULES] == ["info"]
    assert 'id="wcord_fast.info.report"' in pages


def test_a_link_to_nowhere_fails_the_build(site, tmp_path):
    for name in ("mkdocs.yml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("docs", "bench/results", "examples", "wcord_fast"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "docs" / "start.md").write_text("# Start\n\n[nowhere](nowhere.md)\n")
    done = build(tmp_path / "built", tmp_path / "mkdocs.yml")
    assert done.returncode != 0 and "nowhere.md" in done.stdout + done.stderr
