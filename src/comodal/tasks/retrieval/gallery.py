"""The gallery of a retrieval: captions and images, the model's input for each, and which of them match.

Identical captions are one text, which is scored once. Row 0 of the regions is the whole image, as in training
(`data/captions/caption_dataset.py`). Nothing is masked, except for the ablation of a modality.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from comodal.console import print_line
from comodal.data.batch import TokenInput
from comodal.data.captions.caption_dataset import MAX_REGIONS, prepend_whole_image
from comodal.data.captions.caption_files import Caption, read_captions
from comodal.data.captions.caption_matching import match_captions, split_matched_captions
from comodal.data.regions.region_compatibility import check_same_regions
from comodal.data.regions.region_store import RegionStore
from comodal.data.sources.splits import SPLITS_HELD_OUT_FIRST, split_by_hash
from comodal.errors import DataError
from comodal.media.tokenizer import DEFAULT_MAX_TOKENS, WordPieceTokenizer
from comodal.models.checkpoint import find_model_folder, read_model_about
from comodal.models.vilbert import single_stream, vilbert
from comodal.tasks.vision_language.text_image_examples import Ablation

RetrievalModelConfig = vilbert.ViLBERTConfig | single_stream.SingleStreamConfig
CaptionSplit = Literal["test", "validation", "train", "all"]
IndexedCaptions = list[tuple[Caption, int]]
DEFAULT_HELD_OUT_FRACTION = 0.02  # the recipe's validation fraction, where neither captions nor run define a split


class RetrievalData(NamedTuple):
    """The data of a retrieval evaluation.

    Args:
        gallery: The captions and images of the split.
        train: The captions of the training split.
        words: The run's vocabulary.
        missing: The images that are not in the store, one entry per caption of the split.
        left_out: Number of captions of all splits that are not queries, by reason.
        split: The split to search.
    """

    gallery: "Gallery"
    train: IndexedCaptions
    words: WordPieceTokenizer
    missing: list[str]
    left_out: Counter[str]
    split: CaptionSplit = "test"


class GalleryImage(NamedTuple):
    """The model's input for an image; row 0 is the whole image."""

    regions: Float[Tensor, "rows features"] | Int64[Tensor, "rows"]
    locations: Float[Tensor, "rows 5"]


class Gallery:
    """Texts and images by index, and which of them match.

    Args:
        pairs: Captions, each with the row of its image in the store.
        store: The regions of the images.
        words: The vocabulary.
        max_words: Maximum number of tokens of a caption with [CLS] and [SEP]; longer captions are truncated.
        max_regions: Maximum number of regions of an image; further ones are dropped.
        as_tokens: Whether regions are visual tokens.
        blank: The ablated modality; the numbers of texts and images stay the same.

    Attributes:
        text_of, image_of: The text and the image of each caption.
        lengths: Number of tokens of each text.
        counts: Number of regions of each image.
        captions_of: Number of captions that share each text.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Caption, int]],
        store: RegionStore,
        words: WordPieceTokenizer,
        max_words: int = DEFAULT_MAX_TOKENS,
        max_regions: int = MAX_REGIONS,
        as_tokens: bool = False,
        blank: Ablation = "nothing",
    ) -> None:
        self.store, self.max_regions, self.as_tokens, self.blank = store, max_regions, as_tokens, blank
        encoded = words.encode_all((caption.caption for caption, _ in pairs), max_words)
        self.truncated = encoded.truncated
        pieces = np.split(encoded.words.astype(np.int64), np.cumsum(encoded.lengths)[:-1])
        numbers: dict[bytes, int] = {}
        self.text_of = np.array([numbers.setdefault(text.tobytes(), len(numbers)) for text in pieces], np.int64)
        self.pieces = [np.frombuffer(text, np.int64) for text in numbers]
        if blank == "text":
            self.pieces = [np.array([words.start, words.end], np.int64)] * len(numbers)
        self.lengths = np.array([len(text) for text in self.pieces], np.int64)
        self.captions_of = np.bincount(self.text_of, minlength=len(self.pieces))
        rows = np.array([row for _, row in pairs], np.int64)
        self.rows, self.image_of = np.unique(rows, return_inverse=True)
        self.counts = np.minimum(store.counts[self.rows], 0 if blank == "picture" else max_regions)
        self.names = [(caption.key, store.ids[row]) for caption, row in pairs]
        in_order = np.argsort(self.image_of, kind="stable")
        ends = np.cumsum(np.bincount(self.image_of))[:-1]
        self.texts_of = [np.unique(texts) for texts in np.split(self.text_of[in_order], ends)]

    def text(self, number: int) -> Int64[Tensor, "words"]:
        """The token ids of a text."""
        return torch.from_numpy(self.pieces[number].copy())

    def image(self, number: int) -> GalleryImage:
        """The regions of an image."""
        found = self.store.regions(int(self.rows[number]))
        count = int(self.counts[number])
        features, places = prepend_whole_image(found, count)
        if self.as_tokens:
            assert found.tokens is not None
            tokens = found.tokens[:count].astype(np.int64) + len(TokenInput)
            return GalleryImage(torch.from_numpy(np.append(int(TokenInput.IMAGE), tokens)), torch.from_numpy(places))
        return GalleryImage(torch.from_numpy(features), torch.from_numpy(places))


def load_retrieval_data(
    model: Path,
    config: RetrievalModelConfig,
    captions: Path,
    regions: Path,
    split: CaptionSplit | None,
    max_regions: int,
    blank: Ablation,
) -> RetrievalData:
    """Loads the gallery of a split and the data around it; the default is `choose_default_split`.

    Raises:
        DataError: A file is missing or damaged, does not fit the model, or the split has no caption.
    """
    store, words = RegionStore(regions), WordPieceTokenizer.read(model)
    check_model_inputs(model, config, store, words)
    read = read_captions(captions)
    found = match_captions(read, store.ids)
    if not_taken := found.not_taken(read.refused):
        print_line(f"{captions} ({read.layout}): {len(found.pairs):,} captions{not_taken}")
    share = read_held_out_fraction(model)
    parts = split_matched_captions(found.pairs, store.ids, share, 0.0)
    if split is None:
        split = "test" if list_missing_images(found.unmatched, "test", share) else choose_default_split(parts)
        if split != "test":
            about = "which training held out" if split == "validation" else "most of which the model was trained on"
            print_line(f"{captions} has no test split; searching --split {split}, {about}")
    chosen = found.pairs if split == "all" else parts[split]
    if not chosen:
        there = ", ".join(f"{len(pairs):,} {name}" for name, pairs in parts.items() if pairs)
        raise DataError(f"{captions}: no caption of an image of {regions} is in the {split} split; there are {there}")
    missing = list_missing_images(found.unmatched, split, share)
    gallery = build_gallery(chosen, store, words, config, max_regions, blank)
    return RetrievalData(gallery, parts["train"], words, missing, read.refused, split)


def choose_default_split(parts: Mapping[str, IndexedCaptions]) -> CaptionSplit:
    """The test split if it has captions, else the validation split, else all captions."""
    if parts["test"]:
        return "test"
    return "validation" if parts["validation"] else "all"


def list_missing_images(unmatched: Sequence[Caption], split: CaptionSplit, share: float) -> list[str]:
    """The image of each caption of a split that is not in the store; splits are those of `split_matched_captions`."""
    names = [next(filter(None, caption.image)) for caption in unmatched]
    own: dict[str, set[str | None]] = {}
    for name, caption in zip(names, unmatched, strict=True):
        own.setdefault(name, set()).add(caption.split)
    split_of = {
        name: next((one for one in SPLITS_HELD_OUT_FIRST if one in said), split_by_hash(name, share, 0.0))
        for name, said in own.items()
    }
    return [name for name in names if split in ("all", split_of[name])]


def build_gallery(
    pairs: IndexedCaptions,
    store: RegionStore,
    words: WordPieceTokenizer,
    config: RetrievalModelConfig,
    max_regions: int,
    blank: Ablation = "nothing",
) -> Gallery:
    """A gallery in the input format of a model of this configuration."""
    max_words = min(DEFAULT_MAX_TOKENS, config.positions - config.first_position)
    return Gallery(pairs, store, words, max_words, max_regions, config.region_tokens > 0, blank)


def read_held_out_fraction(model: Path) -> float:
    """The fraction of images that the run held out for validation where the captions name no split."""
    parameters = read_model_about(model).get("parameters")
    share = (
        parameters.get("validation_share", DEFAULT_HELD_OUT_FRACTION)
        if isinstance(parameters, dict)
        else DEFAULT_HELD_OUT_FRACTION
    )
    return float(share)


def check_model_inputs(
    model: Path, config: RetrievalModelConfig, store: RegionStore, words: WordPieceTokenizer
) -> None:
    """Checks that the model is compatible with the regions and the vocabulary."""
    if words.size > config.vocabulary:
        raise DataError(f"{model}: the vocabulary has {words.size:,} pieces, the model {config.vocabulary:,} words")
    if config.task_tokens:
        raise DataError(f"{model}: a model with task tokens (12-in-1); zero-shot retrieval is for pretrained models")
    if config.region_tokens:
        tokens = config.region_tokens - len(TokenInput)
        if store.tokens != tokens:
            raise DataError(
                f"{store.folder} has {store.tokens:,} visual tokens and {model} was trained on {tokens:,}: "
                "prepare its tokens with the codebook of the store that it was trained on"
            )
    elif store.dim != config.region_features:
        raise DataError(
            f"{store.folder} has regions of {store.dim:,} features and {model} was trained on "
            f"{config.region_features:,}: prepare the regions by the same network as those of its training"
        )
    check_same_regions(find_model_folder(model), store)
