"""Audio: read any file as a mono waveform at any sample rate, whole or in blocks; encode and decode FLAC.

PyAV decodes the content of a file regardless of its header (container_audio.py). soundfile reads formats that PyAV does
not support, and FLAC where PyAV is not installed. Channels are averaged before resampling (soxr, high quality).
"""

import io
import warnings
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import soundfile
import soxr
from jaxtyping import Float32

from comodal.errors import MediaError, MediaWarning
from comodal.media.containers.audio_headers import describe_truncation, has_padded_samples
from comodal.media.storage.open_media import open_media
from comodal.media.storage.refused_formats import (
    MAX_AMPLITUDE,
    MAX_SAMPLE_RATE,
    MIN_SAMPLE_RATE,
    RefusalReason,
    describe_non_media,
    read_first_bytes,
)

try:  # a machine that trains from shards decodes FLAC, and may do without FFmpeg
    from comodal.media.containers import container_audio
except ImportError:
    container_audio = None  # type: ignore[assignment]

READ_SAMPLES = 1 << 16
PCM_SCALE = 32768.0  # 16 bits; what is read from 16 bits is written back unchanged
Mono = Float32[np.ndarray, " samples"]


def read_audio(
    path: Path, sample_rate: int = 48000, start_seconds: float = 0.0, seconds: float | None = None
) -> Float32[np.ndarray, " samples"]:
    """Read an audio file, or the audio track of a video, as a mono waveform with full scale at 1.

    Args:
        path: an audio or video file.
        sample_rate: of the returned waveform.
        start_seconds: where to begin; in a video, on the clock that is zero where the first of video and audio begins.
        seconds: how much to read; None reads all. A file that ends earlier gives less.

    Raises:
        MediaError: missing, unreadable or without audio.
    """
    if start_seconds < 0 or (seconds is not None and seconds < 0):
        raise ValueError(f"cannot read {seconds} s from {start_seconds} s")
    skip = round(start_seconds * sample_rate)
    stop = None if seconds is None else skip + round(seconds * sample_rate)
    parts, position = [np.zeros(0, np.float32)], 0
    with closing(_stream_resampled(path, sample_rate)) as blocks:
        for block in blocks:
            parts.append(block[max(skip - position, 0) : None if stop is None else max(stop - position, 0)])
            position += len(block)
            if stop is not None and position >= stop:
                break
    return np.concatenate(parts)


def stream_audio(
    path: Path, sample_rate: int = 48000, block_seconds: float = 10.0
) -> Iterator[Float32[np.ndarray, " samples"]]:
    """Read like `read_audio`, in consecutive blocks of `block_seconds` (the last may be shorter), for any length.

    The concatenated blocks equal the whole waveform, sample for sample: the resampler keeps its state between blocks.

    Raises:
        MediaError: missing, unreadable or without audio.
    """
    size = round(block_seconds * sample_rate)
    if size < 1:
        raise ValueError(f"block_seconds ({block_seconds}) must be at least one sample")
    held = np.zeros(0, np.float32)
    with closing(_stream_resampled(path, sample_rate)) as blocks:
        for block in blocks:
            held = np.concatenate([held, block])
            while len(held) >= size:
                yield held[:size]
                held = held[size:]
    if len(held):
        yield held


def resample_audio(
    waveform: Float32[np.ndarray, " samples"], sample_rate: int, new_sample_rate: int
) -> Float32[np.ndarray, " new_samples"]:
    """Change the sample rate of a whole waveform."""
    return waveform if sample_rate == new_sample_rate else soxr.resample(waveform, sample_rate, new_sample_rate)


def encode_flac(waveform: Float32[np.ndarray, " samples"], sample_rate: int) -> bytes:
    """Encode as 16-bit FLAC; values beyond full scale are clipped."""
    steps = np.clip(np.rint(waveform * PCM_SCALE), -PCM_SCALE, PCM_SCALE - 1).astype(np.int16)
    memory = io.BytesIO()
    soundfile.write(memory, steps, sample_rate, format="FLAC", subtype="PCM_16")
    return memory.getvalue()


def decode_flac(
    data: bytes, start_seconds: float = 0.0, seconds: float | None = None
) -> tuple[Float32[np.ndarray, " samples"], int]:
    """Decode FLAC, or a part of it, at about 1 ms for each second, at any offset; returns the waveform and its sample
    rate.

    Raises:
        MediaError: unreadable; the path is "FLAC data", for the caller to replace.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            file.seek(min(round(start_seconds * file.samplerate), file.frames))
            waveform = file.read(-1 if seconds is None else round(seconds * file.samplerate), dtype="float32")
            return waveform, file.samplerate
    except soundfile.LibsndfileError as error:
        raise MediaError("FLAC data", RefusalReason.UNREADABLE, error.error_string) from None


def _stream_resampled(path: Path, sample_rate: int) -> Generator[Mono, None, None]:
    """Mono audio at `sample_rate` in blocks of any size."""
    resampler = None
    for native_rate, block in stream_native_audio(path):
        if resampler is None and native_rate != sample_rate:
            resampler = soxr.ResampleStream(native_rate, sample_rate, 1, dtype="float32")
        yield block if resampler is None else resampler.resample_chunk(block)
    if resampler is not None:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def stream_native_audio(path: Path) -> Iterator[tuple[int, Mono]]:
    """Blocks of mono audio with the sample rate of the file, which is constant.

    Raises:
        MediaError: missing, unreadable or without audio.
    """
    impostor = describe_non_media(read_first_bytes(path))
    if impostor:
        raise MediaError(path, RefusalReason.UNREADABLE, impostor)
    if container_audio is not None and not has_padded_samples(path):
        try:
            yield from container_audio.read_audio_blocks(path)
            return
        except MediaError as error:
            if error.reason != RefusalReason.NOT_A_VIDEO:
                raise
    yield from _stream_with_soundfile(path)


def _stream_with_soundfile(path: Path) -> Iterator[tuple[int, Mono]]:
    try:
        with soundfile.SoundFile(path if path.is_file() else open_media(path)) as file:
            if not MIN_SAMPLE_RATE <= file.samplerate <= MAX_SAMPLE_RATE:
                raise MediaError(path, RefusalReason.UNREADABLE, f"audio of {file.samplerate} Hz")
            if not file.frames:
                raise MediaError(path, RefusalReason.NO_AUDIO_STREAM, "no sample in the file")
            while len(block := file.read(READ_SAMPLES, dtype="float32", always_2d=True)):
                mono = block.mean(axis=1)
                if not (np.abs(mono) <= MAX_AMPLITUDE).all():
                    raise MediaError(
                        path, RefusalReason.UNREADABLE, "samples that are NaN, infinite or implausibly large"
                    )
                yield file.samplerate, mono
            if lacking := describe_truncation(path):
                detail = f"truncated: its audio ends at {file.frames / file.samplerate:.2f} s, and {lacking}"
                warnings.warn(MediaWarning(path, detail), stacklevel=2)
    except (soundfile.SoundFileError, RuntimeError) as error:
        if lacking := describe_truncation(path):
            raise MediaError(
                path, RefusalReason.TRUNCATED, f"{lacking}, and it cannot be decoded without them"
            ) from None
        detail = str(error) if container_audio is None else "no supported audio or video format"
        more = "; other formats need PyAV: pip install av" if container_audio is None else ""
        raise MediaError(path, RefusalReason.UNREADABLE, detail + more) from None
