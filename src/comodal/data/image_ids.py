"""By what number an image is known: COCO's and Visual Genome's numbers overlap and mean other images.

COCO's image 42 is 000000000042.jpg or COCO_val2014_000000000042.jpg; Visual Genome's, and GQA's, is 42.jpg. A bare
number in a store is Visual Genome's where the store has COCO's names as well, and may be either's where it has not.
"""

import re
from typing import Literal

ImageIdFormat = Literal["coco", "plain"]  # whose numbers a data set's image ids are; plain are Visual Genome's
COCO_NAME_PATTERN = re.compile(r"(?:COCO_\w+_0*|(?=\d{12}$)0*)(\d+)")
PLAIN_NAME_PATTERN = re.compile(r"(?:0|[1-9]\d*)")


def parse_coco_image_id(stem: str) -> str | None:
    """The number in a name of COCO's, or None."""
    found = COCO_NAME_PATTERN.fullmatch(stem)
    return str(int(found[1])) if found else None


def is_number(name: str) -> bool:
    """Whether a name is a bare number."""
    return PLAIN_NAME_PATTERN.fullmatch(name) is not None
