"""UrbanSound8K: synthetic files in the official layout, its ten folds as they are, and tables that are wrong."""

import csv
import json
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from comodal.errors import DataError
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, L3NetConfig
from comodal.synthetic.formats.urbansound8k_files import list_urbansound8k_jobs, write_urbansound8k_lists
from comodal.synthetic.scenes.synthesis_options import SynthesisOptions
from comodal.tasks.audio.urbansound8k import evaluate_us8k, read_urbansound8k

OPTIONS = SynthesisOptions(
    videos=0, audio=0, images=0, scenes=10, seconds=1.0, side=32, frames_per_second=5.0, audio_seconds=0.3, seed=0
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rates of 8 to 192 kHz, 8 to 32 bits, ADPCM and floats, mono and stereo."""
    folder = tmp_path_factory.mktemp("us8k")
    for job in list_urbansound8k_jobs(folder, OPTIONS):
        job()
    write_urbansound8k_lists(folder, OPTIONS)
    return folder


@pytest.fixture
def urban(whole: Path, tmp_path: Path) -> Path:
    """Its table, to be changed, beside links to its sounds."""
    folder = tmp_path / "us8k"
    shutil.copytree(whole / "metadata", folder / "metadata")
    shutil.copytree(
        whole / "audio", folder / "audio", copy_function=lambda source, target: Path(target).symlink_to(source)
    )
    return folder


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metadata" / "UrbanSound8K.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(folder: Path, rows: list[dict[str, str]]) -> None:
    with (folder / "metadata" / "UrbanSound8K.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)


def test_each_of_the_ten_folds_is_tested_by_the_other_nine(whole: Path, tmp_path: Path):
    torch.manual_seed(0)
    save_model(L3Net(L3NetConfig(width=2, image_size=32)), tmp_path / "model", {})
    numbers = evaluate_us8k(tmp_path / "model", whole, windows=1, out=tmp_path / "out", workers=1)
    folds = [numbers[f"audio.spectrogram.fold{fold}"] for fold in range(1, 11)]
    assert numbers["audio.spectrogram"] == pytest.approx(np.mean(folds))
    assert numbers["audio.spectrogram.std"] == pytest.approx(np.std(folds, ddof=1))
    fold_of = {f"fold{row['fold']}/{row['slice_file_name']}": row["fold"] for row in rows_of(whole)}
    right = defaultdict(list)
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            assert row["fold"] == fold_of[row["item"]]
            right[int(row["fold"])].append(row["spectrogram"] == row["truth"])
    assert [np.mean(right[fold]) for fold in range(1, 11)] == pytest.approx(folds)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert (card["task"], card["split"], card["counts"]["items"]) == ("us8k", "10 folds", 100)
    assert card["settings"]["95 % interval"] == "Wilson, 100 independent items"  # each slice is of its own recording
    assert card["counts"]["shorter than a window, padded with silence"] == 100
    assert {f"fold {fold}" for fold in range(1, 11)} < card["scores"].keys()
    assert all(score["paper"] is None for score in card["scores"].values())


def test_folds_are_the_tables_and_the_next_one_chooses_the_penalty(whole: Path):
    found = read_urbansound8k(whole)
    assert [(one.fold, one.held_out_folds) for one in found.splits] == [
        (fold, (fold % 10 + 1,)) for fold in range(1, 11)
    ]
    recording = [sound.path.name.split("-")[0] for sound in found.audio_files]
    for one in found.splits:
        assert {name for name, yes in zip(recording, one.test_mask, strict=True) if yes}.isdisjoint(
            name for name, yes in zip(recording, one.train_mask, strict=True) if yes
        )
    assert found.classes == tuple(
        row["class"] for row in sorted(rows_of(whole)[:10], key=lambda row: int(row["classID"]))
    )


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("fold", "11", r"UrbanSound8K.csv, line 2: fold 11; there are 10"),
        ("fold", "x", r"line 2: fold 'x' is not an integer"),
        (
            "fold",
            "2",
            r"line 2: 100032-0-0-0.wav is in fold 2 by the table, but is in fold1: is this the table of an",
        ),
        ("classID", "3", r"line 2: 100032-0-0-0.wav is of recording 100032 and class 0 by its name, of .* class 3 by"),
        ("class", "moon", r"is of class 0, '\w+', but in earlier rows 0 is 'moon'"),
        ("class", "", r"line 2: class is empty"),
        ("slice_file_name", "100093-1-0-0.wav", r"line 3: 100093-1-0-0.wav is already in line 2"),
    ],
)
def test_a_table_of_another_version_is_named_with_its_line(urban: Path, column: str, value: str, told: str):
    rows = rows_of(urban)
    rows[0][column] = value
    write_rows(urban, rows)
    with pytest.raises(DataError, match=told):
        read_urbansound8k(urban)


def test_what_is_missing_is_named(urban: Path, tmp_path: Path):
    rows = rows_of(urban)
    (urban / "audio" / "fold1" / rows[0]["slice_file_name"]).unlink()
    with pytest.raises(
        DataError, match=r"csv: 1 of 100 audio files are missing, the first is .*fold1/100032-0-0-0.wav"
    ):
        read_urbansound8k(urban).check()
    write_rows(urban, [row for row in rows if row["fold"] != "7"])
    with pytest.raises(DataError, match=r"no slice is in fold 7; the 10 official folds must be complete"):
        read_urbansound8k(urban)
    write_rows(urban, [{name: value for name, value in row.items() if name != "classID"} for row in rows])
    with pytest.raises(DataError, match=r"column 'classID' is missing; there are slice_file_name, fsID"):
        read_urbansound8k(urban)
    shutil.rmtree(urban / "metadata")
    with pytest.raises(DataError, match=r"metadata/UrbanSound8K.csv is missing"):
        read_urbansound8k(urban)
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        read_urbansound8k(tmp_path / "nowhere")
