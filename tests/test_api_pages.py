"""Every public name has a docstring, from which its entry on the API pages is made (test_site.py)."""

from __future__ import annotations

import importlib
import inspect

import pytest

MODULES = ["wcord_fast", *(f"wcord_fast.{m}" for m in ("data", "distill", "functional", "models", "train"))]


def public(module: str) -> dict[str, object]:
    imported = importlib.import_module(module)
    return {name: getattr(imported, name) for name in imported.__all__}


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_documented(module):
    for name, value in public(module).items():
        if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
            assert inspect.getdoc(value), f"{module}.{name} has no docstring"
        for method, function in vars(value).items() if inspect.isclass(value) else ():
            if not method.startswith("_") and inspect.isfunction(function):
                assert inspect.getdoc(getattr(value, method)), f"{module}.{name}.{method} has no docstring"
