"""One stream of a container while it is read: where it begins and ends, what is lost, and what its header declares."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path

import av
from av.stream import Stream

from comodal.errors import MediaError, MediaWarning
from comodal.media.containers.timeline import FORMATS_WITHOUT_ZERO
from comodal.media.storage.refused_formats import MAX_GAP_SECONDS, RefusalReason

SHARED_DURATION_FORMATS = {"asf", "flv", "matroska,webm"}  # whose header has one length for the file, on its own clock
MAX_LOST_SECONDS = 0.5  # of video or audio may be missing before a file counts as truncated
MIN_DISORDERED, MAX_DISORDERED = 4, 0.125  # frames that are not later than the previous one: some, and a fraction
MAX_FRAMES_PER_SECOND = 1_000  # of video or audio frames: Opus has at most 400


@dataclass
class PacketSpan:
    """A number of packets, and the seconds at which the first and the last of them begin."""

    count: int = 0
    first: float = float("inf")
    last: float = float("-inf")

    def add(self, start_seconds: float) -> None:
        self.count += 1
        self.first, self.last = min(self.first, start_seconds), max(self.last, start_seconds)

    def describe(self) -> str:
        """Where the packets are, in words."""
        return f"from {self.first:.2f} s to {self.last:.2f} s" if self.last > self.first else f"at {self.first:.2f} s"


@dataclass
class Track:
    """One stream of a container while it is read. Seconds are on the clock of the clip.

    `last` is where the presentation ends, on the clock of the file; `media_start` is where the samples of a fragmented
    file begin on it, which an edit may cut off. `start` is None until a frame was decoded; `end` is where the last
    decoded frame ends. `lost_since` is the time of the first packet that could not be decoded, until a later one is
    decoded (decoders return earlier frames late). `losses` are such packets; without `strict` any number is allowed.
    `wrong_checksums` are packets that are decoded although their checksum is wrong.
    `is_cut` means that the container cannot be read further. `latest` is when the last frame begins, and `disordered`
    counts the frames that are not later than the one before. The caller sets `done` when nothing more is needed.
    """

    path: Path
    stream: av.VideoStream | av.AudioStream
    zero: float
    last: float = float("inf")
    media_start: float | None = None
    start: float | None = None
    end: float = 0.0
    frames: int = 0
    lost_since: float | None = None
    failure: str = ""
    done: bool = False
    strict: bool = True
    losses: PacketSpan = field(default_factory=PacketSpan)
    wrong_checksums: PacketSpan = field(default_factory=PacketSpan)
    is_cut: bool = False
    latest: float = float("-inf")
    disordered: int = 0

    @property
    def kind(self) -> str:
        """The kind of stream, as error messages name it."""
        return "video" if self.stream.type == "video" else "audio"

    @property
    def declared_end(self) -> float | None:
        """Where the stream ends according to its header, if the header declares it."""
        stream = self.stream
        format_name = stream.container.format.name
        if format_name in FORMATS_WITHOUT_ZERO:  # no header; FFmpeg's estimate ignores that timestamps restart
            return None
        if self.is_cut and self.media_start is not None:  # FFmpeg counts the fragments that it has read
            return None
        in_avi = format_name == "avi" and isinstance(stream, av.VideoStream)
        if in_avi and stream.frames and stream.average_rate:
            length = float(stream.frames / stream.average_rate)  # FFmpeg shrinks `duration` to what is in the file
            return ticks_to_seconds(stream, stream.start_time) + length - self.zero
        if stream.duration and format_name not in SHARED_DURATION_FORMATS:
            start = ticks_to_seconds(stream, stream.start_time) if self.media_start is None else self.media_start
            return min(start + ticks_to_seconds(stream, stream.duration), self.last) - self.zero
        # Matroska's tag, which FFmpeg counts from the zero of its timestamps.
        tagged = _parse_clock_seconds(stream.metadata.get("DURATION", ""))
        return None if tagged is None else tagged - self.zero

    def record_frame(self, frame: av.VideoFrame | av.AudioFrame) -> float:
        """Record a decoded frame and return its start time.

        Raises:
            MediaError: truncated, if too much was lost before it; too large, for too many frames; unreadable, if it is
                hours after the previous one, or if many frames are not later than the previous one.
        """
        start_seconds = self.end if frame.time is None else float(frame.time) - self.zero
        if start_seconds - self.end > MAX_GAP_SECONDS:
            detail = f"the timestamps of its {self.kind} jump from {self.end:.2f} s to {start_seconds:.2f} s"
            raise MediaError(self.path, RefusalReason.UNREADABLE, detail)
        if self.lost_since is not None and start_seconds >= self.lost_since:
            if self.strict and start_seconds - self.end > MAX_LOST_SECONDS:
                detail = (
                    f"{self.kind} cannot be decoded from {self.end:.2f} s to {start_seconds:.2f} s ({self.failure})"
                )
                raise MediaError(self.path, RefusalReason.TRUNCATED, detail)
            self.lost_since = None
        self.frames += 1
        if self.start is None:
            self.start = start_seconds
        if self.frames > MAX_FRAMES_PER_SECOND * (max(self.end - min(self.start, 0.0), 0.0) + 10.0):
            detail = f"{self.frames} frames of {self.kind} in {self.end:.2f} s"
            raise MediaError(self.path, RefusalReason.TOO_LARGE, detail)
        self.disordered += start_seconds <= self.latest and self.kind == "video"
        self.latest = start_seconds
        if self.disordered > max(MIN_DISORDERED, self.frames * MAX_DISORDERED):
            detail = f"{self.disordered} of its first {self.frames} video frames are not later than the one before"
            raise MediaError(self.path, RefusalReason.UNREADABLE, detail)
        self.end = max(self.end, start_seconds + self._compute_duration(frame, start_seconds))
        return start_seconds

    def _compute_duration(self, frame: av.VideoFrame | av.AudioFrame, start_seconds: float) -> float:
        if isinstance(frame, av.AudioFrame):
            return frame.samples / max(frame.sample_rate, 1)
        if frame.duration:
            length = ticks_to_seconds(frame, frame.duration)
            if length > MAX_GAP_SECONDS:
                detail = (
                    f"its frame at {start_seconds:.2f} s lasts {length:.0f} s, the limit is {MAX_GAP_SECONDS:.0f} s"
                )
                raise MediaError(self.path, RefusalReason.UNREADABLE, detail)
            return length
        frame_rate = self.stream.average_rate or self.stream.guessed_rate
        return float(1 / frame_rate) if frame_rate else max(start_seconds - self.end, 0.0)

    def record_loss(self, packet: av.Packet, failure: str) -> None:
        """Record that a packet could not be decoded. Before the first frame that is a late start, not a loss."""
        self.failure = failure
        if self.start is not None:
            start_seconds = self._get_packet_start(packet)
            self.losses.add(start_seconds)
            self.lost_since = start_seconds if self.lost_since is None else min(start_seconds, self.lost_since)

    def record_wrong_checksum(self, packet: av.Packet) -> None:
        """Record that a packet was decoded although its checksum is wrong."""
        self.wrong_checksums.add(self._get_packet_start(packet))

    def _get_packet_start(self, packet: av.Packet) -> float:
        return self.end if packet.pts is None else ticks_to_seconds(packet, packet.pts) - self.zero

    def warn_of_damaged_packets(self) -> None:
        """Warn of packets that cannot be decoded, or that are decoded although their checksum is wrong."""
        notes = [
            (self.losses, f"cannot be decoded {self.losses.describe()} ({self.failure})"),
            (self.wrong_checksums, f"have a wrong checksum {self.wrong_checksums.describe()}, and may be noise"),
        ]
        for span, what in notes:
            if span.count:
                detail = f"damaged: {span.count} {self.kind} packets {what}"
                warnings.warn(MediaWarning(self.path, detail), stacklevel=3)

    def warn_of_losses(self) -> None:
        """Warn of damaged packets, and of a file that cannot be read to its end."""
        self.warn_of_damaged_packets()
        if self.is_cut and not self.done:
            detail = f"damaged: its {self.kind} cannot be read after {self.end:.2f} s ({self.failure})"
            warnings.warn(MediaWarning(self.path, detail), stacklevel=3)

    def check_complete(self, seconds: float) -> None:
        """Raise a MediaError unless the stream was decoded to its promised end, or to `seconds` if that is earlier."""
        if self.start is None:
            raise self.make_no_frames_error()
        declared_end = self.declared_end
        if declared_end is not None and self.end < min(declared_end, seconds) - MAX_LOST_SECONDS:
            detail = f"{self.kind} ends at {self.end:.2f} s, its header declares {declared_end:.2f} s"
            raise MediaError(self.path, RefusalReason.TRUNCATED, detail)
        if declared_end is None and self.is_cut and self.end < seconds - MAX_LOST_SECONDS:
            detail = f"{self.kind} cannot be read after {self.end:.2f} s ({self.failure})"
            raise MediaError(self.path, RefusalReason.TRUNCATED, detail)

    def make_no_frames_error(self) -> MediaError:
        """Why the stream is refused when no frame could be decoded."""
        if self.failure:
            return MediaError(self.path, RefusalReason.UNREADABLE, f"no {self.kind} can be decoded ({self.failure})")
        if self.declared_end:
            detail = f"no {self.kind} in the file, its header declares {self.declared_end:.2f} s"
            return MediaError(self.path, RefusalReason.TRUNCATED, detail)
        if self.kind == "video":
            return MediaError(self.path, RefusalReason.NO_VIDEO_STREAM, "no frame in the video stream")
        return MediaError(self.path, RefusalReason.NO_AUDIO_STREAM, "no sample in the audio stream")


def ticks_to_seconds(timed: Stream | av.Packet | av.VideoFrame, ticks: int | None) -> float:
    """Ticks of a stream, a packet or a frame in seconds; 0 where there are none."""
    base = timed.time_base
    return ticks * base.numerator / base.denominator if ticks and base else 0.0


def _parse_clock_seconds(text: str) -> float | None:
    """Seconds of a clock reading such as 00:01:02.500000000; None if the text is not one."""
    try:
        hours, minutes, seconds = text.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        return None
