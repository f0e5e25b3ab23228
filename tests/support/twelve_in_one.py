"""Small data of all tasks of 12-in-1, at the paths of the shipped list of tasks."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from comodal.data.regions.region_store import RegionWriter
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import save_model
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.synthetic.synthesize import synthesize
from tests.support.small_tasks import DIM, config
from tests.support.small_vilbert_data import SCENES

SETS = {
    "coco": "coco", "flickr30k": "flickr30k", "nlvr2": "nlvr2", "gqa": "coco", "visual_genome": "coco",
    "visual7w": "coco", "guesswhat": "coco",
}  # fmt: skip
NUMBERED = ("gqa", "visual_genome", "visual7w")  # stores that name an image by its number
GQA_ANSWERS = ["red", "blue", "yes", "no", "circle"]
VQA_ANSWERS = ["yes", "no", "red", "1", "2", "3", "circle"]


def write_twelve_in_one(folder: Path) -> Path:
    """All files under folder/data, and a model of random weights, folder/model."""
    world, data = folder / "world", folder / "data"
    synthesize(world, options=replace(SCENES, scenes=20), tasks=["coco", "flickr30k", "nlvr2"], workers=1)
    for name, origin in SETS.items():
        write_store(world / origin / "boxes.jsonl", data / "regions" / name, is_numbered=name in NUMBERED)
    coco = world / "coco"
    for source, target in (
        (coco / "vqa", "vqa"), (coco / "refcoco+", "refcoco+"), (coco / "refcoco+", "refcoco"),
        (coco / "refcoco+", "refcocog"), (world / "nlvr2", "nlvr2"), (world / "flickr30k", "snli_ve"),
        (world / "flickr30k", "flickr30k"), (coco, "coco"),
    ):  # fmt: skip
        shutil.copytree(source, data / target, ignore=shutil.ignore_patterns("images", "*-images"))
    (data / "refcocog" / "refs(unc).p").rename(data / "refcocog" / "refs(umd).p")
    (data / "vqa" / "trainval_label2ans.pkl").write_bytes(pickle.dumps(VQA_ANSWERS))
    write_questions(data, [int(line.split("_")[-1].split(".")[0]) for line in list_images(coco / "boxes.jsonl")])
    lines = (data / "nlvr2" / "train.json").read_text().splitlines()  # a small world has no dev
    (data / "nlvr2" / "train.json").write_text("\n".join(lines[:-2]) + "\n")
    (data / "nlvr2" / "dev.json").write_text("\n".join(lines[-2:]) + "\n")
    write_candidate_choices(data, list_images(coco / "boxes.jsonl"))
    words = WordPieceTokenizer.read(world / "vocab.txt")
    torch.manual_seed(7)
    save_model(ViLBERT(replace(config(words.size), positions=100)), folder / "model", {})
    words.save(folder / "model")
    return data


def list_images(boxes: Path) -> list[str]:
    return [json.loads(line)["image"] for line in boxes.read_text().splitlines()]


def write_store(boxes: Path, out: Path, is_numbered: bool) -> None:
    """Random regions; GQA and Visual Genome name an image by its number."""
    rng = np.random.default_rng(0)
    with RegionWriter(out, DIM, about={}) as writer:
        for line in boxes.read_text().splitlines():
            record = json.loads(line)
            name, corners = record["image"].rpartition(".")[0], np.array(record["boxes"], np.float32)
            name = str(int(name.rpartition("_")[2])) if is_numbered else name
            features = rng.random((len(corners), DIM), dtype=np.float32)
            writer.add(name, features, corners, record["width"], record["height"])


def write_questions(data: Path, images: list[int]) -> None:
    """GQA's and Visual Genome's questions about some images."""
    (data / "gqa").mkdir()
    (data / "visual_genome").mkdir()
    (data / "gqa" / "trainval_label2ans.pkl").write_bytes(pickle.dumps(GQA_ANSWERS))
    for split, part in (("train", images[:6]), ("val", images[6:8])):
        asked = {
            f"{split}{image}": {"question": "is it red?", "imageId": str(image), "answer": "yes", "isBalanced": True}
            for image in part
        }
        (data / "gqa" / f"{split}_balanced_questions.json").write_text(json.dumps(asked))
    genome = [
        {"id": image, "qas": [{"qa_id": image, "image_id": image, "question": "Is it red?", "answer": "Yes."}]}
        for image in images[:6]
    ]
    (data / "visual_genome" / "question_answers.json").write_text(json.dumps(genome))


def write_candidate_choices(data: Path, images: list[str]) -> None:
    """Visual7W's questions and GuessWhat?!'s games about the boxes of some images."""
    with_boxes = [
        json.loads(line) for line in (data.parent / "world" / "coco" / "boxes.jsonl").read_text().splitlines()
    ]
    corners = {record["image"]: record["boxes"] for record in with_boxes}
    (data / "visual7w").mkdir()
    (data / "guesswhat").mkdir()
    boxes, pointing, games = [], [], []
    for place, image in enumerate(images[:8]):
        number = int(image.rpartition(".")[0].rpartition("_")[2])
        split, ids = "train" if place < 6 else "val", []
        for left, top, right, bottom in corners[image][:4]:
            ids.append(len(boxes))
            boxes.append({"box_id": ids[-1], "x": left, "y": top, "width": right - left, "height": bottom - top})
        question = {"qa_id": place, "question": "which is red?", "multiple_choices": ids[1:], "answer": ids[0]}
        pointing.append(
            {
                "image_id": number,
                "filename": f"v7w_{number}.jpg",
                "split": split,
                "qa_pairs": [question | {"type": "which"}],
            }
        )
        objects = [
            {"id": box["box_id"], "bbox": [box[side] for side in ("x", "y", "width", "height")]}
            for box in boxes[ids[0] :]
        ]
        game = {"id": place, "image": {"id": number}, "objects": objects, "object_id": ids[-1], "status": "success"}
        turns = [{"id": 1, "question": "is it red?", "answer": "No"}, {"id": 2, "question": "a drum?", "answer": "Yes"}]
        games.append(game | {"qas": turns})
    (data / "visual7w" / "dataset_v7w_pointing.json").write_text(json.dumps({"boxes": boxes, "images": pointing}))
    for split, part in (("train", games[:6]), ("valid", games[6:])):
        lines = "".join(json.dumps(game) + "\n" for game in part)
        (data / "guesswhat" / f"guesswhat.{split}.jsonl").write_text(lines)
