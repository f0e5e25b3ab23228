"""Makes small videos whose pictures tell their number and whose sound tells its time, to test what reads them."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 8


def numbered_picture(number: int, width: int, height: int) -> np.ndarray:
    """Upper half: the number as eight black or white columns, the highest bit first. Lower half: red, green, blue."""
    picture = np.zeros((height, width, 3), np.uint8)
    for bit in range(BITS):
        if number >> (BITS - 1 - bit) & 1:
            picture[: height // 2, bit * width // BITS : (bit + 1) * width // BITS] = 255
    for colour in range(3):
        picture[height // 2 :, colour * width // 3 : (colour + 1) * width // 3, colour] = 200
    return picture


def read_number(picture: np.ndarray) -> int:
    """The number that `numbered_picture` wrote."""
    height, width, _ = picture.shape
    columns = [(2 * bit + 1) * width // (2 * BITS) for bit in range(BITS)]
    return sum(1 << (BITS - 1 - bit) for bit, x in enumerate(columns) if picture[height // 4, x].mean() > 127)


def tone(seconds: float, rate: int, silent_seconds: float = 0.5, pitch: float = 440.0) -> np.ndarray:
    """Silence, then from `silent_seconds` on a tone of half full scale."""
    time = np.arange(round(seconds * rate)) / rate
    return np.where(time < silent_seconds, 0.0, 0.5 * np.sin(2 * np.pi * pitch * time)).astype(np.float32)


def onset_seconds(sound: np.ndarray, rate: int) -> float:
    """Where a sound first exceeds a quarter of full scale."""
    return int(np.argmax(np.abs(sound) > 0.25)) / rate


def write_video(
    path: Path,
    *,
    picture_seconds: Sequence[float] = tuple(k / 25 for k in range(50)),
    size: tuple[int, int] = (160, 120),
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    ticks: int = 90_000,
    codec_options: dict[str, str] | None = None,
    matrix: tuple[str, int] | None = None,
    sound: np.ndarray | None = None,
    sound_rate: int = 48000,
    sound_codec: str = "aac",
    sound_bit_rate: int | None = None,
    layout: str = "mono",
    sound_start: float = 0.0,
    container_options: dict[str, str] | None = None,
    first_number: int = 0,
) -> Path:
    """Write a video of numbered pictures shown at `picture_seconds`, and of mono or (channels, samples) sound.

    `ticks` is how many a second the timestamps of the pictures have (old codecs know only their frame rate); `matrix`
    is the colour matrix, by its name in PyAV and its number in ITU-T H.273.
    """
    with av.open(str(path), "w", options=container_options or {}) as container:
        if picture_seconds:
            video = container.add_stream(codec, rate=25, options=codec_options or {})
            video.width, video.height, video.pix_fmt = *size, pixel_format
            video.time_base = video.codec_context.time_base = Fraction(1, ticks)
            if matrix is not None:
                video.codec_context.colorspace = matrix[1]
        if sound is not None:
            audio = container.add_stream(sound_codec, rate=sound_rate, layout=layout)
            if sound_bit_rate is not None:
                audio.bit_rate = sound_bit_rate
        if picture_seconds:
            for number, seconds in enumerate(picture_seconds, start=first_number):
                frame = av.VideoFrame.from_ndarray(numbered_picture(number % 256, *size))
                if matrix is not None:
                    frame = frame.reformat(format=pixel_format, dst_colorspace=matrix[0])
                frame.pts, frame.time_base = round(seconds * ticks), Fraction(1, ticks)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        if sound is not None:
            _write_sound(container, audio, np.atleast_2d(sound), sound_rate, layout, sound_start)
    return path


def _write_sound(container, stream, sound: np.ndarray, rate: int, layout: str, start: float) -> None:
    resampler = av.AudioResampler(stream.codec_context.format, layout, rate)
    for first in range(0, sound.shape[1], 1024):
        packed = np.ascontiguousarray(sound[:, first : first + 1024].T, dtype=np.float32).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, round(start * rate) + first, Fraction(1, rate)
        for converted in resampler.resample(frame):
            container.mux(stream.encode(converted))
    container.mux(stream.encode(None))


def turn_video(path: Path, degrees_clockwise: int, mirrored: bool = False) -> Path:
    """Write a display matrix into the first track of an mp4 file, as phones do."""
    turns = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}
    a, b, c, d = turns[degrees_clockwise]
    if mirrored:
        a, c = -a, -c
    one = 1 << 16
    matrix = np.array([a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30], ">i4").tobytes()
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40  # ISO 14496-12, 8.3.2: the matrix of a version 0 track header
    data[start : start + len(matrix)] = matrix
    path.write_bytes(data)
    return path


def name_channels(path: Path, labels: Sequence[int]) -> Path:
    """Replace the channel layout of a mov file by a list of channels in any order (QuickTime's `chan` atom)."""
    data = bytearray(path.read_bytes())
    start = data.index(b"chan") - 4
    length = struct.unpack(">I", data[start : start + 4])[0]
    channels = b"".join(struct.pack(">II3f", label, 0, 0, 0, 0) for label in labels)
    atom = b"chan" + struct.pack(">IIII", 0, 0, 0, len(labels)) + channels
    data[start : start + length] = struct.pack(">I", 4 + len(atom)) + atom
    growth = 4 + len(atom) - length
    for name in (
        b"moov",
        b"trak",
        b"mdia",
        b"minf",
        b"stbl",
        b"stsd",
        b"sowt",
    ):  # the atoms around it, the last before it
        parent = data.rindex(name, 0, start) - 4
        data[parent : parent + 4] = struct.pack(">I", struct.unpack(">I", data[parent : parent + 4])[0] + growth)
    path.write_bytes(data)
    return path
