"""The pointing game: localization accuracy on scenes of known boxes, compared with baselines.

A hit is a maximum of the map inside the box of an object that sounds (Zhang et al., Top-down neural attention by
excitation backprop, ECCV 2016, section 4.1, without their margin of pixels). There are two settings:

- single images, each with its own audio;
- two images side by side, with the audio of one. In the synthetic videos the sounding object covers two fifths of the
  image, so that the center is nearly always a hit. Of two images, only the audio shows which one to point at. A map
  that ignores the audio hits at most half of the time.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from comodal.analysis.localization import decompose_margin, find_map_peak, predict_by_position
from comodal.analysis.unit_activations import read_clip_moment
from comodal.data.shards.shard_reader import ShardReader
from comodal.errors import DataError
from comodal.media.image import crop_image_center
from comodal.models.calibration import calibrate_batch_norms
from comodal.models.checkpoint import make_untrained_copy
from comodal.models.l3net.l3net import L3Net
from comodal.tasks.evaluation.metrics import check_finite_scores
from comodal.text_files import read_json_lines

PixelBox = tuple[float, float, float, float]
Pointer = Callable[[Tensor, Tensor], Tensor]  # images and audio to maps


class PointingScene(NamedTuple):
    """A square image, its second of audio, and the objects that sound: their boxes in pixels and their kinds."""

    key: str
    picture: UInt8[np.ndarray, "size size 3"]
    sound: Float[np.ndarray, " samples"]
    boxes: tuple[PixelBox, ...]
    kinds: frozenset[str]


def read_pointing_scenes(shards: Path, truth: Path, model: L3Net, count: int) -> list[PointingScene]:
    """Reads clips of a split whose boxes are known: the frame nearest to a moment of known boxes.

    Args:
        shards: Folder of one split.
        truth: JSON Lines as `worlds.jsonl` of synthetic data: key, height, box_seconds, and objects with kind, sounding
            and boxes (left, top, right, bottom in pixels of the video, one for each of box_seconds).
        model: The model whose input size and sample rate are used.
        count: Maximum number of scenes, from equally spaced clips.

    Raises:
        DataError: No clip of the split is in the truth file, or its format is invalid.
    """
    worlds, opened = read_truth_records(truth), ShardReader(shards)
    known = [clip for clip in range(len(opened)) if opened.key(clip) in worlds]
    if not known:
        raise DataError(f"{truth}: none of its {len(worlds)} videos is in {shards}, which begins with {opened.key(0)}")
    chosen = np.unique(np.linspace(0, len(known) - 1, min(count, len(known))).round().astype(int)).tolist()
    scenes = [read_pointing_scene(opened, known[place], worlds[opened.key(known[place])], model) for place in chosen]
    return [scene for scene in scenes if scene.boxes]


def read_truth_records(truth: Path) -> dict[str, dict]:
    """The records by their keys."""
    worlds = {}
    for number, world in read_json_lines(truth):
        absent = {"key", "height", "box_seconds", "objects"} - set(world)
        if absent:
            raise DataError(f"{truth}, line {number}: no {sorted(absent)[0]!r}; worlds.jsonl of a playground has")
        worlds[world["key"]] = world
    return worlds


def read_pointing_scene(shards: ShardReader, clip: int, world: dict, model: L3Net) -> PointingScene:
    """Reads one clip, with its boxes relative to the center square of the frame."""
    frames, moments = np.array(shards.record(clip)["frame_seconds"]), np.array(world["box_seconds"])
    apart = np.abs(frames[:, None] - moments[None]) + 1e-3 * np.abs(frames[:, None] - frames.mean())
    frame, moment = divmod(int(apart.argmin()), len(moments))
    picture, sound = read_clip_moment(shards, clip, frame, model)
    height, width, _ = picture.shape
    size, scale = min(height, width), height / world["height"]
    sounding = [thing for thing in world["objects"] if thing["sounding"]]
    inside = []
    for thing in sounding:
        edges = np.array(thing["boxes"][moment]) * scale - np.array([(width - size) // 2, (height - size) // 2] * 2)
        left, top, right, bottom = np.clip(edges, 0, size).tolist()
        inside += [(left, top, right, bottom)] if right > left and bottom > top else []
    return PointingScene(
        shards.key(clip), crop_image_center(picture, size), sound, tuple(inside), frozenset(t["kind"] for t in sounding)
    )


def join_scene_pair(heard: PointingScene, other: PointingScene, left: bool) -> PointingScene:
    """Two images side by side with the audio of the first, which is on the left or on the right."""
    pictures = (heard.picture, other.picture) if left else (other.picture, heard.picture)
    shift = 0 if left else other.picture.shape[1]
    boxes = tuple((box[0] + shift, box[1], box[2] + shift, box[3]) for box in heard.boxes)
    return heard._replace(picture=np.concatenate(pictures, 1), boxes=boxes)


def pair_scenes(scenes: Sequence[PointingScene], seed: int) -> list[PointingScene]:
    """Pairs each scene with a random one in which none of its kinds sounds, on a random side, where there is one."""
    rng, pairs = np.random.default_rng(seed), []
    for scene in scenes:
        others = [other for other in scenes if not other.kinds & scene.kinds]
        if others:
            pairs.append(join_scene_pair(scene, others[rng.integers(len(others))], bool(rng.random() < 0.5)))
    return pairs


def is_inside_boxes(point: tuple[float, float], boxes: Sequence[PixelBox]) -> bool:
    """Whether a point is inside any of the boxes."""
    x, y = point
    return any(left <= x <= right and top <= y <= bottom for left, top, right, bottom in boxes)


def compute_pointing_accuracy(pointer: Pointer, scenes: Sequence[PointingScene]) -> float:
    """The fraction of scenes in which the maximum of the map is inside the box of an object that sounds."""
    hits = []
    for scene in scenes:
        image = torch.from_numpy(scene.picture.copy()).permute(2, 0, 1)[None]
        places = pointer(image, torch.from_numpy(scene.sound)[None])[0]
        check_finite_scores(places.numpy(), f"map of {scene.key}")
        hits.append(is_inside_boxes(find_map_peak(places, scene.picture.shape[:2]), scene.boxes))
    return float(np.mean(hits))


def score_center_pointing(scenes: Sequence[PointingScene]) -> float:
    """The same accuracy for the center of the image, as a baseline."""
    middles = [(scene.picture.shape[1] / 2, scene.picture.shape[0] / 2) for scene in scenes]
    return float(np.mean([is_inside_boxes(middle, scene.boxes) for middle, scene in zip(middles, scenes, strict=True)]))


def build_calibrated_control(model: L3Net, scenes: Sequence[PointingScene], seed: int) -> L3Net:
    """A randomly initialized network of the same shape, with batch norms calibrated on the scenes."""
    control = make_untrained_copy(model, seed)
    pictures = torch.from_numpy(np.stack([scene.picture for scene in scenes])).permute(0, 3, 1, 2)
    calibrate_batch_norms(control, control, pictures, torch.from_numpy(np.stack([scene.sound for scene in scenes])))
    return control


def run_pointing_game(model: L3Net, scenes: Sequence[PointingScene], seed: int = 0) -> dict[str, dict[str, float]]:
    """The accuracy of each method, on single images ("alone") and on two images side by side ("beside").

    Args:
        model: The trained network.
        scenes: At least two with different kinds.
        seed: Of the pairs and of the untrained weights.

    Raises:
        ValueError: No two scenes can be paired.
    """
    pairs, untrained = pair_scenes(scenes, seed), build_calibrated_control(model, scenes, seed)
    if not pairs:
        raise ValueError(f"of {len(scenes)} scenes no two have different kinds of objects that sound")
    pointers: dict[str, Pointer] = {
        "trained": lambda image, sound: predict_by_position(model, image, sound).places,
        "contributions": lambda image, sound: decompose_margin(model, image, sound).places,
        "untrained": lambda image, sound: predict_by_position(untrained, image, sound).places,
    }
    found = {
        name: {"alone": compute_pointing_accuracy(way, scenes), "beside": compute_pointing_accuracy(way, pairs)}
        for name, way in pointers.items()
    }
    return found | {"centre": {"alone": score_center_pointing(scenes), "beside": score_center_pointing(pairs)}}
