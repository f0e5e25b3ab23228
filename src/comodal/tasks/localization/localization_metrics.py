"""The metrics of sound source localization: consensus IoU, its area under the curve, and the area for negative audio.

Positive audio is scored as by VGG-SS's script (test.py of hche11/Localizing-Visual-Sounds-the-Hard-Way): the map is
resized to 224 x 224, bilinearly, and its upper half is the prediction. The consensus IoU (cIoU; Senocak et
al., CVPR 2018, section 5.2) weights each pixel by the number of annotators who marked it. An image is a success at a
cIoU of 0.5. The area under the curve (AUC) is that of the success rate over the thresholds 0, 0.05, ..., 1.

Negative audio (silence, noise, an off-screen sound) has no source in the image, so nothing should be highlighted. It is
scored as by Juanola et al. (arXiv 2410.01020; eval_utils.py of xavijuanola/vssl_eval): pIA is the fraction of the image
above a threshold that is the same for all images, and AUC_N the area under the fraction of images with a pIA of at most
0, 0.05, ..., 1.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

MAP_SIZE = 224  # pixels
SUCCESS_CIOU = 0.5
CONSENSUS_ANNOTATORS = 2  # annotators who mark a pixel of full weight (Senocak et al., section 5.2)
CURVE_THRESHOLDS = tuple(0.05 * step for step in range(21))  # rounded as in the published scripts

PixelBox = tuple[int, int, int, int]  # left, top, right, bottom, in pixels of a map of 224 x 224


def build_truth_map(boxes: Sequence[PixelBox], is_consensus: bool) -> Float[np.ndarray, "height width"]:
    """The weight of each pixel of a map of 224 x 224, from 0 to 1.

    Args:
        boxes: The boxes of all annotators. Right and bottom are the first pixels that are outside.
        is_consensus: A pixel in one box weighs 1/2, and in two or more 1 (Flickr-SoundNet). Otherwise a pixel in any
            box weighs 1 (VGG-SS).
    """
    counts = np.zeros((MAP_SIZE, MAP_SIZE))
    for left, top, right, bottom in boxes:
        counts[top:bottom, left:right] += 1
    return np.minimum(counts / (CONSENSUS_ANNOTATORS if is_consensus else 1), 1.0)


def resize_position_maps(maps: Float[Tensor, "maps rows columns"]) -> Float[np.ndarray, "maps height width"]:
    """Maps resized bilinearly to 224 x 224, with the pixel centers of `cv2.resize`."""
    size = (MAP_SIZE, MAP_SIZE)
    return F.interpolate(maps[:, None].float(), size=size, mode="bilinear", align_corners=False)[:, 0].numpy()


def select_upper_half(maps: Float[np.ndarray, "maps height width"]) -> Bool[np.ndarray, "maps height width"]:
    """The pixels above the median of each map: the upper one of the two middle values. A constant map has none.

    The published scripts scale a map from 0 to 1 first, which changes no order.
    """
    values = maps.reshape(len(maps), -1)
    middle = values.shape[1] // 2
    return maps > np.partition(values, middle, axis=1)[:, middle, None, None]


def compute_consensus_iou(
    predicted: Bool[np.ndarray, "maps height width"], truth: Float[np.ndarray, "maps height width"]
) -> Float[np.ndarray, " maps"]:
    """cIoU of each map: the weight of the predicted pixels, over all weight plus the predicted pixels of no weight.

    It is 0 where neither anything is predicted nor anything marked.
    """
    intersection = (predicted * truth).sum((1, 2))
    union = truth.sum((1, 2)) + (predicted & (truth == 0)).sum((1, 2))
    return intersection / np.where(union > 0, union, 1.0)


def compute_curve_areas(values: Float[np.ndarray, " items"], is_negative: bool = False) -> Float[np.ndarray, " items"]:
    """The area of each item under its own curve, so that their mean is the AUC of all.

    Args:
        values: cIoU of each item, or pIA for negative audio.
        is_negative: An item of negative audio passes a threshold that is at least its pIA, as for AUC_N; an item of
            positive audio one that is at most its cIoU.
    """
    thresholds = np.array(CURVE_THRESHOLDS)
    passes = values[:, None] <= thresholds if is_negative else values[:, None] >= thresholds
    heights = (passes[:, 1:].astype(np.float64) + passes[:, :-1]) / 2  # of trapezoids
    return heights @ np.diff(thresholds)


def compute_image_areas(maps: Float[np.ndarray, "maps height width"], threshold: float) -> Float[np.ndarray, " maps"]:
    """pIA of each map: the fraction of its pixels above the threshold."""
    return (maps > threshold).mean((1, 2))


def compute_universal_threshold(maxima: Float[np.ndarray, "_"]) -> float:
    """The third quartile of the maxima of maps with negative audio, above which a position counts as a source."""
    return float(np.quantile(maxima, 0.75))


def compute_harmonic_mean(first: float, second: float) -> float:
    """The harmonic mean of two scores, 0 where both are 0."""
    return 2.0 * first * second / (first + second) if first + second > 0 else 0.0


def build_center_map() -> Float[np.ndarray, "height width"]:
    """A Gaussian at the center of the image, as a baseline; its upper half is a disk of half the image's area."""
    offsets = np.arange(MAP_SIZE) - (MAP_SIZE - 1) / 2
    return np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * (MAP_SIZE / 4) ** 2))
