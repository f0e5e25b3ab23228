"""The id formats of images: ids of COCO and Visual Genome overlap and denote different images.

COCO's image 42 is 000000000042.jpg or COCO_val2014_000000000042.jpg. In Visual Genome and GQA it is 42.jpg. A bare
number in a store is a Visual Genome id if the store also has COCO names; otherwise it may be either.
"""

import re
from typing import Literal

ImageIdFormat = Literal["coco", "plain"]  # the format of a data set's image ids; plain is Visual Genome's
COCO_NAME_PATTERN = re.compile(r"(?:COCO_\w+_0*|(?=\d{12}$)0*)(\d+)")
PLAIN_NAME_PATTERN = re.compile(r"(?:0|[1-9]\d*)")


def parse_coco_image_id(stem: str) -> str | None:
    """The id in a COCO file name, or None."""
    found = COCO_NAME_PATTERN.fullmatch(stem)
    return str(int(found[1])) if found else None


def is_number(name: str) -> bool:
    """Whether a name is a bare number."""
    return PLAIN_NAME_PATTERN.fullmatch(name) is not None
