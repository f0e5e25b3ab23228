"""Files in, vectors out: `.npz` with `embedding` and `timestamps`, named and windowed as OpenL3's users expect.

Sound of any length is read, embedded and written in bounded memory. Files run in parallel; what cannot be read is
reported when all the others are written; what exists is not made again.
"""

from collections.abc import Iterable, Iterator
from functools import cache, partial
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8

from comodal.errors import MediaError
from comodal.media.audio import resample, stream_sound
from comodal.media.image import centre_crop, read_image, resize_short_side
from comodal.media.refusal import Refusal
from comodal.media.video import iterate_frames
from comodal.models.inference import FastL3Net, fast
from comodal.models.l3net import L3Net, load_l3net
from comodal.serve.files import Job, plan, run_files, write_rows
from comodal.serve.windows import iterate_windows

SOUNDS = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".aif", ".aiff", ".au", ".wma"}
IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
VIDEOS = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".ogv", ".flv", ".wmv", ".3gp"}


def embed_audio(
    files: list[Path],
    model: Path,
    out: Path | None = None,
    hop_seconds: float = 0.1,
    centre: bool = True,
    batch_size: int = 32,
    workers: int = 0,
    overwrite: bool = False,
) -> dict[str, float]:
    """Embeds sound files: one vector per hop, NAME.npz with `embedding` and `timestamps`.

    Args:
        files: sound files (or videos with sound), or folders of sound files.
        model: run folder or model folder.
        out: folder of the results; without it they lie beside the files.
        hop_seconds: time between windows of one second.
        centre: window k is centred on its timestamp (half a window of silence on the left), otherwise it begins there.
        batch_size: windows held at a time; it bounds memory and changes no result.
        workers: processes; 0 takes one per core.
        overwrite: make results again that exist.

    Returns:
        embed.written, embed.skipped and embed.windows.

    Raises:
        DataError: some files could not be read; all the others are written by then.

    Examples:
        comodal embed audio recordings/ --model RUN --out vectors/
    """
    if hop_seconds <= 0 or batch_size < 1:
        raise ValueError(f"hop_seconds ({hop_seconds}) must be positive and batch_size ({batch_size}) at least 1")
    work = partial(write_sound, model=model, hop_seconds=hop_seconds, centre=centre, batch_size=batch_size)
    return run_files(plan(files, SOUNDS, out, ("",)), work, workers, overwrite)


def embed_image(
    files: list[Path],
    model: Path,
    out: Path | None = None,
    workers: int = 0,
    overwrite: bool = False,
) -> dict[str, float]:
    """Embeds pictures: NAME.npz with `embedding` of one row (and a timestamp of 0).

    Args:
        files: pictures, or folders of pictures.
        model: run folder or model folder.
        out: folder of the results; without it they lie beside the files.
        workers: processes; 0 takes one per core.
        overwrite: make results again that exist.

    Returns:
        embed.written, embed.skipped and embed.windows.

    Raises:
        DataError: some files could not be read; all the others are written by then.

    Examples:
        comodal embed image pictures/ --model RUN --out vectors/
    """
    return run_files(plan(files, IMAGES, out, ("",)), partial(write_image, model=model), workers, overwrite)


def embed_video(
    files: list[Path],
    model: Path,
    out: Path | None = None,
    frames_per_second: float = 1.0,
    hop_seconds: float = 0.1,
    centre: bool = True,
    batch_size: int = 32,
    workers: int = 0,
    overwrite: bool = False,
) -> dict[str, float]:
    """Embeds videos: NAME_audio.npz and NAME_image.npz, their timestamps on the video's own clock.

    Args:
        files: videos, or folders of videos.
        model: run folder or model folder.
        out: folder of the results; without it they lie beside the files.
        frames_per_second: how often a frame is embedded: what a player shows at that moment.
        hop_seconds: time between windows of one second of sound.
        centre: window k is centred on its timestamp.
        batch_size: windows or frames held at a time; it bounds memory and changes no result.
        workers: processes; 0 takes one per core.
        overwrite: make results again that exist.

    Returns:
        embed.written, embed.skipped and embed.windows.

    Raises:
        DataError: some files could not be read; all the others are written by then.

    Examples:
        comodal embed video clips/ --model RUN --out vectors/ --frames_per_second 5
    """
    if hop_seconds <= 0 or batch_size < 1 or frames_per_second <= 0:
        raise ValueError("hop_seconds and frames_per_second must be positive, batch_size at least 1")
    work = partial(
        write_video,
        model=model,
        frames_per_second=frames_per_second,
        hop_seconds=hop_seconds,
        centre=centre,
        batch_size=batch_size,
    )
    return run_files(plan(files, VIDEOS, out, ("_audio", "_image")), work, workers, overwrite)


def sound_embedding(
    sound: Float[np.ndarray, " samples"],
    sample_rate: int,
    model: L3Net,
    hop_seconds: float = 0.1,
    centre: bool = True,
    batch_size: int = 32,
) -> tuple[Float32[np.ndarray, "windows features"], Float[np.ndarray, " windows"]]:
    """Vectors of a sound in memory, and their timestamps in seconds; the sound is resampled to the model's rate."""
    if sample_rate <= 0 or not len(sound):
        raise ValueError(f"a sound of {len(sound)} samples at {sample_rate} Hz cannot be embedded")
    rate = model.config.sample_rate
    blocks = [resample(sound.astype(np.float32), sample_rate, rate)]
    batches = sound_vectors(blocks, fast(model), hop_seconds, centre, batch_size)
    vectors, times = zip(*batches, strict=True)
    return np.concatenate(vectors), np.concatenate(times)


def image_embedding(
    images: list[UInt8[np.ndarray, "_ _ 3"]], model: L3Net, batch_size: int = 32
) -> Float32[np.ndarray, "images features"]:
    """Vectors of upright RGB pictures of any sizes: each is resized and cropped to the model's square."""
    if not images:
        raise ValueError("no images")
    return np.concatenate(list(image_vectors(images, fast(model), batch_size)))


def sound_vectors(
    blocks: Iterable[Float32[np.ndarray, " samples"]],
    model: FastL3Net,
    hop_seconds: float,
    centre: bool,
    batch_size: int,
) -> Iterator[tuple[Float32[np.ndarray, "windows features"], Float[np.ndarray, " windows"]]]:
    """Batches of vectors and timestamps of the sound whose consecutive blocks come in."""
    places = count()
    rate = model.config.sample_rate
    window = round(model.config.sound_seconds * rate)
    for windows in iterate_windows(blocks, window, int(hop_seconds * rate), centre, batch_size):
        vectors = model.embed_sound(torch.from_numpy(windows)).float().numpy()
        yield vectors, np.array([next(places) for _ in windows]) * hop_seconds


def image_vectors(
    images: Iterable[UInt8[np.ndarray, "_ _ 3"]], model: FastL3Net, batch_size: int
) -> Iterator[Float32[np.ndarray, "images features"]]:
    """Batches of vectors; a picture is scaled to 8/7 of the model's square (256 for 224), whose middle is taken."""
    size = model.config.image_size
    squares = (centre_crop(resize_short_side(image, round(size * 8 / 7)), size) for image in images)
    while batch := list(islice(squares, batch_size)):
        pixels = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)
        yield model.embed_image(pixels).float().numpy()


@cache
def loaded(model: Path) -> FastL3Net:
    """A model ready for embedding, read once in each process."""
    return fast(load_l3net(model))


def write_sound(job: Job, model: Path, hop_seconds: float, centre: bool, batch_size: int) -> int:
    """The sound of one file; returns how many windows there are."""
    network = loaded(model)
    blocks = stream_sound(job.source, network.config.sample_rate)
    rows = write_rows(job.results[0], sound_vectors(blocks, network, hop_seconds, centre, batch_size))
    if not rows:
        raise MediaError(job.source, Refusal.NO_SOUND, "not one sample of sound")
    return rows


def write_image(job: Job, model: Path) -> int:
    """One picture; returns 1."""
    vectors = image_vectors([read_image(job.source)], loaded(model), 1)
    return write_rows(job.results[0], ((rows, np.zeros(1)) for rows in vectors))


def write_video(
    job: Job, model: Path, frames_per_second: float, hop_seconds: float, centre: bool, batch_size: int
) -> int:
    """Frames, then sound; frames stay written where there is no sound."""
    sound, picture = job.results
    times: list[float] = []

    def frames() -> Iterator[UInt8[np.ndarray, "_ _ 3"]]:
        for seconds, frame in iterate_frames(job.source, frames_per_second):
            times.append(seconds)
            yield frame

    network = loaded(model)
    vectors = image_vectors(frames(), network, batch_size)
    rows = write_rows(picture, ((batch, np.array(times[-len(batch) :])) for batch in vectors))
    if not rows:
        raise MediaError(job.source, Refusal.NO_PICTURE, "not one picture could be decoded")
    return rows + write_sound(Job(job.source, (sound,)), model, hop_seconds, centre, batch_size)
