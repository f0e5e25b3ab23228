"""What the headers of audio files declare: the duration, and where the file ends.

FFmpeg reports the actual length of some formats in place of the declared one, and reads only the first of several
concatenated files. Layouts: RIFF and RF64 (EBU Tech 3306), Sony Wave64, AIFF (Apple, 1991), Core Audio Format (Apple,
2011), TTA1 and Sun's AU.
"""

import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from comodal.media.storage.open_media import OpenFile, open_media

UNKNOWN_SIZES = (0, 0xFFFFFFFF)  # in files that went through a pipe
W64_RIFF, W64_FMT, W64_DATA = (
    bytes.fromhex(guid)
    for guid in (
        "726966662e91cf11a5d628db04c10000",
        "666d7420f3acd3118cd100c04f8edb8a",
        "64617461f3acd3118cd100c04f8edb8a",
    )
)
MAX_HEAD_BYTES = 40
MAX_TAG_BYTES = 1 << 16  # of padding and tags behind the first of concatenated files
MAX_CHUNKS = 10_000
FORMAT_BYTES, EXTENSIBLE_TAG, PCM_TAG = 26, b"\xfe\xff", b"\1\0"  # of a WAVEFORMATEXTENSIBLE, to its subformat
CAF_PACKET_TABLE_BYTES = 12 + 24  # the header of the chunk with the sizes of compressed packets
TTA_FRAME_SECONDS = 256 / 245
DAMAGED_HEADER = (struct.error, OSError, OverflowError)  # a chunk that ends early, or has a size that no file has


class AudioHeader(NamedTuple):
    """What a header declares: the seconds of audio, and the bytes of the file, None where it does not; and whether
    samples are stored in more bytes than they need, which FFmpeg ignores.
    """

    seconds: float | None = None
    num_bytes: int | None = None
    is_padded: bool = False


def _read_riff(file: OpenFile) -> AudioHeader:
    kind, size, _ = _unpack("<4sI4s", file)
    num_bytes: int | None = 8 + size if kind == b"RIFF" and size not in UNKNOWN_SIZES else None
    long_data_size, bytes_per_second, is_padded = 0, 0, False
    for _ in range(MAX_CHUNKS):
        name, size = _unpack("<4sI", file)
        body = file.read(min(size, FORMAT_BYTES)) if name in (b"fmt ", b"ds64") else b""
        if name == b"ds64":
            long_size, long_data_size = struct.unpack_from("<QQ", body)
            num_bytes = 8 + long_size
        elif name == b"fmt ":
            bytes_per_second, is_padded = struct.unpack_from("<I", body, 8)[0], _has_padded_samples(body)
        elif name == b"data":
            data_size = long_data_size if size == 0xFFFFFFFF else size
            has_size = data_size not in UNKNOWN_SIZES and bytes_per_second > 0
            return AudioHeader(data_size / bytes_per_second if has_size else None, num_bytes, is_padded)
        file.seek(size + size % 2 - len(body), 1)
    return AudioHeader()


def _read_wave64(file: OpenFile) -> AudioHeader:
    _, num_bytes, _ = _unpack("<16sQ16s", file)
    bytes_per_second, is_padded = 0, False
    for _ in range(MAX_CHUNKS):
        name, size = _unpack("<16sQ", file)
        body = file.read(min(max(size - 24, 0), FORMAT_BYTES)) if name == W64_FMT else b""
        if name == W64_FMT:
            bytes_per_second, is_padded = struct.unpack_from("<I", body, 8)[0], _has_padded_samples(body)
        elif name == W64_DATA:
            seconds = (size - 24) / bytes_per_second if bytes_per_second and size > 24 else None
            return AudioHeader(seconds, num_bytes, is_padded)
        file.seek(max(-(-size // 8) * 8 - 24 - len(body), 0), 1)
    return AudioHeader()


def _has_padded_samples(body: bytes) -> bool:
    """Whether samples of 24 bits are stored in 32, or the like, according to a WAVEFORMATEXTENSIBLE."""
    if len(body) < FORMAT_BYTES or body[:2] != EXTENSIBLE_TAG or body[24:26] != PCM_TAG:
        return False
    channels, _, _, frame_bytes, _, _, valid_bits = struct.unpack_from("<HIIHHHH", body, 2)
    return valid_bits > 0 and frame_bytes != channels * -(-valid_bits // 8)


def _read_aiff(file: OpenFile) -> AudioHeader:
    _, size = _unpack(">4sI", file)
    return AudioHeader(num_bytes=8 + size)


def _read_caf(file: OpenFile) -> AudioHeader:
    file.seek(8)
    seconds_per_byte, seconds, position = 0.0, None, 8
    table_bytes, is_padded = 0, False  # bytes that have to follow
    for _ in range(MAX_CHUNKS):
        head = file.read(12)
        if len(head) < 12 or head[:4] == b"caff":
            return AudioHeader(seconds, position + table_bytes, is_padded)
        name, size = struct.unpack(">4sq", head)
        if size < 0:  # of data that was written to a pipe
            return AudioHeader(is_padded=is_padded)
        if name == b"desc":
            rate, kind, _, packet_bytes, packet_frames, channels, bits = struct.unpack(">d4sIIIII", file.read(32))
            is_padded = kind == b"lpcm" and packet_bytes != packet_frames * channels * -(-bits // 8)
            seconds_per_byte = packet_frames / rate / packet_bytes if rate > 0 and packet_bytes else 0.0
            table_bytes = 0 if packet_bytes else CAF_PACKET_TABLE_BYTES
        elif name == b"pakt":
            table_bytes = 0
        elif name == b"data" and seconds_per_byte:
            seconds = (size - 4) * seconds_per_byte
        position += 12 + size
        file.seek(position)
    return AudioHeader()


def _read_tta(file: OpenFile) -> AudioHeader:
    _, _, _, _, rate, samples, _ = _unpack("<4sHHHIII", file)
    num_frames = -(-samples // max(int(rate * TTA_FRAME_SECONDS), 1))
    if num_frames > MAX_CHUNKS:
        return AudioHeader()
    frame_sizes = _unpack(f"<{num_frames}I", file)
    return AudioHeader(samples / rate if rate else None, 22 + 4 * num_frames + 4 + sum(frame_sizes))


def _read_au(file: OpenFile) -> AudioHeader:
    _, offset, size = _unpack(">4sII", file)
    return AudioHeader(num_bytes=offset + size if size not in UNKNOWN_SIZES else None)


# FFmpeg's name of the format: the reader, and how a file begins.
READERS: dict[str, tuple[Callable[[OpenFile], AudioHeader], re.Pattern[bytes]]] = {
    "wav": (_read_riff, re.compile(rb"(RIFF|RF64|BW64)....WAVE", re.DOTALL)),
    "w64": (_read_wave64, re.compile(re.escape(W64_RIFF))),
    "aiff": (_read_aiff, re.compile(rb"FORM....AIF[FC]", re.DOTALL)),
    "caf": (_read_caf, re.compile(rb"caff\x00\x01")),
    "tta": (_read_tta, re.compile(rb"TTA1[\x01\x02]\x00")),
    "au": (_read_au, re.compile(rb"\.snd\x00")),
}


def read_audio_header(path: Path, format_name: str) -> AudioHeader:
    """What the header of a file declares; nothing if the format has no such header, or the header is damaged."""
    if format_name not in READERS:
        return AudioHeader()
    with open_media(path) as file:
        try:
            return READERS[format_name][0](file)
        except DAMAGED_HEADER:
            return AudioHeader()


def has_padded_samples(path: Path) -> bool:
    """Whether a WAV, Wave64 or CAF file has samples that are stored in more bytes than they need."""
    with open_media(path) as file:
        head = file.read(MAX_HEAD_BYTES)
        readers = [READERS[name][0] for name in ("wav", "w64", "caf") if READERS[name][1].match(head)]
        file.seek(0)
        try:
            return bool(readers) and readers[0](file).is_padded
        except DAMAGED_HEADER:
            return False


def describe_truncation(path: Path) -> str:
    """What a file lacks at its end according to its header; "" where it lacks nothing, or its format is not known.

    Core Audio files may have the sizes of compressed packets behind the packets, which cannot be decoded without them.
    """
    with open_media(path) as file:
        head, size = file.read(MAX_HEAD_BYTES), file.seek(0, os.SEEK_END)
        readers = [read for read, pattern in READERS.values() if pattern.match(head)]
        file.seek(0)
        try:
            num_bytes = readers[0](file).num_bytes if readers else None
        except struct.error:
            return ""
    lacking = 0 if num_bytes is None else num_bytes - size
    return f"at least {lacking:,} bytes are missing at its end" if lacking > 0 else ""


def find_second_file(path: Path, format_name: str, header: AudioHeader) -> int | None:
    """The byte at which another file of the format follows the first one, as in concatenated files."""
    if header.num_bytes is None:
        return None
    with open_media(path) as file:
        file.seek(header.num_bytes)
        following = READERS[format_name][1].search(file.read(MAX_TAG_BYTES))
    return None if following is None else header.num_bytes + following.start()


def _unpack(layout: str, file: OpenFile) -> tuple:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))
