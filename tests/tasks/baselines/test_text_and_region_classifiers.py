"""The baselines on data made by hand: what words decide, what only the image decides, and scikit-learn by itself."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from comodal.data.regions.region_store import RegionStore, RegionWriter
from comodal.tasks.baselines.baseline_scores import BaselineOptions, build_baseline_entries, score_baselines
from comodal.tasks.baselines.text_and_region_classifiers import BaselineItem, average_regions, fit_and_predict
from comodal.tasks.vision_language.image_rows import ImageRows

COLORS = ("blue", "green", "red")


def accuracy(labels: list[str | None], items: list[BaselineItem]) -> float:
    return float(np.mean([label == item.label for label, item in zip(labels, items, strict=True)]))


def no_regions(_: object) -> None:
    return None


def color_of(image: int) -> str:
    return COLORS[image * 7 % 3]


@pytest.fixture
def store(tmp_path: Path) -> RegionStore:
    """Images of one of three colors; the first of two regions has it."""
    rng = np.random.default_rng(0)
    with RegionWriter(tmp_path / "regions", 8, about={"detector": "by hand"}) as writer:
        for image in range(120):
            features = rng.normal(0, 0.1, (2, 8)).astype(np.float32)
            features[0, COLORS.index(color_of(image))] += 2
            writer.add(str(image), features, np.array([[0, 0, 4, 9], [5, 0, 9, 9]], np.float32), 9, 9)
    return RegionStore(tmp_path / "regions")


def ask_color(images: range) -> list[BaselineItem]:
    return [BaselineItem("what color is it", (str(image),), color_of(image), str(image)) for image in images]


def test_words_alone_decide():
    items = [
        BaselineItem(f"is it {'not ' * (n % 2)}thing{n % 5}", (), "no" if n % 2 else "yes", f"{n}") for n in range(60)
    ]
    found = fit_and_predict(items[:40], items[40:], no_regions, no_regions).labels
    assert accuracy(found["words"], items[40:]) == 1.0
    assert accuracy(found["most_frequent"], items[40:]) == 0.5
    assert "words_and_regions" not in found


def test_only_the_image_decides(store: RegionStore):
    training, evaluated, rows = ask_color(range(90)), ask_color(range(90, 120)), ImageRows(store)
    found = fit_and_predict(
        training,
        evaluated,
        lambda one: average_regions(rows.store, rows.find, one),
        lambda one: average_regions(rows.store, rows.find, one),
    )
    assert accuracy(found.labels["words"], evaluated) == pytest.approx(1 / 3)  # one answer to the only question
    assert accuracy(found.labels["words_and_regions"], evaluated) == 1.0


def test_words_are_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    vocabulary = [f"word{n}" for n in range(12)]
    items = [
        BaselineItem(" ".join(rng.choice(vocabulary, 4)), (), str(rng.choice(["a", "b", "c"])), str(n))
        for n in range(200)
    ]
    plain = make_pipeline(CountVectorizer(binary=True), LogisticRegression(max_iter=2000, tol=1e-8))
    plain.fit([item.text for item in items[:150]], [item.label for item in items[:150]])
    found = fit_and_predict(items[:150], items[150:], no_regions, no_regions).labels["words"]
    assert np.mean(plain.predict([item.text for item in items[150:]]) == found) >= 0.98


def test_scores_worked_by_hand(store: RegionStore, tmp_path: Path):
    # Training: green, green, red; "4" is evaluated too, so its item is left out. Evaluated: green, red, green, blue.
    labels = {"1": "green", "2": "green", "3": "red", "4": "red"}
    training = [BaselineItem("?", (image,), label, image) for image, label in labels.items()]
    training += [BaselineItem("?", ("4",), "red", "4")]
    evaluated = [
        BaselineItem("?", (n,), label, n) for n, label in (("4", "green"), ("5", "red"), ("6", "green"), ("7", "blue"))
    ]
    metrics, about = score_baselines(
        "gqa",
        BaselineOptions(tmp_path / "train.json"),
        lambda _: training,
        evaluated,
        store,
        lambda one: ImageRows(one).find,
    )
    assert metrics["gqa.baseline.most_frequent"] == 0.5
    # Wilson's interval of 2 of 4
    assert metrics["gqa.baseline.most_frequent.low"] == pytest.approx(0.15, abs=5e-3)
    assert about.startswith("train.json") and "2 left out" in about and "no words" in about
    assert list(build_baseline_entries("gqa", metrics)) == ["baseline: most frequent label"]


def test_a_missing_image_has_no_prediction_with_regions(store: RegionStore):
    evaluated = [*ask_color(range(90, 93)), BaselineItem("what color is it", ("none",), "red", "none")]
    rows = ImageRows(store)
    found = fit_and_predict(
        ask_color(range(90)),
        evaluated,
        lambda one: average_regions(rows.store, rows.find, one),
        lambda one: average_regions(rows.store, rows.find, one),
    )
    assert found.labels["words_and_regions"] == [*(color_of(n) for n in range(90, 93)), None]


def test_two_images_are_concatenated(store: RegionStore):
    rows = ImageRows(store)
    expected = [store.read_regions(row).features.astype(np.float32).mean(0) for row in (3, 5)]
    pooled = average_regions(rows.store, rows.find, ("3", "5"))
    assert pooled is not None
    np.testing.assert_allclose(pooled, np.concatenate(expected), rtol=1e-6)


def test_nothing_to_fit_on_is_said(store: RegionStore, tmp_path: Path):
    items = ask_color(range(3))
    metrics, about = score_baselines(
        "gqa", BaselineOptions(tmp_path / "a.json"), lambda _: items, items, store, lambda one: ImageRows(one).find
    )
    assert metrics == {} and "not fitted" in about
    assert score_baselines(
        "gqa", BaselineOptions(), lambda _: items, items, store, lambda one: ImageRows(one).find
    ) == (
        {},
        "not fitted: --train-data was not given",
    )
