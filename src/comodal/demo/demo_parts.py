"""How much the demo makes and trains, and where each part of it lies."""

from dataclasses import dataclass
from pathlib import Path

from comodal.recipes import avc_pretraining


@dataclass(frozen=True)
class DemoScale:
    """How much data is made, and how long and by which objectives is trained.

    Args:
        videos: Of the synthetic world.
        video_seconds: Of each video: room for a second of audio to begin anywhere.
        side: Of all synthetic images and frames, in pixels.
        frames_per_second: Of these videos.
        sounds: Clips of the ESC-50 folder.
        images: Images in each of the splits train and test of the image folder.
        windows: Seconds of each clip of the ESC-50 folder that are used.
        scenes: Images with captions.
        image_size: Of L3-Net, in pixels; frames are kept at 8/7 of it, which training crops from.
        objective: Of L3-Net.
        steps: Of L3-Net.
        learning_rate: Of L3-Net.
        caption_steps: Of ViLBERT.
        contrastive_weight: Of ViLBERT's contrastive loss; with it retrieval ranks by the contrastive encodings.
        task_epochs: Of each of two tasks with labels; 0 leaves them out.
    """

    videos: int
    video_seconds: float
    side: int
    frames_per_second: float
    sounds: int
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


SHORT_SCALE = DemoScale(1000, 2.0, 96, 5.0, 200, 200, 2, 1500, 64, "all_pairs", 350, 4e-3, 300, 1.0, 0.0)
FULL_SCALE = DemoScale(1400, 2.5, 128, 10.0, 400, 400, 10, 1500, 64, "avc", 1800, 2e-3, 1500, 0.0, 4.0)


@dataclass(frozen=True)
class DemoFolders:
    """Where each part of the demo lies."""

    folder: Path

    @property
    def videos(self) -> Path:
        """The synthetic videos."""
        return self.folder / "videos"

    @property
    def playground(self) -> Path:
        """The rest of the synthetic world: labelled audio and images, images with captions."""
        return self.folder / "playground"

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def scenes(self) -> Path:
        return self.playground / "scenes"

    @property
    def regions(self) -> Path:
        return self.folder / "regions"

    @property
    def caption_run(self) -> Path:
        return self.folder / "caption_run"

    @property
    def references(self) -> tuple[Path, Path, Path]:
        """RefCOCO+'s two files, and the regions of its pictures."""
        folder = self.playground / "coco" / "refcoco+"
        return folder / "refs(unc).p", folder / "instances.json", self.task_regions("coco")

    def statements(self, split: str) -> Path:
        return self.playground / "flickr30k" / f"snli_ve_{split}.jsonl"

    def task_regions(self, name: str) -> Path:
        return self.folder / f"{name}_regions"

    def task_run(self, name: str) -> Path:
        return self.folder / f"{name}_run"

    def scores(self, name: str) -> Path:
        return self.folder / name
