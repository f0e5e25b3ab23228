"""Every benchmark runs to its end with its smallest settings, on data made here, and writes its numbers."""

import gzip
import importlib
import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers
from PIL import Image

from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from tests.support.paths import ROOT
from tests.support.small_captions import write_captions

FOLDER = ROOT / "benchmarks"
SHARED = {"machine", "keras_l3net"}  # not run by themselves
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in SHARED)
COLORS = {"red": (220, 30, 30), "blue": (30, 30, 220)}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "picture", "one"]


def write_pictures(folder: Path, count: int) -> Path:
    """Pictures 0.png, 1.png, ... that are red and blue by turns."""
    folder.mkdir(parents=True)
    for number in range(count):
        shade = np.random.default_rng(number).integers(0, 20, (64, 64, 3))
        pixels = np.array(list(COLORS.values())[number % 2]) + shade
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return folder


def color_of(number: int) -> str:
    return list(COLORS)[number % 2]


def write_network(folder: Path) -> Path:
    """An untrained vision network for `extract`."""
    torch.manual_seed(0)
    save_model(L3Net(make_small_l3net_config(4, 64)), folder, {})
    return folder


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_vqa(folder: Path, count: int) -> None:
    """VQA v2's questions and annotations."""
    keys = [{"question_id": number, "image_id": number} for number in range(count)]
    asked = [key | {"question": "what color is the picture?"} for key in keys]
    answers = [[{"answer": color_of(number), "answer_id": i} for i in range(1, 11)] for number in range(count)]
    kinds = [{"question_type": "what color", "answer_type": "other", "multiple_choice_answer": color_of(number)}
             for number in range(count)]  # fmt: skip
    annotated = [key | kind | {"answers": given} for key, kind, given in zip(keys, kinds, answers, strict=True)]
    write_json(folder / "questions.json", {"questions": asked})
    write_json(folder / "annotations.json", {"annotations": annotated})


def write_official(folder: Path) -> Path:
    """Eight pictures in each of the official formats."""
    count = 8
    for name in ("vqav2", "gqa", "vgqa", "visual_entailment", "flickr30k"):
        write_pictures(folder / "images" / name, count)
    write_vqa(folder / "vqav2", count)
    gqa = {str(i): {"question": "What color is it?", "answer": color_of(i), "imageId": str(i), "isBalanced": True}
           for i in range(count)}  # fmt: skip
    write_json(folder / "gqa" / "questions.json", gqa)
    genome = [{"id": i, "qas": [{"question": "What color?", "answer": f"{color_of(i)}.", "image_id": i, "qa_id": i}]}
              for i in range(count)]  # fmt: skip
    write_json(folder / "vgqa" / "question_answers.json", genome)
    labels = ["entailment", "contradiction"]
    pairs = [{"Flickr30K_ID": str(i), "pairID": f"{i}.jpg#0r1e", "gold_label": labels[i % 2],
              "sentence1": "A picture.", "sentence2": "A red picture."} for i in range(count)]  # fmt: skip
    (folder / "visual_entailment").mkdir()
    (folder / "visual_entailment" / "sample_pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    both = write_pictures(folder / "images" / "nlvr2", 2 * count)
    for number in range(2 * count):
        (both / f"{number}.png").rename(both / f"dev-{number // 2}-0-img{number % 2}.png")
    (folder / "nlvr2").mkdir()
    said = [{"identifier": f"dev-{i}-0-0", "label": str(i % 2 == 0), "sentence": f"Picture {i} is red."}
            for i in range(count)]  # fmt: skip
    (folder / "nlvr2" / "tiny-dev.json").write_text("\n".join(map(json.dumps, said)))
    (folder / "flickr30k" / "sentences").mkdir(parents=True)
    for number in range(count):
        text = f"[/EN#{number}/other A {color_of(number)} picture] of number {number} ."
        (folder / "flickr30k" / "sentences" / f"{number}.txt").write_text(text)
    return folder


def write_idx(path: Path, values: np.ndarray) -> None:
    """A compressed file of MNIST: type and rank, sizes, bytes (yann.lecun.com/exdb/mnist)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes()))


def make_digits(folder: Path) -> list[str]:
    rng = np.random.default_rng(0)
    for stem, count in (("train", 40), ("t10k", 20)):
        write_idx(folder / "mnist" / f"{stem}-images-idx3-ubyte.gz", rng.integers(0, 256, (count, 28, 28), np.uint8))
        write_idx(folder / "mnist" / f"{stem}-labels-idx1-ubyte.gz", (np.arange(count) % 10).astype(np.uint8))
    (folder / "fsdd").mkdir()
    for digit in range(10):
        for number in range(3, 8):  # numbers below 5 are held out
            sound = 0.1 * rng.standard_normal(8_000)
            soundfile.write(folder / "fsdd" / f"{digit}_jackson_{number}.wav", sound, 8_000)
    return [
        "--mnist",
        str(folder / "mnist"),
        "--fsdd",
        str(folder / "fsdd"),
        "--steps",
        "2",
        "--systems",
        "l3net",
        "ave_net_contrastive",
    ]


def make_easy_questions(folder: Path) -> list[str]:
    for split in ("train", "test"):
        write_pictures(folder / split / "images", 24)
        write_json(folder / split / "questions.json", [["what color is it?", color_of(i), i] for i in range(24)])
    network = write_network(folder / "network")
    return ["--data", str(folder), "--detector", str(network), "--grid", "2", "--epochs", "1"]


def make_stamps(folder: Path) -> list[str]:
    stamps = write_pictures(folder / "stamps", 20)
    entries = [{"image": f"{number}.png", "caption": f"A {color_of(number)} picture {number}."} for number in range(20)]
    write_json(stamps / "captions.json", entries)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config).save_pretrained(folder / "bert")
    (folder / "bert" / "vocab.txt").write_text("\n".join(WORDS))
    network = write_network(folder / "network")
    return ["--stamps", str(stamps), "--bert", str(folder / "bert"), "--detector", str(network), "--steps", "2"]


def make_samples(folder: Path) -> list[str]:
    data, network = write_official(folder / "data"), write_network(folder / "network")
    return ["--data", str(data), "--detector", str(network), "--steps", "2"]


def make_captions(folder: Path) -> list[str]:
    regions, captions = write_captions(folder)
    return ["--regions", str(regions), "--captions", str(captions), "--steps", "2", "--tokens", "4"]


def make_tasks(folder: Path) -> list[str]:
    network = write_network(folder / "network")
    sizes = {"--scenes": "60", "--captioned": "60", "--steps": "2", "--share": "0.05"}
    return ["--detector", str(network), *(word for pair in sizes.items() for word in pair)]


# The arguments, or a function that makes the data in a folder and returns them.
RUNS: dict[str, str | Callable[[Path], list[str]]] = {
    "av_digits": make_digits,
    "avc_evaluation": "--width 4 --image-size 32 --examples-per-clip 1 --repeats 1 --threads 1",
    "busy_machine": "--seconds 0.2 --repeats 1",
    "caption_curve": lambda _: ["--scenes", "20", "--steps", "2", "--batch", "4", "--fractions", "0.5"],
    "captions": make_stamps,
    "distillation": make_stamps,
    "contrastive_step": "--batch 4 --width 2 --image-size 24 --repeats 1 --threads 1 --precision fp32",
    "detector": "--short-side 96 --proposals 10 --repeats 1 --threads 1",
    "easy_vqa": make_easy_questions,
    "embedding": "--batch 1 --width 4 --repeats 1 --threads 1",
    "engines": "--batch 1 --width 4 --repeats 1 --threads 1",
    "ingest": "--repeats 1 --rate 5",
    "inputs": make_captions,
    "joint_step": "--batch 2 --rounds 1 --threads 1",
    "pairs": "--repeats 1",
    "real_samples": make_samples,
    "regions": "--images 64 --batch-size 32 --repeats 1",
    "retrieval": "--pairs 2 --gallery 4 --known 8 --queries 1 --keep 2 --repeats 1 --threads 1",
    "search": "--pictures 8 --known 40 --queries 1 --rerank 2 --threads 1",
    "search_index": "--pictures 50 --dim 8",
    "search_neighbors": "--vectors 600 --dim 8 --queries 2",
    "synthetic_tasks": make_tasks,
    "training_step": "--batch 2 --width 4 --repeats 1 --threads 1 --precision fp32",
    "vilbert_step": "--batch 2 --repeats 1 --threads 1 --precision fp32",
}
# The numbers that docs/experiments/performance.md and the targets are about.
KEYS = {
    "avc_evaluation": "evaluation.80.ratio",
    "busy_machine": "busy machine.automatic.kept",
    "contrastive_step": "contrastive.ratio",
    "embedding": "image.fast fp32.ratio",
    "engines": "sound.OpenVINO int8.ratio",
    "ingest": "ingest.360p.5.of_decode_only",
    "joint_step": "joint.ratio",
    "pairs": "pairs.key_microseconds",
    "retrieval": "one caption, many images.cached fp32.ratio",
    "search_index": "listing.seconds",
    "search_neighbors": "random.recall",
    "training_step": "training step.comodal.ratio",
    "vilbert_step": "comodal fp32.ratio",
}


def test_every_benchmark_is_run_here():
    assert sorted(RUNS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_imports_and_explains_itself(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    monkeypatch.delitem(sys.modules, name, raising=False)  # of a folder of the same name
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(name).main()
    assert ended.value.code == 0
    flags = set(capsys.readouterr().out.replace(",", " ").replace("[", " ").split())
    arguments = RUNS[name]
    given = {word for word in arguments.split() if word.startswith("--")} if isinstance(arguments, str) else set()
    assert given | {"--out"} <= flags


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_runs_to_its_end(name: str, tmp_path: Path):
    made, out = RUNS[name], tmp_path / "out"
    is_folder = not isinstance(made, str)
    arguments = made.split() if isinstance(made, str) else made(tmp_path / "data")
    command = [sys.executable, str(FOLDER / f"{name}.py"), *arguments, "--out", str(out)]
    done = subprocess.run(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    written = [path for path in out.glob("*.json") if path.stem in {"results", "run"}] if is_folder else [out]
    numbers = json.loads(written[0].read_text())
    assert numbers and all(isinstance(value, int | float) and math.isfinite(value) for value in numbers.values())
    if not is_folder:
        assert numbers["machine.matrix product.tera_operations_per_second"] > 0
        assert torch.backends.cpu.get_cpu_capability() in done.stdout
    assert KEYS.get(name, next(iter(numbers))) in numbers
    if name in {
        "avc_evaluation",
        "contrastive_step",
        "embedding",
        "engines",
        "ingest",
        "joint_step",
        "retrieval",
        "vilbert_step",
    }:
        lines = [line for line in done.stdout.splitlines() if line.startswith("RATIO ")]
        assert lines and all("target" in line and "convolution" in line for line in lines)
