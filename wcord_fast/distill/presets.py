"""Presets: named sets of values for those options of a method that are not given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

from ..ops import checks

if TYPE_CHECKING:
    from typing import Self


class Presets:
    """Base of an options record with a field `preset`: a name in `presets`, or None.

    An option that is given to the constructor keeps its value. Any other takes the preset's value, or else its default.
    `dataclasses.replace` gives every option, so values filled by a preset are kept.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    preset: str | None
    _given: set[str]

    def __new__(cls, *args: Any, **options: Any) -> Self:
        record = super().__new__(cls)
        names = [f.name for f in fields(cls) if f.init]  # type: ignore[arg-type]
        record._given = {*names[: len(args)], *options}
        return record

    def fill(self) -> dict[str, Any]:
        """Set the preset's values of options that were not given, and return them.

        Raises:
            ValueError: an unknown preset.
        """
        given = self.__dict__.pop("_given", set())
        if self.preset is None:
            return {}
        checks.choice("preset", self.preset, self.presets)
        filled = {name: value for name, value in self.presets[self.preset].items() if name not in given}
        for name, value in filled.items():
            setattr(self, name, value)
        return filled
