"""The options of the synthetic data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SynthesisOptions:
    """Two folders with equal options have the same content."""

    videos: int
    seconds: float
    sounds: int
    images: int
    scenes: int
    side: int
    frames_per_second: float
    sound_seconds: float
    seed: int
