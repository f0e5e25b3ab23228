"""Extracts features of any layer, for all compared systems, in one pass over the images, into a cache.

A system is the trained network, an untrained network of the same shape whose batch norms are calibrated on unlabeled
training images, or the raw pixels. Each image is read and decoded once for all systems and views.
"""

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import joblib
import numpy as np
import torch
from jaxtyping import Float, Float16, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from comodal.data.output_folder import lock_output_folder
from comodal.errors import DataError, MediaError
from comodal.files import encode_for_hash
from comodal.hardware import Compute
from comodal.models.calibration import calibrate_batch_norms
from comodal.models.checkpoint import compute_weights_checksum, make_untrained_copy
from comodal.models.l3net.fused_vgg import make_fast_l3net
from comodal.models.l3net.l3net import L3Net, L3NetConfig, max_pool_to_grid
from comodal.models.l3net.l3net_classifier import load_any_l3net
from comodal.progress import track_progress
from comodal.tasks.evaluation.class_folders import LabeledFile
from comodal.tasks.evaluation.feature_cache import FeatureFile
from comodal.tasks.evaluation.unreadable_files import exclude_unreadable, try_read
from comodal.tasks.image.image_views import ImageView, ViewConfig, read_resized_image, render_view

Layer = Literal["conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv4_1", "conv4_2"]
Pooling = Literal["max", "mean"]
SystemName = Literal["trained", "untrained", "pixels"]
Squares = UInt8[np.ndarray, "views side side 3"]
DEFAULT_GRID_BY_BLOCK = {
    1: 12,
    2: 8,
    3: 6,
    4: 4,
}  # the finest grid of each block that gives the paper's network under 10,000 features
MAX_CALIBRATION_IMAGES = 256  # center crops
RAW_PIXELS_SIDE = 32  # side of the raw-pixel images: 32 x 32 x 3 = 3072 features
IMAGE_FEATURE_BATCH_SIZE = 256  # squares per batch
FEATURE_CACHE_VERSION = 2  # a change invalidates all cached features


class FeatureLayer(NamedTuple):
    """Where features are read from a network: a layer, and how its map is pooled to a grid."""

    layer: Layer
    pooling: Pooling
    grid: int


class FeatureSystem(NamedTuple):
    """A feature extractor on image squares, the number of its features, and what they depend on."""

    name: SystemName
    embed: Callable[[Squares], Float[Tensor, "views features"]]
    num_features: int
    about: dict[str, Any]


def resolve_grid(config: L3NetConfig, layer: Layer, grid: int | None) -> int:
    """The side of the pooled map: the requested one, or the paper's 4 (finer before conv4), but never finer than the
    map of a training crop.
    """
    block = int(layer[4])
    return min(grid or DEFAULT_GRID_BY_BLOCK[block], config.image_size >> (block - 1))


def read_center_crops(items: Sequence[LabeledFile], view_config: ViewConfig) -> tuple[list[LabeledFile], Squares]:
    """The images that can be read, and the center crop of each.

    Raises:
        DataError: None can be read.
    """

    def read_crop(item: LabeledFile) -> Squares:
        return render_view(
            read_resized_image(item, view_config.short_side), item.name, ImageView("center"), view_config
        )

    results = [try_read(read_crop, item) for item in items]
    readable = [
        (item, squares) for item, squares in zip(items, results, strict=True) if not isinstance(squares, MediaError)
    ]
    if not readable:
        raise DataError(f"none of {len(results)} images to fit can be read; the first: {results[0]}")
    return [item for item, _ in readable], np.concatenate([squares for _, squares in readable])


def build_untrained_image_control(trained: L3Net, squares: Squares, seed: int) -> L3Net:
    """A network of the same shape with initial weights; its image tower's batch norms are calibrated on the images."""
    pixels = torch.from_numpy(squares).permute(0, 3, 1, 2)
    control = make_untrained_copy(trained, seed)
    calibrate_batch_norms(control.image_tower, control.compute_image_map, pixels)
    return control


def describe_control(unlabeled: Sequence[LabeledFile], problems: Collection[int]) -> str:
    """A description of the untrained network for the card; unreadable images are not counted."""
    count = len(exclude_unreadable(unlabeled[:MAX_CALIBRATION_IMAGES], problems))
    return f"batch norms calibrated on {count} images of the training part, without labels"


def build_feature_system(
    name: SystemName,
    model: Path,
    feature_layer: FeatureLayer,
    unlabeled: Sequence[LabeledFile],
    view_config: ViewConfig,
    seed: int,
    compute: Compute,
) -> FeatureSystem:
    """Builds a system by name.

    Args:
        name: Name of the system.
        model: Run or model folder.
        feature_layer: Layer and pooling.
        unlabeled: Training images in random order, to calibrate the batch norms of the untrained network.
        view_config: The configuration of the views.
        seed: Seed of the untrained network's weights.
        compute: Device and precision.
    """
    if name == "pixels":
        return FeatureSystem(name, flatten_squares, RAW_PIXELS_SIDE * RAW_PIXELS_SIDE * 3, {"pixels": RAW_PIXELS_SIDE})
    trained = load_any_l3net(model)
    network, calibrated = trained, {}
    if name == "untrained":  # calibrated weights differ in their last bits between machines: not a cache key
        calibration_items, squares = read_center_crops(unlabeled[:MAX_CALIBRATION_IMAGES], view_config)
        calibrated = {"calibration_images": hash_image_names(calibration_items), "seed": seed}
        network = build_untrained_image_control(trained, squares, seed)
    network = network.to(compute.device)
    fast_network = make_fast_l3net(network, compute.dtype)

    def embed(squares: Squares) -> Float[Tensor, "views features"]:
        pixels = torch.from_numpy(squares).permute(0, 3, 1, 2)
        maps = (
            fast_network.compute_image_map(part.to(compute.device), feature_layer.layer)
            for part in pixels.split(compute.batch_size)
        )
        return torch.cat([pool_feature_map(part, feature_layer).float().cpu() for part in maps])

    filters = trained.config.width * 2 ** (int(feature_layer.layer[4]) - 1)
    weights = f"{compute_weights_checksum(trained.state_dict()):08x}" if name == "trained" else "initial"
    about = {"weights": weights, "network": asdict(trained.config), **feature_layer._asdict(), **calibrated}
    return FeatureSystem(name, embed, filters * feature_layer.grid**2, about)


def hash_image_names(items: Sequence[LabeledFile]) -> str:
    """A hash of the names of images in their order."""
    return hashlib.sha256(encode_for_hash("\n".join(item.name for item in items))).hexdigest()


def pool_feature_map(
    feature_map: Float[Tensor, "batch channels rows columns"], feature_layer: FeatureLayer
) -> Float[Tensor, "batch features"]:
    """The maximum or mean in each cell of the grid."""
    if feature_layer.pooling == "max":
        return max_pool_to_grid(feature_map, (feature_layer.grid, feature_layer.grid))
    return F.adaptive_avg_pool2d(feature_map, feature_layer.grid).permute(0, 2, 3, 1).flatten(1)


def flatten_squares(squares: Squares) -> Float[Tensor, "views features"]:
    """Each square as one row of raw pixels, the baseline."""
    return torch.stack([downsample_pixels(square) for square in squares])


def downsample_pixels(square: UInt8[np.ndarray, "size size 3"]) -> Float[Tensor, " features"]:
    """An image of 32 x 32 pixels as one row."""
    small = Image.fromarray(square).resize((RAW_PIXELS_SIDE, RAW_PIXELS_SIDE), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(small, dtype=np.float32).reshape(-1) / 255.0)


def stamp_image_file(item: LabeledFile) -> str:
    """Size and modification time of an image file, to detect changes; "" for a missing file."""
    try:
        status = item.path.stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def compute_image_features(
    items: Sequence[LabeledFile], views: Sequence[ImageView], systems: Sequence[FeatureSystem],
    view_config: ViewConfig, cache: Path,
    workers: int,
) -> tuple[dict[SystemName, list[Float16[np.ndarray, "images views features"]]], dict[int, MediaError]]:  # fmt: skip
    """The features of images for each system in each view, and the images that cannot be read: their rows are zeros.

    Features in the cache are not computed again.
    """
    common = {"images": hash_image_names(items), "version": FEATURE_CACHE_VERSION}
    stamps = [stamp_image_file(item) for item in items]
    files: dict[tuple[SystemName, ImageView], FeatureFile] = {}
    with lock_output_folder(cache):
        for system in systems:
            for view in views:
                random_settings = {"augmentation": asdict(view_config.augmentation), "seed": view_config.seed}
                view_settings = {
                    "view": view._asdict(),
                    "crop": view_config.crop,
                    **(random_settings if view.kind == "random" else {}),
                }
                shape = (len(items), view.num_squares, system.num_features)
                files[system.name, view] = FeatureFile(
                    cache, {**common, **system.about, **view_settings}, shape, stamps
                )
        try:
            fill_feature_cache(items, views, systems, view_config, files, workers)
        finally:  # also records the progress of an interrupted pass
            for file in files.values():
                file.save()
    features = {system.name: [files[system.name, view].open_rows() for view in views] for system in systems}
    problems = {index: reason for file in files.values() for index, reason in file.problems.items()}
    return features, {index: MediaError(items[index].path, *reason) for index, reason in sorted(problems.items())}


def fill_feature_cache(
    items: Sequence[LabeledFile], views: Sequence[ImageView], systems: Sequence[FeatureSystem], view_config: ViewConfig,
    files: dict[tuple[SystemName, ImageView], FeatureFile], workers: int,
) -> None:  # fmt: skip
    """Computes missing features, starting with the first image that any system lacks."""
    first_index = min(file.num_done for file in files.values())
    if first_index == len(items):
        return

    def read_views(item: LabeledFile) -> list[Squares]:
        image = read_resized_image(item, view_config.short_side)
        return [render_view(image, item.name, view, view_config) for view in views]

    parallel = joblib.Parallel(n_jobs=workers, prefer="threads", return_as="generator")
    results = parallel(joblib.delayed(try_read)(read_views, item) for item in items[first_index:])
    size = max(1, IMAGE_FEATURE_BATCH_SIZE // sum(view.num_squares for view in views))
    starts = range(first_index, len(items), size)
    for start in track_progress(starts, "embedding images"):
        stop = min(start + size, len(items))
        pending = [next(results) for _ in range(start, stop)]
        for view_index, view in enumerate(views):
            for system in systems:
                file = files[system.name, view]
                missing = pending[file.num_done - start :] if file.num_done < stop else []
                if missing:
                    view_squares = [
                        None if isinstance(squares, MediaError) else squares[view_index] for squares in missing
                    ]
                    problems = {n: squares for n, squares in enumerate(missing) if isinstance(squares, MediaError)}
                    file.append(embed_images(view_squares, system, view.num_squares), problems)


def embed_images(
    image_squares: Sequence[Squares | None], system: FeatureSystem, num_squares: int
) -> Float[Tensor, "images views features"]:
    """The features of images; zeros for those that are missing."""
    rows = torch.zeros(len(image_squares), num_squares, system.num_features)
    readable = [squares for squares in image_squares if squares is not None]
    if readable:
        is_readable = torch.tensor([squares is not None for squares in image_squares])
        rows[is_readable] = system.embed(np.concatenate(readable)).unflatten(0, (len(readable), num_squares))
    return rows
