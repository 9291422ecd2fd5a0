"""The files that `wcord-fast export` writes: for each format its bytes, and how they are run again to compare."""

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
Run = Callable[[Tensor], Tensor]  # images -> logits


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        suffix: of the file.
        weights_only: it holds no computation, so nothing can be put in front of the network.
        write: network, two example images, metadata -> the file's bytes.
        read: the file's bytes, a function that makes the untrained network -> what it computes.
        folder: the file is one of a folder's, beside a configuration and a card.
    """

    suffix: str
    weights_only: bool
    write: Callable[[nn.Module, Tensor, Metadata], bytes]
    read: Callable[[bytes, Callable[[], nn.Module]], Run]
    folder: bool = False


def _write_state_dict(network: nn.Module, example: Tensor, metadata: Metadata) -> bytes:
    torch.save({"state_dict": network.state_dict(), "metadata": metadata}, file := io.BytesIO())
    return file.getvalue()


def _read_state_dict(content: bytes, fresh: Callable[[], nn.Module]) -> Run:
    network = fresh()
    network.load_state_dict(torch.load(io.BytesIO(content), weights_only=True)["state_dict"])
    return network.eval()


def _write_safetensors(network: nn.Module, example: Tensor, metadata: Metadata) -> bytes:
    from safetensors.torch import save

    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    return save(
        tensors, {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    )


def _read_safetensors(content: bytes, fresh: Callable[[], nn.Module]) -> Run:
    from safetensors.torch import load

    network = fresh()
    network.load_state_dict(load(content))
    return network.eval()


def _write_program(network: nn.Module, example: Tensor, metadata: Metadata) -> bytes:
    program = torch.export.export(network, (example,), dynamic_shapes=_any_batch())
    torch.export.save(program, file := io.BytesIO(), extra_files={"metadata.json": json.dumps(metadata)})
    return file.getvalue()


def _read_program(content: bytes, fresh: Callable[[], nn.Module]) -> Run:
    return torch.export.load(io.BytesIO(content)).module()


def _write_onnx(network: nn.Module, example: Tensor, metadata: Metadata) -> bytes:
    _require_onnx()
    with _without_chatter():
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


def _read_onnx(content: bytes, fresh: Callable[[], nn.Module]) -> Run:
    """By ONNX Runtime where it is installed, else by ONNX's own slow evaluator."""
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
def _without_chatter() -> Iterator[None]:
    """The exporter's remarks on packages that it does not need, and its warnings about itself, are not the user's."""
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
