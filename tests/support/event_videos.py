"""Small videos whose brightness and tone change at whole seconds."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE, FRAME_RATE = 16_000, 4


def write_event_video(path: Path, light: Sequence[int], hertz: Sequence[float], size: int = 32) -> Path:
    """One second of video for each entry: gray frames of this brightness, and a tone of this pitch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(RATE) / RATE
    tone = np.concatenate([0.3 * np.sin(2 * np.pi * pitch * time) for pitch in hertz]).astype(np.float32)
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=FRAME_RATE, options={"qscale": "2"})
        video.width = video.height = size
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=RATE, layout="mono")
        for level in np.repeat(light, FRAME_RATE):
            pixels = np.full((size, size, 3), level, dtype=np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode())
        for start in range(0, len(tone), 1024):
            frame = av.AudioFrame.from_ndarray(tone[None, start : start + 1024], "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
            container.mux(audio.encode(frame))
        container.mux(audio.encode())
    return path
