"""Assigns clips to training, validation and test.

A split is a property of the source video, never of a clip: two clips of one video look and sound alike.
"""

import hashlib
from dataclasses import dataclass

from comodal.data.sources.video_sources import VideoSource
from comodal.files import encode_for_hash

SPLITS_HELD_OUT_FIRST = ("test", "validation", "train")


@dataclass(frozen=True)
class HashSplit:
    """The fractions that a hash puts into validation and test.

    Args:
        validation: The fraction of the files that a hash puts into validation.
        test: The fraction of the files that a hash puts into test.
    """

    validation: float = 0.1
    test: float = 0.1

    def check(self) -> None:
        """Raises ValueError if nothing is left to train on."""
        validation, test = self.validation, self.test
        if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
            raise ValueError(
                f"validation ({validation}) and test ({test}) are parts of the whole and leave some to train"
            )


def hash_to_fraction(text: str) -> float:
    """A number in [0, 1) that depends only on the text, uniformly distributed over texts."""
    return int.from_bytes(hashlib.sha256(encode_for_hash(text)).digest()[:8], "big") / 2**64


def split_by_hash(group: str, validation: float, test: float) -> str:
    """The split of a source video; it does not depend on the other data, so a data set may grow."""
    place = hash_to_fraction(group)
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


def assign_group_splits(sources: list[VideoSource], validation: float, test: float) -> dict[str, str]:
    """The split of each group: its own where the list or the folders give one, else by hash.

    If a group is listed in several splits, test takes precedence over validation over train. So the listed test set is
    complete, and nothing of it is trained on.
    """
    own: dict[str, set[str]] = {}
    for source in sources:
        own.setdefault(source.group, set()).update({source.split} - {None})  # type: ignore[arg-type]
    return {
        group: next(
            (split for split in SPLITS_HELD_OUT_FIRST if split in splits), split_by_hash(group, validation, test)
        )
        for group, splits in own.items()
    }
