"""Retrieval of images and audio against plain loops, scikit-learn and numbers worked by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cross_decomposition import CCA
from sklearn.metrics import ndcg_score

from comodal.cli.program import main
from comodal.data.shards.shard_reader import ShardReader
from comodal.errors import CheckpointError
from comodal.models.ave_net.ave_net import AVENet, AVENetConfig
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.models.l3net.spectrogram import SMALL_SPECTROGRAM_CONFIG
from comodal.tasks.correspondence.class_ranking import find_shared_labels, rank_by_class
from comodal.tasks.correspondence.clip_features import AVCExampleDataset
from comodal.tasks.correspondence.clip_retrieval import ClipScores
from comodal.tasks.correspondence.linear_alignment import fit_linear_alignment
from comodal.tasks.cross_modal_retrieval import evaluate_cross_modal_retrieval
from tests.support.small_world import write_world

CONFIG = AVENetConfig(image_size=24, spectrogram=SMALL_SPECTROGRAM_CONFIG, width=2, first_stride=1)
CLASSES = ("bright", "dark")
OPTIONS = {"workers": 0, "device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, an AVE-Net and an L3-Net of random weights."""
    folder = tmp_path_factory.mktemp("world")
    for seed, (split, clips) in enumerate((("train", 24), ("validation", 14))):
        write_world(folder / "shards" / split, clips, seed=seed, classes=CLASSES)
    torch.manual_seed(3)
    save_model(AVENet(CONFIG).eval(), folder / "ave_net", {})
    save_model(L3Net(make_small_l3net_config(2, 24)).eval(), folder / "l3net", {})
    return folder


def test_canonical_correlations_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((400, 3)) * [3, 2, 1]
    image = shared @ rng.standard_normal((3, 6)) + rng.standard_normal((400, 6))
    audio = shared @ rng.standard_normal((3, 5)) + rng.standard_normal((400, 5))
    found = fit_linear_alignment(image, audio, ridge=0.0)
    first, second = CCA(3, max_iter=5000, tol=1e-9).fit_transform(image, audio)
    expected = [np.corrcoef(first[:, i], second[:, i])[0, 1] for i in range(3)]
    np.testing.assert_allclose(found.correlations[:3], expected, atol=1e-4)
    projected = (image - found.image_mean) @ found.image_weights
    covariance = projected.T @ projected / len(image)
    np.testing.assert_allclose(covariance, np.diag(found.correlations), atol=1e-8)


def test_a_ridge_finds_held_out_pairs_where_features_outnumber_pairs():
    rng = np.random.default_rng(1)
    shared, noise = rng.standard_normal((140, 4)), 0.1
    image = shared @ rng.standard_normal((4, 200)) + noise * rng.standard_normal((140, 200))
    audio = shared @ rng.standard_normal((4, 150)) + noise * rng.standard_normal((140, 150))
    scores = fit_linear_alignment(image[:100], audio[:100]).score_all_pairs(image[100:], audio[100:])
    assert (scores.argmax(1) == np.arange(40)).mean() > 0.9


def test_ranking_by_class_is_scikit_learns_ndcg_and_a_count():
    rng = np.random.default_rng(2)
    labels = [(str(n),) if n < 3 else ("0", "1") for n in rng.integers(0, 4, 50)]
    relevant, scores = find_shared_labels(labels), rng.standard_normal((50, 50))
    assert relevant[labels.index(("0", "1"))].tolist() == [bool({"0", "1"} & set(one)) for one in labels]
    found = rank_by_class(scores, relevant, np.ones((50, 50), dtype=bool))
    assert found.ndcg.mean() == pytest.approx(ndcg_score(relevant, scores, k=30))
    for row, order in enumerate((-scores).argsort(1)):
        assert found.precision[row] == relevant[row, order[:10]].mean()


def test_a_random_order_has_the_chance_levels_and_equal_scores_are_no_better():
    rng = np.random.default_rng(3)
    relevant, candidates = np.arange(40)[:, None] % 4 == np.arange(40) % 4, np.ones((40, 40), dtype=bool)
    drawn = [rank_by_class(rng.random((40, 40)), relevant, candidates) for _ in range(50)]
    for name in ("precision", "ndcg"):
        expected = getattr(drawn[0], f"random_{name}").mean()
        assert np.mean([getattr(one, name).mean() for one in drawn]) == pytest.approx(expected, abs=0.01)
    equal = rank_by_class(np.zeros((40, 40)), relevant, candidates)
    assert equal.precision.max() == 0, "the relevant ones come last"


def test_ranks_by_hand_of_two_gallery_sizes():
    """Clip 3 is of the source of clip 0, so it is no candidate of it."""
    scores = np.array([[5, 6, 1, 9], [0, 7, 1, 1], [9, 9, 2, 1], [9, 1, 2, 3]], np.float64)
    scored = ClipScores({"trained": scores}, ["a", "b", "c", "a"], [("x",), ("x",), ("y",), ("y",)])
    found = scored.compute_metrics([2])
    assert found["image_to_audio.r1"] == 2 / 4 and found["image_to_audio.median"] == 1
    assert found["audio_to_image.r1"] == 1 / 4
    assert found["gallery.2.image_to_audio.r1"] == 1 / 2 and found["gallery.2.clips"] == 2
    assert found["chance_level.r1"] == pytest.approx((1 / 3 + 1 / 4 + 1 / 4 + 1 / 3) / 4)


def test_the_command_against_a_plain_evaluation(world: Path, tmp_path: Path):
    shards, out = world / "shards", tmp_path / "out"
    found = evaluate_cross_modal_retrieval(
        world / "ave_net", data=shards, galleries=(5,), linear_map=world / "l3net", out=out, **OPTIONS
    )
    examples = AVCExampleDataset(ShardReader(shards / "validation"), CONFIG, None, 1, 0)
    batch = examples.batch([(0, clip) for clip in range(14)])
    with torch.inference_mode():
        output = AVENet.from_pretrained(world / "ave_net").eval()(batch.image, batch.audio)
    similarity = (output.image_features @ output.audio_features.T).numpy()
    sources = np.array(examples.sources)
    ranks = [1 + int(((row >= row[i]) & (sources != sources[i])).sum()) for i, row in enumerate(similarity)]
    assert found["retrieval.image_to_audio.r5"] == pytest.approx(np.mean(np.array(ranks) <= 5))
    assert found["retrieval.image_to_audio.mean"] == pytest.approx(np.mean(ranks))
    small, of_small = similarity[:5, :5], sources[:5]
    ranks = [1 + int(((row >= row[i]) & (of_small != of_small[i])).sum()) for i, row in enumerate(small)]
    assert found["retrieval.gallery.5.image_to_audio.mean"] == pytest.approx(np.mean(ranks))
    candidates = np.array([1 + (sources != source).sum() for source in sources])
    assert found["retrieval.chance_level.r10"] == pytest.approx(np.minimum(10 / candidates, 1).mean())
    card = json.loads((out / "card.json").read_text())
    assert card["counts"] == {"items": 14, "source videos": len(set(sources))}
    assert card["settings"]["linear map"].endswith("fitted on 24 clips of train")
    names = {
        "image to audio r10, 14 clips",
        "audio to image r10, linear map, 5 clips",
        "ndcg30, chance level, 14 clips",
    }
    assert names <= card["scores"].keys()


def test_options_of_the_other_kind_are_refused(world: Path, capsys: pytest.CaptureFixture):
    model, data = world / "ave_net", world / "shards"
    with pytest.raises(ValueError, match="other options are for captions"):
        evaluate_cross_modal_retrieval(model, data=data, rerank=5)
    with pytest.raises(ValueError, match="leave out --captions"):
        evaluate_cross_modal_retrieval(model, data=data, captions=data)
    with pytest.raises(ValueError, match="add --data"):
        evaluate_cross_modal_retrieval(model, captions=data, regions=data, galleries=(5,))
    with pytest.raises(ValueError, match="'all'"):
        evaluate_cross_modal_retrieval(model, data=data, split="all")
    with pytest.raises(CheckpointError, match="--linear-map needs an L3-Net"):
        evaluate_cross_modal_retrieval(model, data=data, linear_map=model, **OPTIONS)
    assert main(["evaluate", "retrieval", "--model", str(model)]) != 0
    assert "--captions and --regions" in " ".join(capsys.readouterr().err.split())
