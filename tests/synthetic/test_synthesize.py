"""A folder of synthetic data: real files, the same on any number of workers, never half made."""

import csv
import hashlib
import json
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from comodal.cli.program import main
from comodal.data.output_folder import lock_output_folder
from comodal.errors import DataError
from comodal.synthetic.scenes.audio_synthesis import render_world_audio
from comodal.synthetic.scenes.rendering import render_frame
from comodal.synthetic.scenes.world import SOUNDING_KINDS, Purpose, make_world
from comodal.synthetic.synthesize import synthesize
from tests.support.process_groups import kill_when

SMALL = {"videos": 10, "seconds": 1.0, "audio": 50, "images": 10, "scenes": 10, "side": 64, "audio_seconds": 1.0}


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "world"
    synthesize(folder, workers=1, **SMALL)
    return folder


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_two_workers_write_the_same_bytes_as_one(synthetic: Path, tmp_path: Path):
    synthesize(tmp_path / "other", workers=2, **SMALL)
    assert digests(tmp_path / "other") == digests(synthetic)


def test_another_seed_writes_other_videos(synthetic: Path, tmp_path: Path):
    synthesize(tmp_path, workers=1, **{**SMALL, "videos": 1, "audio": 0, "images": 0, "scenes": 0, "seed": 1})
    assert (tmp_path / "videos/video-00000.mp4").read_bytes() != (synthetic / "videos/video-00000.mp4").read_bytes()


def test_a_video_is_h264_and_aac_and_shows_and_sounds_what_was_rendered(synthetic: Path):
    world = make_world(0, Purpose.VIDEO, 3, seconds=1.0)
    with av.open(str(synthetic / "videos/video-00003.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.audio[0].codec_context.name == "aac"
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(synthetic / "videos/video-00003.mp4")) as container:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert len(frames) == 10
    for number, frame in enumerate(frames):
        rendered = render_frame(world, number / 10, 64)
        assert np.abs(frame.astype(int) - rendered).mean() < 12  # of 255; the colour planes have half the resolution
    wanted = render_world_audio(world, 48_000)
    count = min(len(sound), len(wanted))
    assert count >= 47_000
    assert np.corrcoef(sound[:count], wanted[:count])[0, 1] > 0.9  # and in step: no delay


def test_the_lists_agree_with_each_other_and_with_the_files(synthetic: Path):
    worlds, sources = lines(synthetic / "worlds.jsonl"), lines(synthetic / "videos.jsonl")
    assert [w["key"] for w in worlds] == [s["key"] for s in sources]
    assert [s["split"] for s in sources].count("train") == 8
    assert {s["split"] for s in sources} == {"train", "validation", "test"}
    assert len({s["group"] for s in sources}) == len(sources)
    for world, source in zip(worlds, sources, strict=True):
        assert (synthetic / source["path"]).is_file()
        assert source["label"] in world["sounding"]
        sounding = [thing["kind"] for thing in world["objects"] if thing["sounding"]]
        assert sounding == world["sounding"] and all(kind in SOUNDING_KINDS for kind in sounding)
        for thing in world["objects"]:
            assert len(thing["boxes"]) == len(world["box_seconds"]) == 2
            assert bool(thing["events"]) == thing["sounding"]


def test_the_sounds_are_laid_out_as_esc50_is(synthetic: Path):
    with (synthetic / "esc50/meta/esc50.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["filename", "fold", "target", "category", "esc10", "src_file", "take"]
    assert len(rows) == 50 and {row["esc10"] for row in rows} == {"True", "False"}
    for fold in "12345":
        assert sorted(row["category"] for row in rows if row["fold"] == fold) == list(SOUNDING_KINDS)
    for row in rows:
        assert row["filename"] == f"{row['fold']}-{row['src_file']}-{row['take']}-{row['target']}.wav"
        assert SOUNDING_KINDS[int(row["target"])] == row["category"]
        info = soundfile.info(synthetic / "esc50/audio" / row["filename"])
        assert (info.samplerate, info.channels, info.frames) == (44_100, 1, 44_100)


def test_the_images_are_a_tree_of_classes(synthetic: Path):
    for split in ("train", "test"):
        assert sorted(path.name for path in (synthetic / "images" / split).iterdir()) == list(SOUNDING_KINDS)
        for path in (synthetic / "images" / split).rglob("*.jpg"):
            with Image.open(path) as image:
                assert image.size == (64, 64)


def test_running_again_does_nothing(synthetic: Path):
    before = {path: path.stat().st_mtime_ns for path in synthetic.rglob("*")}
    synthesize(synthetic, workers=1, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in synthetic.rglob("*")} == before


def test_a_killed_run_goes_on_to_the_same_end(synthetic: Path, tmp_path: Path):
    """As a kill leaves it: some files there, one half written under its temporary name, no lists."""
    folder = tmp_path / "killed"
    (folder / "videos").mkdir(parents=True)
    (folder / "about.json").write_bytes((synthetic / "about.json").read_bytes())
    (folder / "videos/video-00001.mp4").write_bytes((synthetic / "videos/video-00001.mp4").read_bytes())
    (folder / "videos/.video-00002.mp4.77.part").write_bytes(b"half")
    synthesize(folder, workers=1, **SMALL)
    assert digests(folder) == digests(synthetic)


def test_workers_end_with_a_killed_command(tmp_path: Path):
    code = "import sys, pathlib; from comodal.synthetic.synthesize import synthesize as make; "
    code += "make(pathlib.Path(sys.argv[1]), videos=100_000, workers=2)"
    assert kill_when(code, tmp_path / "world", begun=lambda: any(tmp_path.rglob("*.mp4")))


def test_a_second_command_in_the_folder_is_refused(synthetic: Path, capsys: pytest.CaptureFixture):
    with lock_output_folder(synthetic):
        assert main(["synthesize", str(synthetic)]) == 1
    said = capsys.readouterr().err
    assert said == f"comodal: error: another command is writing to {synthetic}: wait until it ends\n"
    synthesize(synthetic, workers=1, **SMALL)


def test_a_folder_with_another_world_or_other_files_is_refused(synthetic: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"seed 0 \(requested 5\).*another folder"):
        synthesize(synthetic, workers=1, **SMALL, seed=5)
    (tmp_path / "thesis.tex").write_text("dear reader")
    with pytest.raises(DataError, match="is not empty"):
        synthesize(tmp_path, workers=1, **SMALL)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"side": 95}, "even side"),
        ({"seconds": 0.5}, "seconds is a number from 1 to 3,600"),
        ({"workers": 0}, "workers is a number from 1 to 1,024"),
    ],
)
def test_impossible_options_are_told(tmp_path: Path, wrong: dict, message: str):
    with pytest.raises(ValueError, match=message):
        synthesize(tmp_path / "none", **{**SMALL, **wrong})
    assert not (tmp_path / "none").exists()
