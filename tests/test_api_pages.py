"""The API pages are made from the docstrings, and every public name has one to be made from."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest

import wcord_fast

MODULES = ["wcord_fast", *(f"wcord_fast.{m}" for m in ("data", "distill", "functional", "models", "train"))]


def public(module: str) -> dict[str, object]:
    found = importlib.import_module(module)
    return {name: getattr(found, name) for name in found.__all__}


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_documented(module):
    for name, value in public(module).items():
        if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
            assert inspect.getdoc(value), f"{module}.{name} has no docstring"
        for method, function in vars(value).items() if inspect.isclass(value) else ():
            if not method.startswith("_") and inspect.isfunction(function):
                assert inspect.getdoc(getattr(value, method)), f"{module}.{name}.{method} has no docstring"


@pytest.mark.slow
def test_the_pages_are_made(tmp_path):
    pytest.importorskip("pdoc")
    command = [sys.executable, "-m", "pdoc", "-d", "google", "-o", str(tmp_path), "wcord_fast", "!wcord_fast.ops"]
    subprocess.run(command, check=True, capture_output=True)
    page = (tmp_path / "wcord_fast.html").read_text()
    assert all(f'id="{name}' in page or f"{name}.html" in page for name in wcord_fast.__all__)
    functions = (tmp_path / "wcord_fast" / "functional.html").read_text()
    assert all(f'id="{name}"' in functions for name in wcord_fast.functional.__all__)
