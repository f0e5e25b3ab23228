"""Image networks of a dual encoder: EfficientNet-Lite0, or any model of timm (extra `timm`).

Each takes bytes, normalizes them as in its own training, and pools its last map to one vector.
"""

import re
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from comodal.errors import DataError
from comodal.models.efficientnet_lite0 import (
    LITE0,
    LITE0_CHANNELS,
    build_efficientnet_lite0,
    build_untrained_lite0,
)

TIMM_PREFIX = "timm/"
TIMM_NAME_PATTERN = re.compile(
    r"timm/[\w.-]+"
)  # no address of a file or a repository: a model's folder may be of anyone


class Lite0Backbone(nn.Module):
    """EfficientNet-Lite0 without its classifier; bytes are normalized to (x - 127) / 128, and its last map is averaged.

    Raises:
        DataError: The extra `lite` is not installed.
    """

    num_features = LITE0_CHANNELS

    def __init__(self) -> None:
        super().__init__()
        self.network: Any = build_untrained_lite0()
        self.network._fc = nn.Identity()  # no parameter without a gradient

    def forward(self, pixels: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        dtype = self.network._conv_stem.weight.dtype
        return self.network.extract_features((pixels.to(dtype) - 127) / 128).mean((2, 3))

    def load_pretrained_weights(self) -> None:
        """Loads the ImageNet weights."""
        self.network.load_state_dict(build_efficientnet_lite0().state_dict(), strict=False)


class TimmBackbone(nn.Module):
    """A model of timm without its classifier; bytes are normalized by the mean and deviation of its configuration.

    Args:
        name: Its name in timm, such as resnet50.a1_in1k.

    Raises:
        DataError: The extra `timm` is not installed, or timm has no such model.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.network = create_timm_model(name, is_pretrained=False)
        self.num_features = int(self.network.num_features)
        for statistic in ("mean", "std"):
            values = torch.tensor(self.network.pretrained_cfg[statistic]).view(3, 1, 1) * 255
            self.register_buffer(statistic, values, persistent=False)

    def forward(self, pixels: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        return self.network((pixels.float() - self.mean) / self.std)

    def load_pretrained_weights(self) -> None:
        """Downloads the pretrained weights, or takes them from the cache of the Hugging Face hub.

        Raises:
            DataError: There are none, or they cannot be downloaded.
        """
        self.network.load_state_dict(create_timm_model(self.name, is_pretrained=True).state_dict())


ImageBackboneModule = Lite0Backbone | TimmBackbone


def build_image_backbone(name: str) -> ImageBackboneModule:
    """A randomly initialized image network by its name: efficientnet_lite0, or timm/NAME.

    Raises:
        DataError: There is no such network, or its package is not installed.
    """
    if name == LITE0:
        return Lite0Backbone()
    if TIMM_NAME_PATTERN.fullmatch(name):
        return TimmBackbone(name.removeprefix(TIMM_PREFIX))
    raise DataError(f"there is no image network {name!r}: pass {LITE0}, or {TIMM_PREFIX}NAME for a model of timm")


def create_timm_model(name: str, is_pretrained: bool) -> Any:
    """A model of timm that returns pooled features.

    Raises:
        DataError: timm is not installed, has no such model, or its weights cannot be downloaded.
    """
    try:
        import timm
    except ImportError as error:
        raise DataError(f"{TIMM_PREFIX}{name} needs the extra: pip install 'comodal[timm]'") from error
    try:
        return timm.create_model(name, pretrained=is_pretrained, num_classes=0)
    except (RuntimeError, OSError, ValueError) as error:
        detail = " ".join(str(error).split())
        raise DataError(f"{TIMM_PREFIX}{name} cannot be loaded by timm: {detail}") from error
