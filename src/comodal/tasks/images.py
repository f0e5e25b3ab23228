"""Linear classification of pictures from frozen features (L3-Net, section 4.3), on any ImageFolder tree.

The last convolution's map, max-pooled to 4 x 4 (8192 numbers in the paper's network), z-scored, and a multinomial
logistic regression whose C is chosen within the training part. As in the paper, pictures are 8/7 of the training crop
(256 for 224), so that they show things at the scale of training. Beside the trained network stand an untrained one of
the same shape and the plain pixels, under the same protocol.
"""

import time
from pathlib import Path

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
from comodal.models.checkpoint import untrained_like
from comodal.models.inference import fast
from comodal.models.l3net import load_l3net
from comodal.tasks.linear import Classifier
from comodal.tasks.tree import Labelled, compare, read_tree

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"})
PIXELS = 32  # side of the plain pictures: 32 x 32 x 3 = 3072 numbers
BATCH = 64


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

    The paper reports for ImageNet: trained 0.323, random weights 0.129.

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
    images = read_tree(data, SUFFIXES)
    tests = sum(image.test for image in images)
    console.print(f"{len(images)} pictures of {data}: {len(images) - tests} to fit, {tests} to test")
    features = extract(model, images, seed, workers)
    comparison = compare("vision", images, features, classifier, f"{data.name}, {classifier}")
    numbers = comparison.numbers() | {"vision.seconds": time.perf_counter() - started}
    comparison.print_table(console)
    if out is not None:
        comparison.write(out, numbers)
    return numbers


def read_square(image: Labelled, size: int) -> UInt8[np.ndarray, "size size 3"]:
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
    model: Path, images: list[Labelled], seed: int, workers: int
) -> dict[str, Float[Tensor, "images 1 features"]]:
    """One pass over the files: the features of every system, one window each."""
    trained = load_l3net(model)
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
