"""Class folders: which files count, which side of the split they are on, and what is said when something is missing."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from comodal.errors import DataError
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.tasks.audio.audio_folders import evaluate_audio
from comodal.tasks.evaluation.class_folders import list_labeled_files

TEXT = frozenset({".txt"})


def plant(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return root


def test_train_and_test_folders_are_the_split(tmp_path: Path):
    root = plant(tmp_path, "train/a/1.txt", "train/b/1.TXT", "train/b/deep/2.txt", "val/a/1.txt", "val/b/note.md")
    items = list_labeled_files(root, TEXT)
    assert [(item.name, item.category, item.is_test) for item in items] == [
        ("train/a/1.txt", "a", False),
        ("train/b/1.TXT", "b", False),
        ("train/b/deep/2.txt", "b", False),
        ("val/a/1.txt", "a", True),
    ]


def test_without_a_test_folder_a_hash_of_the_name_decides(tmp_path: Path):
    """A file's side does not depend on what else is there, and about a fifth is tested."""
    root = plant(tmp_path / "all", *(f"{kind}/{number}.txt" for kind in "ab" for number in range(200)))
    sides = {item.name: item.is_test for item in list_labeled_files(root, TEXT)}
    assert abs(sum(sides.values()) - 80) < 4.5 * (400 * 0.2 * 0.8) ** 0.5
    fewer = plant(tmp_path / "fewer", *(f"{kind}/{number}.txt" for kind in "ab" for number in range(0, 200, 7)))
    assert all(sides[item.name] == item.is_test for item in list_labeled_files(fewer, TEXT))


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["train/a/1.txt", "train/b/1.txt"], "none of test/, val/, validation/"),
        (["train/a/1.txt", "test/a/1.txt"], "1 class folders"),
        (["train/a/1.txt", "train/b/1.txt", "test/c/1.txt"], "class 'c' is tested"),
        (["train/a/1.txt", "train/b/1.txt", "test/a/1.md"], "no file to test"),
    ],
)
def test_a_tree_that_cannot_be_probed_says_why(tmp_path: Path, names: list[str], sentence: str):
    with pytest.raises(DataError, match=sentence):
        list_labeled_files(plant(tmp_path, *names), TEXT)


def test_tones_of_two_octaves_are_told_apart_by_any_features(tmp_path: Path):
    """220 Hz against 3520 Hz: even an untrained network and a plain spectrogram must be perfect."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 6)):
        for name, pitch in (("low", 220.0), ("high", 3520.0)):
            for number in range(count):
                seconds = np.arange(24_000) / 48_000
                tone = 0.3 * np.sin(2 * np.pi * pitch * rng.uniform(0.98, 1.02) * seconds + rng.uniform(0, 6))
                path = tmp_path / "tones" / split / name / f"{number}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, tone + 0.001 * rng.standard_normal(24_000), 48_000)
    save_model(L3Net(make_small_l3net_config(4, 32)), tmp_path / "model", {})
    numbers = evaluate_audio(tmp_path / "model", tmp_path / "tones", workers=1, out=tmp_path / "scores")
    assert numbers["audio.trained"] == numbers["audio.untrained"] == numbers["audio.spectrogram"] == 1.0
    assert numbers["audio.items"] == 12
    assert (tmp_path / "scores" / "results.json").is_file()
