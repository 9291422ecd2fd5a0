"""The properties of a data set with a name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..dotted import qualified
from ..ops import checks
from .dataset import Dataset
from .lazy_folder import LazyFolder

OF_SOME = {"channels": 3, "test_fraction": 0.2}  # options of some data sets that are refused elsewhere; their defaults
Loader: TypeAlias = Callable[..., Dataset | LazyFolder]


@dataclass(frozen=True)
class Source:
    """A data set by name.

    Attributes:
        load: returns the data set. It gets those of data_dir, image_size, channels, test_fraction and skip_corrupt that
            are among its parameters.
        held: True: the set is held in memory, and `load` returns a `Dataset`. False: it returns a `LazyFolder`.
        needs_dir: whether `data_dir` is required.
        image_size: default of `image_size`, pixels per side.
        config: the driver's recipe: the name of a packaged configuration file without ".yaml", or the path of a file.
        positive: the default class of `wcord-fast sweep`, which its student separates from all others.
        train_images: number of training images in the published set; None if there is none.
    """

    load: Loader
    held: bool = True
    needs_dir: bool = False
    image_size: int = 32
    config: str | None = None
    positive: str | None = None
    train_images: int | None = None

    def __post_init__(self) -> None:
        if not callable(self.load):
            raise TypeError(f"load: expected a function that gives a data set, got {self.load!r}")
        checks.boolean("held", self.held)
        checks.boolean("needs_dir", self.needs_dir)
        checks.integer("image_size", self.image_size, least=1)
        for name, text in (("config", self.config), ("positive", self.positive)):
            if text is not None and not isinstance(text, str):
                raise TypeError(f"{name}: expected a str or None, got {text!r}")
        if self.train_images is not None:
            checks.integer("train_images", self.train_images, least=1)

    def read(self, name: str, **options: Any) -> Dataset | LazyFolder:
        """The data set, loaded with those of `options` that its function takes.

        Raises:
            ValueError: no data_dir where one is needed; a value of OF_SOME for a function that does not take it.
            TypeError: the function returns something else.
        """
        if self.needs_dir and options["data_dir"] is None:
            raise ValueError(f"data_dir: the data set {name!r} needs the folder of images (--data-dir DIR), got None")
        if options["image_size"] is None:
            options["image_size"] = self.image_size
        parameters = inspect.signature(self.load).parameters
        any_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for option, default in OF_SOME.items():
            if option not in parameters and not any_name and options.get(option, default) != default:
                raise ValueError(f"{option}: the data set {name!r} does not have this option, got {options[option]!r}")
        result = self.load(**{key: value for key, value in options.items() if key in parameters})
        kind = Dataset if self.held else LazyFolder
        if not isinstance(result, kind):
            raise TypeError(f"{name}: expected {qualified(self.load)} to give a data.{kind.__name__}, got {result!r}")
        return result
