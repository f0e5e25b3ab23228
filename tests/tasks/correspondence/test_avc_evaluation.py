"""`evaluate avc` against plain loops, hand-worked numbers, and what a model of one modality can reach."""

import csv
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from comodal.data.shards.shard_reader import ShardReader
from comodal.errors import CheckpointError, DataError
from comodal.hardware import Compute
from comodal.models.checkpoint import save_model
from comodal.models.l3net.clip_classifier import ClipClassifier, ClipClassifierConfig
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.recipes import avc_pretraining, clip_classification
from comodal.tasks.correspondence.avc_evaluation import count_calibration_examples, evaluate_avc
from comodal.tasks.correspondence.clip_features import AVCExampleDataset, ExampleFeatures, compute_example_features
from comodal.tasks.correspondence.pair_decisions import (
    choose_threshold,
    compute_margin_matrix,
    compute_pair_margins,
    draw_example_pairs,
    rank_examples,
)
from comodal.tasks.evaluation.results_card import read_card
from comodal.text_files import read_yaml
from comodal.training.run import train
from tests.support.small_world import write_world

CPU = Compute(torch.device("cpu"))
CONFIG = make_small_l3net_config(4, 24)
CLASSES = ("bright", "dark", "dim")
OPTIONS = {"workers": 0, "device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    for seed, (split, clips) in enumerate((("train", 24), ("validation", 12), ("test", 14))):
        write_world(folder / split, clips, seed=seed, classes=CLASSES)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, whose decisions are neither all right nor all wrong nor all the same."""
    torch.manual_seed(3)
    net, folder = L3Net(CONFIG).eval(), tmp_path_factory.mktemp("model")
    save_model(net, folder, {})
    return folder


def test_every_image_and_audio_is_in_one_pair_of_each_kind():
    groups = np.repeat(np.arange(9), [1, 2, 3, 4, 5, 6, 7, 8, 20])
    pairs = draw_example_pairs(groups, 0)
    for kind in (True, False):
        chosen = pairs.is_match == kind
        assert sorted(pairs.image[chosen]) == sorted(pairs.audio[chosen]) == list(range(len(groups)))
        same_source = groups[pairs.image[chosen]] == groups[pairs.audio[chosen]]
        assert same_source.all() if kind else not same_source.any()
    assert (pairs.image[pairs.is_match] == pairs.audio[pairs.is_match]).all()
    assert not np.array_equal(pairs.audio, draw_example_pairs(groups, 1).audio)


def test_a_decision_by_one_modality_is_at_chance():
    """Whatever the decision is: an image or audio of one matched and one mismatched pair is right in one of them."""
    groups = np.arange(30) // 3
    pairs, of_example = draw_example_pairs(groups, 4), np.random.default_rng(0).random(30) < 0.3
    for examples in (pairs.image, pairs.audio):
        assert (of_example[examples] == pairs.is_match).mean() == 0.5


def test_a_source_with_more_than_half_of_the_clips_is_refused():
    with pytest.raises(DataError, match="more than half"):
        draw_example_pairs(np.array([0, 0, 0, 1, 2]), 0)
    assert len(draw_example_pairs(np.array([0, 0, 1, 1]), 0).image) == 8


def test_the_threshold_is_that_of_a_plain_search():
    rng = np.random.default_rng(0)
    for _ in range(50):
        margins = rng.integers(0, 6, 12) / 8
        is_match = rng.random(12) < 0.5
        threshold = choose_threshold(margins, is_match)
        values = np.unique(margins)
        tried = [(one + other) / 2 for one, other in pairwise(values)]
        best = max(((margins > one) == is_match).mean() for one in tried)
        assert ((margins > threshold) == is_match).mean() == best
    assert choose_threshold(np.array([0.1, 0.2, 0.6, 0.9]), np.array([False, False, True, True])) == pytest.approx(0.4)


def test_ranks_are_those_of_a_plain_loop():
    """Small integers as margins: many ties, which count as ahead. Clips of the same source are no candidates."""
    rng = np.random.default_rng(1)
    margins, groups = rng.integers(0, 5, (12, 12)).astype(float), np.arange(12) // 2
    ranks = rank_examples(margins, groups)
    for clip in range(12):
        others = [other for other in range(12) if groups[other] != groups[clip]]
        assert ranks.image_to_audio[clip] == sum(margins[clip, other] >= margins[clip, clip] for other in others)
        assert ranks.audio_to_image[clip] == sum(margins[other, clip] >= margins[clip, clip] for other in others)
        assert ranks.candidates[clip] == len(others) + 1 == 11


def test_ranks_by_hand():
    margins = np.array([[2.0, 1.0, 0.0], [3.0, 0.0, 1.0], [0.0, 0.0, 5.0]])
    ranks = rank_examples(margins, np.arange(3))
    assert ranks.image_to_audio.tolist() == [0, 2, 0]
    assert ranks.audio_to_image.tolist() == [1, 2, 0]


def test_margins_are_those_of_the_whole_network(shards: Path):
    torch.manual_seed(0)
    net = L3Net(CONFIG).eval()
    examples = AVCExampleDataset(ShardReader(shards / "test"), CONFIG, None, 2, 0)
    features = compute_example_features({"trained": net}, examples, CPU, 0).features["trained"]
    pairs = draw_example_pairs(np.unique(examples.sources, return_inverse=True)[1], 0)
    margins = compute_pair_margins(net, features, pairs)
    matrix = compute_margin_matrix(net, features, 28)
    batch = examples.batch([divmod(n, 14) for n in range(28)])
    with torch.inference_mode():
        for row in range(0, len(margins), 3):
            image, audio = pairs.image[row], pairs.audio[row]
            logits = net(batch.image[[image]], batch.audio[[audio]]).logits[0]
            assert margins[row] == pytest.approx(float(logits[1] - logits[0]), abs=1e-5)
            assert matrix[image, audio] == pytest.approx(margins[row], abs=1e-5)


class CountingTowers(nn.Module):
    """An L3-Net that counts the rows that its towers get."""

    def __init__(self, net: L3Net) -> None:
        super().__init__()
        self.net, self.images, self.seconds = net, 0, 0
        self.fuse_pairs, self.fuse_all_pairs = net.fuse_pairs, net.fuse_all_pairs

    def compute_image_features(self, image: torch.Tensor) -> torch.Tensor:
        self.images += len(image)
        return self.net.compute_image_features(image)

    def compute_audio_features(self, audio: torch.Tensor) -> torch.Tensor:
        self.seconds += len(audio)
        return self.net.compute_audio_features(audio)


def test_towers_see_every_example_once(shards: Path):
    """Except for the rest of the last batch of 64; a pair costs no tower at all."""
    net = CountingTowers(L3Net(CONFIG).eval())
    examples = AVCExampleDataset(ShardReader(shards / "test"), CONFIG, None, 5, 0)
    features = compute_example_features({"trained": net}, examples, CPU, 0).features["trained"]
    pairs = draw_example_pairs(np.unique(examples.sources, return_inverse=True)[1], 0)
    compute_pair_margins(net, features, pairs)
    compute_margin_matrix(net, features, 14)
    assert len(pairs.image) == 2 * 70 and len(features.image) == 70
    assert net.images == net.seconds == 128


def test_examples_depend_on_the_clip_and_not_on_the_other_clips(shards: Path):
    reader = ShardReader(shards / "test")
    few, many = (AVCExampleDataset(reader, CONFIG, clips, 2, 0) for clips in (5, None))
    assert [few.pairs(1, clip) for clip in range(5)] == [many.pairs(1, clip) for clip in range(5)]
    assert {many.pairs(example, 0).start_seconds for example in range(2)} != {many.pairs(0, 0).start_seconds}


def test_the_command_against_a_plain_evaluation(shards: Path, model: Path, tmp_path: Path):
    metrics = evaluate_avc(model, shards, examples_per_clip=3, gallery=9, out=tmp_path / "out", seed=5, **OPTIONS)
    net, reader = L3Net.from_pretrained(model), ShardReader(shards / "test")
    examples = AVCExampleDataset(reader, CONFIG, None, 3, 5)
    batch = examples.batch([divmod(n, 14) for n in range(42)])
    pairs = draw_example_pairs(np.unique(examples.sources, return_inverse=True)[1], 5)
    with torch.inference_mode():
        logits = net(batch.image[pairs.image], batch.audio[pairs.audio]).logits
    correct = (logits.argmax(1) == torch.from_numpy(pairs.is_match).long()).numpy()
    assert metrics["avc.accuracy"] == pytest.approx(correct.mean()) and 0 < correct.mean() < 1
    assert metrics["avc.matched"] == pytest.approx(correct[:42].mean())
    assert metrics["avc.accuracy.low"] < metrics["avc.accuracy"] < metrics["avc.accuracy.high"]
    assert metrics["avc.pairs"] == 84
    labels = [reader.read_record(example % 14)["label"] for example in pairs.image.tolist()]
    for name in set(labels):
        chosen = [label == name for label in labels]
        assert metrics[f"avc.class.{name}"] == pytest.approx(correct[chosen].mean())
    assert {f"avc.class.{name}" for name in set(labels)} == {key for key in metrics if ".class." in key}
    # nine clips, two a source except for the last: seven or eight others
    assert metrics["avc.chance_level.r1"] == pytest.approx((8 / 8 + 1 / 9) / 9)
    rows = list(csv.DictReader((tmp_path / "out" / "classes.csv").read_text().splitlines()))
    assert {row["class"] for row in rows} == set(labels) and sum(int(row["pairs"]) for row in rows) == 84
    card = read_card(tmp_path / "out" / "card.json")
    assert card["scores"]["accuracy"]["value"] == metrics["avc.accuracy"]
    assert card["scores"]["accuracy, untrained"]["low"] is not None
    assert card["scores"]["accuracy, chance level"]["value"] == 0.5 and card["counts"]["source videos"] == 7
    assert "7 source videos" in card["settings"]["95 % interval"]
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == metrics
    assert evaluate_avc(model, shards, examples_per_clip=3, gallery=9, seed=5, **OPTIONS) == metrics


def test_perfect_features_win_everything_and_the_control_does_not():
    """One unit for each clip: every decision is right, and the same model with shuffled audio is at chance."""

    class Product(nn.Module):
        compute_image_features = compute_audio_features = staticmethod(lambda x: x)
        fuse_pairs = ClipClassifier.fuse_pairs
        fuse_all_pairs = ClipClassifier.fuse_all_pairs

    eye, groups = torch.eye(20), np.arange(20)
    pairs = draw_example_pairs(groups, 0)
    right = ExampleFeatures(eye, eye)
    assert ((compute_pair_margins(Product(), right, pairs) > 0.5) == pairs.is_match).all()
    ranks = rank_examples(compute_margin_matrix(Product(), right, 20), groups)
    assert not ranks.image_to_audio.any() and not ranks.audio_to_image.any()
    wrong = ExampleFeatures(eye, eye.roll(7, 0))
    assert ((compute_pair_margins(Product(), wrong, pairs) > 0.5) == pairs.is_match).mean() <= 0.55
    assert rank_examples(compute_margin_matrix(Product(), wrong, 20), groups).image_to_audio.min() == 19


def test_direct_combination_is_the_product_of_probabilities():
    """Probabilities (0.7, 0.3) and (0.2, 0.8): 0.7 x 0.2 + 0.3 x 0.8 = 0.38."""
    net = ClipClassifier(ClipClassifierConfig(CONFIG, 2))
    image, audio = torch.tensor([[0.7, 0.3]]), torch.tensor([[0.2, 0.8], [1.0, 0.0]])
    assert net.fuse_pairs(image, audio[:1])[0].tolist() == pytest.approx([0.0, 0.38])
    assert net.fuse_all_pairs(image, audio)[0, :, 1].tolist() == pytest.approx([0.38, 0.7])
    batch_images = torch.randint(0, 255, (2, 3, 24, 24), dtype=torch.uint8)
    assert net.eval().compute_image_features(batch_images).sum(1).tolist() == pytest.approx([1.0, 1.0])


SMALL = {"variant": "small", "width": 4, "image_size": 24, "batch_size": 16, "workers": 0}


def train_classes(shards: Path, out: Path, **options: object) -> Path:
    plain = {"brightness_jitter": 0.0, "saturation_jitter": 0.0}
    assert train("clip_classes", {"data": shards, **SMALL, **plain, **options}, out, device="cpu") == 0
    return out


def test_fusion_is_trained_on_the_towers_of_classifiers(shards: Path, tmp_path: Path):
    classes = train_classes(shards, tmp_path / "classes", steps=2, validation_pairs=0)
    assert json.loads((classes / "model" / "classes.json").read_text()) == list(CLASSES)
    fusion = {"data": shards, **SMALL, "steps": 2, "start_from": classes, "trained_layers": "fusion"}
    assert train("l3net", fusion | {"validation_pairs": 0}, tmp_path / "fusion", device="cpu") == 0
    towers = ClipClassifier.from_pretrained(classes).l3net.state_dict()
    after = L3Net.from_pretrained(tmp_path / "fusion").state_dict()
    same = {name for name in after if torch.equal(after[name], towers[name])}
    assert {name for name in after if "tower" in name} <= same and not {"fc1.weight", "fc2.weight"} & same
    written = read_yaml(tmp_path / "fusion" / "config.yaml")
    assert written["start_from"] == str(classes) and written["trained_layers"] == "fusion"


@pytest.mark.slow
def test_classifiers_decide_whether_a_pair_corresponds(shards: Path, tmp_path: Path):
    """Three levels of light: classifiers learn them, and the product of their probabilities tells pairs apart."""
    classes = train_classes(shards, tmp_path / "classes", steps=60, learning_rate=3e-3, validation_pairs=16)
    metrics = evaluate_avc(classes, shards, out=tmp_path / "direct", **OPTIONS)
    assert metrics["avc.accuracy"] > 0.7
    card = read_card(tmp_path / "direct" / "card.json")
    assert card["settings"]["threshold split"] == "validation" and 0 < card["settings"]["threshold"] < 1


def test_labels_that_no_classifier_can_take(tmp_path: Path):
    write_world(tmp_path / "none" / "train", 4)
    with pytest.raises(DataError, match="clip0 has 0 labels"):
        clip_classification.recipe(tmp_path / "none", variant="small", workers=0, validation_pairs=0)
    write_world(tmp_path / "one" / "train", 4, classes=("same",))
    with pytest.raises(DataError, match="'same'"):
        clip_classification.recipe(tmp_path / "one", variant="small", workers=0, validation_pairs=0)
    write_world(tmp_path / "other" / "train", 8, classes=("a", "b"))
    write_world(tmp_path / "other" / "validation", 8, classes=("a", "c"))
    with pytest.raises(DataError, match="'c'"):
        clip_classification.recipe(tmp_path / "other", variant="small", image_size=24, workers=0)


def test_models_that_cannot_score_pairs(shards: Path, model: Path, tmp_path: Path):
    net = L3Net(CONFIG)
    nn.init.zeros_(net.fc1.weight)
    save_model(net, tmp_path / "towers", {})
    with pytest.raises(CheckpointError, match="no fusion network"):
        evaluate_avc(tmp_path / "towers", shards)
    save_model(ClipClassifier(ClipClassifierConfig(CONFIG, 3)), tmp_path / "classes", {})
    with pytest.raises(ValueError, match="--threshold-split test"):
        evaluate_avc(tmp_path / "classes", shards, threshold_split="test")
    with pytest.raises(ValueError, match="'testing'"):
        evaluate_avc(model, shards, split="testing")


def small_run(shards: Path, **options: object) -> L3Net:
    run = avc_pretraining.recipe(
        shards, variant="small", width=4, image_size=24, workers=0, validation_pairs=0, **options
    )
    return run.objective.model


def test_a_run_starts_from_the_weights_of_another(shards: Path, model: Path):
    started, other = small_run(shards, start_from=model).state_dict(), L3Net.from_pretrained(model).state_dict()
    assert started.keys() == other.keys() and all(torch.equal(started[name], other[name]) for name in other)
    assert not torch.equal(small_run(shards).fc1.weight, other["fc1.weight"])


def test_a_part_without_weights_keeps_its_initialization(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """As in a folder that was converted from OpenL3's file of one modality."""
    torch.manual_seed(1)
    half = L3Net(CONFIG)
    for module in (half.audio_tower, half.fc1, half.fc2):
        for tensor in module.state_dict().values():
            tensor.zero_()
    save_model(half, tmp_path / "half", {})
    started, fresh = small_run(shards, start_from=tmp_path / "half"), small_run(shards)
    for name, tensor in started.state_dict().items():
        origin = half if name.startswith("image_tower") else fresh
        assert torch.equal(tensor, origin.state_dict()[name]), name
    said = capsys.readouterr().out
    assert "no audio tower" in said and "no fusion network" in said and "image tower" not in said


def test_a_network_of_another_shape_is_refused(shards: Path, model: Path):
    with pytest.raises(CheckpointError, match=r"width 4, not 8"):
        avc_pretraining.recipe(shards, variant="small", width=8, start_from=model, workers=0)
    with pytest.raises(ValueError, match="--start-from"):
        avc_pretraining.recipe(shards, variant="small", trained_layers="fusion", workers=0)


def test_frozen_towers_keep_their_statistics_and_get_no_gradient(shards: Path, model: Path):
    run = avc_pretraining.recipe(
        shards, variant="small", width=4, image_size=24, start_from=model, trained_layers="fusion", workers=0
    )
    objective = run.objective.train()
    batch = next(run.batches.iterate_batches())
    before = {name: tensor.clone() for name, tensor in objective.model.image_tower.state_dict().items()}
    objective(batch)["loss"].backward()
    assert all(torch.equal(before[name], one) for name, one in objective.model.image_tower.state_dict().items())
    with_gradient = {name for name, one in objective.model.named_parameters() if one.grad is not None}
    assert with_gradient == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
    optimized = [one for group in run.optimizer.param_groups for one in group["params"]]
    assert len(optimized) == 4 and objective.model.fc1.training


def test_an_eighth_of_the_examples_calibrates():
    assert [count_calibration_examples(count) for count in (8, 40, 512, 4000)] == [8, 32, 64, 256]
