"""What is known of a data set that can be asked for by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..dotted import qualified
from .dataset import Dataset
from .lazy_folder import LazyFolder

Loader: TypeAlias = Callable[..., Dataset | LazyFolder]


@dataclass(frozen=True)
class Source:
    """A data set by name.

    Attributes:
        load: gives the data set. It is called with those of data_dir, image_size, channels, test_fraction and
            skip_corrupt that it has as parameters.
        held: whether it is held in memory, a `Dataset`; else it is a `LazyFolder`.
        needs_dir: whether it cannot be loaded without a data_dir.
        image_size: pixels per side where none are asked for.
        config: the driver's recipe for it: the name of a packaged configuration file, or the path of one.
        positive: the class that the student of "privileged" has to find by default.
        train_images: how many training images the published set has, if it is one.
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

    def read(self, name: str, **options: Any) -> Dataset | LazyFolder:
        """The data set, by those of `options` that its function takes.

        Raises:
            ValueError: no data_dir where one is needed; TypeError: the function gives something else.
        """
        if self.needs_dir and options["data_dir"] is None:
            raise ValueError(f"data_dir: the data set {name!r} needs the folder of images (--data-dir DIR), got None")
        if options["image_size"] is None:
            options["image_size"] = self.image_size
        taken = inspect.signature(self.load).parameters
        result = self.load(**{key: value for key, value in options.items() if key in taken})
        kind = Dataset if self.held else LazyFolder
        if not isinstance(result, kind):
            raise TypeError(f"{name}: expected {qualified(self.load)} to give a data.{kind.__name__}, got {result!r}")
        return result
