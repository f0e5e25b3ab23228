"""Whole files of annotations, features, archives and published weights, and the commands that read them, to be damaged
by `fuzz_commands.py`."""

import csv
import io
import json
import pickle
import tarfile
from pathlib import Path

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch
from safetensors.torch import load_file

from comodal.data.regions.region_store import RegionStore
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import save_model
from comodal.models.convert.convert_vilbert import to_original_config
from comodal.models.vilbert.heads import Head
from comodal.models.vilbert.task_model import TaskModel, TaskModelConfig
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.regions.extract import extract_regions
from comodal.tasks.convert_vilbert_files import convert
from tests.support.paths import FIXTURES
from tests.support.small_captions import write_captions
from tests.support.small_tasks import config

Seeds = dict[str, list[tuple[str, bytes]]]
ANSWERS = ["yes", "no", "two"]
FEATURES = FIXTURES / "vilbert" / "data"
SHARES = {
    "tar": 0.1, "parquet": 0.1, "lmdb": 0.1, "tsv": 0.1, "csv": 0.1, "captions": 0.2, "labels": 0.1, "bin": 0.1,
    "search": 0.1,
}  # fmt: skip


def write_annotation_seeds(folder: Path, picture: bytes) -> Seeds:
    """Whole files of each kind, by name and content; `folder` has an L3-Net in `model`.

    Args:
        folder: Where they are written, with the models and stores that the commands need.
        picture: The content of a PNG file.
    """
    (folder / "images").mkdir()
    for name in ("1", "2"):
        (folder / "images" / f"{name}.png").write_bytes(picture)
    extract_regions(folder / "images", folder / "store", str(folder / "model"), grid=2, workers=1)
    write_captions(folder / "words", 12)
    write_models(folder)
    (folder / "esc" / "audio").mkdir(parents=True)
    rows: list[tuple] = [("filename", "fold", "target", "category")]
    for number in range(10):
        sound = 0.1 * np.random.default_rng(number).normal(size=16_000)
        soundfile.write(folder / "esc" / "audio" / f"{number}.wav", sound, 16_000)
        rows.append((f"{number}.wav", number // 2 + 1, number % 2, ("low", "high")[number % 2]))
    table, tar, parquet = io.StringIO(), io.BytesIO(), io.BytesIO()
    csv.writer(table).writerows(rows)
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name, data in (("1.png", picture), ("1.txt", b"a ball"), ("2.png", picture), ("2.txt", b"a bell")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    images = [{"bytes": picture, "path": f"{number}.png"} for number in range(2)]
    pq.write_table(pa.table({"image": images, "caption": ["a ball", "a bell"]}), parquet)
    lines = (folder / "words" / "captions.jsonl").read_text()
    entries = [json.loads(line) for line in lines.splitlines()]
    columns = "".join(f"{entry['caption']}\t{entry['image']}\n" for entry in entries)
    listed = "image,caption\n" + "".join(f'{entry["image"]},"{entry["caption"]}"\n' for entry in entries)
    questions = [{"image_id": 1, "question": "what is it", "question_id": number} for number in range(3)]
    answers = [{"answer": "yes", "answer_confidence": "yes", "answer_id": number} for number in range(1, 11)]
    labels = [
        {"image_id": 1, "question_id": number, "question_type": "what", "answer_type": "other",
         "multiple_choice_answer": "yes", "answers": answers} for number in range(3)
    ]  # fmt: skip
    about = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": "val2014"}
    texts = {"questions.json": {**about, "questions": questions}, "annotations.json": {**about, "annotations": labels}}
    for name, content in texts.items():
        (folder / name).write_text(json.dumps(content))
    return {
        "tar": [("a.tar", tar.getvalue())],
        "parquet": [("a.parquet", parquet.getvalue())],
        "lmdb": [("data.mdb", write_lmdb(folder / "lmdb"))],
        "tsv": [(path.name, path.read_bytes()) for path in sorted(FEATURES.glob("*.tsv"))],
        "csv": [("esc50.csv", table.getvalue().encode())],
        "captions": [
            ("captions.jsonl", lines.encode()),
            ("captions.json", json.dumps(entries).encode()),
            ("captions.tsv", columns.encode()),
            ("captions.csv", listed.encode()),
        ],
        "labels": [(name, (folder / name).read_bytes()) for name in texts],
        "bin": [("a.bin", (folder / "original.bin").read_bytes())],
        "search": [("a.png", picture), ("tokenizer.json", (folder / "run" / "tokenizer.json").read_bytes())],
    }


def write_models(folder: Path) -> None:
    """A ViLBERT on the regions of the images, the same with an answer head, and one in the original's format."""
    torch.manual_seed(0)
    words = WordPieceTokenizer.from_texts(["what is on the grass a ball a bell"])
    sizes = config(words.size)
    sizes = type(sizes)(**{**vars(sizes), "region_feature_dim": RegionStore(folder / "store").dim})
    save_model(ViLBERT(sizes), folder / "run", {})
    head = Head("vqa", "answers", len(ANSWERS), 8)
    save_model(TaskModel(TaskModelConfig(sizes, (head,))), folder / "vqa", {})
    (folder / "vqa" / "answers.json").write_text(json.dumps(ANSWERS))
    for run in (folder / "run", folder / "vqa"):
        words.save(run)
        (run / "regions.json").write_bytes(RegionStore(folder / "store").encode_provenance())
    convert(folder / "run", folder / "original")
    torch.save(load_file(folder / "original" / "pytorch_model.safetensors"), folder / "original.bin")
    (folder / "original.json").write_text(json.dumps(to_original_config(sizes)))


def write_lmdb(folder: Path) -> bytes:
    """A region of one image as the original's extractor writes it."""
    boxes, features = np.float32([[0, 0, 9, 9]]), np.ones((1, 8), np.float32)
    value = {"image_id": "1", "image_w": 20, "image_h": 20, "num_boxes": 1, "boxes": boxes, "features": features}
    with lmdb.open(str(folder), map_size=1 << 17) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"1", pickle.dumps(value))
    return (folder / "data.mdb").read_bytes()


def list_annotation_commands(kind: str, case: Path, file: Path, whole: Path) -> list[list[str]]:
    """What is tried with a damaged file."""
    out = str(case / "out")
    store, l3net, run = str(whole / "words" / "regions"), str(whole / "model"), str(whole / "run")
    train = ["train", "vilbert", "--variant", "small", "--steps", "1", "--batch_size", "4", "--workers", "0"]
    train += [
        "--validation_pairs",
        "0",
        "--device",
        "cpu",
        "--out",
        out + "2",
        "--data",
        store,
        "--captions",
        str(file),
    ]
    match kind:
        case "tar" | "parquet":
            extract = ["extract", str(file), out, "--detector", l3net, "--grid", "2", "--workers", "1"]
            return [
                extract,
                ["embed", "image", str(file), "--model", l3net, "--out", out + "1", "--workers", "1"],
                train,
            ]
        case "lmdb":
            return [["prepare", "regions", str(case), out]]
        case "tsv":
            return [["prepare", "regions", str(file), out]]
        case "csv":
            (case / "meta").mkdir()
            file.rename(case / "meta" / "esc50.csv")
            (case / "audio").symlink_to(whole / "esc" / "audio")
            return [["evaluate", "esc50", "--model", l3net, "--data", str(case), "--windows", "1", "--workers", "1"]]
        case "captions":
            return [train]
        case "labels":
            names = {
                name: str(file if file.name == name else whole / name)
                for name in ("questions.json", "annotations.json")
            }
            words = ["evaluate", "vqa", "--model", str(whole / "vqa"), "--regions", str(whole / "store")]
            return [[*words, "--questions", names["questions.json"], "--annotations", names["annotations.json"]]]
        case "bin":
            return [["convert", "vilbert", str(file), out, "--original-config", str(whole / "original.json")]]
    model = Path(run)
    if file.name == "tokenizer.json":
        model = case / "model"
        model.mkdir()
        for path in Path(run).iterdir():
            (model / path.name).write_bytes((file if path.name == file.name else path).read_bytes())
    images = case if file.suffix == ".png" else whole / "images"
    return [["search", str(images), "a ball", "--model", str(model), "--index", out, "--workers", "1"]]
