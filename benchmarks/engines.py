"""Embeddings a second by engine, the paper's full network, all timed in turn in one run; and what precision costs.

The network has random weights, which changes no time. What bfloat16 and 8 bits cost is measured on a trained one: with
--digits DIR, the folder that benchmarks/av_digits.py has written, its digits are classified from the vectors of each
engine (8 bits take their ranges from 32 training files of each kind).

    python benchmarks/engines.py [--batch 8] [--width 64] [--repeats 5] [--threads 2] [--digits av_digits/]
        [--out results.json]
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image

from comodal.hardware import has_native_bf16
from comodal.inference.embed_inputs import get_audio_embedding, get_image_embedding
from comodal.inference.embedder import Embedder, EmbedderOptions, load_embedder
from comodal.media.audio import stream_audio
from comodal.media.image import read_image
from comodal.media.storage.suffixes import AUDIO_SUFFIXES, IMAGE_SUFFIXES
from comodal.models.checkpoint import find_model_folder, load_model, save_model
from comodal.models.l3net.l3net import PAPER_L3NET_CONFIG, L3Net
from comodal.runtimes.export import export
from comodal.tasks.evaluation.class_folders import LabeledFile, compare_folder_systems, list_labeled_files
from embedding import WIDTH, count_tera_operations
from machine import describe_machine, print_ratio, report, save, seconds_in_turn

WAYS = {
    "PyTorch fp32, fused": EmbedderOptions(precision="fp32"),
    "PyTorch bf16, fused": EmbedderOptions(precision="bf16"),
    "ONNX Runtime fp32": EmbedderOptions(engine="onnx", precision="fp32"),
    "ONNX Runtime int8": EmbedderOptions(engine="onnx", precision="int8"),
    "OpenVINO fp32": EmbedderOptions(engine="openvino", precision="fp32"),
    "OpenVINO bf16": EmbedderOptions(engine="openvino", precision="bf16"),
    "OpenVINO int8": EmbedderOptions(engine="openvino", precision="int8"),
}
EXAMPLES = 32
TARGETS = {"fp32": 1.4, "int8": 2.5}  # of the fastest engine
CEILINGS = {"fp32": "matrix product", "int8": "int8 product"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=WIDTH, help="filters of the first block; the paper's: 64")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--digits", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        machine = describe_machine(int8=True)
        numbers = speed(Path(temporary), options.batch, options.repeats, options.width)
    for kind, precision in product(("image", "sound"), TARGETS):
        ratio, name = max((numbers[f"{kind}.{name}.ratio"], name) for name in WAYS if precision in name)
        ceiling = machine[f"machine.{CEILINGS[precision]}.tera_operations_per_second"]
        limit = ceiling / numbers[f"{kind}.plain fp32.tera_operations_per_second"]
        print_ratio(f"{kind} embedding, {name} and eager fp32", ratio, TARGETS[precision], machine, limit)
    numbers |= {"threads": float(options.threads), **machine}
    if options.digits is not None:
        with tempfile.TemporaryDirectory() as temporary:
            numbers |= accuracy(Path(temporary), options.digits)
    save(numbers, options.out)


def speed(folder: Path, batch: int, repeats: int, width: int) -> dict[str, float]:
    """Ratios to the plain network in fp32."""
    torch.manual_seed(0)
    plain = L3Net(replace(PAPER_L3NET_CONFIG, width=width)).eval()
    save_model(plain, folder / "model", {})
    embedders = exported(folder / "model", write_examples(folder / "examples"))
    rng = np.random.default_rng(0)
    squares = rng.integers(0, 256, (batch, 224, 224, 3), dtype=np.uint8)
    windows = 0.1 * rng.standard_normal((batch, 48_000), dtype=np.float32)
    pixels, sound = torch.from_numpy(squares).permute(0, 3, 1, 2), torch.from_numpy(windows)
    works: dict[str, dict[str, Callable[[], object]]] = {
        "image": {name: lambda found=found: found.embed_images(squares) for name, found in embedders.items()},
        "sound": {name: lambda found=found: found.embed_audio(windows) for name, found in embedders.items()},
    }
    works["image"]["plain fp32"] = lambda: plain.embed_image(pixels)
    works["sound"]["plain fp32"] = lambda: plain.embed_audio(sound)
    numbers: dict[str, float] = {}
    for kind, ways in works.items():
        with torch.inference_mode():
            seconds = seconds_in_turn(ways, repeats)
        numbers |= report(kind, seconds, dict.fromkeys(ways, count_tera_operations(kind, batch, width)), "plain fp32")
    return numbers


def write_examples(folder: Path) -> Path:
    """Noise to take ranges from."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(2):
        soundfile.write(folder / f"{number}.wav", 0.1 * rng.standard_normal(48_000), 48_000)
        Image.fromarray(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def exported(model: Path, examples: Path) -> dict[str, Embedder]:
    """A network in every way of embedding with it."""
    for engine in ("onnx", "openvino"):
        export(model, engine, only=["image", "audio"], int8=examples)
    ways = {name: choice for name, choice in WAYS.items() if choice.precision != "bf16" or has_native_bf16()}
    return {name: load_embedder(model, choice) for name, choice in ways.items()}


def accuracy(folder: Path, digits: Path) -> dict[str, float]:
    """Held-out accuracy of a logistic regression on the vectors of each way."""
    load_model(digits / "run")
    shutil.copytree(find_model_folder(digits / "run"), folder / "model")
    trees = {
        "image": list_labeled_files(digits / "images", frozenset(IMAGE_SUFFIXES)),
        "sound": list_labeled_files(digits / "sounds", AUDIO_SUFFIXES),
    }
    (folder / "examples").mkdir()
    for items in trees.values():
        training = [item.path for item in items if not item.is_test]
        for number, path in enumerate(training[:: len(training) // EXAMPLES][:EXAMPLES]):
            shutil.copy(path, folder / "examples" / f"{number}{path.suffix}")
    embedders = exported(folder / "model", folder / "examples")
    numbers: dict[str, float] = {}
    for kind, items in trees.items():
        found = {name: vectors(items, embedder, kind) for name, embedder in embedders.items()}
        exact = found["PyTorch fp32, fused"]
        features = {name: torch.from_numpy(rows).unsqueeze(1) for name, rows in found.items()}
        comparison = compare_folder_systems(kind, items, features, "logistic", f"{kind} digits")
        comparison.print_table()
        for name, rows in found.items():
            cosine = (rows * exact).sum(1) / (np.linalg.norm(rows, axis=1) * np.linalg.norm(exact, axis=1))
            numbers |= {f"digits.{kind}.{name}.cosine": float(cosine.mean())}
            numbers |= {f"digits.{kind}.{name}.least_cosine": float(cosine.min())}
        numbers |= {f"digits.{key}": value for key, value in comparison.compute_metrics().items()}
    return numbers


def vectors(items: list[LabeledFile], embedder: Embedder, kind: str) -> np.ndarray:
    """One vector for each file: a picture's, or that of a sound's first second."""
    if kind == "image":
        return get_image_embedding([read_image(item.path) for item in items], embedder)
    rate = embedder.config.sample_rate
    rows = []
    for item in items:
        sound = np.concatenate(list(stream_audio(item.path, rate)))[:rate]
        rows.append(
            get_audio_embedding(np.pad(sound, (0, rate - len(sound))), rate, embedder, 1.0, center=False)[0][:1]
        )
    return np.concatenate(rows)


if __name__ == "__main__":
    main()
