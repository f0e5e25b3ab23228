"""Boxes without training: selective search (Uijlings et al., IJCV 2013), by OpenCV (extra `selective`).

Departs from OpenCV's order, which is random in every call. The same boxes are sorted by area in descending order, and
those that overlap a larger one by more than 0.7 are dropped.
"""

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image

from comodal.errors import DataError
from comodal.models.detectors.box_ops import nms

SEARCH_SIDE = 200  # short side of the searched image: 0.4 s per image; 300 takes 0.9 s
MIN_BOX_SIDE = 10  # in pixels of the searched image
MAX_BOX_OVERLAP = 0.7


def run_selective_search(
    image: UInt8[np.ndarray, "height width 3"], max_regions: int
) -> Float32[np.ndarray, "regions 4"]:
    """Boxes in pixels, the largest first; the whole image if nothing is found.

    Raises:
        DataError: OpenCV with its contributed modules is not installed.
    """
    try:
        from cv2 import ximgproc
    except ImportError as error:
        raise DataError("selective search needs the extra: pip install 'comodal[selective]'") from error
    height, width = image.shape[:2]
    scale = SEARCH_SIDE / min(height, width)
    size = (max(SEARCH_SIDE, round(width * scale)), max(SEARCH_SIDE, round(height * scale)))
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    search = ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(resized[..., ::-1]))  # OpenCV takes BGR
    search.switchToSelectiveSearchFast()
    rectangles = np.array(search.process(), np.float32).reshape(-1, 4)  # left, top, width, height
    rectangles = rectangles[(rectangles[:, 2:] >= MIN_BOX_SIDE).all(1)]
    boxes = np.concatenate([rectangles[:, :2], rectangles[:, :2] + rectangles[:, 2:]], 1)
    sides = np.array([width / size[0], height / size[1]] * 2, np.float32)
    chosen = (
        (select_largest_boxes(np.unique(boxes, axis=0), max_regions) * sides)
        .clip(0, [width, height] * 2)
        .astype(np.float32)
    )
    return chosen if len(chosen) else np.array([[0, 0, width, height]], np.float32)


def select_largest_boxes(boxes: Float32[np.ndarray, "boxes 4"], max_regions: int) -> Float32[np.ndarray, "chosen 4"]:
    """The largest boxes, without those that overlap a larger one by more than 0.7."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    ordered = boxes[np.argsort(-areas, kind="stable")]
    ranks = torch.arange(len(ordered), dtype=torch.float32)
    return ordered[nms(torch.from_numpy(ordered), -ranks, MAX_BOX_OVERLAP)[:max_regions].numpy()]
