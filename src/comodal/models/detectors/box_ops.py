"""RoIAlign and non-maximum suppression: torchvision's kernels, without importing torchvision.

Importing it takes a second and a half, for models and data sets that nobody asked for; its kernels are one library,
which its own package loads in the same way. Where that is not found, torchvision is imported. Neither has gradients,
nor a meaning for fake tensors, until torchvision is imported.
"""

import importlib
import sys
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

TORCHVISION_LIBRARIES = ("_C_stable.so", "_C.so")  # by version of torchvision


@cache
def load_torchvision_kernels() -> None:
    """Makes them known to PyTorch."""
    found = find_spec("torchvision")
    folders = [] if found is None else found.submodule_search_locations or []
    paths = [path for folder in folders for name in TORCHVISION_LIBRARIES if (path := Path(folder) / name).is_file()]
    if paths and "torchvision" not in sys.modules:
        try:
            torch.ops.load_library(paths[0])
        except OSError:
            paths = []
    if not paths:
        importlib.import_module("torchvision")


def nms(boxes: Float[Tensor, "boxes 4"], scores: Float[Tensor, " boxes"], threshold: float) -> Int64[Tensor, " kept"]:
    """The boxes that overlap no surer one by more than the threshold, the surest first (`torchvision.ops.nms`)."""
    load_torchvision_kernels()
    return torch.ops.torchvision.nms(boxes, scores, threshold)


def roi_align(
    feature_maps: Float[Tensor, "images channels rows columns"],
    boxes: Sequence[Float[Tensor, "_ 4"]],
    cells: int,
    scale: float = 1.0,
    samples: int = -1,
    aligned: bool = True,
) -> Float[Tensor, "regions channels cells cells"]:
    """Boxes of each map as so many cells a side (`torchvision.ops.roi_align`).

    Args:
        feature_maps: One for each image.
        boxes: For each image, left, top, right, bottom.
        cells: Of each side.
        scale: From the pixels of boxes to those of maps.
        samples: Of each side of a cell; -1 takes as many as it has pixels.
        aligned: Boxes are moved by half a pixel, as is right (Detectron2); Caffe2's and Detectron's are not.
    """
    load_torchvision_kernels()
    numbers = [box.new_full((len(box), 1), image) for image, box in enumerate(boxes)]
    rows = torch.cat([torch.cat(numbers), torch.cat(list(boxes))], 1)
    return torch.ops.torchvision.roi_align(feature_maps, rows, scale, cells, cells, samples, aligned)
