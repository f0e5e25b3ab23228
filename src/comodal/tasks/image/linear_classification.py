"""Linear classification of images from frozen features (L3-Net, section 4.3): ImageNet, or any ImageFolder tree.

The default is the paper's protocol. The map of the last convolution on the center crop, at the scale of training, is
max-pooled to 4 x 4 (8192 features in the paper's network) and z-scored. C of the linear layer is chosen within the
training set. Other layers, poolings, crops and random augmentation are options. The baselines are an untrained network
of the same shape and raw pixels, under the same protocol. Features are computed in one pass and cached on disk. The
layer is fitted by L-BFGS where they fit into memory, else by mini-batches from the cache.
"""

import hashlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float16

from comodal.console import print_line
from comodal.data.shards.clip_dataset import Augmentation
from comodal.errors import MediaError
from comodal.files import encode_for_hash
from comodal.flat_parameters import flatten_parameters
from comodal.hardware import ComputeOptions
from comodal.models.l3net.l3net_classifier import load_any_l3net
from comodal.tasks.evaluation.class_folders import LabeledFile
from comodal.tasks.evaluation.linear_probe import Classifier
from comodal.tasks.evaluation.linear_probe_sgd import SGDConfig
from comodal.tasks.evaluation.results_card import format_exclusions
from comodal.tasks.evaluation.unreadable_files import (
    check_readable_classes,
    count_exclusions,
    exclude_unreadable,
    mask_readable,
)
from comodal.tasks.image.image_features import (
    FeatureLayer,
    Layer,
    Pooling,
    SystemName,
    build_feature_system,
    compute_image_features,
    describe_control,
    resolve_grid,
)
from comodal.tasks.image.image_probe import ImageProbeResult, ProbeFit, ProbeSolver, classify_images
from comodal.tasks.image.image_results import ImageResults
from comodal.tasks.image.image_views import CropMode, ImageView, ViewConfig
from comodal.tasks.image.imagenet_files import LabeledImages, read_labeled_images
from comodal.training.run_log import report_unreadable

IMAGE_SYSTEMS: tuple[SystemName, ...] = ("trained", "untrained", "pixels")


@dataclass(frozen=True)
class FeatureOptions:
    """The layer of the network whose features are classified.

    Args:
        layer: layer whose map is read, before the pooling that follows it.
        pooling: maximum or mean in each cell of the grid.
        grid: side of the pooled map; by default 4 for conv4 (the paper: 8192 features), 6, 8 and 12 before it.
    """

    layer: Layer = "conv4_2"
    pooling: Pooling = "max"
    grid: int | None = None


@dataclass(frozen=True)
class ViewOptions:
    """The views of the images.

    Args:
        views: number of views of each training image: the first is the center crop, the others are augmented at
            random as in training; each is cached.
        horizontal_flip: flip half of the augmented views horizontally. Not for digits and letters.
        crops: "center" for the center crop of a test image (the paper), "ten" for the mean prediction over ten crops.
    """

    views: int = 1
    horizontal_flip: bool = True
    crops: CropMode = "center"


@dataclass(frozen=True)
class ImageProbeOptions:
    """The classifier of the features.

    Args:
        classifier: "logistic" (one softmax) or "svm" (linear, one-vs-all).
        solver: "lbfgs" over all features at once, "sgd" or "adam" over mini-batches from disk; "auto" takes lbfgs
            where the training features take less than a gigabyte, else adam.
        C: C, the inverse regularization strength; by default chosen on a fifth of the training set.
        epochs: number of epochs of sgd and adam.
        batch_size: batch size of sgd and adam.
    """

    classifier: Classifier = "logistic"
    solver: ProbeSolver = "auto"
    C: float | None = None
    epochs: int = 20
    batch_size: int = 256

    def build_fit(self, device: torch.device, seed: int) -> ProbeFit:
        """The fit with these options; mini-batches are drawn by the seed."""
        sgd = SGDConfig("adam", self.epochs, self.batch_size, device, seed)
        return ProbeFit(self.classifier, self.solver, self.C, sgd)


@dataclass(frozen=True)
class ImageEvaluationOptions(ComputeOptions):
    """Where features are computed and stored, and where results are written.

    Args:
        cache: folder of the feature cache, so that features are reused and an interrupted command resumes. About 16 KB
            for each image, view and system. Without it, features are computed again.
        out: folder for results.json, predictions.csv, classes.csv, confusion.png and the results card; nothing is
            written without it.
        seed: seed of the untrained network's weights, the random views and the order of mini-batches.
        workers: threads that read images.
    """

    cache: Path | None = None
    out: Path | None = None
    seed: int = 0
    workers: int = 2


PAPER_LAYER, CENTER_VIEW = FeatureOptions(), ViewOptions()
LOGISTIC_PROBE, NO_CACHE = ImageProbeOptions(), ImageEvaluationOptions()


@flatten_parameters
def evaluate_images(
    model: Path,
    data: Path,
    *,
    systems: Sequence[SystemName] = IMAGE_SYSTEMS,
    features: FeatureOptions = PAPER_LAYER,
    view_options: ViewOptions = CENTER_VIEW,
    probe: ImageProbeOptions = LOGISTIC_PROBE,
    options: ImageEvaluationOptions = NO_CACHE,
) -> dict[str, float]:
    """Classifies images from frozen features; baselines are an untrained network and raw pixels.

    The paper reports for ImageNet: trained 0.323, random weights 0.129.

    Args:
        model: run folder or model folder; may be fine-tuned.
        data: ImageNet in the layout of ILSVRC or Kaggle; or train/CLASS/IMAGE and test/ (or val/, validation/)
            CLASS/IMAGE; or CLASS/IMAGE alone, of which a fifth is the test by a hash of the file's name.
        systems: the systems to compare.
        features: The layer that is read.
        view_options: The views of the images.
        probe: The classifier of the features.
        options: Where features are computed and stored, and where results are written.

    Returns:
        Metrics: vision.trained, vision.untrained, vision.pixels, each with its interval and, for more than five
        classes, the top-5 accuracy (.top5).

    Raises:
        DataError: the folder has another layout, no image of a class can be read, or the cache is damaged.

    Examples:
        comodal evaluate images --model RUN --data images/ --out results/images
        comodal evaluate images --model RUN --data imagenet/ --cache features/ --views 4 --out results/imagenet
    """
    check_probe_options(systems, features, view_options, probe)
    start_seconds = time.perf_counter()
    config, compute = load_any_l3net(model).config, options.resolve()
    feature_layer = FeatureLayer(features.layer, features.pooling, resolve_grid(config, features.layer, features.grid))
    dataset = read_labeled_images(data)
    train_items, test_items = split_train_test(dataset)
    print_line(
        f"{data}: {len(train_items):,} images to fit, {len(test_items):,} to test{format_exclusions(dataset.excluded)}"
    )
    view_config = ViewConfig(
        config.image_size, Augmentation(horizontal_flip=view_options.horizontal_flip), options.seed
    )
    feature_systems = [
        build_feature_system(name, model, feature_layer, train_items, view_config, options.seed, compute)
        for name in dict.fromkeys(systems)
    ]
    train_views = [ImageView("center"), *(ImageView("random", index) for index in range(1, view_options.views))]
    compute_features = partial(
        compute_image_features, systems=feature_systems, view_config=view_config, workers=options.workers
    )
    with open_feature_cache(options.cache) as cache:
        train, test = (
            ImagePart(items, *compute_features(items, views, cache=cache / name))
            for name, items, views in (
                ("train", train_items, train_views),
                ("test", test_items, [ImageView(view_options.crops)]),
            )
        )
        check_readable_images(data, train, test)
        probe_results = classify_test_images(train, test, probe.build_fit(compute.device, options.seed))
    settings = {**feature_layer._asdict(), **asdict(view_options), "classifier": probe.classifier}
    settings |= {"epochs": probe.epochs, "batch_size": probe.batch_size}
    if "untrained" in systems:
        settings["untrained network"] = describe_control(train_items, train.problems)
    problems = [*train.problems.values(), *test.problems.values()]
    report_unreadable(problems)
    dataset = dataset._replace(
        items=[*train.list_readable(), *test.list_readable()], excluded=count_exclusions(dataset.excluded, problems)
    )
    results = ImageResults(
        data, str(model), dataset, test.list_readable(), len(test_items), probe_results, settings, options.seed
    )
    metrics = results.compute_metrics() | {"vision.seconds": time.perf_counter() - start_seconds}
    results.report(metrics, options.out)
    return metrics


def check_probe_options(
    systems: Sequence[SystemName], features: FeatureOptions, views: ViewOptions, probe: ImageProbeOptions
) -> None:
    """Raises ValueError if a number is out of range, or there is nothing to compare."""
    counts = (views.views, probe.epochs, probe.batch_size, features.grid or 1)
    if min(counts) < 1 or not systems or (probe.C is not None and probe.C <= 0):
        raise ValueError("views, epochs, batch_size and grid must be at least 1, C above 0, and systems not empty")


@contextmanager
def open_feature_cache(folder: Path | None) -> Iterator[Path]:
    """The folder of the feature cache; by default a temporary one."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="comodal-features-") as temporary:
        yield Path(temporary)


class ImagePart(NamedTuple):
    """The training or the test images, with their features by system and those that cannot be read."""

    items: Sequence[LabeledFile]
    features: Mapping[SystemName, list[Float16[np.ndarray, "images views features"]]]
    problems: Mapping[int, MediaError]

    def mask_readable(self) -> Bool[np.ndarray, " images"]:
        return mask_readable(len(self.items), self.problems)

    def list_readable(self) -> list[LabeledFile]:
        return exclude_unreadable(self.items, self.problems)


def classify_test_images(train: ImagePart, test: ImagePart, fit: ProbeFit) -> dict[SystemName, ImageProbeResult]:
    """The predictions of each system for the readable test images."""
    results = {
        name: classify_images(views, test.features[name][0], train.items, train.mask_readable(), fit)
        for name, views in train.features.items()
    }
    is_scored = test.mask_readable()
    return {name: one._replace(top_classes=one.top_classes[is_scored]) for name, one in results.items()}


def check_readable_images(data: Path, train: ImagePart, test: ImagePart) -> None:
    """Checks that every class has a readable training image, and a readable test image if it is tested.

    Raises:
        DataError: A class has none.
    """
    for name, part in (("to fit", train), ("to test", test)):
        check_readable_classes(data, name, [item.category for item in part.items], part.problems)


def split_train_test(dataset: LabeledImages) -> tuple[list[LabeledFile], list[LabeledFile]]:
    """The training images in random order (so that blocks mix classes), and the test images."""
    train_items = [item for item in dataset.items if not item.is_test]
    train_items.sort(key=lambda item: hashlib.sha256(encode_for_hash(item.name)).digest())
    return train_items, [item for item in dataset.items if item.is_test]
