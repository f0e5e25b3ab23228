"""AV-digits: a handwritten digit and a spoken digit that are the same digit belong together.

Real data that anyone can download: MNIST (the four idx files, or the t10k pair alone) and the Free Spoken Digit Dataset
(its recordings folder, wav or flac). The sets' own test lists are held out: FSDD's recordings 0-4 of each speaker and
digit; MNIST's t10k where the train files are there, else every fifth of the t10k pictures. No recording is on both
sides.

L3-Net is trained on all pairs of a batch. The paper's objective (l3net_avc) can stay at the chance level for more than
the default number of steps. --systems adds it, and AVE-Net (the paper's loss, and the contrastive one), with the same
settings. Images and audio then retrieve each other among the held-out pairs. Several
recordings and images show one digit, so two scores are given: R@10 of the own pair, of which only the digit can be
learned, and the fraction of the first 10 that show the digit. The baseline is a linear map (CCA) between the features
of each L3-Net, fitted on the training pairs.

    python benchmarks/av_digits.py --mnist mnist/ --fsdd free-spoken-digit-dataset/recordings --out av_digits/
    python benchmarks/av_digits.py --mnist mnist/ --fsdd free-spoken-digit-dataset/recordings --out av_digits/
        --systems l3net l3net_avc ave_net_avc ave_net_contrastive --seeds 3
"""

import argparse
import gzip
import json
import shutil
import struct
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from comodal.data.shards.paired_files import prepare_pairs
from comodal.errors import DataError
from comodal.recipes import avc_pretraining, ave_net_pretraining
from comodal.tasks.audio.audio_folders import evaluate_audio
from comodal.tasks.cross_modal_retrieval import evaluate_cross_modal_retrieval
from comodal.tasks.image.linear_classification import evaluate_images
from comodal.training.run import train

SHORT_SIDE = 37  # 8/7 of 32: training crops from it
HELD_OUT_RECORDINGS = 5  # FSDD's README: the official test set is recordings 0 to 4
SYSTEMS: dict[str, dict[str, Any]] = {
    "l3net": {"objective": "all_pairs"},
    "l3net_avc": {"objective": "avc"},
    "ave_net_avc": {"objective": "avc"},
    "ave_net_contrastive": {"objective": "contrastive"},
}
ARROWS = {"image -> audio": "image_to_audio", "audio -> image": "audio_to_image"}
RETRIEVAL = {"R@10": "r10", "digit P@10": "class_precision10"}
BARS = {"l3net.avc.validation": 0.90, "l3net.vision.trained": 0.97, "l3net.audio.trained": 0.98}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, required=True, help="folder of MNIST's idx files (.gz or not)")
    parser.add_argument("--fsdd", type=Path, required=True, help="folder of FSDD's recordings")
    parser.add_argument("--out", type=Path, required=True, help="where everything goes; run again to go on")
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--systems", nargs="+", choices=tuple(SYSTEMS), default=["l3net"], help="what is trained")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each system, with seeds from 0")
    options = parser.parse_args()
    started = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    images, sounds, shards = options.out / "images", options.out / "sounds", options.out / "shards"
    lay_out(write_images, options.mnist, images)
    lay_out(write_sounds, options.fsdd, sounds)
    prepare_pairs(images, sounds, shards, short_side=SHORT_SIDE)
    by_system: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        runs = {system: learn(options.out, system, options.steps, seed) for system in options.systems}
        for system, numbers in measure_pairs(runs, shards).items():
            by_system.setdefault(system, []).append(numbers)
    numbers: dict[str, float] = {}
    if "l3net" in options.systems:
        numbers |= measure_features(find_run(options.out, "l3net", 0), options.out, images, sounds)
    numbers["seconds"] = time.perf_counter() - started
    values = numbers | {
        f"{system}.{name}.seed{seed}": value
        for system, runs in by_system.items()
        for seed, one in enumerate(runs)
        for name, value in one.items()
    }
    (options.out / "results.json").write_text(json.dumps(values, indent=2) + "\n")
    print_table(numbers)
    print_systems(by_system)


def find_run(out: Path, system: str, seed: int) -> Path:
    """The folder of a run."""
    return out / "run" if (system, seed) == ("l3net", 0) else out / "runs" / f"{system}_{seed}"


def learn(out: Path, system: str, steps: int, seed: int) -> Path:
    """A network of 600 thousand weights, pictures of 32 pixels, no mirror images (mirrored digits are not digits)."""
    settings: dict[str, Any] = {
        "data": out / "shards",
        "variant": "small",
        "width": 16,
        "image_size": 32,
        "steps": steps,
        "horizontal_flip": False,
        "seed": seed,
    }
    settings |= {"learning_rate": 2e-3, "warmup_steps": min(100, steps // 2), "min_lr_ratio": 0.02, "workers": 1}
    settings |= {"validation_pairs": 4096} | SYSTEMS[system]
    recipe = avc_pretraining.recipe if system.startswith("l3net") else ave_net_pretraining.recipe
    run = find_run(out, system, seed)
    status = train(recipe, settings, run, resume=True, validate_every=1000, threads=1)
    if status:
        sys.exit(status)
    return run


def lay_out(write: Callable[[Path, Path], None], source: Path, folder: Path) -> None:
    """Class folders, written once and whole."""
    if not folder.exists():
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        write(source, part)
        part.rename(folder)


def read_idx(folder: Path, stem: str) -> np.ndarray | None:
    """One of MNIST's idx files: four bytes of type and rank, the sizes, then bytes (yann.lecun.com/exdb/mnist)."""
    for path in (folder / stem, folder / f"{stem}.gz"):
        if path.is_file():
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            kind, rank = data[2], data[3]
            sizes = struct.unpack(f">{rank}I", data[4 : 4 + 4 * rank])
            if kind != 8 or len(data) != 4 + 4 * rank + int(np.prod(sizes)):
                raise DataError(f"{path}: not a whole idx file of bytes")
            return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(sizes)
    return None


def write_images(mnist: Path, folder: Path) -> None:
    """images/{train,validation}/DIGIT/NUMBER.png"""
    for stem, name in (("train", "train"), ("t10k", "validation")):
        pictures, labels = read_idx(mnist, f"{stem}-images-idx3-ubyte"), read_idx(mnist, f"{stem}-labels-idx1-ubyte")
        if pictures is None or labels is None:
            if stem == "t10k":
                raise DataError(f"{mnist}: t10k-images-idx3-ubyte(.gz) or its labels are not there")
            continue
        alone = stem == "t10k" and not folder.exists()
        for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
            split = name if not alone or number % 5 == 0 else "train"
            path = folder / split / str(label) / f"{stem}_{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)


def write_sounds(fsdd: Path, folder: Path) -> None:
    """sounds/{train,validation}/DIGIT/DIGIT_SPEAKER_NUMBER.wav"""
    recordings = sorted(path for path in fsdd.iterdir() if path.suffix in {".wav", ".flac"})
    if not recordings:
        raise DataError(f"{fsdd}: no recordings named DIGIT_SPEAKER_NUMBER.wav or .flac")
    for path in recordings:
        digit, _, number = path.stem.split("_")
        split = "validation" if int(number) < HELD_OUT_RECORDINGS else "train"
        target = folder / split / digit / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def read_accuracy(run: Path) -> float:
    """The accuracy of the last validation."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return float([line for line in lines if line["split"] == "validation"][-1]["accuracy"])


def measure_pairs(runs: Mapping[str, Path], shards: Path) -> dict[str, dict[str, float]]:
    """Correspondence of held-out pairs and retrieval by each system, by the linear map and by chance, of one seed."""
    found: dict[str, dict[str, float]] = {}
    for system, run in runs.items():
        is_l3net = system.startswith("l3net")
        baseline = {"linear_map": run} if is_l3net else {}
        values = evaluate_cross_modal_retrieval(run, data=shards, workers=1, **baseline)
        found[system] = {"avc": read_accuracy(run)} | select_retrieval(values, "")
        if is_l3net:
            found[f"{system}, linear map"] = select_retrieval(values, "linear_map.")
        chance = {name: values[f"retrieval.chance_level.{key}"] for name, key in RETRIEVAL.items()}
        found["chance level"] = {"avc": 0.5} | {f"{arrow} {name}": chance[name] for arrow in ARROWS for name in chance}
    return found


def select_retrieval(values: Mapping[str, float], system: str) -> dict[str, float]:
    """The retrieval scores that the table shows."""
    return {
        f"{arrow} {name}": values[f"retrieval.{system}{direction}.{key}"]
        for arrow, direction in ARROWS.items()
        for name, key in RETRIEVAL.items()
    }


def measure_features(run: Path, out: Path, images: Path, sounds: Path) -> dict[str, float]:
    """The bars' numbers, each beside its baselines."""
    numbers = {"l3net.avc.validation": read_accuracy(run)}
    found = evaluate_images(run, images, out=out / "image_scores")
    found |= evaluate_audio(run, sounds, out=out / "sound_scores")
    return numbers | {f"l3net.{key}": value for key, value in found.items() if key.count(".") == 1}


def print_systems(by_system: Mapping[str, list[dict[str, float]]]) -> None:
    """The mean of each number over the seeds, and its range."""
    names = ["avc", *(f"{arrow} {name}" for arrow in ARROWS for name in RETRIEVAL)]
    table = Table("", *names)
    for system, runs in by_system.items():
        cells = []
        for name in names:
            values = [one[name] for one in runs if name in one]
            spread = f" ({min(values):.3f}-{max(values):.3f})" if len(set(values)) > 1 else ""
            cells.append(f"{sum(values) / len(values):.3f}{spread}" if values else "")
        table.add_row(system, *cells)
    Console().print(table)


def print_table(numbers: dict[str, float]) -> None:
    table = Table("", "measured", "bar")
    for key, value in numbers.items():
        table.add_row(key, f"{value:.4g}", f"{BARS[key]:.2f}" if key in BARS else "")
    Console().print(table)


if __name__ == "__main__":
    main()
