"""Examples of a task: texts, each paired with an image, and a target; batches of them for any task.

A task defines its examples. Tokenization, region lookup, padding, order and modality ablation are shared. Ablating the
text leaves [CLS] and [SEP]; ablating the image leaves one region, the whole image, without features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64

from comodal.data.batch import TaskBatch, TokenInput
from comodal.data.captions.caption_dataset import FULL_IMAGE_SPATIALS, prepend_full_image
from comodal.data.captions.caption_pairs import order_by_length
from comodal.data.regions.region_store import RegionStore
from comodal.media.tokenizer import WordPieceTokenizer

EXAMPLE_ORDER_STREAM = 3  # a random stream independent of the examples
Ablation = Literal["none", "text", "image"]


class TokenizedText(NamedTuple):
    """Token ids from [CLS] to [SEP], and the segment (first or second text) of each."""

    token_ids: Sequence[int]
    token_types: Sequence[int]


def tokenize_text(tokenizer: WordPieceTokenizer, text: str, max_tokens: int) -> TokenizedText:
    """Tokenizes a single text."""
    token_ids = tokenizer.encode(text, max_tokens)
    return TokenizedText(token_ids, [0] * len(token_ids))


def tokenize_text_pair(
    tokenizer: WordPieceTokenizer, first_texts: Sequence[str], second: str, max_tokens: int
) -> TokenizedText:
    """[CLS] first [SEP] ... [SEP] second [SEP]. A longer input is truncated token by token: the longer of the parts
    before and after the last inner [SEP] loses its last token.
    """
    no_limit = 1 << 30
    first_ids: list[int] = []
    for first in first_texts:
        first_ids += [tokenizer.sep_id] * bool(first_ids) + tokenizer.encode(first, no_limit)[1:-1]
    second_ids = tokenizer.encode(second, no_limit)[1:-1]
    while len(first_ids) + len(second_ids) > max_tokens - 3:
        (first_ids if len(first_ids) > len(second_ids) else second_ids).pop()
    token_ids = [tokenizer.cls_id, *first_ids, tokenizer.sep_id, *second_ids, tokenizer.sep_id]
    return TokenizedText(token_ids, [0] * (len(first_ids) + 2) + [1] * (len(second_ids) + 1))


class TaskExample(NamedTuple):
    """One example of a task.

    Args:
        key: Identifier.
        texts: One or more texts.
        rows: The row of each text's image in the store.
        target: Scores of answers or of regions (row 0 is the whole image), or the index of the correct choice; None
            if unknown.
        task_token: The task token of its part of the task (VCR has two); None for the token of the task.
    """

    key: str
    texts: tuple[TokenizedText, ...]
    rows: tuple[int, ...]
    target: Float32[np.ndarray, "columns"] | int | None
    task_token: int | None = None


@runtime_checkable
class ExampleSource(Protocol):
    """The examples of a task; random examples depend on (epoch, index)."""

    def __len__(self) -> int: ...

    def length(self, index: int, /) -> int:
        """The approximate number of tokens of an example, to batch similar lengths."""
        ...

    def example(self, epoch: int, index: int, /) -> TaskExample: ...


@dataclass(frozen=True)
class FixedExamples:
    """Examples that are the same in every epoch."""

    examples: Sequence[TaskExample]

    def __len__(self) -> int:
        return len(self.examples)

    def length(self, index: int) -> int:
        return max(len(text.token_ids) for text in self.examples[index].texts)

    def example(self, epoch: int, index: int) -> TaskExample:  # noqa: ARG002
        return self.examples[index]


@dataclass(frozen=True)
class SelectedExamples:
    """Some of the examples of a source."""

    source: ExampleSource
    indices: Int64[np.ndarray, "selected"]

    def __len__(self) -> int:
        return len(self.indices)

    def length(self, index: int) -> int:
        return self.source.length(int(self.indices[index]))

    def example(self, epoch: int, index: int) -> TaskExample:
        return self.source.example(epoch, int(self.indices[index]))


class TaskDataset:
    """A sample set for the loader: batches for any (epoch, index).

    Args:
        source: The examples.
        store: The regions of the images.
        tokenizer: The tokenizer.
        max_regions: Maximum number of regions of an image, without the whole image.
        has_visual_tokens: Whether regions are visual tokens.
        ablate: The ablated modality.
        batch_size: Examples per step, over all processes.
        seed: Seed of the order; None keeps the order of the source.
        task_token: Task token of the texts; None for a model without task tokens.
        is_token_fixed: Whether all texts have that token, also those of examples with a token of their own.
    """

    def __init__(
        self,
        source: ExampleSource,
        store: RegionStore,
        tokenizer: WordPieceTokenizer,
        max_regions: int,
        has_visual_tokens: bool,
        ablate: Ablation,
        batch_size: int,
        seed: int | None,
        task_token: int | None = None,
        is_token_fixed: bool = False,
    ) -> None:
        if not len(source):
            raise ValueError("a task needs at least one example")
        self.source: ExampleSource = source
        self.store, self.tokenizer, self.max_regions = store, tokenizer, max_regions
        self.has_visual_tokens, self.ablate, self.batch_size, self.seed = has_visual_tokens, ablate, batch_size, seed
        self.task_token, self.is_token_fixed = task_token, is_token_fixed
        self.lengths = np.array([source.length(index) for index in range(len(source))])
        self.orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.source)

    def select_examples(self, indices: Int64[np.ndarray, "selected"]) -> None:
        """Leaves out all other examples."""
        self.source, self.lengths, self.orders = SelectedExamples(self.source, indices), self.lengths[indices], {}

    def get_order(self, epoch: int) -> Int64[np.ndarray, "examples"]:
        """The random order of an epoch, in which examples of similar length are neighbors."""
        if self.seed is None:
            return np.arange(len(self))
        if epoch not in self.orders:
            rng = np.random.default_rng((self.seed, epoch, 0, EXAMPLE_ORDER_STREAM))
            head = min(-epoch * len(self) % self.batch_size, len(self))
            epoch_order = order_by_length(self.lengths, np.zeros_like(self.lengths), head, self.batch_size, rng)
            self.orders = {epoch - 1: self.orders[epoch - 1]} if epoch - 1 in self.orders else {}
            self.orders[epoch] = epoch_order
        return self.orders[epoch]

    def batch(self, positions: Sequence[tuple[int, int]]) -> TaskBatch:
        """The examples of these (epoch, index), in this order."""
        return self.collate(
            [self.source.example(epoch, int(self.get_order(epoch)[index])) for epoch, index in positions]
        )

    def collate(self, examples: Sequence[TaskExample]) -> TaskBatch:
        """A batch of given examples."""
        texts = [self.ablate_text(text) for example in examples for text in example.texts]
        rows, images = np.unique([row for example in examples for row in example.rows], return_inverse=True)
        lengths = np.array([len(text.token_ids) for text in texts])
        token_mask = np.arange(lengths.max()) < lengths[:, None]
        token_ids, token_types = (
            np.full(token_mask.shape, self.tokenizer.padding_id, np.int64),
            np.zeros(token_mask.shape, np.int64),
        )
        token_ids[token_mask] = np.concatenate([text.token_ids for text in texts])
        token_types[token_mask] = np.concatenate([text.token_types for text in texts])
        features, spatials, region_mask = self.collate_images(rows.tolist())
        return TaskBatch(
            token_ids=torch.from_numpy(token_ids),
            token_types=torch.from_numpy(token_types),
            token_mask=torch.from_numpy(token_mask),
            region_features=torch.from_numpy(features),
            spatials=torch.from_numpy(spatials),
            region_mask=torch.from_numpy(region_mask),
            image_indices=torch.from_numpy(images.astype(np.int64)),
            targets=torch.from_numpy(collate_targets(examples)),
            task_ids=torch.tensor(self.collate_task_tokens(examples), dtype=torch.int64),
            keys=tuple(example.key for example in examples),
        )

    def collate_task_tokens(self, examples: Sequence[TaskExample]) -> list[int]:
        """The task token of each text; none for a model without task tokens."""
        if self.task_token is None:
            return []
        own = [None if self.is_token_fixed else example.task_token for example in examples for _ in example.texts]
        return [self.task_token if token is None else token for token in own]

    def ablate_text(self, text: TokenizedText) -> TokenizedText:
        """The tokens of a text; only [CLS] and [SEP] if text is ablated."""
        return TokenizedText([self.tokenizer.cls_id, self.tokenizer.sep_id], [0, 0]) if self.ablate == "text" else text

    def collate_images(
        self, rows: Sequence[int]
    ) -> tuple[np.ndarray, Float32[np.ndarray, "images regions 5"], Bool[np.ndarray, "images regions"]]:
        """Regions (features or visual tokens), their locations and their mask, padded to the largest count."""
        image_inputs = [self.read_image_regions(row) for row in rows]
        counts = np.array([len(image_spatials) for _, image_spatials in image_inputs])
        region_mask = np.arange(counts.max()) < counts[:, None]
        first = image_inputs[0][0]
        features = np.zeros((*region_mask.shape, *first.shape[1:]), first.dtype)
        spatials = np.zeros((*region_mask.shape, 5), np.float32)
        features[region_mask] = np.concatenate([image_features for image_features, _ in image_inputs])
        spatials[region_mask] = np.concatenate([image_spatials for _, image_spatials in image_inputs])
        return features, spatials, region_mask

    def read_image_regions(self, row: int) -> tuple[np.ndarray, Float32[np.ndarray, "regions 5"]]:
        """The regions of one image after row 0 (the whole image), and their locations."""
        if self.ablate == "image":
            empty = (
                np.array([TokenInput.IMAGE]) if self.has_visual_tokens else np.zeros((1, self.store.dim), np.float32)
            )
            return empty.astype(np.int64) if self.has_visual_tokens else empty, np.array(
                [FULL_IMAGE_SPATIALS], np.float32
            )
        regions = self.store.read_regions(row)
        features, spatials = prepend_full_image(regions, self.max_regions)
        if not self.has_visual_tokens:
            return features, spatials
        assert regions.visual_tokens is not None
        tokens = regions.visual_tokens[: len(spatials) - 1].astype(np.int64) + len(TokenInput)
        return np.append(int(TokenInput.IMAGE), tokens), spatials


def collate_targets(examples: Sequence[TaskExample]) -> Float32[np.ndarray, "rows columns"] | Int64[np.ndarray, "rows"]:
    """Targets: rows of scores, padded to the longest, or indices; no rows if targets are unknown."""
    targets = [example.target for example in examples]
    if any(target is None for target in targets):
        return np.empty(0, np.int64)
    if isinstance(targets[0], int):
        return np.array(targets, np.int64)
    columns = [np.asarray(target, np.float32) for target in targets]
    width = max(len(column) for column in columns)
    return np.stack([np.pad(column, (0, width - len(column))) for column in columns])
