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
from .answer import logits_of
from .prepare import IMAGENET, Prepare
from .stages import outputs_seen, stage_names
from .taps import Tapped
from .torchvision_import import torchvision_models

log = logging.getLogger(__name__)

INSTALL = {"timm": "timm", "hf": "transformers", "torchvision": "torchvision"}  # the package that a prefix needs
LEAST = 32  # smaller images are enlarged: these networks are made for large ones
EXAMPLE = 64  # height and width of the images by which the features of a network without a size of its own are found
EXAMPLES = 3  # as many, so that no tensor that is the same for all images looks like theirs


class WeightsUnavailable(OSError):
    """Pretrained weights, or a configuration, that are neither in the library's cache nor can be fetched."""


class Made(NamedTuple):
    """A network of a library.

    Attributes:
        network: with the classes that were asked for.
        mean, std: of the pixels in [0, 1] that it is trained on.
        size: height and width that it is made for; `fixed`: it takes no other.
    """

    network: nn.Module
    mean: Sequence[float]
    std: Sequence[float]
    size: int
    fixed: bool


class LibraryNetwork(Tapped):
    """A library's network with features, and with its own normalisation and input size in front.

    Features: the stem and the stages, see `stages.stage_names`; the last one the input [B, feature_dim] of its
    classifier. The state dict is that of the library's network.

    Attributes:
        prepare: what the images go through first.
        num_classes, in_channels, feature_dim: widths of the logits, of the images and of the penultimate vector.
    """

    least_size = 1  # smaller images than the network takes are enlarged

    def __init__(self, made: Made, prepare: Prepare, features: str | Sequence[str]) -> None:
        example = torch.zeros(EXAMPLES, 3, *[prepare.size or EXAMPLE] * 2)
        seen, answer = outputs_seen(made.network, example)
        logits: Tensor = logits_of(answer)
        heads = [s.name for s in seen if isinstance(s.module, nn.Linear) and s.shape == tuple(logits.shape[1:])]
        super().__init__(made.network, features or stage_names(seen), heads[-1] if heads else None)
        self.prepare = prepare
        self.num_classes, self.in_channels = logits.shape[1], prepare.channels
        with torch.no_grad():
            self.feature_dim = self.eval()(example[:, : prepare.channels], return_features=True)[0][-1].shape[1]
        self.train()

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor | tuple[list[Tensor], Tensor]:
        """Logits, or (features, logits), of images [B, in_channels, H, W]."""
        return super().forward(self.prepare(x), return_features)


def is_library_name(name: Any) -> bool:
    """Whether `name` begins with the prefix of a library."""
    return isinstance(name, str) and ":" in name


def split(name: str) -> tuple[str, str, int | None]:
    """Prefix, the library's own name, and the size behind "@" or None.

    Raises:
        ValueError: another prefix, or a size that is no number.
    """
    prefix, _, rest = name.strip().partition(":")
    prefix = checks.choice("name", prefix.lower(), INSTALL)
    own, at, size = rest.rpartition("@")
    if at and not re.fullmatch(r"[1-9]\d*", size):
        raise ValueError(f"name: expected a number of pixels behind '@', got {name!r}")
    return prefix, own if at else rest, int(size) if at else None


def require_known(name: str) -> None:
    """Raise unless the library has the network. Reads no weights and fetches nothing.

    Raises:
        ValueError: it does not know it; ImportError: the library is not installed.
    """
    prefix, own, _ = split(name)
    _LIBRARIES[prefix][0](own)


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
    prefix, own, size = split(name)
    checks.integer("num_classes", num_classes, least=1)
    _LIBRARIES[prefix][0](own)
    made = _LIBRARIES[prefix][1](own, num_classes, pretrained, size)
    seen_size = size or (made.size if made.fixed or pretrained else None)
    prepare = Prepare(made.mean, made.std, seen_size, LEAST, in_channels, mean, std)
    return LibraryNetwork(made, prepare, features)


def _imported(prefix: str) -> Any:
    """The library, or ImportError with the command that installs it."""
    package = INSTALL[prefix]
    if prefix == "torchvision":
        return torchvision_models(f"{prefix}:NAME")
    with suppress(ImportError):  # timm imports it, and its own operators may need our help
        torchvision_models(package)
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{prefix}:NAME needs {package}, which cannot be imported ({error}): pip install 'wcord-fast[{prefix}]'"
        ) from None


def _require_one_of(prefix: str, own: str, names: Iterable[str]) -> None:
    """ValueError if `own` is not in `names`, which are too many to be listed: the nearest are."""
    names = list(names)
    if own not in names:
        near = " or ".join(repr(f"{prefix}:{name}") for name in difflib.get_close_matches(own, names, n=3))
        hint = f"; did you mean {near}?" if near else ""
        raise ValueError(f"name: {INSTALL[prefix]} has no network {own!r}{hint}")


@contextmanager
def _fetching(name: str):
    """Turn errors about a missing file or network into WeightsUnavailable."""
    try:
        yield
    except (OSError, ConnectionError) as error:
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsUnavailable(
            f"{name}: neither in the library's cache nor to be fetched from here; without pretrained weights it begins "
            f"at random ({type(error).__name__}: {message})"
        ) from error


def _require_timm(own: str) -> None:
    timm = _imported("timm")
    if not timm.is_model(own):
        _require_one_of("timm", own, timm.list_models())


def _timm(own: str, num_classes: int, pretrained: bool, size: int | None) -> Made:
    timm = _imported("timm")
    cfg = timm.get_pretrained_cfg(own)
    fixed = bool(cfg is not None and cfg.fixed_input_size)
    options = {"img_size": size} if fixed and size else {}
    with _fetching(f"timm:{own}"):
        network = timm.create_model(own, pretrained=pretrained, num_classes=num_classes, **options)
    cfg = network.pretrained_cfg
    return Made(network, cfg["mean"], cfg["std"], size or cfg["input_size"][-1], fixed)


def _require_torchvision(own: str) -> None:
    models = _imported("torchvision")
    _require_one_of("torchvision", own, models.list_models(module=models))


def _torchvision(own: str, num_classes: int, pretrained: bool, size: int | None) -> Made:
    models = _imported("torchvision")
    best = models.get_model_weights(own).DEFAULT
    own_size = best.transforms().crop_size[0]
    fixed = own.startswith("vit")
    options: dict[str, Any] = {"image_size": size} if fixed and size else {}
    network = models.get_model(own, weights=None, num_classes=num_classes, **options)
    if pretrained:
        with _fetching(f"torchvision:{own}"):
            weights = best.get_state_dict(progress=False, check_hash=True)
        fits = {key: value.shape for key, value in network.state_dict().items()}
        network.load_state_dict({k: v for k, v in weights.items() if fits.get(k) == v.shape}, strict=False)
    return Made(network, best.transforms().mean, best.transforms().std, size or own_size, fixed)


def _require_hf(own: str) -> None:
    transformers = _imported("hf")
    if "/" not in own and not os.path.isdir(own):
        mapping = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
        _require_one_of("hf", own, mapping)


def _hf(own: str, num_classes: int, pretrained: bool, size: int | None) -> Made:
    transformers = _imported("hf")
    published = "/" in own or os.path.isdir(own)
    if pretrained and not published:
        raise ValueError(f"pretrained: expected a repository or a folder behind 'hf:', got the architecture {own!r}")
    sizes = {"image_size": size} if size else {}
    auto = transformers.AutoModelForImageClassification
    mean: Sequence[float]
    std: Sequence[float]
    mean, std = IMAGENET
    if not published:
        config = transformers.AutoConfig.for_model(own, num_labels=num_classes, **sizes)
    else:
        with _fetching(f"hf:{own}"):
            config = transformers.AutoConfig.from_pretrained(own, num_labels=num_classes, **sizes)
        mean, std = _hf_normalisation(own)
    if pretrained:
        with _fetching(f"hf:{own}"):
            network = auto.from_pretrained(own, config=config, ignore_mismatched_sizes=True)
    else:
        network = auto.from_config(config)
    own_size = getattr(config, "image_size", None)
    wanted = own_size[0] if isinstance(own_size, (list, tuple)) else own_size
    return Made(network, mean, std, wanted or 224, wanted is not None)


def _hf_normalisation(own: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std of the image processor; ImageNet's where a folder has none, as of a model saved by itself."""
    try:
        with _fetching(f"hf:{own}"):
            processor, _ = _imported("hf").ImageProcessingMixin.get_image_processor_dict(own)
    except WeightsUnavailable:
        if not os.path.isdir(own):
            raise
        log.warning("hf:%s has no preprocessor_config.json: images are normalised as ImageNet's", own)
        return IMAGENET
    return processor.get("image_mean", IMAGENET[0]), processor.get("image_std", IMAGENET[1])


_LIBRARIES: dict[str, tuple[Callable[[str], None], Callable[[str, int, bool, int | None], Made]]] = {
    "timm": (_require_timm, _timm),
    "torchvision": (_require_torchvision, _torchvision),
    "hf": (_require_hf, _hf),
}
