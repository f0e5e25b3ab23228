"""Small data sets in their official formats, which the shell blocks of README and docs read (docs_files.py)."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile
from PIL import Image

from comodal.tasks.foils.foil_files import read_foils
from comodal.tasks.vision_language.grounding.prepare_boxes import prepare_boxes
from tests.support.event_videos import write_event_video
from tests.support.paths import FIXTURES
from tests.support.synthetic_media import tone
from tests.support.twelve_in_one import list_images, write_candidate_choices

RATE = 48_000


class Files(Protocol):
    """Small files by name."""

    def __getitem__(self, name: str) -> Path: ...


def write_candidates(files: Files, folder: Path) -> None:
    """Visual7W's questions with their images, and GuessWhat?!'s games on COCO's."""
    boxes = files["world/coco/boxes.jsonl"]
    folder.mkdir()
    write_candidate_choices(folder, list_images(boxes))
    path = folder / "visual7w" / "dataset_v7w_pointing.json"
    questions = json.loads(path.read_text())
    questions["images"][-1]["split"] = "test"
    path.write_text(json.dumps(questions))
    prepare_boxes(path, folder / "visual7w" / "boxes.jsonl")
    (folder / "visual7w" / "images").mkdir()
    for image in files["world/coco/images"].rglob("*.jpg"):
        number = int(image.stem.rpartition("_")[2])
        shutil.copy(image, folder / "visual7w" / "images" / f"v7w_{number}.jpg")
    games = folder / "guesswhat"
    shutil.copy(games / "guesswhat.valid.jsonl", games / "guesswhat.test.jsonl")
    parts = [(games / f"guesswhat.{split}.jsonl").read_text() for split in ("train", "valid")]
    (games / "guesswhat.jsonl").write_text("".join(parts))


def write_foil_images(name: str) -> Callable[[Files, Path], None]:
    def write(_: Files, folder: Path) -> None:
        folder.mkdir()
        rng = np.random.default_rng(0)
        for image in {image for foil in read_foils(FIXTURES / "foils" / name).foils for image in foil.images}:
            pixels = Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8))
            pixels.save(folder / f"{image.removesuffix('.jpg')}.png")

    return write


def write_joint_tasks(files: Files, folder: Path) -> None:
    """VQA and NLVR2."""
    vqa, shared = files["world/coco/vqa"], {"batch_size": 8, "workers": 0}
    tasks = {
        "vqa": {
            "recipe": "vqa",
            "questions": [str(vqa / "v2_OpenEnded_mscoco_train2014_questions.json")],
            "annotations": [str(vqa / "v2_mscoco_train2014_annotations.json")],
            "regions": str(files["stores/coco"]),
            "min_answer_count": 1,
            **shared,
        },
        "nlvr2": {
            "recipe": "nlvr2",
            "data": str(files["world/nlvr2/train.json"]),
            "regions": str(files["stores/nlvr2"]),
            **shared,
        },
    }
    folder.mkdir()
    (folder / "tasks.yaml").write_text(json.dumps(tasks))
    (folder / "test_images.txt").write_text("391895\n")


def write_image_classes(_: Files, folder: Path) -> None:
    """Noise in two colors."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for channel, name in enumerate(("red", "green")):
            (folder / split / name).mkdir(parents=True)
            for number in range(10):
                pixels = rng.integers(0, 100, (40, 40, 3), dtype=np.uint8)
                pixels[..., channel] += 100
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")


def write_imagenet(files: Files, folder: Path) -> None:
    """The images by class in Kaggle's layout."""
    classes, inner, truth = {"red": "n01440764", "green": "n02119789"}, folder / "ILSVRC/Data/CLS-LOC", []
    (inner / "val").mkdir(parents=True)
    for name, synset in classes.items():
        (inner / "train" / synset).mkdir(parents=True)
        for path in sorted((files["image_classes"] / "train" / name).iterdir()):
            Image.open(path).save(inner / "train" / synset / f"{synset}_{path.stem}.JPEG")
        for path in sorted((files["image_classes"] / "test" / name).iterdir()):
            truth.append(synset)
            Image.open(path).save(inner / "val" / f"ILSVRC2012_val_{len(truth):08d}.JPEG")
    rows = [f"ILSVRC2012_val_{number:08d},{synset} 1 2 3 4 \n" for number, synset in enumerate(truth, 1)]
    (folder / "LOC_val_solution.csv").write_text("".join(["ImageId,PredictionString\n", *rows]))
    (folder / "LOC_synset_mapping.txt").write_text("".join(f"{synset} {name}\n" for name, synset in classes.items()))


def write_tau_evaluation(files: Files, folder: Path) -> None:
    """Three recordings without a published label."""
    (folder / "audio").mkdir(parents=True)
    names = [f"audio/{number}.wav" for number in range(3)]
    for name, path in zip(names, sorted((files["world/tau"] / "audio").iterdir()), strict=False):
        shutil.copy(path, folder / name)
    (folder / "evaluation_setup").mkdir()
    (folder / "evaluation_setup" / "test.csv").write_text("\n".join(["filename", *names]) + "\n")


def write_ave_dataset(_: Files, folder: Path) -> None:
    """Two categories; a bell or a bark of some seconds in each video."""
    folder.mkdir()
    for split, start in (("train", 0), ("val", 4), ("test", 6)):
        lines = []
        for number in range(start, start + (4 if split == "train" else 2)):
            name, light, pitch = (("Church bell", 220, 3000.0), ("Bark", 120, 900.0))[number % 2]
            lines.append(f"{name}&v{number}&good&{number % 4}&7")
            seconds = [number % 4 <= second < 7 for second in range(10)]
            light_of, pitch_of = [light if on else 20 for on in seconds], [pitch if on else 200.0 for on in seconds]
            write_event_video(folder / "AVE" / f"v{number}.mp4", light_of, pitch_of)
        (folder / f"{split}Set.txt").write_text("\n".join(lines) + "\n")


def write_vggsounder(_: Files, folder: Path) -> None:
    """Four clips of each of three classes, one of them in the test."""
    published = FIXTURES / "vggsounder"
    folder.mkdir()
    shutil.copy(published / "classes.csv", folder)
    labels, clips = [(published / "vggsounder.csv").read_text().partition("\n")[0]], []
    for place, (name, pitch) in enumerate((("dog barking", 3000.0), ("playing cello", 900.0), ("air horn", 250.0))):
        for number in range(4):
            video, split = f"{10 * place + number:011d}", "test" if number == 3 else "train"
            light, hertz = [30 + 80 * place + 3 * number] * 3, [pitch + number] * 3
            write_event_video(folder / "clips" / f"{video}_000010.mp4", light, hertz)
            clips.append(f'{video},10,"{name}",{split}')
            labels += [f"{video}_000010,{name},AV,False,False,False"] if split == "test" else []
    (folder / "labels.csv").write_text("\n".join(labels) + "\n")
    (folder / "vggsound.csv").write_text("\n".join(clips) + "\n")


def write_localization_media(folder: Path, names: Sequence[str]) -> None:
    for part in ("frames", "audio"):
        (folder / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, name in enumerate(names):
        pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "frames" / f"{name}.jpg")
        soundfile.write(folder / "audio" / f"{name}.wav", tone(1.0, RATE, pitch=300.0 + 100 * number), RATE)


def write_vggss(_: Files, folder: Path) -> None:
    path = FIXTURES / "localization" / "vggss.json"
    write_localization_media(folder, [row["file"] for row in json.loads(path.read_text())])
    shutil.copy(path, folder)


def write_flickr_soundnet(_: Files, folder: Path) -> None:
    source = FIXTURES / "localization" / "Annotations"
    write_localization_media(folder, [path.stem for path in source.iterdir()])
    shutil.copytree(source, folder / "Annotations")
    (folder / "flickr_test.csv").write_text("".join(f"{path.stem},0\n" for path in sorted(source.iterdir())))
