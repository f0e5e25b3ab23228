"""ESC-50's protocol on small folders in its layout, whose sounds are easy or damaged on purpose."""

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.optim.swa_utils import update_bn

from comodal.errors import DataError
from comodal.hardware import Compute
from comodal.models.checkpoint import make_untrained_copy, save_model
from comodal.models.l3net.l3net import L3Net, L3NetConfig
from comodal.tasks.audio.audio_features import cut_windows, extract_audio_features, read_all_samples
from comodal.tasks.audio.audio_folders import evaluate_audio
from comodal.tasks.audio.esc50 import check_clips, evaluate_esc50, read_esc50, read_esc50_meta

RATE, FOLDS, KINDS = 8000, 5, ("low", "high", "noise")
COLUMNS = ["filename", "fold", "target", "category", "esc10", "src_file", "take"]


def sound_of(kind: str, rng: np.random.Generator, seconds: float) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    if kind == "noise":
        return 0.2 * rng.normal(size=len(time))
    pitch = {"low": 300.0, "high": 2500.0}[kind] * rng.uniform(0.9, 1.1)
    return 0.4 * np.sin(2 * np.pi * pitch * time + rng.uniform(0, 6)) + 0.01 * rng.normal(size=len(time))


def write_esc(folder: Path, clips_each: int = 2, seconds: float = 1.5) -> Path:
    """The layout of the released data set: meta/esc50.csv and audio/{fold}-{source}-{take}-{target}.wav."""
    rng = np.random.default_rng(0)
    (folder / "audio").mkdir(parents=True)
    (folder / "meta").mkdir()
    rows = []
    for fold in range(1, FOLDS + 1):
        for target, kind in enumerate(KINDS):
            for take in range(clips_each):
                name = f"{fold}-10{take}-{'AB'[take]}-{target}.wav"
                soundfile.write(folder / "audio" / name, sound_of(kind, rng, seconds), RATE)
                rows.append([name, fold, target, kind, str(kind != "noise"), f"10{take}", "AB"[take]])
    write_meta(folder, COLUMNS, rows)
    return folder


def write_meta(folder: Path, header: list[str], rows: list[list]) -> None:
    with (folder / "meta" / "esc50.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def read_rows(folder: Path) -> list[list[str]]:
    with (folder / "meta" / "esc50.csv").open(newline="") as file:
        return list(csv.reader(file))[1:]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save_model(L3Net(L3NetConfig(width=2, image_size=32)), folder, {})
    return folder


def test_easy_sounds_are_told_apart_by_every_system(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]):
    numbers = evaluate_esc50(model, write_esc(tmp_path / "esc"), windows=2, out=tmp_path / "out", workers=1)
    assert numbers["audio.spectrogram"] == numbers["audio.log_mel"] == 1.0
    assert numbers["audio.trained"] > 0.9
    assert {f"audio.untrained.fold{fold}" for fold in range(1, 6)} < numbers.keys()
    assert numbers["audio.chance_level"] == pytest.approx(1 / 3)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == numbers
    assert (tmp_path / "out" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        answers = list(csv.DictReader(file))
    assert np.mean([row["trained"] == row["truth"] for row in answers]) == pytest.approx(numbers["audio.trained"])
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("trained", "untrained", "spectrogram", "std", "noise"))


def test_the_untrained_control_hears_with_norms_that_fit_the_sounds(tmp_path: Path, model: Path):
    """Its features are those of the same initial weights whose norms torch updates on the middle of every sound."""
    sounds = read_esc50(write_esc(tmp_path / "esc", clips_each=1), "esc50").audio_files
    found = extract_audio_features(model, sounds, sounds, 1, 5, 1, Compute(torch.device("cpu"), "fp32"))
    control = make_untrained_copy(L3Net.from_pretrained(model), 5)
    middles = []
    for sound in sounds:
        samples, length = read_all_samples(sound, 48_000), 48_000
        start = (len(samples) - length) // 2
        middles.append(torch.from_numpy(samples[start : start + length]))
    update_bn([control.spectrogram(torch.stack(middles))], control.audio_tower)
    firsts = torch.stack([torch.from_numpy(read_all_samples(sound, 48_000)[:48_000]) for sound in sounds])
    with torch.no_grad():
        expected = control.eval().embed_audio(firsts)
    assert torch.allclose(found.systems["untrained"][:, 0], expected, atol=2e-3 * expected.abs().max())
    assert "calibrated on 15 audio files" in found.control


def test_clips_of_one_recording_are_resampled_together(tmp_path: Path, model: Path):
    metrics = evaluate_esc50(model, write_esc(tmp_path / "esc"), windows=1, out=tmp_path / "out", workers=1)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    systems = ("trained", "untrained", "spectrogram", "log_mel")
    same = all(metrics[f"audio.{system}"] in (0, 1) for system in systems)
    expected = "Wilson, 2 recordings, all with the same score" if same else "Wilson, 30 items in 2 recordings"
    assert card["settings"]["95 % interval"].startswith(expected)
    assert card["counts"] == {"items": 30, "predicted": 30}


def test_the_same_numbers_again_whatever_the_workers(tmp_path: Path, model: Path):
    folder = write_esc(tmp_path / "esc", clips_each=1)
    one, two = (evaluate_esc50(model, folder, windows=2, workers=workers) for workers in (1, 2))
    assert {**one, "audio.seconds": 0} == {**two, "audio.seconds": 0}


def test_both_revisions_of_the_meta_file_say_the_same(tmp_path: Path):
    folder = write_esc(tmp_path)
    released = read_esc50_meta(folder, "esc50")
    rows = [[row[0], row[1], row[2], row[3], row[4]] for row in read_rows(folder)]
    write_meta(folder, ["filename", "fold", "category", "category_name", "esc10"], rows)
    assert read_esc50_meta(folder, "esc50") == released
    assert read_esc50_meta(folder, "esc10") == ([clip for clip in released[0] if clip.category != "noise"], 10)


def test_sounds_may_lie_beside_meta_csv(tmp_path: Path):
    folder = write_esc(tmp_path / "esc")
    clips, _ = read_esc50_meta(folder, "esc50")
    flat = tmp_path / "flat"
    (folder / "audio").rename(flat)
    (folder / "meta" / "esc50.csv").rename(flat / "meta.csv")
    found, left_out = read_esc50_meta(flat, "esc50")
    assert [clip.path.name for clip in found] == [clip.path.name for clip in clips]
    assert left_out == 0


def test_windows_are_equally_spaced_from_the_beginning_to_the_end():
    windows = cut_windows(np.arange(50, dtype=np.float64), 5, 10)
    assert windows[:, 0].tolist() == [0, 10, 20, 30, 40]
    assert cut_windows(np.arange(10, dtype=np.float64), 3, 10)[:, 0].tolist() == [0, 0, 0]


def test_the_card_says_what_was_measured(tmp_path: Path, model: Path):
    folder, out = write_esc(tmp_path / "esc", seconds=0.5), tmp_path / "out"
    numbers = evaluate_esc50(model, folder, subset="esc10", windows=2, out=out, workers=1)
    card = json.loads((out / "card.json").read_text())
    assert (card["task"], card["title"], card["split"]) == ("esc50", "ESC-10", "5 folds")
    assert next(iter(card["scores"])) == "accuracy"
    assert card["scores"]["accuracy"]["value"] == numbers["audio.trained"]
    assert card["scores"]["std"]["value"] == numbers["audio.trained.std"]
    assert card["scores"]["fold 5"]["value"] == numbers["audio.trained.fold5"]
    assert all(score["paper"] is None for score in card["scores"].values())
    short = {"not in ESC-10": 10, "shorter than a window, padded with silence": 20}
    assert card["counts"] == {"items": 20, "predicted": 20} | short
    digest = hashlib.sha256((folder / "meta" / "esc50.csv").read_bytes()).hexdigest()
    assert card["files"]["meta"] == {"name": "esc50.csv", "sha256": digest}
    with (out / "classes.csv").open(newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["low", "high"]


def official_esc50() -> list[list]:
    """The names and folds of a whole ESC-50: 8 of each of 50 classes in each of five folds."""
    return [
        [f"{fold}-{1000 + take}-A-{target}.wav", fold, target, f"class {target}"]
        for fold in range(1, 6)
        for target in range(50)
        for take in range(8)
    ]


def test_only_the_whole_of_esc50_stands_beside_the_papers_number(tmp_path: Path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "audio").mkdir()
    rows = official_esc50()
    for row in rows:
        (tmp_path / "audio" / row[0]).touch()
    write_meta(tmp_path, COLUMNS[:4], rows)
    official = read_esc50(tmp_path, "esc50")
    assert official.paper_result is not None
    assert official.paper_result.scores == {"trained": 0.793, "untrained": 0.625}
    assert [one.held_out_folds for one in official.splits][1] == (1, 3, 4, 5)
    write_meta(tmp_path, COLUMNS[:4], rows[1:])
    assert read_esc50(tmp_path, "esc50").paper_result is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {0: "2-999-A-0.wav"},
            r"esc50.csv, line 2: 2-999-A-0.wav is of fold 2 by its name, of fold 1 by the t",
        ),
        ({0: "1-101-B-0.wav"}, "line 3: 1-101-B-0.wav is already in line 2"),
        ({3: "noise"}, "is of class 0, 'low', but in earlier rows 0 is 'noise'"),
        ({3: ""}, "line 2: category is empty"),
    ],
)
def test_the_table_of_another_version_is_named(tmp_path: Path, change: dict[int, str], told: str):
    folder = write_esc(tmp_path, clips_each=2, seconds=0.01)
    rows = read_rows(folder)
    for column, value in change.items():
        rows[0][column] = value
    write_meta(folder, COLUMNS, rows)
    with pytest.raises(DataError, match=told):
        read_esc50_meta(folder, "esc50")


def test_what_is_missing_is_named(tmp_path: Path, model: Path):
    folder = write_esc(tmp_path)
    gone = folder / "audio" / "2-100-A-1.wav"
    gone.unlink()
    with pytest.raises(DataError, match=r"1 of 30 audio files are missing, the first is .*2-100-A-1\.wav"):
        evaluate_esc50(model, folder)
    gone.write_bytes(b"RIFF" + bytes(100))
    (folder / "audio" / "2-101-B-1.wav").write_bytes(b"RIFF" + bytes(100))
    with pytest.raises(DataError, match=r"none of the 2 files of class 'high' to test in fold 2 can be read; .*\.wav"):
        evaluate_esc50(model, folder, windows=1, workers=1)


def test_sounds_that_cannot_be_read_are_left_out_named_and_counted(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
):
    """The numbers are those of the same folders without them."""
    for name in ("damaged", "smaller"):
        rng = np.random.default_rng(0)
        for side, count in (("train", 4), ("test", 2)):
            for kind in KINDS:
                (tmp_path / name / side / kind).mkdir(parents=True)
                for number in range(count):
                    sound = sound_of(kind, rng, 1.0)
                    soundfile.write(tmp_path / name / side / kind / f"{side}{number}.wav", sound, RATE)
    bad = [f"train/{KINDS[0]}/train0.wav", f"test/{KINDS[1]}/test1.wav"]
    for path in bad:
        (tmp_path / "damaged" / path).write_bytes(b"RIFF" + bytes(100))
        (tmp_path / "smaller" / path).unlink()
    found, expected = (
        evaluate_audio(model, tmp_path / name, out=tmp_path / f"of {name}", workers=1)
        for name in ("damaged", "smaller")
    )
    kept = found.keys() - {"audio.seconds", "audio.excluded"}
    assert found["audio.excluded"] == 2 and {k: found[k] for k in kept} == {k: expected[k] for k in kept}
    said = capsys.readouterr().out
    assert "files that cannot be read and are excluded: 2" in said and all(Path(path).name in said for path in bad)
    counts = json.loads((tmp_path / "of damaged" / "card.json").read_text())["counts"]
    assert counts == {"items": 6, "predicted": 5, "cannot be read, to test": 1, "cannot be read": 2}


@pytest.mark.parametrize(
    ("fold", "told"), [("x", "line 3: fold 'x' is not an integer"), ("0", "line 3: fold 0 must be at least 1")]
)
def test_a_wrong_fold_is_named_with_its_line(tmp_path: Path, fold: str, told: str):
    folder = write_esc(tmp_path)
    rows = read_rows(folder)
    rows[1][1] = fold
    write_meta(folder, COLUMNS, rows)
    with pytest.raises(DataError, match=told):
        read_esc50_meta(folder, "esc50")


def test_a_fold_without_a_class_is_named(tmp_path: Path):
    clips, _ = read_esc50_meta(write_esc(tmp_path), "esc50")
    with pytest.raises(DataError, match="fold 4 has no 'noise'"):
        check_clips(tmp_path, [clip for clip in clips if (clip.fold, clip.category) != (4, "noise")])


def test_a_missing_column_or_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"neither meta/esc50\.csv nor meta\.csv"):
        read_esc50_meta(tmp_path, "esc50")
    folder = write_esc(tmp_path / "esc")
    write_meta(folder, ["filename", "fold", "category"], [])
    with pytest.raises(DataError, match="column 'target' is missing"):
        read_esc50_meta(folder, "esc50")


def test_esc10_of_an_unmarked_file_needs_ten_categories(tmp_path: Path):
    folder = write_esc(tmp_path)
    rows = [row[:4] for row in read_rows(folder)]
    write_meta(folder, COLUMNS[:4], rows)
    with pytest.raises(DataError, match="not ten categories"):
        read_esc50_meta(folder, "esc10")
