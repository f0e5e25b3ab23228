"""Visual7W's pointing questions and GuessWhat?!: files by hand, the loss worked by hand, and a network that chooses."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from comodal.cli.program import main
from comodal.data.batch import TaskBatch
from comodal.data.regions.region_store import RegionStore, RegionWriter
from comodal.errors import DataError
from comodal.regions.image_list import read_image_boxes
from comodal.tasks.vision_language.grounding import guesswhat, visual7w
from comodal.tasks.vision_language.grounding.candidate_choice import compute_candidate_loss
from comodal.tasks.vision_language.grounding.candidate_files import read_guesswhat_games, read_visual7w_questions
from comodal.tasks.vision_language.grounding.prepare_boxes import prepare_boxes
from comodal.tasks.vision_language.vcr_files import BoxCounts
from comodal.training.run import train
from tests.support.small_tasks import COLOURS, DIM, SIDE, write_pretrained

IMAGES, TRAINING = 80, 64
BOXES = [[20.0 * place, 10.0, 19.0, 50.0] for place in range(5)]  # left, top, width, height; the last is no candidate
TEXTS = [f"which {colour} ?" for colour in COLOURS] + ["start answer stop yes"]


def color_at(image: int, place: int) -> int:
    return int(np.random.default_rng(image).permutation(4)[place])


def write_regions(folder: Path, name: str) -> RegionStore:
    """Five regions side by side: four candidates, each of another color, and one without a color."""
    rng = np.random.default_rng(0)
    with RegionWriter(folder, DIM, about={"boxes": "ground truth"}) as writer:
        for image in range(IMAGES):
            features = rng.normal(0, 0.1, (5, DIM)).astype(np.float32)
            for place in range(4):
                features[place, color_at(image, place)] += 2
            corners = np.array([[x, y, x + width, y + height] for x, y, width, height in BOXES], np.float32)
            writer.add(name.format(image), features, corners, SIDE, SIDE)
    return RegionStore(folder)


def write_visual7w(path: Path) -> Path:
    """Two questions an image, about two of its colors."""
    boxes, images = [], []
    for image in range(IMAGES):
        ids = [10 * image + place for place in range(4)]
        for box_id, (x, y, width, height) in zip(ids, BOXES, strict=False):
            boxes.append({"box_id": box_id, "x": x, "y": y, "width": width, "height": height, "name": "thing"})
        questions = []
        for place in (image % 4, (image + 1) % 4):
            others = [ids[one] for one in (3, 2, 1, 0) if one != place]
            question = {"qa_id": 100 + len(questions) + 10 * image, "type": "which", "image_id": image}
            question["question"] = f"Which {COLOURS[color_at(image, place)]}?"
            questions.append(question | {"answer": ids[place], "multiple_choices": others})
        split = "train" if image < TRAINING else "val" if image < TRAINING + 4 else "test"
        images.append({"image_id": image, "filename": f"v7w_{image}.jpg", "split": split, "qa_pairs": questions})
    path.write_text(json.dumps({"dataset": "visual7w-pointing", "boxes": boxes, "images": images}))
    return path


def write_games(path: Path, images: range) -> Path:
    """One question, about the color of the object, answered with yes; objects are in another order than their ids."""
    lines = []
    for number in (2 * image + game for image in images for game in (0, 1)):
        image = number // 2
        objects = [{"id": 10 * image + place, "bbox": BOXES[place], "category": "thing"} for place in (3, 1, 0, 2)]
        target = (image + number % 2) % 4
        color = color_at(image, target)
        qas = [{"id": 1, "question": f"{COLOURS[color]} ?", "answer": "Yes"}] * (1 if number else 2)
        game = {"id": number, "image": {"id": image, "width": SIDE, "height": SIDE}, "objects": objects, "qas": qas}
        lines.append(json.dumps(game | {"object_id": 10 * image + target, "status": "success"}))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_fields_of_both_files(tmp_path: Path):
    question = read_visual7w_questions(write_visual7w(tmp_path / "dataset_v7w_pointing.json"))[4]
    assert (question.key, question.image, question.file_name, question.split) == ("120", "2", "v7w_2.jpg", "train")
    assert question.candidates == (20, 21, 22, 23) and question.answer == 2
    assert question.boxes[2] == (40.0, 10.0, 59.0, 60.0)
    game = read_guesswhat_games(write_games(tmp_path / "guesswhat.valid.jsonl", range(1)))[0]
    assert game.text == " ".join([f"start {COLOURS[color_at(0, 0)]} ? answer Yes stop"] * 2)
    assert game.candidates == (0, 1, 2, 3) and game.answer == 0 and game.split == "valid"


def test_the_loss_is_summed_over_the_candidates():
    """Two candidates of IoU 1 and 0; the region with the highest score is no candidate, and the last row is padding."""
    scores = torch.tensor([[9.0, 0.0, 1.0, 5.0]])
    batch = TaskBatch(
        token_ids=torch.zeros(1, 2, dtype=torch.int64),
        token_types=torch.zeros(1, 2, dtype=torch.int64),
        token_mask=torch.ones(1, 2, dtype=torch.bool),
        region_features=torch.zeros(1, 4, DIM),
        spatials=torch.zeros(1, 4, 5),
        region_mask=torch.tensor([[True, True, True, False]]),
        image_indices=torch.tensor([0]),
        targets=torch.tensor([[-1.0, 1.0, 0.0, 0.0]]),
        task_ids=torch.empty(0, dtype=torch.int64),
        keys=("a",),
    )
    output = compute_candidate_loss(scores, batch)
    assert output.loss.item() == pytest.approx(math.log(2) + math.log(1 + math.e), rel=1e-6)
    assert output.accuracy.item() == 0  # the candidate with IoU 0 has the higher score
    assert compute_candidate_loss(-scores, batch).accuracy.item() == 1


def learn_visual7w(folder: Path) -> tuple[Callable[..., dict[str, float]], dict[str, object]]:
    data = write_visual7w(folder / "dataset_v7w_pointing.json")
    files = {"data": data, "regions": write_regions(folder / "regions", "v7w_{}").folder}
    return visual7w.evaluate_visual7w, files | {"recipe": visual7w.recipe, "train_data": data, "test": data}


def learn_guesswhat(folder: Path) -> tuple[Callable[..., dict[str, float]], dict[str, object]]:
    data = write_games(folder / "guesswhat.train.jsonl", range(TRAINING))
    test = write_games(folder / "guesswhat.test.jsonl", range(TRAINING, IMAGES))
    files = {"data": data, "regions": write_regions(folder / "regions", "COCO_train2014_{:012d}").folder}
    return guesswhat.evaluate_guesswhat, files | {"recipe": guesswhat.recipe, "train_data": data, "test": test}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "prepare"), [("visual7w", learn_visual7w), ("guesswhat", learn_guesswhat)])
def test_a_network_chooses_among_the_candidates_alone(name: str, prepare: Callable, tmp_path: Path):
    """The fifth region is never chosen. The baselines see the candidates alone, too."""
    evaluate, settings = prepare(tmp_path)
    recipe, test, train_data = (settings.pop(key) for key in ("recipe", "test", "train_data"))
    settings |= {"model": write_pretrained(tmp_path / "model", TEXTS), "epochs": 80.0, "batch_size": 32}
    settings |= {"learning_rate": 5e-3, "workers": 0}
    assert train(recipe, settings, tmp_path / "run", device="cpu", precision="fp32") == 0
    regions, out = settings["regions"], tmp_path / "out"
    scores = evaluate(tmp_path / "run", test, regions, train_data=train_data, out=out, device="cpu", precision="fp32")
    assert scores[f"{name}.accuracy"] >= 0.9 and scores[f"{name}.chance_level"] == 0.25
    assert scores[f"{name}.baseline.words_times_regions"] >= 0.75 > scores[f"{name}.baseline.box_geometry"]
    rows = json.loads((out / "predictions.json").read_text())
    assert all(row["answer"] // 10 == int(row["image_id"]) and row["answer"] % 10 < 4 for row in rows)
    blind = evaluate(tmp_path / "run", test, regions, ablate="text", device="cpu", precision="fp32")
    assert blind[f"{name}.accuracy"] <= 0.5


def test_a_store_without_the_candidates_is_refused(tmp_path: Path):
    """A detector's boxes, which miss every candidate by half; a single missing one counts as incorrect."""
    data = write_visual7w(tmp_path / "dataset_v7w_pointing.json")
    with RegionWriter(tmp_path / "regions", DIM, about={}) as writer:
        for image in range(IMAGES):
            corners = np.array([[20 * place, 10, 20 * place + 9, 60] for place in range(4)], np.float32)
            writer.add(str(image), np.ones((4, DIM), np.float32), corners, SIDE, SIDE)
    settings = {"model": write_pretrained(tmp_path / "model", TEXTS), "workers": 0}
    with pytest.raises(DataError, match=r"dataset_v7w_pointing.json.*regions; .*comodal prepare boxes"):
        visual7w.recipe(data=data, regions=tmp_path / "regions", **settings)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda content: content.pop("boxes"), "no lists of boxes and images"),
        (lambda content: content["boxes"][3].update(width="wide"), "box 3: 'width' is 'wide'"),
        (lambda content: content["boxes"][3].update(height=-1), "box 3: the box .* is not left, top, width and height"),
        (
            lambda content: content["images"][1]["qa_pairs"][0].update(answer=7777),
            "image 1: a question has the box 7777",
        ),
        (lambda content: content["images"][1].update(qa_pairs=None), "image 1: 'qa_pairs' is None"),
    ],
)
def test_a_damaged_visual7w_file_is_refused(change: Callable, sentence: str, tmp_path: Path):
    path = write_visual7w(tmp_path / "dataset_v7w_pointing.json")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"dataset_v7w_pointing.json.*{sentence}"):
        read_visual7w_questions(path)


def test_a_damaged_game_is_refused(tmp_path: Path):
    path = write_games(tmp_path / "guesswhat.train.jsonl", range(2))
    path.write_text(path.read_text().replace('"object_id": 1,', '"object_id": 99,'))
    with pytest.raises(DataError, match=r"guesswhat.train.jsonl, line 2: the object 99"):
        read_guesswhat_games(path)
    path.write_text(write_games(path, range(1)).read_text() * 2)
    with pytest.raises(DataError, match=r"guesswhat.train.jsonl: two .* the id 0"):
        read_guesswhat_games(path)


def test_boxes_for_extraction(tmp_path: Path):
    """By the file names of Visual7W, and by those of COCO's files for GuessWhat?!; each box of an image once."""
    images = tmp_path / "images"
    for name in ("v7w_0.jpg", "train2014/COCO_train2014_000000000001.jpg"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIDE, SIDE)).save(images / name)
    assert main(["prepare", "boxes", str(write_visual7w(tmp_path / "v7w.json")), str(tmp_path / "a.jsonl")]) == 0
    first = read_image_boxes(tmp_path / "a.jsonl", images).images[0]
    assert first.image == "v7w_0.jpg"
    assert first.boxes is not None and first.boxes.tolist() == [[x, y, x + w, y + h] for x, y, w, h in BOXES[:4]]
    games = write_games(tmp_path / "guesswhat.jsonl", range(3))
    assert prepare_boxes(games, tmp_path / "b.jsonl", images=images) == BoxCounts(1, 4)
    line = json.loads((tmp_path / "b.jsonl").read_text())
    assert line["image"] == "train2014/COCO_train2014_000000000001.jpg" and len(line["boxes"]) == 4
    with pytest.raises(DataError, match=r"guesswhat.jsonl.*--images"):
        prepare_boxes(games, tmp_path / "b.jsonl")
