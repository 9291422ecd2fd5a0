"""Networks by name: those of the published distillation recipe, and timm's, torchvision's and Hugging Face's.

    from wcord_fast import models
    net = models.create("resnet8x4", num_classes=100)      # any case; also "WRN-40-2", "wrn_16_4", ...
    logits = net(x)                                        # x [B, C, H, W], H and W at least 8 (inception_v3: 75)
    features, logits = net(x, return_features=True)        # features [f0, ..., fk]

`features[-1]` is the flat penultimate vector [B, net.feature_dim], the input of WCoRD and CRD; `features[1:-1]` are the
stage outputs [B, C_i, H_i, W_i], `features[0]` is the stem's output. With `preact=True` the stage outputs are taken
before their activation. State-dict keys are those of RepDistiller's models; `load_weights` finds the weights in any
program's checkpoint. `Tapped(any_network, features=[...])` gives any other network this interface;
`with_features(any_network, images)` finds its stages by itself. A network of your own is named by `models.register`, or
by the dotted path of the function or class that makes it.
"""

from .base import FeatureNet
from .libraries import LibraryNetwork, WeightsUnavailable
from .registry import create, least_size, names, register, require_known, spelled
from .resnet import ResNet
from .stages import with_features
from .taps import Tapped
from .weights import find_state_dict, load_weights
from .wrn import WideResNet

__all__ = [
    "FeatureNet",
    "LibraryNetwork",
    "ResNet",
    "Tapped",
    "WeightsUnavailable",
    "WideResNet",
    "create",
    "find_state_dict",
    "least_size",
    "load_weights",
    "names",
    "register",
    "require_known",
    "spelled",
    "with_features",
]
