"""Samples pairs of a frame and a second of audio (L3-Net, section 2: audio-visual correspondence).

A pair is a function of (seed, epoch, index), so resuming is exact for any number of workers. Pairs are counted through
all epochs; even numbers are positives and odd numbers are negatives. So exactly half of any even batch is of either
kind. The same holds over any even number of epochs of an odd number of clips.

A network easily learns shortcuts that distinguish the two kinds. AVE-Net (Objects that Sound, section 3.1) reports one:
if only the audio of positives starts on the grid of the video's frames, the network learns the grid. Here such
shortcuts are excluded, because a negative consists of two halves of positives. Both kinds draw two clips, and in each
of them a frame and a second of audio that overlaps it. A positive takes image and audio of the first clip; a negative
takes the image of the first and the audio of the second. The two clips are drawn symmetrically, so images and audio
have the same distribution in positives and negatives. This holds for clips of any length, any number of frames and any
group.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from comodal.errors import DataError


@runtime_checkable
class ClipRecords(Protocol):
    """The interface of a data set for the sampler: each clip's source, and its record with `frame_seconds` and
    `seconds`.
    """

    @property
    def groups(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def read_record(self, clip: int, /) -> dict: ...


class ClipPair(NamedTuple):
    """A frame of one clip and a second of audio of the same or another clip."""

    image_clip: int
    frame: int
    audio_clip: int
    start_seconds: float
    is_match: bool


class PairTimes(NamedTuple):
    """A frame of a clip and the start of a second of audio that overlaps it."""

    frame: int
    start_seconds: float


class PairSampler:
    """The pair of (epoch, index) for one seed.

    Departs from the paper in what it leaves open: clips of one group (cut from the same source video) are never used as
    a negative. A clip is drawn in proportion to the number of clips outside its group, so the audio of a large group is
    as often a positive as a negative.
    """

    def __init__(self, records: ClipRecords, seed: int, audio_seconds: float = 1.0) -> None:
        self.records = records
        self.seed = seed
        self.audio_seconds = audio_seconds
        self.groups = np.unique(records.groups, return_inverse=True)[1]
        if len(np.unique(self.groups)) < 2:
            clips = "1 clip" if len(records) == 1 else f"{len(records)} clips"
            raise DataError(f"{clips} of one source: negatives need clips of at least two sources")

    def __call__(self, epoch: int, index: int) -> ClipPair:
        rng = np.random.default_rng((self.seed, epoch, index))
        first, second = self.draw_two_clips(rng)
        image_times = draw_pair_times(self.records.read_record(first), self.audio_seconds, rng)
        if (epoch * len(self.records) + index) % 2 == 0:
            return ClipPair(first, image_times.frame, first, image_times.start_seconds, is_match=True)
        audio_times = draw_pair_times(self.records.read_record(second), self.audio_seconds, rng)
        return ClipPair(first, image_times.frame, second, audio_times.start_seconds, is_match=False)

    def draw_two_clips(self, rng: np.random.Generator) -> tuple[int, int]:
        """Two clips of different groups; every such ordered pair is equally likely."""
        while True:
            first, second = (int(clip) for clip in rng.integers(len(self.records), size=2))
            if self.groups[first] != self.groups[second]:
                return first, second


class MatchedPairSampler(PairSampler):
    """Only matched pairs, each clip as often as in `PairSampler`: for an objective with in-batch negatives."""

    def __call__(self, epoch: int, index: int) -> ClipPair:
        rng = np.random.default_rng((self.seed, epoch, index))
        clip, _ = self.draw_two_clips(rng)
        frame, start_seconds = draw_pair_times(self.records.read_record(clip), self.audio_seconds, rng)
        return ClipPair(clip, frame, clip, start_seconds, is_match=True)


def draw_pair_times(record: dict, audio_seconds: float, rng: np.random.Generator) -> PairTimes:
    """A random start of the audio, and a random frame among those that the audio overlaps.

    The start is uniform over all starts that lie in the clip and overlap at least one frame, so starts do not pile up
    at the ends of a clip.
    """
    frame_seconds: Sequence[float] = record["frame_seconds"]
    latest = record["seconds"] - audio_seconds
    if not frame_seconds or latest < 0:
        raise DataError(
            f"clip {record['key']}: {len(frame_seconds)} frames in {record['seconds']} s; "
            f"a pair needs a frame and {audio_seconds} s of audio"
        )
    frames = np.asarray(frame_seconds)
    first = np.clip(frames - audio_seconds, 0.0, latest)  # of the starts that overlap each frame
    last = np.clip(frames, first, latest)
    covered = np.cumsum(last - np.maximum(first, np.append(first[0], last[:-1])))  # length of the union so far
    position = rng.uniform(0.0, covered[-1])
    at = min(int(np.searchsorted(covered, position, side="right")), len(frames) - 1)
    start_seconds = float(last[at] - (covered[at] - position))
    overlapping = np.flatnonzero((first <= start_seconds) & (start_seconds <= last))
    return PairTimes(int(rng.choice(overlapping)), start_seconds)
