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
from comodal.data.captions.caption_dataset import MAX_REGIONS, prepend_full_image
from comodal.data.captions.caption_files import Caption, read_captions
from comodal.data.captions.caption_matching import match_captions, split_matched_captions
from comodal.data.regions.region_compatibility import check_same_regions
from comodal.data.regions.region_store import RegionStore
from comodal.data.sources.splits import SPLITS_HELD_OUT_FIRST, split_by_hash
from comodal.errors import DataError
from comodal.media.tokenizer import DEFAULT_MAX_TOKENS, WordPieceTokenizer
from comodal.models.checkpoint import find_model_folder, read_model_about
from comodal.models.dual_encoder.dual_encoder import DualEncoderConfig
from comodal.models.vilbert import single_stream, vilbert
from comodal.tasks.vision_language.text_image_examples import Ablation

RetrievalModelConfig = vilbert.ViLBERTConfig | single_stream.SingleStreamConfig | DualEncoderConfig
CaptionSplit = Literal["test", "validation", "train", "all"]
IndexedCaptions = list[tuple[Caption, int]]
DEFAULT_HELD_OUT_FRACTION = 0.02  # the recipe's validation fraction, where neither captions nor run define a split


class RetrievalData(NamedTuple):
    """The data of a retrieval evaluation.

    Args:
        gallery: The captions and images of the split.
        train: The captions of the training split.
        tokenizer: The run's tokenizer.
        missing_images: The images that are not in the store, one entry per caption of the split.
        excluded: Number of captions of all splits that are not queries, by reason.
        split: The split to search.
    """

    gallery: "Gallery"
    train: IndexedCaptions
    tokenizer: WordPieceTokenizer
    missing_images: list[str]
    excluded: Counter[str]
    split: CaptionSplit = "test"


class GalleryImage(NamedTuple):
    """The model's input for an image; row 0 is the whole image."""

    features: Float[Tensor, "rows features"] | Int64[Tensor, "rows"]
    spatials: Float[Tensor, "rows 5"]


class Gallery:
    """Texts and images by index, and which of them match.

    Args:
        pairs: Captions, each with the row of its image in the store.
        store: The regions of the images.
        tokenizer: The tokenizer.
        max_tokens: Maximum number of tokens of a caption with [CLS] and [SEP]; longer captions are truncated.
        max_regions: Maximum number of regions of an image; further ones are dropped.
        has_visual_tokens: Whether regions are visual tokens.
        ablate: The ablated modality; the counts of texts and images stay the same.

    Attributes:
        pairs: The captions, each with the row of its image.
        text_of, image_of: The text and the image of each caption.
        lengths: Number of tokens of each text.
        counts: Number of regions of each image.
        captions_of: Number of captions that share each text.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Caption, int]],
        store: RegionStore,
        tokenizer: WordPieceTokenizer,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        max_regions: int = MAX_REGIONS,
        has_visual_tokens: bool = False,
        ablate: Ablation = "none",
    ) -> None:
        self.pairs = list(pairs)
        self.store, self.max_regions, self.has_visual_tokens, self.ablate = (
            store,
            max_regions,
            has_visual_tokens,
            ablate,
        )
        encoded = tokenizer.encode_all((caption.caption for caption, _ in pairs), max_tokens)
        self.num_truncated = encoded.num_truncated
        token_arrays = np.split(encoded.token_ids.astype(np.int64), np.cumsum(encoded.lengths)[:-1])
        index_by_text: dict[bytes, int] = {}
        self.text_of = np.array(
            [index_by_text.setdefault(text.tobytes(), len(index_by_text)) for text in token_arrays], np.int64
        )
        self.token_ids = [np.frombuffer(text, np.int64) for text in index_by_text]
        if ablate == "text":
            self.token_ids = [np.array([tokenizer.cls_id, tokenizer.sep_id], np.int64)] * len(index_by_text)
        self.lengths = np.array([len(text) for text in self.token_ids], np.int64)
        self.captions_of = np.bincount(self.text_of, minlength=len(self.token_ids))
        rows = np.array([row for _, row in pairs], np.int64)
        self.rows, self.image_of = np.unique(rows, return_inverse=True)
        self.counts = np.minimum(store.counts[self.rows], 0 if ablate == "image" else max_regions)
        self.names = [(caption.key, store.ids[row]) for caption, row in pairs]
        in_order = np.argsort(self.image_of, kind="stable")
        ends = np.cumsum(np.bincount(self.image_of))[:-1]
        self.texts_of = [np.unique(texts) for texts in np.split(self.text_of[in_order], ends)]

    def get_token_ids(self, index: int) -> Int64[Tensor, "tokens"]:
        """The token ids of a text."""
        return torch.from_numpy(self.token_ids[index].copy())

    def get_image(self, index: int) -> GalleryImage:
        """The regions of an image."""
        regions = self.store.read_regions(int(self.rows[index]))
        count = int(self.counts[index])
        features, spatials = prepend_full_image(regions, count)
        if self.has_visual_tokens:
            assert regions.visual_tokens is not None
            tokens = regions.visual_tokens[:count].astype(np.int64) + len(TokenInput)
            return GalleryImage(torch.from_numpy(np.append(int(TokenInput.IMAGE), tokens)), torch.from_numpy(spatials))
        return GalleryImage(torch.from_numpy(features), torch.from_numpy(spatials))


def load_retrieval_data(
    model: Path,
    config: RetrievalModelConfig,
    captions: Path,
    regions: Path,
    split: CaptionSplit | None,
    max_regions: int,
    ablate: Ablation,
) -> RetrievalData:
    """Loads the gallery of a split and the data around it; the default is `choose_default_split`.

    Raises:
        DataError: A file is missing or damaged, does not fit the model, or the split has no caption.
    """
    store, tokenizer = RegionStore(regions), WordPieceTokenizer.read(model)
    check_model_inputs(model, config, store, tokenizer)
    caption_file = read_captions(captions)
    matched = match_captions(caption_file, store.ids)
    if skipped := matched.format_skipped(caption_file.refused):
        print_line(f"{captions} ({caption_file.layout}): {len(matched.pairs):,} captions{skipped}")
    validation_fraction = read_held_out_fraction(model)
    parts = split_matched_captions(matched.pairs, store.ids, validation_fraction, 0.0)
    if split is None:
        split = (
            "test"
            if list_missing_images(matched.unmatched, "test", validation_fraction)
            else choose_default_split(parts)
        )
        if split != "test":
            about = "held out in training" if split == "validation" else "which includes the training images"
            print_line(f"{captions} has no test split; searching --split {split}, {about}")
    split_pairs = matched.pairs if split == "all" else parts[split]
    if not split_pairs:
        available = ", ".join(f"{len(pairs):,} {name}" for name, pairs in parts.items() if pairs)
        raise DataError(
            f"{captions}: no caption of an image of {regions} is in the {split} split; there are {available}"
        )
    if len({row for _, row in split_pairs}) == 1:
        raise DataError(f"{captions}: the {split} split has captions of one image only, and a ranking needs two")
    missing = list_missing_images(matched.unmatched, split, validation_fraction)
    gallery = build_gallery(split_pairs, store, tokenizer, config, max_regions, ablate)
    return RetrievalData(gallery, parts["train"], tokenizer, missing, caption_file.refused, split)


def choose_default_split(parts: Mapping[str, IndexedCaptions]) -> CaptionSplit:
    """The test split if it has captions, else the validation split, else all captions."""
    if parts["test"]:
        return "test"
    return "validation" if parts["validation"] else "all"


def list_missing_images(unmatched: Sequence[Caption], split: CaptionSplit, validation_fraction: float) -> list[str]:
    """The image of each caption of a split that is not in the store; splits are those of `split_matched_captions`."""
    names = [next(filter(None, caption.image)) for caption in unmatched]
    splits_by_image: dict[str, set[str | None]] = {}
    for name, caption in zip(names, unmatched, strict=True):
        splits_by_image.setdefault(name, set()).add(caption.split)
    split_of = {
        name: next(
            (candidate for candidate in SPLITS_HELD_OUT_FIRST if candidate in named_splits),
            split_by_hash(name, validation_fraction, 0.0),
        )
        for name, named_splits in splits_by_image.items()
    }
    return [name for name in names if split in ("all", split_of[name])]


def build_gallery(
    pairs: IndexedCaptions,
    store: RegionStore,
    tokenizer: WordPieceTokenizer,
    config: RetrievalModelConfig,
    max_regions: int,
    ablate: Ablation = "none",
) -> Gallery:
    """A gallery in the input format of a model of this configuration."""
    max_tokens = min(DEFAULT_MAX_TOKENS, config.positions - config.first_position)
    return Gallery(pairs, store, tokenizer, max_tokens, max_regions, config.num_visual_tokens > 0, ablate)


def read_held_out_fraction(model: Path) -> float:
    """The fraction of images that the run held out for validation where the captions name no split."""
    parameters = read_model_about(model).get("parameters")
    fraction = (
        parameters.get("validation_fraction", DEFAULT_HELD_OUT_FRACTION)
        if isinstance(parameters, dict)
        else DEFAULT_HELD_OUT_FRACTION
    )
    return float(fraction)


def check_model_inputs(
    model: Path, config: RetrievalModelConfig, store: RegionStore, tokenizer: WordPieceTokenizer
) -> None:
    """Checks that the model is compatible with the regions and the vocabulary."""
    if tokenizer.size > config.vocabulary:
        raise DataError(f"{model}: the vocabulary has {tokenizer.size:,} tokens, the model {config.vocabulary:,}")
    if config.num_visual_tokens:
        tokens = config.num_visual_tokens - len(TokenInput)
        if store.tokens != tokens:
            raise DataError(
                f"{store.folder} has {store.tokens:,} visual tokens and {model} was trained on {tokens:,}: "
                "prepare its tokens with the codebook of the store that it was trained on"
            )
    elif store.dim != config.region_feature_dim:
        raise DataError(
            f"{store.folder} has regions of {store.dim:,} features and {model} was trained on "
            f"{config.region_feature_dim:,}: prepare the regions by the same network as those of its training"
        )
    check_same_regions(find_model_folder(model), store)
