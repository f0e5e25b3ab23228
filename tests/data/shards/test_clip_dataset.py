"""Pairs read out of shards."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from comodal.data.shards.clip_dataset import Augmentation, ClipPairDataset
from comodal.data.shards.pair_sampler import PairSampler
from comodal.data.shards.shard_reader import ShardReader, ShardWriter
from comodal.errors import DataError
from comodal.media.audio import decode_flac, encode_flac
from comodal.media.image import decode_jpeg, encode_jpeg
from tests.support.small_world import RATE, write_world

PLACES = [(0, index) for index in range(6)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    return ShardReader(write_world(tmp_path_factory.mktemp("clips") / "train", clips=6))


def clips(
    shards: ShardReader, augmentation: Augmentation | None = None, image_size: int = 28, rate: int = RATE
) -> ClipPairDataset:
    return ClipPairDataset(shards, PairSampler(shards, seed=3), image_size, rate, augmentation)


def test_without_augmentation_a_pair_is_the_middle_of_its_frame_and_its_second(shards):
    """28 x 8/7 is the 32 that the frames have: nothing is resized."""
    batch = clips(shards).batch(PLACES)
    for row, (epoch, index) in enumerate(PLACES):
        pair = PairSampler(shards, seed=3)(epoch, index)
        frame = decode_jpeg(shards.read_member(pair.image_clip, f"{pair.frame:04d}.jpg"))  # 32 x 40
        assert np.array_equal(batch.image[row].permute(1, 2, 0), frame[2:30, 6:34])
        whole, _ = decode_flac(shards.read_member(pair.audio_clip, "flac"))
        start = round(pair.start_seconds * RATE)
        assert np.array_equal(batch.audio[row], whole[start : start + RATE])
        assert batch.is_match[row] == (index % 2 == 0)
        assert batch.keys[row].startswith(
            f"clip{pair.image_clip} frame {pair.frame}, clip{pair.audio_clip} audio from "
        )


def test_pictures_lie_channels_last_in_memory(shards):
    assert clips(shards).batch(PLACES).image.is_contiguous(memory_format=torch.channels_last)


def test_augmentation_depends_on_the_place_alone(shards):
    one, other = clips(shards, Augmentation()), clips(shards, Augmentation())
    whole, single = one.batch(PLACES), other.batch(PLACES[4:5])
    assert torch.equal(whole.image[4], single.image[0]) and torch.equal(whole.audio[4], single.audio[0])
    assert not torch.equal(whole.image[4], clips(shards).batch(PLACES).image[4])


@pytest.mark.parametrize("cache_bytes", [200_000, 10**9], ids=["some", "all"])
def test_what_is_kept_in_memory_is_what_is_read(shards, cache_bytes):
    """Epoch after epoch, whether some or all of the clips fit; nothing kept is changed."""
    pairs = PairSampler(shards, seed=3)
    kept = ClipPairDataset(shards, pairs, 28, RATE, Augmentation(), cache_bytes)
    for epoch in range(3):
        places = [(epoch, index) for index in range(8)]
        ours, plain = kept.batch(places), clips(shards, Augmentation()).batch(places)
        assert torch.equal(ours.image, plain.image) and torch.equal(ours.audio, plain.audio)
    assert kept.cache is not None and kept.cache.arrays
    assert sum(array.nbytes for array in kept.cache.arrays.values()) <= cache_bytes
    images = {key[1] for key in kept.cache.arrays if key[0] == "image"}
    assert cache_bytes == 200_000 or images == {pairs(e, i).image_clip for e in range(3) for i in range(8)}


def test_augmentation_changes_no_pair(shards):
    assert clips(shards, Augmentation()).batch(PLACES).keys == clips(shards).batch(PLACES).keys


def test_volume_changes_by_up_to_a_tenth(shards):
    plain, louder = clips(shards).batch(PLACES).audio, clips(shards, Augmentation()).batch(PLACES).audio
    gain = (plain * louder).sum(1) / (plain * plain).sum(1)
    assert torch.allclose(louder, plain * gain[:, None], atol=1e-6)
    assert 0.9 <= gain.min() < gain.max() <= 1.1


def test_digits_are_not_mirrored_if_so_asked(tmp_path: Path):
    """Frames that are dark on the left and bright on the right."""
    ramp = np.repeat(np.linspace(0, 255, 32).astype(np.uint8)[None, :, None], 32, 0).repeat(3, 2)
    write_pictures(tmp_path / "train", encode_jpeg(ramp))
    sides = {}
    for mirror in (True, False):
        augmentation = dataclasses.replace(Augmentation(), horizontal_flip=mirror)
        images = clips(ShardReader(tmp_path / "train"), augmentation).batch([(0, n) for n in range(24)]).image.float()
        sides[mirror] = (images[..., :14].mean((1, 2, 3)) < images[..., 14:].mean((1, 2, 3))).tolist()
    assert set(sides[True]) == {True, False} and set(sides[False]) == {True}


def test_large_frames_are_resized_to_eight_sevenths(tmp_path: Path):
    """A picture of a white square in the middle third stays one at any size."""
    large = np.zeros((240, 240, 3), np.uint8)
    large[80:160, 80:160] = 255
    write_pictures(tmp_path / "train", encode_jpeg(large))
    image = (
        clips(ShardReader(tmp_path / "train"), image_size=42).batch([(0, 0)]).image[0, 0].float()
    )  # 42 of 48: 3 cut off
    assert (image[13 + 2 : 29 - 2, 13 + 2 : 29 - 2] > 200).all()
    assert (image > 128).sum() == pytest.approx(16 * 16, abs=40)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 64}, r"clip\d: its frames are 40 x 32, smaller than the model's 64: .*--short-side 73"),
        ({"rate": 22_050}, r"clip\d: its audio has 48000 Hz, the model takes 22050 Hz"),
    ],
)
def test_shards_that_do_not_fit_the_model_are_refused(shards, options, message):
    with pytest.raises(DataError, match=message):
        clips(shards, **options).batch(PLACES)


def test_a_sound_shorter_than_its_record_is_refused_and_a_rounded_one_is_not(tmp_path: Path):
    jpeg = encode_jpeg(np.zeros((32, 32, 3), np.uint8))
    write_pictures(tmp_path / "rounded", jpeg, samples=RATE - 1)
    assert clips(ShardReader(tmp_path / "rounded")).batch([(0, 0)]).audio.shape == (1, RATE)
    write_pictures(tmp_path / "short", jpeg, samples=RATE // 2)
    with pytest.raises(DataError, match=r"short: clip [ab]: its audio is shorter than its record"):
        clips(ShardReader(tmp_path / "short")).batch([(0, 0)])


def test_a_file_that_is_no_jpeg_is_named(tmp_path: Path):
    write_pictures(tmp_path / "train", b"no video stream")
    with pytest.raises(DataError, match=r"train: clip [ab], 0000.jpg: "):
        clips(ShardReader(tmp_path / "train")).batch([(0, 0)])


def test_a_flipped_bit_is_named(tmp_path: Path):
    write_world(tmp_path / "train", clips=4)
    path = tmp_path / "train" / "000000.tar"
    data = bytearray(path.read_bytes())
    data[data.index(b"fLaC") + 1000] ^= 1  # in the sound of the first clip
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"000000.tar is damaged: .* of clip\d does not match its checksum"):
        clips(ShardReader(tmp_path / "train")).batch([(0, index) for index in range(100)])


def write_pictures(folder: Path, jpeg: bytes, samples: int = RATE) -> None:
    """Two clips of one frame and a second of noise."""
    folder.mkdir()
    noise = np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32)
    with ShardWriter(folder / "000000.tar") as shard:
        for key in "ab":
            record = {"key": key, "group": key, "frame_seconds": [0.0], "frames": ["0000.jpg"], "seconds": 1.0}
            shard.write(key, {"0000.jpg": jpeg, "flac": encode_flac(noise, RATE)}, record)
