"""What activates a unit: its strongest images or audio, and the positions in them (L3-Net, section 4.4).

Units are ranked by how far their strongest activations are above their mean. Units that are dead or active for every
input come last.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from comodal.analysis.heatmaps import resize_maps
from comodal.data.shards.shard_reader import ShardReader
from comodal.errors import DataError
from comodal.media.audio import decode_flac
from comodal.media.image import crop_image_center, decode_jpeg, resize_short_side
from comodal.models.ave_net.ave_net import AVENet
from comodal.models.l3net.l3net import L3Net


@dataclass(frozen=True)
class ClipExamples:
    """One frame of each of many clips, and the second of audio around it; `labels` is empty if a clip has none."""

    image: UInt8[Tensor, "examples 3 size size"]
    audio: Float[Tensor, "examples samples"]
    names: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class UnitActivation:
    """One channel: the examples of its strongest activations in descending order, and the activations."""

    channel: int
    examples: Int[np.ndarray, " top"]
    activations: Float[np.ndarray, " top"]


def read_clip_examples(shards: Path, model: L3Net, count: int) -> ClipExamples:
    """The middle of equally spaced clips of a split: its frame, cropped as in validation, and the second around it."""
    reader, size = ShardReader(shards), model.config.image_size
    images, waveforms, names, labels = [], [], [], []
    for clip in np.unique(np.linspace(0, len(reader) - 1, min(count, len(reader))).round().astype(int)).tolist():
        record = reader.read_record(clip)
        image, waveform = read_clip_example(reader, clip, len(record["frames"]) // 2, model)
        images.append(crop_image_center(image, size))
        waveforms.append(waveform)
        names.append(str(record.get("label", record["key"])))
        labels += [str(record["label"])] if record.get("label") is not None else []
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    clip_labels = tuple(labels) if len(labels) == len(names) else ()
    return ClipExamples(pixels, torch.from_numpy(np.stack(waveforms)), tuple(names), clip_labels)


def read_clip_example(
    shards: ShardReader, clip: int, frame: int, model: L3Net | AVENet
) -> tuple[UInt8[np.ndarray, "height width 3"], Float[np.ndarray, " samples"]]:
    """A whole frame, its short side 8/7 of the model's image size as in training, and the second of audio around it.

    Raises:
        DataError: The sample rate of the audio is not the model's.
    """
    record, config = shards.read_record(clip), model.config
    short_side = round(config.image_size * 8 / 7)
    image = decode_jpeg(shards.read_member(clip, record["frames"][frame]), min_short_side=short_side)
    max_start = max(0.0, record["seconds"] - config.audio_seconds)
    start = min(max(0.0, record["frame_seconds"][frame] - config.audio_seconds / 2), max_start)
    waveform, sample_rate = decode_flac(shards.read_member(clip, "flac"), start, config.audio_seconds)
    if sample_rate != config.sample_rate:
        raise DataError(f"{shards.folder}: audio at {sample_rate} Hz; the model needs {config.sample_rate} Hz")
    return resize_short_side(image, short_side), np.pad(
        waveform, (0, round(config.audio_seconds * sample_rate) - len(waveform))
    )


def rank_units(activations: Float[np.ndarray, "examples channels"], units: int, top_k: int) -> list[UnitActivation]:
    """The units whose `top_k` strongest activations are furthest above their mean, in units of std."""
    order = np.argsort(-activations, axis=0, kind="stable")[:top_k]
    std = activations.std(0)
    above = np.take_along_axis(activations, order, axis=0).mean(0) - activations.mean(0)
    score = np.divide(above, std, out=np.zeros_like(above), where=std > 0)
    channels = np.argsort(-score, kind="stable")[:units]
    return [UnitActivation(int(c), order[:, c], activations[order[:, c], c]) for c in channels]


@torch.inference_mode()
def compute_unit_heatmaps(
    feature_map: Callable[[Tensor], Tensor], inputs: Tensor, unit: UnitActivation, size: tuple[int, int]
) -> Float[np.ndarray, "top height width"]:
    """The activation map of the unit for each of its examples, at the size of the input, with a maximum of 1."""
    activation_maps = feature_map(inputs[torch.from_numpy(unit.examples)])[:, unit.channel].float()
    large = resize_maps(activation_maps, size).clamp(min=0.0)
    return (large / large.amax((1, 2), keepdim=True).clamp(min=1e-12)).numpy()
