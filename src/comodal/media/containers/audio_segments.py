"""Decoded audio blocks, mixed to mono and placed by their timestamps.

The sample count is the better clock from block to block. Containers round timestamps to milliseconds, Vorbis timestamps
are off by 10 ms where the block size changes, and some recorders write a jitter of 20 ms. The timestamps are the better
clock in the long run: audio has pauses, starts late, and its sample rate is inexact. So a difference counts when the
next second of audio agrees with it.
"""

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import av
import numpy as np
import soxr
from jaxtyping import Float32

from comodal.errors import MediaError
from comodal.media.storage.refused_formats import MAX_AMPLITUDE, MAX_SAMPLE_RATE, MIN_SAMPLE_RATE, RefusalReason

MAX_AUDIO_PLANES = 8  # planar channels; PyAV does not know where further planes end
SAMPLE_TYPES = {"u8": np.uint8, "s16": np.int16, "s32": np.int32, "s64": np.int64, "flt": np.float32, "dbl": np.float64}
TIMESTAMP_TOLERANCE_SECONDS = 0.004  # of the timestamps; a larger constant difference is a pause or an overlap
CODEC_TOLERANCE_SECONDS = {"vorbis": 0.025}  # FFmpeg ignores the delay between a long and a short block
AGREEING_SECONDS = 1.0
MAX_PENDING = 256  # blocks
MAX_HELD_SECONDS = 1.0  # of decoded audio before it is mixed
SILENCE_SAMPLES = 1 << 16  # at a time

Mono: TypeAlias = Float32[np.ndarray, " samples"]


class AudioJoiner:
    """Concatenates audio blocks: pauses become silence, overlaps are cut, jitter is ignored.

    Args:
        path: for messages.
        codec: the name of the decoder.
        until: nothing is returned after this time, in seconds.
        from_zero: return silence until the audio begins.
    """

    def __init__(self, path: Path, codec: str, until: float = float("inf"), from_zero: bool = False) -> None:
        self.path = path
        self.from_zero = from_zero
        self.tolerance = CODEC_TOLERANCE_SECONDS.get(codec, TIMESTAMP_TOLERANCE_SECONDS)
        self.until = until
        self.sample_rate = 0
        self.start = 0.0
        self.samples = 0  # returned so far, counted from `origin`
        self.origin = 0.0  # where the first block begins, which may be before zero
        self.pending: deque[tuple[float, Mono]] = deque()

    @property
    def end(self) -> float:
        """Where the concatenated audio ends, in seconds."""
        return self.origin + self.samples / max(self.sample_rate, 1)

    def add_frame(self, frame: av.AudioFrame, start_seconds: float) -> Iterator[Mono]:
        """The samples that are final, given the next frame, which begins at `start_seconds` seconds.

        Raises:
            MediaError: unreadable, for a sample rate that is implausible or changes.
        """
        if not self.sample_rate:
            self.sample_rate = check_sample_rate(self.path, frame.sample_rate)
            self.start = max(start_seconds, 0.0)
            self.origin = min(start_seconds, 0.0) if self.from_zero else start_seconds
            if self.from_zero:
                yield from self._emit_silence(round(self.start * self.sample_rate))
        if frame.sample_rate != self.sample_rate:
            detail = f"audio of {frame.sample_rate} Hz, {self.sample_rate} Hz at its beginning"
            raise MediaError(self.path, RefusalReason.UNREADABLE, detail)
        self.pending.append((start_seconds, mix_to_mono(self.path, frame)))
        yield from self._emit_final_blocks(last=False)

    def finish(self) -> Iterator[Mono]:
        """The remaining samples."""
        yield from self._emit_final_blocks(last=True)

    def _emit_final_blocks(self, last: bool) -> Iterator[Mono]:
        while self.pending:
            start_seconds, block = self.pending[0]
            if abs(start_seconds - self.end) > self.tolerance:
                held = sum(len(later) for _, later in self.pending)
                if not last and held < AGREEING_SECONDS * self.sample_rate and len(self.pending) < MAX_PENDING:
                    return
                shift = round(self._measure_agreed_shift() * self.sample_rate)
                if shift > 0:
                    yield from self._emit_silence(shift)
                block = block[max(-shift, 0) :]
            self.pending.popleft()
            yield from self._emit_block(block)

    def _measure_agreed_shift(self) -> float:
        """The smallest shift of the pending blocks from their expected positions, if all have the same sign."""
        expected, min_shift = self.end, 0.0
        for index, (start_seconds, block) in enumerate(self.pending):
            shift = start_seconds - expected
            if abs(shift) <= self.tolerance or shift * min_shift < 0:
                return 0.0
            if index == 0 or abs(shift) < abs(min_shift):
                min_shift = shift
            expected += len(block) / self.sample_rate
        return min_shift

    def _emit_silence(self, samples: int) -> Iterator[Mono]:
        while samples > 0 and self.end < self.until:
            yield from self._emit_block(np.zeros(min(samples, SILENCE_SAMPLES), np.float32))
            samples -= SILENCE_SAMPLES
        self.samples += max(samples, 0)

    def _emit_block(self, block: Mono) -> Iterator[Mono]:
        before = round(
            -self.end * self.sample_rate
        )  # samples before zero: a clip from the middle begins within a block
        keep = max(round((self.until - self.end) * self.sample_rate), 0) if self.until < float("inf") else len(block)
        self.samples += len(block)
        audible = block[max(before, 0) : keep]
        if len(audible):
            yield audible


class HeldAudio:
    """Decoded audio that is joined a second at a time: between two frames of video, mixing one block of it takes five
    times as long as among others, because decoding has filled the processor's caches."""

    def __init__(self) -> None:
        self.frames: list[tuple[av.AudioFrame, float]] = []
        self.seconds = 0.0

    def add(self, frame: av.AudioFrame, start_seconds: float) -> None:
        self.frames.append((frame, start_seconds))
        self.seconds += frame.samples / max(frame.sample_rate, 1)

    def join(self, joiner: AudioJoiner) -> Iterator[Mono]:
        """Hand all frames to a joiner; returns what is final."""
        frames, self.frames, self.seconds = self.frames, [], 0.0
        for frame, start_seconds in frames:
            yield from joiner.add_frame(frame, start_seconds)


class AudioChain:
    """Concatenates audio blocks in order, whatever their timestamps, at the sample rate of the first one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sample_rate = 0
        self.source_sample_rate = 0
        self.resampler: soxr.ResampleStream | None = None

    def add_frame(self, frame: av.AudioFrame, _start_seconds: float) -> Iterator[Mono]:
        """The next samples.

        Raises:
            MediaError: unreadable, for an implausible sample rate.
        """
        if frame.sample_rate != self.source_sample_rate:
            yield from self.finish()
            self.source_sample_rate = check_sample_rate(self.path, frame.sample_rate)
            self.sample_rate = self.sample_rate or self.source_sample_rate
            if self.source_sample_rate != self.sample_rate:
                self.resampler = soxr.ResampleStream(self.source_sample_rate, self.sample_rate, 1, dtype="float32")
        block = mix_to_mono(self.path, frame)
        yield block if self.resampler is None else self.resampler.resample_chunk(block)

    def finish(self) -> Iterator[Mono]:
        """The remaining samples of a block with another sample rate."""
        if self.resampler is not None:
            yield self.resampler.resample_chunk(np.zeros(0, np.float32), last=True)
        self.resampler = None


def check_sample_rate(path: Path, sample_rate: int) -> int:
    """Check that a sample rate is plausible.

    Raises:
        MediaError: unreadable.
    """
    if not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
        raise MediaError(path, RefusalReason.UNREADABLE, f"audio of {sample_rate} Hz")
    return sample_rate


def mix_to_mono(path: Path, frame: av.AudioFrame) -> Mono:
    """The mean of all channels (as in OpenL3, core.py `preprocess_audio`), full scale at 1.

    Raises:
        MediaError: unreadable, for more than 8 planes, or floats that are not audio.
    """
    channels, sample_type = frame.layout.nb_channels, SAMPLE_TYPES[frame.format.packed.name]
    if frame.format.is_planar:  # PyAV's own to_ndarray reads memory after the eighth plane as a ninth
        if channels > MAX_AUDIO_PLANES:
            detail = f"{channels} channels of audio, the limit is {MAX_AUDIO_PLANES}"
            raise MediaError(path, RefusalReason.UNREADABLE, detail)
        planes = frame.planes[:channels]
        samples = np.stack([np.frombuffer(memoryview(plane), sample_type, frame.samples) for plane in planes])
    else:
        packed = np.frombuffer(memoryview(frame.planes[0]), sample_type, frame.samples * channels)
        samples = packed.reshape(-1, channels).T
    with np.errstate(over="ignore", invalid="ignore"):
        mixed = samples.mean(axis=0, dtype=np.float32)
    if sample_type == np.uint8:
        return (mixed - 128) / 128
    if np.issubdtype(sample_type, np.integer):
        return mixed / np.float32(2.0 ** (8 * samples.itemsize - 1))
    return check_audio_level(path, mixed)


def check_audio_level(path: Path, mono: Mono) -> Mono:
    """Check that float samples can be audio.

    Raises:
        MediaError: unreadable.
    """
    if not (np.abs(mono) <= MAX_AMPLITUDE).all():
        raise MediaError(path, RefusalReason.UNREADABLE, "samples that are NaN, infinite or implausibly large")
    return mono
