"""Embeds files: writes `.npz` files with `embedding` and `timestamps`, with names and windows as in OpenL3.

Audio of any length is read, embedded and written in bounded memory. Files are processed in parallel. Files that cannot
be read are reported after all others are written. Existing results are skipped. With OpenL3 weights the results also
store which windows are silent, and in `about` how they were made.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import joblib
import numpy as np
from jaxtyping import Float32

from comodal.data.sources.file_batches import (
    BatchedWork,
    EmbeddingRows,
    EmbeddingSummary,
    FileJob,
    FileJobs,
    FileOutcome,
    attempt_job,
    attempt_jobs,
    plan_file_jobs,
    run_file_jobs,
    write_embedding_rows,
)
from comodal.errors import MediaError, run_batch_or_singly
from comodal.flat_parameters import flatten_parameters
from comodal.hardware import DeviceName, EmbedPrecision
from comodal.inference.embedder import Embedder, EmbedderOptions, OpenL3Version, load_embedder
from comodal.inference.embedding_rows import (
    ImageArray,
    embed_audio_blocks,
    embed_image_batches,
    embed_timed_frames,
    embed_video_as_openl3,
    read_embedder_audio,
)
from comodal.inference.openl3_images import INPUT_SIDE
from comodal.media.audio_windows import EmptyAudioError
from comodal.media.image import read_image
from comodal.media.storage.refused_formats import RefusalReason
from comodal.media.storage.suffixes import AUDIO_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES
from comodal.media.user_inputs import to_path, to_path_list
from comodal.media.video import iterate_frames
from comodal.models.convert.convert_openl3 import TowerModality
from comodal.models.l3net.spectrogram import Frontend
from comodal.runtimes.export_formats import EngineChoice

OUTPUT_SUFFIXES = ("_audio", "_image")


@dataclass(frozen=True)
class EmbeddingOptions:
    """The options that the commands for audio, images and videos share.

    Args:
        workers: processes; 0 is one per core.
        overwrite: compute existing results again.
        as_openl3: reproduce this version of OpenL3, including its errors (only for OpenL3 weights).
        device: auto (CUDA, else MPS, else the CPU), cpu, cuda or mps. On a GPU one process embeds.
        precision: auto (bf16 where the hardware computes it natively, else fp32; fp32 with as_openl3), fp32, bf16, or
            int8 (of an exported engine).
        engine: torch, or an export of `comodal export` for onnx or openvino (which may be in int8). auto selects torch
            if its fused convolutions run on this CPU, or else an installed engine that the model was exported for.
    """

    workers: int = 0
    overwrite: bool = False
    as_openl3: OpenL3Version | None = None
    device: DeviceName = "auto"
    precision: EmbedPrecision = "auto"
    engine: EngineChoice = "auto"

    def choose_embedder(self, size: int | None = None, frontend: Frontend | None = None) -> EmbedderOptions:
        """The options of the embedder."""
        return EmbedderOptions(self.as_openl3, frontend, self.precision, size, self.device, engine=self.engine)

    def run(self, jobs: FileJobs, work: Callable[[FileJob], int], batched: BatchedWork | None) -> EmbeddingSummary:
        """Embeds the files of the jobs; returns what was written and skipped."""
        return run_file_jobs(jobs, work, self.workers, self.overwrite, batched)


@dataclass(frozen=True)
class AudioWindows:
    """The windows of audio that are embedded.

    Args:
        hop_seconds: time between windows of one second.
        center: window k is centered on its timestamp (padded by half a window of silence); otherwise it starts there.
        batch_size: windows, or frames of a video, in memory at a time, by default 32 or on a GPU 256; it bounds memory
            and changes no result.
        frontend: spectrogram frontend of OpenL3; by default the one that its weights were trained with (kapre014).
    """

    hop_seconds: float = 0.1
    center: bool = True
    batch_size: int | None = None
    frontend: Frontend | None = None

    def check(self) -> None:
        """Raises ValueError if a number is not positive."""
        if not self.hop_seconds > 0 or (self.batch_size is not None and self.batch_size < 1):
            raise ValueError(
                f"hop_seconds ({self.hop_seconds}) must be positive and batch_size ({self.batch_size}) at least 1"
            )

    def fill_batch_size(self, embedder: Embedder) -> "AudioWindows":
        """The windows with the batch size of an embedder where none is given."""
        return replace(self, batch_size=self.batch_size or embedder.batch_size)


DEFAULT_OPTIONS, DEFAULT_WINDOWS = EmbeddingOptions(), AudioWindows()


@flatten_parameters
def embed_audio(
    files: Sequence[Path | str],
    model: Path | str,
    out: Path | str | None = None,
    *,
    size: int | None = None,
    windows: AudioWindows = DEFAULT_WINDOWS,
    options: EmbeddingOptions = DEFAULT_OPTIONS,
) -> EmbeddingSummary:
    """Embeds audio files: one vector per hop, NAME.npz with `embedding` and `timestamps`.

    If several files have the same NAME, or NAME.npz exists and was made from another file, the results keep the
    suffixes of the files: a.wav.npz, a.mp3.npz.

    Args:
        files: audio files (or videos with audio), folders of them, or tar, Parquet or Arrow files with audio.
        model: run folder or model folder, or a file of OpenL3 weights (.h5, .h5.gz, .pth.tar).
        out: folder of the results; by default the folder of each file.
        windows: The windows of audio.
        size: dimension of the embeddings; by default all features (6144). OpenL3's smaller ones have 512.
        options: The options that these commands share.

    Returns:
        The numbers of written and skipped files, and of embeddings.

    Raises:
        DataError: some files could not be read; all others are written first.

    Examples:
        comodal embed audio recordings/ --model RUN --out vectors/
    """
    windows.check()
    model, jobs = to_path(model), plan_file_jobs(to_path_list(files), AUDIO_SUFFIXES, to_optional_path(out), ("",))
    choice = options.choose_embedder(size, windows.frontend)
    embedder = load_embedder_for(model, choice, "audio")
    work = partial(write_audio_embedding, model=model, options=choice, windows=windows.fill_batch_size(embedder))
    return options.run(jobs, work, choose_gpu_batching(work, options.workers, embedder))


@flatten_parameters
def embed_image(
    files: Sequence[Path | str],
    model: Path | str,
    out: Path | str | None = None,
    *,
    size: int | None = None,
    options: EmbeddingOptions = DEFAULT_OPTIONS,
) -> EmbeddingSummary:
    """Embeds images: NAME.npz with `embedding` of one row (and a timestamp of 0).

    If several files have the same NAME, or NAME.npz exists and was made from another file, the results keep the
    suffixes of the files: a.jpg.npz, a.png.npz.

    Args:
        files: images, folders of them, or tar, Parquet or Arrow files with images.
        model: run folder or model folder, or a file of OpenL3 weights (.h5, .h5.gz, .pth.tar).
        out: folder of the results; by default the folder of each file.
        size: dimension of the embeddings; by default all features (8192). OpenL3's smaller ones have 512.
        options: The options that these commands share.

    Returns:
        The numbers of written and skipped files, and of embeddings.

    Raises:
        DataError: some files could not be read; all others are written first.

    Examples:
        comodal embed image images/ --model RUN --out vectors/
    """
    model, jobs = to_path(model), plan_file_jobs(to_path_list(files), {*IMAGE_SUFFIXES}, to_optional_path(out), ("",))
    choice = options.choose_embedder(size)
    embedder = load_embedder_for(model, choice, "image")
    work, batch_work = (
        partial(write_image, model=model, options=choice),
        partial(write_images, model=model, options=choice),
    )
    return options.run(jobs, work, BatchedWork(batch_work, embedder.batch_size) if embedder.is_on_gpu else None)


@flatten_parameters
def embed_video(
    files: Sequence[Path | str],
    model: Path | str,
    out: Path | str | None = None,
    *,
    frames_per_second: float = 1.0,
    windows: AudioWindows = DEFAULT_WINDOWS,
    options: EmbeddingOptions = DEFAULT_OPTIONS,
) -> EmbeddingSummary:
    """Embeds videos: NAME_audio.npz and NAME_image.npz, with timestamps on the video's own clock.

    If several files have the same NAME, or the results exist and were made from another file, the results keep the
    suffixes of the files: a.mp4_audio.npz, a.webm_audio.npz.

    Args:
        files: videos, folders of them, or tar, Parquet or Arrow files with videos.
        model: run folder or model folder, or a file of OpenL3 weights (.h5, .h5.gz, .pth.tar).
        out: folder of the results; by default the folder of each file.
        frames_per_second: frames to embed per second; each is the frame that a player shows at that moment.
        windows: The windows of audio.
        options: The options that these commands share.
        as_openl3: reproduce this version of OpenL3, which embeds every frame, stretched to 256 x 256.

    Returns:
        The numbers of written and skipped files, and of embeddings.

    Raises:
        DataError: some files could not be read; all others are written first.

    Examples:
        comodal embed video clips/ --model RUN --out vectors/ --frames-per-second 5
    """
    windows.check()
    if not frames_per_second > 0:
        raise ValueError(f"frames_per_second ({frames_per_second}) must be positive")
    model, jobs = (
        to_path(model),
        plan_file_jobs(to_path_list(files), VIDEO_SUFFIXES, to_optional_path(out), OUTPUT_SUFFIXES),
    )
    choice = options.choose_embedder(frontend=windows.frontend)
    embedder = load_embedder_for(model, choice, "image", "audio")
    work = partial(
        write_video_embeddings,
        model=model,
        options=choice,
        frames_per_second=frames_per_second,
        windows=windows.fill_batch_size(embedder),
    )
    return options.run(jobs, work, choose_gpu_batching(work, options.workers, embedder))


def to_optional_path(path: Path | str | None) -> Path | None:
    """A path that may be missing."""
    return path if path is None else to_path(path)


def load_embedder_for(model: Path, options: EmbedderOptions, *modalities: TowerModality) -> Embedder:
    """Loads the model, so that an unsuitable one is reported before any file is opened."""
    embedder = load_embedder(model, options)
    for modality in modalities:
        embedder.prepare(modality)
    return embedder


def choose_gpu_batching(work: Callable[[FileJob], int], workers: int, embedder: Embedder) -> BatchedWork | None:
    """On a GPU this process embeds all files in batches, unless several workers are requested."""
    return BatchedWork(partial(attempt_jobs, work=work), 1) if embedder.is_on_gpu and workers < 2 else None


def describe_output(embedder: Embedder, **settings: object) -> dict[str, object] | None:
    """The settings that a file was made with; None where OpenL3's own files are reproduced."""
    if not embedder.about or embedder.options.as_openl3:
        return None
    network = {**embedder.about, "frontend": embedder.frontend, "precision": embedder.precision}
    return {"comodal": version("comodal"), **network, **settings}


def write_audio_embedding(job: FileJob, model: Path, options: EmbedderOptions, windows: AudioWindows) -> int:
    """Writes the embedding of the audio of one file; returns the number of windows."""
    assert windows.batch_size is not None
    embedder, hop_seconds, center = load_embedder(model, options), windows.hop_seconds, windows.center
    blocks = read_embedder_audio(job.source, embedder)
    batches = embed_audio_blocks(blocks, embedder, hop_seconds, center, windows.batch_size)
    about = describe_output(embedder, hop_seconds=hop_seconds, center=center)
    try:
        return write_embedding_rows(job.results[0], batches, about, job.source)
    except EmptyAudioError:
        raise MediaError(job.source, RefusalReason.NO_AUDIO_STREAM, "the audio stream has no samples") from None


def write_image(job: FileJob, model: Path, options: EmbedderOptions) -> int:
    """Writes the embedding of one image; returns 1."""
    embedder = load_embedder(model, options)
    (vectors,) = embed_image_batches([read_job_image(job, options)], embedder, 1)
    return write_vector(job, vectors[0], embedder)


def write_images(jobs: Sequence[FileJob], model: Path, options: EmbedderOptions) -> list[FileOutcome]:
    """Writes the embeddings of several images, which are read in parallel and embedded in one batch."""
    embedder, read = load_embedder(model, options), dict[int, ImageArray]()

    def read_image_at(job: FileJob, index: int) -> int:
        read[index] = read_job_image(job, options)
        return 1

    parallel = joblib.Parallel(n_jobs=-1, prefer="threads")
    outcomes = parallel(joblib.delayed(attempt_job)(job, partial(read_image_at, index=i)) for i, job in enumerate(jobs))

    def embed(images: Sequence[ImageArray]) -> list[Float32[np.ndarray, " features"]]:
        return [vector for vectors in embed_image_batches(images, embedder, len(images)) for vector in vectors]

    indices = sorted(read)
    found = run_batch_or_singly(embed, [read[index] for index in indices], [jobs[index].source for index in indices])
    for index, vector in zip(indices, found, strict=True):
        outcomes[index] = attempt_job(jobs[index], partial(write_vector, vector=vector, embedder=embedder))
    return outcomes


def read_job_image(job: FileJob, options: EmbedderOptions) -> ImageArray:
    """The image of a job.

    Raises:
        MediaError: It cannot be read, or OpenL3 would reject it.
    """
    image = read_image(job.source)
    if options.as_openl3 and min(image.shape[:2]) < INPUT_SIDE:
        raise MediaError(
            job.source,
            RefusalReason.UNREADABLE,
            f"OpenL3 requires images of at least {INPUT_SIDE} x {INPUT_SIDE} pixels",
        )
    return image


def write_vector(job: FileJob, vector: Float32[np.ndarray, " features"] | MediaError, embedder: Embedder) -> int:
    """Writes the embedding of one image; returns 1.

    Raises:
        MediaError: It is an error and no embedding.
    """
    if isinstance(vector, MediaError):
        raise vector
    seconds = None if embedder.options.as_openl3 else np.zeros(1)
    return write_embedding_rows(
        job.results[0], [EmbeddingRows(vector[None], seconds)], describe_output(embedder), job.source
    )


def write_video_embeddings(
    job: FileJob,
    model: Path,
    options: EmbedderOptions,
    frames_per_second: float,
    windows: AudioWindows,
) -> int:
    """Writes the embeddings of the frames, then of the audio. Those of the frames are kept if there is no audio."""
    audio_path, image_path = job.results
    assert windows.batch_size is not None
    embedder = load_embedder(model, options)
    if options.as_openl3:
        rows = write_embedding_rows(
            image_path, embed_video_as_openl3(job.source, embedder, windows.batch_size), source=job.source
        )
    else:
        batches = embed_timed_frames(iterate_frames(job.source, frames_per_second), embedder, windows.batch_size)
        about = describe_output(embedder, frames_per_second=frames_per_second)
        rows = write_embedding_rows(image_path, batches, about, job.source)
    if not rows:
        raise MediaError(job.source, RefusalReason.NO_VIDEO_STREAM, "no frame could be decoded")
    return rows + write_audio_embedding(FileJob(job.source, (audio_path,)), model, options, windows)
