"""Batches of embeddings with their timestamps, from audio, images and video frames."""

from collections.abc import Iterable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from comodal.data.sources.file_batches import EmbeddingRows
from comodal.inference.embedder import Embedder, OpenL3Version
from comodal.inference.openl3_images import RESCALED_SIDE, crop_center, prepare_squares, prepare_squares_as_openl3
from comodal.media.audio import stream_audio, stream_native_audio
from comodal.media.audio_windows import iterate_windows
from comodal.media.image import crop_image_center, resize_short_side
from comodal.media.resample_kaiser import KaiserStream
from comodal.media.video import iterate_all_frames, read_video_info

ImageArray: TypeAlias = UInt8[np.ndarray, "_ _ 3"]


def embed_audio_blocks(
    blocks: Iterable[Float[np.ndarray, " samples"]],
    embedder: Embedder,
    hop_seconds: float,
    center: bool,
    batch_size: int,
) -> Iterator[EmbeddingRows]:
    """Batches of embeddings and timestamps of audio, from its consecutive blocks."""
    window_indices = count()
    sample_rate = embedder.config.sample_rate
    window = round(embedder.config.audio_seconds * sample_rate)
    hop = compute_hop_samples(hop_seconds, sample_rate, embedder.options.as_openl3)
    for windows in iterate_windows(blocks, window, hop, center, batch_size):
        vectors, silent = embedder.embed_audio(windows)
        seconds = np.array([next(window_indices) for _ in windows]) * hop_seconds
        yield EmbeddingRows(vectors, seconds, silent if embedder.about and not embedder.options.as_openl3 else None)


def compute_hop_samples(hop_seconds: float, sample_rate: int, as_openl3: OpenL3Version | None) -> int | float:
    """Samples from window to window. OpenL3 truncates them to an integer, but computes timestamps without it."""
    return int(hop_seconds * sample_rate) if as_openl3 else hop_seconds * sample_rate


def embed_image_batches(
    images: Iterable[ImageArray], embedder: Embedder, batch_size: int
) -> Iterator[Float32[np.ndarray, "images features"]]:
    """Batches of embeddings. An image is scaled to 8/7 of the model's square (256 for 224) and center-cropped."""
    if embedder.about:
        prepare = prepare_squares_as_openl3 if embedder.options.as_openl3 else prepare_squares
        pixels = (prepare(image[None])[0] for image in images)
        while square_batch := list(islice(pixels, batch_size)):
            yield embedder.embed_pixels(np.stack(square_batch))
        return
    size = embedder.config.image_size
    cut = (crop_image_center(resize_short_side(image, round(size * 8 / 7)), size) for image in images)
    while batch := list(islice(cut, batch_size)):
        yield embedder.embed_images(np.stack(batch))


def read_embedder_audio(path: Path, embedder: Embedder) -> Iterator[Float[np.ndarray, " samples"]]:
    """The audio of a file at the network's sample rate, in blocks."""
    if not embedder.about:
        yield from stream_audio(path, embedder.config.sample_rate)
        return
    stream = None
    for sample_rate, block in stream_native_audio(path):
        if stream is None and sample_rate != embedder.config.sample_rate:
            stream = KaiserStream(sample_rate, embedder.config.sample_rate)
        yield block if stream is None else stream.push(block)
    if stream is not None:
        yield stream.finish()


def embed_timed_frames(
    timed: Iterable[tuple[float, ImageArray]], embedder: Embedder, batch_size: int
) -> Iterator[EmbeddingRows]:
    """Embeddings of images with their timestamps."""
    times: list[float] = []

    def frames() -> Iterator[ImageArray]:
        for seconds, frame in timed:
            times.append(seconds)
            yield frame

    for batch in embed_image_batches(frames(), embedder, batch_size):
        yield EmbeddingRows(batch, np.array(times[-len(batch) :]))


def embed_video_as_openl3(path: Path, embedder: Embedder, batch_size: int) -> Iterator[EmbeddingRows]:
    """Embeds every frame as OpenL3 0.4.2 does: resized to 256 x 256, divided by the maximum of the whole video, with
    timestamps from an integer frame rate. Pillow resizes instead of FFmpeg, so that bytes may differ by one.
    """
    frame_rate = read_video_info(path).frames_per_second

    def frames() -> Iterator[ImageArray]:
        for _, frame in iterate_all_frames(path):
            squashed = Image.fromarray(frame).resize((RESCALED_SIDE, RESCALED_SIDE), Image.Resampling.BICUBIC)
            yield crop_center(np.asarray(squashed)[None])[0]

    max_value = max((int(frame.max()) for frame in frames()), default=1) or 1
    frame_indices, pixels = count(), frames()
    while batch := list(islice(pixels, batch_size)):
        vectors = embedder.embed_pixels((np.stack(batch) / np.float32(max_value)).astype(np.float32))
        yield EmbeddingRows(vectors, np.array([next(frame_indices) for _ in batch]) / max(int(frame_rate), 1))
