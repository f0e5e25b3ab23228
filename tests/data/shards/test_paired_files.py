"""Pictures and sounds of the same class become pairs; no file is in two splits."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from comodal.data.shards.paired_files import draw_file_pairs, group_by_split_and_class, pad_to_one_second, prepare_pairs
from comodal.data.shards.shard_reader import ShardReader
from comodal.errors import DataError
from comodal.media.audio import decode_flac
from tests.support.make_media import make_tone


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """Grey 28 x 28 pictures and 8 kHz sounds of half a second, as in AV-digits, split by folders."""
    root = tmp_path_factory.mktemp("digits")
    for split, pictures, sounds in (("train", 6, 3), ("test", 2, 2)):
        for digit in (3, 7):
            for n in range(pictures):
                path = root / "images" / split / str(digit) / f"{n}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((28, 28), 20 * digit + n, np.uint8)).save(path)
            for n in range(sounds):
                make_tone(root / "sounds" / split / str(digit) / f"{n}.wav", 0.5, hertz=100.0 * digit)
    return root


def prepare(digits: Path, out: Path, **options) -> dict:
    return prepare_pairs(
        digits / "images", digits / "sounds", out, short_side=36, quality=95, pairs_per_shard=5, **options
    )


def test_picture_and_sound_are_of_the_same_class_and_split(digits, tmp_path):
    about = prepare(digits, tmp_path, backend="sequential")
    assert about.accepted == {"train": 12, "validation": 0, "test": 4}
    for split in ("train", "test"):
        shards = ShardReader(tmp_path / split)
        for i in range(len(shards)):
            record = shards.read_record(i)
            digit = int(record["label"])
            assert record["source"].startswith(f"{split}/{digit}/")
            assert record["audio_source"].startswith(f"{split}/{digit}/")
            picture = simplejpeg.decode_jpeg(shards.read_member(i, "0000.jpg"))
            assert picture.shape == (36, 36, 3)
            assert abs(int(picture.mean()) - 20 * digit) <= 8
            sound, rate = decode_flac(shards.read_member(i, "flac"))
            assert (rate, len(sound), record["seconds"], record["frame_seconds"]) == (48000, 48000, 1.0, [0.5])
            assert not sound[:11_000].any() and not sound[-11_000:].any()  # a quarter of a second on either side
            crossings = np.count_nonzero(np.diff(np.signbit(sound[13_000:35_000])))
            assert crossings / 2 / (22_000 / 48_000) == pytest.approx(100 * digit, rel=0.02)


def test_every_picture_is_used_once_before_any_is_used_twice(digits, tmp_path):
    prepare(digits, tmp_path, pairs=30, backend="sequential")
    shards = ShardReader(tmp_path / "train")
    used = Counter(shards.read_record(i)["source"] for i in range(len(shards)))
    assert len(shards) == 30
    assert sorted(set(used.values())) == [2, 3]  # 30 pairs of 12 pictures
    assert len(used) == 12


def test_the_draw_is_of_the_seed_and_of_nothing_else(digits):
    images, sounds = (
        group_by_split_and_class(digits / folder, 0.0, 0.0, kind)[0]
        for folder, kind in (("images", "image"), ("sounds", "audio"))
    )
    first = draw_file_pairs("train", images, sounds, 40, seed=1)
    assert first[:12] == draw_file_pairs("train", images, sounds, 12, seed=1)
    assert first != draw_file_pairs("train", images, sounds, 40, seed=2)


def test_workers_do_not_change_the_bytes_and_a_second_run_does_nothing(digits, tmp_path, capsys):
    prepare(digits, tmp_path / "one", backend="sequential")
    prepare(digits, tmp_path / "two", workers=2)
    files = [{p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
             for out in (tmp_path / "one", tmp_path / "two")]  # fmt: skip
    assert files[0] == files[1]
    prepare(digits, tmp_path / "one")
    assert "nothing to do" in capsys.readouterr().out


def test_a_hash_splits_files_that_no_folder_splits(tmp_path):
    for n in range(200):
        path = tmp_path / "images" / "a" / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found, _ = group_by_split_and_class(tmp_path / "images", validation_fraction=0.25, test_fraction=0.25, kind="image")
    names = [name for files in found.values() for name in files]
    assert len(names) == len(set(names)) == 200
    assert abs(len(found["train", "a"]) - 100) < 3 * 7  # three standard deviations


def test_files_without_a_partner_or_broken_are_reported(digits, tmp_path):
    (tmp_path / "sounds").symlink_to(digits / "sounds")
    for split in ("train", "test"):
        for path in (digits / "images" / split).rglob("*.png"):
            target = tmp_path / "images" / path.relative_to(digits / "images")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    (tmp_path / "images" / "train" / "9").mkdir()
    (tmp_path / "images" / "train" / "9" / "0.png").symlink_to(path)
    (tmp_path / "images" / "train" / "3" / "notes.txt").write_text("not a picture")
    about = prepare(tmp_path, tmp_path / "out", backend="sequential")
    assert about.accepted["train"] == 12
    assert about.refused["no partner"] == 1 and sorted(about.refused.values()) == [1, 1]
    lines = [json.loads(line) for line in (tmp_path / "out" / "report.jsonl").read_text().splitlines()]
    assert {
        "no audio file of class 9" in line.get("detail", "") for line in lines if line["path"].startswith("train/9")
    } == {True}


def test_folders_that_do_not_fit_are_refused(digits, tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        prepare_pairs(tmp_path / "none", digits / "sounds", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no class folders"):
        prepare_pairs(digits / "images", tmp_path / "empty", tmp_path / "out")
    make_tone(tmp_path / "others" / "train" / "x" / "a.wav", 0.5)
    with pytest.raises(DataError, match=r"no class of .* is also a class of"):
        prepare_pairs(digits / "images", tmp_path / "others", tmp_path / "out")


def test_a_sound_is_padded_to_a_second_on_both_sides():
    assert pad_to_one_second(np.ones(5, np.float32), 10).tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0, 0]
    assert pad_to_one_second(np.ones(12, np.float32), 10).tolist() == [1] * 12
