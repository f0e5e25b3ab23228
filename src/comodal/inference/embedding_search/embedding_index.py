"""The index of a folder: the vectors of its images, or of its audio, kept in sync with the folder.

embeddings-MARK.rows, .json        a row for each image, frame or window: the file's hash, the time and the vector
embeddings-MARK-refused.jsonl      files that could not be read, with the reason
embeddings-MARK.centroids, ...     the compressed vectors of a large index (neighbors.py)

MARK is a hash of the model, of what is embedded, and of the folder relative to the index. The hash of a file is
computed from its path, size and modification time. Rows of new files are appended, at a cost that does not depend on
the other files. Rows of files that changed or were deleted are left out of results; when they are more than half of all
rows, the others are written to a new file.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
from jaxtyping import Float32, Int64

from comodal.data.output_folder import lock_output_folder
from comodal.errors import DataError, MediaError, run_batch_or_singly, wrap_item_errors
from comodal.files import encode_json_line, write_bytes_atomically
from comodal.inference.embedding_rows import ImageArray
from comodal.inference.embedding_search.appended_rows import append_rows, explain_write_errors, read_appended_rows
from comodal.inference.embedding_search.embedding_spaces import EmbeddingSpace
from comodal.inference.embedding_search.media_listing import MediaListing, list_media
from comodal.inference.embedding_search.search_results import ItemKind
from comodal.media.audio_windows import EmptyAudioError, iterate_windows
from comodal.media.image import read_image
from comodal.media.storage.archive_samples import Kind
from comodal.media.storage.refused_formats import RefusalReason
from comodal.media.video import iterate_frames
from comodal.progress import track_progress
from comodal.text_files import read_json_lines

MEDIA_OF: dict[ItemKind, frozenset[Kind]] = {
    "image": frozenset({"image", "video"}),
    "audio": frozenset({"audio", "video"}),
}
ROWS_PER_WRITE = 2_048


class FileVectors(NamedTuple):
    """The vectors of a file, with the times of its frames or windows; NaN for an image."""

    vectors: Float32[np.ndarray, "rows dim"]
    seconds: Float32[np.ndarray, "rows"]


@dataclass(frozen=True)
class EmbeddingIndex:
    """The vectors of a folder.

    Args:
        prefix: Path of its files, without suffix.
        listing: The files of the folder.
        files: For each row the index of its file in the listing; -1 for a file that is not there any more.
        seconds: The time of each row in its file; NaN for an image.
        vectors: Of length one.
        num_refused: Number of files that cannot be read.
    """

    prefix: Path
    listing: MediaListing
    files: Int64[np.ndarray, "rows"]
    seconds: Float32[np.ndarray, "rows"]
    vectors: Float32[np.ndarray, "rows dim"]
    num_refused: int


def update_embedding_index(
    folder: Path, index: Path, space: EmbeddingSpace, item_kind: ItemKind, media: frozenset[Kind] | None = None
) -> EmbeddingIndex:
    """Builds or updates the index of a folder.

    Args:
        folder: Of the media.
        index: Folder of the index.
        space: The model.
        item_kind: Whether images and frames, or audio is embedded.
        media: The kinds of files; by default all that have such items.

    Raises:
        DataError: There is nothing to embed, nothing can be read, or the index is damaged or cannot be written.
    """
    media = media or MEDIA_OF[item_kind]
    listing = list_media(folder, media)
    parts = f"{space.mark} {item_kind} {sorted(media)} {os.path.relpath(folder, index)}"
    prefix = index / f"embeddings-{hashlib.sha256(parts.encode(errors='surrogateescape')).hexdigest()[:16]}"
    dim = space.dims[item_kind]
    dtype = np.dtype([("file", "<i8"), ("seconds", "<f4"), ("vector", "<f4", (dim,))])
    rows, refused = read_appended_rows(prefix.with_suffix(".json"), dtype), read_refused(prefix)
    if len(list_missing(listing, rows, refused)):
        with explain_write_errors(index), lock_output_folder(index):
            rows, refused = extend_rows(prefix, dtype, listing, space, item_kind)
    files = find_files(listing, rows["file"])
    is_refused = np.isin(listing.hashes, np.fromiter(refused, np.int64, len(refused)))
    if not (files >= 0).any():
        raise DataError(
            f"{folder}: none of its {len(listing.names):,} files can be read; {name_refused_file(prefix)} lists the "
            "reasons"
        )
    vectors = np.ascontiguousarray(rows["vector"])
    return EmbeddingIndex(prefix, listing, files, rows["seconds"].copy(), vectors, int(is_refused.sum()))


def name_refused_file(prefix: Path) -> Path:
    """The report of the files that cannot be read."""
    return prefix.with_name(f"{prefix.name}-refused.jsonl")


def read_refused(prefix: Path) -> dict[int, dict[str, str | int]]:
    """The lines of the report, by the hashes of the files."""
    path = name_refused_file(prefix)
    if not path.exists():
        return {}
    try:
        return {int(line["hash"]): line for _, line in read_json_lines(path)}
    except (DataError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error!r}): delete it; the next search builds it again") from error


def list_missing(
    listing: MediaListing, rows: np.ndarray, refused: dict[int, dict[str, str | int]]
) -> Int64[np.ndarray, "missing"]:
    """The indices of files that have neither rows nor a refusal."""
    indexed = np.concatenate([rows["file"], np.fromiter(refused, np.int64, len(refused))])
    return np.flatnonzero(~np.isin(listing.hashes, indexed))


def find_files(listing: MediaListing, hashes: Int64[np.ndarray, "rows"]) -> Int64[np.ndarray, "rows"]:
    """The index of the file with each hash; -1 where there is none."""
    order = np.argsort(listing.hashes)
    positions = np.minimum(np.searchsorted(listing.hashes, hashes, sorter=order), len(order) - 1)
    files = order[positions]
    return np.where(listing.hashes[files] == hashes, files, -1)


def extend_rows(
    prefix: Path, dtype: np.dtype, listing: MediaListing, space: EmbeddingSpace, item_kind: ItemKind
) -> tuple[np.ndarray, dict[int, dict[str, str | int]]]:
    """Appends the rows of missing files, in parts, so that an interrupted command can be resumed.

    Returns:
        All rows, and the lines of the report.
    """
    manifest = prefix.with_suffix(".json")
    rows, refused = read_appended_rows(manifest, dtype), read_refused(prefix)
    is_current = np.isin(rows["file"], listing.hashes)
    if 2 * is_current.sum() < len(rows):
        rows = rows[is_current]
        for path in prefix.parent.glob(f"{prefix.name}-codes.*"):
            path.unlink()
        append_rows(manifest, rows, 0)
    num_refused = len(refused)
    present = set(listing.hashes.tolist())
    refused = {key: line for key, line in refused.items() if key in present}
    missing = list_missing(listing, rows, refused)
    parts, unwritten, num_stored = [rows], list[np.ndarray](), len(rows)
    embedded = embed_files(space, item_kind, listing, missing)
    for file, result in track_progress(embedded, "embedding", len(missing), is_shown=len(missing) > 0):
        if isinstance(result, MediaError):
            key = int(listing.hashes[file])
            refused[key] = {"id": listing.names[file], "hash": key, "reason": result.reason, "detail": result.detail}
            continue
        added = np.empty(len(result.vectors), dtype)
        added["file"], added["seconds"], added["vector"] = listing.hashes[file], result.seconds, result.vectors
        unwritten.append(added)
        if sum(map(len, unwritten)) >= ROWS_PER_WRITE:
            parts += unwritten
            append_rows(manifest, np.concatenate(unwritten), num_stored)
            num_stored, unwritten = num_stored + sum(map(len, unwritten)), []
    if unwritten:
        parts += unwritten
        append_rows(manifest, np.concatenate(unwritten), num_stored)
    if refused or num_refused:
        write_bytes_atomically(name_refused_file(prefix), b"".join(map(encode_json_line, refused.values())))
    return np.concatenate(parts), refused


def embed_files(
    space: EmbeddingSpace, item_kind: ItemKind, listing: MediaListing, files: Int64[np.ndarray, "files"]
) -> Iterator[tuple[int, FileVectors | MediaError]]:
    """The vectors of files, or why they cannot be read. Images are embedded in batches."""
    batch: list[int] = []
    for file in files.tolist():
        if listing.kinds[file] == "image":
            batch.append(file)
            if len(batch) == space.batch_size:
                yield from embed_image_files(space, listing, batch)
                batch = []
            continue
        path = listing.folder / listing.names[file]
        try:
            with wrap_item_errors(path):
                yield file, embed_frames(space, path) if item_kind == "image" else embed_audio_file(space, path)
        except MediaError as error:
            yield file, error
    yield from embed_image_files(space, listing, batch)


def embed_image_files(
    space: EmbeddingSpace, listing: MediaListing, batch: list[int]
) -> Iterator[tuple[int, FileVectors | MediaError]]:
    """The vectors of image files, which are read in threads."""
    paths = [listing.folder / listing.names[file] for file in batch]

    def read(path: Path) -> ImageArray | MediaError:
        try:
            with wrap_item_errors(path):
                return read_image(path)
        except MediaError as error:
            return error

    images = joblib.Parallel(n_jobs=-1, prefer="threads")(joblib.delayed(read)(path) for path in paths)
    readable = [i for i, image in enumerate(images) if not isinstance(image, MediaError)]
    embed_images = space.embed_images
    assert embed_images is not None

    def embed(images: Sequence[ImageArray]) -> list[FileVectors]:
        return [FileVectors(vector[None], np.full(1, np.nan, np.float32)) for vector in embed_images(images)]

    results: list[FileVectors | MediaError] = list(images)
    embedded = run_batch_or_singly(embed, [images[i] for i in readable], [paths[i] for i in readable])
    for i, result in zip(readable, embedded, strict=True):
        results[i] = result
    yield from zip(batch, results, strict=True)


def embed_frames(space: EmbeddingSpace, path: Path) -> FileVectors:
    """The vectors of the frames of a video, one for each window of the model's length.

    Raises:
        MediaError: It cannot be read, or has no frames.
    """
    assert space.embed_images is not None
    vectors, seconds, frames = list[np.ndarray](), list[float](), list[ImageArray]()
    for time, frame in iterate_frames(path, 1 / space.window_seconds):
        seconds.append(time)
        frames.append(frame)
        if len(frames) == space.batch_size:
            vectors.append(space.embed_images(frames))
            frames = []
    if frames:
        vectors.append(space.embed_images(frames))
    if not vectors:
        raise MediaError(path, RefusalReason.NO_VIDEO_STREAM, "no frame could be decoded")
    return FileVectors(np.concatenate(vectors), np.array(seconds, np.float32))


def embed_audio_file(space: EmbeddingSpace, path: Path) -> FileVectors:
    """The vectors of consecutive windows of the audio of a file; the last one is padded with zeros.

    Raises:
        MediaError: It cannot be read, or has no audio.
    """
    assert space.embed_windows is not None and space.read_audio is not None
    length = round(space.window_seconds * space.sample_rate)
    try:
        windows = iterate_windows(space.read_audio(path), length, length, False, space.batch_size)
        vectors = [space.embed_windows(np.ascontiguousarray(batch, np.float32)) for batch in windows]
    except EmptyAudioError:
        raise MediaError(path, RefusalReason.NO_AUDIO_STREAM, "the audio stream has no samples") from None
    found = np.concatenate(vectors)
    return FileVectors(found, np.arange(len(found), dtype=np.float32) * np.float32(length / space.sample_rate))
