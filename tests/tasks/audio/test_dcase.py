"""DCASE's scenes in all its layouts: the synthetic data's official files, tables cut by hand, and what errors say."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from comodal.errors import DataError
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, L3NetConfig
from comodal.synthetic.formats.dcase_folders import (
    SCENES_2013,
    SCENES_TAU,
    list_jobs_tau,
    list_recordings_2013,
    write_lists_tau,
)
from comodal.synthetic.scenes.synthesis_options import SynthesisOptions
from comodal.tasks.audio import audio_features
from comodal.tasks.audio.audio_features import AudioFeatures
from comodal.tasks.audio.audio_probe import AudioProbeOptions
from comodal.tasks.audio.dcase import SCENE_NAMES, evaluate_dcase, read_dcase
from comodal.tasks.evaluation.cross_validation import NUM_INNER_FOLDS

OPTIONS = SynthesisOptions(
    videos=0, audio=0, images=0, scenes=10, seconds=1.0, side=32, frames_per_second=5.0, audio_seconds=0.25, seed=0
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save_model(L3Net(L3NetConfig(width=2, image_size=32)), folder, {})
    return folder


@pytest.fixture(scope="module")
def whole_tau(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic's TAU set, a quarter of a second of each sound."""
    folder = tmp_path_factory.mktemp("tau")
    for job in list_jobs_tau(folder, OPTIONS):
        job()
    write_lists_tau(folder, OPTIONS)
    return folder


@pytest.fixture
def tau(whole_tau: Path, tmp_path: Path) -> Path:
    """Its lists, to be changed, beside links to its sounds."""
    folder = tmp_path / "tau"
    folder.mkdir()
    (folder / "audio").symlink_to(whole_tau / "audio")
    shutil.copy(whole_tau / "meta.csv", folder)
    shutil.copytree(whole_tau / "evaluation_setup", folder / "evaluation_setup")
    return folder


def halves(folder: Path, names: tuple[str, str] = ("scenes_stereo", "scenes_stereo_testset")) -> Path:
    """The names of DCASE 2013, of empty files."""
    for recording in list_recordings_2013():
        path = folder / names[recording.is_test] / Path(recording.file).name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def write_wav(path: Path, pitch: float, seconds: float = 0.3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * 8000)) / 8000
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * pitch * time + pitch), 8000)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_tau_is_fitted_and_tested_as_its_lists_say(whole_tau: Path, model: Path, tmp_path: Path):
    numbers = evaluate_dcase(model, whole_tau, out=tmp_path, windows=1, workers=1)
    assert (numbers["audio.items"], numbers["audio.classes"], numbers["audio.chance_level"]) == (60, 10, 0.1)
    card = json.loads((tmp_path / "card.json").read_text())
    assert (card["task"], card["split"], card["settings"]["windows"]) == ("dcase", "fold 1", 1)
    assert {"meta", "fold 1 train", "fold 1 evaluate", "fold 1 test", "audio"} == card["files"].keys()
    assert all(score["paper"] is None for score in card["scores"].values())
    found = read_dcase(whole_tau)
    assert found.classes == SCENES_TAU
    cities = [{sound.name.split("-")[1] for sound, yes in zip(found.audio_files, mask, strict=True) if yes}
              for mask in (found.splits[0].train_mask, found.splits[0].test_mask)]  # fmt: skip
    assert cities == [{"barcelona", "helsinki", "london"}, {"paris", "stockholm"}]


def test_features_that_are_no_numbers_are_refused_with_their_recording(
    whole_tau: Path, model: Path, monkeypatch: pytest.MonkeyPatch
):
    plain = audio_features.embed_windows

    def damaged(*args: object) -> dict:
        return {name: rows * float("nan") if name == "trained" else rows for name, rows in plain(*args).items()}

    monkeypatch.setattr(audio_features, "embed_windows", damaged)
    with pytest.raises(DataError, match=r"\.wav, features of the trained system: .* NaN or infinite"):
        evaluate_dcase(model, whole_tau, windows=1, workers=1)


def test_segments_of_a_place_choose_the_penalty_together(tau: Path):
    found = read_dcase(tau)
    assert (
        len(
            {
                (sound.name.rsplit("-", 2)[0], part)
                for sound, part in zip(found.audio_files, found.splits[0].inner_folds, strict=True)
            }
        )
        == 50
    )
    for listed in tau.rglob("*.csv"):  # without places in the table the names of the files tell them
        listed.write_text("\n".join("\t".join(line.split("\t")[:2]) for line in listed.read_text().splitlines()))
    again = read_dcase(tau)
    places = {
        (sound.name.rsplit("-", 2)[0], part)
        for sound, part in zip(again.audio_files, again.splits[0].inner_folds, strict=True)
    }
    assert len(places) == 50


def test_tests_that_nobody_labels_get_a_submission_and_no_score(tau: Path, model: Path, tmp_path: Path):
    (tau / "evaluation_setup" / "fold1_evaluate.csv").unlink()
    train = set((tau / "evaluation_setup" / "fold1_train.csv").read_text().splitlines())
    meta = (tau / "meta.csv").read_text().splitlines()
    (tau / "meta.csv").write_text("\n".join(line for line in meta if "\t".join(line.split("\t")[:2]) in train))
    numbers = evaluate_dcase(model, tau, out=tmp_path / "out", windows=1, workers=1)
    assert "audio.trained" not in numbers
    lines = [line.split("\t") for line in (tmp_path / "out" / "submission.csv").read_text().splitlines()]
    names = (tau / "evaluation_setup" / "fold1_test.csv").read_text().splitlines()[1:]
    assert sorted(line[0] for line in lines) == sorted(names)
    assert {line[1] for line in lines} <= set(SCENES_TAU)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["scores"] == {}
    assert card["counts"]["items"] == 60
    assert not (tmp_path / "out" / "predictions.csv").exists()


def test_a_test_list_is_scored_by_the_labels_of_meta(tau: Path):
    with_list = read_dcase(tau)
    (tau / "evaluation_setup" / "fold1_evaluate.csv").unlink()
    without = read_dcase(tau)
    assert without.check()
    assert sorted(map(str, without.audio_files)) == sorted(map(str, with_list.audio_files))


def test_an_evaluation_set_of_its_own_is_tested_by_all_of_the_first(tau: Path, tmp_path: Path):
    other = tmp_path / "evaluation"
    for number in range(3):
        write_wav(other / "audio" / f"{number}.wav", 300.0 + number)
    (other / "evaluation_setup").mkdir()
    (other / "evaluation_setup" / "test.csv").write_text("filename\naudio/0.wav\naudio/1.wav\naudio/2.wav\n")
    found = read_dcase(tau, other)
    assert (found.splits[0].train_mask.sum(), found.splits[0].test_mask.sum(), found.split) == (150, 3, "evaluation")
    assert not found.check()
    assert [sound.name for sound in found.audio_files][-3:] == ["audio/0.wav", "audio/1.wav", "audio/2.wav"]
    (other / "meta.txt").write_text("audio/0.wav\tbus\naudio/1.wav\ttram\naudio/2.wav\tbus\n")
    assert read_dcase(tau, other).check()
    edit(other / "meta.txt", "tram", "moon")
    with pytest.raises(DataError, match=r"class 'moon' of audio/1.wav is tested in the split 'evaluation'"):
        read_dcase(tau, other).check()


def test_four_folds_without_lines_of_names_as_until_2018(tmp_path: Path):
    """TUT's text files: location, start and end in the name of the file; each of four folds tests other places."""
    names = [(f"audio/{scene[0]}{place:03d}_{start}_{start + 30}.wav", scene)
             for scene in ("beach", "car") for place in range(8) for start in (0, 30)]  # fmt: skip
    (tmp_path / "evaluation_setup").mkdir()
    (tmp_path / "meta.txt").write_text(
        "".join(f"{name}\t{scene}\n" for name, scene in [*names, ("audio/z.wav", "car")])
    )
    for fold in range(1, 5):
        test = [row for row in names if int(row[0][7:10]) % 4 == fold - 1]
        for what, rows in (("train", [row for row in names if row not in test]), ("evaluate", test)):
            text = "".join(f"{name}\t{scene}\n" for name, scene in rows)
            (tmp_path / "evaluation_setup" / f"fold{fold}_{what}.txt").write_text(text)
    found = read_dcase(tmp_path)
    assert [one.fold for one in found.splits] == [1, 2, 3, 4]
    assert [int(one.test_mask.sum()) for one in found.splits] == [8] * 4
    assert sum(one.test_mask.astype(int) for one in found.splits).tolist() == [1] * 32
    assert found.excluded == {"in no fold": 1}
    places = {
        (sound.name[:10], int(part)) for sound, part in zip(found.audio_files, found.splits[0].inner_folds, strict=True)
    }
    assert len(places) == 16


def test_a_table_without_lists_makes_five_folds_by_place(tau: Path):
    shutil.rmtree(tau / "evaluation_setup")
    found = read_dcase(tau)
    assert (found.split, [one.fold for one in found.splits]) == ("5 folds by location", [1, 2, 3, 4, 5])
    place = [sound.name.rsplit("-", 2)[0] for sound in found.audio_files]
    for one in found.splits:
        tested = {name for name, yes in zip(place, one.test_mask, strict=True) if yes}
        assert not tested & {name for name, yes in zip(place, one.train_mask, strict=True) if yes}


@pytest.mark.parametrize("names", [("scenes_stereo", "scenes_stereo_testset"), ("train", "test"), ("train", "val")])
def test_the_two_halves_of_2013(tmp_path: Path, names: tuple[str, str]):
    found = read_dcase(halves(tmp_path, names))
    assert found.classes == SCENE_NAMES == SCENES_2013
    assert (found.title, found.splits[0].train_mask.sum(), found.splits[0].test_mask.sum()) == ("DCASE 2013", 100, 100)
    assert np.bincount(found.splits[0].inner_folds[found.splits[0].train_mask]).tolist() == [20] * NUM_INNER_FOLDS
    assert found.paper_result is not None
    assert found.paper_result.scores == {"trained": 0.93, "untrained": 0.85}
    next((tmp_path / names[1]).iterdir()).unlink()
    assert read_dcase(tmp_path).paper_result is None


def test_the_papers_numbers_need_its_protocol_and_lengths(tmp_path: Path):
    cell = read_dcase(halves(tmp_path)).paper_result
    assert cell is not None

    def features(windows: int, seconds: float) -> AudioFeatures:
        return AudioFeatures({}, np.full(3, seconds), 1.0, windows)

    assert cell.get_scores(AudioProbeOptions(), features(60, 30.0)) == cell.scores
    for how, heard in (
        (AudioProbeOptions(classifier="logistic"), features(60, 30.0)),
        (AudioProbeOptions(windows=10), features(10, 30.0)),
        (AudioProbeOptions(), features(60, 2.0)),
    ):
        assert cell.get_scores(how, heard) == {}


def test_a_half_without_scenes_in_its_names_gets_a_submission(tmp_path: Path, model: Path):
    for number in range(1, 4):
        write_wav(tmp_path / "scenes_stereo" / f"bus{number:02d}.wav", 200.0 + number)
        write_wav(tmp_path / "scenes_stereo" / f"park{number:02d}.wav", 2000.0 + number)
    for number, pitch in ((1, 205.0), (2, 2005.0)):
        write_wav(tmp_path / "scenes_stereo_testset" / f"{number}.wav", pitch)
    numbers = evaluate_dcase(model, tmp_path, out=tmp_path / "out", windows=1, workers=1)
    assert numbers["audio.items"] == 2
    assert (tmp_path / "out" / "submission.csv").read_text().startswith("scenes_stereo_testset/1.wav\t")
    write_wav(tmp_path / "scenes_stereo_testset" / "bus03.wav", 203.0)
    with pytest.raises(DataError, match=r"2 of 3 test files have no class, the first is scenes_stereo_testset/1.wav"):
        evaluate_dcase(model, tmp_path)


def test_a_wrong_name_or_a_missing_half_is_told(tmp_path: Path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        read_dcase(tmp_path / "nowhere")
    with pytest.raises(DataError, match="neither scenes_stereo/ and scenes_stereo_testset/"):
        read_dcase(tmp_path)
    halves(tmp_path)
    (tmp_path / "scenes_stereo_testset" / "moon01.wav").touch()
    with pytest.raises(DataError, match=r"moon01.wav: scene 'moon' is not in scenes_stereo/: bus, busystreet"):
        read_dcase(tmp_path)
    shutil.rmtree(tmp_path / "scenes_stereo_testset")
    with pytest.raises(DataError, match="scenes_stereo_testset/ is missing; pass another test folder with --test"):
        read_dcase(tmp_path)
    (tmp_path / "scenes_stereo" / "12.wav").touch()
    with pytest.raises(DataError, match=r"12.wav: expected a file name with the scene, such as bus01.wav"):
        read_dcase(tmp_path, halves(tmp_path / "other") / "scenes_stereo_testset")


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        (
            "fold1_evaluate.csv",
            "\tbus\n",
            "\ttram\n",
            r"fold1_evaluate.csv, line \d+: .*'tram', but 'bus' by .*meta.csv, l",
        ),
        ("fold1_train.csv", "audio/bus-", "audio/omnibus-", r"fold1_train.csv, line \d+: .*omnibus.* is not in meta"),
        ("fold1_test.csv", "audio/bus-", "audio/omnibus-", r"bus-paris.* is not in .*fold1_test.csv: the lists are of"),
        ("fold1_train.csv", "scene_label", "scene", "column 'scene_label' is missing; there are filename, scene"),
        ("fold1_train.csv", "\tbus\n", "\t\n", r"fold1_train.csv, line \d+: scene_label is empty"),
        ("fold1_train.csv", "\tbus\n", "\n", r"fold1_train.csv, line \d+: 1 columns, where 2 are expected"),
    ],
)
def test_lists_that_do_not_go_together_are_named(tau: Path, file: str, old: str, new: str, told: str):
    edit(tau / "evaluation_setup" / file, old, new)
    with pytest.raises(DataError, match=told):
        read_dcase(tau)


def test_missing_lists_and_sounds_are_named(tau: Path):
    setup = tau / "evaluation_setup"
    first = (setup / "fold1_evaluate.csv").read_text().splitlines()[1]
    with (setup / "fold1_train.csv").open("a") as file:
        file.write(first + "\n")
    with pytest.raises(DataError, match="is in training and test set of fold 1"):
        read_dcase(tau)
    for name in ("fold1_evaluate.csv", "fold1_test.csv"):
        (setup / name).unlink()
    with pytest.raises(DataError, match=r"neither fold1_evaluate.csv nor fold1_test.csv, the test list, exists"):
        read_dcase(tau)
    (setup / "fold1_train.csv").rename(setup / "fold2_train.csv")
    with pytest.raises(DataError, match=r"fold1_train.csv is missing, but fold2_train.csv exists"):
        read_dcase(tau)
    (setup / "fold2_train.csv").unlink()
    with pytest.raises(DataError, match=r"fold1_train.csv, the training list, is missing"):
        read_dcase(tau)
    shutil.rmtree(setup)
    (tau / "audio").unlink()
    with pytest.raises(DataError, match=r"meta.csv: 150 of 150 audio files are missing, the first is .*audio/airport"):
        read_dcase(tau).check()


def test_a_damaged_table_is_told(tau: Path):
    (tau / "meta.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DataError, match=r"meta.csv is not text: it is UTF-16"):
        read_dcase(tau)
    (tau / "meta.csv").write_text("")
    with pytest.raises(DataError, match=r"meta.csv: it is empty"):
        read_dcase(tau)
