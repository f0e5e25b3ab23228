"""Which frame meets which second of sound."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comodal.data.shards.pair_sampler import PairSampler, draw_pair_times
from comodal.errors import DataError


class World:
    """Records of clips with given groups, numbers of frames and lengths."""

    def __init__(self, clips: list[tuple[str, int, float]]) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def groups(self) -> list[str]:
        return [group for group, _, _ in self.clips]

    def read_record(self, clip: int, /) -> dict:
        group, frames, seconds = self.clips[clip]
        times = [seconds * frame / frames for frame in range(frames)]
        return {"key": f"clip{clip}", "group": group, "frame_seconds": times, "seconds": seconds}


clip_of_a_group = st.tuples(st.sampled_from("abc"), st.integers(1, 30), st.floats(1.0, 12.0))
worlds = st.lists(clip_of_a_group, min_size=2, max_size=12).filter(lambda clips: len({clip[0] for clip in clips}) > 1)


@given(worlds, st.integers(0, 2**32), st.integers(0, 1000), st.integers(0, 10**9))
def test_what_is_together_overlaps_and_what_is_apart_comes_from_two_sources(clips, seed, epoch, index):
    world = World(clips)
    pair = PairSampler(world, seed)(epoch, index)
    assert pair.is_match == ((epoch * len(world) + index) % 2 == 0)
    assert pair.is_match == (pair.image_clip == pair.audio_clip)
    picture, sound = world.read_record(pair.image_clip), world.read_record(pair.audio_clip)
    assert 0 <= pair.start_seconds <= sound["seconds"] - 1
    if pair.is_match:
        seconds = picture["frame_seconds"][pair.frame]
        assert pair.start_seconds <= seconds <= pair.start_seconds + 1 + 1e-9
    else:
        assert picture["group"] != sound["group"]


@given(worlds, st.integers(0, 2**32), st.integers(0, 1000), st.integers(0, 10**9))
def test_a_pair_is_a_function_of_seed_epoch_and_index(clips, seed, epoch, index):
    one, other = PairSampler(World(clips), seed), PairSampler(World(clips), seed)
    other(epoch + 1, index)
    assert one(epoch, index) == other(epoch, index)


def test_seeds_and_epochs_give_other_pairs():
    world = World([(str(clip), 10, 10.0) for clip in range(50)])
    draws = {
        tuple(PairSampler(world, seed)(epoch, index) for index in range(20)) for seed in (0, 1) for epoch in (0, 1)
    }
    assert len(draws) == 4


@pytest.mark.parametrize("clips", [2, 3, 5, 9, 31, 93])
def test_exactly_half_of_the_pairs_go_together_for_any_number_of_clips(clips: int):
    pairs = PairSampler(World([(str(clip), 10, 10.0) for clip in range(clips)]), 0)
    kinds = [pairs(*divmod(number, clips)).is_match for number in range(20 * clips)]
    assert sum(kinds) == 10 * clips
    assert all(sum(kinds[start : start + 8]) == 4 for start in range(0, len(kinds) - 8, 8))  # of a batch of 8


@pytest.mark.parametrize("seconds", [1.2, 2.5, 10.0])
def test_starts_are_uniform_over_the_clip_and_overlap_their_frame(seconds: float):
    clip = {"key": "k", "seconds": seconds, "frame_seconds": [frame / 5 for frame in range(round(5 * seconds))]}
    rng = np.random.default_rng(0)
    drawn = [draw_pair_times(clip, 1.0, rng) for _ in range(8000)]
    assert all(start <= clip["frame_seconds"][frame] <= start + 1 for frame, start in drawn)
    assert is_uniform([start / (seconds - 1) for _, start in drawn])


def test_starts_without_a_frame_are_left_out():
    """Frames at 0, 3 and 3.5 s of a clip of 10 s: starts from 2 to 3.5 s, and both frames for starts from 2.5 to 3."""
    clip = {"key": "k", "seconds": 10.0, "frame_seconds": [0.0, 3.0, 3.5]}
    rng = np.random.default_rng(1)
    drawn = [draw_pair_times(clip, 1.0, rng) for _ in range(8000)]
    assert is_uniform([(start - 2) / 1.5 for _, start in drawn])
    frames = [frame for frame, start in drawn if 2.5 <= start <= 3]
    assert abs(frames.count(1) / len(frames) - 0.5) < 4 * 0.5 / len(frames) ** 0.5
    assert {frame for frame, start in drawn if start < 2.5} == {1}
    assert {frame for frame, start in drawn if start > 3} == {2}


@pytest.mark.parametrize(("seconds", "frames"), [(10.0, [0.0]), (1.0, [0.0, 0.5]), (4.0, [3.9996])])
def test_a_clip_with_one_valid_start_gives_it(seconds: float, frames: list[float]):
    clip = {"key": "k", "seconds": seconds, "frame_seconds": frames}
    for draw in range(20):
        frame, start = draw_pair_times(clip, 1.0, np.random.default_rng(draw))
        assert 0 <= start <= seconds - 1
        assert start <= frames[frame] <= start + 1


def is_uniform(values: list[float]) -> bool:
    """Kolmogorov-Smirnov at one in a thousand."""
    uniform = np.arange(1, len(values) + 1) / len(values)
    return bool(np.abs(np.sort(values) - uniform).max() < 1.95 / len(values) ** 0.5)


def test_neither_picture_nor_sound_alone_tells_the_two_kinds_apart():
    """Clips of all sorts of groups, frames and lengths: both kinds have the same law of clips, frames and starts."""
    world = World([("a", 3, 1.0), ("a", 50, 10.0), ("a", 7, 4.0), ("b", 25, 10.0), ("c", 1, 2.0)])
    pairs, draws = PairSampler(world, 5), 16_000
    kinds = {True: [], False: []}
    for index in range(draws):
        pair = pairs(0, index)
        kinds[pair.is_match].append(pair)
    for view in (
        lambda pair: (pair.image_clip, pair.frame // 10),
        lambda pair: (pair.audio_clip, int(pair.start_seconds * 2)),
        lambda pair: int(pair.start_seconds * 25) / 25 == pair.start_seconds,
    ):
        together, apart = (Counter(view(pair) for pair in kinds[kind]) for kind in (True, False))
        for value in together | apart:
            share = (together[value] + apart[value]) / draws
            spread = (share * (1 - share) * 2 / (draws / 2)) ** 0.5
            assert abs(together[value] - apart[value]) / (draws / 2) < 4.5 * spread, value


def test_a_clip_is_drawn_in_proportion_to_its_possible_partners():
    """Groups of 3, 1 and 1 clips: the ordered pairs of different groups are 14, and a clip of the large group is first
    in 2 of them, one alone in 4."""
    pairs = PairSampler(World([("a", 5, 5.0)] * 3 + [("b", 5, 5.0), ("c", 5, 5.0)]), 0)
    firsts = Counter(pairs(0, index).image_clip for index in range(14_000))
    for clip, expected in enumerate([2, 2, 2, 4, 4]):
        assert firsts[clip] == pytest.approx(1000 * expected, abs=4.5 * (1000 * expected) ** 0.5)


def test_the_second_of_sound_begins_anywhere_up_to_a_second_before_the_frame():
    world = World([("a", 1, 2.0), ("b", 1, 2.0)])
    world.read_record = lambda clip: {"key": str(clip), "group": clip, "frame_seconds": [5.0], "seconds": 10.0}
    starts = np.sort([PairSampler(world, 0)(0, index).start_seconds for index in range(4000)])
    uniform = 4 + np.arange(1, 4001) / 4000
    assert np.abs(starts - uniform).max() < 1.95 / 4000**0.5  # Kolmogorov-Smirnov, one in a thousand


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ([("a", 5, 5.0)] * 4, "4 clips of one source"),
        ([("a", 5, 5.0)], "1 clip of one source"),
        ([], "0 clips of one source"),
        ([("a", 5, 0.9), ("b", 5, 0.9)], r"5 frames in 0.9 s; a pair needs a frame and 1.0 s of audio"),
    ],
)
def test_what_cannot_be_paired_is_said(clips, message):
    with pytest.raises(DataError, match=message):
        PairSampler(World(clips), 0)(0, 0)
