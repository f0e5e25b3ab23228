"""What a playground is made from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SynthesisOptions:
    """Two folders with equal options hold the same."""

    videos: int
    seconds: float
    sounds: int
    images: int
    scenes: int
    side: int
    frames_per_second: float
    sound_seconds: float
    seed: int
