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
        tokenizer: The tokenizer.
        max_tokens: Maximum number of tokens of a caption.
        seed: Seed of the negatives.

    Raises:
        DataError: All captions are of one image.
    """

    def __init__(
        self,
        captions: Sequence[tuple[Caption, int]],
        store: RegionStore,
        tokenizer: WordPieceTokenizer,
        max_tokens: int,
        seed: int,
    ) -> None:
        self.captions, self.seed = captions, seed
        self.texts: list[TokenizedText] = [
            tokenize_text(tokenizer, caption.caption, max_tokens) for caption, _ in captions
        ]
        self.rows = np.array([row for _, row in captions], np.int64)
        self.images, self.image_of = np.unique(self.rows, return_inverse=True)
        if len(self.images) < 2:
            raise DataError("all captions are of one image; negatives need captions of at least two images")
        order = np.argsort(self.image_of, kind="stable")
        self.captions_of = np.split(order, np.cumsum(np.bincount(self.image_of))[:-1])
        self.token_sets = [
            {self.get_token_ids(caption) for caption in captions.tolist()} for captions in self.captions_of
        ]
        self.nearest = find_nearest_images(compute_mean_features(store, self.images), NUM_NEIGHBORS)

    def __len__(self) -> int:
        return len(self.captions)

    def length(self, index: int) -> int:
        return len(self.texts[index].token_ids)

    def get_token_ids(self, caption: int) -> tuple[int, ...]:
        """The token ids of a caption, to find captions with the same words."""
        return tuple(self.texts[caption].token_ids)

    def example(self, epoch: int, index: int) -> TaskExample:
        """The example of (epoch, index), with the matching pair first."""
        rng = np.random.default_rng((self.seed, epoch, index, NEGATIVE_STREAM))
        image = int(self.image_of[index])
        near = self.nearest[image]
        pairs = [
            (index, image),
            (self.draw_negative_caption(rng, image, None), image),
            (index, self.draw_negative_image(rng, index, None)),
            (self.draw_negative_caption(rng, image, near), image)
            if rng.random() < 0.5
            else (index, self.draw_negative_image(rng, index, near)),
        ]
        texts, images = zip(*((self.texts[caption], image) for caption, image in pairs), strict=True)
        return TaskExample(self.captions[index][0].key, texts, tuple(int(self.images[image]) for image in images), 0)

    def draw_negative_caption(
        self, rng: np.random.Generator, image: int, candidates: Int64[np.ndarray, "near"] | None
    ) -> int:
        """A caption of another image (from `candidates`, if given) with other words than all captions of this image."""
        for attempt in range(MAX_TRIES):
            other_index = self.draw_other_image(rng, image, candidates if attempt < MAX_TRIES // 2 else None)
            caption = int(rng.choice(self.captions_of[other_index]))
            if self.get_token_ids(caption) not in self.token_sets[image]:
                break
        return caption

    def draw_negative_image(
        self, rng: np.random.Generator, index: int, candidates: Int64[np.ndarray, "near"] | None
    ) -> int:
        """Another image (from `candidates`, if given) that has no caption with the same words."""
        for attempt in range(MAX_TRIES):
            image = self.draw_other_image(
                rng, int(self.image_of[index]), candidates if attempt < MAX_TRIES // 2 else None
            )
            if self.get_token_ids(index) not in self.token_sets[image]:
                break
        return image

    def draw_other_image(
        self, rng: np.random.Generator, image: int, candidates: Int64[np.ndarray, "near"] | None
    ) -> int:
        """A random other image (from `candidates`, if given)."""
        if candidates is not None:
            return int(rng.choice(candidates))
        return (image + 1 + int(rng.integers(len(self.images) - 1))) % len(self.images)


def compute_mean_features(store: RegionStore, rows: Int64[np.ndarray, "images"]) -> Float32[Tensor, "images features"]:
    """The mean over the regions of each image."""
    means = torch.zeros(len(rows), store.dim)  # zeros for an image without regions
    for mean, row in zip(means, rows.tolist(), strict=True):
        features = store.read_regions(row).features
        if len(features):
            mean.copy_(torch.from_numpy(features.astype(np.float32).mean(0)))
    return means


def find_nearest_images(
    features: Float32[Tensor, "images features"], max_neighbors: int
) -> Int64[np.ndarray, "images neighbors"]:
    """The nearest other images of each image, by Euclidean distance."""
    count = min(max_neighbors, len(features) - 1)
    index_blocks = []
    for start in range(0, len(features), DISTANCE_BLOCK_ROWS):
        block = torch.cdist(features[start : start + DISTANCE_BLOCK_ROWS], features)
        block[torch.arange(len(block)), torch.arange(start, start + len(block))] = torch.inf
        index_blocks.append(block.topk(count, largest=False).indices)
    return torch.cat(index_blocks).numpy()
