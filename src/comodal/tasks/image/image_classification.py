"""Image classification by an L3-Net that is fine-tuned end to end (`linear_classification.py` has the linear probe).

The data are ImageNet's official files, or any ImageFolder tree. Training uses random crops, horizontal flips and color
jitter, as pretraining does. A test image is classified from its center crop, or from ten crops.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from comodal.console import print_line
from comodal.data.shards.clip_dataset import Augmentation
from comodal.flat_parameters import flatten_parameters
from comodal.media.image import crop_image_center
from comodal.models.l3net.l3net_classifier import load_l3_classifier
from comodal.tasks.evaluation.class_folders import LabeledFile
from comodal.tasks.evaluation.classification_results import ClassProbabilities
from comodal.tasks.evaluation.l3net_fine_tuning import (
    DEFAULT_L3_EVALUATION,
    L3EvaluationOptions,
    L3FineTuneConfig,
    build_l3net_run,
    check_item_classes,
    check_readable_tests,
    load_initial_l3net,
    predict_class_probabilities,
    read_model_classes,
)
from comodal.tasks.evaluation.results_card import format_exclusions
from comodal.tasks.evaluation.unreadable_files import count_exclusions, exclude_unreadable
from comodal.tasks.image.image_views import CropMode, ViewConfig, augment_image, cut_ten_crops, read_resized_image
from comodal.tasks.image.imagenet_files import read_labeled_images
from comodal.training.recipe_run import Run


@dataclass(frozen=True)
class ImageReader:
    """Reads a square of the training crop's size: a random augmented crop in training, the center crop otherwise."""

    view_config: ViewConfig

    def __call__(self, item: LabeledFile, rng: np.random.Generator | None, /) -> np.ndarray:
        image = read_resized_image(item, self.view_config.short_side)
        return (
            crop_image_center(image, self.view_config.crop)
            if rng is None
            else augment_image(image, self.view_config, rng)
        )


@dataclass(frozen=True)
class ImageViews:
    """The center crop, or ten crops."""

    view_config: ViewConfig
    crops: CropMode

    def __call__(self, item: LabeledFile, /) -> np.ndarray:
        image = read_resized_image(item, self.view_config.short_side)
        size = self.view_config.crop
        return cut_ten_crops(image, size) if self.crops == "ten" else crop_image_center(image, size)[None]


IMAGE_FINE_TUNING = L3FineTuneConfig(batch_size=64)


@flatten_parameters
def recipe(
    model: Path,
    data: Path,
    horizontal_flip: bool = True,
    brightness_jitter: float = 32 / 255,
    saturation_jitter: float = 0.5,
    fine_tune: L3FineTuneConfig = IMAGE_FINE_TUNING,
) -> Run:
    """Fine-tunes an L3-Net end to end for image classification.

    Args:
        model: Run or model folder of an L3-Net, or of a fine-tuned one.
        data: ImageNet in the layout of ILSVRC or Kaggle; or train/CLASS/IMAGE and test/ (or val/, validation/)
            CLASS/IMAGE; or CLASS/IMAGE alone, of which a fifth is the test by a hash of the file's name.
        horizontal_flip: Flip half of the images horizontally. Not for digits and letters.
        brightness_jitter: Brightness jitter: the largest change, where 1 is the range from black to white.
        saturation_jitter: Saturation jitter: the saturation changes by up to this fraction.
        fine_tune: The options of all fine-tuning recipes.

    Examples:
        comodal train image_classes --model RUN --data images/ --out runs/images
        comodal train image_classes --model RUN --data images/ --start-from scratch --out runs/scratch
    """
    network, items = load_initial_l3net(model, fine_tune), read_labeled_images(data).items
    view_config = ViewConfig(
        network.config.image_size, Augmentation(horizontal_flip, brightness_jitter, saturation_jitter), fine_tune.seed
    )
    return build_l3net_run(network, "image", items, ImageReader(view_config), fine_tune)


@flatten_parameters
def evaluate_image_classes(
    model: Path,
    data: Path,
    crops: CropMode = "center",
    evaluation: L3EvaluationOptions = DEFAULT_L3_EVALUATION,
) -> dict[str, float]:
    """Classifies the test images with a fine-tuned network.

    Args:
        model: Run or model folder written by `comodal train image_classes`.
        data: The training folder, or another with the same classes.
        crops: "center" for the center crop, or "ten" for the mean prediction over ten crops.
        evaluation: The options of all evaluations of a fine-tuned L3-Net.

    Returns:
        vision.fine_tuned (accuracy) with its interval, and top-5 accuracy (.top5) for more than five classes.

    Raises:
        DataError: The folder has another layout or other classes, or no image of a class can be read.
        CheckpointError: The folder holds no such model.

    Examples:
        comodal evaluate image_classes --model runs/images --data images/ --out results/images
    """
    network, classes = load_l3_classifier(model, "image"), read_model_classes(model)
    compute = evaluation.resolve()
    dataset = read_labeled_images(data)
    items = [item for item in dataset.items if item.is_test]
    check_item_classes(items, classes)
    print_line(f"{data}: {len(items):,} images to test{format_exclusions(dataset.excluded)}")
    views = ImageViews(ViewConfig(network.config.l3net.image_size, Augmentation(), 0), crops)
    scores, problems = predict_class_probabilities(network, items, views, compute, evaluation.workers)
    check_readable_tests(data, items, problems)
    results = ClassProbabilities(
        "image_classes",
        "vision",
        "ImageNet" if dataset.is_imagenet else data.resolve().name,
        dataset.split,
        model,
        exclude_unreadable(items, problems),
        classes,
        scores,
        {"crops": crops, "precision": compute.precision},
        dataset.files,
        count_exclusions(dataset.excluded, problems),
    )
    return results.report(evaluation.out)
