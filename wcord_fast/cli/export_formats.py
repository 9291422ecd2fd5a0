"""The files that `wcord-fast export` writes: how each format is written, and read back for the comparison."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Metadata = dict[str, Any]
Predict = Callable[[Tensor], Tensor]  # images -> logits


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        suffix: end of the file's name.
        weights_only: whether the file holds no computation, so that no normalisation can be included.
        write: network, two example images, metadata -> the file's bytes.
        read: the file's bytes, a function that makes the untrained network -> the file's function of images.
        folder: whether the file lies in a folder, beside a configuration and a card.
    """

    suffix: str
    weights_only: bool
    write: Callable[[nn.Module, Tensor, Metadata], bytes]
    read: Callable[[bytes, Callable[[], nn.Module]], Predict]
    folder: bool = False


def _write_state_dict(network: nn.Module, example: Tensor, metadata: Metadata) -> bytes:
    torch.save({"state_dict": network.state_dict(), "metadata": metadata}, file := io.BytesIO())
    return file.getvalue()


def _read_state_dict(content: bytes, make_network: Callable[[], nn.Module]) -> Predict:
    network = make_network()
    network.load_state_dict(torch.load(io.BytesIO(content), weights_only=True)["state_dict"])
    return network.eval()


def _write_safetensors(network: nn.Module, example: Tensor, metadata: Metadata) -> bytes:
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    held: set[int] = set()  # the format has no memory in common: tied weights are written once for each name
    for name, value in network.state_dict().items():
        memory = value.untyped_storage().data_ptr()
        tensors[name] = value.clone(memory_format=torch.contiguous_format) if memory in held else value.contiguous()
        held.add(memory)
    return save(
        tensors, {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    )


def _read_safetensors(content: bytes, make_network: Callable[[], nn.Module]) -> Predict:
    from safetensors.torch import load

    network = make_network()
    network.load_state_dict(load(content))
    return network.eval()


def _write_program(network: nn.Module, example: Tensor, metadata: Metadata) -> bytes:
    program = torch.export.export(network, (example,), dynamic_shapes=_any_batch())
    torch.export.save(program, file := io.BytesIO(), extra_files={"metadata.json": json.dumps(metadata)})
    return file.getvalue()


def _read_program(content: bytes, make_network: Callable[[], nn.Module]) -> Predict:
    return torch.export.load(io.BytesIO(content)).module()


def _write_onnx(network: nn.Module, example: Tensor, metadata: Metadata) -> bytes:
    _require_onnx()
    with _quiet_exporter():
        program = torch.onnx.export(
            network,
            (example,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=_any_batch(),
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # as dynamo=True promises
    for name, value in metadata.items():
        program.model.metadata_props[name] = value if isinstance(value, str) else json.dumps(value)
    return program.model_proto.SerializeToString()


def _read_onnx(content: bytes, make_network: Callable[[], nn.Module]) -> Predict:
    """Run the file by ONNX Runtime if it is installed, else by ONNX's own slow evaluator."""
    try:
        from onnxruntime import InferenceSession
    except ImportError:
        from onnx import load_from_string
        from onnx.reference import ReferenceEvaluator

        session: Any = ReferenceEvaluator(load_from_string(content))
    else:
        session = InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


FORMATS: dict[str, Format] = {
    "state_dict": Format(".pt", True, _write_state_dict, _read_state_dict),
    "safetensors": Format(".safetensors", True, _write_safetensors, _read_safetensors),
    "hf": Format("-hf", True, _write_safetensors, _read_safetensors, folder=True),
    "torch.export": Format(".pt2", False, _write_program, _read_program),
    "onnx": Format(".onnx", False, _write_onnx, _read_onnx),
}


def _any_batch() -> tuple[dict[int, torch.export.Dim]]:
    return ({0: torch.export.Dim("batch")},)


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise NotImplementedError(
            f"format: 'onnx' needs the packages onnx and onnxscript ({error}); "
            'install them: pip install "wcord-fast[onnx]", or pip install onnx onnxscript'
        ) from None


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's remarks on optional packages and its warnings about its own code."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=FutureWarning)
            warnings.simplefilter("ignore", category=DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
