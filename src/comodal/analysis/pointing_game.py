"""The pointing game: localization accuracy on scenes of known boxes, compared with baselines.

A hit is a maximum of the map inside the box of an object that sounds. It is defined by Zhang et al. (Top-down neural
attention by excitation backprop, ECCV 2016, section 4.1); their margin of pixels is left out. There are two settings:

- single images, each with its own audio;
- two images side by side, with the audio of one. In the synthetic videos the sounding object covers two fifths of the
  image, so that the center is nearly always a hit. Of two images, only the audio shows which one to point at. A map
  that ignores the audio hits at most half of the time.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from comodal.analysis.localization import decompose_margin, find_map_peak, predict_by_position
from comodal.analysis.unit_activations import read_clip_example
from comodal.data.shards.shard_reader import ShardReader
from comodal.errors import DataError
from comodal.media.image import crop_image_center
from comodal.models.ave_net.ave_net import AVENet
from comodal.models.calibration import calibrate_batch_norms
from comodal.models.checkpoint import make_untrained_copy
from comodal.models.l3net.l3net import L3Net
from comodal.tasks.evaluation.metrics import check_finite_scores
from comodal.text_files import read_json_lines

PixelBox = tuple[float, float, float, float]
NetworkType = TypeVar("NetworkType", bound=L3Net | AVENet)
Pointer = Callable[[Tensor, Tensor], Tensor]  # images and audio to maps


class PointingScene(NamedTuple):
    """A square image, its second of audio, and the objects that sound: their boxes in pixels and their kinds."""

    key: str
    image: UInt8[np.ndarray, "size size 3"]
    audio: Float[np.ndarray, " samples"]
    boxes: tuple[PixelBox, ...]
    kinds: frozenset[str]


def read_pointing_scenes(shards: Path, truth: Path, model: L3Net | AVENet, count: int) -> list[PointingScene]:
    """Reads clips of a split whose boxes are known: the frame nearest to a time of known boxes.

    Args:
        shards: Folder of one split.
        truth: JSON Lines as `worlds.jsonl` of synthetic data: key, height, box_seconds, and objects with kind, sounding
            and boxes (left, top, right, bottom in pixels of the video, one for each of box_seconds).
        model: The model whose input size and sample rate are used.
        count: Maximum number of scenes, from equally spaced clips.

    Raises:
        DataError: No clip of the split is in the truth file, or its format is invalid.
    """
    records, reader = read_truth_records(truth), ShardReader(shards)
    recorded_clips = [clip for clip in range(len(reader)) if reader.get_key(clip) in records]
    if not recorded_clips:
        raise DataError(f"{truth}: none of its {len(records)} videos is in {shards}; its first is {reader.get_key(0)}")
    indices = np.unique(
        np.linspace(0, len(recorded_clips) - 1, min(count, len(recorded_clips))).round().astype(int)
    ).tolist()
    scenes = [
        read_pointing_scene(reader, recorded_clips[index], records[reader.get_key(recorded_clips[index])], model)
        for index in indices
    ]
    return [scene for scene in scenes if scene.boxes]


def read_truth_records(truth: Path) -> dict[str, dict]:
    """The records by their keys."""
    records = {}
    for line_number, record in read_json_lines(truth):
        absent = {"key", "height", "box_seconds", "objects"} - set(record)
        if absent:
            raise DataError(f"{truth}, line {line_number}: no {sorted(absent)[0]!r}; expected worlds.jsonl")
        records[record["key"]] = record
    return records


def read_pointing_scene(shards: ShardReader, clip: int, truth_record: dict, model: L3Net | AVENet) -> PointingScene:
    """Reads one clip, with its boxes relative to the center square of the frame."""
    frames, times = np.array(shards.read_record(clip)["frame_seconds"]), np.array(truth_record["box_seconds"])
    distances = np.abs(frames[:, None] - times[None]) + 1e-3 * np.abs(frames[:, None] - frames.mean())
    frame, time = divmod(int(distances.argmin()), len(times))
    image, audio = read_clip_example(shards, clip, frame, model)
    height, width, _ = image.shape
    size, scale = min(height, width), height / truth_record["height"]
    sounding = [scene_object for scene_object in truth_record["objects"] if scene_object["sounding"]]
    boxes = []
    for scene_object in sounding:
        edges = np.array(scene_object["boxes"][time]) * scale - np.array(
            [(width - size) // 2, (height - size) // 2] * 2
        )
        left, top, right, bottom = np.clip(edges, 0, size).tolist()
        boxes += [(left, top, right, bottom)] if right > left and bottom > top else []
    return PointingScene(
        shards.get_key(clip),
        crop_image_center(image, size),
        audio,
        tuple(boxes),
        frozenset(t["kind"] for t in sounding),
    )


def concatenate_scenes(sounding_scene: PointingScene, silent_scene: PointingScene, is_left: bool) -> PointingScene:
    """Two images side by side with the audio of the first, which is on the left or on the right."""
    images = (sounding_scene.image, silent_scene.image) if is_left else (silent_scene.image, sounding_scene.image)
    shift = 0 if is_left else silent_scene.image.shape[1]
    boxes = tuple((box[0] + shift, box[1], box[2] + shift, box[3]) for box in sounding_scene.boxes)
    return sounding_scene._replace(image=np.concatenate(images, 1), boxes=boxes)


def pair_scenes(scenes: Sequence[PointingScene], seed: int) -> list[PointingScene]:
    """Pairs each scene with a random one in which none of its kinds sounds, on a random side, where there is one."""
    rng, pairs = np.random.default_rng(seed), []
    for scene in scenes:
        candidates = [candidate for candidate in scenes if not candidate.kinds & scene.kinds]
        if candidates:
            pairs.append(concatenate_scenes(scene, candidates[rng.integers(len(candidates))], bool(rng.random() < 0.5)))
    return pairs


def is_inside_boxes(point: tuple[float, float], boxes: Sequence[PixelBox]) -> bool:
    """Whether a point is inside any of the boxes."""
    x, y = point
    return any(left <= x <= right and top <= y <= bottom for left, top, right, bottom in boxes)


def compute_pointing_accuracy(pointer: Pointer, scenes: Sequence[PointingScene]) -> float:
    """The fraction of scenes in which the maximum of the map is inside the box of an object that sounds."""
    hits = []
    for scene in scenes:
        image = torch.from_numpy(scene.image.copy()).permute(2, 0, 1)[None]
        position_map = pointer(image, torch.from_numpy(scene.audio)[None])[0]
        check_finite_scores(position_map.numpy(), f"map of {scene.key}")
        hits.append(is_inside_boxes(find_map_peak(position_map, scene.image.shape[:2]), scene.boxes))
    return float(np.mean(hits))


def score_center_pointing(scenes: Sequence[PointingScene]) -> float:
    """The same accuracy for the center of the image, as a baseline."""
    centers = [(scene.image.shape[1] / 2, scene.image.shape[0] / 2) for scene in scenes]
    return float(np.mean([is_inside_boxes(center, scene.boxes) for center, scene in zip(centers, scenes, strict=True)]))


def build_calibrated_control(model: NetworkType, scenes: Sequence[PointingScene], seed: int) -> NetworkType:
    """A randomly initialized network of the same shape, with batch norms calibrated on the scenes."""
    control = make_untrained_copy(model, seed)
    images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)
    calibrate_batch_norms(control, control, images, torch.from_numpy(np.stack([scene.audio for scene in scenes])))
    return control


def run_pointing_game(
    model: L3Net | AVENet, scenes: Sequence[PointingScene], seed: int = 0
) -> dict[str, dict[str, float]]:
    """The accuracy of each method, on single images ("alone") and on two images side by side ("side_by_side").

    Args:
        model: The trained network. The contributions of positions are those of an L3-Net alone.
        scenes: At least two with different kinds.
        seed: Of the pairs and of the untrained weights.

    Raises:
        ValueError: No two scenes can be paired.
    """
    pairs, untrained = pair_scenes(scenes, seed), build_calibrated_control(model, scenes, seed)
    if not pairs:
        raise ValueError(f"of {len(scenes)} scenes, no two have sounding objects of different kinds")
    pointers: dict[str, Pointer] = {
        "trained": lambda image, audio: predict_by_position(model, image, audio).position_margins
    }
    if isinstance(model, L3Net):
        l3net = model
        pointers["contributions"] = lambda image, audio: decompose_margin(l3net, image, audio).positions
    pointers["untrained"] = lambda image, audio: predict_by_position(untrained, image, audio).position_margins
    accuracies = {
        name: {
            "alone": compute_pointing_accuracy(pointer, scenes),
            "side_by_side": compute_pointing_accuracy(pointer, pairs),
        }
        for name, pointer in pointers.items()
    }
    return accuracies | {
        "center": {"alone": score_center_pointing(scenes), "side_by_side": score_center_pointing(pairs)}
    }
