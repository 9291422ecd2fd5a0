"""Presets: named values of a method's options, which fill in for those that were not given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

from ..ops import checks

if TYPE_CHECKING:
    from typing import Self


class Presets:
    """A base of a record of options that has a field `preset`: the name of one of `presets`, or None.

    An option that the constructor is given keeps its value. Any other takes the preset's value, or its default.
    `dataclasses.replace` gives every option, so it keeps what a preset has filled.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    preset: str | None
    _given: set[str]

    def __new__(cls, *args: Any, **given: Any) -> Self:
        record = super().__new__(cls)
        names = [f.name for f in fields(cls) if f.init]  # type: ignore[arg-type]
        record._given = {*names[: len(args)], *given}
        return record

    def fill(self) -> dict[str, Any]:
        """Set the options that were not given, and return them. ValueError: there is no such preset."""
        given = self.__dict__.pop("_given", set())
        if self.preset is None:
            return {}
        checks.choice("preset", self.preset, self.presets)
        filled = {name: value for name, value in self.presets[self.preset].items() if name not in given}
        for name, value in filled.items():
            setattr(self, name, value)
        return filled
