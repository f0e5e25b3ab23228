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

    showing: ViewConfig

    def __call__(self, item: LabeledFile, rng: np.random.Generator | None, /) -> np.ndarray:
        picture = read_resized_image(item, self.showing.short_side)
        return (
            crop_image_center(picture, self.showing.crop) if rng is None else augment_image(picture, self.showing, rng)
        )


@dataclass(frozen=True)
class ImageViews:
    """The center crop, or ten crops."""

    showing: ViewConfig
    crops: CropMode

    def __call__(self, item: LabeledFile, /) -> np.ndarray:
        picture = read_resized_image(item, self.showing.short_side)
        size = self.showing.crop
        return cut_ten_crops(picture, size) if self.crops == "ten" else crop_image_center(picture, size)[None]


IMAGE_FINE_TUNING = L3FineTuneConfig(batch_size=64)


@flatten_parameters
def recipe(
    model: Path,
    data: Path,
    mirror: bool = True,
    brightness: float = 32 / 255,
    saturation: float = 0.5,
    fine_tune: L3FineTuneConfig = IMAGE_FINE_TUNING,
) -> Run:
    """Fine-tunes an L3-Net end to end for image classification.

    Args:
        model: Run or model folder of an L3-Net, or of a fine-tuned one.
        data: ImageNet in the layout of ILSVRC or Kaggle; or train/CLASS/IMAGE and test/ (or val/, validation/)
            CLASS/IMAGE; or CLASS/IMAGE alone, of which a fifth is the test by a hash of the file's name.
        mirror: Flip half of the images horizontally. Not for digits and letters.
        brightness: Brightness jitter: the largest change, where 1 is the range from black to white.
        saturation: Saturation jitter: the saturation changes by up to this fraction.
        fine_tune: The options of all fine-tuning recipes.

    Examples:
        comodal train image_classes --model RUN --data images/ --out runs/images
        comodal train image_classes --model RUN --data images/ --start scratch --out runs/scratch
    """
    network, items = load_initial_l3net(model, fine_tune), read_labeled_images(data).items
    showing = ViewConfig(network.config.image_size, Augmentation(mirror, brightness, saturation), fine_tune.seed)
    return build_l3net_run(network, "picture", items, ImageReader(showing), fine_tune)


@flatten_parameters
def evaluate_image_classes(
    model: Path,
    data: Path,
    crops: CropMode = "middle",
    evaluation: L3EvaluationOptions = DEFAULT_L3_EVALUATION,
) -> dict[str, float]:
    """Classifies the test images with a fine-tuned network.

    Args:
        model: Run or model folder written by `comodal train image_classes`.
        data: The training folder, or another with the same classes.
        crops: "middle" for the center crop, or "ten" for the mean prediction over ten crops.
        evaluation: The options of all evaluations of a fine-tuned L3-Net.

    Returns:
        vision.fine_tuned (accuracy) with its interval, and top-5 accuracy (.top5) for more than five classes.

    Raises:
        DataError: The folder has another layout or other classes, or no image of a class can be read.
        CheckpointError: The folder holds no such model.

    Examples:
        comodal evaluate image_classes --model runs/images --data images/ --out results/images
    """
    network, classes = load_l3_classifier(model, "picture"), read_model_classes(model)
    compute = evaluation.resolve()
    pictures = read_labeled_images(data)
    items = [item for item in pictures.items if item.test]
    check_item_classes(items, classes)
    print_line(f"{data}: {len(items):,} pictures to test{format_exclusions(pictures.left_out)}")
    shots = ImageViews(ViewConfig(network.config.l3net.image_size, Augmentation(), 0), crops)
    scores, problems = predict_class_probabilities(network, items, shots, compute, evaluation.workers)
    check_readable_tests(data, items, problems)
    answers = ClassProbabilities(
        "image_classes",
        "vision",
        "ImageNet" if pictures.imagenet else data.resolve().name,
        pictures.split,
        model,
        exclude_unreadable(items, problems),
        classes,
        scores,
        {"crops": crops, "precision": compute.precision},
        pictures.files,
        count_exclusions(pictures.left_out, problems),
    )
    return answers.tell(evaluation.out)
