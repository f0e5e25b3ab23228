"""Decodes packets; one that cannot be decoded is recorded as a loss of its track."""

from collections.abc import Iterable, Iterator

import av

from comodal.media.containers.track import Track

LOSSLESS_CODECS = {"flac", "tta", "wavpack"}  # whose frames have checksums


def decode_packet(track: Track, packet: av.Packet) -> list[av.VideoFrame] | list[av.AudioFrame]:
    """The frames of a packet; a packet that cannot be decoded, or has a wrong checksum, is recorded."""
    try:
        return packet.decode()
    except av.FFmpegError as error:
        is_lossless = track.stream.codec_context.name in LOSSLESS_CODECS
        frames = _decode_despite_checksum(track, packet) if is_lossless else []
        if frames:
            track.record_wrong_checksum(packet)
        else:
            track.record_loss(packet, describe_ffmpeg_error(error))
        return frames


def keep_overlapping_audio(packets: Iterable[av.Packet]) -> Iterator[av.Packet]:
    """The packets of an mp4 file, with audio that FFmpeg would leave out because its fragment has the time of the
    fragment before it, as muxers write it with one fragment for each packet. Such audio is not the same twice.

    What an edit leaves out has times that increase.
    """
    latest: dict[int, int | None] = {}
    for packet in packets:
        is_audio = packet.size > 0 and isinstance(packet.stream, av.AudioStream)
        if is_audio and packet.is_discard and packet.pts is not None and packet.pts == latest.get(packet.stream_index):
            kept = av.Packet(bytes(packet))
            kept.stream, kept.time_base = packet.stream, packet.time_base
            kept.pts, kept.dts, kept.duration = packet.pts, packet.dts, packet.duration
            kept.is_keyframe = packet.is_keyframe
            yield kept
        else:
            yield packet
        if is_audio:
            latest[packet.stream_index] = packet.pts


def _decode_despite_checksum(track: Track, packet: av.Packet) -> list[av.VideoFrame] | list[av.AudioFrame]:
    """The frames of a packet of a lossless codec with a wrong checksum, as FFmpeg decodes it by default: they keep the
    time of what follows.
    """
    if not isinstance(track.stream, av.AudioStream) or packet.size == 0:
        return []
    decoder = av.AudioCodecContext.create(track.stream.codec_context.name, "r")
    assert isinstance(decoder, av.AudioCodecContext)
    decoder.extradata, decoder.thread_count = track.stream.codec_context.extradata, 1
    try:
        return decoder.decode(packet)
    except av.FFmpegError:
        return []


def describe_ffmpeg_error(error: av.FFmpegError) -> str:
    """The last message of FFmpeg without the path, which the caller adds."""
    return str(error.log[-1]).strip() if error.log else error.strerror or type(error).__name__
