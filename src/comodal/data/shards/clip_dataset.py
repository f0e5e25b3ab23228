"""Pairs of a frame and a second of audio, read from shards (L3-Net, sections 2 and 3.2)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from comodal.data.batch import AudioVisualBatch
from comodal.data.shards.decoded_cache import DecodedCache
from comodal.data.shards.pair_sampler import ClipPair, PairSampler
from comodal.data.shards.shard_reader import ShardReader
from comodal.errors import DataError, MediaError, check_number
from comodal.media.audio import decode_flac
from comodal.media.augmentation import jitter_color, jitter_gain, random_crop, random_horizontal_flip
from comodal.media.image import crop_image_center, decode_jpeg, resize_short_side

ROUNDING_SAMPLES = 2  # times in records are rounded
AUGMENTATION_SEED = 1  # separates the random stream of the augmentation from that of the pairs


@dataclass(frozen=True)
class Augmentation:
    """Random augmentation of an image and audio, besides the crop.

    The paper names the kinds and the 10 %; the ranges of brightness and saturation are those of l3embedding
    (its data/avc/sample.py).

    Args:
        horizontal_flip: Flip half of the images horizontally. Unsuitable for digits and letters.
        brightness_jitter: Brightness jitter: the largest change, where 1 is white. The default is l3embedding's range.
        saturation_jitter: Saturation jitter: the largest change, as a fraction. The default is l3embedding's.
        gain_jitter: Gain jitter of the audio: the largest change, as a fraction.
    """

    horizontal_flip: bool = True
    brightness_jitter: float = 32 / 255
    saturation_jitter: float = 0.5
    gain_jitter: float = 0.1

    def __post_init__(self) -> None:
        check_number("brightness_jitter", self.brightness_jitter, 0, 1)
        check_number("saturation_jitter", self.saturation_jitter, 0, 1)
        check_number("gain_jitter", self.gain_jitter, 0, 1)


class ClipPairDataset:
    """Batches of any (epoch, index) of a sequence of pairs.

    Args:
        shards: Clips of frames (JPEG) and audio (FLAC), as `comodal prepare` writes them.
        pairs: The pair sampler: which frame is paired with which second of audio.
        image_size: Side of the images; they are cropped from frames resized to 8/7 of it (the paper: 224 from 256).
        sample_rate: Of the audio input of the model.
        augmentation: None for evaluation: center crops, and no randomness except in the pairs.
        cache_bytes: Size of the in-memory cache of decoded frames and audio; with a cache, audio is decoded whole.
    """

    def __init__(
        self,
        shards: ShardReader,
        pairs: PairSampler,
        image_size: int,
        sample_rate: int,
        augmentation: Augmentation | None,
        cache_bytes: int = 0,
    ) -> None:
        self.shards = shards
        self.pairs = pairs
        self.image_size = image_size
        self.sample_rate = sample_rate
        self.augmentation = augmentation
        self.cache = DecodedCache(cache_bytes) if cache_bytes else None

    def __len__(self) -> int:
        """Pairs in an epoch: as many as clips."""
        return len(self.shards)

    def batch(self, positions: Sequence[tuple[int, int]]) -> AudioVisualBatch:
        """The pairs of these (epoch, index), in this order."""
        pairs = [self.pairs(epoch, index) for epoch, index in positions]
        images = np.empty((len(pairs), self.image_size, self.image_size, 3), np.uint8)
        waveforms = np.empty((len(pairs), round(self.pairs.audio_seconds * self.sample_rate)), np.float32)
        for row, (pair, position) in enumerate(zip(pairs, positions, strict=True)):
            images[row], waveforms[row] = self.read_pair(pair, *position)
        return AudioVisualBatch(
            image=torch.from_numpy(images).permute(0, 3, 1, 2),  # channels last in memory, as the frames are
            audio=torch.from_numpy(waveforms),
            is_match=torch.tensor([pair.is_match for pair in pairs]),
            source_ids=torch.tensor([self.pairs.groups[pair.image_clip] for pair in pairs]),
            keys=tuple(self.describe_pair(pair) for pair in pairs),
        )

    def read_pair(self, pair: ClipPair, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The image and the second of audio of a pair, augmented at random if requested."""
        if self.cache is None:
            image, waveform = self.read_frame(pair), self.read_audio(pair)
        else:
            image = self.cache.get(("image", pair.image_clip, pair.frame), lambda: self.read_frame(pair))
            whole_waveform = self.cache.get(("audio", pair.audio_clip), lambda: self.read_whole_audio(pair.audio_clip))
            waveform = self.cut_second(pair, whole_waveform[round(pair.start_seconds * self.sample_rate) :])
        if self.augmentation is None:
            return crop_image_center(image, self.image_size), waveform
        rng = np.random.default_rng((self.pairs.seed, epoch, index, AUGMENTATION_SEED))
        image = random_crop(image, self.image_size, rng)
        if self.augmentation.horizontal_flip:
            image = random_horizontal_flip(image, rng)
        image = jitter_color(image, self.augmentation.brightness_jitter, self.augmentation.saturation_jitter, rng)
        return image, jitter_gain(waveform, self.augmentation.gain_jitter, rng)

    def read_frame(self, pair: ClipPair) -> np.ndarray:
        """The whole frame of a pair, its short side at most 8/7 of the size of the crop."""
        short_side = round(self.image_size * 8 / 7)
        name = self.shards.read_record(pair.image_clip)["frames"][pair.frame]
        data = self.shards.read_member(pair.image_clip, name)
        try:
            image = decode_jpeg(data, min_short_side=short_side)
        except MediaError as error:
            raise DataError(f"{self.describe_location(pair.image_clip)}, {name}: {error.detail}") from error
        if min(image.shape[:2]) > short_side:
            return resize_short_side(image, short_side)
        if min(image.shape[:2]) < self.image_size:
            raise DataError(
                f"{self.describe_location(pair.image_clip)}: its frames are {image.shape[1]} x {image.shape[0]}, "
                f"smaller than the "
                f"model's {self.image_size}: prepare again with --short-side {short_side}, or train with a smaller "
                "--image-size"
            )
        return image

    def read_audio(self, pair: ClipPair) -> np.ndarray:
        """The second of audio of a pair."""
        return self.cut_second(pair, self.decode_audio(pair.audio_clip, pair.start_seconds, self.pairs.audio_seconds))

    def read_whole_audio(self, clip: int) -> np.ndarray:
        """The whole audio of a clip."""
        return self.decode_audio(clip, 0.0, None)

    def decode_audio(self, clip: int, start_seconds: float, seconds: float | None) -> np.ndarray:
        """The audio of a clip, or a part of it."""
        data = self.shards.read_member(clip, "flac")
        try:
            waveform, sample_rate = decode_flac(data, start_seconds, seconds)
        except MediaError as error:
            raise DataError(f"{self.describe_location(clip)}, flac: {error.detail}") from error
        if sample_rate != self.sample_rate:
            raise DataError(
                f"{self.describe_location(clip)}: its audio has {sample_rate} Hz, the model takes "
                f"{self.sample_rate} Hz: prepare again with --sample-rate {self.sample_rate}"
            )
        return waveform

    def cut_second(self, pair: ClipPair, waveform: np.ndarray) -> np.ndarray:
        """The first second of this audio; one or two missing samples are padded, since times are rounded."""
        length = round(self.pairs.audio_seconds * self.sample_rate)
        missing = length - len(waveform)
        if missing > ROUNDING_SAMPLES:
            raise DataError(f"{self.describe_location(pair.audio_clip)}: its audio is shorter than its record states")
        return np.pad(waveform, (0, missing)) if missing > 0 else waveform[:length]

    def describe_location(self, clip: int) -> str:
        """The shard and sample of a clip, for error messages."""
        return f"{self.shards.folder}: clip {self.shards.get_key(clip)}"

    def describe_pair(self, pair: ClipPair) -> str:
        """A description of a pair's frame and audio, to look it up."""
        image_key, audio_key = self.shards.get_key(pair.image_clip), self.shards.get_key(pair.audio_clip)
        return f"{image_key} frame {pair.frame}, {audio_key} audio from {pair.start_seconds:.3f} s"
