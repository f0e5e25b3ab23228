"""Small real video and sound files, written with PyAV and soundfile."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile


def make_video(
    path: Path, seconds: float = 2.0, seed: int = 0, size: int = 64, picture: bool = True, loudness: float | None = 0.3
) -> Path:
    """A moving gradient and a tone; loudness 0 is a silent track, and None is no sound track at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=10) if picture else None
        audio = container.add_stream("aac", rate=16000, layout="mono") if loudness is not None else None
        if video is not None:
            video.width = video.height = size
            video.pix_fmt = "yuv420p"
            base = rng.integers(0, 255, (size, size, 3))
            for n in range(round(seconds * 10)):
                pixels = np.roll(base, n, axis=1).astype(np.uint8)
                container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(video.encode())
        if audio is not None:
            time = np.arange(round(seconds * 16000)) / 16000
            tone = loudness * np.sin(2 * np.pi * rng.uniform(200, 2000) * time)
            for start in range(0, len(tone), 1024):
                frame = av.AudioFrame.from_ndarray(tone[None, start : start + 1024].astype(np.float32), "fltp", "mono")
                frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
                container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path


def make_tone(path: Path, seconds: float, sample_rate: int = 8000, hertz: float = 440.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * hertz * time), sample_rate)
    return path
