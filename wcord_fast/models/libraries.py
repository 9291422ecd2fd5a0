"""Networks of timm, torchvision and Hugging Face's transformers by name: "timm:resnet18", "hf:google/vit-base@112".

Each library is imported when one of its names is used.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..ops import checks
from .logits import logits_of
from .prepare import IMAGENET, Prepare
from .stages import module_outputs, stage_names
from .taps import Tapped
from .torchvision_import import torchvision_models

log = logging.getLogger(__name__)

INSTALL = {"timm": "timm", "hf": "transformers", "torchvision": "torchvision"}  # the package that a prefix needs
LEAST = 32  # smaller images are enlarged: these networks are made for large ones
EXAMPLE_SIZE = 64  # height and width of the images that show the features of a network without a size of its own
EXAMPLES = 3  # number of these images; a tensor that all images share does not have this length


class WeightsUnavailable(OSError):
    """Pretrained weights or a configuration are neither in the library's cache nor can they be fetched."""


class BuiltNetwork(NamedTuple):
    """A network as its library builds it.

    Attributes:
        network: the module, with the requested number of classes.
        mean, std: its normalisation of pixels in [0, 1].
        size: height and width of the images that it is made for.
        fixed: whether it takes no other size.
    """

    network: nn.Module
    mean: Sequence[float]
    std: Sequence[float]
    size: int
    fixed: bool


class LibraryNetwork(Tapped):
    """A library's network with features, and with its own normalisation and input size in front.

    Features: the stem and the stages, see `stages.stage_names`; the last is the input [B, feature_dim] of the
    classifier. The state dict is that of the library's network.

    Attributes:
        prepare: converts the images for the network.
        num_classes, in_channels, feature_dim: widths of the logits, of the images and of the penultimate vector.
    """

    least_size = 1  # smaller images than the network takes are enlarged

    def __init__(self, built: BuiltNetwork, prepare: Prepare, features: str | Sequence[str]) -> None:
        example = torch.zeros(EXAMPLES, 3, *[prepare.size or EXAMPLE_SIZE] * 2)
        outputs, result = module_outputs(built.network, example)
        logits: Tensor = logits_of(result)
        heads = [o.name for o in outputs if isinstance(o.module, nn.Linear) and o.shape == tuple(logits.shape[1:])]
        super().__init__(built.network, features or stage_names(outputs), heads[-1] if heads else None)
        self.prepare = prepare
        self.num_classes, self.in_channels = logits.shape[1], prepare.channels
        with torch.no_grad():
            self.feature_dim = self.eval()(example[:, : prepare.channels], return_features=True)[0][-1].shape[1]
        self.train()

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor | tuple[list[Tensor], Tensor]:
        """Logits, or (features, logits), for images [B, in_channels, H, W]."""
        return super().forward(self.prepare(x), return_features)


def is_library_name(name: Any) -> bool:
    """Whether `name` begins with the prefix of a library."""
    return isinstance(name, str) and ":" in name


def parse_name(name: str) -> tuple[str, str, int | None]:
    """The prefix, the library's own name of the network, and the size after "@" or None.

    Raises:
        ValueError: an unknown prefix, or a size that is no number.
    """
    prefix, _, rest = name.strip().partition(":")
    prefix = checks.choice("name", prefix.lower(), INSTALL)
    own_name, at, size = rest.rpartition("@")
    if at and not re.fullmatch(r"[1-9]\d*", size):
        raise ValueError(f"name: expected a number of pixels behind '@', got {name!r}")
    return prefix, own_name if at else rest, int(size) if at else None


def require_known(name: str) -> None:
    """Raise unless the library has the network. Reads no weights and fetches nothing.

    Raises:
        ValueError: the library does not have it.
        ImportError: the library is not installed.
    """
    prefix, own_name, _ = parse_name(name)
    _LIBRARIES[prefix][0](own_name)


def create(
    name: str,
    num_classes: int = 100,
    *,
    in_channels: int = 3,
    pretrained: bool = False,
    features: str | Sequence[str] = (),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> LibraryNetwork:
    """A network of a library; see `registry.create`."""
    prefix, own_name, size = parse_name(name)
    checks.integer("num_classes", num_classes, least=1)
    _LIBRARIES[prefix][0](own_name)
    built = _LIBRARIES[prefix][1](own_name, num_classes, pretrained, size)
    input_size = size or (built.size if built.fixed or pretrained else None)
    prepare = Prepare(built.mean, built.std, input_size, LEAST, in_channels, mean, std)
    return LibraryNetwork(built, prepare, features)


def _library(prefix: str) -> Any:
    """The library, or ImportError with the command that installs it."""
    package = INSTALL[prefix]
    if prefix == "torchvision":
        return torchvision_models(f"{prefix}:NAME")
    with suppress(ImportError):  # timm imports torchvision, whose operators may have to be declared first
        torchvision_models(package)
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{prefix}:NAME needs {package}, which cannot be imported ({error}): pip install 'wcord-fast[{prefix}]'"
        ) from None


def _require_one_of(prefix: str, own_name: str, names: Iterable[str]) -> None:
    """ValueError with the nearest of `names` if `own_name` is not among them; they are too many for a list."""
    names = list(names)
    if own_name not in names:
        near = " or ".join(repr(f"{prefix}:{name}") for name in difflib.get_close_matches(own_name, names, n=3))
        hint = f"; did you mean {near}?" if near else ""
        raise ValueError(f"name: {INSTALL[prefix]} has no network {own_name!r}{hint}")


@contextmanager
def _fetching(name: str):
    """Turn errors of a missing file or connection into WeightsUnavailable."""
    try:
        yield
    except (OSError, ConnectionError) as error:
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsUnavailable(
            f"{name}: neither in the library's cache nor to be fetched; without pretrained weights it starts at "
            f"random ({type(error).__name__}: {message})"
        ) from error


def _require_timm(own_name: str) -> None:
    timm = _library("timm")
    if not timm.is_model(own_name):
        _require_one_of("timm", own_name, timm.list_models())


def _build_timm(own_name: str, num_classes: int, pretrained: bool, size: int | None) -> BuiltNetwork:
    timm = _library("timm")
    cfg = timm.get_pretrained_cfg(own_name)
    fixed = bool(cfg is not None and cfg.fixed_input_size)
    options = {"img_size": size} if fixed and size else {}
    with _fetching(f"timm:{own_name}"):
        network = timm.create_model(own_name, pretrained=pretrained, num_classes=num_classes, **options)
    cfg = network.pretrained_cfg
    return BuiltNetwork(network, cfg["mean"], cfg["std"], size or cfg["input_size"][-1], fixed)


def _require_torchvision(own_name: str) -> None:
    models = _library("torchvision")
    _require_one_of("torchvision", own_name, models.list_models(module=models))


def _build_torchvision(own_name: str, num_classes: int, pretrained: bool, size: int | None) -> BuiltNetwork:
    models = _library("torchvision")
    published = models.get_model_weights(own_name).DEFAULT
    crop_size = published.transforms().crop_size[0]
    fixed = own_name.startswith("vit")
    options: dict[str, Any] = {"image_size": size} if fixed and size else {}
    network = models.get_model(own_name, weights=None, num_classes=num_classes, **options)
    if pretrained:
        with _fetching(f"torchvision:{own_name}"):
            weights = published.get_state_dict(progress=False, check_hash=True)
        shapes = {key: value.shape for key, value in network.state_dict().items()}
        network.load_state_dict({k: v for k, v in weights.items() if shapes.get(k) == v.shape}, strict=False)
    return BuiltNetwork(network, published.transforms().mean, published.transforms().std, size or crop_size, fixed)


def _require_hf(own_name: str) -> None:
    transformers = _library("hf")
    if "/" not in own_name and not os.path.isdir(own_name):
        mapping = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
        _require_one_of("hf", own_name, mapping)


def _build_hf(own_name: str, num_classes: int, pretrained: bool, size: int | None) -> BuiltNetwork:
    transformers = _library("hf")
    published = "/" in own_name or os.path.isdir(own_name)
    if pretrained and not published:
        raise ValueError(
            f"pretrained: expected a repository or a folder behind 'hf:', got the architecture {own_name!r}"
        )
    sizes = {"image_size": size} if size else {}
    auto = transformers.AutoModelForImageClassification
    mean: Sequence[float]
    std: Sequence[float]
    mean, std = IMAGENET
    if not published:
        config = transformers.AutoConfig.for_model(own_name, num_labels=num_classes, **sizes)
    else:
        with _fetching(f"hf:{own_name}"):
            config = transformers.AutoConfig.from_pretrained(own_name, num_labels=num_classes, **sizes)
        mean, std = _hf_normalisation(own_name)
    if pretrained:
        with _fetching(f"hf:{own_name}"):
            network = auto.from_pretrained(own_name, config=config, ignore_mismatched_sizes=True)
    else:
        network = auto.from_config(config)
    image_size = getattr(config, "image_size", None)
    side = image_size[0] if isinstance(image_size, (list, tuple)) else image_size
    return BuiltNetwork(network, mean, std, side or 224, side is not None)


def _hf_normalisation(own_name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std of the image processor; ImageNet's for a folder without one, such as a model saved alone."""
    try:
        with _fetching(f"hf:{own_name}"):
            processor, _ = _library("hf").ImageProcessingMixin.get_image_processor_dict(own_name)
    except WeightsUnavailable:
        if not os.path.isdir(own_name):
            raise
        log.warning("hf:%s has no preprocessor_config.json: images are normalised as ImageNet's", own_name)
        return IMAGENET
    return processor.get("image_mean", IMAGENET[0]), processor.get("image_std", IMAGENET[1])


_LIBRARIES: dict[str, tuple[Callable[[str], None], Callable[[str, int, bool, int | None], BuiltNetwork]]] = {
    "timm": (_require_timm, _build_timm),
    "torchvision": (_require_torchvision, _build_torchvision),
    "hf": (_require_hf, _build_hf),
}
