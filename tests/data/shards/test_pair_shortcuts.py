"""The shortcut of AVE-Net: what else than content tells pairs that go together from pairs that are apart? Nothing may.

A world without content: every clip is the same noise with a click at each frame's time, so that a network could only
learn where in the grid of frames a second of sound begins, how long clips are, or how loud positives are.
"""

import numpy as np
import pytest
from numpy.random import Generator
from sklearn.linear_model import LogisticRegression

from comodal.data.shards.pair_sampler import ClipPair, PairSampler

FRAMES_A_SECOND, SECONDS, CLIPS = 25, 4.0, 40
FINE = 50  # bins of a fiftieth of the grid's period


class Grid:
    """Clips of the same length with frames at 25 a second."""

    groups = tuple(str(clip) for clip in range(CLIPS))

    def __len__(self) -> int:
        return CLIPS

    def read_record(self, clip: int, /) -> dict:
        times = [frame / FRAMES_A_SECOND for frame in range(int(SECONDS * FRAMES_A_SECOND))]
        return {"key": str(clip), "group": str(clip), "frame_seconds": times, "seconds": SECONDS}


class Naive:
    """What the guard is against: positives start half a second before a frame, negatives anywhere."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, epoch: int, index: int) -> ClipPair:
        rng = np.random.default_rng((self.seed, epoch, index))
        clip, frame = int(rng.integers(CLIPS)), int(rng.integers(13, 75))
        start = frame / FRAMES_A_SECOND - 0.5 if index % 2 == 0 else float(rng.uniform(0, SECONDS - 1))
        return ClipPair(clip, frame, clip if index % 2 == 0 else (clip + 1) % CLIPS, start, index % 2 == 0)


class Shuffled:
    """The control: pairs of the real sampler, the sound of every pair from a third clip, at the same time."""

    def __init__(self, pairs: PairSampler) -> None:
        self.pairs = pairs

    def __call__(self, epoch: int, index: int) -> ClipPair:
        pair = self.pairs(epoch, index)
        return pair._replace(audio_clip=(pair.audio_clip + 7) % CLIPS)


def cues(pair: ClipPair, rng: Generator) -> np.ndarray:
    """All that a network could hear or see apart from content: phase in the grid, time of sound and frame, noise."""
    phase = np.zeros(FINE)
    phase[int(pair.start_seconds * FRAMES_A_SECOND % 1 * FINE) % FINE] = 1
    return np.concatenate([phase, [pair.start_seconds, pair.frame / 100], rng.normal(size=4)])


def probe_accuracy(sampler: "PairSampler | Naive | Shuffled") -> float:
    """Of a linear probe on the cues, fitted on 4,000 pairs and tested on 4,000 others."""
    rng = np.random.default_rng(0)
    pairs = [sampler(0, index) for index in range(8000)]
    features = np.stack([cues(pair, rng) for pair in pairs])
    truth = np.array([pair.is_match for pair in pairs])
    probe = LogisticRegression(max_iter=200).fit(features[:4000], truth[:4000])
    return probe.score(features[4000:], truth[4000:])


CHANCE = 4.5 * (0.25 / 4000) ** 0.5  # half the width of a binomial interval that fails once in 150,000


def test_the_naive_sampler_is_caught():
    """So that the tests below can fail: the grid alone gives it away."""
    assert probe_accuracy(Naive(0)) > 0.9


@pytest.mark.parametrize(
    "make", [lambda: PairSampler(Grid(), 0), lambda: Shuffled(PairSampler(Grid(), 0))], ids=["real", "shuffled"]
)
def test_nothing_but_content_tells_the_two_kinds_apart(make):
    assert abs(probe_accuracy(make()) - 0.5) < CHANCE
