"""Zero-shot retrieval: metrics as the original gives them, the fast scores as the plain ones, and what must be told."""

import csv
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from comodal.data.captions.caption_dataset import CaptionDataset, MaskingConfig
from comodal.data.captions.caption_files import Caption
from comodal.data.regions.region_store import RegionStore
from comodal.errors import CheckpointError, DataError
from comodal.hardware import Compute
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import save_model
from comodal.models.vilbert import single_stream
from comodal.models.vilbert.single_stream import SingleStream
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import StreamConfig, ViLBERTConfig
from comodal.tasks.evaluation.results_card import results
from comodal.tasks.retrieval import first_stage, pair_scores
from comodal.tasks.retrieval.caption_retrieval import RetrievalSettings, build_ranking_method, evaluate_retrieval
from comodal.tasks.retrieval.first_stage import (
    EncodingProjection,
    EncodingProjections,
    TwoStageSearch,
    optimize_projections,
)
from comodal.tasks.retrieval.gallery import Gallery, RetrievalData
from comodal.tasks.retrieval.pair_scores import PairScorer
from comodal.tasks.retrieval.retrieval_ranks import (
    compute_hit_probability,
    compute_random_recall,
    list_image_answers,
    list_text_answers,
    rank_best_answer,
    rank_score_matrix,
    reorder_by_caption,
    summarize_ranks,
)
from tests.support.plain_retrieval import plain_logits
from tests.support.small_regions import DIM, TOKENS, some_images, write_store
from tests.support.vilbert_fixtures import FIXTURES, model_of, tensors, text_inputs, vision_inputs

SENTENCES = [
    "a red ball",
    "a blue bell rings loudly",
    "a red ball",  # of another image
    "the bird sings",
    "a frog",
    "two green frogs sit on the old drum",
    "the horn is left of the small clock",
]
IMAGES = [0, 1, 2, 3, 0, 1, 4]
CONFIG = ViLBERTConfig(
    vocabulary=80,
    positions=16,
    text=StreamConfig(32, 3, 4, 48),
    vision=StreamConfig(24, 2, 2, 40),
    joint_dim=16,
    joint_heads=2,
    co_attention_layers=((0, 1), (1, 2)),
    region_feature_dim=DIM,
    region_targets=5,
)


def lively(model: torch.nn.Module) -> torch.nn.Module:
    """Weights so large that pairs differ."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                deviation = 1.5 * parameter.shape[-1] ** -0.5
                parameter.copy_(deviation * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def captions_of(sentences: list[str], images: list[int]) -> list[tuple[Caption, int]]:
    return [
        (Caption((f"image{image}",), text, None, str(place)), image)
        for place, (text, image) in enumerate(zip(sentences, images, strict=True))
    ]


@pytest.fixture
def store(tmp_path: Path) -> RegionStore:
    return write_store(tmp_path / "regions", some_images([3, 6, 3, 1, 0]))


@pytest.fixture
def gallery(store: RegionStore) -> Gallery:
    return Gallery(captions_of(SENTENCES, IMAGES), store, WordPieceTokenizer.from_texts(SENTENCES), 16, 5)


# Metrics


def test_recall_and_median_are_the_originals():
    expected = json.loads((FIXTURES / "data" / "retrieval_metrics.json").read_text())
    numbers = summarize_ranks(np.array(expected["rank"]))
    assert [100 * numbers[name] for name in ("r1", "r5", "r10")] == [expected[name] for name in ("r1", "r5", "r10")]
    assert (numbers["median"], numbers["mean"]) == (expected["medr"], expected["meanr"])


def test_ranks_are_the_originals_where_no_score_is_equal_to_the_right_ones():
    expected = json.loads((FIXTURES / "data" / "retrieval_metrics.json").read_text())
    alone = 0
    for scores, right, rank in zip(expected["scores"], expected["target"], expected["rank"], strict=True):
        row = np.array(scores)
        ours = rank_best_answer(row, np.array([right]), np.ones(len(row), np.int64))
        equal = int((row == row[right]).sum()) - 1
        assert ours - equal <= rank <= ours  # the original's order of equal scores is open; ours is its worst
        alone += equal == 0
    assert alone > 10


def test_a_network_that_gives_everything_one_score_finds_nothing(gallery: Gallery):
    ranks = rank_score_matrix(np.zeros((6, 5), np.float32), gallery)
    assert ranks.text_to_image.tolist() == [4] * 7
    # of 7 captions, each image's own: image 0 has two, and "a red ball" of image 2 is in image 0's words
    assert ranks.image_to_text.tolist() == [4, 5, 5, 6, 6]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_no_numbers_rank_nothing(gallery: Gallery, value: float):
    """NaN compares false with everything: no wrong answer would stand before the right one, and R@1 would be 1."""
    scores = np.zeros((6, 5), np.float32)
    scores[3, 0] = value
    with pytest.raises(DataError, match="NaN or infinite"):
        rank_score_matrix(scores, gallery)


def test_ranks_worked_out_by_hand(gallery: Gallery):
    assert gallery.texts_of[0].tolist() == [0, 3]  # texts in the order in which they first occur
    scores = np.array(  # texts x images
        [
            [
                5.0,
                1.0,
                4.0,
                0.0,
                6.0,
            ],  # "a red ball", of images 0 and 2: one better than the first, two than the second
            [0.0, 9.0, 0.0, 0.0, 0.0],
            [0.0, 2.0, 3.0, 1.0, 7.0],  # of image 3: three better
            [2.0, 3.0, 0.0, 0.0, 0.0],  # of image 0
            [1.0, 8.0, 9.0, 2.0, 0.0],  # of image 1
            [6.0, 0.0, 0.0, 3.0, 5.0],  # of image 4
        ],
        np.float32,
    )
    ranks = rank_score_matrix(scores, gallery)
    assert ranks.text_to_image.tolist() == [1, 0, 2, 3, 1, 1, 1]
    # image 4's column: 7 and twice 6 (two captions in the same words) stand before its 5
    assert ranks.image_to_text.tolist() == [1, 0, 1, 2, 3]


def test_chance_is_what_drawing_by_chance_gives(gallery: Gallery):
    rng = np.random.default_rng(0)
    drawn = [rank_score_matrix(rng.random((6, 5)).astype(np.float32), gallery) for _ in range(1000)]
    expected = compute_random_recall(gallery)
    assert expected["text_to_image.r1"] == pytest.approx(1 / 5)
    assert expected["text_to_image.r10"] == 1
    assert np.mean([ranks.text_to_image < 1 for ranks in drawn]) == pytest.approx(0.2, abs=0.02)
    assert compute_hit_probability(7, 2, 1) == pytest.approx(2 / 7)
    assert compute_hit_probability(7, 2, 5) == pytest.approx(1 - 1 / math.comb(7, 5))  # the five wrong ones alone
    assert compute_hit_probability(3, 2, 5) == 1


# Scores


def all_pairs(gallery: Gallery) -> tuple[np.ndarray, np.ndarray]:
    texts, images = len(gallery.lengths), len(gallery.counts)
    return np.repeat(np.arange(texts), images), np.tile(np.arange(images), texts)


def plain_scores(model: torch.nn.Module, gallery: Gallery, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    texts, images = all_pairs(gallery)

    def convert(values: torch.Tensor) -> torch.Tensor:  # visual tokens are integers
        return values.to(dtype) if values.is_floating_point() else values

    return plain_logits(
        model,
        [gallery.get_token_ids(i) for i in texts.tolist()],
        [tuple(convert(one) for one in gallery.get_image(i)[:2]) for i in images.tolist()],
        words=14,
    )


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("schedule", [((0, 1), (1, 2)), ((1, 0),), ()])
def test_cached_scores_are_the_plain_ones(gallery: Gallery, schedule: tuple, dynamic: bool):
    model = lively(ViLBERT(replace(CONFIG, co_attention_layers=schedule, dynamic_attention=dynamic)))
    fast = torch.from_numpy(PairScorer(model, gallery, batch_size=4).score_pairs(*all_pairs(gallery)))
    logits = plain_scores(model.double(), gallery, torch.float64).float()  # fp32 itself is off by as much
    assert logits[:, 0].std() > 0.05 or not schedule
    torch.testing.assert_close(fast, logits[:, 0] - logits[:, 1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fast.sigmoid(), logits.softmax(1)[:, 0], atol=1e-6, rtol=0)


SINGLE = single_stream.SingleStreamConfig(80, 16, 0, 2, CONFIG.text, 0, 5, TOKENS + 3)


@pytest.mark.parametrize(
    "of_tokens",
    [
        partial(ViLBERT, replace(CONFIG, num_visual_tokens=TOKENS + 3)),
        partial(SingleStream, SINGLE),
        partial(SingleStream, replace(SINGLE, text=replace(CONFIG.text, layers=1))),
    ],
    ids=["two streams", "one stream", "one layer"],
)
def test_cached_scores_are_the_plain_ones_of_visual_tokens(store: RegionStore, of_tokens: Callable):
    words = WordPieceTokenizer.from_texts(SENTENCES)
    gallery = Gallery(captions_of(SENTENCES, IMAGES), store, words, 16, 5, has_visual_tokens=True)
    model = lively(of_tokens())
    logits = plain_scores(model, gallery)
    fast = torch.from_numpy(PairScorer(model, gallery).score_pairs(*all_pairs(gallery)))
    torch.testing.assert_close(fast, logits[:, 0] - logits[:, 1], atol=1e-5, rtol=1e-5)


def test_the_original_scores_one_caption_and_many_images_alike():
    """Its own weights, inputs and softmax of the alignment, from prefixes."""
    folder = FIXTURES / "fast_mode_1caption_4images"
    model, inputs = model_of(folder), tensors(folder, "inputs")
    with torch.no_grad():
        text = model.encode_text(*text_inputs(inputs))
        vision = model.encode_image(*vision_inputs(inputs))
        once = text.select_rows(torch.zeros(len(vision.hidden_states), dtype=torch.int64))
        logits = model.alignment_head(*model.fuse_pooled(once, vision))
    expected = tensors(folder, "outputs")["zero_shot_score"].flatten()
    torch.testing.assert_close((logits[:, 0] - logits[:, 1]).sigmoid(), expected, atol=1e-6, rtol=1e-6)


def test_an_image_is_what_the_model_saw_of_it_in_training(gallery: Gallery, store: RegionStore):
    captions = CaptionDataset(
        captions_of(SENTENCES, IMAGES),
        store,
        WordPieceTokenizer.from_texts(SENTENCES),
        0,
        1,
        16,
        5,
        MaskingConfig(token_probability=0.0, region_probability=0.0),
    )
    for index in range(len(captions)):
        batch = captions.batch([(0, index)])
        image = int(batch.keys[0].split(",")[0].removeprefix("image image"))
        seen = gallery.get_image(image)
        torch.testing.assert_close(seen.features, batch.region_features[0])
        torch.testing.assert_close(seen.spatials, batch.spatials[0])


def test_scores_do_not_depend_on_what_is_kept_or_how_much_goes_together(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
):
    model = lively(ViLBERT(CONFIG))
    matrix = PairScorer(model, gallery).score_all_pairs()
    monkeypatch.setattr(pair_scores, "MAX_CACHE_BYTES", 1000)
    monkeypatch.setattr(pair_scores, "TILE_SIDE", 2)
    scorer = PairScorer(model, gallery, batch_size=1)
    np.testing.assert_allclose(scorer.score_all_pairs(), matrix, atol=1e-5)
    assert 0 < len(scorer.images.cached) < 5  # some are there, others were computed again


def test_bf16_orders_pairs_nearly_as_fp32(gallery: Gallery):
    model = lively(ViLBERT(CONFIG))
    exact, half = (
        PairScorer(model, gallery, Compute(torch.device("cpu"), precision)).score_all_pairs().ravel()
        for precision in ("fp32", "bf16")
    )
    assert np.abs(half - exact).max() < 0.2 * exact.std()
    assert np.corrcoef(exact.argsort().argsort(), half.argsort().argsort())[0, 1] > 0.98
    assert len(set(half.tolist())) == len(set(exact.tolist()))  # the head is fp32, so that nothing becomes equal


# Two stages


def test_linear_maps_find_what_belongs_together():
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((240, 6))
    texts, images = (
        torch.from_numpy((hidden @ rng.standard_normal((6, size)) + 0.2 * rng.standard_normal((240, size))).astype("f"))
        for size in (20, 30)
    )
    maps = optimize_projections(texts[:200], images[:200], [np.array([i]) for i in range(200)], rng)
    with torch.no_grad():
        near = maps.text(texts[200:]) @ maps.image(images[200:]).T
    assert (near.argmax(1) == torch.arange(40)).float().mean() > 0.8  # chance: 1 in 40


class OneNumber(EncodingProjection):
    """Sorts by the first feature alone."""

    def __init__(self, sign: float) -> None:
        torch.nn.Module.__init__(self)
        self.sign = sign

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.sign * features[:, :1]


def test_with_everything_kept_two_stages_are_the_exact_ranks(gallery: Gallery):
    scorer = PairScorer(lively(ViLBERT(CONFIG)), gallery)
    exact = rank_score_matrix(scorer.score_all_pairs(), gallery)
    search = TwoStageSearch(scorer, EncodingProjections(OneNumber(1.0), OneNumber(1.0)))
    by_text = search.rank_images_for_texts(np.arange(6), list_text_answers(gallery), top_k=99)
    by_image = search.rank_texts_for_images(np.arange(5), list_image_answers(gallery), top_k=99)
    assert reorder_by_caption(by_text.reranked, gallery).tolist() == exact.text_to_image.tolist()
    assert by_image.reranked.tolist() == exact.image_to_text.tolist()


def test_what_the_first_stage_misses_keeps_its_rank_there(gallery: Gallery):
    search = TwoStageSearch(
        PairScorer(lively(ViLBERT(CONFIG)), gallery), EncodingProjections(OneNumber(1.0), OneNumber(1.0))
    )
    found = search.rank_images_for_texts(np.arange(6), list_text_answers(gallery), top_k=2)
    missed = found.first_stage >= 2
    assert missed.any() and not missed.all()
    assert (found.reranked[missed] == found.first_stage[missed]).all()
    assert (found.reranked[~missed] < 2).all()


# The evaluation


def a_run(folder: Path, config: ViLBERTConfig = CONFIG, sentences: list[str] = SENTENCES) -> Path:
    words = WordPieceTokenizer.from_texts(sentences)
    torch.manual_seed(0)
    save_model(ViLBERT(config), folder / "model", {"parameters": {"validation_fraction": 0.5}})
    words.save(folder / "model")
    return folder


def a_caption_file(path: Path, splits: list[str | None]) -> Path:
    entries = [
        {"image": f"image{image}.jpg", "caption": text} | ({"split": split} if split else {})
        for text, image, split in zip(SENTENCES, IMAGES, splits, strict=True)
    ]
    path.write_text("\n".join(json.dumps(entry) for entry in entries))
    return path


TESTED = ["train" if image == 3 else "test" for image in IMAGES]


def test_it_writes_every_number_beside_its_baselines(tmp_path: Path, store: RegionStore):
    captions = a_caption_file(tmp_path / "captions.jsonl", TESTED)
    out = tmp_path / "out"
    returned = evaluate_retrieval(a_run(tmp_path / "run"), captions, store.folder, out=out)
    numbers = json.loads((out / "results.json").read_text())
    assert numbers == returned
    assert (numbers["retrieval.captions"], numbers["retrieval.images"], numbers["retrieval.texts"]) == (6, 4, 5)
    assert numbers["retrieval.chance_level.r1"] == pytest.approx(1 / 4)
    for system in ("retrieval", "retrieval.untrained"):
        for direction in ("text_to_image", "image_to_text"):
            recalls = [numbers[f"{system}.{direction}.r{cut}"] for cut in (1, 5, 10)]
            assert recalls == sorted(recalls)
            assert numbers[f"{system}.{direction}.r1.low"] <= recalls[0] <= numbers[f"{system}.{direction}.r1.high"]
            assert 1 <= numbers[f"{system}.{direction}.median"] <= 6
    card = json.loads((out / "card.json").read_text())
    assert card["title"] == "Retrieval, zero-shot"
    assert card["scores"]["text_to_image R@1"]["value"] == numbers["retrieval.text_to_image.r1"]
    assert card["scores"]["text_to_image R@1"]["paper"] is None  # another gallery than the paper's
    assert card["scores"]["random order: text_to_image R@1"]["value"] == pytest.approx(1 / 4)
    assert card["settings"]["baselines"] == "not fitted: --train-data was not given"
    rows = list(csv.DictReader((out / "ranks.csv").read_text().splitlines()))
    assert len(rows) == 6 + 4
    assert {"direction", "caption", "image", "trained", "untrained"} == set(rows[0])
    found = [int(row["trained"]) <= 1 for row in rows if row["direction"] == "text_to_image"]
    assert np.mean(found) == pytest.approx(numbers["retrieval.text_to_image.r1"])


def test_training_captions_add_linear_maps_to_card_and_table(tmp_path: Path, store: RegionStore):
    splits = ["train" if image in (2, 3) else "test" for image in IMAGES]
    captions, out = a_caption_file(tmp_path / "captions.jsonl", splits), tmp_path / "results" / "out"
    numbers = evaluate_retrieval(a_run(tmp_path / "run"), captions, store.folder, out=out, train_data=captions)
    card = json.loads((out / "card.json").read_text())
    assert "2 captions of 2 training images" in card["settings"]["baselines"]
    entry = card["scores"]["baseline: linear maps, image_to_text R@5"]
    assert entry["value"] == numbers["retrieval.baseline.linear_maps.image_to_text.r5"]
    assert entry["low"] <= entry["value"] <= entry["high"]
    assert results(tmp_path / "results")["out.baseline: linear maps, image_to_text R@5"] == entry["value"]
    rows = list(csv.DictReader((out / "ranks.csv").read_text().splitlines()))
    ranks = [int(row["baseline.linear_maps"]) for row in rows if row["direction"] == "image_to_text"]
    assert np.mean(np.array(ranks) <= 5) == pytest.approx(entry["value"])


def test_captions_that_are_left_out_are_told(tmp_path: Path, store: RegionStore, capsys: pytest.CaptureFixture):
    """A recall over fewer captions than the file has is another number."""
    captions = a_caption_file(tmp_path / "captions.jsonl", TESTED)
    others = [
        {"image": "elsewhere.jpg", "caption": "A ball.", "split": "test"},
        {"image": "elsewhere.jpg", "caption": "Another ball.", "split": "test"},
        {"image": "nowhere.jpg", "caption": "A ball.", "split": "train"},  # of another split
        {"image": "image0.jpg", "caption": " "},
    ]
    captions.write_text("\n".join([captions.read_text(), *map(json.dumps, others)]))
    found = evaluate_retrieval(a_run(tmp_path / "run"), captions, store.folder, out=tmp_path / "out")
    said = capsys.readouterr().out
    assert "7 captions; 1 skipped: caption is empty; 3 skipped: image is not in the store" in said
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    counts, settings = card["counts"], card["settings"]
    assert counts["caption is empty (all splits)"] == 1
    assert (counts["items"], counts["predicted"], counts["images"]) == (8, 6, 5)
    for cut in (1, 5, 10):  # a caption whose image is missing finds nothing, and so does the image
        for direction, answered, every in (("text_to_image", 6, 8), ("image_to_text", 4, 5)):
            key = f"retrieval.{direction}.r{cut}"
            assert found[key] == pytest.approx(found[f"{key}.predicted"] * answered / every)
    assert found["retrieval.chance_level.r10"] == pytest.approx(6 / 8)
    assert settings["95 % interval"].startswith("text to image: Wilson, 8 items in 5 images")


def test_the_controls_tell_nothing_apart(tmp_path: Path, store: RegionStore):
    """Without pictures one is like another, and without texts: what is right ranks behind all that is wrong."""
    captions, run = a_caption_file(tmp_path / "captions.jsonl", TESTED), a_run(tmp_path / "run")
    blind = evaluate_retrieval(run, captions, store.folder, ablate="image", out=tmp_path / "out")
    assert blind["retrieval.text_to_image.median"] == 4 and blind["retrieval.text_to_image.r1"] == 0
    deaf = evaluate_retrieval(run, captions, store.folder, ablate="text")
    assert deaf["retrieval.image_to_text.r1"] == 0 and deaf["retrieval.images"] == 4
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["settings"]["ablate"] == "image" and card["seeds"] == {"untrained": 0}


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what does not depend on how well the first stage is fitted."""
    monkeypatch.setattr(first_stage, "NUM_STEPS", 10)


@pytest.mark.usefixtures("few_steps")
def test_two_stages_report_what_they_cost(tmp_path: Path, store: RegionStore, capsys: pytest.CaptureFixture):
    splits: list[str | None] = ["test" if image in (0, 4) else "train" for image in IMAGES]
    captions = a_caption_file(tmp_path / "captions.jsonl", splits)
    numbers = evaluate_retrieval(a_run(tmp_path / "run"), captions, store.folder, rerank=1)
    for direction, queries in (("text_to_image", 3), ("image_to_text", 2)):
        key = f"retrieval.rerank.{direction}"
        assert numbers[f"{key}.sample"] == queries
        assert numbers[f"{key}.recall"] == numbers[f"retrieval.first_stage.{direction}.r1"]
        assert numbers[f"{key}.sample.r1"] == numbers[f"retrieval.{direction}.r1"]
        assert 0 <= numbers[f"{key}.sample.r1.exact"] <= 1
    assert "first stage: recall@1" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.usefixtures("few_steps")
def test_a_first_stage_is_on_the_card_and_is_never_fitted_on_the_gallery(tmp_path: Path, store: RegionStore):
    splits: list[str | None] = ["test" if image in (0, 4) else "train" for image in IMAGES]
    captions, run = a_caption_file(tmp_path / "captions.jsonl", splits), a_run(tmp_path / "run")
    evaluate_retrieval(run, captions, store.folder, rerank=1, out=tmp_path / "out")
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["title"] == "Retrieval, first stage fitted on 4 training captions, re-ranked zero-shot"
    for split, shared in (("all", "3 of the 5"), ("train", "3 of the 3")):
        with pytest.raises(DataError, match=rf"captions\.jsonl: --rerank fits .* {shared} images of --split {split}"):
            evaluate_retrieval(run, captions, store.folder, split=split, rerank=1)


def test_the_papers_number_is_for_the_papers_run(store: RegionStore):
    """Its network, fp32, 36 regions, every pair scored; not the small network of these tests."""
    gallery = Gallery(captions_of(SENTENCES, IMAGES), store, WordPieceTokenizer.from_texts(SENTENCES), 16, 5)
    searched = RetrievalData(
        gallery, captions_of(SENTENCES[:3], [2, 3, 2]), WordPieceTokenizer.from_texts(SENTENCES), [], Counter()
    )
    exact = RetrievalSettings(Compute(torch.device("cpu"), "fp32"), 64, 36, None, 0, True, "alignment")
    with torch.device("meta"):
        paper, small = ViLBERT(ViLBERTConfig()), ViLBERT(CONFIG)
    assert build_ranking_method(paper, searched, exact) == ("zero-shot", None, True)
    assert not build_ranking_method(small, searched, exact).is_paper_setting
    changed = [{"rerank": 50}, {"max_regions": 100}, {"compute": Compute(torch.device("cpu"), "bf16")}]
    assert not any(
        build_ranking_method(paper, searched, exact._replace(**change)).is_paper_setting for change in changed
    )
    assert build_ranking_method(paper, searched, exact._replace(rerank=50)).num_fitted == 3


def test_without_splits_the_validation_images_are_those_that_the_run_held_out(
    tmp_path: Path, store: RegionStore, capsys: pytest.CaptureFixture
):
    captions, run = a_caption_file(tmp_path / "captions.jsonl", [None] * 7), a_run(tmp_path / "run")
    counts = {
        split: evaluate_retrieval(run, captions, store.folder, split=split)["retrieval.images"]
        for split in ("train", "validation", "all")
    }
    assert counts["all"] == 5 == counts["train"] + counts["validation"]
    with pytest.raises(DataError, match=r"is in the test split; there are .* validation"):
        evaluate_retrieval(run, captions, store.folder, split="test")
    capsys.readouterr()
    found = evaluate_retrieval(run, captions, store.folder, out=tmp_path / "out")
    assert found["retrieval.images"] == counts["validation"]
    assert "--split validation, held out in training" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "card.json").read_text())["split"] == "validation"


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (replace(CONFIG, region_feature_dim=9), "regions of 8 features and .* was trained on 9"),
        (replace(CONFIG, num_visual_tokens=12), "has 30 visual tokens and .* was trained on 9"),
        (replace(CONFIG, vocabulary=10), "the vocabulary has .* tokens, the model 10"),
        (replace(CONFIG, task_tokens=20), "task tokens"),
    ],
)
def test_a_store_or_vocabulary_of_another_model_is_told(
    tmp_path: Path, store: RegionStore, config: ViLBERTConfig, sentence: str
):
    captions = a_caption_file(tmp_path / "captions.jsonl", TESTED)
    with pytest.raises(DataError, match=sentence):
        evaluate_retrieval(a_run(tmp_path / "run", config), captions, store.folder)


def test_what_cannot_be_evaluated_is_told(tmp_path: Path, store: RegionStore):
    captions, run = a_caption_file(tmp_path / "captions.jsonl", TESTED), a_run(tmp_path / "run")
    with pytest.raises(ValueError, match=r"rerank \(0\)"):
        evaluate_retrieval(run, captions, store.folder, rerank=0)
    with pytest.raises(DataError, match="training split, and needs at least two images"):
        evaluate_retrieval(run, captions, store.folder, rerank=2)  # image 3 alone is for training
    nothing = a_caption_file(tmp_path / "only_test.jsonl", ["test"] * 7)
    with pytest.raises(DataError, match="training split, and there are none"):
        evaluate_retrieval(run, nothing, store.folder, rerank=2)
    alone = a_caption_file(tmp_path / "one_test.jsonl", ["test", *["train"] * 6])
    with pytest.raises(DataError, match="captions of one image only"):
        evaluate_retrieval(run, alone, store.folder)
    (run / "model" / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="holds no vocabulary"):
        evaluate_retrieval(run, captions, store.folder)
    with pytest.raises(CheckpointError, match="no model found"):
        evaluate_retrieval(tmp_path, captions, store.folder)
