"""What correspondence has taught helps with few labels: pretrained beats chance, frozen and fine-tuned."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from comodal.data.shards.shard_reader import ShardWriter
from comodal.media.audio import encode_flac
from comodal.media.image import encode_jpeg
from comodal.recipes import avc_pretraining
from comodal.tasks.audio import audio_classification
from comodal.tasks.audio.audio_classification import evaluate_sound_classes
from comodal.tasks.audio.audio_folders import evaluate_audio
from comodal.tasks.image import image_classification
from comodal.tasks.image.image_classification import evaluate_image_classes
from comodal.tasks.image.linear_classification import evaluate_images
from comodal.text_files import read_log
from comodal.training.run import train

RATE, KINDS, SIDE = 48_000, 4, 32


def grating(kind: int, rng: np.random.Generator) -> np.ndarray:
    """Stripes in the direction of a kind, of any phase, width and colour, under noise."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    angle = np.pi * (kind + rng.uniform(-0.2, 0.2)) / KINDS
    wave = np.sin((rows * np.sin(angle) + columns * np.cos(angle)) * rng.uniform(0.8, 1.4) + rng.uniform(0, 6.3))
    colours = rng.uniform(-100, 100, 3)
    return (128 + wave[..., None] * colours + rng.normal(0, 10, (SIDE, SIDE, 3))).clip(0, 255).astype(np.uint8)


def tones(kind: int, rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Three tones of any pitch, apart by an interval of a kind, under noise."""
    time = np.arange(round(seconds * RATE)) / RATE
    pitches = rng.uniform(250, 400) * np.array([1.5, 2.2, 3.2, 4.7])[kind] ** np.arange(3)
    waves = np.sin(2 * np.pi * pitches[:, None] * time + rng.uniform(0, 6.3, (3, 1)))
    return (0.1 * waves.sum(0) + rng.normal(0, 0.01, len(time))).astype(np.float32)


def write_pairs(folder: Path, clips: int, seed: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    with ShardWriter(folder / "000000.tar") as shard:
        for clip in range(clips):
            kind = int(rng.integers(KINDS))
            frames = {f"{number:04d}.jpg": encode_jpeg(grating(kind, rng), 95) for number in range(4)}
            record = {"key": f"clip{clip}", "group": f"source{clip}", "frame_seconds": [0.2, 0.6, 1.0, 1.4]}
            record |= {"frames": list(frames), "seconds": 1.6, "sample_rate": RATE}
            flac = encode_flac(tones(kind, rng, 1.6), RATE)
            shard.write(f"clip{clip}", {**frames, "flac": flac}, record)


def write_labels(root: Path, train_each: int, test_each: int) -> None:
    rng = np.random.default_rng(7)
    for side, count in (("train", train_each), ("test", test_each)):
        for kind in range(KINDS):
            for modality in ("pictures", "sounds"):
                (root / modality / side / str(kind)).mkdir(parents=True)
            for number in range(count):
                place = Path(side) / str(kind) / str(number)
                Image.fromarray(grating(kind, rng)).save(root / "pictures" / place.with_suffix(".png"))
                soundfile.write(root / "sounds" / place.with_suffix(".wav"), tones(kind, rng, 1.2), RATE)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_few_labels_go_further_on_what_correspondence_has_taught(tmp_path: Path):
    """A quarter of the wrong pairs are of one kind, so 0.875 is the ceiling. The tones are easy from chance too."""
    write_pairs(tmp_path / "pairs" / "train", 400, 0)
    write_pairs(tmp_path / "pairs" / "validation", 80, 1)
    write_labels(tmp_path, 8, 40)
    settings = {"data": tmp_path / "pairs", "variant": "small", "width": 8, "image_size": 28, "steps": 600}
    settings |= {
        "batch_size": 32,
        "learning_rate": 2e-3,
        "warmup_steps": 50,
        "min_lr_ratio": 0.05,
        "horizontal_flip": False,
    }
    assert (
        train(
            avc_pretraining.recipe, settings | {"validation_pairs": 512, "workers": 1}, tmp_path / "run", device="cpu"
        )
        == 0
    )
    told = [line["accuracy"] for line in read_log(tmp_path / "run" / "metrics.jsonl") if line["split"] == "validation"]
    assert told[-1] > 0.8
    frozen = evaluate_images(tmp_path / "run", tmp_path / "pictures", workers=1)
    frozen |= evaluate_audio(tmp_path / "run", tmp_path / "sounds", workers=1)
    tuned: dict[str, dict[str, float]] = {}
    for start in ("pretrained", "scratch"):
        more = {"model": tmp_path / "run", "start_from": start, "batch_size": 8, "workers": 0}
        pictures, sounds = (tmp_path / f"{start}_{modality}" for modality in ("pictures", "sounds"))
        train(
            image_classification.recipe,
            {**more, "data": tmp_path / "pictures", "horizontal_flip": False},
            pictures,
            device="cpu",
        )
        train(audio_classification.recipe, {**more, "data": tmp_path / "sounds"}, sounds, device="cpu")
        tuned[start] = evaluate_image_classes(pictures, tmp_path / "pictures", workers=1)
        tuned[start] |= evaluate_sound_classes(sounds, tmp_path / "sounds", windows=1, workers=1)
    assert frozen["vision.trained"] > frozen["vision.untrained"] + 0.3
    assert tuned["pretrained"]["vision.fine_tuned"] > tuned["scratch"]["vision.fine_tuned"]
    assert tuned["pretrained"]["vision.fine_tuned"] >= frozen["vision.trained"] - 0.04
    assert tuned["pretrained"]["audio.fine_tuned"] >= max(frozen["audio.trained"], 0.95) - 0.04
