"""The sizes of the demo's data and training, and the paths of its parts."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from comodal.hardware import AUTOMATIC, ComputeOptions
from comodal.recipes import avc_pretraining


@dataclass(frozen=True)
class DemoScale:
    """The amount of data, and the objectives and lengths of training.

    Args:
        videos: Number of synthetic videos.
        video_seconds: Length of a video; a second of audio can start anywhere in it.
        side: Size of all synthetic images and frames, in pixels.
        frames_per_second: Of these videos.
        audio: Number of clips in the ESC-50 folder.
        images: Number of images in each of the splits train and test of the image folder.
        windows: Seconds of each clip of the ESC-50 folder that are used.
        scenes: Number of images with captions.
        image_size: Input size of L3-Net, in pixels; frames are stored at 8/7 of it, for random crops in training.
        objective: Of L3-Net.
        steps: Of L3-Net.
        learning_rate: Of L3-Net.
        caption_steps: Of ViLBERT.
        contrastive_weight: Of ViLBERT's contrastive loss; with it retrieval ranks by the contrastive encodings.
        task_epochs: Of each of two labeled tasks; 0 leaves them out.
        compute: Device and precision.
    """

    videos: int
    video_seconds: float
    side: int
    frames_per_second: float
    audio: int
    images: int
    windows: int
    scenes: int
    image_size: int
    objective: avc_pretraining.Objective
    steps: int
    learning_rate: float
    caption_steps: int
    contrastive_weight: float
    task_epochs: float
    compute: ComputeOptions = AUTOMATIC


@dataclass(frozen=True)
class DemoSizes:
    """The amount of data and the length of training, where they differ from a scale.

    Args:
        videos: Number of synthetic videos; by default 1,000, 1,400 in the full demo.
        steps: Training steps of L3-Net; by default 350, 1,800 in the full demo.
        scenes: Number of images with captions; by default 1,500.
        caption_steps: Training steps of ViLBERT; by default 300, 1,500 in the full demo.
        task_epochs: Epochs of each of two labeled tasks (RefCOCO+, SNLI-VE); by default 0 (none), 4 in the full demo.
    """

    videos: int | None = None
    steps: int | None = None
    scenes: int | None = None
    caption_steps: int | None = None
    task_epochs: float | None = None

    def apply(self, scale: DemoScale) -> DemoScale:
        """A scale with these sizes where they are given."""
        return replace(scale, **{name: value for name, value in asdict(self).items() if value is not None})


DEFAULT_SIZES = DemoSizes()
SHORT_SCALE = DemoScale(1000, 2.0, 96, 5.0, 200, 200, 2, 1500, 64, "all_pairs", 350, 4e-3, 300, 1.0, 0.0)
FULL_SCALE = DemoScale(1400, 2.5, 128, 10.0, 400, 400, 10, 1500, 64, "avc", 1800, 2e-3, 1500, 0.0, 4.0)


@dataclass(frozen=True)
class DemoFolders:
    """The paths of the parts of the demo."""

    folder: Path

    @property
    def videos(self) -> Path:
        """The synthetic videos."""
        return self.folder / "videos"

    @property
    def synthetic_data(self) -> Path:
        """The other synthetic data: labeled audio and images, images with captions."""
        return self.folder / "synthetic"

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def scenes(self) -> Path:
        return self.synthetic_data / "scenes"

    @property
    def regions(self) -> Path:
        return self.folder / "regions"

    @property
    def caption_run(self) -> Path:
        return self.folder / "caption_run"

    @property
    def references(self) -> tuple[Path, Path, Path]:
        """The two files of RefCOCO+, and the regions of its images."""
        folder = self.synthetic_data / "coco" / "refcoco+"
        return folder / "refs(unc).p", folder / "instances.json", self.task_regions("coco")

    def statements(self, split: str) -> Path:
        return self.synthetic_data / "flickr30k" / f"snli_ve_{split}.jsonl"

    def task_regions(self, name: str) -> Path:
        return self.folder / f"{name}_regions"

    def task_run(self, name: str) -> Path:
        return self.folder / f"{name}_run"

    def scores(self, name: str) -> Path:
        return self.folder / name
