"""The report of `comodal prepare` has a note on every clip that was taken despite a problem of its files."""

import json
from pathlib import Path

import pytest

from comodal.data.shards.ingest import prepare_videos
from comodal.data.shards.paired_files import prepare_pairs
from tests.support.container_files import jpeg, write_tar
from tests.support.make_media import make_tone, make_video
from tests.support.synthetic_media import tone, write_video

SMALL = {"short_side": 32, "sample_rate": 16000, "validation_fraction": 0.0, "test_fraction": 0.0}


def notes(out: Path) -> dict[str, list[str]]:
    lines = [json.loads(line) for line in (out / "report.jsonl").read_text().splitlines()]
    assert all(line["status"] == "accepted" for line in lines)
    return {line["path"]: line.get("notes", []) for line in lines}


def cut(path: Path, fraction: float = 0.5) -> bytes:
    return path.read_bytes()[: int(path.stat().st_size * fraction)]


def test_pairs_of_a_truncated_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """It is read once and in four pairs: each has the note, in one process and in several."""
    for number in range(4):
        path = tmp_path / "images" / "a" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    path = make_tone(tmp_path / "sounds" / "a" / "cut.wav", 4.0)
    path.write_bytes(cut(path))
    make_tone(tmp_path / "sounds" / "b" / "whole.wav", 2.0)
    (tmp_path / "images" / "b").mkdir()
    (tmp_path / "images" / "b" / "0.jpg").write_bytes(jpeg(9))
    for out, how in (("one", {"backend": "sequential"}), ("two", {"workers": 2})):
        about = prepare_pairs(
            tmp_path / "images", tmp_path / "sounds", tmp_path / out, pairs_per_shard=2, **SMALL, **how
        )
        found = notes(tmp_path / out)
        assert len(found) == 5 and about.noted == 4
        for name, (*said,) in found.items():
            assert len(said) == ("cut.wav" in name)
            assert all("truncated" in note and "2.00 s" in note and "4.00 s" in note for note in said)
        assert "4 were taken despite a problem" in (line := capsys.readouterr().out) and "report.jsonl" in line
    reports = [(tmp_path / out / "report.jsonl").read_bytes() for out in ("one", "two")]
    assert reports[0] == reports[1]


def test_a_video_whose_audio_ends_early(tmp_path: Path):
    (tmp_path / "in").mkdir()
    for name, seconds in (("early", 3.0), ("whole", 5.0)):
        moments = [k / 25 for k in range(125)]
        write_video(tmp_path / "in" / f"{name}.mp4", picture_seconds=moments, sound=tone(seconds, 48_000))
    about = prepare_videos(tmp_path / "in", tmp_path / "out", **SMALL, backend="sequential")
    found = notes(tmp_path / "out")
    (note,) = found["early.mp4"]
    assert note.startswith("its audio ends at 3.0") and "5.00 s" in note
    assert found["whole.mp4"] == [] and about.noted == 1
    prepare_videos(tmp_path / "in", tmp_path / "short", **SMALL, seconds=2.0, backend="sequential")
    assert not any(notes(tmp_path / "short").values())  # nothing is missing of what is taken


@pytest.mark.parametrize("ending", ["wav", "mp3"])
def test_separate_audio_of_a_video_that_is_truncated(tmp_path: Path, ending: str):
    """video2dataset's `.mp4` without audio beside an audio file."""
    video = make_video(tmp_path / "v.mp4", seconds=4.0, loudness=None).read_bytes()
    sound = make_tone(tmp_path / f"a.{ending}", 4.0, 16_000)
    members = {"whole.mp4": video, f"whole.{ending}": sound.read_bytes()}
    members |= {"cut.mp4": video, f"cut.{ending}": cut(sound)}
    write_tar(tmp_path / "in" / "0.tar", members)
    prepare_videos(tmp_path / "in", tmp_path / "out", **SMALL, backend="sequential")
    found = notes(tmp_path / "out")
    assert found["0.tar/whole.mp4"] == []
    assert any("truncated" in note and "declares 4.0" in note for note in found["0.tar/cut.mp4"])
