"""Configuration files: YAML, read strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml


class _Strict(yaml.SafeLoader):
    """Refuses a repeated key, of which YAML would take the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read(path: Path) -> dict[str, Any]:
    """The mapping in `path`, without keys that have no value; an empty file gives an empty mapping.

    Raises:
        ValueError: the file is not YAML, or not a mapping; the message names the file and, if known, the line.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Strict)
        json.dumps(values, default=str)  # a ValueError for a value that contains itself
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        raise ValueError(f"config: {path}{line}: {error.problem}") from None
    except OSError as error:
        raise ValueError(f"config: {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"config: {path} cannot be used: {str(error).splitlines()[0]}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"config: {path}: expected NAME: VALUE lines, got {type(values).__name__}")
    return {key: value for key, value in values.items() if value is not None}
