"""Captions beside the regions of an image, with words and regions hidden."""

import pickle
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from comodal.data.batch import CaptionBatch, TokenInput
from comodal.data.captions.caption_dataset import CaptionDataset, MaskingConfig
from comodal.data.captions.caption_files import Caption
from comodal.data.captions.caption_pairs import NegativeSampling
from comodal.data.captions.masking import find_overlapping_boxes
from comodal.data.loader import Loader
from comodal.data.regions.region_store import RegionStore
from comodal.errors import DataError
from comodal.media.tokenizer import WordPieceTokenizer
from tests.support.paths import FIXTURES
from tests.support.small_regions import CLASSES, DIM, HEIGHT, WIDTH, Image, some_images, write_store

WORDS = WordPieceTokenizer.read(FIXTURES / "vilbert/words/vocab.txt")
PAPER, PLAIN = MaskingConfig(), MaskingConfig(token_probability=0.0, region_probability=0.0)
HALF, ALONE = NegativeSampling(), NegativeSampling(fraction=0.0)
TEXTS = ("a dog", "two dogs playing with a red frisbee on the grass", "", "the man", "a skateboarder sings and rings")
NAMES = [field.name for field in fields(CaptionBatch) if field.name != "keys"]


@pytest.fixture(scope="module")
def images() -> list[Image]:
    """Image 3 has no regions, image 5 one, image 6 forty."""
    return some_images([7, 4, 9, 0, 12, 1, 40, 5])


@pytest.fixture(scope="module")
def store(images: list[Image], tmp_path_factory: pytest.TempPathFactory) -> RegionStore:
    return write_store(tmp_path_factory.mktemp("store"), images)


def captions_of(images: int, times: int = 3) -> list[tuple[Caption, int]]:
    return [
        (Caption((f"image{row}",), TEXTS[number % len(TEXTS)], None, str(number)), row)
        for number, row in enumerate(list(range(images)) * times)
    ]


def samples(
    store: RegionStore,
    hiding: MaskingConfig = PAPER,
    mismatches: NegativeSampling = HALF,
    seed: int = 3,
    batch_size: int = 6,
) -> CaptionDataset:
    captions = captions_of(len(store))
    return CaptionDataset(captions, store, WORDS, seed, batch_size, masking=hiding, negative_sampling=mismatches)


PLACES = [(0, index) for index in range(24)]


def row_and_number(key: str) -> tuple[int, int]:
    """Of the image in the store, and of the caption."""
    image, caption = key.split(", ")
    return int(image.removeprefix("image image")), int(caption.removeprefix("caption "))


def test_a_sample_is_its_caption_and_the_regions_of_its_image(store, images):
    batch = samples(store, PLAIN, ALONE).batch(PLACES)
    every = captions_of(len(images))
    for sample, key in enumerate(batch.keys):
        row, number = row_and_number(key)
        assert every[number][1] == row
        words = WORDS.encode(every[number][0].caption)
        assert batch.token_ids[sample].tolist() == words + [WORDS.padding_id] * (batch.token_ids.shape[1] - len(words))
        assert batch.token_mask[sample].tolist() == [True] * len(words) + [False] * (
            batch.token_ids.shape[1] - len(words)
        )
        count = min(len(images[row].boxes), 36)
        expected = images[row].features[:count].astype(np.float16)
        assert np.array_equal(batch.region_features[sample, 1 : count + 1], expected)
        assert not batch.region_features[sample, count + 1 :].any() and not batch.spatials[sample, count + 1 :].any()
        assert batch.region_mask[sample].tolist() == [True] * (count + 1) + [False] * (36 - count)
        whole = expected.astype(np.float32).sum(axis=0) / max(count, 1)
        assert np.allclose(batch.region_features[sample, 0], whole, atol=1e-6)
    assert not batch.token_types.any() and batch.is_match.all()
    for nothing in (
        batch.masked_token_indices,
        batch.token_targets,
        batch.masked_region_indices,
        batch.visual_token_targets,
    ):
        assert nothing.shape == (0,)
    assert batch.feature_targets.shape == (0, DIM) and batch.class_targets.shape == (0, CLASSES)


def test_locations_are_fractions_of_the_image_and_row_0_is_all_of_it(store, images):
    batch = samples(store, PLAIN, ALONE).batch(PLACES)
    for sample, key in enumerate(batch.keys):
        boxes = images[row_and_number(key)[0]].boxes[:36]
        left, top, right, bottom = boxes.T
        area = (right - left) * (bottom - top) / (WIDTH * HEIGHT)
        expected = np.stack([left / WIDTH, top / HEIGHT, right / WIDTH, bottom / HEIGHT, area], axis=1)
        assert np.allclose(batch.spatials[sample, 1 : len(boxes) + 1], expected, atol=1e-6)
        assert batch.spatials[sample, 0].tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    "hiding",
    [MaskingConfig(), MaskingConfig(0.5, 0.5), MaskingConfig(1.0, 1.0), MaskingConfig(0.3, 0.3, overlap_threshold=0.4)],
)
def test_what_is_hidden_is_kept_and_the_rest_is_as_it_was(store, images, hiding):
    plain, batch = samples(store, PLAIN).batch(PLACES), samples(store, hiding).batch(PLACES)
    assert plain.keys == batch.keys and torch.equal(plain.is_match, batch.is_match)
    assert torch.equal(plain.token_ids.flatten()[batch.masked_token_indices], batch.token_targets)
    assert torch.equal(plain.region_features.flatten(0, 1)[batch.masked_region_indices], batch.feature_targets)
    assert len(batch.masked_token_indices) and len(batch.masked_region_indices)
    elsewhere = torch.ones(plain.token_ids.numel(), dtype=torch.bool)
    elsewhere[batch.masked_token_indices] = False
    assert torch.equal(plain.token_ids.flatten()[elsewhere], batch.token_ids.flatten()[elsewhere])
    assert not torch.isin(batch.token_targets, torch.tensor(WORDS.special_ids)).any()
    assert not (batch.masked_region_indices % batch.region_features.shape[1] == 0).any()
    assert batch.region_mask.flatten()[batch.masked_region_indices].all()
    for sample, key in enumerate(batch.keys):
        row, width = row_and_number(key)[0], batch.region_features.shape[1]
        count = min(len(images[row].boxes), 36)
        places = batch.masked_region_indices[batch.masked_region_indices // width == sample] % width - 1
        chosen = np.zeros(count, bool)
        chosen[places] = True
        may_be_hidden = chosen
        if hiding.overlap_threshold is not None:
            may_be_hidden = find_overlapping_boxes(images[row].boxes[:count], chosen, hiding.overlap_threshold)
            merely = may_be_hidden & ~chosen
            assert not batch.region_features[sample, 1 : count + 1][merely].any()
        assert torch.equal(
            batch.region_features[sample, 1 : count + 1][~may_be_hidden],
            plain.region_features[sample, 1 : count + 1][~may_be_hidden],
        )
        seen = batch.region_features[sample, 1:].sum(0) / max(count, 1)
        assert torch.allclose(batch.region_features[sample, 0], seen, atol=1e-6)


def test_classes_and_tokens_of_hidden_regions_are_told(store, images):
    batch = samples(store, MaskingConfig(0.5, 0.5)).batch(PLACES)
    width = batch.region_features.shape[1]
    for place, classes, token in zip(
        batch.masked_region_indices.tolist(), batch.class_targets, batch.visual_token_targets, strict=True
    ):
        image = images[row_and_number(batch.keys[place // width])[0]]
        assert np.allclose(classes, image.classes[place % width - 1], atol=1e-3)
        assert token == image.tokens[place % width - 1]


def test_visual_tokens_as_input_say_what_is_padding_hidden_or_the_image(store, images):
    batch = samples(store, MaskingConfig(0.5, 0.5, overlap_threshold=0.4)).batch(PLACES)
    for sample, key in enumerate(batch.keys):
        image = images[row_and_number(key)[0]]
        count = min(len(image.boxes), 36)
        assert batch.visual_tokens[sample, 0] == TokenInput.IMAGE
        assert (batch.visual_tokens[sample, count + 1 :] == TokenInput.PADDING).all()
        shown = batch.visual_tokens[sample, 1 : count + 1]
        hidden = ~batch.region_features[sample, 1 : count + 1].any(dim=1)
        assert torch.equal(shown == TokenInput.MASK, hidden)
        assert np.array_equal(shown[~hidden], (image.tokens[:count] + len(TokenInput))[~hidden.numpy()])


def test_a_store_without_classes_and_tokens_gives_none(images, tmp_path):
    bare = write_store(tmp_path, images, bare=True)
    batch = samples(bare, MaskingConfig(0.5, 0.5)).batch(PLACES)
    assert batch.class_targets.shape == (len(batch.masked_region_indices), 0)
    assert batch.visual_token_targets.shape == (0,)
    assert len(batch.masked_region_indices) > 0
    assert set(batch.visual_tokens.unique().tolist()) == set(TokenInput)
    assert torch.equal(batch.visual_tokens != TokenInput.PADDING, batch.region_mask)


def alike(one: CaptionBatch, sample: int, other: CaptionBatch, at: int) -> bool:
    """Whether a sample is the same in two batches, which may be padded to other lengths."""
    words, regions = int(one.token_mask[sample].sum()), int(one.region_mask[sample].sum())
    for name, length in (
        ("token_ids", words),
        ("region_features", regions),
        ("spatials", regions),
        ("visual_tokens", regions),
    ):
        if not torch.equal(getattr(one, name)[sample, :length], getattr(other, name)[at, :length]):
            return False
        if getattr(one, name)[sample, length:].any() or getattr(other, name)[at, length:].any():
            return False
    targets = []
    for batch, row in ((one, sample), (other, at)):
        of_words, of_regions = (
            batch.masked_token_indices // batch.token_ids.shape[1] == row,
            batch.masked_region_indices // batch.region_features.shape[1] == row,
        )
        targets.append([
            batch.masked_token_indices[of_words] % batch.token_ids.shape[1], batch.token_targets[of_words],
            batch.is_match[row],
            batch.masked_region_indices[of_regions] % batch.region_features.shape[1], batch.feature_targets[of_regions],
            batch.class_targets[of_regions], batch.visual_token_targets[of_regions],
        ])  # fmt: skip
    return one.keys[sample] == other.keys[at] and all(torch.equal(*both) for both in zip(*targets, strict=True))


a_place = st.tuples(st.integers(0, 3), st.integers(0, 23))


@given(st.lists(a_place, min_size=1, max_size=12), st.integers(0, 2**40), st.sampled_from([None, 0.4]))
def test_a_sample_depends_on_its_place_alone(store, places, seed, overlap):
    """Not on the batch it is in, nor on what was asked for before, nor on the process."""
    one = samples(store, MaskingConfig(0.4, 0.4, overlap), seed=seed)
    batch, other = (
        one.batch(places),
        pickle.loads(pickle.dumps(samples(store, MaskingConfig(0.4, 0.4, overlap), seed=seed))),
    )
    for sample, place in enumerate(places):
        assert alike(batch, sample, other.batch([place]), 0)


@given(st.integers(0, 2**40), st.integers(0, 50), st.sampled_from(["caption", "image", "either"]))
def test_a_mismatch_is_of_another_image(store, seed, epoch, replaced):
    every = captions_of(len(store))
    batch = samples(store, mismatches=NegativeSampling(0.7, replaced), seed=seed).batch(
        [(epoch, index) for index in range(24)]
    )
    for key, is_match in zip(batch.keys, batch.is_match.tolist(), strict=True):
        row, number = row_and_number(key)
        assert is_match == (every[number][1] == row)


def test_seeds_and_epochs_hide_other_things(store):
    masked = {
        tuple(samples(store, seed=seed).batch([(epoch, index) for index in range(24)]).masked_region_indices.tolist())
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(masked) == 4


def test_the_places_of_tokens_are_those_of_the_masks(store):
    batch = samples(store).batch(PLACES)
    for mask, places in (
        (batch.token_mask, batch.unpadded_token_indices),
        (batch.region_mask, batch.unpadded_region_indices),
    ):
        assert not mask.all()
        assert places.tolist() == [place for place, there in enumerate(mask.flatten().tolist()) if there]


def test_in_mismatched_pairs_nothing_is_asked_for_but_as_much_is_hidden(store):
    """12-in-1: no masked losses on mismatched pairs. What the model sees does not tell which pairs these are."""
    asked, spared = (
        samples(store, MaskingConfig(0.5, 0.5)).batch(PLACES),
        samples(store, MaskingConfig(0.5, 0.5, mask_loss_on_mismatched=False)).batch(PLACES),
    )
    for name in ("token_ids", "region_features", "visual_tokens", "is_match"):
        assert torch.equal(getattr(asked, name), getattr(spared, name))
    for place, targets, rows in (
        ("masked_token_indices", "token_targets", "token_ids"),
        ("masked_region_indices", "feature_targets", "region_features"),
    ):
        belongs = asked.is_match[getattr(asked, place) // getattr(asked, rows).shape[1]]
        assert torch.equal(getattr(asked, place)[belongs], getattr(spared, place))
        assert torch.equal(getattr(asked, targets)[belongs], getattr(spared, targets))


def test_a_random_word_is_an_ordinary_one_unless_faithful(store):
    """The original takes it from all numbers of the vocabulary, special and unused ones included."""
    kinds = []
    for faithful in (False, True):
        data = samples(store, MaskingConfig(token_probability=1.0, faithful=faithful), ALONE)
        batch = data.batch([(epoch, index) for epoch in range(150) for index in range(24)])
        shown = batch.token_ids.flatten()[batch.masked_token_indices]
        replaced = shown[(shown != WORDS.mask_id) & (shown != batch.token_targets)]
        kinds.append(np.isin(replaced.numpy(), WORDS.ordinary_ids))
    assert len(kinds[0]) > 1000 and kinds[0].all()
    share = (WORDS.size - len(WORDS.ordinary_ids) - 1) / (WORDS.size - 1)
    assert (~kinds[1]).mean() == pytest.approx(share, abs=4 * (share / len(kinds[1])) ** 0.5)


def test_faithful_row_0_is_divided_by_the_rows_that_overlap_nothing_chosen(store, images):
    """As vilbert-multi-task does it: 36 rows, padding counted, less those with IoU > 0.4 to a chosen one."""
    batch = samples(store, MaskingConfig(0.5, 0.5, faithful=True), ALONE).batch(PLACES)
    width = batch.region_features.shape[1]
    for sample, key in enumerate(batch.keys):
        boxes = images[row_and_number(key)[0]].boxes[:36]
        chosen = np.zeros(len(boxes), bool)
        chosen[batch.masked_region_indices[batch.masked_region_indices // width == sample] % width - 1] = True
        rows = max(36 - int(find_overlapping_boxes(boxes, chosen).sum()), 1)
        assert torch.allclose(
            batch.region_features[sample, 0], batch.region_features[sample, 1:].sum(0) / rows, atol=1e-6
        )


def test_images_without_regions_and_captions_without_words_are_samples_too(tmp_path):
    empty = write_store(tmp_path, some_images([0, 0]))
    captions = [(Caption((f"image{row}",), "", None, str(row)), row) for row in (0, 1)]
    batch = CaptionDataset(captions, empty, WORDS, 0, 2, masking=MaskingConfig(1.0, 1.0, overlap_threshold=0.4)).batch(
        [(0, 0), (0, 1), (5, 1)]
    )
    assert batch.token_ids.tolist() == [[WORDS.cls_id, WORDS.sep_id]] * 3
    assert batch.region_features.shape == (3, 1, DIM) and not batch.region_features.any() and batch.region_mask.all()
    assert len(batch.masked_token_indices) == len(batch.masked_region_indices) == 0


def test_what_is_longer_than_the_model_takes_is_cut_and_counted(store):
    captions = captions_of(len(store))
    data = CaptionDataset(captions, store, WORDS, 3, 6, max_tokens=5, max_regions=4)
    batch = data.batch(PLACES)
    assert batch.token_ids.shape[1] == 5 and batch.region_features.shape[1] == 5
    long = {
        number for number, (caption, _) in enumerate(captions_of(len(store))) if len(WORDS.encode(caption.caption)) > 5
    }
    assert data.num_truncated == len(long) > 0
    assert all(
        words[-1] == WORDS.sep_id
        for words, key in zip(batch.token_ids, batch.keys, strict=True)
        if row_and_number(key)[1] in long
    )


def test_batches_are_as_long_as_their_longest_caption_and_similar_ones_stand_together(store):
    data = samples(store, PLAIN, ALONE, batch_size=6)
    lengths = [
        data.batch([(0, index) for index in range(first, first + 6)]).token_mask.sum(1) for first in range(0, 24, 6)
    ]
    assert [int(part.max()) for part in lengths] == [
        data.batch([(0, index) for index in range(first, first + 6)]).token_ids.shape[1] for first in range(0, 24, 6)
    ]
    assert len({int(part.max()) for part in lengths}) > 1


def test_the_loader_gives_the_same_samples_with_any_number_of_workers_and_parts(store):
    data = samples(store, batch_size=8)  # 24 samples an epoch: 40 samples are an epoch and two thirds
    alone = list(Loader(data, 8, 0, length=40).iterate_batches())
    with_worker = list(Loader(data, 8, 1, length=40).iterate_batches(samples_done=16))
    for one, other in zip(alone[2:], with_worker, strict=True):
        assert one.keys == other.keys and all(torch.equal(getattr(one, name), getattr(other, name)) for name in NAMES)
    halves = list(Loader(data, 8, 0, length=40).iterate_batches(parts=2))
    for number, whole in enumerate(alone):
        for sample in range(8):
            assert alike(whole, sample, halves[2 * number + sample // 4], sample % 4)


def test_what_cannot_be_sampled_is_said(store):
    with pytest.raises(DataError, match="there are no captions"):
        CaptionDataset([], store, WORDS, 0, 4)
    with pytest.raises(DataError, match="3 captions of one image"):
        CaptionDataset(captions_of(1), store, WORDS, 0, 4)
    with pytest.raises(ValueError, match=r"max_regions \(0\)"):
        CaptionDataset(captions_of(2), store, WORDS, 0, 4, max_regions=0)
    with pytest.raises(ValueError, match=r"max_tokens \(1\)"):
        CaptionDataset(captions_of(2), store, WORDS, 0, 4, max_tokens=1)
    with pytest.raises(ValueError, match=r"masking probabilities are from 0 to 1, got 1.5 and 0.15"):
        MaskingConfig(token_probability=1.5)
