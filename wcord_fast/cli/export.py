"""`wcord-fast export`: the network of a checkpoint, without banks and losses, in a file for other programs.

The file is made in memory, loaded again from there and compared with the network on random images; only then is it
written, whole, and read back. A file that does not give the network's logits is never written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from .. import __version__, models
from .. import data as datasets
from ..models import hf_folder
from ..ops import checks
from ..train import files
from ..train.checkpoint import CURRENT, PREVIOUS, CheckpointError
from . import export_card
from . import trained_network as trained
from .export_formats import FORMATS, Format
from .options import check_paths, file_name
from .parser import parse
from .trained_network import TrainedNetwork
from .usage import UsageError

TOLERANCE = 1e-4  # relative to the largest logit; a file of weights alone must give identical logits
BATCHES = (2, 5, 1)  # batch sizes of the comparison; the network is traced with the first


class Normalised(nn.Module):
    """The network with its normalisation in front: it takes pixels in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.network = network
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(value)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


@dataclass
class ExportOptions:
    """A checkpoint's network as a file for other programs, compared with the network before it is written.

    Attributes:
        checkpoint: a checkpoint.pt, or the directory of a run.
        format: state_dict, safetensors, hf (a Hugging Face folder), torch.export or onnx.
        output: the file or new folder to write; default: MODEL.SUFFIX beside the checkpoint.
        with_normalisation: include the normalisation, so that the input is pixels in [0, 1] (torch.export and onnx).
        model: refuse a checkpoint of another network; a network of your own (a dotted path) has to be named.
        data: refuse a checkpoint that was trained on another data set; one of your own has to be named.
        data_dir: where the data set's files are; needed for a checkpoint of an older version only.
    """

    checkpoint: Annotated[str, "file"]
    format: Annotated[str, FORMATS.keys] = "state_dict"
    output: Annotated[str | None, "file"] = None
    with_normalisation: bool = False
    model: Annotated[str | None, models.names] = None
    data: Annotated[str | None, datasets.names] = None
    data_dir: Annotated[str | None, "directory"] = None

    def __post_init__(self) -> None:
        checks.choice("format", self.format, FORMATS)
        check_paths(self, "checkpoint", "output", "data_dir")


def run(argv: list[str]) -> None:
    """Export a checkpoint's network."""
    options, _ = parse("export", ExportOptions, argv, trains=False)
    file_format = FORMATS[options.format]
    if options.with_normalisation and file_format.weights_only:
        raise UsageError(f"--with-normalisation: a {options.format} file holds weights only; use torch.export or onnx")
    result = trained.load(Path(options.checkpoint), model=options.model, data=options.data)
    output = (
        Path(options.output)
        if options.output
        else result.path.parent / f"{file_name(result.model)}{file_format.suffix}"
    )
    if output.name in (CURRENT, PREVIOUS) or (output.exists() and output.samefile(result.path)):
        raise UsageError(
            f"--output: {output} is the name of a checkpoint, without which its run is lost; expected another name"
        )
    images = result.images(options.data_dir)
    network = result.network(images["shape"][0])
    if options.with_normalisation:
        network = Normalised(network, images["mean"], images["std"]).eval()
    metadata = _metadata(result, images, options.with_normalisation)
    examples = _random_images(images, options.with_normalisation)
    content = file_format.write(network, examples[0], metadata)
    largest = difference(file_format, content, network, examples, result, images["shape"][0])
    write(output, content, hf_files(result, metadata, content) if file_format.folder else None)
    print(
        f"{output}: {result.model} ({result.method}, epoch {result.epoch}), {len(content) / 2**20:.2f} MiB\n"
        f"input: float32 images [batch, {', '.join(map(str, images['shape']))}], {metadata['input']}\n"
        f"largest difference of a logit from the checkpoint's network: {largest:.3g} ({sum(BATCHES)} random images)"
    )


def hf_files(trained: TrainedNetwork, metadata: dict[str, Any], weights: bytes) -> dict[str, bytes]:
    """Contents of the files of a Hugging Face folder, by name."""
    images = (metadata[name] for name in ("image_shape", "mean", "std"))
    config = hf_folder.config_of(trained.model, trained.classes, *images)
    facts = {key: metadata[key] for key in ("method", "epoch", "wcord_fast")}
    card = export_card.card(trained, metadata | {"model": config["architecture"]})
    return hf_folder.files_of(config | facts, card, weights)


def write(output: Path, content: bytes, folder: dict[str, bytes] | None) -> None:
    """Write `content` to `output`, or the files of `folder` into it, and read them back.

    Raises:
        OutputError: `output` cannot be written.
        CheckpointError: the disk holds other bytes.
    """
    files.make_directory(output.parent, "--output")
    if folder is None:
        with files.replacing(output, "--output") as file:
            file.write(content)
    else:
        files.write_folder(output, folder, "--output")
    for path, expected in {output / name: data for name, data in (folder or {"": content}).items()}.items():
        if path.read_bytes() != expected:
            raise CheckpointError(
                f"{path}: other bytes on the disk than were written; the disk or its driver is at fault"
            )


@torch.no_grad()
def difference(
    file_format: Format,
    content: bytes,
    network: nn.Module,
    examples: list[Tensor],
    trained: TrainedNetwork,
    channels: int,
) -> float:
    """The largest difference between a logit of the exported file and of `network`.

    Raises:
        CheckpointError: the difference is larger than rounding explains.
    """
    exported = file_format.read(content, lambda: trained.untrained(channels))
    largest = 0.0
    for images in examples:
        expected, result = network(images), exported(images)
        allowed = 0.0 if file_format.weights_only else TOLERANCE * max(1.0, float(expected.abs().max()))
        error = float((result - expected).abs().max()) if result.shape == expected.shape else math.inf
        if not error <= allowed:  # true for NaN, too
            raise CheckpointError(
                f"{trained.path}: the exported file gives other logits than the network, by {error:.3g} where "
                f"{allowed:.3g} would be rounding; nothing was written"
            )
        largest = max(largest, error)
    return largest


def _metadata(trained: TrainedNetwork, images: dict[str, Any], with_normalisation: bool) -> dict[str, Any]:
    mean, std = ([round(x, 6) for x in images[name]] for name in ("mean", "std"))
    normalised = f"normalised by mean {mean} and std {std} of pixels in [0, 1]"
    return {
        "model": trained.model,
        "method": trained.method,
        "epoch": trained.epoch,
        "classes": trained.classes,
        "image_shape": images["shape"],
        "mean": images["mean"],
        "std": images["std"],
        "input": "pixels in [0, 1]" if with_normalisation else normalised,
        "wcord_fast": __version__,
    }


def _random_images(images: dict[str, Any], with_normalisation: bool) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    shape = images["shape"]
    return [
        torch.rand(n, *shape, generator=g) if with_normalisation else torch.randn(n, *shape, generator=g)
        for n in BATCHES
    ]
