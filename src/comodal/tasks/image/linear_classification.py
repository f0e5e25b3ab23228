"""Linear classification of images from frozen features (L3-Net, section 4.3): ImageNet, or any ImageFolder tree.

The default is the paper's protocol: the map of the last convolution on the center crop at the scale of training,
max-pooled to 4 x 4 (8192 features in the paper's network), z-scored, and one linear layer whose C is chosen within the
training set. Other layers, poolings, crops and random augmentation are options. The baselines are an untrained network
of the same shape and raw pixels, under the same protocol. Features are computed in one pass and cached on disk. The
layer is fitted by L-BFGS where they fit into memory, else by mini-batches from the cache.
"""

import hashlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

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
    report_unreadable,
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
from comodal.tasks.image.image_probe import ProbeFit, ProbeSolver, classify_images
from comodal.tasks.image.image_results import ImageResults
from comodal.tasks.image.image_views import CropMode, ImageView, ViewConfig
from comodal.tasks.image.imagenet_files import LabeledImages, read_labeled_images

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
        mirror: flip half of the augmented views horizontally. Not for digits and letters.
        crops: "middle" for the center crop of a test image (the paper), "ten" for the mean prediction over ten crops.
    """

    views: int = 1
    mirror: bool = True
    crops: CropMode = "middle"


@dataclass(frozen=True)
class ImageProbeOptions:
    """The classifier of the features.

    Args:
        classifier: "logistic" (one softmax) or "svm" (linear, one-vs-all).
        solver: "lbfgs" over all features at once, "sgd" or "adam" over mini-batches from disk; "auto" takes lbfgs
            where the training features take less than a gigabyte, else adam.
        strength: C, the inverse regularization strength; by default chosen on a fifth of the training set.
        epochs: number of epochs of sgd and adam.
        batch_size: batch size of sgd and adam.
    """

    classifier: Classifier = "logistic"
    solver: ProbeSolver = "auto"
    strength: float | None = None
    epochs: int = 20
    batch_size: int = 256

    def build_fit(self, device: torch.device, seed: int) -> ProbeFit:
        """The fit with these options; mini-batches are drawn by the seed."""
        sgd = SGDConfig("adam", self.epochs, self.batch_size, device, seed)
        return ProbeFit(self.classifier, self.solver, self.strength, sgd)


@dataclass(frozen=True)
class ImageEvaluationOptions(ComputeOptions):
    """Where features are computed and stored, and where results are written.

    Args:
        cache: folder of the feature cache, so that features are reused and an interrupted command resumes. About 16 KB
            for each image, view and system. Without it, features are computed again.
        out: folder for results.json, answers.csv, classes.csv, confusion.png and the results card; nothing is written
            without it.
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
    shown: ViewOptions = CENTER_VIEW,
    probe: ImageProbeOptions = LOGISTIC_PROBE,
    running: ImageEvaluationOptions = NO_CACHE,
) -> dict[str, float]:
    """Classifies images from frozen features; baselines are an untrained network and raw pixels.

    The paper reports for ImageNet: trained 0.323, random weights 0.129.

    Args:
        model: run folder or model folder; may be fine-tuned.
        data: ImageNet in the layout of ILSVRC or Kaggle; or train/CLASS/IMAGE and test/ (or val/, validation/)
            CLASS/IMAGE; or CLASS/IMAGE alone, of which a fifth is the test by a hash of the file's name.
        systems: the systems to compare.
        features: The layer that is read.
        shown: The views of the images.
        probe: The classifier of the features.
        running: Where features are computed and stored, and where results are written.

    Returns:
        Flat numbers: vision.trained, vision.untrained, vision.pixels, each with its interval and, for more than five
        classes, the top-5 accuracy (.top5).

    Raises:
        DataError: the folder has another layout, no image of a class can be read, or the cache is damaged.

    Examples:
        comodal evaluate images --model RUN --data images/ --out results/images
        comodal evaluate images --model RUN --data imagenet/ --cache features/ --views 4 --out results/imagenet
    """
    counts, strength = (shown.views, probe.epochs, probe.batch_size, features.grid or 1), probe.strength
    if min(counts) < 1 or not systems or (strength is not None and strength <= 0):
        raise ValueError("views, epochs, batch_size and grid are at least 1, strength above 0, and a system is needed")
    started = time.perf_counter()
    config = load_any_l3net(model).config
    where = FeatureLayer(features.layer, features.pooling, resolve_grid(config, features.layer, features.grid))
    compute, workers = running.resolve(), running.workers
    pictures = read_labeled_images(data)
    train, test = split_train_test(pictures)
    print_line(f"{data}: {len(train):,} pictures to fit, {len(test):,} to test{format_exclusions(pictures.left_out)}")
    showing = ViewConfig(config.image_size, Augmentation(mirror=shown.mirror), running.seed)
    compared = [
        build_feature_system(name, model, where, train, showing, running.seed, compute)
        for name in dict.fromkeys(systems)
    ]
    seen = [ImageView("middle"), *(ImageView("random", number) for number in range(1, shown.views))]
    fit = probe.build_fit(compute.device, running.seed)
    with ExitStack() as stack:
        kept = running.cache or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="comodal-features-")))
        fitted, lost = compute_image_features(train, seen, compared, showing, kept / "train", workers)
        tested, failed = compute_image_features(
            test, [ImageView(shown.crops)], compared, showing, kept / "test", workers
        )
        check_readable_images(data, (train, lost), (test, failed))
        usable, scored = mask_readable(len(train), lost), mask_readable(len(test), failed)
        found = {name: classify_images(fitted[name], tested[name][0], train, usable, fit) for name in fitted}
    found = {name: one._replace(best=one.best[scored]) for name, one in found.items()}
    settings = {**where._asdict(), **asdict(shown), "classifier": probe.classifier}
    settings |= {"epochs": probe.epochs, "batch_size": probe.batch_size}
    if "untrained" in systems:
        settings["untrained network"] = describe_control(train, lost)
    problems = [*lost.values(), *failed.values()]
    report_unreadable(problems)
    left = exclude_unreadable(train, lost), exclude_unreadable(test, failed)
    pictures = pictures._replace(items=[*left[0], *left[1]], left_out=count_exclusions(pictures.left_out, problems))
    results = ImageResults(data, str(model), pictures, left[1], len(test), found, settings, running.seed)
    numbers = results.numbers() | {"vision.seconds": time.perf_counter() - started}
    results.tell(numbers, running.out)
    return numbers


def check_readable_images(data: Path, *parts: tuple[Sequence[LabeledFile], Mapping[int, MediaError]]) -> None:
    """Checks that every class has a readable training image, and a readable test image if it is tested.

    Raises:
        DataError: A class has none.
    """
    for side, (items, problems) in zip(("to fit", "to test"), parts, strict=True):
        check_readable_classes(data, side, [item.category for item in items], problems)


def split_train_test(pictures: LabeledImages) -> tuple[list[LabeledFile], list[LabeledFile]]:
    """The training images in random order (so that blocks mix classes), and the test images."""
    train = [item for item in pictures.items if not item.test]
    train.sort(key=lambda item: hashlib.sha256(encode_for_hash(item.name)).digest())
    return train, [item for item in pictures.items if item.test]
