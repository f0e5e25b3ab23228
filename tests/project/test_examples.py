"""The files of examples/ run as they stand, and reach what they show."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from tests.support.paths import ROOT

EXAMPLES = ROOT / "examples"
Names = dict[str, Any]


def embeddings_are_better_than_chance(names: Names) -> None:
    assert names["accuracy"] > 2 / 10


def the_masked_token_attends_to_the_named_region(names: Names) -> None:
    assert names["accuracy"] > 0.9
    strongest = names["attention"][:, 1:].argmax(1)
    assert (strongest == names["cell"]).float().mean() >= 0.75


def training_learns_correspondence(names: Names) -> None:
    losses = [line["loss"] for line in names["training"]]
    assert losses[-1] < 0.75 * losses[0]
    assert names["validation"][-1]["accuracy"] > 0.7
    assert names["vectors"].shape == (3, 512)


def beeps_are_counted(names: Names) -> None:
    assert names["error"] < 0.5 * names["baseline"]


def an_image_is_its_own_nearest_neighbor(names: Names) -> None:
    gallery, pipeline = names["gallery"][:3], names["pipeline"]
    _, nearest = names["index"].kneighbors(pipeline.embed_image(gallery), 1)
    assert nearest[:, 0].tolist() == [0, 1, 2]


def the_sound_comes_from_its_square(names: Names) -> None:
    assert names["accuracy"] > 0.7
    near = []
    for _ in range(20):
        image, tone, center = names["draw_pair"](True)
        window = names["pipeline"].match(image, tone, sample_rate=48_000).windows[0]
        near.append(np.hypot(window.x * 64 - center[0], window.y * 64 - center[1]) < 16)
    assert np.mean(near) > 0.5  # the other square is a third of all places, at best


def fine_tuning_learns_the_classes(names: Names) -> None:
    accuracies = [line["accuracy"] for line in names["log"] if line["split"] == "train"]
    assert accuracies[-1] > 3 / 10


def both_runtimes_agree(names: Names) -> None:
    np.testing.assert_allclose(names["embedding"], names["expected"], atol=1e-5)


CHECKS: dict[str, Callable[[Names], None]] = {
    "plot_01_embeddings_scikit_learn": embeddings_are_better_than_chance,
    "plot_02_attention_maps": the_masked_token_attends_to_the_named_region,
    "plot_03_own_dataset": training_learns_correspondence,
    "plot_04_own_task": beeps_are_counted,
    "plot_05_search_by_example": an_image_is_its_own_nearest_neighbor,
    "plot_06_sound_source": the_sound_comes_from_its_square,
    "plot_07_fine_tuning": fine_tuning_learns_the_classes,
    "plot_08_export": both_runtimes_agree,
}

SLOW = ("plot_03_own_dataset", "plot_06_sound_source", "plot_07_fine_tuning", "plot_08_export")  # some ten seconds


def test_every_example_is_tested():
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == sorted(CHECKS)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CHECKS])
def test_an_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "show", lambda: None)
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path))
    try:
        with torch.random.fork_rng(devices=[]):
            CHECKS[name](runpy.run_path(str(EXAMPLES / f"{name}.py")))
        assert plt.get_fignums()
    finally:
        plt.close("all")
