"""Linear classification of pictures from frozen features (L3-Net, section 4.3), on any ImageFolder tree.

The last convolution's map, max-pooled to 4 x 4 (8192 numbers in the paper's network), z-scored, and a multinomial
logistic regression whose C is chosen within the training part. As in the paper, pictures are 8/7 of the training crop
(256 for 224), so that they show things at the scale of training. Beside the trained network stand an untrained one of
the same shape and the plain pixels, under the same protocol.
"""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from comodal.errors import DataError, MediaError
from comodal.media.image import centre_crop, read_image, resize_short_side
from comodal.models.checkpoint import load_model, untrained_like
from comodal.models.inference import fast
from comodal.tasks.linear import Classifier, fit_probe
from comodal.tasks.results import Comparison

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
TEST_FOLDERS = ("test", "val", "validation")
PARTS = 5  # a tree without a test folder: one part in five is the test; of the training part, one in five chooses C
PIXELS = 32  # side of the plain pictures: 32 x 32 x 3 = 3072 numbers
BATCH = 64


class LabelledImage(NamedTuple):
    """A picture of a class folder; `test` says on which side of the split it is."""

    path: Path
    name: str
    category: str
    test: bool


def evaluate_images(
    model: Path,
    data: Path,
    *,
    classifier: Classifier = "logistic",
    out: Path | None = None,
    seed: int = 0,
    workers: int = 2,
) -> dict[str, float]:
    """Classifies pictures from frozen features, beside an untrained network and plain pixels.

    The paper reports for ImageNet: trained 0.323, random weights 0.129 (L3-Net, table 4).

    Args:
        model: run folder or model folder.
        data: train/CLASS/PICTURE and test/ (or val/, validation/) CLASS/PICTURE; or CLASS/PICTURE alone, of which a
            fifth is the test by a hash of the file's name.
        classifier: "logistic" or "svm" (linear, one against all).
        out: folder for results.json, answers.csv and confusion.png; nothing is written without it.
        seed: of the untrained network's weights.
        workers: threads that read pictures.

    Returns:
        Flat numbers: vision.trained, vision.untrained, vision.pixels, each with its interval.

    Raises:
        DataError: the folder has another layout, or a picture cannot be read.

    Examples:
        comodal evaluate images --model RUN --data pictures/ --out results/pictures
    """
    started = time.perf_counter()
    console = Console()
    images = read_tree(data)
    tests = sum(image.test for image in images)
    console.print(f"{len(images)} pictures of {data}: {len(images) - tests} to fit, {tests} to test")
    features = extract(model, images, seed, workers)
    comparison = compare(images, features, classifier, f"{data.name}, {classifier}")
    numbers = comparison.numbers() | {"vision.seconds": time.perf_counter() - started}
    comparison.print_table(console)
    if out is not None:
        comparison.write(out, numbers)
    return numbers


def read_tree(data: Path) -> list[LabelledImage]:
    """All pictures of the tree, in the order of their names."""
    if not data.is_dir():
        raise DataError(f"{data}: there is no such folder")
    test = next((data / name for name in TEST_FOLDERS if (data / name).is_dir()), None)
    if (data / "train").is_dir():
        if test is None:
            raise DataError(f"{data}: train/ is there, but none of {', '.join(f'{name}/' for name in TEST_FOLDERS)}")
        images = list(class_folders(data / "train", data, test=False)) + list(class_folders(test, data, test=True))
    else:
        images = [image._replace(test=hashed_part(image.name) == 0) for image in class_folders(data, data, test=False)]
    categories = {image.category for image in images if not image.test}
    unknown = {image.category for image in images if image.test} - categories
    if len(categories) < 2:
        raise DataError(f"{data}: {len(categories)} class folders with pictures to fit; at least two are needed")
    if unknown:
        raise DataError(f"{data}: class {sorted(unknown)[0]!r} is tested and has no picture to fit")
    if not any(image.test for image in images):
        raise DataError(f"{data}: no picture to test")
    return images


def class_folders(folder: Path, data: Path, test: bool) -> Iterator[LabelledImage]:
    """The pictures of FOLDER/CLASS/**."""
    for category in sorted(path for path in folder.iterdir() if path.is_dir()):
        for path in sorted(category.rglob("*")):
            if path.suffix.lower() in SUFFIXES:
                yield LabelledImage(path, path.relative_to(data).as_posix(), category.name, test)


def hashed_part(name: str) -> int:
    """One of `PARTS`, the same for a name whatever else is in the folder."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % PARTS


def read_square(image: LabelledImage, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The middle square of a picture; a file that cannot be read is an error of the data set."""
    try:
        return centre_crop(resize_short_side(read_image(image.path), size), size)
    except MediaError as error:
        raise DataError(f"a picture of class {image.category!r} cannot be read: {error}") from error


def plain_pixels(square: UInt8[np.ndarray, "size size 3"]) -> Float[Tensor, " features"]:
    """A picture of 32 x 32 pixels as one row, the plain baseline."""
    small = Image.fromarray(square).resize((PIXELS, PIXELS), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(small, dtype=np.float32).reshape(-1) / 255.0)


def extract(
    model: Path, images: list[LabelledImage], seed: int, workers: int
) -> dict[str, Float[Tensor, "images 1 features"]]:
    """One pass over the files: the features of every system, one window each."""
    trained = load_model(model)
    networks = {
        "trained": fast(trained),
        "untrained": fast(untrained_like(trained, seed)),
    }
    size = round(trained.config.image_size * 8 / 7)
    collected: dict[str, list[Tensor]] = {"trained": [], "untrained": [], "pixels": []}
    parallel = joblib.Parallel(n_jobs=workers, prefer="threads", return_as="generator")
    squares = parallel(joblib.delayed(read_square)(image, size) for image in images)
    held: list[np.ndarray] = []
    for place, square in enumerate(track(squares, "embedding pictures", total=len(images)), start=1):
        collected["pixels"].append(plain_pixels(square)[None])
        held.append(square)
        if len(held) == BATCH or place == len(images):
            batch = torch.from_numpy(np.stack(held)).permute(0, 3, 1, 2)
            held = []
            for name, network in networks.items():
                collected[name].append(network.embed_image(batch).float())
    return {name: torch.cat(parts)[:, None] for name, parts in collected.items()}


def compare(
    images: list[LabelledImage],
    features: dict[str, Float[Tensor, "images 1 features"]],
    classifier: Classifier,
    title: str,
) -> Comparison:
    """Each system's answers for the test pictures; C is chosen on a fifth of the training pictures."""
    classes = tuple(sorted({image.category for image in images}))
    truth = np.array([classes.index(image.category) for image in images])
    test = np.array([image.test for image in images])
    parts = np.array([hashed_part(f"C {image.name}") for image in images])[~test]
    fitted, target = torch.from_numpy(~test), torch.from_numpy(truth)
    answers, strengths = {}, {}
    for system in track(list(features), "fitting probes"):
        held_out = [0] if len(set(parts)) > 1 and (parts == 0).any() else []
        probe = fit_probe(features[system][fitted], target[fitted], parts, held_out, len(classes), classifier)
        answers[system] = probe.predict(features[system][~fitted])
        strengths[system] = {0: probe.strength}
    names = tuple(image.name for image in images if image.test)
    folds = np.zeros(len(names), dtype=np.int64)
    return Comparison("vision", title, names, classes, truth[test], folds, answers, strengths)
