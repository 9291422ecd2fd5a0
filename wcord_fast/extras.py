"""The extra `train`: packages that the driver needs and the losses do not need."""

from __future__ import annotations

from importlib.util import find_spec

TRAIN = {  # module: its package
    "PIL": "pillow",
    "matplotlib": "matplotlib",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "tensorboard": "tensorboard",
    "tqdm": "tqdm",
    "yaml": "pyyaml",
}


class MissingExtra(ImportError):
    """Packages of the extra `train` are not installed; the message names them and the command that installs them."""


def require_train(caller: str, *modules: str) -> None:
    """Raise unless `modules`, by default all of the extra `train`, are installed.

    Args:
        caller: the part of the package that needs them, as the first words of the message.
        modules: names in TRAIN.
    Raises:
        MissingExtra: a package is not installed.
    """
    missing = [TRAIN[name] for name in modules or TRAIN if find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"{caller} needs {', '.join(missing)}, not installed here; "
            "install the extra: pip install 'wcord-fast[train]'"
        )
