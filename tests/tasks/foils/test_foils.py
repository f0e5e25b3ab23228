"""Foils: official files, the numbers of the published scripts, and scores as the whole model gives them."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from comodal.data.captions.caption_dataset import prepend_full_image
from comodal.data.regions.region_store import RegionStore, RegionWriter
from comodal.errors import DataError
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import save_model
from comodal.models.dual_encoder.dual_encoder import DualEncoder, DualEncoderConfig
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import StreamConfig, ViLBERTConfig
from comodal.tasks.foils.foil_files import Foil, read_foils
from comodal.tasks.foils.foil_metrics import (
    ScoredFoils,
    compute_chance_levels,
    compute_foil_metrics,
    measure_shorter_text,
    measure_winoground,
)
from comodal.tasks.foils.foils import evaluate_foils
from tests.support.paths import FIXTURES
from tests.support.plain_retrieval import plain_logits
from tests.support.small_regions import DIM, HEIGHT, WIDTH, some_images

FOILS = FIXTURES / "foils"
PUBLISHED = json.loads((FOILS / "published_metrics.json").read_text())
CONFIG = ViLBERTConfig(
    vocabulary=400,
    positions=60,
    text=StreamConfig(32, 2, 4, 48),
    vision=StreamConfig(24, 2, 2, 40),
    joint_dim=16,
    joint_heads=2,
    co_attention_layers=((0, 0), (1, 1)),
    region_feature_dim=DIM,
    region_targets=5,
)
DUAL_CONFIG = DualEncoderConfig(StreamConfig(16, 1, 2, 24), 400, 60, 0, 2, DIM, 8)


# Files


def test_the_official_files_are_read_as_published():
    valse = read_foils(FOILS / "valse")
    assert (valse.benchmark, len(valse.foils)) == ("valse", 16)
    assert sum(valse.excluded.values()) == 4, "two of each file are not validated"
    assert valse.foils[0].subset == "existence"
    assert valse.foils[0].texts == ("There are no people in the picture.", "There are people in the picture.")
    crepe = read_foils(FOILS / "sugar_crepe" / "swap_obj.json")
    assert crepe.benchmark == "sugar_crepe"
    assert crepe.foils[0][1:3] == (
        ("000000222235.jpg",),
        (
            "A cat sits on its hind legs, and swats at the plant.",
            "A cat sits on the plant, and swats at its hind legs.",
        ),
    )
    relation = read_foils(FOILS / "aro_relation").foils[1]
    assert relation[1:] == (
        ("2300.jpg",),
        ("the dog is wearing the chair", "the chair is wearing the dog"),
        "wearing",
        "2300_10_5_60_40",
    )
    assert len(read_foils(FOILS / "aro_order").foils[0].texts) == 5
    assert read_foils(FOILS / "winoground").foils[0][1:4] == (
        ("ex_0_img_0", "ex_0_img_1"),
        ("a mug on a plate", "a plate on a mug"),
        "Object",
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "it has no foils"),
        ('"text"', "an object or a list"),
        ('{"a": {"caption": "x"}}', "no known benchmark"),
        ('{"a": {"image_file": "a.jpg", "caption": "x", "foil": "y"}}', "item a: 'mturk'"),
        ('{"a": {"filename": "a.jpg", "caption": "", "negative_caption": "y"}}', "item a: 'caption'"),
        ('[{"image": "a", "caption_options": ["x"]}]', "item 0: 'caption_options'"),
        ('[{"image_path": "a", "true_caption": "x", "false_caption": "y", "relation_name": "on"}]', "'bbox_x'"),
        ('{"a": [], "b": 1}', "item a: an object is expected"),
    ],
)
def test_a_damaged_file_is_named_with_the_item(tmp_path: Path, content: str, message: str):
    (tmp_path / "foils.json").write_text(content)
    with pytest.raises(DataError, match=rf"foils\.json.*{message}"):
        read_foils(tmp_path / "foils.json")


def test_files_of_two_benchmarks_are_refused(tmp_path: Path):
    for name in ("valse/existence.json", "sugar_crepe/add_att.json"):
        (tmp_path / Path(name).name).write_bytes((FOILS / name).read_bytes())
    with pytest.raises(DataError, match=r"add_att\.json is SugarCrepe and existence\.json is VALSE"):
        read_foils(tmp_path)


# Metrics


def test_numbers_are_those_of_valses_script():
    """Its acc_r compares the logits of match alone; p_c, p_f and acc compare both logits of a text."""
    foils = read_foils(FOILS / "valse").foils
    logits = [np.array(PUBLISHED["valse"]["logits"][foil.key]) for foil in foils]  # texts by (mismatch, match)
    log_odds = [(one[:, 1] - one[:, 0])[None] for one in logits]
    detected = compute_foil_metrics("valse", ScoredFoils(foils, log_odds, is_log_odds=True))
    ranked = compute_foil_metrics("valse", ScoredFoils(foils, [one[None, :, 1] for one in logits], is_log_odds=False))
    names = {"acc": "detection_accuracy", "p_c": "caption_precision", "p_f": "foil_precision"}
    for subset, published in PUBLISHED["valse"]["published"].items():
        for theirs, ours in names.items():
            assert 100 * detected[f"subset.{subset}.{ours}"] == pytest.approx(published[theirs], abs=5e-3)
        assert 100 * ranked[f"subset.{subset}.pairwise_accuracy"] == pytest.approx(published["acc_r"], abs=5e-3)
    wins = [one[0, 0] > other[0, 1] for one in log_odds for other in log_odds]
    assert detected["auroc"] == pytest.approx(np.mean(wins)), "the Mann-Whitney statistic of captions against foils"


@pytest.mark.parametrize("benchmark", ["sugar_crepe", "aro_relation", "aro_attribution", "aro_order"])
def test_pairwise_accuracy_is_that_of_the_published_scripts(benchmark: Any):
    foil_set, expected = read_foils(FOILS / benchmark), PUBLISHED[benchmark]
    given = expected["scores"]
    scores = [
        np.array([given[foil.key] if isinstance(given, dict) else given[i]]) for i, foil in enumerate(foil_set.foils)
    ]
    found = compute_foil_metrics(benchmark, ScoredFoils(foil_set.foils, scores, is_log_odds=False))
    for subset, accuracy in expected["published"].items():
        assert found[f"subset.{subset}.pairwise_accuracy"] == pytest.approx(accuracy)
    mean = expected.get("macro", np.mean(list(expected["published"].values())))
    assert found["mean.pairwise_accuracy"] == pytest.approx(mean)
    assert "caption_precision" not in found, "a cosine has no threshold"


def test_winogrounds_scores_are_the_published_ones():
    foil_set, expected = read_foils(FOILS / "winoground"), PUBLISHED["winoground"]
    scores = [np.array(one) for one in expected["scores"]]
    found = compute_foil_metrics("winoground", ScoredFoils(foil_set.foils, scores, is_log_odds=True))
    for subset, published in expected["published"].items():
        prefix = "" if subset == "all" else f"subset.{subset}."
        for name in ("text", "image", "group"):
            assert found[f"{prefix}{name}_score"] == pytest.approx(published[name])


def test_random_scores_have_the_chance_levels():
    rng = np.random.default_rng(0)
    wins = [measure_winoground(rng.random((2, 2))) for _ in range(10_000)]
    for name, level in compute_chance_levels(read_foils(FOILS / "winoground").foils).items():
        assert np.mean([one[name] for one in wins]) == pytest.approx(level, abs=0.015)
    assert compute_chance_levels(read_foils(FOILS / "aro_order").foils)["pairwise_accuracy"] == pytest.approx(1 / 5)


def test_equal_scores_are_errors_and_missing_images_too():
    foils = [Foil(str(i), (f"image{i}",), ("a b", "a c"), "all") for i in range(4)]
    scores = [np.array([[1.0, 1.0]]), None, np.array([[2.0, 1.0]]), np.array([[2.0, 0.0]])]
    found = compute_foil_metrics("valse", ScoredFoils(foils, scores, is_log_odds=True))
    assert found["pairwise_accuracy"] == 2 / 4 and found["pairwise_accuracy.predicted"] == pytest.approx(2 / 3)
    assert found["foil_precision"] == 1 / 4, "only log odds of 0 or less reject a text"


def test_the_shorter_text_is_chosen_and_equal_lengths_are_a_random_choice():
    texts = [("one", "one two"), ("one two", "one"), ("a b", "c d"), ("a b", "b a", "c", "d e")]
    foils = [Foil(str(i), ("image",), one, "all") for i, one in enumerate(texts)]
    assert measure_shorter_text(foils).tolist() == [1, 0, 0.5, 0]


# Models


def write_foil_store(folder: Path, names: list[str]) -> RegionStore:
    with RegionWriter(folder, DIM, 0) as writer:
        for name, image in zip(names, some_images([3 + i % 3 for i in range(len(names))]), strict=True):
            writer.add(name, image.features, image.boxes, WIDTH, HEIGHT, None)
    return RegionStore(folder)


def write_run(folder: Path, model: ViLBERT | DualEncoder, texts: list[str]) -> WordPieceTokenizer:
    """A model whose scores differ between texts."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "norm" not in name:
                std = 1.5 * parameter.shape[-1] ** -0.5
                parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    save_model(model, folder / "model", {})
    tokenizer = WordPieceTokenizer.from_texts(texts)
    tokenizer.save(folder / "model")
    return tokenizer


def test_a_vilbert_is_scored_as_the_whole_model_scores_pairs(tmp_path: Path):
    foils = read_foils(FOILS / "valse").foils
    images = sorted({foil.images[0].rpartition(".")[0] for foil in foils})
    store = write_foil_store(tmp_path / "regions", images[1:])
    torch.manual_seed(0)
    model = ViLBERT(CONFIG).eval()
    tokenizer = write_run(tmp_path / "run", model, [text for foil in foils for text in foil.texts])
    out = tmp_path / "out"
    found = evaluate_foils(tmp_path / "run", FOILS / "valse", store.folder, out=out, precision="fp32")
    rows = list(csv.DictReader((out / "foils.csv").read_text().splitlines()))
    assert len(rows) == 2 * len(foils)
    present = [row for row in rows if row["score"]]
    assert {row["image"].rpartition(".")[0] for row in rows if not row["score"]} == {images[0]}
    texts = [torch.tensor(tokenizer.encode(row["text"], 36)) for row in present]
    regions = [
        tuple(map(torch.from_numpy, prepend_full_image(store.read_regions(store.ids.index(row["image"][:-4])), 36)))
        for row in present
    ]
    logits = plain_logits(model, texts, regions)
    expected = logits[:, 0] - logits[:, 1]
    np.testing.assert_allclose([float(row["score"]) for row in present], expected, rtol=1e-4, atol=1e-4)
    wins = expected[::2] > expected[1::2]
    assert found["foils.pairwise_accuracy"] == pytest.approx(wins.sum().item() / len(foils))
    card = json.loads((out / "card.json").read_text())
    assert card["title"] == "Foils, VALSE" and card["counts"]["items"] == len(foils)
    assert card["counts"]["predicted"] == len(present) // 2 < len(foils)
    assert card["scores"]["chance level.pairwise accuracy"]["value"] == 0.5
    assert {"text only.pairwise accuracy", "shorter text.pairwise accuracy", "auroc"} <= card["scores"].keys()


def test_a_dual_encoder_is_scored_by_the_cosine(tmp_path: Path, capsys: pytest.CaptureFixture):
    foils = read_foils(FOILS / "winoground").foils
    store = write_foil_store(tmp_path / "regions", [name for foil in foils for name in foil.images])
    torch.manual_seed(0)
    model = DualEncoder(DUAL_CONFIG).eval()
    tokenizer = write_run(tmp_path / "run", model, [text for foil in foils for text in foil.texts])
    found = evaluate_foils(tmp_path / "run", FOILS / "winoground", store.folder, precision="fp32")
    scores = []
    for foil in foils:
        texts = torch.tensor([tokenizer.encode(text, 36) for text in foil.texts])
        features = [prepend_full_image(store.read_regions(store.ids.index(name)), 36)[0] for name in foil.images]
        with torch.no_grad():
            embedded = [model(texts[:1], None, torch.from_numpy(one)[None], None).image for one in features]
            text = model.embed_text_features(model.compute_text_features(texts, None))
        scores.append(F.cosine_similarity(torch.cat(embedded)[:, None], text, dim=-1).numpy())
    expected = compute_foil_metrics("winoground", ScoredFoils(foils, scores, is_log_odds=False))
    assert {found[f"foils.{name}"] for name in ("text_score",)} == {expected["text_score"]}
    assert found["foils.group_score"] == expected["group_score"] <= found["foils.image_score"]
    assert found["foils.chance_level.group_score"] == 1 / 6 and "foils.shorter_text.pairwise_accuracy" not in found
    assert "Winoground" in capsys.readouterr().out


def test_a_crop_in_the_store_takes_the_place_of_the_image(tmp_path: Path):
    foils = read_foils(FOILS / "aro_relation").foils
    images = sorted({foil.images[0].rpartition(".")[0] for foil in foils})
    store = write_foil_store(tmp_path / "regions", [*images, foils[2].crop])
    torch.manual_seed(0)
    write_run(tmp_path / "run", DualEncoder(DUAL_CONFIG).eval(), [text for foil in foils for text in foil.texts])
    out = tmp_path / "out"
    evaluate_foils(tmp_path / "run", FOILS / "aro_relation", store.folder, out=out, precision="fp32")
    scores = {row["text"]: set() for row in csv.DictReader((out / "foils.csv").read_text().splitlines())}
    for row in csv.DictReader((out / "foils.csv").read_text().splitlines()):
        scores[row["text"]].add((row["image"], row["score"]))
    assert json.loads((out / "card.json").read_text())["settings"]["cropped images"] == 1
    near = {score for image, score in scores["the dog is near the chair"]}
    assert len(near) == 2, "the crop of one image and the whole of another"


def test_a_store_without_any_of_the_images_is_refused(tmp_path: Path):
    store = write_foil_store(tmp_path / "regions", ["another"])
    write_run(tmp_path / "run", DualEncoder(DUAL_CONFIG), ["a"])
    with pytest.raises(DataError, match=r"valse: none of its images is in .*v7w_"):
        evaluate_foils(tmp_path / "run", FOILS / "valse", store.folder)
