"""Parts that are missing in the middle of a file: lost packets of a broadcast, damaged fragments or clusters.

A pause in the packets of one stream may be a frame that is shown for long. It is a hole if the container reports a
loss beside it (a jump of the continuity counter of MPEG-TS, or of the numbers of mp4 fragments), or if video and audio
pause together. In a file with one stream, a long pause is a hole where pauses are rare: in a slide show they are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

MIN_GAP_SECONDS = 0.03  # between packets
MIN_LOSS_SECONDS = 0.005  # where the container reports a loss
MIN_SHARED_GAP_SECONDS = 0.5  # for which both streams pause
MIN_SHARED_FRACTION = 0.5  # of the longer pause of the two
NEAR_SECONDS = 0.25  # between a damaged packet and the gap that it belongs to
MAX_LONE_GAPS = 0.05  # of the packets of a stream that is alone in its file may be followed by a gap
MAX_GAPS = 10_000  # of a stream


@dataclass
class StreamGaps:
    """Where the packets of a stream pause, which are damaged, and where decoding can begin again; in seconds of the
    whole file.
    """

    kind: str
    gaps: list[tuple[float, float]] = field(default_factory=list)
    damaged: list[float] = field(default_factory=list)
    key_frames: list[float] = field(default_factory=list)
    packets: int = 0

    def record_gap(self, start: float, end: float, is_damaged: bool = False) -> None:
        """Record a pause of the stream, if it is long enough."""
        if end - start > (MIN_LOSS_SECONDS if is_damaged else MIN_GAP_SECONDS) and len(self.gaps) < MAX_GAPS:
            self.gaps.append((start, end))

    def record_key_frame(self, seconds: float) -> None:
        """Record a packet that can be decoded without the ones before it."""
        if len(self.key_frames) < MAX_GAPS:
            self.key_frames.append(seconds)

    def record_damage(self, seconds: float) -> None:
        """Record a packet that is incomplete according to the container."""
        if len(self.damaged) < MAX_GAPS:
            self.damaged.append(seconds)


@dataclass
class Hole:
    """A missing part of a stream; what follows cannot be decoded correctly before `restart`."""

    kind: str
    start: float
    end: float
    restart: float


def find_holes(streams: Sequence[StreamGaps]) -> list[Hole]:
    """The gaps of the streams in which something is missing."""
    damaged = [seconds for stream in streams for seconds in stream.damaged]
    holes = []
    for stream in streams:
        others = [other for other in streams if other is not stream]
        for start, end in stream.gaps:
            is_damaged = any(start - NEAR_SECONDS <= seconds <= end + NEAR_SECONDS for seconds in damaged)
            alone = end - start if len(stream.gaps) <= MAX_LONE_GAPS * stream.packets else 0.0
            shared = min((_measure_shared_gap(start, end, other) for other in others), default=alone)
            if is_damaged or shared >= MIN_SHARED_GAP_SECONDS:
                restarts = [seconds for seconds in stream.key_frames if seconds >= end - MIN_GAP_SECONDS]
                holes.append(Hole(stream.kind, start, end, min(restarts, default=end)))
    return holes


def _measure_shared_gap(start: float, end: float, other: StreamGaps) -> float:
    """For how many seconds another stream pauses within a gap, if both pauses are of about the same length."""
    shared = 0.0
    for other_start, other_end in other.gaps:
        overlap = min(end, other_end) - max(start, other_start)
        if overlap >= MIN_SHARED_FRACTION * max(end - start, other_end - other_start):
            shared = max(shared, overlap)
    return shared
