"""A video of numbered pictures with known noise, muxed in any way, and how far its picture and sound then disagree.

The pictures are numbered 25 times a second, and the noise never repeats. So each picture of a clip, and each 0.2 s of
its sound, say from where in the original they are.
"""

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from comodal.media.audio import read_audio
from comodal.media.image import decode_jpeg
from comodal.media.video import iterate_frames, read_clip
from tests.support.synthetic_media import read_number, write_video

RATE, FRAMES_PER_SECOND = 48_000, 25
HEARD_RATE, PIECE, TOLERANCE_SECONDS = 12_000, 2_400, 0.005  # at which sounds are compared
Change = Callable[[str, float], float | None]


def noise(seconds: float) -> np.ndarray:
    """Noise of 100 to 3,000 Hz, which any resampling keeps."""
    spectrum = np.fft.rfft(np.random.default_rng(7).standard_normal(round(seconds * RATE)))
    hertz = np.fft.rfftfreq(round(seconds * RATE), 1 / RATE)
    sound = np.fft.irfft(np.where((hertz > 100) & (hertz < 3000), spectrum, 0))
    return (0.6 * sound / np.abs(sound).max()).astype(np.float32)


def original(path: Path, sound: np.ndarray, first: int = 0, **options) -> Path:
    """All pictures and samples from picture number `first` on."""
    seconds = len(sound) / RATE - first / FRAMES_PER_SECOND
    times = [number / FRAMES_PER_SECOND for number in range(round(seconds * FRAMES_PER_SECOND))]
    part = sound[round(first / FRAMES_PER_SECOND * RATE) :]
    options = {
        "codec_options": {"preset": "ultrafast", "g": "25"},
        "picture_seconds": times,
        "size": (96, 64),
    } | options
    return write_video(path, sound=part, first_number=first, **options)


def remux(source: Path, target: Path, change: Change, **options: str) -> Path:
    """Copy the packets of a file; `change` gives the new time of each from its kind and time, None to leave it out."""
    with av.open(str(source)) as given, av.open(str(target), "w", options=options) as made:
        streams = {stream.index: made.add_stream_from_template(stream) for stream in given.streams}
        for packet in given.demux():
            if packet.dts is None:
                continue
            base, kind = Fraction(packet.time_base), packet.stream.type
            moved = change(kind, float(packet.pts * base))
            if moved is None:
                continue
            shift = round((Fraction(moved) - packet.pts * base) / base)
            packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, streams[packet.stream.index]
            made.mux(packet)
    return target


def set_edits(source: Path, target: Path, edits: Sequence[Sequence[tuple[int, int, int]]]) -> Path:
    """Replace the edit list of each track (ISO/IEC 14496-12, 8.6.6).

    Args:
        source: An mp4 file whose index is at its end.
        target: The file to write.
        edits: For each track: duration in movie ticks, media time in media ticks, and rate in 1/65536.
    """
    data, place = bytearray(source.read_bytes()), 0
    for track in edits:
        place = data.index(b"elst", place) - 4
        old = struct.unpack_from(">I", data, place)[0]
        box = struct.pack(">I4sII", 16 + 12 * len(track), b"elst", 0, len(track))
        data[place : place + old] = box + b"".join(struct.pack(">Iii", *edit) for edit in track)
        growth = 12 * len(track) + 16 - old
        for name in (b"edts", b"trak", b"moov"):  # the boxes around it
            parent = data.rindex(name, 0, place + 4) - 4
            struct.pack_into(">I", data, parent, struct.unpack_from(">I", data, parent)[0] + growth)
        place += 16 + 12 * len(track)
    target.write_bytes(data)
    return target


def check_agreement(path: Path, sound: np.ndarray, late: float = 0.0, starts: Sequence[float] | None = None) -> None:
    """Both ways of reading a video put each frame within 5 ms of what is heard while it is shown."""
    clip = read_clip(path, seconds=60.0, frames_per_second=3.0, short_side=64, sample_rate=HEARD_RATE)
    lead = np.zeros(round(clip.audio_start_seconds * HEARD_RATE), np.float32)
    pictures = [decode_jpeg(frame) for frame in clip.frames]
    times, shown = zip(*iterate_frames(path, 3.0), strict=True)
    for found in (
        disagreement(sound, clip.frame_seconds, pictures, np.concatenate([lead, clip.audio]), late, starts),
        disagreement(sound, list(times), list(shown), read_audio(path, HEARD_RATE), late, starts),
    ):
        assert len(found) >= 6
        assert max(found) <= TOLERANCE_SECONDS, found


def disagreement(
    sound: np.ndarray,
    times: list[float],
    pictures: list[np.ndarray],
    heard: np.ndarray,
    late: float = 0.0,
    starts: Sequence[float] | None = None,
) -> list[float]:
    """For each picture the seconds by which what is heard lies outside of what the picture lasts.

    Args:
        sound: the original, at RATE.
        times: when the pictures are shown.
        pictures: numbered.
        heard: from time zero, at HEARD_RATE.
        late: by how much the sound was meant to be late.
        starts: where each picture begins; by default there are 25 a second.
    """
    starts = [number / FRAMES_PER_SECOND for number in range(256)] if starts is None else starts
    sound = sound[:: RATE // HEARD_RATE]
    size = 1 << (len(sound) + PIECE).bit_length()
    spectrum = np.fft.rfft(sound, size)
    power = np.concatenate([[0.0], np.cumsum(sound.astype(np.float64) ** 2)])
    length = len(sound) - PIECE + 1
    energy = np.sqrt(np.maximum(power[PIECE:] - power[:length], 1e-9))
    found = []
    for time, picture in zip(times, pictures, strict=True):
        piece = heard[round(time * HEARD_RATE) : round(time * HEARD_RATE) + PIECE]
        if len(piece) < PIECE or np.abs(piece).max() < 0.02:
            continue
        match = np.fft.irfft(spectrum * np.conj(np.fft.rfft(piece, size)), size)[:length] / energy
        if match.max() < 0.8 * np.sqrt((piece.astype(np.float64) ** 2).sum()):
            continue  # in part silence
        said = match.argmax() / HEARD_RATE + late
        number = read_number(picture)
        ends = starts[number + 1] if number + 1 < len(starts) else float("inf")
        found.append(max(starts[number] - said, said - ends, 0.0))
    return found
