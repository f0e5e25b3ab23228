"""`openl3.core`: OpenL3's functions of arrays and files, with its names, parameters, defaults and results.

They follow OpenL3 0.4.2 (openl3/core.py) without its bugs; `with comodal.openl3.settings(as_openl3="0.4.2")` reproduces
these too. docs/systems/openl3.md lists the differences and the reasons.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped

from comodal.console import print_line
from comodal.data.sources.file_batches import EmbeddingRows, write_embedding_rows
from comodal.errors import ComodalError
from comodal.inference.embed_files import describe_output
from comodal.inference.embedding_rows import (
    compute_hop_samples,
    embed_audio_blocks,
    embed_image_batches,
    embed_timed_frames,
    embed_video_as_openl3,
    read_embedder_audio,
)
from comodal.inference.openl3_images import INPUT_SIDE, prepare_squares, prepare_squares_as_openl3
from comodal.media.audio_windows import EmptyAudioError, iterate_windows
from comodal.media.image import read_image
from comodal.media.resample_kaiser import MAX_SAMPLE_RATE, resample_kaiser
from comodal.media.storage.refused_formats import MAX_AMPLITUDE
from comodal.media.video import iterate_all_frames
from comodal.models.l3net.spectrogram import Spectrogram
from comodal.models.l3net.spectrogram import make_openl3_spectrogram_config as openl3_spectrogram
from comodal.openl3.models import (
    CURRENT,
    DEFAULT,
    EXTENDED_FRONTENDS,
    VALID_AUDIO_EMBEDDING_SIZES,
    VALID_CONTENT_TYPES,
    VALID_FRONTENDS,
    VALID_IMAGE_EMBEDDING_SIZES,
    VALID_INPUT_REPRS,
    EmbeddingModel,
    as_list,
    check_choice,
    describe,
    load_audio_embedding_model,
    load_image_embedding_model,
)
from comodal.openl3.openl3_exceptions import OpenL3Error
from comodal.openl3.openl3_warnings import OpenL3Warning

TARGET_SR = 48_000
Array = Shaped[np.ndarray, "..."]
Arrays = Array | list[Array]
AnyValue = Any  # checked by hand: invalid values raise an OpenL3Error, as in OpenL3


def get_audio_embedding(
    audio: AnyValue,
    sr: AnyValue,
    model: AnyValue = None,
    input_repr: str | None = None,
    content_type: str = "music",
    embedding_size: AnyValue = 6144,
    center: AnyValue = True,
    hop_size: AnyValue = 0.1,
    batch_size: int = 32,
    frontend: str = "kapre",
    verbose: AnyValue = True,
) -> tuple[Arrays, Arrays]:
    """Returns embeddings of audio, (windows, features), and their timestamps; lists of both for a list of audio.

    A window of zeros gives an embedding of zeros. OpenL3 scales decibels to the window's own maximum, so that digital
    silence looks like the loudest noise.
    """
    model = pick_audio_model(model, input_repr, content_type, embedding_size, frontend)
    check_choice("verbosity level", verbose, (0, 1))
    check_batch(batch_size)
    audio_list = as_list(audio, "audio")
    sample_rates = list(sr) if isinstance(sr, list) else [sr] * len(audio_list)
    if len(sample_rates) != len(audio_list):
        raise OpenL3Error(f"{len(audio_list)} audio arrays and {len(sample_rates)} sample rates")
    vectors, times = [], []
    for samples, sample_rate in zip(audio_list, sample_rates, strict=True):
        mono = convert_audio(samples, sample_rate, hop_size, center)
        batches = list(embed_audio_blocks([mono], model.embedder, float(hop_size), bool(center), batch_size))
        vectors.append(np.concatenate([rows.vectors for rows in batches]))
        times.append(np.arange(len(vectors[-1])) * hop_size)
    return (vectors, times) if isinstance(audio, list) else (vectors[0], times[0])


def preprocess_audio(
    audio: AnyValue, sr: AnyValue, hop_size: AnyValue = 0.1, input_repr: str | None = None, center: AnyValue = True
) -> Array:
    """Returns windows of one second, (windows, 1, 48000), or librosa's decibels, (windows, bands, frames, 1)."""
    mono = convert_audio(audio, sr, hop_size, center)
    hop = compute_hop_samples(float(hop_size), TARGET_SR, CURRENT.get(DEFAULT).as_openl3)
    windows = np.concatenate(list(iterate_windows([mono], TARGET_SR, hop, bool(center), 32)))
    if not input_repr:
        return windows[:, None]
    check_choice("input representation", input_repr, VALID_INPUT_REPRS)
    spectrogram = Spectrogram(openl3_spectrogram(input_repr, "librosa")).double()  # type: ignore[arg-type]
    spectrogram.window = torch.hann_window(spectrogram.config.window_samples, dtype=torch.float64)
    parts = torch.from_numpy(windows.astype(np.float64)).split(4)
    return torch.cat([spectrogram(part).float() for part in parts]).permute(0, 2, 3, 1).numpy()


def get_image_embedding(
    image: AnyValue,
    frame_rate: AnyValue = None,
    model: AnyValue = None,
    input_repr: str = "mel256",
    content_type: str = "music",
    embedding_size: AnyValue = 8192,
    batch_size: int = 32,
    verbose: AnyValue = True,
) -> Arrays | tuple[Arrays, Arrays]:
    """Returns embeddings of one image (rows, columns, 3), of images of one size, or of a list of such arrays; with a
    frame rate also timestamps. Images are uint8, or floats in [0, 1] or [-1, 1]."""
    model = pick_image_model(model, input_repr, content_type, embedding_size)
    check_choice("verbosity level", verbose, (0, 1))
    check_batch(batch_size)
    image_list = as_list(image, "image")
    frame_rates = list(frame_rate) if isinstance(frame_rate, list) else [frame_rate] * len(image_list)
    if len(frame_rates) != len(image_list):
        raise OpenL3Error(f"{len(image_list)} images and {len(frame_rates)} frame rates")
    vectors, times = [], []
    for images, rate_hz in zip(image_list, frame_rates, strict=True):
        if rate_hz is not None and (not isinstance(rate_hz, Real) or not 0 < float(rate_hz) < math.inf):
            raise OpenL3Error(f"Invalid frame rate {rate_hz}")
        parts = [
            model.embedder.embed_pixels(pixels) for pixels in iterate_pixels(convert_images(images), batch_size, model)
        ]
        vectors.append(np.concatenate(parts))
        times.append(np.arange(len(vectors[-1])) / float(rate_hz or 1))
    if all(rate_hz is None for rate_hz in frame_rates):
        return vectors if isinstance(image, list) else vectors[0]
    return (vectors, times) if isinstance(image, list) else (vectors[0], times[0])


def process_audio_file(
    filepath: AnyValue,
    output_dir: str | None = None,
    suffix: str | None = None,
    model: AnyValue = None,
    input_repr: str | None = None,
    content_type: str = "music",
    embedding_size: AnyValue = 6144,
    center: AnyValue = True,
    hop_size: AnyValue = 0.1,
    batch_size: int = 32,
    overwrite: bool = False,
    frontend: str = "kapre",
    verbose: AnyValue = True,
) -> None:
    """Writes NAME[_suffix].npz with `embedding` and `timestamps` for each audio file, in bounded memory."""
    embedder = pick_audio_model(model, input_repr, content_type, embedding_size, frontend).embedder
    check_windows(hop_size, center)
    check_batch(batch_size)

    def work(path: Path, result: Path) -> int:
        rows = embed_audio_blocks(
            read_embedder_audio(path, embedder), embedder, float(hop_size), bool(center), batch_size
        )
        return write_embedding_rows(result, rows, describe_output(embedder, hop_seconds=hop_size, center=bool(center)))

    process_files(filepath, [(suffix or "", work)], output_dir, overwrite, verbose)


def process_image_file(
    filepath: AnyValue,
    output_dir: str | None = None,
    suffix: str | None = None,
    model: AnyValue = None,
    input_repr: str = "mel256",
    content_type: str = "music",
    embedding_size: AnyValue = 8192,
    batch_size: int = 32,
    overwrite: bool = False,
    verbose: AnyValue = True,
) -> None:
    """Writes NAME[_suffix].npz with `embedding` for each image file, one by one (`batch_size` is unused)."""
    embedder = pick_image_model(model, input_repr, content_type, embedding_size).embedder
    check_batch(batch_size)

    def work(path: Path, result: Path) -> int:
        pixels = read_image(path)
        convert_images(pixels)
        seconds = None if embedder.options.as_openl3 else np.zeros(1)
        vectors = embed_image_batches([pixels], embedder, 1)
        return write_embedding_rows(
            result, (EmbeddingRows(rows, seconds) for rows in vectors), describe_output(embedder)
        )

    process_files(filepath, [(suffix or "", work)], output_dir, overwrite, verbose)


def process_video_file(
    filepath: AnyValue,
    output_dir: str | None = None,
    suffix: str | None = None,
    audio_model: AnyValue = None,
    image_model: AnyValue = None,
    input_repr: str | None = None,
    content_type: str = "music",
    audio_embedding_size: AnyValue = 6144,
    audio_center: AnyValue = True,
    audio_hop_size: AnyValue = 0.1,
    image_embedding_size: AnyValue = 8192,
    audio_batch_size: int = 32,
    image_batch_size: int = 32,
    audio_frontend: str = "kapre",
    overwrite: bool = False,
    verbose: AnyValue = True,
) -> None:
    """Writes NAME_audio[_suffix].npz and NAME_image[_suffix].npz for each video, with every frame."""
    audio_embedder = pick_audio_model(
        audio_model, input_repr, content_type, audio_embedding_size, audio_frontend
    ).embedder
    image_embedder = pick_image_model(image_model, input_repr or "mel256", content_type, image_embedding_size).embedder
    check_windows(audio_hop_size, audio_center)
    check_batch(audio_batch_size)
    check_batch(image_batch_size)

    def write_audio(path: Path, result: Path) -> int:
        rows = embed_audio_blocks(
            read_embedder_audio(path, audio_embedder),
            audio_embedder,
            float(audio_hop_size),
            bool(audio_center),
            audio_batch_size,
        )
        return write_embedding_rows(
            result, rows, describe_output(audio_embedder, hop_seconds=audio_hop_size, center=bool(audio_center))
        )

    def write_image(path: Path, result: Path) -> int:
        if image_embedder.options.as_openl3:
            return write_embedding_rows(result, embed_video_as_openl3(path, image_embedder, image_batch_size))
        return write_embedding_rows(
            result,
            embed_timed_frames(iterate_all_frames(path), image_embedder, image_batch_size),
            describe_output(image_embedder),
        )

    ending = f"_{suffix}" if suffix else ""
    process_files(
        filepath, [(f"audio{ending}", write_audio), (f"image{ending}", write_image)], output_dir, overwrite, verbose
    )


def get_output_path(filepath: str, suffix: str, output_dir: str | None = None) -> str:
    """Returns the output path: folder, file name without extension, an underscore unless a dot follows, suffix."""
    source = Path(filepath)
    name = source.stem + ("" if suffix.startswith(".") else "_") + suffix
    return str(Path(output_dir or source.parent) / name)


def process_files(
    filepath: AnyValue,
    works: list[tuple[str, Callable[[Path, Path], int]]],
    output_dir: str | None,
    overwrite: bool,
    verbose: bool,
) -> None:
    """Runs each task on each file whose output does not exist. A file that fails does not stop the others.

    Raises:
        OpenL3Error: A file is missing or could not be read; the outputs of all other files are written first.
    """
    paths = [filepath] if isinstance(filepath, str) else filepath
    if not isinstance(paths, list) or not all(isinstance(path, str | Path) for path in paths):
        raise OpenL3Error(f"filepath should be type str or list[str], but got {filepath!r}")
    problems = []
    for index, path in enumerate(paths, 1):
        if verbose:
            print_line(f"openl3: Processing {path} ({index}/{len(paths)})")
        for suffix, work in works:
            result = Path(get_output_path(str(path), f"{suffix}.npz", output_dir))
            if result.is_file() and not overwrite:
                print_line(f"openl3: {result} exists and overwriting not enabled, skipping.")
                continue
            try:
                work(Path(path), result)
            except (ComodalError, EmptyAudioError) as error:
                problems.append(str(error))
            else:
                if verbose:
                    print_line(f"openl3: Saved {result}")
    if problems:
        raise OpenL3Error(f"{problems[0]}" + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""))


def pick_audio_model(
    model: AnyValue, input_repr: str | None, content_type: str, embedding_size: AnyValue, frontend: str
) -> EmbeddingModel:
    """Returns the given audio model, or loads the requested one."""
    check_choice("frontend", frontend, (*VALID_FRONTENDS, *EXTENDED_FRONTENDS))
    if frontend == "librosa" and input_repr is None:
        raise OpenL3Error("You must specify input_repr for a librosa frontend.")
    check_choice("input representation", input_repr or "mel256", VALID_INPUT_REPRS)
    check_choice("content type", content_type, VALID_CONTENT_TYPES)
    check_choice("embedding size", embedding_size, VALID_AUDIO_EMBEDDING_SIZES)
    if model is None:
        return load_audio_embedding_model(input_repr or "mel256", content_type, embedding_size, frontend)
    check_model(model)
    if (model.frontend == "librosa") != (frontend == "librosa"):
        raise OpenL3Error(f"the model was loaded with the frontend {model.frontend!r}, not {frontend!r}")
    return model


def pick_image_model(model: AnyValue, input_repr: str, content_type: str, embedding_size: AnyValue) -> EmbeddingModel:
    """Returns the given image model, or loads the requested one."""
    check_choice("input representation", input_repr, VALID_INPUT_REPRS)
    check_choice("content type", content_type, VALID_CONTENT_TYPES)
    check_choice("embedding size", embedding_size, VALID_IMAGE_EMBEDDING_SIZES)
    return check_model(model or load_image_embedding_model(input_repr, content_type, embedding_size))


def check_model(model: object) -> EmbeddingModel:
    """Raises an error unless the model is one of comodal's."""
    if not isinstance(model, EmbeddingModel):
        raise OpenL3Error(f"Invalid model of type {type(model)}; comodal.openl3.models loads those that fit")
    return model


def convert_audio(audio: object, sr: object, hop_size: object, center: object) -> Array:
    """Converts audio to mono at 48 kHz."""
    if not isinstance(audio, np.ndarray) or audio.ndim not in (1, 2) or audio.size == 0:
        raise OpenL3Error(f"audio must be an array of 1 or 2 dimensions that is not empty, got {describe(audio)}")
    if audio.dtype.kind not in "biuf" or not (np.abs(audio) <= MAX_AMPLITUDE).all():
        raise OpenL3Error(
            f"audio must be real numbers, none infinite or nan or beyond {MAX_AMPLITUDE:g}, got {audio.dtype}"
        )
    if not isinstance(sr, Real) or not 1 <= float(sr) <= MAX_SAMPLE_RATE:
        raise OpenL3Error(f"Invalid sample rate {sr}")
    check_windows(hop_size, center)
    if not audio.any():
        warnings.warn("Provided audio is all zeros", OpenL3Warning, stacklevel=3)
    mono = audio.mean(axis=1) if audio.ndim == 2 else audio.astype(np.float64)
    mono = resample_kaiser(mono, float(sr), TARGET_SR)
    if not mono.size:
        raise OpenL3Error(f"audio of {len(audio)} samples at {sr} Hz is too short to resample")
    if len(mono) < TARGET_SR:
        warnings.warn("The audio is shorter than a window (1 second) and is padded.", OpenL3Warning, stacklevel=3)
    return mono


def check_windows(hop_size: object, center: object) -> None:
    """Checks that the hop size is at least one sample."""
    if not isinstance(hop_size, Real) or not 1 <= float(hop_size) * TARGET_SR < math.inf:
        raise OpenL3Error(f"Invalid hop size {hop_size}")
    check_choice("center value", center, (True, False))


def check_batch(batch_size: object) -> None:
    """Checks that the batch size is a positive integer."""
    if not isinstance(batch_size, Integral) or batch_size < 1:
        raise OpenL3Error(f"Invalid batch size {batch_size}")


def convert_images(images: object) -> Array:
    """Converts images to (images, rows, columns, 3)."""
    if not isinstance(images, np.ndarray) or images.ndim not in (3, 4) or images.size == 0:
        raise OpenL3Error(f"image must be an array of 3 or 4 dimensions that is not empty, got {describe(images)}")
    if images.dtype.kind not in "biuf":
        raise OpenL3Error(f"image must be real numbers, got {images.dtype}")
    if images.shape[-1] != 3:
        raise OpenL3Error(f"Need 3 channel images corresponding to RGB, got {images.shape[-1]} channels")
    if min(images.shape[-3:-1]) < INPUT_SIDE:
        raise OpenL3Error(
            f"Image(s) must be at least {INPUT_SIDE}x{INPUT_SIDE} px, got {images.shape[-3]}x{images.shape[-2]}"
        )
    if not images.any():
        warnings.warn("Provided image is all zeros", OpenL3Warning, stacklevel=3)
    return images if images.ndim == 4 else images[None]


def iterate_pixels(images: Array, batch_size: int, model: EmbeddingModel) -> Iterator[Array]:
    """The network's input, in batches. The range of floats is determined over all images together."""
    if model.embedder.options.as_openl3 or images.dtype != np.uint8:
        try:
            ready = (prepare_squares_as_openl3 if model.embedder.options.as_openl3 else prepare_squares)(images)
        except ValueError as error:
            raise OpenL3Error(str(error)) from error
        yield from (ready[first : first + batch_size] for first in range(0, len(ready), batch_size))
    else:
        yield from (prepare_squares(images[first : first + batch_size]) for first in range(0, len(images), batch_size))
