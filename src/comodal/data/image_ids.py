"""The id formats of images: ids of COCO and Visual Genome overlap and denote different images.

COCO's image 42 is 000000000042.jpg or COCO_val2014_000000000042.jpg. In Visual Genome and GQA it is 42.jpg. A bare
integer in a store is a Visual Genome id if the store also has COCO names; otherwise it may be either.
"""

import re
from pathlib import Path
from typing import Literal

ImageIdFormat = Literal["coco", "visual_genome"]  # the format of a data set's image ids; visual_genome: an integer
COCO_NAME_PATTERN = re.compile(r"(?:COCO_\w+_0*|(?=\d{12}$)0*)(\d+)")
VISUAL_GENOME_ID_PATTERN = re.compile(r"(?:0|[1-9]\d*)")


def parse_coco_image_id(stem: str) -> str | None:
    """The id in a COCO file name, or None."""
    match = COCO_NAME_PATTERN.fullmatch(stem)
    return str(int(match[1])) if match else None


def is_visual_genome_id(name: str) -> bool:
    """Whether a name is an integer, as Visual Genome's ids are."""
    return VISUAL_GENOME_ID_PATTERN.fullmatch(name) is not None


def make_image_id(name: str) -> str:
    """The id of an image file in a region store: its path without the suffix."""
    return (Path(name).parent / Path(name).stem).as_posix()
