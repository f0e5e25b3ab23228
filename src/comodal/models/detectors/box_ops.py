"""RoIAlign and non-maximum suppression with torchvision's kernels, without importing torchvision.

Importing torchvision takes 1.5 seconds for models and data sets that are not used here. Its kernels are one library,
which is loaded directly; where it is not found, torchvision is imported. The kernels have no gradients and no support
for fake tensors until torchvision is imported.
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

TORCHVISION_LIBRARIES = ("_C_stable.so", "_C.so")  # names of the library, by version of torchvision


@cache
def load_torchvision_kernels() -> None:
    """Registers torchvision's kernels with PyTorch."""
    spec = find_spec("torchvision")
    folders = [] if spec is None else spec.submodule_search_locations or []
    paths = [path for folder in folders for name in TORCHVISION_LIBRARIES if (path := Path(folder) / name).is_file()]
    if paths and "torchvision" not in sys.modules:
        try:
            torch.ops.load_library(paths[0])
        except OSError:
            paths = []
    if not paths:
        importlib.import_module("torchvision")


def nms(boxes: Float[Tensor, "boxes 4"], scores: Float[Tensor, " boxes"], threshold: float) -> Int64[Tensor, " kept"]:
    """Indices of the boxes kept by non-maximum suppression, by descending score (`torchvision.ops.nms`)."""
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
    """Pools boxes from feature maps to a grid of cells (`torchvision.ops.roi_align`).

    Args:
        feature_maps: One feature map for each image.
        boxes: Boxes of each image: left, top, right, bottom.
        cells: Cells on each side of the grid.
        scale: Scale from the pixels of boxes to the cells of maps.
        samples: Sampling points on each side of a cell; -1 chooses them from the size of the box.
        aligned: Shift boxes by half a pixel, as Detectron2 does; Caffe2 and Detectron do not.
    """
    load_torchvision_kernels()
    batch_indices = [box.new_full((len(box), 1), image) for image, box in enumerate(boxes)]
    rows = torch.cat([torch.cat(batch_indices), torch.cat(list(boxes))], 1)
    return torch.ops.torchvision.roi_align(feature_maps, rows, scale, cells, cells, samples, aligned)
