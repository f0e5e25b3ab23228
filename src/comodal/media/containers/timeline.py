"""One clock for the streams of a container whose timestamps restart, or jump, in the middle of the file.

Segments of MPEG-TS that were concatenated are the usual case: each has timestamps of its own. All streams of a
segment share one offset, which moves the segment behind the previous one. So video and audio stay in sync, and
nothing is lost.

AVI has no timestamps. There a part begins where a further file begins in the file.

- A decoding timestamp that is smaller than the one before it in its stream starts a new segment, in every format.
- In MPEG-TS and MPEG-PS, where timestamps have no zero, so does a forward jump of more than 10 s (FFmpeg's rule).
- Elsewhere a forward jump is a pause in the stream, and is kept.

A segment may lack a stream: where one stream starts again and then once more before the others do, the segment between
has this stream alone, and the others pause for as long.

A jump counts where all streams have it. If only one stream jumps forward, it has a pause: a frame that is shown for
long, or missing audio. If video and audio end at the same time only without the pause, it is no pause: only the
timestamps of one stream have jumped, and the file is refused. It is refused as well if only one stream jumps back:
video and audio cannot be put on one clock.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
from av.stream import Stream

from comodal.errors import MediaError
from comodal.media.containers.avi_parts import find_avi_parts
from comodal.media.containers.edit_lists import MP4_FORMAT
from comodal.media.containers.fragments import find_lost_fragments
from comodal.media.containers.holes import StreamGaps
from comodal.media.storage.refused_formats import RefusalReason

FORMATS_WITHOUT_ZERO = {"mpegts", "mpeg"}  # formats whose timestamps begin anywhere
MAX_BACKWARD_SECONDS = 0.1  # muxers repeat timestamps by less
MAX_FORWARD_SECONDS = 10.0
MIN_PAUSE_SECONDS = 0.5  # a longer step from packet to packet is a pause
MAX_END_SECONDS = 0.1  # by which the ends of video and audio differ in files that end with both
MAX_END_FRACTION = 0.1  # or by this fraction of the jump, in files whose audio or video ends a little earlier
MAX_WAIT_SECONDS = 3.0  # streams of one segment are interleaved more closely than this
MAX_LAG_SECONDS = 1.5  # by which one stream of a segment begins earlier in the file than another
MAX_OVERHANG_SECONDS = 0.5  # of a stream that FFmpeg returns after the next segment has begun
MAX_HELD_PACKETS = 2_000
MAX_HELD_BYTES = 1 << 26
MAX_ROUNDING_SECONDS, FINER_TICKS = 0.0005, 1024  # of timestamps that are moved
MAX_SEAM_SECONDS = 0.045  # a stream of a segment may overlap the next segment by this: one frame and 5 ms


@dataclass
class _Course:
    """The state of a stream, in seconds of its own timestamps, which `offset` moves to those of the whole file."""

    stream: Stream
    segment: int = -1  # before its first packet
    part: int = 0
    losses: int = 0  # of the file before the last packet
    offset: float = 0.0
    last: float | None = None  # decoding time of the last packet
    due: float = 0.0  # when the next one is expected
    end: float = 0.0  # presentation end, in seconds of the whole file
    held: list[av.Packet] = field(default_factory=list)  # packets of the next segment
    held_due: float = 0.0  # when the packet after the held ones is expected
    advance: float = 0.0  # since another stream is held
    may_pause: bool = False  # the next packet continues the segment, wherever it is
    steps: list[float] = field(default_factory=lambda: [0, 0.0])  # number and seconds of the steps between packets
    pauses: list[float] = field(default_factory=lambda: [0, 0.0])  # those of them that are pauses

    def __post_init__(self) -> None:
        base = self.stream.time_base or Fraction(0)
        self.gaps = StreamGaps("video" if self.stream.type == "video" else "audio")
        self.ratio = base.numerator, base.denominator  # the same values as with Fraction, in a tenth of the time

    def to_seconds(self, ticks: int) -> float:
        numerator, denominator = self.ratio
        return ticks * numerator / denominator

    def record_packet(self, packet: av.Packet, losses: int = 0) -> None:
        """Record a packet that continues the segment; `losses` is the number of losses in the file before it."""
        if packet.dts is None:
            return
        self.gaps.packets += 1
        start_seconds = self.to_seconds(packet.dts)
        step = 0.0 if self.last is None else max(start_seconds - self.last, 0.0)
        length = self.to_seconds(packet.duration) if packet.duration else step if step <= MIN_PAUSE_SECONDS else 0.0
        self.advance += step
        self.may_pause = False
        shift = self._get_presentation_time(packet) - start_seconds + self.offset
        is_damaged = packet.is_corrupt or losses > self.losses
        self.losses = max(self.losses, losses)  # a packet without a position has none before it
        if self.last is not None and self.due > self.last:
            self.gaps.record_gap(self.due + shift, start_seconds + shift, is_damaged)
        if packet.is_keyframe and self.gaps.gaps:
            self.gaps.record_key_frame(start_seconds + shift)
        if is_damaged:
            self.gaps.record_damage(start_seconds + shift)
        is_pause = step > MIN_PAUSE_SECONDS and self.steps[0] > 1  # after the first packet, it is a late start
        for sums in [self.steps] + [self.pauses] * is_pause:
            sums[0] += 1
            sums[1] += step
        earlier = start_seconds + self.offset if self.last is None else self.end
        self.end = max(earlier, self._get_presentation_time(packet) + length + self.offset)
        self.last, self.due = start_seconds, start_seconds + length

    def hold_packet(self, packet: av.Packet) -> None:
        """Keep a packet of the next segment."""
        if packet.dts is not None:
            self.held_due = self.to_seconds(packet.dts + (packet.duration or 0))
        self.held.append(packet)

    def get_held_start(self) -> float:
        """When the held packets begin to be presented."""
        return self._get_presentation_time(self.held[0])

    def leaps_forward(self) -> bool:
        """Whether the held packets come later than the last one, which they follow in the file."""
        return self.last is None or (self.held[0].dts is not None and self.to_seconds(self.held[0].dts) > self.last)

    def paused_seconds(self) -> float:
        """By how much the pauses are longer than other steps. There are none in a slide show, of long steps alone."""
        other_steps = self.steps[0] - self.pauses[0]
        return (
            0.0
            if other_steps <= self.pauses[0]
            else self.pauses[1] - self.pauses[0] * (self.steps[1] - self.pauses[1]) / other_steps
        )

    def start_segment(self, segment: int, offset: float) -> None:
        self.segment, self.offset, self.last, self.held = segment, offset, None, []
        self.steps, self.pauses = [0, 0.0], [0, 0.0]

    def shift_timestamps(self, packet: av.Packet) -> av.Packet:
        """The packet, its timestamps moved in place to those of the whole file, in finer ticks where they need it."""
        if self.offset and packet.time_base:
            ticks = round(self.offset / packet.time_base)
            if abs(float(ticks * packet.time_base) - self.offset) > MAX_ROUNDING_SECONDS:
                packet.pts = None if packet.pts is None else packet.pts * FINER_TICKS
                packet.dts = None if packet.dts is None else packet.dts * FINER_TICKS
                packet.duration = (packet.duration or 0) * FINER_TICKS
                packet.time_base /= FINER_TICKS
                ticks = round(self.offset / packet.time_base)
            packet.pts = None if packet.pts is None else packet.pts + ticks
            packet.dts = None if packet.dts is None else packet.dts + ticks
        return packet

    def _get_presentation_time(self, packet: av.Packet) -> float:
        ticks = packet.dts if packet.pts is None else packet.pts
        return self.due if ticks is None else self.to_seconds(ticks)


class Timeline:
    """Gives the packets of some streams continuous timestamps through the whole file.

    Packets are held only where one stream has jumped and another one has not yet. Without `can_restart`, decoding
    timestamps that go back are kept: FFmpeg returns the frames before a cut that only help to decode.
    """

    def __init__(self, path: Path, streams: Sequence[Stream], format_name: str, can_restart: bool = True) -> None:
        self.path = path
        self.can_restart = can_restart
        self.detects_forward_jumps = format_name in FORMATS_WITHOUT_ZERO
        self.courses = {stream.index: _Course(stream) for stream in streams}
        self.segment = 0
        self.segment_position: int | None = None  # in the file, in bytes
        self.offset = 0.0
        self.loss_positions = find_lost_fragments(path) if format_name == MP4_FORMAT else []
        self.part_starts = find_avi_parts(path) if format_name == "avi" else []
        self.part, self.part_seconds = 0, 0.0
        self.held: list[av.Packet] = []
        self.held_bytes = 0

    def align(self, packets: Iterable[av.Packet]) -> Iterator[av.Packet]:
        """The packets, their timestamps changed in place.

        Raises:
            MediaError: unreadable, if the timestamps of only one stream restart or jump.
        """
        for packet in packets:
            if packet.size == 0 and packet.dts is None:  # the file has ended
                yield from self._start_segment()
                self._check_ends()
                yield packet
            else:
                yield from self._route_packet(packet)

    def _route_packet(self, packet: av.Packet) -> Iterator[av.Packet]:
        course = self.courses[packet.stream_index]
        self._enter_part(course, packet)
        if course.held or self._is_jump(course, packet):
            if self.held or not self._belongs_to_segment(course, packet):
                yield from self._hold_packet(course, packet)
                return
            course.start_segment(self.segment, self.offset)
        elif course.segment < 0:
            course.start_segment(self.segment, self.offset)
        course.record_packet(packet, bisect_right(self.loss_positions, packet.pos or 0))
        yield course.shift_timestamps(packet)
        if self.held and course.advance > MAX_WAIT_SECONDS:
            yield from self._resume_segment()

    def _enter_part(self, course: _Course, packet: av.Packet) -> None:
        """Move a stream to the start of a part of the file, where the longest stream of the previous one ends."""
        part = bisect_right(self.part_starts, packet.pos or 0)
        if part > self.part:
            self.part, self.part_seconds = part, max(other.end for other in self.courses.values())
        if part > course.part:
            course.part, course.offset = part, self.part_seconds - course.due

    def _is_jump(self, course: _Course, packet: av.Packet) -> bool:
        if packet.dts is None or course.may_pause or not self.can_restart:
            return False
        start_seconds = course.to_seconds(packet.dts)
        if course.segment < 0:
            return self.detects_forward_jumps and _is_elsewhere(start_seconds, self._get_positions())
        if 0 <= course.segment < self.segment and self._is_behind_start(packet):
            return True
        return course.last is not None and (
            start_seconds < course.last - MAX_BACKWARD_SECONDS
            or (self.detects_forward_jumps and start_seconds > course.due + MAX_FORWARD_SECONDS)
        )

    def _is_behind_start(self, packet: av.Packet) -> bool:
        """Whether a packet lies in the file behind the start of the segment, and not before it."""
        return packet.pos is not None and self.segment_position is not None and packet.pos >= self.segment_position

    def _belongs_to_segment(self, course: _Course, packet: av.Packet) -> bool:
        """Whether a stream that has jumped has reached the segment in which the other streams are."""
        if packet.dts is None or not 0 <= course.segment < self.segment:
            return False
        return not _is_elsewhere(course.to_seconds(packet.dts), self._get_positions())

    def _get_positions(self) -> list[float]:
        """Where the streams are that have reached the segment."""
        return [
            course.due for course in self.courses.values() if course.last is not None and course.segment == self.segment
        ]

    def _hold_packet(self, course: _Course, packet: av.Packet) -> Iterator[av.Packet]:
        if self._is_beyond_segment(course, packet):
            yield from self._start_segment(is_complete=True)
            yield from self._route_packet(packet)
            return
        if not self.held:
            for other_course in self.courses.values():
                other_course.advance = 0.0
        course.hold_packet(packet)
        self.held.append(packet)
        self.held_bytes += packet.size
        waiting = [
            other_course
            for other_course in self.courses.values()
            if other_course.last is not None and not other_course.held
        ]
        if not waiting or len(self.held) > MAX_HELD_PACKETS or self.held_bytes > MAX_HELD_BYTES:
            yield from self._start_segment()

    def _is_beyond_segment(self, course: _Course, packet: av.Packet) -> bool:
        """Whether a packet follows the segment of the held packets, so that a stream is missing in that segment."""
        if not self.held or packet.dts is None:
            return False
        start_seconds = course.to_seconds(packet.dts)
        if course.held:
            step = start_seconds - course.held_due
            return step < -MAX_BACKWARD_SECONDS or (self.detects_forward_jumps and step > MAX_FORWARD_SECONDS)
        return _is_elsewhere(start_seconds, [other.held_due for other in self.courses.values() if other.held])

    def _start_segment(self, is_complete: bool = False) -> Iterator[av.Packet]:
        """Move the held segment behind the previous one: all streams have reached it, or have ended, or it is complete
        without them.
        """
        jumped = [course for course in self.courses.values() if course.held]
        if not jumped:
            return
        others = [course for course in self.courses.values() if course.last is not None and not course.held]
        is_skipped = is_complete and all(course.advance <= MAX_OVERHANG_SECONDS for course in others)
        if others and not is_skipped and all(course.leaps_forward() for course in jumped):
            yield from self._resume_segment()
            return
        self._check_ends()
        end = max(course.end for course in self.courses.values() if course.segment == self.segment)
        offsets = {
            course.stream.type: (course.end if course.segment == self.segment else end) - course.get_held_start()
            for course in jumped
        }
        self.offset = max(offsets.values())
        if self.offset - min(offsets.values()) <= MAX_SEAM_SECONDS:
            self.offset = offsets.get("video", self.offset)
        self.segment, self.segment_position = self.segment + 1, self.held[0].pos
        for course in jumped:
            course.start_segment(self.segment, self.offset)
        yield from self._release_packets()

    def _resume_segment(self) -> Iterator[av.Packet]:
        """One stream has jumped and another one continues: the jump is a pause."""
        for course in self.courses.values():
            if course.held and not course.leaps_forward():
                kind = "video" if course.stream.type == "video" else "audio"
                detail = f"the timestamps of its {kind} restart at {course.end:.2f} s, others do not"
                raise MediaError(self.path, RefusalReason.UNREADABLE, detail)
            course.may_pause, course.held = bool(course.held), []
        yield from self._release_packets()

    def has_doubtful_pause(self) -> bool:
        """Whether only one stream has paused, so that it depends on the end of the file if it is believed."""
        paused = [course.paused_seconds() for course in self.courses.values()]
        return max(paused) - min(paused) > MIN_PAUSE_SECONDS

    def _check_ends(self) -> None:
        """Refuse a file whose streams end at the same time only if their pauses are left out."""
        courses = [course for course in self.courses.values() if course.last is not None]
        if len(courses) < 2 or len({course.segment for course in courses}) > 1 or not self.has_doubtful_pause():
            return
        ends = [course.end - course.paused_seconds() for course in courses]
        paused = [course.paused_seconds() for course in courses]
        if max(ends) - min(ends) <= max(MAX_END_SECONDS, MAX_END_FRACTION * (max(paused) - min(paused))):
            course = max(courses, key=_Course.paused_seconds)
            kind = "video" if course.stream.type == "video" else "audio"
            detail = f"the timestamps of its {kind} jump by {course.paused_seconds():.2f} s, no others do"
            raise MediaError(self.path, RefusalReason.UNREADABLE, f"{detail}; remux it with one clock")

    def _release_packets(self) -> Iterator[av.Packet]:
        held, self.held, self.held_bytes = self.held, [], 0
        for packet in held:
            yield from self._route_packet(packet)


def _is_elsewhere(start_seconds: float, positions: Sequence[float]) -> bool:
    """Whether a stream that begins at `start_seconds` is not in the segment in which the others are at `positions`."""
    earliest, latest = min(positions, default=start_seconds), max(positions, default=start_seconds)
    return start_seconds < latest - MAX_LAG_SECONDS or start_seconds > earliest + MAX_FORWARD_SECONDS
