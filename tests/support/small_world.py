"""A tiny data set in shards, for tests: what is seen decides what is heard."""

from pathlib import Path

import numpy as np

from comodal.data.shards.shard_reader import ShardWriter
from comodal.media.audio import encode_flac
from comodal.media.image import encode_jpeg

RATE = 48_000


def write_world(
    folder: Path,
    clips: int,
    seconds: float = 2.0,
    short_side: int = 32,
    rate: int = RATE,
    seed: int = 0,
    classes: tuple[str, ...] = (),
) -> Path:
    """Clips of a grey picture (five frames a second) with a tone: the brighter, the higher. Two clips a source.

    With classes, the light is one of as many levels, and the label names it.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    shape = (short_side, short_side + 8, 3)
    moments = [frame / 5 for frame in range(int(seconds * 5))]
    time = np.arange(int(seconds * rate)) / rate
    with ShardWriter(folder / "000000.tar") as shard:
        for clip in range(clips):
            kind = int(rng.integers(len(classes))) if classes else 0
            light = (kind + 0.5) / len(classes) if classes else rng.random()
            frames = {
                f"{number:04d}.jpg": encode_jpeg(
                    np.clip(rng.normal(40 + 175 * light, 5, shape), 0, 255).astype(np.uint8)
                )
                for number in range(len(moments))
            }
            tone = 0.3 * np.sin(2 * np.pi * rate * (0.01 + 0.15 * light) * time + rng.uniform(0, 6))
            sound = (tone + rng.normal(0, 0.01, len(time))).astype(np.float32)
            record = {
                "key": f"clip{clip}",
                "group": f"source{clip // 2}",
                "frame_seconds": moments,
                "frames": list(frames),
                "seconds": seconds,
                "sample_rate": rate,
                **({"label": classes[kind]} if classes else {}),
            }
            shard.write(f"clip{clip}", {**frames, "flac": encode_flac(sound, rate)}, record)
    return folder
