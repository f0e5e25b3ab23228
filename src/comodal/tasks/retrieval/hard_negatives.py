"""Hard negatives for retrieval: a four-way choice among the matching pair and three negatives (ViLBERT, section 3.3).

The original's four pairs are (image, caption), (image, random caption), (random image, caption), and the image with a
caption of one of its 100 nearest images by mean feature. The paper describes a hard image instead. Here the hard
negative is a caption of a near image or a near image, with equal probability. A negative is never of the same image and
never has the same words; the original excludes neither.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from comodal.data.captions.caption_files import Caption
from comodal.data.regions.region_store import RegionStore
from comodal.errors import DataError
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.tasks.vision_language.text_image_examples import TaskExample, TokenizedText, tokenize_text

NEGATIVE_STREAM = 4  # a random stream independent of the order
NUM_NEIGHBORS = 100
DISTANCE_BLOCK_ROWS = 1024
MAX_TRIES = 16  # draws per negative, the first half among near images; after that the last draw is kept


class FourWayDataset:
    """Four pairs of a caption and an image, of which the first one matches; negatives are drawn again in every epoch.

    Args:
        captions: Captions, each with the row of its image in the store.
        store: The region store, whose features define near images.
        words: The vocabulary.
        max_words: Maximum number of tokens of a caption.
        seed: Seed of the negatives.

    Raises:
        DataError: All captions are of one image.
    """

    def __init__(
        self,
        captions: Sequence[tuple[Caption, int]],
        store: RegionStore,
        words: WordPieceTokenizer,
        max_words: int,
        seed: int,
    ) -> None:
        self.captions, self.seed = captions, seed
        self.texts: list[TokenizedText] = [tokenize_text(words, caption.caption, max_words) for caption, _ in captions]
        self.rows = np.array([row for _, row in captions], np.int64)
        self.images, self.image_of = np.unique(self.rows, return_inverse=True)
        if len(self.images) < 2:
            raise DataError("captions of one image alone cannot be told apart: captions of two images are needed")
        order = np.argsort(self.image_of, kind="stable")
        self.captions_of = np.split(order, np.cumsum(np.bincount(self.image_of))[:-1])
        self.said = [{self.words_of(caption) for caption in captions.tolist()} for captions in self.captions_of]
        self.near = find_nearest_images(compute_mean_features(store, self.images), NUM_NEIGHBORS)

    def __len__(self) -> int:
        return len(self.captions)

    def length(self, index: int) -> int:
        return len(self.texts[index].words)

    def words_of(self, caption: int) -> tuple[int, ...]:
        """The token ids of a caption, to find captions with the same words."""
        return tuple(self.texts[caption].words)

    def example(self, epoch: int, index: int) -> TaskExample:
        """The example of (epoch, index), with the matching pair first."""
        rng = np.random.default_rng((self.seed, epoch, index, NEGATIVE_STREAM))
        image = int(self.image_of[index])
        near = self.near[image]
        pairs = [
            (index, image),
            (self.wrong_caption(rng, image, None), image),
            (index, self.wrong_image(rng, index, None)),
            (self.wrong_caption(rng, image, near), image)
            if rng.random() < 0.5
            else (index, self.wrong_image(rng, index, near)),
        ]
        texts, images = zip(*((self.texts[caption], image) for caption, image in pairs), strict=True)
        return TaskExample(self.captions[index][0].key, texts, tuple(int(self.images[image]) for image in images), 0)

    def wrong_caption(self, rng: np.random.Generator, image: int, among: Int64[np.ndarray, "near"] | None) -> int:
        """A caption of another image (from `among`, if given) that differs in words from all captions of this image."""
        for attempt in range(MAX_TRIES):
            other = self.other_image(rng, image, among if attempt < MAX_TRIES // 2 else None)
            found = int(rng.choice(self.captions_of[other]))
            if self.words_of(found) not in self.said[image]:
                break
        return found

    def wrong_image(self, rng: np.random.Generator, index: int, among: Int64[np.ndarray, "near"] | None) -> int:
        """Another image (from `among`, if given) that has no caption with the same words."""
        for attempt in range(MAX_TRIES):
            found = self.other_image(rng, int(self.image_of[index]), among if attempt < MAX_TRIES // 2 else None)
            if self.words_of(index) not in self.said[found]:
                break
        return found

    def other_image(self, rng: np.random.Generator, image: int, among: Int64[np.ndarray, "near"] | None) -> int:
        """A random other image (from `among`, if given)."""
        if among is not None:
            return int(rng.choice(among))
        return (image + 1 + int(rng.integers(len(self.images) - 1))) % len(self.images)


def compute_mean_features(store: RegionStore, rows: Int64[np.ndarray, "images"]) -> Float32[Tensor, "images features"]:
    """The mean over the regions of each image."""
    means = torch.zeros(len(rows), store.dim)  # zeros for an image without regions
    for mean, row in zip(means, rows.tolist(), strict=True):
        features = store.regions(row).features
        if len(features):
            mean.copy_(torch.from_numpy(features.astype(np.float32).mean(0)))
    return means


def find_nearest_images(
    features: Float32[Tensor, "images features"], most: int
) -> Int64[np.ndarray, "images neighbours"]:
    """The nearest other images of each image, by Euclidean distance."""
    count = min(most, len(features) - 1)
    found = []
    for start in range(0, len(features), DISTANCE_BLOCK_ROWS):
        block = torch.cdist(features[start : start + DISTANCE_BLOCK_ROWS], features)
        block[torch.arange(len(block)), torch.arange(start, start + len(block))] = torch.inf
        found.append(block.topk(count, largest=False).indices)
    return torch.cat(found).numpy()
