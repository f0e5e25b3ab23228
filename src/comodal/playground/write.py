"""Files of a playground, each written under a temporary name and renamed when whole."""

import json
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from jaxtyping import Float, UInt8
from PIL import Image

SOUND_BLOCK = 1024  # samples of one AAC frame
H264 = {"preset": "superfast", "crf": "20", "threads": "1", "flags": "+bitexact"}
AAC = {"aac_coder": "fast", "flags": "+bitexact"}


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.part{path.suffix}")
    write(partial)
    partial.replace(path)


def write_video(
    path: Path,
    frames: Iterable[UInt8[np.ndarray, "height width 3"]],
    frames_per_second: float,
    sound: Float[np.ndarray, " samples"],
    sample_rate: int,
    size: tuple[int, int],
) -> None:
    """An mp4 file with H.264 picture and mono AAC sound; one thread, so that the bytes do not depend on the cores.

    Args:
        path: the file to write.
        frames: the pictures in order, of the same size.
        frames_per_second: their rate.
        sound: samples between -1 and 1.
        sample_rate: of the sound, in hertz.
        size: width and height.
    """

    def write(partial: Path) -> None:
        with av.open(str(partial), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
            picture = container.add_stream(
                "libx264", rate=Fraction(frames_per_second).limit_denominator(1000), options=H264
            )
            picture.width, picture.height = size
            picture.pix_fmt = "yuv420p"
            voice = container.add_stream("aac", rate=sample_rate, options=AAC)
            voice.layout, voice.bit_rate = "mono", 96_000
            for pixels in frames:
                container.mux(picture.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(picture.encode(None))
            for start in range(0, len(sound), SOUND_BLOCK):
                block = av.AudioFrame.from_ndarray(
                    sound[None, start : start + SOUND_BLOCK], format="fltp", layout="mono"
                )
                block.sample_rate, block.pts, block.time_base = sample_rate, start, Fraction(1, sample_rate)
                container.mux(voice.encode(block))
            container.mux(voice.encode(None))

    write_whole(path, write)


def write_sound(path: Path, sound: Float[np.ndarray, " samples"], sample_rate: int) -> None:
    """A 16-bit wav file."""
    write_whole(path, lambda partial: soundfile.write(partial, sound, sample_rate, subtype="PCM_16"))


def write_image(path: Path, pixels: UInt8[np.ndarray, "height width 3"]) -> None:
    """A picture in the format of its ending."""
    write_whole(path, lambda partial: Image.fromarray(pixels).save(partial))


def write_text(path: Path, text: str) -> None:
    """A text file in UTF-8."""
    write_whole(path, lambda partial: _write_text(partial, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def json_lines(records: Iterable[dict[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(record) + "\n" for record in records)
