"""Containers (mp4, mkv, webm, avi, mpg, ...) through PyAV, guarded against malformed files.

Reading terminates for every file: sizes, rates and the numbers of frames and packets are bounded. Only local files of
known formats are opened. Every FFmpeg error becomes a MediaError.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition

from comodal.errors import MediaError, MediaWarning
from comodal.media.containers.avi_parts import find_avi_end, find_avi_parts
from comodal.media.containers.edit_lists import MP4_FORMAT, read_edit_ends
from comodal.media.containers.fragments import FragmentedTrack, find_damaged_box, read_fragmented_tracks
from comodal.media.containers.holes import MIN_GAP_SECONDS, find_holes
from comodal.media.containers.matroska_segments import has_second_segment
from comodal.media.containers.packet_decoder import (
    LOSSLESS_CODECS,
    decode_packet,
    describe_ffmpeg_error,
    keep_overlapping_audio,
)
from comodal.media.containers.presentation_order import PresentationOrder
from comodal.media.containers.timeline import FORMATS_WITHOUT_ZERO, Timeline
from comodal.media.containers.track import (
    SHARED_DURATION_FORMATS,
    Track,
    ticks_to_seconds,
)
from comodal.media.storage.open_media import open_media
from comodal.media.storage.refused_formats import RefusalReason, describe_non_media, read_first_bytes

av.logging.set_level(av.logging.PANIC)  # errors are raised; FFmpeg's own log lines would break the progress bar

TIMESTAMPED_FORMATS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts", "nut"}  # audio alone has times in these
MAX_FRAME_PIXELS = 8192 * 4320  # 8K; FFmpeg holds up to 17 frames of a stream at once
MAX_LISTED_HOLES = 3
MAX_IDLE_PACKETS = 2_000  # of a stream that is complete, while reading waits for the other one
MATROSKA_FORMAT = "matroska,webm"
FORMATS_WITH_LENGTH = {MP4_FORMAT, "mxf"} | SHARED_DURATION_FORMATS  # formats whose header has a length
AVI_START = b"RIFF"
CONCATENABLE_FORMATS = {
    "matroska,webm": b"\x1a\x45\xdf\xa3",
    "flv": b"FLV\1",
    "avi": AVI_START,
    "mpegts": b"",
    "mpeg": b"",
    "mxf": b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02",
}  # whose packets continue to the end of the file, except for an index, and how a file begins
MAX_UNREAD_BYTES, MAX_UNREAD = 1 << 15, 0.05  # of a file
OPEN_TIMEOUT_SECONDS = 30.0
MAX_LEAD_SECONDS = 0.045  # of audio before the first frame that is left out: one frame and 5 ms
PREROLL_SECONDS = 2.0  # decoded before a start in the middle: audio is stored apart from its frames
# Playlists, image sequences and text formats are left out: they would open other files, or take any text for a video.
CONTAINER_FORMATS = (
    "mov,matroska,avi,mpeg,mpegts,mpegvideo,ogg,flv,asf,mxf,nut,rm,dv,ivf,h264,hevc,m4v,gif,"
    "wav,w64,mp3,aac,flac,aiff,amr,au,ac3,eac3,dts,tta,wv,ape,caf,voc,mpc,mpc8,tak,truehd,mlp,loas,"
    "xwma,nistsphere"
)
FORMATS_WITH_HEADER_SIZE = {"avi", MP4_FORMAT, "matroska,webm"}
CONTAINER_SIGNATURES = {
    b"ftyp": 4,
    b"moov": 4,
    b"mdat": 4,
    b"\x1a\x45\xdf\xa3": 0,
    b"AVI ": 8,
    b"OggS": 0,
    b"\0\0\x01\xba": 0,
}
MP4_BOX_TYPES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"}


@contextmanager
def open_container(path: Path) -> Iterator[InputContainer]:
    """Open a local media file.

    Raises:
        MediaError: missing, unreadable, not a video, or truncated (a known container without its index).
    """
    head = read_first_bytes(path)
    impostor = describe_non_media(head)
    if impostor:
        raise MediaError(path, RefusalReason.NOT_A_VIDEO, impostor)
    options = {"protocol_whitelist": "file", "format_whitelist": CONTAINER_FORMATS, "max_pixels": str(MAX_FRAME_PIXELS)}
    if head[4:8] in MP4_BOX_TYPES and read_edit_ends(path) is not None:
        options["advanced_editlist"] = "0"
    try:
        source = f"file:{path.absolute()}" if path.is_file() else open_media(path)
        container = av.open(source, "r", options=options, timeout=OPEN_TIMEOUT_SECONDS, metadata_errors="replace")
    except av.error.ExitError:
        raise MediaError(path, RefusalReason.UNREADABLE, f"not opened within {OPEN_TIMEOUT_SECONDS:.0f} s") from None
    except av.FFmpegError as error:
        if any(head[offset:].startswith(signature) for signature, offset in CONTAINER_SIGNATURES.items()):
            detail = f"it begins like a video but has no usable index ({describe_ffmpeg_error(error)})"
            raise MediaError(path, RefusalReason.TRUNCATED, detail) from None
        raise MediaError(path, RefusalReason.NOT_A_VIDEO, "no known video format") from None
    with container:
        yield container


def choose_streams(container: InputContainer, path: Path) -> tuple[av.VideoStream | None, av.AudioStream | None]:
    """The main video stream and the main audio stream of its program, as FFmpeg chooses them; album covers are skipped.

    Raises:
        MediaError: too large, or unreadable if there is no decoder.
    """
    video = container.streams.best("video")
    if not isinstance(video, av.VideoStream) or video.disposition & Disposition.attached_pic:
        video_streams = (
            stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic
        )
        video = next(video_streams, None)
    audio = container.streams.best("audio", related=video)
    if not isinstance(audio, av.AudioStream):
        audio = next(iter(container.streams.audio), None)
    for stream in (video, audio):
        if stream is not None and stream.codec_context is None:
            raise MediaError(path, RefusalReason.UNREADABLE, f"no decoder for its {stream.type}")
        if stream is not None:
            stream.codec_context.thread_count = 1  # processes run in parallel, one per core
            stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
    if audio is not None:
        _clear_channel_order(audio)
        if audio.codec_context.name in LOSSLESS_CODECS and container.format.name != "flac":  # read by its MD5 instead
            # Otherwise frames with a wrong checksum are decoded to noise.
            audio.codec_context.options |= {"err_detect": "crccheck+explode"}
        if audio.codec_context.name == "alac" and container.format.name == "caf":
            # The last packet already has the right number of samples; FFmpeg 8.1 would trim a full one twice.
            audio.codec_context.options |= {"flags2": "skip_manual"}
    if video is not None:
        _check_frame_size(container, path, video.codec_context.width, video.codec_context.height)
    return video, audio


def _clear_channel_order(audio: av.AudioStream) -> None:
    """Reduce an unusual channel order to its channel count, which is all that averaging the channels needs.

    PyAV 18 frees the list of such an order once for every frame and so crashes. The replaced one is freed here, once.
    """
    layout = audio.codec_context.layout
    if " channels (" in layout.name:
        audio.codec_context.layout = f"{layout.nb_channels} channels"


def _check_frame_size(container: InputContainer, path: Path, width: int, height: int) -> None:
    """Refuse frames that are too large. FFmpeg reports size 0 for a size that it refuses itself."""
    if width * height > MAX_FRAME_PIXELS:
        raise MediaError(
            path, RefusalReason.TOO_LARGE, f"frames of {width} x {height}, the limit is {MAX_FRAME_PIXELS:,} pixels"
        )
    if width * height == 0 and container.format.name in FORMATS_WITH_HEADER_SIZE:
        raise MediaError(path, RefusalReason.TOO_LARGE, "no decoder supports the frame size in its header")


def make_tracks(path: Path, *streams: av.VideoStream | av.AudioStream | None) -> list[Track]:
    """Tracks on one clock, which is zero where the first of the streams begins.

    Where audio begins up to one frame before the video, which is mostly the delay of its encoder, zero is the first
    frame.
    """
    present = [stream for stream in streams if stream is not None]
    is_mp4 = bool(present) and present[0].container.format.name == MP4_FORMAT
    fragmented = read_fragmented_tracks(path) if is_mp4 else {}
    late = {stream.id: _find_delay(path, stream, fragmented.get(stream.id)) for stream in present}
    starts = {
        stream.type: ticks_to_seconds(stream, stream.start_time) - late[stream.id]
        for stream in present
        if stream.start_time is not None
    }
    zero, ends = min(starts.values(), default=0.0), {}
    if 0 < starts.get("video", zero) - zero <= MAX_LEAD_SECONDS:
        zero = starts["video"]
    if is_mp4:
        zero, ends = max(zero, 0.0), read_edit_ends(path) or {}  # what lies before the edits has negative times
    tracks = []
    for stream in present:
        delay = late[stream.id]
        track = Track(path, stream, zero + delay, last=ends.get(stream.id, float("inf")) + delay)
        if stream.id in fragmented and not stream.frames:
            track.media_start = fragmented[stream.id].first_seconds() + delay
        tracks.append(track)
    return tracks


def _find_delay(path: Path, stream: av.VideoStream | av.AudioStream, track: FragmentedTrack | None) -> float:
    """By how many seconds FFmpeg is late with a stream, as it is with some fragmented mp4 files.

    Raises:
        MediaError: unreadable, if it is not the same in the whole file, or the times of the fragments start again.
    """
    if track is not None and track.restarts:
        raise MediaError(
            path, RefusalReason.UNREADABLE, "the times of its fragments start again, as in concatenated files"
        )
    if track is None or stream.start_time is None:
        return 0.0
    late = ticks_to_seconds(stream, stream.start_time) - track.first_seconds()
    tick = 1 / track.ticks_per_second
    if not any(track.delays) or (abs(late) < tick and track.delays[0]):
        return 0.0
    if not track.has_constant_delay() or abs(late - track.delay_seconds()) >= tick:
        detail = "the composition offsets of its fragments differ; remux it without fragments"
        raise MediaError(path, RefusalReason.UNREADABLE, detail)
    return track.delay_seconds()


def seek_container(container: InputContainer, tracks: Sequence[Track], start_seconds: float) -> None:
    """Move the clock of the tracks to `start_seconds`, and the reading position to a key frame before that.

    Frames that are decoded before the start have negative times. Where a format cannot seek, or its timestamps may
    restart, as in concatenated files, reading begins at the start of the file.

    Raises:
        MediaError: too short, if a stream ends before that according to its header.
    """
    is_joined = is_concatenation(container, tracks[0].path)
    for track in tracks:
        declared_end = None if is_joined else track.declared_end
        if declared_end is not None and declared_end <= start_seconds:
            detail = f"its {track.kind} ends at {declared_end:.2f} s, before {start_seconds:g} s where the clip begins"
            raise MediaError(track.path, RefusalReason.TOO_SHORT, detail)
        track.zero += start_seconds
    if container.format.name in FORMATS_WITHOUT_ZERO or is_joined:
        return
    microseconds = round((tracks[0].zero - PREROLL_SECONDS) * 1e6)
    with suppress(av.FFmpegError):
        container.seek(microseconds, backward=True)


def decode_frames(
    container: InputContainer, tracks: Sequence[Track], decoded_tracks: Sequence[Track] | None = None
) -> Iterator[tuple[Track, av.VideoFrame | av.AudioFrame]]:
    """Decoded frames in one pass through the file, until the file ends or all wanted tracks are `done`.

    Args:
        container: the open file.
        tracks: all tracks on the clock, including those that are not decoded.
        decoded_tracks: the tracks to decode; by default all.

    Raises:
        MediaError: unreadable, if the timestamps of only one track restart, or tracks appear in the middle.
    """
    by_index = {track.stream.index: track for track in (tracks if decoded_tracks is None else decoded_tracks)}
    timeline, packets = _iterate_packets(container, tracks)
    is_avi = container.format.name == "avi"
    orders = {index: PresentationOrder() for index, track in by_index.items() if is_avi and track.kind == "video"}
    idle = 0
    for packet in packets:
        track = by_index.get(packet.stream.index)
        if track is None:
            continue
        idle = idle + 1 if track.done else 0
        if idle > MAX_IDLE_PACKETS or all(track.done for track in by_index.values()):
            break
        if not track.done:
            for frame in _sort_frames(orders.get(packet.stream_index), decode_packet(track, packet), packet):
                if frame.time is None or frame.time < track.last:
                    yield track, frame
    if timeline.has_doubtful_pause():  # which the end of the file explains, or not
        for _ in packets:
            pass
    _check_holes(timeline, tracks, [*by_index.values()])


def _check_holes(timeline: Timeline, tracks: Sequence[Track], decoded_tracks: Sequence[Track]) -> None:
    """Warn of what is missing in the middle of the part that was decoded; not where audio alone is read in order."""
    format_name = tracks[0].stream.container.format.name
    if all(track.kind == "audio" for track in tracks) and format_name not in TIMESTAMPED_FORMATS:
        return
    until = max(track.end for track in decoded_tracks)
    zeros = {track.kind: track.zero for track in tracks}
    holes = find_holes([course.gaps for course in timeline.courses.values()])
    parts: dict[str, list[str]] = {}
    for hole in holes:
        start, end = hole.start - zeros[hole.kind], hole.end - zeros[hole.kind]
        if start >= until or end <= 0 or all(track.kind != hole.kind for track in decoded_tracks):
            continue
        span, restart = f"for {end - start:.2f} s from {start:.2f} s on", hole.restart - zeros[hole.kind]
        if restart > end + MIN_GAP_SECONDS:
            span += f" (what follows is damaged until {restart:.2f} s)"
        parts.setdefault(hole.kind, []).append(span)
    for kind, spans in parts.items():
        more = f" and at {len(spans) - MAX_LISTED_HOLES} more places" if len(spans) > MAX_LISTED_HOLES else ""
        detail = f"damaged: the file has no {kind} {', '.join(spans[:MAX_LISTED_HOLES])}{more}"
        warnings.warn(MediaWarning(tracks[0].path, detail), stacklevel=3)


def read_shared_end(container: InputContainer, track: Track) -> float | None:
    """Where the file ends according to a header that has one length for all streams; None in other formats."""
    if container.format.name not in SHARED_DURATION_FORMATS:
        return None
    if container.format.name == "asf":  # FFmpeg takes this length for that of each stream, and adds their starts
        return ticks_to_seconds(track.stream, track.stream.duration) - track.zero if track.stream.duration else None
    return container.duration / av.time_base - track.zero if container.duration else None


def _sort_frames(
    order: PresentationOrder | None, frames: list[av.VideoFrame] | list[av.AudioFrame], packet: av.Packet
) -> Iterable[av.VideoFrame | av.AudioFrame]:
    """The frames with the times of their presentation; their packet determines whether they are the last."""
    if order is None:
        return frames
    is_last = packet.size == 0 and packet.dts is None
    return order.sort((frame for frame in frames if isinstance(frame, av.VideoFrame)), is_last)


def measure_seconds(container: InputContainer, tracks: Sequence[Track]) -> float:
    """Where the last track ends, on their clock: by the header, or by all packets where the header does not declare it.

    Raises:
        MediaError: as `decode_frames`.
    """
    if container.format.name in FORMATS_WITH_LENGTH and not is_concatenation(container, tracks[0].path):
        ends = [track.declared_end for track in tracks] + [read_shared_end(container, tracks[0])]
        declared = [end for end in ends if end is not None]
        if declared:
            return max(declared)
    zeros = {track.stream.index: track.zero for track in tracks}
    end = 0.0
    for packet in _iterate_packets(container, tracks)[1]:
        if packet.pts is not None:
            ends_at = ticks_to_seconds(packet, packet.pts + (packet.duration or 0))
            end = max(end, ends_at - zeros[packet.stream.index])
    return end


def is_concatenation(container: InputContainer, path: Path) -> bool:
    """Whether further files follow the first one, whose header has its own length alone."""
    if container.format.name == "avi":
        return bool(find_avi_parts(path))
    return container.format.name == MATROSKA_FORMAT and has_second_segment(path)


def _iterate_packets(container: InputContainer, tracks: Sequence[Track]) -> tuple[Timeline, Iterator[av.Packet]]:
    """Packets in the order of the file, and the timeline that they are on."""
    path, name = tracks[0].path, container.format.name
    is_cut = name == MP4_FORMAT and read_edit_ends(path) is None
    timeline = Timeline(path, [track.stream for track in tracks], name, can_restart=not is_cut)
    return timeline, timeline.align(_demux_packets(container, tracks))


def _demux_packets(container: InputContainer, tracks: Sequence[Track]) -> Iterator[av.Packet]:
    """Packets in the order of the file. A broken packet ends the file, and the decoders are flushed."""
    read = 0
    try:
        packets: Iterable[av.Packet] = container.demux([track.stream for track in tracks])
        for packet in keep_overlapping_audio(packets) if container.format.name == MP4_FORMAT else packets:
            if packet.size == 0 and packet.dts is None:
                _check_fully_read(container, tracks, read)
                _mark_damaged_boxes(container, tracks)
            read = max(read, (packet.pos or 0) + packet.size)
            yield packet
    except IndexError:  # PyAV's
        detail = "a stream appears in the middle of the file, as where files of different programs are concatenated"
        raise MediaError(tracks[0].path, RefusalReason.UNREADABLE, detail) from None
    except av.FFmpegError as error:
        for track in tracks:
            track.failure, track.is_cut = describe_ffmpeg_error(error), True
            flush = av.Packet()
            flush.stream = track.stream
            yield flush


def _check_fully_read(container: InputContainer, tracks: Sequence[Track], read: int) -> None:
    """Refuse a video of which FFmpeg reads only the first part, as it does for concatenated files of some formats."""
    start = CONCATENABLE_FORMATS.get(container.format.name)
    if start == AVI_START:
        read = find_avi_end(tracks[0].path, read)
    unread = container.size - read
    if start is None or not read or unread <= 0 or all(track.kind != "video" for track in tracks):
        return
    is_concatenated = unread > max(MAX_UNREAD_BYTES, container.size * MAX_UNREAD)
    if start and not is_concatenated:
        with open_media(tracks[0].path) as file:
            file.seek(read)
            is_concatenated = start in file.read(unread)
    if is_concatenated:
        detail = f"the last {unread:,} of its {container.size:,} bytes cannot be read, as in concatenated files"
        raise MediaError(tracks[0].path, RefusalReason.UNREADABLE, detail)


def _mark_damaged_boxes(container: InputContainer, tracks: Sequence[Track]) -> None:
    """Mark the tracks as cut where a fragmented mp4 file continues behind damaged boxes."""
    offset = find_damaged_box(tracks[0].path) if container.format.name == MP4_FORMAT else None
    if offset is not None:
        for track in tracks:
            track.failure = f"its fragments are damaged at byte {offset:,} of {container.size:,}"
            track.is_cut = True
