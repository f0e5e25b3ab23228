"""The choice of four: what is near, what is never a wrong answer, and that a network learns by it."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from comodal.data.captions.caption_files import Caption
from comodal.data.regions.region_store import RegionStore
from comodal.errors import CheckpointError, DataError
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import load_model, save_model
from comodal.models.vilbert.heads import Head
from comodal.models.vilbert.task_model import TaskModel, TaskModelConfig
from comodal.tasks.retrieval.caption_retrieval import evaluate_retrieval, recipe
from comodal.tasks.retrieval.hard_negatives import FourWayDataset, compute_mean_features, find_nearest_images
from comodal.training.run import train
from tests.support.small_tasks import COLOURS, colour_of, write_colours, write_pretrained

SENTENCES = [f"a {colour} thing" for colour in COLOURS]


@pytest.fixture
def store(tmp_path: Path) -> RegionStore:
    return write_colours(tmp_path / "regions")


def captions_of(images: int, each: int = 1) -> list[tuple[Caption, int]]:
    return [
        (Caption((str(image),), f"{SENTENCES[colour_of(image)]} {number * image}", None, f"{image}#{number}"), image)
        for image in range(images)
        for number in range(each)
    ]


def choices_of(store: RegionStore, captions: list[tuple[Caption, int]], seed: int = 0) -> FourWayDataset:
    return FourWayDataset(
        captions, store, WordPieceTokenizer.from_texts(caption.caption for caption, _ in captions), 20, seed
    )


def test_near_images_are_those_that_scikit_learn_finds():
    features = np.random.default_rng(0).normal(size=(60, 7)).astype(np.float32)
    found = find_nearest_images(torch.from_numpy(features), 5)
    theirs = NearestNeighbors(n_neighbors=6).fit(features).kneighbors(features, return_distance=False)[:, 1:]
    assert found.tolist() == theirs.tolist()


def test_the_mean_feature_of_an_image_without_regions_is_nothing(store: RegionStore):
    means = compute_mean_features(store, np.array([3, 7]))
    expected = store.read_regions(7).features.astype(np.float32).mean(0)
    np.testing.assert_allclose(means[1].numpy(), expected, rtol=1e-6)


def test_the_first_of_four_is_right_and_no_other_is(store: RegionStore):
    captions = captions_of(20, each=3)
    choices = choices_of(store, captions)
    said = [set[tuple]() for _ in range(20)]
    for text, (_, row) in zip(choices.texts, captions, strict=True):
        said[row].add(tuple(text.token_ids))
    sides: Counter[str] = Counter()
    for epoch in range(3):
        for index, (_, row) in enumerate(captions):
            example = choices.example(epoch, index)
            words = [tuple(text.token_ids) for text in example.texts]
            assert example.target == 0
            assert (example.texts[0], example.rows[0]) == (choices.texts[index], row)
            belongs = [text in said[image] for text, image in zip(words, example.rows, strict=True)]
            assert belongs == [True, False, False, False]
            assert example.rows[1] == row and words[2] == words[0]
            assert (example.rows[3] == row) != (words[3] == words[0])
            sides["caption" if example.rows[3] == row else "image"] += 1
    assert sides["caption"] / sides.total() == pytest.approx(0.5, abs=0.1)  # both sides are hard in turn


def test_the_hard_one_is_near(store: RegionStore):
    choices = choices_of(store, captions_of(40, each=2))
    choices.nearest = choices.nearest[:, :3]  # of ten pictures of a colour, the three nearest have that colour
    hard = [choices.example(0, index) for index in range(1, 80, 2)]  # those that are said of one picture alone
    of_images = [(example.rows[0], example.rows[3]) for example in hard if example.rows[3] != example.rows[0]]
    assert np.mean([colour_of(row) == colour_of(other) for row, other in of_images]) > 0.9  # by chance a quarter


def test_chance_is_the_epoch_and_the_seed(store: RegionStore):
    first, again, other = (choices_of(store, captions_of(20), seed) for seed in (0, 0, 1))
    assert first.example(1, 4) == again.example(1, 4)
    assert [first.example(0, i).rows for i in range(20)] != [first.example(1, i).rows for i in range(20)]
    assert [first.example(0, i).rows for i in range(20)] != [other.example(0, i).rows for i in range(20)]


def test_one_image_alone_is_told(store: RegionStore):
    with pytest.raises(DataError, match="all captions are of one image"):
        choices_of(store, captions_of(1, each=3))


def write_captions(path: Path) -> Path:
    lines = [
        {"image": str(image), "caption": SENTENCES[colour_of(image)], "split": "test" if image >= 36 else "train"}
        for image in range(40)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_fine_tuning_finds_what_pretraining_did_not(store: RegionStore, tmp_path: Path):
    run, captions = write_pretrained(tmp_path / "run", SENTENCES), write_captions(tmp_path / "captions.jsonl")
    settings = {
        "model": run, "captions": captions, "regions": store.folder, "epochs": 40.0, "batch_size": 12,
        "learning_rate": 3e-3, "workers": 0,
    }  # fmt: skip
    assert train(recipe, settings, tmp_path / "tuned", device="cpu", precision="fp32") == 0
    found = evaluate_retrieval(tmp_path / "tuned", captions, store.folder, out=tmp_path / "out")
    assert found["retrieval.text_to_image.r1"] == 1.0  # four held-out pictures, one of each colour
    assert found["retrieval.image_to_text.r1"] == 1.0
    assert json.loads((tmp_path / "out" / "card.json").read_text())["title"] == "Retrieval, fine-tuned"
    evaluate_retrieval(tmp_path / "tuned", captions, store.folder, zero_shot=True, out=tmp_path / "aligned")
    assert json.loads((tmp_path / "aligned" / "card.json").read_text())["title"] == "Retrieval, zero-shot"


def test_a_model_for_another_task_is_told(store: RegionStore, tmp_path: Path):
    run = write_pretrained(tmp_path / "run", SENTENCES)
    config = TaskModelConfig(load_model(run).config, (Head("vqa", "answers", 3, 4),))
    save_model(TaskModel(config), tmp_path / "vqa", {})
    (tmp_path / "vqa" / "tokenizer.json").write_bytes((run / "model" / "tokenizer.json").read_bytes())
    with pytest.raises(CheckpointError, match="is fine-tuned for vqa, not for retrieval; use --zero-shot"):
        evaluate_retrieval(tmp_path / "vqa", write_captions(tmp_path / "captions.jsonl"), store.folder)
