"""Videos: the frames and the audio of a clip on one clock, or all frames, one at a time.

A video is opened once and read in one pass. Its clock starts where the first of video and audio begins, in the file's
own timestamps. Audio that begins up to one frame before the video is cut there: mostly it is the delay of its encoder.
Every fault of a file is a MediaError whose reason is a `RefusalReason`:

- *truncated*: within the requested seconds, more than half a second of what the header promises is missing or cannot
  be decoded. Three things do not count: damage after the requested seconds, single broken packets, and audio that is
  shorter than the video according to the header (the clip ends with the shorter one). Also a file that begins like a
  video but has no usable index, such as an mp4 file without its end.
- *silent*: no sample exceeds 1/1000 of full scale (-60 dB).
- *too short*: video and audio overlap for less than one second.
- *too large*: frames of more than 8192 x 4320 pixels or narrower than 1 : 16, or more than 1,000 frames a second.
- *not a video*: FFmpeg does not recognize the format, or the file is an image, text, a web page, a Git LFS pointer, or
  empty.
- *unreadable*: no permission, not a regular file, no decoder, or no part of a stream can be decoded. Also timestamps
  that cannot be put on one clock: those of one stream jump or restart alone, or are not in the order of the frames.
- *missing*: no such file.
- *no video stream* (album covers do not count), *no audio stream*.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import av
import numpy as np
from av.container import InputContainer
from jaxtyping import Float32, UInt8

from comodal.errors import MediaError, MediaWarning, check_number
from comodal.flat_parameters import flatten_parameters
from comodal.media.audio import read_audio, resample_audio
from comodal.media.containers.audio_segments import AudioJoiner
from comodal.media.containers.container import (
    choose_streams,
    decode_frames,
    make_tracks,
    measure_seconds,
    open_container,
    read_shared_end,
    seek_container,
)
from comodal.media.containers.track import MAX_LOST_SECONDS, Track
from comodal.media.image import encode_jpeg_planes
from comodal.media.image_orientation import ImageOrienter
from comodal.media.storage.refused_formats import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE, RefusalReason

MIN_CLIP_SECONDS = 1.0
MAX_CLIP_SECONDS = 24 * 3600.0
MIN_FRAME_RATE, MAX_FRAME_RATE = 1e-4, 1000.0
MAX_SHORT_SIDE = 8192
MAX_SILENT_PEAK = 1e-3
MAX_FIRST_FRAME_SECONDS = 0.045  # a first frame that starts this early is shown from 0, as players do
JITTER_SECONDS = 0.002  # timestamps of webm and mkv are rounded to 1 ms

FrameContent = TypeVar("FrameContent")


class Clip(NamedTuple):
    """The first seconds of a video: JPEG frames and mono audio, all times on one clock.

    `frames[i]` is what a player shows at `frame_seconds[i]`, a multiple of 1 / frames_per_second; a frame that is shown
    for several of these times is repeated. `audio` lasts from `audio_start_seconds` to `seconds`, where the first of
    video and audio ends. `audio_start_seconds` is 0 unless the file's audio begins after its video.
    """

    frames: list[bytes]
    frame_seconds: list[float]
    audio: Float32[np.ndarray, " samples"]
    sample_rate: int
    audio_start_seconds: float
    seconds: float


class VideoInfo(NamedTuple):
    """Properties of a video file; width and height are those of the upright frame.

    `seconds` is where the longer of video and audio ends, on the clock of `read_clip`.
    """

    width: int
    height: int
    seconds: float
    frames_per_second: float
    video_codec: str
    audio_codec: str | None
    sample_rate: int | None


@dataclass(frozen=True)
class ClipParameters:
    """How much of a video is read, and in what format.

    Args:
        seconds: maximum length; the clip ends earlier where video or audio ends.
        frames_per_second: one frame every 1 / frames_per_second seconds: what a player shows at that time.
        short_side: short side of the frames, in pixels; smaller frames are enlarged, the aspect ratio is kept.
        quality: of the JPEG frames, 1 to 100.
        sample_rate: of the audio, in Hz.
    """

    seconds: float = 10.0
    frames_per_second: float = 5.0
    short_side: int = 256
    quality: int = 85
    sample_rate: int = 48000

    def __post_init__(self) -> None:
        check_number("seconds", self.seconds, MIN_CLIP_SECONDS, MAX_CLIP_SECONDS)
        check_number("frames_per_second", self.frames_per_second, MIN_FRAME_RATE, MAX_FRAME_RATE)
        check_number("short_side", self.short_side, 1, MAX_SHORT_SIDE)
        check_number("quality", self.quality, 1, 100)
        check_number("sample_rate", self.sample_rate, MIN_SAMPLE_RATE, MAX_SAMPLE_RATE)


DEFAULT_CLIP = ClipParameters()


@flatten_parameters
def read_clip(
    path: Path,
    *,
    start_seconds: float = 0.0,
    clip: ClipParameters = DEFAULT_CLIP,
) -> Clip:
    """Read `seconds` of a video with audio, from its beginning or from `start_seconds`.

    Args:
        path: the video file.
        start_seconds: where the clip and its clock begin, on the clock of the file.
        clip: how much is read, and in what format.

    Raises:
        MediaError: the file is refused; the module docstring lists the reasons.

    Warns:
        MediaWarning: its audio ends more than half a second before its video.
    """
    check_number("start_seconds", start_seconds, 0, math.inf)
    with open_container(path) as container:
        video, audio = choose_streams(container, path)
        if video is None:
            raise MediaError(path, RefusalReason.NO_VIDEO_STREAM, "no video stream in the file")
        if audio is None:
            raise MediaError(path, RefusalReason.NO_AUDIO_STREAM, "no audio stream in the file")
        video_track, audio_track = make_tracks(path, video, audio)
        if start_seconds:
            seek_container(container, (video_track, audio_track), start_seconds)
        screen = _make_screen(path, video, clip)
        timed_frames, joiner, mono = _read_frames_and_audio(container, video_track, audio_track, screen, clip.seconds)
    mono = resample_audio(mono, joiner.sample_rate, clip.sample_rate)
    joined = _join_clip(path, timed_frames, video_track, mono, joiner.start, clip)
    _warn_of_early_audio(path, min(clip.seconds, audio_track.end), min(clip.seconds, video_track.end))
    return joined


@flatten_parameters
def read_clip_with_audio(
    path: Path,
    audio_path: Path,
    *,
    clip: ClipParameters = DEFAULT_CLIP,
) -> Clip:
    """The first seconds of a video without audio, with the audio of another file that starts when the video starts.

    Args:
        path: the video file.
        audio_path: the audio file.
        clip: how much is read, and in what format.

    Raises:
        MediaError: one of the files is refused; the module docstring lists the reasons.
    """
    with open_container(path) as container:
        video, _ = choose_streams(container, path)
        if video is None:
            raise MediaError(path, RefusalReason.NO_VIDEO_STREAM, "no video stream in the file")
        tracks = make_tracks(path, video)
        video_track, screen, seconds = tracks[0], _make_screen(path, video, clip), clip.seconds
        timed_frames: list[tuple[float, bytes]] = []
        for start_seconds, frame in _iterate_video_frames(container, tracks):
            timed_frames += screen.show(frame, min(start_seconds, seconds))
            video_track.done = start_seconds >= seconds
        video_track.check_complete(seconds)
        _warn_of_lost_frames(video_track)
        timed_frames += screen.emit_until(min(seconds, video_track.end))
    mono = read_audio(audio_path, clip.sample_rate, seconds=seconds)
    joined = _join_clip(audio_path, timed_frames, video_track, mono, 0.0, clip)
    _warn_of_early_audio(audio_path, len(mono) / clip.sample_rate, min(seconds, video_track.end))
    return joined


def _make_screen(path: Path, video: av.VideoStream, clip: ClipParameters) -> "_Screen[bytes]":
    """The frames of a video as a player shows them, as JPEG."""
    upright = ImageOrienter(path, clip.short_side, video.sample_aspect_ratio)
    return _Screen(
        clip.frames_per_second, lambda frame: encode_jpeg_planes(*upright.to_jpeg_planes(frame), clip.quality)
    )


def _join_clip(
    audio_path: Path,
    timed_frames: list[tuple[float, bytes]],
    video_track: Track,
    mono: Float32[np.ndarray, " samples"],
    start_seconds: float,
    clip: ClipParameters,
) -> Clip:
    """The clip until the first of video and audio ends; the audio of `audio_path` begins at `start_seconds`."""
    end = min(clip.seconds, video_track.end, start_seconds + len(mono) / clip.sample_rate)
    _check_content(audio_path, mono, end - max(video_track.start or 0.0, start_seconds))
    kept = [(frame_seconds, jpeg) for frame_seconds, jpeg in timed_frames if frame_seconds < end]
    jpegs, times = [jpeg for _, jpeg in kept], [frame_seconds for frame_seconds, _ in kept]
    return Clip(jpegs, times, mono, clip.sample_rate, start_seconds, end)


def iterate_frames(
    path: Path, frames_per_second: float, short_side: int | None = None
) -> Iterator[tuple[float, UInt8[np.ndarray, "height width 3"]]]:
    """Every 1 / frames_per_second seconds, the time and the frame that a player shows then, upright and in RGB.

    Memory holds one frame at a time, whatever the length. Audio is not required, and a damaged file is read as far as
    possible. The clock is that of `read_clip`.

    Args:
        path: the video file.
        frames_per_second: one frame every 1 / frames_per_second seconds: what a player shows at that time.
        short_side: short side of the frames, in pixels; None keeps their size.

    Raises:
        MediaError: the file cannot be read, or has no video stream.
    """
    if not frames_per_second > 0:
        raise ValueError(f"frames_per_second ({frames_per_second}) must be positive")
    with open_container(path) as container:
        video, audio = choose_streams(container, path)
        if video is None:
            raise MediaError(path, RefusalReason.NO_VIDEO_STREAM, "no video stream in the file")
        tracks = make_tracks(path, video, audio)
        track = tracks[0]
        screen = _Screen(frames_per_second, ImageOrienter(path, short_side, video.sample_aspect_ratio).to_rgb)
        for start_seconds, frame in _iterate_video_frames(container, tracks):
            yield from screen.show(frame, start_seconds)
        yield from screen.emit_until(track.end)
        track.check_complete(0.0)
        _warn_of_lost_frames(track)


def iterate_all_frames(path: Path) -> Iterator[tuple[float, UInt8[np.ndarray, "height width 3"]]]:
    """Each frame of a video and its start time, at the native frame rate; upright, in RGB, one frame in memory at a
    time.

    Raises:
        MediaError: the file cannot be read, or has no video stream.
    """
    with open_container(path) as container:
        video, audio = choose_streams(container, path)
        if video is None:
            raise MediaError(path, RefusalReason.NO_VIDEO_STREAM, "no video stream in the file")
        tracks = make_tracks(path, video, audio)
        track = tracks[0]
        orienter = ImageOrienter(path, None, video.sample_aspect_ratio)
        for start_seconds, frame in _iterate_video_frames(container, tracks):
            yield start_seconds, orienter.to_rgb(frame)
        track.check_complete(0.0)
        _warn_of_lost_frames(track)


def read_video_info(path: Path) -> VideoInfo:
    """Properties of a video file; the first frame is decoded to find its orientation.

    Raises:
        MediaError: the file cannot be read, or has no video stream.
    """
    with open_container(path) as container:
        video, audio = choose_streams(container, path)
        if video is None:
            raise MediaError(path, RefusalReason.NO_VIDEO_STREAM, "no video stream in the file")
        tracks = make_tracks(path, video, audio)
        track = tracks[0]
        first = next(_iterate_video_frames(container, tracks), None)
        if first is None:
            raise track.make_no_frames_error()
        height, width, _ = ImageOrienter(path, None, video.sample_aspect_ratio).to_rgb(first[1]).shape
        frames_per_second = float(video.average_rate or video.guessed_rate or 0)
        audio_codec = None if audio is None else audio.codec_context.codec.name
        sample_rate = None if audio is None else audio.codec_context.sample_rate
        codec = video.codec_context.codec.name
    with open_container(path) as container:
        seconds = measure_seconds(container, make_tracks(path, *choose_streams(container, path)))
    return VideoInfo(width, height, seconds, frames_per_second, codec, audio_codec, sample_rate)


def _iterate_video_frames(container: InputContainer, tracks: Sequence[Track]) -> Iterator[tuple[float, av.VideoFrame]]:
    """The frames of the first track, each with its start time."""
    track = tracks[0]
    for _, frame in decode_frames(container, tracks, [track]):
        assert isinstance(frame, av.VideoFrame)
        yield track.record_frame(frame), frame


class _Screen(Generic[FrameContent]):
    """What a player shows: the latest frame, until the next one is due.

    A frame is rendered only if one of the times k / rate falls on it, and only once.
    """

    def __init__(self, frames_per_second: float, render: Callable[[av.VideoFrame], FrameContent]) -> None:
        self.frames_per_second = frames_per_second
        self.render = render
        self.next_index = 0
        self.current_frame: av.VideoFrame | None = None
        self.shown_since = 0.0

    def show(self, frame: av.VideoFrame, start_seconds: float) -> list[tuple[float, FrameContent]]:
        """Show a frame; returns the sampled times of the previous one."""
        times = self.emit_until(start_seconds)
        self.current_frame, self.shown_since = frame, start_seconds
        if start_seconds > MAX_FIRST_FRAME_SECONDS:
            self.next_index = max(self.next_index, math.ceil((start_seconds - JITTER_SECONDS) * self.frames_per_second))
        return times

    def emit_until(self, end: float) -> list[tuple[float, FrameContent]]:
        """The sampled times before `end` at which the current frame is shown, each with the frame."""
        if self.current_frame is None:
            return []
        last, times = end - JITTER_SECONDS, []
        while self.next_index / self.frames_per_second < last:
            times.append(self.next_index / self.frames_per_second)
            self.next_index += 1
        if not times:
            return []
        content = self.render(self.current_frame)
        return [(time, content) for time in times]


def _read_frames_and_audio(
    container: InputContainer, video_track: Track, audio_track: Track, screen: _Screen[bytes], seconds: float
) -> tuple[list[tuple[float, bytes]], AudioJoiner, Float32[np.ndarray, " samples"]]:
    """Decode video and audio in one pass, up to `seconds` or to the end of the video.

    Returns the sampled times with their frames, and the audio as the file has it, with its start time.
    """
    joiner = AudioJoiner(audio_track.path, audio_track.stream.codec_context.name, until=seconds)
    timed_frames: list[tuple[float, bytes]] = []
    blocks = [np.zeros(0, np.float32)]
    for track, frame in decode_frames(container, (video_track, audio_track)):
        start_seconds = track.record_frame(frame)
        if isinstance(frame, av.VideoFrame):
            timed_frames += screen.show(frame, min(start_seconds, seconds))
            video_track.done = start_seconds >= seconds
        else:
            blocks += joiner.add_frame(frame, start_seconds)
            audio_track.done = joiner.end >= seconds
    blocks += joiner.finish()
    _check_complete(container, video_track, audio_track, seconds)
    for track in (video_track, audio_track):
        _warn_of_lost_frames(track)
    end = min(seconds, video_track.end)
    timed_frames += screen.emit_until(end)
    return timed_frames, joiner, np.concatenate(blocks)[: max(0, round((end - joiner.start) * joiner.sample_rate))]


def _check_complete(container: InputContainer, video_track: Track, audio_track: Track, seconds: float) -> None:
    """Reject a file that is shorter than its header declares. Some headers have one length for all streams, that of the
    longest.
    """
    for track in (video_track, audio_track):
        track.check_complete(seconds)
    declared_end, end = read_shared_end(container, video_track), max(video_track.end, audio_track.end)
    if declared_end is not None and end < min(declared_end, seconds) - MAX_LOST_SECONDS:
        detail = f"the file ends at {end:.2f} s, its header declares {declared_end:.2f} s"
        raise MediaError(video_track.path, RefusalReason.TRUNCATED, detail)


def _warn_of_early_audio(path: Path, audio_end: float, video_end: float) -> None:
    """Report that a clip is shorter than its video, because its audio ends before that."""
    if audio_end < video_end - MAX_LOST_SECONDS:
        detail = f"its audio ends at {audio_end:.2f} s, its video not before {video_end:.2f} s; the clip ends there"
        warnings.warn(MediaWarning(path, detail), stacklevel=3)


def _warn_of_lost_frames(track: Track) -> None:
    """Report frames that cannot be decoded, and a file that cannot be read to its end."""
    if track.losses:
        warnings.warn(MediaWarning(track.path, track.describe_losses()), stacklevel=3)
    if track.is_cut and not track.done:
        detail = f"damaged: its {track.kind} cannot be read after {track.end:.2f} s ({track.failure})"
        warnings.warn(MediaWarning(track.path, detail), stacklevel=3)


def _check_content(path: Path, waveform: Float32[np.ndarray, " samples"], overlap: float) -> None:
    if overlap < MIN_CLIP_SECONDS - 1e-6:
        raise MediaError(path, RefusalReason.TOO_SHORT, f"video and audio overlap for {max(overlap, 0.0):.3f} s")
    if np.ptp(waveform) / 2 < MAX_SILENT_PEAK:
        raise MediaError(path, RefusalReason.SILENT, f"no sample exceeds {MAX_SILENT_PEAK} of full scale")
