"""First answers, first five, the class table and the card: numbers worked by hand, and when the paper's stand there."""

import csv
from pathlib import Path

import numpy as np
import pytest

from comodal.tasks.evaluation.class_folders import LabeledFile
from comodal.tasks.evaluation.results_card import read_card, write_card
from comodal.tasks.image import imagenet_files
from comodal.tasks.image.image_probe import ImageProbeResult
from comodal.tasks.image.image_results import ImageResults
from comodal.tasks.image.imagenet_files import LabeledImages

CLASSES = [f"n0000000{number}" for number in range(7)]
PAPERS_WAY = {"layer": "conv4_2", "pooling": "max", "grid": 4, "crops": "center", "classifier": "logistic"}


def results_of(folder: Path, settings: dict) -> ImageResults:
    """Four test pictures of classes 0, 1, 1, 2, and what two systems say of them."""
    items = []
    for number, place in enumerate([*range(7), 0, 1, 1, 2]):
        path = folder / f"ILSVRC2012_val_{number:08d}.JPEG"
        path.write_bytes(b"x" * number)
        items.append(LabeledFile(path, path.name, CLASSES[place], number >= 7))
    trained = np.array([[0, 1, 2, 3, 4], [2, 3, 4, 5, 1], [1, 0, 2, 3, 4], [0, 1, 3, 4, 5]])
    untrained = np.array([[6, 5, 4, 3, 2]] * 4)
    found = {"trained": ImageProbeResult(trained, 0.01, "lbfgs"), "untrained": ImageProbeResult(untrained, 0.1, "adam")}
    pictures = LabeledImages(items, "val", {CLASSES[1]: "tench"}, {}, {"label without a picture": 3}, True)
    return ImageResults(folder, "run", pictures, items[7:], len(items[7:]), found, settings, 0)


def test_first_answers_and_the_first_five(tmp_path: Path):
    numbers = results_of(tmp_path, PAPERS_WAY).compute_metrics()
    assert numbers["vision.trained"] == 0.5  # pictures 0 and 2
    assert numbers["vision.trained.top5"] == 0.75  # picture 1 too: its class is the fifth answer
    assert numbers["vision.untrained"] == 0.0
    assert numbers["vision.untrained.top5"] == 0.25
    assert numbers["vision.chance_level"] == 0.5


def test_the_table_of_classes_says_what_each_is_taken_for(tmp_path: Path):
    results = results_of(tmp_path, PAPERS_WAY)
    rows = list(csv.DictReader(results.build_comparison().format_class_table().splitlines()))
    assert rows[1]["class"] == f"{CLASSES[1]} tench"
    assert (rows[1]["items"], rows[1]["trained recall"], rows[1]["trained precision"]) == ("2", "0.5000", "1.0000")
    assert rows[1]["trained confused with"] == CLASSES[2]
    assert rows[0]["trained precision"] == "0.5000"  # picture 3 was called class 0
    assert rows[5]["items"] == "0"


@pytest.mark.parametrize(
    ("counts", "changed", "paper"),
    [
        ((7, 4, 7), {}, 0.323),
        ((7, 4, 7), {"layer": "conv3_2"}, None),
        ((7, 4, 7), {"crops": "ten"}, None),
        ((1_281_167, 50_000, 1000), {}, None),
    ],
)
def test_the_papers_number_stands_beside_the_papers_cell_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: tuple, changed: dict, paper: float | None
):
    """As if ImageNet were these few pictures, and as it is."""
    for name, count in zip(("NUM_TRAINING_IMAGES", "NUM_VALIDATION_IMAGES", "NUM_CLASSES"), counts, strict=True):
        monkeypatch.setattr(imagenet_files, name, count)
    results = results_of(tmp_path, {**PAPERS_WAY, **changed})
    write_card(results.build_card(results.compute_metrics()), tmp_path / "out")
    card = read_card(tmp_path / "out" / "card.json")
    assert card["scores"]["top-1"]["paper"] == paper
    assert card["scores"]["top-1 untrained"]["paper"] == (0.129 if paper else None)
    assert card["scores"]["top-5"]["paper"] is None
    assert card["counts"] == {"items": 4, "predicted": 4, "fitted": 7, "label without a picture": 3}
    assert (card["title"], card["split"]) == ("ImageNet", "val")
    assert card["settings"]["C trained"] == 0.01
