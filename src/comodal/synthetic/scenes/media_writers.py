"""Writes the files of the synthetic data: H.264 and AAC video, WAV, JPEG and JSON Lines, each atomically."""

import io
import json
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from jaxtyping import Float, UInt8
from PIL import Image

from comodal.files import write_atomically, write_bytes_atomically

AUDIO_BLOCK_SAMPLES = 1024  # samples of one AAC frame
H264_OPTIONS = {"preset": "superfast", "crf": "20", "threads": "1", "flags": "+bitexact"}
AAC_OPTIONS = {"aac_coder": "fast", "flags": "+bitexact"}


def write_video_file(
    path: Path,
    frames: Iterable[UInt8[np.ndarray, "height width 3"]],
    frames_per_second: float,
    waveform: Float[np.ndarray, " samples"],
    sample_rate: int,
    side: int,
) -> None:
    """An mp4 file with H.264 video and mono AAC audio; encoded in one thread, so the bytes do not depend on the cores.

    Args:
        path: the file to write.
        frames: the frames in order, of the same size.
        frames_per_second: the frame rate.
        waveform: samples between -1 and 1.
        sample_rate: of the audio, in Hz.
        side: of the square frames, in pixels.
    """
    with (
        write_atomically(path) as partial,
        av.open(str(partial), "w", format="mp4", options={"fflags": "+bitexact"}) as container,
    ):
        video_stream = container.add_stream(
            "libx264", rate=Fraction(frames_per_second).limit_denominator(1000), options=H264_OPTIONS
        )
        video_stream.width = video_stream.height = side
        video_stream.pix_fmt = "yuv420p"
        audio_stream = container.add_stream("aac", rate=sample_rate, options=AAC_OPTIONS)
        audio_stream.layout, audio_stream.bit_rate = "mono", 96_000
        for pixels in frames:
            container.mux(video_stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video_stream.encode(None))
        for start in range(0, len(waveform), AUDIO_BLOCK_SAMPLES):
            block = av.AudioFrame.from_ndarray(
                waveform[None, start : start + AUDIO_BLOCK_SAMPLES], format="fltp", layout="mono"
            )
            block.sample_rate, block.pts, block.time_base = sample_rate, start, Fraction(1, sample_rate)
            container.mux(audio_stream.encode(block))
        container.mux(audio_stream.encode(None))


def write_wav_file(
    path: Path, waveform: Float[np.ndarray, "samples *channels"], sample_rate: int, subtype: str = "PCM_16"
) -> None:
    """A WAV file, 16 bits unless another soundfile subtype is given."""
    made = io.BytesIO()  # libsndfile does not say why a file cannot be written
    soundfile.write(made, waveform, sample_rate, subtype=subtype, format="WAV")
    write_bytes_atomically(path, made.getvalue())


def write_image_file(path: Path, pixels: UInt8[np.ndarray, "height width 3"]) -> None:
    """A PNG file if the name ends so, else JPEG."""
    made = io.BytesIO()  # on a full disk Pillow writes half a JPEG without an error
    if path.suffix == ".png":
        Image.fromarray(pixels).save(made, format="PNG")
    else:
        Image.fromarray(pixels).save(made, format="JPEG", quality=90)
    write_bytes_atomically(path, made.getvalue())


def encode_json(value: Any) -> bytes:
    """One JSON document on one line, as in the official files."""
    return (json.dumps(value) + "\n").encode()


def format_json_lines(records: Iterable[dict[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(record) + "\n" for record in records)
