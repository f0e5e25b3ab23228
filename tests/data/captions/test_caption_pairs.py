"""Which caption meets which image, and in which order."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from comodal.data.captions.caption_pairs import CaptionPairs, EpochPairs, NegativeSampling
from comodal.errors import DataError

NONE = NegativeSampling(fraction=0.0)
images_of_captions = st.lists(st.integers(0, 6), min_size=1, max_size=60)
numbers = st.integers(0, 2**40)


def pairs_of(
    rows: list[int] | np.ndarray,
    batch_size: int = 4,
    seed: int = 0,
    mismatches: NegativeSampling = NONE,
    lengths: np.ndarray | None = None,
) -> CaptionPairs:
    rows = np.asarray(rows, np.int64)
    lengths = 2 + np.arange(len(rows), dtype=np.int32) * 7 % 30 if lengths is None else lengths.astype(np.int32)
    return CaptionPairs(rows, lengths, np.full(max(rows, default=0) + 1, 36), seed, batch_size, mismatches)


def same(one: EpochPairs, other: EpochPairs) -> bool:
    return all(np.array_equal(first, second) for first, second in zip(one, other, strict=True))


@given(
    images_of_captions,
    numbers,
    st.integers(0, 1000),
    st.integers(1, 20),
    st.sampled_from(["caption", "image", "either"]),
)
def test_a_mismatch_is_of_another_image_and_anything_else_is_of_its_own(rows, seed, epoch, batch_size, replaced):
    assume(len(set(rows)) > 1)
    pairs = pairs_of(rows, batch_size, seed, NegativeSampling(0.5, replaced)).get_epoch(epoch)
    images_of_shown = np.array(rows)[pairs.captions]
    assert np.array_equal(images_of_shown == pairs.rows, pairs.is_match)
    if replaced == "image":
        assert sorted(pairs.captions) == list(range(len(rows)))
    if replaced == "caption":
        assert sorted(pairs.rows) == sorted(rows)


@given(images_of_captions, numbers, st.integers(0, 1000), st.integers(1, 70))
def test_an_epoch_shows_every_caption_once(rows, seed, epoch, batch_size):
    pairs = pairs_of(rows, batch_size, seed).get_epoch(epoch)
    assert sorted(pairs.captions) == list(range(len(rows)))
    assert np.array_equal(np.array(rows)[pairs.captions], pairs.rows) and pairs.is_match.all()


@given(images_of_captions, numbers, st.lists(st.integers(0, 20), min_size=1, max_size=6))
def test_an_epoch_is_the_same_whichever_were_asked_for_before(rows, seed, epochs):
    assume(len(set(rows)) > 1)
    used = pairs_of(rows, 4, seed, NegativeSampling())
    for epoch in epochs:
        assert same(used.get_epoch(epoch), pairs_of(rows, 4, seed, NegativeSampling()).get_epoch(epoch))


def test_seeds_and_epochs_give_other_orders():
    rows = list(range(40))
    orders = {tuple(pairs_of(rows, 4, seed).get_epoch(epoch).captions) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_half_are_mismatched_by_either_and_every_other_image_is_as_likely():
    rows = [0, 0, 0, 1, 2] * 4000
    either = pairs_of(rows, 50, 3, NegativeSampling()).get_epoch(0)
    assert either.is_match.mean() == pytest.approx(0.5, abs=4 * 0.5 / 20_000**0.5)
    replaced = pairs_of(rows, 50, 4, NegativeSampling(1.0, "image")).get_epoch(0)
    partners = Counter(replaced.rows[np.array(rows)[replaced.captions] == 1].tolist())
    # of the captions of other images three in four are of image 0, one in four of image 2
    assert partners[0] / 4000 == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 4000) ** 0.5) and partners[1] == 0


def test_the_original_draws_from_all_captions_and_may_meet_the_same_image():
    """With 2 images of as many captions, half of its mismatches are none."""
    rows = [0, 1] * 5000
    pairs = pairs_of(rows, 50, 5, NegativeSampling(1.0, "caption", exclude_same_image=False)).get_epoch(0)
    assert not pairs.is_match.any()
    agreeing = (np.array(rows)[pairs.captions] == pairs.rows).mean()
    assert agreeing == pytest.approx(0.5, abs=4 * 0.5 / 10_000**0.5)


def padding_share(lengths: np.ndarray, batch_size: int) -> float:
    """How much of the batches is padding, if these lengths are cut into batches as they come."""
    batches = lengths[: len(lengths) // batch_size * batch_size].reshape(-1, batch_size)
    return 1 - lengths[: batches.size].sum() / (batches.max(axis=1).sum() * batch_size)


@pytest.mark.parametrize("captions", [6400, 6411])
@pytest.mark.parametrize("mismatches", [NONE, NegativeSampling()])
def test_little_of_a_batch_is_padding(captions, mismatches):
    """Of lengths around 13: 42 % of batches as they come is padding, and 64 % of batches that are all 36 long."""
    lengths = np.clip(np.random.default_rng(0).normal(13, 4, captions), 4, 36).round().astype(np.int32)
    pairs = pairs_of(np.arange(captions), 64, 1, mismatches, lengths)
    shown = np.concatenate([lengths[pairs.get_epoch(epoch).captions] for epoch in range(3)])
    assert padding_share(np.concatenate([lengths] * 3), 64) > 0.4
    assert padding_share(shown, 64) < 0.03
    assert 1 - lengths.mean() / 36 > 0.6


def test_the_batch_across_two_epochs_is_of_similar_length_too():
    lengths = np.random.default_rng(0).integers(4, 37, 1000)
    pairs = pairs_of(np.arange(1000), 64, 1, NONE, lengths)
    both = np.concatenate([lengths[pairs.get_epoch(epoch).captions] for epoch in (0, 1)])
    across = both[960:1024]  # the 16th batch
    assert across.max() - across.min() <= 3


def test_batches_do_not_come_by_length():
    lengths = np.random.default_rng(0).integers(4, 37, 6400)
    longest = (
        lengths[pairs_of(np.arange(6400), 64, 1, NONE, lengths).get_epoch(0).captions].reshape(100, 64).max(axis=1)
    )
    assert abs(np.corrcoef(longest, np.arange(100))[0, 1]) < 0.4


def test_among_captions_of_one_length_images_of_similar_size_go_together():
    regions = np.random.default_rng(0).integers(10, 37, 6400)
    lengths = np.full(6400, 12, np.int32)
    pairs = CaptionPairs(np.arange(6400), lengths, regions, 0, 64, NegativeSampling())
    assert padding_share(regions[pairs.get_epoch(0).rows], 64) < 0.03 < 0.3 < padding_share(regions, 64)


def test_what_cannot_be_paired_is_said():
    with pytest.raises(DataError, match="there are no captions"):
        pairs_of([])
    with pytest.raises(DataError, match="3 captions of one image cannot be mismatched"):
        pairs_of([5, 5, 5], mismatches=NegativeSampling())
    assert sorted(pairs_of([5, 5, 5]).get_epoch(0).captions) == [0, 1, 2]


def test_impossible_shares_and_batches_are_refused():
    with pytest.raises(ValueError, match=r"fraction \(1\.5\) must be from 0 to 1"):
        NegativeSampling(1.5)
    with pytest.raises(ValueError, match=r"batch_size \(0\) must be positive"):
        pairs_of([1, 2], batch_size=0)
