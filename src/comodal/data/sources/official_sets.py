"""The data sets of Look, Listen and Learn by name, from the official lists (section 4 and appendix A.1).

- flickr-soundnet: 500,000 random videos of Flickr-SoundNet, 400,000 / 50,000 / 50,000; list: urls_public.txt.
- kinetics-sounds: 10 s clips of 34 action classes of Kinetics, 15,000 / 1,900 / 1,900; lists: Kinetics' CSVs or JSONs.

The paper publishes neither which videos it took nor its splits. Here a hash of the video's id decides, so that the
splits are the same for everybody and do not depend on which files are available. If the lists have fewer clips than the
paper, its proportions are kept.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from comodal.data.sources.split_names import SPLITS
from comodal.data.sources.splits import SPLITS_HELD_OUT_FIRST, hash_to_fraction
from comodal.data.sources.video_sources import VideoSource

OfficialSetName = Literal["flickr-soundnet", "kinetics-sounds"]
LIST_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class OfficialSet:
    """A data set: its classes, or None for all videos, and the clips of each split."""

    classes: tuple[str, ...] | None
    sizes: Mapping[str, int]


OFFICIAL_SETS: dict[OfficialSetName, OfficialSet] = {
    "flickr-soundnet": OfficialSet(None, {"train": 400_000, "validation": 50_000, "test": 50_000}),
    "kinetics-sounds": OfficialSet(("kinetics-sounds",), {"train": 15_000, "validation": 1_900, "test": 1_900}),
}


def assign_official_splits(sources: Sequence[VideoSource], name: OfficialSetName) -> list[VideoSource]:
    """The clips of a data set, each with its split. Clips that the set has no room for are left out.

    Source videos are taken in the order of a hash: first the test, then the validation, then the training videos. All
    clips of a source video are in one split.

    Args:
        sources: All clips of the lists that have one of the classes, whether their files exist or not.
        name: The data set.
    """
    official = OFFICIAL_SETS[name].sizes
    total = sum(official.values())
    scale = min(1.0, len(sources) / total)
    sizes = {split: round(size * scale) for split, size in official.items()}
    sizes["train"] = min(len(sources), total) - sizes["validation"] - sizes["test"]
    clips = Counter(source.group for source in sources)
    groups = sorted(clips, key=lambda group: (hash_to_fraction(f"{name} {group}"), group))
    split_of, position = {}, 0
    for split in SPLITS_HELD_OUT_FIRST:
        count = 0
        while position < len(groups) and count < sizes[split]:
            split_of[groups[position]] = split
            count += clips[groups[position]]
            position += 1
    return [replace(source, split=split_of[source.group]) for source in sources if source.group in split_of]


def describe_lists(name: str, lists: Sequence[Path], listed: Mapping[str, int]) -> dict[str, Any]:
    """The record of a data set: its name, its lists with their SHA-256, and the number of listed clips by split."""
    hashed = [{"name": path.name, "sha256": hash_list(path)} for path in lists]
    return {"name": name, "lists": hashed, "listed": {split: listed.get(split, 0) for split in SPLITS}}


def hash_list(path: Path) -> str:
    """The SHA-256 of a list."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(LIST_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
