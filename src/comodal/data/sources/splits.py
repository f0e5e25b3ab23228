"""Assigns clips to training, validation and test.

A split is a property of the source video, never of a clip: two clips of one video are similar in image and audio.
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
        validation_fraction: The fraction of the files that a hash puts into validation.
        test_fraction: The fraction of the files that a hash puts into test.
    """

    validation_fraction: float = 0.1
    test_fraction: float = 0.1

    def check(self) -> None:
        """Raises ValueError if nothing is left to train on."""
        validation, test = self.validation_fraction, self.test_fraction
        if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
            raise ValueError(
                f"validation ({validation}) and test ({test}) must be fractions from 0 to 1 with a sum below 1"
            )


def hash_to_fraction(text: str) -> float:
    """A number in [0, 1) that depends only on the text, uniformly distributed over texts."""
    return int.from_bytes(hashlib.sha256(encode_for_hash(text)).digest()[:8], "big") / 2**64


def split_by_hash(group: str, validation_fraction: float, test_fraction: float) -> str:
    """The split of a source video; it does not depend on the other data, so a data set may grow."""
    fraction = hash_to_fraction(group)
    if fraction < test_fraction:
        return "test"
    return "validation" if fraction < test_fraction + validation_fraction else "train"


def assign_group_splits(sources: list[VideoSource], validation_fraction: float, test_fraction: float) -> dict[str, str]:
    """The split of each group: its own where the list or the folders give one, else by hash.

    If a group is listed in several splits, test takes precedence over validation over train. So the listed test set is
    complete, and nothing of it is trained on.
    """
    listed_splits: dict[str, set[str]] = {}
    for source in sources:
        listed_splits.setdefault(source.group, set()).update({source.split} - {None})  # type: ignore[arg-type]
    return {
        group: next(
            (split for split in SPLITS_HELD_OUT_FIRST if split in splits),
            split_by_hash(group, validation_fraction, test_fraction),
        )
        for group, splits in listed_splits.items()
    }
