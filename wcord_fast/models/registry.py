"""Networks by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from ..dotted import is_path, qualified
from ..ops import checks
from . import hf_folder, imagenet, libraries, mobilenetv2, own, resnet, resnet50, shufflenetv1, shufflenetv2, vgg, wrn
from .libraries import LibraryNetwork, is_library_name

Maker = TypeVar("Maker", bound=Callable[..., nn.Module])

# A family has NAMES, its published names, and build(name, **options), which returns None for a name of another family.
FAMILIES = (resnet, wrn, vgg, resnet50, mobilenetv2, shufflenetv1, shufflenetv2, imagenet)


def names() -> tuple[str, ...]:
    """The published networks by family, and registered ones. Any other "wrn_<depth>_<width>" of depth 6n+4 works."""
    return tuple(name for family in FAMILIES for name in family.NAMES) + tuple(own.MAKERS)


def register(name: str) -> Callable[[Maker], Maker]:
    """A decorator that makes a network selectable by name, here and in the command.

        @models.register("small")
        def small(num_classes, in_channels=3) -> nn.Module: ...

    The command finds it by its dotted path: `wcord-fast distill --student my_package.my_module.small`.

    A network whose `net(images, return_features=True)` returns (features, logits) is used unchanged. The stages of any
    other are found by `models.with_features`.

    Args:
        name: lower-case letters, digits and "_".
    Raises:
        ValueError: the name is taken, also by a published network, or malformed.
        TypeError: the decorated object cannot be called.
    """

    def decorate(make: Maker) -> Maker:
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"name: expected lower-case letters, digits and '_', got {name!r}")
        if not callable(make):
            raise TypeError(f"{name}: expected a function or class that makes a network, got {make!r}")
        if _is_published(name):
            raise ValueError(f"name: {name!r} is taken by a published network")
        present = own.MAKERS.get(name)
        if present is not None and qualified(present) != qualified(make):  # a reloaded module replaces its own
            raise ValueError(f"name: {name!r} is taken by {qualified(present)}")
        own.MAKERS[name] = make
        return make

    return decorate


def create(
    name: str,
    num_classes: int | None = None,
    *,
    pretrained: bool = False,
    features: str | Sequence[str] = (),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: Sequence[int] | None = None,
    **options: Any,
) -> Any:
    """A network by name, freshly initialised or pretrained.

        models.create("resnet8x4")                                      # of this package
        models.create("timm:convnext_tiny", 10, pretrained=True)        # of a library, which must be installed
        models.create("torchvision:resnet50@64")                        # which resizes images to 64x64 pixels
        models.create("hf:facebook/dinov2-small")                       # a repository or a folder; or "hf:vit"
        models.create("hf-folder:runs/exported")                        # trained, from `wcord-fast export --format hf`
        models.create("my_package.my_module.small")                     # a function or class of your own

    A library's network preprocesses its images, see `models.LibraryNetwork`. It resizes them to the size after "@".
    Without one, a pretrained network, and a transformer of timm or Hugging Face, resizes them to its own size. Other
    networks keep the size of images, and enlarge those below 32 pixels.

    Args:
        name: one of `names()`, or any "wrn_<depth>_<width>"; any case, "-" or "_" ("ResNet8x4", "WRN-40-2"). Or
            "timm:NAME", "torchvision:NAME" or "hf:NAME" with a name of that library. Or a name of `register`, or the
            dotted path of a function or class that makes a network from num_classes and in_channels.
        num_classes: width of the logits; default 100, or the width that the network in a "hf-folder:" has.
        pretrained: load the library's weights, from its cache or by a download. The classifier's weights are loaded
            only if their number of classes is `num_classes`. A user's function gets True if it has this parameter.
        features: the taps of a library's network, see `Tapped`; default: stem and stages.
        mean, std: normalisation per channel of the images that the network will get. A library's network converts it to
            its own; None: the images have its own already. Other networks ignore both.
        image_size: height and width of the images that show the stages of a user's network without features; default
            64x64.
        **options: `in_channels` (default 3; a library's network takes 3, or 1 for grey images); for wide ResNets also
            `dropout`.

    Raises:
        ValueError: an unknown name (the nearest is suggested) or an option out of range.
        TypeError: an option that the family does not have.
        ImportError: the library is not installed.
        models.WeightsUnavailable: (an OSError) the weights are not in the cache and cannot be downloaded.
    """
    _require_text(name)
    if hf_folder.is_folder_name(name):
        settings: dict[str, Any] = {"features": features, "mean": mean, "std": std, "image_size": image_size}
        return hf_folder.create(name, num_classes, create, **settings, **options)
    num_classes = 100 if num_classes is None else num_classes
    make = own.maker(name)
    if make is not None:
        return own.create(make, num_classes, pretrained=pretrained, image_size=image_size, features=features, **options)
    if is_library_name(name):
        settings = {"pretrained": pretrained, "features": features, "mean": mean, "std": std}
        return libraries.create(name, num_classes, **settings, **options)
    if pretrained or features:
        option = "pretrained" if pretrained else "features"
        raise ValueError(f"{option}: goes with a library's network, 'timm:NAME' and the like, got {name!r}")
    key = own.spelled(name)
    for family in FAMILIES:
        net = family.build(key, num_classes=num_classes, **options)
        if net is not None:
            return net
    return checks.choice("name", key, names())  # raises, since every listed name has a family or a maker


def require_known(name: str) -> None:
    """Raise unless `create` accepts `name`. Makes no network and reads no weights.

    Raises:
        TypeError, ValueError, ImportError: see `create`.
    """
    _require_text(name)
    if hf_folder.is_folder_name(name):
        return require_known(hf_folder.read_config(name)["architecture"])
    if own.maker(name) is not None:
        return
    if is_library_name(name):
        libraries.require_known(name)
    else:
        with torch.device("meta"):
            create(name)


def spelled(name: str) -> str:
    """The canonical spelling of a network of this package or a registered one ("ResNet8x4": "resnet8x4").

    Names of libraries and of folders, and dotted paths, stay as they are.
    """
    _require_text(name)
    if ":" in name or is_path(name):
        return name
    key = own.spelled(name)
    known = {own.spelled(published): published for published in names()}
    return known.get(key) or {k.replace("_", ""): v for k, v in known.items()}.get(key.replace("_", ""), key)


def least_size(name: str) -> int:
    """The smallest height and width of images that the network `name` takes.

    Raises:
        TypeError, ValueError, ImportError: see `create`.
    """
    _require_text(name)
    if hf_folder.is_folder_name(name):
        return least_size(hf_folder.read_config(name)["architecture"])
    make = own.maker(name)
    if make is not None:
        return getattr(make, "least_size", 1)
    if is_library_name(name):
        return LibraryNetwork.least_size
    with torch.device("meta"):
        return create(name).least_size


def _require_text(name: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"name: expected a str, got {type(name).__name__}")


def _is_published(key: str) -> bool:
    """Whether a family has a network of this name, also one that it refuses, or makes with a library only."""
    with torch.device("meta"):
        try:
            return any(family.build(key) is not None for family in FAMILIES)
        except (ValueError, ImportError):
            return True
