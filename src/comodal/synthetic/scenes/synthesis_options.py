"""The options of the synthetic data."""

from dataclasses import dataclass

from comodal.errors import check_number

MAX_MEDIA = 10_000_000  # files of one kind
MIN_SIDE, MAX_SIDE, MAX_SECONDS, MAX_FRAME_RATE = 2, 4096, 3600, 240


@dataclass(frozen=True)
class SynthesisOptions:
    """The size and the kind of the data. Two folders with equal options have the same content.

    Args:
        videos: number of videos; eight of ten are for training, one for validation, one for testing.
        seconds: length of each video.
        audio: clips in the ESC-50 folder, rounded down to complete sets of five folds and all kinds.
        images: images in each of the splits train and test of the image folder.
        scenes: images with captions and boxes; split as the videos are. Also the number of images of each task set:
            coco, flickr30k, vcr and nlvr2 (in complete sets of eight).
        side: of the square images, in pixels (even).
        frames_per_second: frame rate of the videos.
        audio_seconds: length of each clip of the ESC-50 folder and of the audio task sets.
        seed: random seed; another seed gives other data.
    """

    videos: int = 1500
    seconds: float = 2.0
    audio: int = 400
    images: int = 400
    scenes: int = 1000
    side: int = 128
    frames_per_second: float = 10.0
    audio_seconds: float = 2.0
    seed: int = 0

    def check(self) -> None:
        """Raises ValueError if media of these options cannot be written."""
        if self.side % 2:
            raise ValueError(f"H.264 needs an even side, got {self.side}")
        for name in ("videos", "audio", "images", "scenes"):
            check_number(name, getattr(self, name), 0, MAX_MEDIA)
        for name in ("seconds", "audio_seconds"):
            check_number(name, getattr(self, name), 1, MAX_SECONDS)
        check_number("side", self.side, MIN_SIDE, MAX_SIDE)
        check_number("frames_per_second", self.frames_per_second, 1, MAX_FRAME_RATE)
