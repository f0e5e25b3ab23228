"""Features of fixed examples of clips: each image and each second of audio is read and embedded once.

An example is a random frame of a clip and a second of audio that overlaps it, drawn as in training. The examples
depend on the seed, the clip's key and the number of the example alone.
"""

import time
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from comodal.data.batch import AudioVisualBatch
from comodal.data.loader import Loader, Workers
from comodal.data.shards.clip_dataset import ClipPairDataset
from comodal.data.shards.pair_sampler import ClipPair, PairSampler, draw_pair_times
from comodal.data.shards.shard_reader import ShardReader
from comodal.hardware import MEMORY_FORMATS, Compute, choose_training_layout
from comodal.models.ave_net.ave_net import AVENetConfig
from comodal.models.l3net.l3net import L3NetConfig
from comodal.progress import track_progress

FEATURE_BATCH = 64  # examples that are read at a time
NARROW_CPU_BATCH = 16  # examples of a forward pass of a narrow network on a CPU: 1.4 times as fast as 2
MAX_NARROW_WIDTH = 16  # filters of the first convolution
EXAMPLE_STREAM = 4  # separates the random state of the examples from that of other draws


@runtime_checkable
class CorrespondenceModel(Protocol):
    """A model that scores pairs from features of images and of audio: an L3-Net, an AVE-Net, or a pair of
    classifiers.
    """

    def compute_image_features(self, image: Tensor, /) -> Tensor: ...

    def compute_audio_features(self, audio: Tensor, /) -> Tensor: ...

    def fuse_pairs(self, image: Tensor, audio: Tensor, /) -> Tensor: ...

    def fuse_all_pairs(self, image: Tensor, audio: Tensor, /) -> Tensor: ...


class ExampleFeatures(NamedTuple):
    """The features of the image and of the audio of each example, in the order of `AVCExampleDataset`."""

    image: Float[Tensor, "examples image_features"]
    audio: Float[Tensor, "examples audio_features"]


class ExampleSampler(PairSampler):
    """The example of an (epoch, index): example number `epoch` of clip number `index` of the chosen clips."""

    def __init__(
        self, shards: ShardReader, clips: Int64[np.ndarray, " clips"], seed: int, audio_seconds: float
    ) -> None:
        super().__init__(shards, seed, audio_seconds)
        self.clips = clips
        self.key_hashes = [zlib.crc32(shards.get_key(int(clip)).encode()) for clip in clips]

    def __call__(self, epoch: int, index: int) -> ClipPair:
        clip = int(self.clips[index])
        rng = np.random.default_rng((self.seed, self.key_hashes[index], epoch, EXAMPLE_STREAM))
        frame, start_seconds = draw_pair_times(self.records.read_record(clip), self.audio_seconds, rng)
        return ClipPair(clip, frame, clip, start_seconds, is_match=True)


class AVCExampleDataset(ClipPairDataset):
    """The examples of clips of one split, first examples first.

    Args:
        shards: The split.
        config: The network, which sets the sizes of images and audio.
        max_clips: Use only the first clips of the shards, which are in the order of a hash; None for all.
        examples_per_clip: Examples of each clip.
        seed: Seed of the examples.

    Raises:
        DataError: All clips are of one source video.
    """

    def __init__(
        self,
        shards: ShardReader,
        config: L3NetConfig | AVENetConfig,
        max_clips: int | None,
        examples_per_clip: int,
        seed: int,
    ) -> None:
        self.clips = np.arange(min(len(shards), max_clips or len(shards)))
        self.examples_per_clip = examples_per_clip
        sampler = ExampleSampler(shards, self.clips, seed, config.audio_seconds)
        super().__init__(shards, sampler, config.image_size, config.sample_rate, None)
        names = shards.groups
        self.sources = [names[clip] for clip in self.clips] * examples_per_clip

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def num_examples(self) -> int:
        return len(self.clips) * self.examples_per_clip

    def list_example_clips(self) -> Int64[np.ndarray, " examples"]:
        """The clip of each example."""
        return np.tile(self.clips, self.examples_per_clip)


class FeatureResult(NamedTuple):
    """The features by each model, and the time that reading and computing took."""

    features: dict[str, ExampleFeatures]
    seconds: float


def compute_example_features(
    models: Mapping[str, nn.Module], examples: AVCExampleDataset, compute: Compute, workers: Workers
) -> FeatureResult:
    """Reads every example once, and embeds it with each model.

    Args:
        models: Models by name, each with the methods of `CorrespondenceModel`.
        examples: The examples.
        compute: Device and precision.
        workers: Data loader processes.
    """
    started, count = time.monotonic(), examples.num_examples
    for model in models.values():
        layout = MEMORY_FORMATS[choose_training_layout(compute, model)]
        model.to(compute.device, memory_format=layout).eval()  # type: ignore[call-overload]
    parts: dict[str, list[ExampleFeatures]] = {name: [] for name in models}
    size = choose_forward_batch(next(iter(models.values())), compute)
    num_batches = -(-count // FEATURE_BATCH)
    loader = Loader(examples, FEATURE_BATCH, workers, num_batches * FEATURE_BATCH)
    batches = loader.iterate_batches(device=compute.device)
    for _ in track_progress(range(num_batches), "embedding"):
        batch = next(batches)
        assert isinstance(batch, AudioVisualBatch)
        moved = batch.to(compute.device)
        for name, model in models.items():
            parts[name].append(embed_batch(model, moved, compute, size))
    features = {
        name: ExampleFeatures(*(torch.cat(tensors)[:count] for tensors in zip(*found, strict=True)))
        for name, found in parts.items()
    }
    return FeatureResult(features, time.monotonic() - started)


def choose_forward_batch(model: nn.Module, compute: Compute) -> int:
    """The number of examples in a forward pass: larger for narrow networks, whose maps stay in the cache."""
    widths = [layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    is_narrow = min(widths, default=0) <= MAX_NARROW_WIDTH
    return NARROW_CPU_BATCH if compute.device.type == "cpu" and is_narrow else compute.batch_size


@torch.inference_mode()
def embed_batch(model: nn.Module, batch: AudioVisualBatch, compute: Compute, size: int) -> ExampleFeatures:
    """The features of a batch in fp32 on the device, computed in parts of `size` examples."""
    assert isinstance(model, CorrespondenceModel)
    with compute.autocast():
        image = [model.compute_image_features(part) for part in batch.image.split(size)]
        audio = [model.compute_audio_features(part) for part in batch.audio.split(size)]
    return ExampleFeatures(torch.cat(image).float(), torch.cat(audio).float())


def read_first_examples(examples: AVCExampleDataset, count: int) -> tuple[Tensor, Tensor]:
    """The images and the audio of the first examples, to calibrate batch norms."""
    positions: Sequence[tuple[int, int]] = [divmod(n, len(examples)) for n in range(min(count, examples.num_examples))]
    batch = examples.batch(positions)
    return batch.image, batch.audio
