"""Fine-tuning by class: where it begins, what is trained, the order, the controls, exact resume, errors."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from comodal.cli.program import main
from comodal.data.shards.clip_dataset import Augmentation
from comodal.errors import CheckpointError, DataError, MediaWarning
from comodal.models.checkpoint import load_model, save_model
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.models.l3net.l3net_classifier import load_l3_classifier
from comodal.tasks.audio import audio_classification
from comodal.tasks.audio.audio_classification import AudioReader, evaluate_sound_classes
from comodal.tasks.evaluation.class_folders import LabeledFile
from comodal.tasks.evaluation.l3net_fine_tuning import LabeledItems, split_by_name_hash
from comodal.tasks.image import image_classification
from comodal.tasks.image.image_classification import ImageReader, evaluate_image_classes
from comodal.tasks.image.image_views import ViewConfig
from comodal.tasks.image.linear_classification import evaluate_images
from comodal.text_files import read_log
from comodal.training.run import train

OPTIONS = {"device": "cpu", "precision": "fp32", "log_every": 1}
RATE = 48_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(5)
    save_model(L3Net(make_small_l3net_config(4, 16)), folder, {})
    return folder


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vertical and horizontal stripes of any phase and colour."""
    root, rng = tmp_path_factory.mktemp("stripes"), np.random.default_rng(0)
    for side, count in (("train", 24), ("test", 12)):
        for kind in ("vertical", "horizontal"):
            (root / side / kind).mkdir(parents=True)
            for number in range(count):
                wave = np.sin(np.arange(20) * 1.5 + rng.uniform(0, 6.3))
                rows = np.tile(wave, (20, 1)) if kind == "vertical" else np.tile(wave[:, None], (1, 20))
                pixels = (128 + rows[..., None] * rng.uniform(40, 120, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / side / kind / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ESC-50's layout: low and high tones in three folds."""
    root, rng = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    (root / "audio").mkdir()
    (root / "meta").mkdir()
    lines = ["filename,fold,target,category"]
    for number in range(36):
        pitch = (300.0, 3000.0)[number % 2] * rng.uniform(0.95, 1.05)
        sound = 0.3 * np.sin(2 * np.pi * pitch * np.arange(int(1.2 * RATE)) / RATE + rng.uniform(0, 6))
        soundfile.write(root / "audio" / f"{number}.wav", sound + 0.001 * rng.standard_normal(len(sound)), RATE)
        lines.append(f"{number}.wav,{number // 2 % 3 + 1},{number % 2},{('low', 'high')[number % 2]}")
    (root / "meta" / "esc50.csv").write_text("\n".join(lines))
    return root


def image_settings(model: Path, data: Path, epochs: float = 12.0, **more: object) -> dict:
    return {
        "model": model,
        "data": data,
        "epochs": epochs,
        "batch_size": 8,
        "workers": 0,
        "horizontal_flip": False,
        **more,
    }


@pytest.fixture(scope="module")
def run(model: Path, stripes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train(image_classification.recipe, image_settings(model, stripes), out, **OPTIONS) == 0
    return out


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_log(run / "metrics.jsonl") if line["split"] == "train"]


# Training


def test_stripes_are_learnt_and_the_card_says_how(run: Path, stripes: Path, tmp_path: Path):
    assert losses(run)[0] == pytest.approx(math.log(2), abs=1e-6)  # the last layer begins with nothing
    numbers = evaluate_image_classes(run, stripes, workers=1, out=tmp_path)
    assert numbers["vision.fine_tuned"] >= 0.9
    assert numbers["vision.items"] == 24
    assert evaluate_image_classes(run, stripes, crops="ten", workers=1)["vision.fine_tuned"] >= 0.9
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["scores"]["top-1"]["value"] == numbers["vision.fine_tuned"]
    assert card["settings"]["training start_from"] == "pretrained"
    assert (card["task"], card["split"]) == ("image_classes", "test")


def test_a_picture_that_cannot_be_read_is_left_out_named_and_counted(
    run: Path, stripes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The others keep their answers and their order."""
    for side in ("train", "test"):
        shutil.copytree(stripes / side, tmp_path / "data" / side)
    evaluate_image_classes(run, tmp_path / "data", workers=1, out=tmp_path / "whole")
    (tmp_path / "data" / "test" / "vertical" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    numbers = evaluate_image_classes(run, tmp_path / "data", workers=1, out=tmp_path / "out")
    assert numbers["vision.items"] == 23
    counts = json.loads((tmp_path / "out" / "card.json").read_text())["counts"]
    assert counts == {"items": 24, "predicted": 23, "cannot be read": 1}
    assert "files that cannot be read and are excluded: 1" in (said := capsys.readouterr().out) and "3.png" in said
    before, after = ((tmp_path / name / "predictions.csv").read_text().splitlines() for name in ("whole", "out"))
    assert after == [line for line in before if "vertical/3.png" not in line]
    for path in (tmp_path / "data" / "test" / "vertical").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 12 files of class 'vertical' to test can be read"):
        evaluate_image_classes(run, tmp_path / "data", workers=1)


def test_stopping_and_going_on_changes_no_bit(
    model: Path, stripes: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    reads, plain = iter(range(200)), image_classification.read_resized_image

    def ends(item: LabeledFile, short_side: int) -> np.ndarray:
        if next(reads, None) is None:
            raise DataError("the disk is gone")
        return plain(item, short_side)

    settings, out = image_settings(model, stripes), tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(DataError, match="the disk is gone"):
        patched.setattr(image_classification, "read_resized_image", ends)
        train(image_classification.recipe, settings, out, checkpoint_minutes=0.0, **OPTIONS)
    assert 0 < len(losses(out)) < len(losses(run))
    train(image_classification.recipe, settings, out, resume=True, **OPTIONS)
    assert losses(out) == losses(run)
    ours, theirs = load_model(out).state_dict(), load_model(run).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_tower_of_its_modality_is_trained_and_nothing_else(model: Path, run: Path):
    before = load_model(model).state_dict()
    after = load_l3_classifier(run, "image").l3net.state_dict()
    changed = {name.split(".")[0] for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {"image_tower"}


def test_the_control_begins_elsewhere_and_learns_at_the_rate_of_the_new_layer(model: Path, stripes: Path):
    pretrained = load_model(model).state_dict()
    begun = image_classification.recipe(**image_settings(model, stripes, learning_rate=3e-4))
    scratch = image_classification.recipe(**image_settings(model, stripes, learning_rate=3e-4, start_from="scratch"))
    name = "image_tower.layers.conv1_1.convolution.weight"
    assert torch.equal(begun.objective.get_submodule("model.l3net").state_dict()[name], pretrained[name])
    assert not torch.equal(scratch.objective.get_submodule("model.l3net").state_dict()[name], pretrained[name])
    assert {round(group["lr_scale"], 6) for group in begun.optimizer.param_groups} == {0.3, 1.0}
    assert {group["lr_scale"] for group in scratch.optimizer.param_groups} == {1.0}


def test_a_fine_tuned_network_can_be_probed_and_tuned_again(run: Path, stripes: Path):
    assert evaluate_images(run, stripes, systems=["trained"], workers=1)["vision.trained"] >= 0.9
    begun = (
        image_classification.recipe(**image_settings(run, stripes)).objective.get_submodule("model.l3net").state_dict()
    )
    below = load_l3_classifier(run, "image").l3net.state_dict()
    assert all(torch.equal(begun[name], below[name]) for name in below)


def test_every_item_comes_once_an_epoch_and_the_seed_decides_how(stripes: Path):
    items = [
        LabeledFile(path, path.name, path.parent.name, False) for path in sorted((stripes / "train").rglob("*.png"))
    ]
    reader = ImageReader(ViewConfig(16, Augmentation(), 0))

    def samples(seed: int | None) -> LabeledItems:
        return LabeledItems(items, ["horizontal", "vertical"], reader, seed)

    first, second = ([(epoch, index) for index in range(48)] for epoch in (0, 1))
    batch, again = samples(0).batch(first), samples(0).batch(first)
    assert torch.equal(batch.inputs, again.inputs) and batch.keys == again.keys
    assert sorted(batch.keys) == sorted(item.name for item in items)
    assert batch.keys != samples(0).batch(second).keys != samples(1).batch(second).keys
    still = samples(None).batch(first)
    assert still.keys == tuple(item.name for item in items)
    assert still.target.tolist() == [0] * 24 + [1] * 24


def test_what_is_held_out_is_not_trained_on(model: Path, stripes: Path):
    run = image_classification.recipe(**image_settings(model, stripes, validation_fraction=0.25))
    assert run.validation is not None
    held = {item.name for item in run.validation.samples.items}  # type: ignore[attr-defined]
    trained = {item.name for item in run.batches.samples.items}  # type: ignore[attr-defined]
    assert len(held) + len(trained) == 48 and not held & trained
    assert all(name.startswith("train/") for name in held | trained)
    assert 3 <= len(held) <= 21
    with pytest.raises(DataError, match="too few to hold out"):
        split_by_name_hash([LabeledFile(stripes, "one", "a", False)], 0.999999)
    with pytest.raises(ValueError, match="validation_fraction"):
        split_by_name_hash([], 1.0)


# Sounds


def test_tones_are_learnt_from_two_folds_for_the_third(model: Path, tones: Path, tmp_path: Path):
    settings = {
        "model": model,
        "data": tones,
        "layout": "esc50",
        "fold": 3,
        "epochs": 8.0,
        "batch_size": 8,
        "workers": 0,
    }
    assert train(audio_classification.recipe, settings, tmp_path / "run", **OPTIONS) == 0
    numbers = evaluate_sound_classes(tmp_path / "run", tones, windows=2, workers=1, out=tmp_path / "out")
    assert numbers["audio.fine_tuned"] >= 0.9
    assert numbers["audio.items"] == 12
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["split"] == "fold 3"  # by the run's own record
    damaged = tmp_path / "damaged"
    shutil.copytree(tones, damaged)
    (damaged / "audio" / "4.wav").write_bytes(b"RIFF" + bytes(100))  # of fold 3
    assert evaluate_sound_classes(tmp_path / "run", damaged, workers=1, out=tmp_path / "out")["audio.items"] == 11
    assert json.loads((tmp_path / "out" / "card.json").read_text())["counts"]["cannot be read"] == 1
    after, before = load_l3_classifier(tmp_path / "run", "audio").l3net.state_dict(), load_model(model).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("image_tower"))


def test_of_official_files_the_round_of_a_fold_decides_who_is_trained_on(model: Path, tones: Path):
    sounds = audio_classification.read_labeled_audio(tones, "esc50")
    one = audio_classification.find_fold_split(sounds, 2)
    fitted, tested = (
        audio_classification.select_audio_files(sounds, side, is_test=False) for side in (one.train_mask, one.test_mask)
    )
    numbers = [{int(item.path.stem) // 2 % 3 + 1 for item in items} for items in (fitted, tested)]
    assert numbers == [{1, 3}, {2}]
    run = audio_classification.recipe(model, tones, "esc50", fold=2, workers=0)
    assert run.batches.samples.items == fitted  # type: ignore[attr-defined]


def test_a_second_of_a_sound(tones: Path, tmp_path: Path):
    reader = AudioReader(RATE, RATE, 0.1)
    item = LabeledFile(tones / "audio" / "0.wav", "0.wav", "low", False)
    heard = [reader(item, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert np.array_equal(heard[0], heard[1]) and not np.array_equal(heard[0], heard[2])
    whole = reader.read_waveform(item)
    assert np.array_equal(reader(item, None), whole[4800 : 4800 + RATE])  # 1.2 s: the middle second begins at 0.1
    soundfile.write(tmp_path / "short.wav", np.full(100, 0.5), RATE)
    short = reader(LabeledFile(tmp_path / "short.wav", "short.wav", "a", False), None)
    assert len(short) == RATE and not short[100:].any() and short[:100].min() > 0.4


# Errors


def test_other_models_classes_and_folders_are_told(model: Path, run: Path, stripes: Path, tones: Path, tmp_path: Path):
    with pytest.raises(
        CheckpointError, match="a L3Net, which has no classes; fine-tune it with `comodal train image_cl"
    ):
        evaluate_image_classes(model, stripes)
    with pytest.raises(CheckpointError, match="a classifier of image, not of audio"):
        evaluate_sound_classes(run, tones)
    with pytest.raises(DataError, match=r"there is no fold 7; there are \[1, 2, 3\]"):
        audio_classification.recipe(model, tones, "esc50", fold=7)
    for side in ("train", "test"):
        (tmp_path / side / "oblique").mkdir(parents=True)
        (tmp_path / side / "vertical").mkdir()
        for kind in ("oblique", "vertical"):
            Image.new("RGB", (20, 20)).save(tmp_path / side / kind / "a.png")
    with pytest.raises(DataError, match=r"a\.png: the model has no class 'oblique'"):
        evaluate_image_classes(run, tmp_path, workers=1)
    (run / "model" / "classes.json").rename(tmp_path / "classes.json")
    with pytest.raises(CheckpointError, match=r"classes\.json: No such file"):
        evaluate_image_classes(run, stripes)
    (tmp_path / "classes.json").rename(run / "model" / "classes.json")


def test_a_damaged_picture_ends_training_with_its_name(
    model: Path, stripes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for side in ("train", "test"):
        for kind in ("vertical", "horizontal"):
            (tmp_path / "data" / side / kind).mkdir(parents=True)
            content = (stripes / side / kind / "0.png").read_bytes()
            (tmp_path / "data" / side / kind / "0.png").write_bytes(content[:60] if kind == "vertical" else content)
    words = ["--model", str(model), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    with pytest.warns(MediaWarning, match=r"0\.png: unreadable"):
        assert main(["train", "image_classes", *words, "--epochs", "1", "--batch-size", "2", "--workers", "0"]) == 1
    said = capsys.readouterr().err
    assert "no file of class 'vertical' can be read" in said and "0.png" in said and "Traceback" not in said


@pytest.mark.filterwarnings("ignore::comodal.errors.MediaWarning")
def test_files_that_training_replaces_are_recorded_in_the_run(
    model: Path, stripes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """A worker process finds the damaged file; a second session, which starts behind it, keeps it on record."""
    for kind in ("vertical", "horizontal"):
        (tmp_path / "data" / "train" / kind).mkdir(parents=True)
        (tmp_path / "data" / "test" / kind).mkdir(parents=True)
        for number in range(3):
            shutil.copy(stripes / "train" / kind / f"{number}.png", tmp_path / "data" / "train" / kind)
        shutil.copy(stripes / "test" / kind / "0.png", tmp_path / "data" / "test" / kind)
    damaged = tmp_path / "data" / "train" / "vertical" / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    parameters = image_settings(model, tmp_path / "data", epochs=2.0, batch_size=6, workers=1)
    assert train(image_classification.recipe, parameters, tmp_path / "run", **OPTIONS) == 0
    (line,) = [json.loads(line) for line in (tmp_path / "run" / "unreadable.jsonl").read_text().splitlines()]
    assert line["path"] == str(damaged) and line["reason"] == "unreadable" and line["detail"]
    about = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["about"]
    assert about["excluded"] == {"cannot be read": 1}
    assert "files that cannot be read and were replaced by others in training: 1" in capsys.readouterr().out
    assert train(image_classification.recipe, parameters, tmp_path / "run", resume=True, **OPTIONS) == 0
    about = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["about"]
    assert about["excluded"] == {"cannot be read": 1}
