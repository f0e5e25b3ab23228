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
from comodal.data.captions.caption_dataset import WHOLE_IMAGE, prepend_whole_image
from comodal.data.captions.caption_pairs import order_by_length
from comodal.data.regions.region_store import RegionStore
from comodal.media.tokenizer import WordPieceTokenizer

EXAMPLE_ORDER_STREAM = 3  # a random stream independent of the examples
Ablation = Literal["nothing", "text", "picture"]


class TokenizedText(NamedTuple):
    """Token ids from [CLS] to [SEP], and the segment (first or second text) of each."""

    words: Sequence[int]
    segments: Sequence[int]


def tokenize_text(words: WordPieceTokenizer, text: str, most: int) -> TokenizedText:
    """Tokenizes a single text."""
    pieces = words.encode(text, most)
    return TokenizedText(pieces, [0] * len(pieces))


def tokenize_text_pair(words: WordPieceTokenizer, firsts: Sequence[str], second: str, most: int) -> TokenizedText:
    """[CLS] first [SEP] ... [SEP] second [SEP]. A longer input is truncated token by token: the longer of the parts
    before and after the last inner [SEP] loses its last token.
    """
    endless = 1 << 30
    before: list[int] = []
    for first in firsts:
        before += [words.end] * bool(before) + words.encode(first, endless)[1:-1]
    after = words.encode(second, endless)[1:-1]
    while len(before) + len(after) > most - 3:
        (before if len(before) > len(after) else after).pop()
    pieces = [words.start, *before, words.end, *after, words.end]
    return TokenizedText(pieces, [0] * (len(before) + 2) + [1] * (len(after) + 1))


class TaskExample(NamedTuple):
    """One example of a task.

    Args:
        key: Identifier.
        texts: One or more texts.
        rows: The row of each text's image in the store.
        target: Scores of answers or of regions (row 0 is the whole image), or the index of the correct choice; None
            if unknown.
    """

    key: str
    texts: tuple[TokenizedText, ...]
    rows: tuple[int, ...]
    target: Float32[np.ndarray, "columns"] | int | None


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
        return max(len(text.words) for text in self.examples[index].texts)

    def example(self, epoch: int, index: int) -> TaskExample:  # noqa: ARG002
        return self.examples[index]


class TaskDataset:
    """A sample set for the loader: batches for any (epoch, index).

    Args:
        source: The examples.
        store: The regions of the images.
        words: The vocabulary.
        max_regions: Maximum number of regions of an image, without the whole image.
        as_tokens: Whether regions are visual tokens.
        blank: The ablated modality.
        batch_size: Examples per step, over all processes.
        seed: Seed of the order; None keeps the order of the source.
    """

    def __init__(
        self,
        source: ExampleSource,
        store: RegionStore,
        words: WordPieceTokenizer,
        max_regions: int,
        as_tokens: bool,
        blank: Ablation,
        batch_size: int,
        seed: int | None,
    ) -> None:
        if not len(source):
            raise ValueError("there are no examples")
        self.source, self.store, self.words, self.max_regions = source, store, words, max_regions
        self.as_tokens, self.blank, self.batch_size, self.seed = as_tokens, blank, batch_size, seed
        self.lengths = np.array([source.length(index) for index in range(len(source))])
        self.orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.source)

    def order(self, epoch: int) -> Int64[np.ndarray, "examples"]:
        """The random order of an epoch, in which examples of similar length are neighbors."""
        if self.seed is None:
            return np.arange(len(self))
        if epoch not in self.orders:
            rng = np.random.default_rng((self.seed, epoch, 0, EXAMPLE_ORDER_STREAM))
            head = min(-epoch * len(self) % self.batch_size, len(self))
            made = order_by_length(self.lengths, np.zeros_like(self.lengths), head, self.batch_size, rng)
            self.orders = {epoch - 1: self.orders[epoch - 1]} if epoch - 1 in self.orders else {}
            self.orders[epoch] = made
        return self.orders[epoch]

    def batch(self, places: Sequence[tuple[int, int]]) -> TaskBatch:
        """The examples of these (epoch, index), in this order."""
        return self.of([self.source.example(epoch, int(self.order(epoch)[index])) for epoch, index in places])

    def of(self, examples: Sequence[TaskExample]) -> TaskBatch:
        """A batch of given examples."""
        texts = [self.seen(text) for example in examples for text in example.texts]
        rows, images = np.unique([row for example in examples for row in example.rows], return_inverse=True)
        lengths = np.array([len(text.words) for text in texts])
        attended = np.arange(lengths.max()) < lengths[:, None]
        words, segments = np.full(attended.shape, self.words.padding, np.int64), np.zeros(attended.shape, np.int64)
        words[attended] = np.concatenate([text.words for text in texts])
        segments[attended] = np.concatenate([text.segments for text in texts])
        regions, locations, regions_attended = self.pictures(rows.tolist())
        return TaskBatch(
            words=torch.from_numpy(words),
            segments=torch.from_numpy(segments),
            words_attended=torch.from_numpy(attended),
            regions=torch.from_numpy(regions),
            locations=torch.from_numpy(locations),
            regions_attended=torch.from_numpy(regions_attended),
            images=torch.from_numpy(images.astype(np.int64)),
            targets=torch.from_numpy(collate_targets(examples)),
            keys=tuple(example.key for example in examples),
        )

    def seen(self, text: TokenizedText) -> TokenizedText:
        """The tokens of a text; only [CLS] and [SEP] if text is ablated."""
        return TokenizedText([self.words.start, self.words.end], [0, 0]) if self.blank == "text" else text

    def pictures(
        self, rows: Sequence[int]
    ) -> tuple[np.ndarray, Float32[np.ndarray, "images regions 5"], Bool[np.ndarray, "images regions"]]:
        """Regions (features or visual tokens), their locations and their mask, padded to the largest count."""
        seen = [self.picture(row) for row in rows]
        counts = np.array([len(places) for _, places in seen])
        attended = np.arange(counts.max()) < counts[:, None]
        first = seen[0][0]
        regions = np.zeros((*attended.shape, *first.shape[1:]), first.dtype)
        locations = np.zeros((*attended.shape, 5), np.float32)
        regions[attended] = np.concatenate([inside for inside, _ in seen])
        locations[attended] = np.concatenate([places for _, places in seen])
        return regions, locations, attended

    def picture(self, row: int) -> tuple[np.ndarray, Float32[np.ndarray, "regions 5"]]:
        """The regions of one image after row 0 (the whole image), and their locations."""
        if self.blank == "picture":
            nothing = np.array([TokenInput.IMAGE]) if self.as_tokens else np.zeros((1, self.store.dim), np.float32)
            return nothing.astype(np.int64) if self.as_tokens else nothing, np.array([WHOLE_IMAGE], np.float32)
        inside = self.store.regions(row)
        features, places = prepend_whole_image(inside, self.max_regions)
        if not self.as_tokens:
            return features, places
        assert inside.tokens is not None
        tokens = inside.tokens[: len(places) - 1].astype(np.int64) + len(TokenInput)
        return np.append(int(TokenInput.IMAGE), tokens), places


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
