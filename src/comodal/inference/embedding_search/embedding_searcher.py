"""Searches a folder of images, audio and videos by a text, an image or audio, with one vector for each."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64
from PIL import Image

from comodal.errors import DataError
from comodal.inference.embedding_search.embedding_index import EmbeddingIndex, embed_audio_file, update_embedding_index
from comodal.inference.embedding_search.embedding_spaces import EmbeddingSpace, QueryKind, normalize_vectors
from comodal.inference.embedding_search.neighbors import EXACT_BELOW, Neighbors, build_neighbors
from comodal.inference.embedding_search.search_results import ItemKind, SearchHit, SearchResult
from comodal.inference.joint_space.folder_index import FindKind
from comodal.media.audio_windows import iterate_windows
from comodal.media.storage.archive_samples import Kind, detect_media_kind
from comodal.media.storage.open_media import find_container
from comodal.media.user_inputs import to_rgb_array, to_waveform

NOUNS = {"text": "a text", "image": "an image", "audio": "audio", "video": "a video"}


class SearchQuery(NamedTuple):
    """A query: its kind, its value (a text, a path, or an image or audio in memory), and how results name it."""

    kind: Kind | Literal["text"]
    value: Any
    name: str


class BestFiles(NamedTuple):
    """Files with their best score and the row of it, the best first."""

    files: Int64[np.ndarray, "found"]
    scores: Float32[np.ndarray, "found"]
    rows: Int64[np.ndarray, "found"]


@dataclass(frozen=True)
class OpenIndex:
    """The index of one kind of items, and what finds its nearest vectors."""

    index: EmbeddingIndex
    neighbors: Neighbors

    def find_best_files(self, query: Float32[np.ndarray, "dim"], top_k: int) -> BestFiles:
        """The files whose best row is nearest to the query.

        A file may have many rows, and rows of deleted files are skipped: more rows are taken until there are enough.
        """
        count, num_rows = top_k, len(self.index.vectors)
        while True:
            nearest = self.neighbors.find(query, count)
            files = self.index.files[nearest.indices]
            is_present = files >= 0
            unique, first = np.unique(files[is_present], return_index=True)
            if len(unique) >= top_k or count >= num_rows:
                break
            count = min(4 * count, num_rows)
        chosen = np.flatnonzero(is_present)[np.sort(first)[:top_k]]
        return BestFiles(files[chosen], nearest.scores[chosen], nearest.indices[chosen])


@dataclass(frozen=True)
class EmbeddingSearcher:
    """Searches a folder by a model that embeds its queries and its files.

    Args:
        space: The model.
        folder: Of images, audio and videos.
        index: Folder of the index.
        find: Files to search: image (with the frames of videos), audio (with that of videos), or auto: with AVE-Net the
            other modality than that of the query, else the one that the model compares with the query.
        exact_below: Number of vectors from which on the search is approximate (extra `ann`).
    """

    space: EmbeddingSpace
    folder: Path
    index: Path
    find: FindKind = "auto"
    exact_below: int = EXACT_BELOW
    opened: dict[ItemKind, OpenIndex] = field(default_factory=dict)

    def search(self, query: Any, top_k: int = 10, sample_rate: int | float | None = None) -> SearchResult:
        """The files nearest to a query, each once; in audio and videos with the time of the best window or frame.

        Args:
            query: A text; the path of an image, an audio file or a video, which stands for its audio; an image in
                memory; or with `sample_rate` audio in memory. Audio longer than the model's window is embedded in
                windows, whose mean is compared.
            top_k: Number of files.
            sample_rate: Of samples in memory, in Hz.

        Raises:
            DataError: There is no such file, there is nothing to search, or the index is damaged.
            MediaError: The query cannot be read.
            ValueError: The model cannot compare the query with the files.
        """
        if top_k < 1:
            raise ValueError(f"top_k ({top_k}) must be at least 1")
        resolved = resolve_query(query, sample_rate)
        item_kind = self.choose_item_kind(resolved)
        vector = self.embed_query(resolved, sample_rate)
        opened = self.open(item_kind)
        start_seconds = time.perf_counter()
        best = opened.find_best_files(vector, top_k)
        seconds = time.perf_counter() - start_seconds
        index = opened.index
        hits = [
            SearchHit(
                self.folder / index.listing.names[file],
                float(score),
                None if np.isnan(index.seconds[row]) else float(index.seconds[row]),
            )
            for file, score, row in zip(best.files.tolist(), best.scores.tolist(), best.rows.tolist(), strict=True)
        ]
        return SearchResult(
            query=resolved.name,
            score_kind="cosine",
            best=hits,
            num_files=len(index.listing.names) - index.num_refused,
            num_scored=len(index.vectors),
            first_stage_milliseconds=1000 * seconds,
            recall=None,
            seconds=seconds,
            item_kind=item_kind,
        )

    def open(self, item_kind: ItemKind) -> OpenIndex:
        """The index of the images or of the audio, which is built or updated when it is first needed."""
        if item_kind not in self.opened:
            index = update_embedding_index(self.folder, self.index, self.space, item_kind)
            self.opened[item_kind] = OpenIndex(index, build_neighbors(index.prefix, index.vectors, self.exact_below))
        return self.opened[item_kind]

    def choose_item_kind(self, query: SearchQuery) -> ItemKind:
        """The kind of items that a query is compared with.

        Raises:
            ValueError: The model does not embed such a query, or does not compare it with these items.
        """
        kind: QueryKind = "audio" if query.kind == "video" else query.kind
        targets = self.space.targets.get(kind)
        if targets is None:
            supported = " or ".join(NOUNS[name] for name in self.space.targets)
            stands = " (a video stands for its audio)" if query.kind == "video" else ""
            raise ValueError(
                f"{query.name!r} is {NOUNS[query.kind]}{stands}, and {self.space.name} searches by {supported}"
            )
        if self.find == "auto":
            return targets[0]
        if self.find not in targets:
            raise ValueError(
                f"{query.name!r} is {NOUNS[query.kind]}: {self.space.name} compares it with {' and '.join(targets)}, "
                f"not with {self.find}"
            )
        return self.find

    def embed_query(self, query: SearchQuery, sample_rate: int | float | None) -> Float32[np.ndarray, "dim"]:
        """The vector of a query, of length one."""
        space, value = self.space, query.value
        if query.kind == "text":
            assert space.embed_text is not None
            return space.embed_text(value)
        if query.kind == "image":
            assert space.embed_images is not None
            return space.embed_images([to_rgb_array(value)])[0]
        assert space.embed_windows is not None and space.resample is not None
        if isinstance(value, Path):
            vectors = embed_audio_file(space, value).vectors
        else:
            waveform = to_waveform(value, sample_rate)
            samples = space.resample(waveform.samples, waveform.sample_rate)
            length = round(space.window_seconds * space.sample_rate)
            batches = iterate_windows([samples], length, length, False, space.batch_size)
            vectors = np.concatenate(
                [space.embed_windows(np.ascontiguousarray(batch, np.float32)) for batch in batches]
            )
        mean: Float32[np.ndarray, dim] = normalize_vectors(vectors.mean(0, keepdims=True))[0]
        return mean


def resolve_query(query: Any, sample_rate: int | float | None = None) -> SearchQuery:
    """What a query is: a text is a path if it has the suffix of a media file.

    Raises:
        DataError: There is no such file.
        ValueError: The text is empty, or the file is no image, audio or video.
    """
    if not isinstance(query, str | os.PathLike):
        if sample_rate is not None:
            return SearchQuery("audio", query, "audio")
        if isinstance(query, Image.Image | np.ndarray | torch.Tensor):
            return SearchQuery("image", query, "image")
        raise TypeError(f"got {type(query).__name__}; pass a text, a path, an image, or audio with its sample_rate")
    name = os.fspath(query)
    kind = detect_media_kind(name)
    if kind is None and isinstance(query, os.PathLike):
        raise ValueError(f"{name}: not an image, an audio file or a video by its suffix")
    if kind is None:
        if not name.strip():
            raise ValueError("the text is empty: describe what to find")
        return SearchQuery("text", name, name)
    if not (Path(name).exists() or find_container(Path(name))):
        raise DataError(f"{name} does not exist; a text that is no path has no suffix of a media file")
    return SearchQuery(kind, Path(name), name)
