"""The audio of a container, block by block, with a warning for missing parts.

An audio-only file in a format without a timeline (mp3, wav, flac, ogg, ...) is read as its samples in order, whatever
its header declares. In a video, and in mp4 and Matroska, audio is positioned by its timestamps.
"""

import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer

from comodal.errors import MediaError, MediaWarning
from comodal.media.containers.audio_headers import find_second_file, read_audio_header
from comodal.media.containers.audio_segments import AudioChain, AudioJoiner, Mono
from comodal.media.containers.container import (
    TIMESTAMPED_FORMATS,
    choose_streams,
    decode_frames,
    make_tracks,
    open_container,
)
from comodal.media.containers.ogg_pages import check_ogg_pages
from comodal.media.containers.track import MAX_LOST_SECONDS, Track
from comodal.media.storage.open_media import open_media
from comodal.media.storage.refused_formats import RefusalReason

# Formats whose header has the duration of the audio. Elsewhere FFmpeg estimates it from the bit rate.
SAMPLE_EXACT_FORMATS, MAX_ROUNDING_SECONDS = (
    {"aiff", "au", "flac", "tta", "wav", "w64", "wv"},
    0.01,
)  # whose headers count the samples
FORMATS_OF_ACTUAL_LENGTH = {"wav", "w64"}  # for which FFmpeg reports the length of what is in the file
MAX_FRAME_SECONDS = 0.13  # of the codecs of the other formats: 1,024 samples at 8 kHz
MAX_SHORTER_SECONDS = {
    "asf": MAX_LOST_SECONDS,
    "avi": MAX_LOST_SECONDS,
}  # whose headers have one length for all streams
FORMATS_WITH_DURATION = TIMESTAMPED_FORMATS - {"mpegts"} | {
    "w64",
    "flac",
    "aiff",
    "caf",
    "asf",
    "wv",
    "tta",
    "ape",
    "avi",
    "au",
}
STREAM_INFO_BYTES = 34
XING_BYTES = 1 << 12
XING_TAGS = (b"Xing", b"Info", b"VBRI")  # the frame of an mp3 file with the number of frames


def read_audio_blocks(path: Path) -> Iterator[tuple[int, Mono]]:
    """The audio of a container, block by block with its sample rate, from zero on the clock of its video and audio.

    Warns:
        MediaWarning: the file is shorter than its header declares, or a part of it cannot be decoded.

    Raises:
        MediaError: the file cannot be opened, or has no audio.
    """
    with open_container(path) as container:
        video, audio = choose_streams(container, path)
        if audio is None:
            raise MediaError(path, RefusalReason.NO_AUDIO_STREAM, "no audio stream in the file")
        tracks = make_tracks(path, audio, video)
        audio_track = tracks[0]
        audio_track.strict = False
        timed = video is not None or container.format.name in TIMESTAMPED_FORMATS
        codec = audio.codec_context.name
        joiner = AudioJoiner(path, codec, from_zero=True) if timed else AudioChain(path)
        decoded_seconds = 0.0
        checksum = FlacChecksum(audio.codec_context.extradata or b"") if container.format.name == "flac" else None
        for _, frame in decode_frames(container, tracks, [audio_track]):
            assert isinstance(frame, av.AudioFrame)
            decoded_seconds += frame.samples / frame.sample_rate
            if checksum is not None:
                checksum.update(frame)
            for block in joiner.add_frame(frame, audio_track.record_frame(frame)):
                yield joiner.sample_rate, block
        for block in joiner.finish():
            yield joiner.sample_rate, block
        audio_track.check_complete(0.0)
        warn_of_missing_audio(container, audio_track, decoded_seconds)
        if checksum is not None and checksum.differs():
            detail = "damaged: its audio differs from the checksum (MD5) in its header; a part of it may be noise"
            warnings.warn(MediaWarning(path, detail), stacklevel=2)


class FlacChecksum:
    """The MD5 of decoded samples, compared with that of a FLAC file (RFC 9639, section 8.2).

    FFmpeg decodes frames with a wrong checksum to noise.

    Args:
        stream_info: The metadata block STREAMINFO, 34 bytes.
    """

    def __init__(self, stream_info: bytes) -> None:
        fields = int.from_bytes(stream_info[10:18], "big") if len(stream_info) == STREAM_INFO_BYTES else 0
        self.bits, self.num_samples = (fields >> 36 & 31) + 1, fields & (1 << 36) - 1
        self.expected = stream_info[18:]
        self.digest, self.decoded = hashlib.md5(usedforsecurity=False), 0

    def update(self, frame: av.AudioFrame) -> None:
        """Add the samples of a frame: little-endian, in as few bytes as they need, channels interleaved."""
        rows = frame.to_ndarray().astype(np.int64)
        samples = (rows.T if frame.format.is_planar else rows).reshape(-1)
        shifted = samples >> (8 * frame.format.bytes - self.bits)
        data = shifted.astype(shifted.dtype.newbyteorder("little")).view(np.uint8).reshape(len(samples), -1)
        self.digest.update(data[:, : -(-self.bits // 8)].tobytes())
        self.decoded += frame.samples

    def differs(self) -> bool:
        """Whether the file has a checksum, all of its samples are decoded, and the checksum is another one."""
        is_comparable = any(self.expected) and self.decoded == self.num_samples
        return is_comparable and self.digest.digest() != self.expected


def warn_of_missing_audio(container: InputContainer, audio_track: Track, decoded_seconds: float) -> None:
    """Warns about audio that the header declares and the file does not have, or that cannot be decoded."""
    header = read_audio_header(audio_track.path, container.format.name)
    declared_end = audio_track.declared_end if _has_exact_duration(container, audio_track.path) else None
    if container.format.name in FORMATS_OF_ACTUAL_LENGTH or header.seconds is not None:
        declared_end = header.seconds
    is_exact = container.format.name in SAMPLE_EXACT_FORMATS or header.seconds is not None
    tolerance = MAX_ROUNDING_SECONDS if is_exact else MAX_SHORTER_SECONDS.get(container.format.name, MAX_FRAME_SECONDS)
    if declared_end is not None and audio_track.end < declared_end - tolerance:
        detail = f"truncated: its audio ends at {audio_track.end:.2f} s, its header declares {declared_end:.2f} s"
        warnings.warn(MediaWarning(audio_track.path, detail), stacklevel=2)
    elif audio_track.is_cut:
        detail = f"damaged: its audio cannot be read after {audio_track.end:.2f} s ({audio_track.failure})"
        warnings.warn(MediaWarning(audio_track.path, detail), stacklevel=2)
    elif is_exact and declared_end is not None and decoded_seconds < declared_end - MAX_ROUNDING_SECONDS:
        lost_seconds = declared_end - decoded_seconds
        detail = f"damaged: {lost_seconds:.2f} s of its audio are lost, and what follows is early by that"
        warnings.warn(MediaWarning(audio_track.path, detail), stacklevel=2)
    second = find_second_file(audio_track.path, container.format.name, header)
    if second is not None:
        extent = "with its header as samples" if container.format.name == "au" else "and is not read"
        detail = f"concatenated: another file begins at byte {second:,}, {extent}"
        warnings.warn(MediaWarning(audio_track.path, detail), stacklevel=2)
    if container.format.name == "ogg":
        _warn_of_missing_pages(audio_track, decoded_seconds)
    audio_track.warn_of_damaged_packets()


def _warn_of_missing_pages(audio_track: Track, decoded_seconds: float) -> None:
    pages = check_ogg_pages(audio_track.path)
    if pages.lost:
        lost_seconds = audio_track.end - decoded_seconds
        extent = f" ({lost_seconds:.2f} s)" if lost_seconds > MAX_ROUNDING_SECONDS else ""
        detail = f"damaged: {pages.lost} pages of its audio are lost{extent}, and what follows is early by that"
        warnings.warn(MediaWarning(audio_track.path, detail), stacklevel=3)
    if pages.is_cut:
        detail = f"truncated: its audio ends at {audio_track.end:.2f} s, without the mark of its end"
        warnings.warn(MediaWarning(audio_track.path, detail), stacklevel=3)


def _has_exact_duration(container: InputContainer, path: Path) -> bool:
    """Whether the header has the duration of the audio, so that it is not an estimate."""
    if container.format.name != "mp3":
        return container.format.name in FORMATS_WITH_DURATION
    with open_media(path) as file:
        head = file.read(10)
        if head[:3] == b"ID3":  # ID3v2.4, section 3.1: the size of the tag in four times seven bits
            file.seek(10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True)))
            head = b""
        head += file.read(XING_BYTES)
    return any(mark in head for mark in XING_TAGS)
