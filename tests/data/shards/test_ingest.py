"""Videos become shards: every file is in them or refused with its reason, whatever kills the command on its way."""

import errno
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from comodal.data.output_folder import lock_output_folder
from comodal.data.shards import shard_runner as making
from comodal.data.shards.ingest import make_shard_sample, make_unique_keys, plan_videos, prepare_videos
from comodal.data.shards.shard_reader import ShardReader
from comodal.data.shards.shard_report import describe_shards
from comodal.data.shards.shard_runner import RunPlan, ShardSample, WorkerOptions, make_shards, plan_shards
from comodal.data.sources.split_names import SPLITS
from comodal.data.sources.video_sources import VideoSource
from comodal.errors import DataError, MediaError
from comodal.media.audio import decode_flac
from comodal.media.video import Clip, read_clip
from tests.support.make_media import make_video
from tests.support.process_groups import kill_when

SMALL = {"short_side": 32, "sample_rate": 16000, "frames_per_second": 2.0, "videos_per_shard": 3}
COMMAND = """
import sys
from pathlib import Path
from comodal.data.shards.ingest import prepare_videos
prepare_videos(Path(sys.argv[1]), Path(sys.argv[2]), short_side=32, sample_rate=16000, frames_per_second=2.0,
               videos_per_shard=3, workers=2)
"""


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    """16 good videos, two of them of one source, and one of each kind that is refused."""
    root = tmp_path_factory.mktemp("videos")
    for n in range(14):
        make_video(root / f"kind{n % 2}" / f"video {n}.mp4", seconds=1.5, seed=n)
    for start in (10, 20):
        make_video(root / "kind0" / f"-Qowmc0P9ic_{start:06d}_{start + 10:06d}.mp4", seconds=1.5, seed=start)
    make_video(root / "silent.mp4", loudness=0.0)
    make_video(root / "deaf.mp4", loudness=None)
    make_video(root / "blind.mp4", picture=False)
    make_video(root / "short.mp4", seconds=0.5)
    (root / "notes.json").write_text("{}")
    return root


@pytest.fixture(scope="session")
def prepared(videos, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "out"
    prepare_videos(videos, out, **SMALL, workers=1, backend="sequential")
    return out


def tree(out: Path) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def report(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "report.jsonl").read_text().splitlines()]


def shards_of(out: Path) -> list[ShardReader]:
    return [ShardReader(out / split) for split in SPLITS if any((out / split).glob("*.index"))]


def test_every_file_is_in_the_shards_or_refused_with_its_reason(videos, prepared):
    lines = report(prepared)
    assert sorted(line["path"] for line in lines) == sorted(
        path.relative_to(videos).as_posix() for path in videos.rglob("*") if path.is_file()
    )
    refused = {line["path"]: line["reason"] for line in lines if line["status"] == "refused"}
    assert refused == {
        "silent.mp4": "silent", "deaf.mp4": "no audio stream", "blind.mp4": "no video stream", "short.mp4": "too short",
        "notes.json": "not a video",
    }  # fmt: skip
    kept = {key for shards in shards_of(prepared) for key in shards.keys}
    assert kept == {line["key"] for line in lines if line["status"] == "accepted"}


def test_a_clip_holds_its_frames_its_sound_and_their_times(prepared):
    for shards in shards_of(prepared):
        for i in range(len(shards)):
            record = shards.read_record(i)
            assert record["key"] == shards.keys[i]
            assert record["group"] == shards.groups[i]
            assert record["label"] == record["source"].split("/")[0]
            sound, rate = decode_flac(shards.read_member(i, "flac"))
            assert rate == record["sample_rate"] == 16000
            assert len(sound) == pytest.approx(record["seconds"] * 16000, abs=1)
            assert record["seconds"] == pytest.approx(1.5, abs=0.15)
            assert record["frame_seconds"] == [0.0, 0.5, 1.0]
            assert shards.list_members(i) == [*record["frames"], "flac", "json"]
            for name in record["frames"]:
                frame = simplejpeg.decode_jpeg(shards.read_member(i, name))
                assert frame.shape == (record["height"], record["width"], 3) == (32, 32, 3)


def test_clips_of_one_source_video_are_in_one_split(prepared):
    places = {line["split"] for line in report(prepared) if "-Qowmc0P9ic" in line["path"]}
    assert len(places) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_the_result_does_not_depend_on_the_number_of_workers(videos, prepared, tmp_path, workers):
    prepare_videos(videos, tmp_path / "out", **SMALL, workers=workers)
    assert tree(tmp_path / "out") == tree(prepared)


def test_run_twice_it_does_nothing(videos, prepared, capsys):
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*") if path.name != ".lock"}
    prepare_videos(videos, prepared, **SMALL)
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*") if path.name != ".lock"} == before


def test_stopped_before_each_of_its_renames_it_ends_with_the_same_bytes(videos, prepared, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    rename, left = Path.replace, [0]

    def replace(path, target):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    out = tmp_path / "out"
    for renames in itertools.cycle(range(6)):  # one for about.json and three for a shard, so that the last two get on
        left[0] = renames
        try:
            prepare_videos(videos, out, **SMALL, backend="sequential")
            break
        except Killed:
            with pytest.raises(DataError, match=r"not finished|has no shards"):
                ShardReader(out / "train")
    assert tree(out) == tree(prepared)


def test_killed_at_ten_random_moments_it_ends_with_the_same_bytes(videos, prepared, tmp_path):
    out, moments = tmp_path / "out", random.Random(0)
    command = [sys.executable, "-c", COMMAND, videos, out]
    kills = 0
    while kills < 10:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while not (out / "about.json").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(moments.uniform(0.2, 1.2))  # the workers take some 0.5 s to start
        if process.poll() is None:
            kills += 1
            process.kill()
        else:
            shutil.rmtree(out)
        process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert tree(out) == tree(prepared)


def test_workers_end_with_a_killed_command(videos, tmp_path):
    assert kill_when(COMMAND, videos, tmp_path / "out", begun=lambda: any(tmp_path.rglob(".*.progress")))


def test_other_options_or_files_on_the_same_folder_are_refused(videos, prepared, tmp_path):
    with pytest.raises(
        DataError, match=r"started with other options: seconds was 10\.0 and is 5\.0; quality was 85 and is 90"
    ):
        prepare_videos(videos, prepared, **SMALL, seconds=5.0, quality=90)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.mp4").symlink_to(videos / "silent.mp4")
    with pytest.raises(DataError, match="the source files have changed"):
        prepare_videos(tmp_path / "one", prepared, **SMALL)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(DataError, match="not empty and was not created by"):
        prepare_videos(videos, tmp_path / "mine", **SMALL)


def test_two_commands_cannot_fill_one_folder(videos, prepared):
    with lock_output_folder(prepared), pytest.raises(DataError, match="another command is writing"):
        prepare_videos(videos, prepared, **SMALL)


def test_a_full_disk_is_one_sentence_and_running_again_goes_on(videos, prepared, tmp_path, monkeypatch):
    sync, left = os.fsync, [5]

    def full(descriptor):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    out = tmp_path / "out"
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"the disk is full; .*run the same command again"):
        prepare_videos(videos, out, **SMALL, backend="sequential")
    assert not list(out.rglob("*.part"))
    monkeypatch.setattr(os, "fsync", sync)
    prepare_videos(videos, out, **SMALL, backend="sequential")
    assert tree(out) == tree(prepared)


def test_a_shard_that_was_deleted_is_made_again(videos, prepared, tmp_path):
    prepare_videos(videos, tmp_path / "out", **SMALL, backend="sequential")
    next((tmp_path / "out" / "train").glob("*.tar")).unlink()
    prepare_videos(videos, tmp_path / "out", **SMALL, backend="sequential")
    assert tree(tmp_path / "out") == tree(prepared)


@dataclass(frozen=True)
class Thing:
    key: str
    path: str


def read_or_die(thing: Thing) -> ShardSample:
    if thing.path == "kills":
        os.kill(os.getpid(), signal.SIGSEGV)
    if thing.path == "bad":
        raise MediaError(thing.path, "silent", "all zero")
    record = {"seconds": 1.0, "frames": [], "width": 1, "height": 1}
    return ShardSample({"flac": thing.key.encode()}, record)


def test_a_decoder_that_crashes_costs_the_file_alone(tmp_path):
    things = [Thing(f"t{n}", {4: "kills", 7: "bad", 8: "kills"}.get(n, "good")) for n in range(12)]
    plan = RunPlan("things", {}, plan_shards({"train": things}, 4), ())
    about = make_shards(plan, read_or_die, tmp_path / "out", WorkerOptions(2))
    assert about.refused == {"crashed the decoder": 2, "silent": 1}
    assert ShardReader(tmp_path / "out" / "train").keys == [f"t{n}" for n in range(12) if n not in (4, 7, 8)]


def test_a_backend_that_is_not_installed_names_its_extra(videos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.setitem(sys.modules, "ray.util.joblib", None)
    for backend in ("dask", "ray"):
        with pytest.raises(DataError, match=rf"needs the extra: pip install 'comodal\[{backend}\]'"):
            prepare_videos(videos, tmp_path / "out", backend=backend)


def test_keys_are_fit_for_tar_and_unique():
    names = ["a/b.c.mp4", "a/b c.mp4", "a/b c.mkv", "日本/猫.mp4", "x" * 300 + ".mp4"]
    sources = [VideoSource(name, name.rsplit(".", 1)[0], name) for name in names]
    keys = [source.key for source in make_unique_keys(sources)]
    assert len(set(keys)) == len(keys)
    assert keys[3] == "日本_猫"
    assert all(len(key.encode()) <= 130 and not set(key) & set("./ \n") for key in keys)
    assert [source.key for source in make_unique_keys(sources[:1])] == ["a_b_c"]


OPTIONS = {"limit": None, "split": "own", "validation_fraction": 0.0, "test_fraction": 0.0, "videos_per_shard": 2}


def test_what_needs_no_opening_is_refused_in_the_plan():
    sources = [
        VideoSource("a.mp4", "a", "v", (), "train"),
        VideoSource("a.mp4", "again", "v", (), "train"),
        VideoSource("b.mp4", "b", "v", (), "test"),
        VideoSource("c.mp4", "c", "w", missing=True),
    ]
    plan = plan_videos(sources, OPTIONS)
    assert {line["path"]: line["reason"] for line in plan.refused if line["path"] == "c.mp4"} == {"c.mp4": "missing"}
    assert sorted(line["reason"] for line in plan.refused) == ["in two splits", "listed twice", "missing"]
    assert [(shard.split, [item.key for item in shard.items]) for shard in plan.shards] == [("test", ["b"])]


def test_a_limit_takes_the_same_videos_of_a_growing_folder():
    sources = [VideoSource(f"{n}.mp4", str(n), str(n)) for n in range(50)]
    few = plan_videos(sources, OPTIONS | {"limit": 5})
    assert sum(len(shard.items) for shard in few.shards) == 5
    assert {item for shard in few.shards for item in shard.items} <= {
        item for shard in plan_videos(sources, OPTIONS | {"limit": 10}).shards for item in shard.items
    }


def test_the_classes_of_kinetics_sounds_are_a_filter(tmp_path, capsys):
    for label in ("playing_violin", "mowing lawn", "yoga"):
        make_video(tmp_path / "videos" / label / "a.mp4", seconds=1.2)
    out = tmp_path / "out"
    prepare_videos(
        tmp_path / "videos",
        out,
        classes=["kinetics-sounds"],
        **SMALL,
        test_fraction=0.0,
        validation_fraction=0.0,
        backend="sequential",
    )
    assert sorted(shards.read_record(i)["label"] for shards in shards_of(out) for i in range(len(shards))) == [
        "mowing lawn",
        "playing_violin",
    ]
    printed = capsys.readouterr().out
    assert "2 of 34 classes, 2 of 3 files" in printed
    assert "does not have: blowing nose" in printed
    with pytest.raises(DataError, match="no file has one of the classes"):
        prepare_videos(tmp_path / "videos", tmp_path / "none", classes=["sawing"])


def test_of_a_whole_video_under_the_bare_id_the_part_is_taken_that_the_list_means(tmp_path):
    """The list means seconds 1 to 2.2; 1.2 s of video are that clip, of 3 s it is a part."""
    make_video(tmp_path / "aaaaaaaaaaa.mp4", seconds=1.2)
    make_video(tmp_path / "bbbbbbbbbbb.mp4", seconds=3.0)
    make_video(tmp_path / "ccccccccccc.mp4", seconds=3.0)
    rows = "label,youtube_id,time_start,time_end,split\nx,aaaaaaaaaaa,1,2.2,train\nx,bbbbbbbbbbb,1,2.2,train\n"
    rows += "x,ccccccccccc,7,8.2,train\nx,ccccccccccc,1,1.5,train\n"
    (tmp_path / "list.csv").write_text(rows)
    prepare_videos(tmp_path / "list.csv", tmp_path / "out", **SMALL, backend="sequential")
    lines = report(tmp_path / "out")
    assert sorted((line["path"], line.get("reason")) for line in lines) == [
        ("aaaaaaaaaaa.mp4", None), ("bbbbbbbbbbb.mp4", None),
        ("ccccccccccc.mp4", "too short"), ("ccccccccccc.mp4", "too short"),
    ]  # fmt: skip
    taken = [line["seconds"] for line in lines if line["status"] == "accepted"]
    assert taken == pytest.approx([1.2, 1.2], abs=0.05)
    whole = read_clip(tmp_path / "bbbbbbbbbbb.mp4", frames_per_second=5.0, short_side=64, sample_rate=16000)
    shards = next(shards for shards in shards_of(tmp_path / "out") if len(shards))
    part = next(i for i in range(len(shards)) if shards.read_record(i)["source"].startswith("b"))
    sound, _ = decode_flac(shards.read_member(part, "flac"))
    np.testing.assert_allclose(sound[:16000], whole.audio[16000:32000], atol=2e-3)


def test_shards_are_described(prepared):
    description = describe_shards(prepared)
    assert description["kind"] == "clips"
    assert sum(split["clips"] for split in description["splits"].values()) == 16
    assert sum(split["frames"] for split in description["splits"].values()) == 16 * 3
    assert sum(split["labels"].get("kind0", 0) for split in description["splits"].values()) == 9
    assert description["refused"]["silent"] == 1
    assert list(describe_shards(prepared / "train")["splits"]) == ["train"]


@pytest.mark.parametrize(
    "wrong", [{"validation_fraction": 0.6, "test_fraction": 0.5}, {"limit": 0}, {"videos_per_shard": 0}, {"workers": 0}]
)
def test_impossible_numbers_are_refused(videos, tmp_path, wrong):
    with pytest.raises(ValueError, match=r"must|is a number|are parts"):
        prepare_videos(videos, tmp_path / "out", **wrong)


def test_the_sound_begins_at_time_zero_when_that_of_the_file_begins_late():
    frame = simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8))
    clip = Clip([frame] * 3, [0.0, 1.0, 2.0], np.full(20, 0.5, np.float32), 10, 0.5, 2.0)
    sample = make_shard_sample(VideoSource("a.mp4", "a", "a"), clip)
    sound, _ = decode_flac(sample.members["flac"])
    assert sound.tolist() == [0.0] * 5 + [0.5] * 15
    assert sample.record["frame_seconds"] == [0.0, 1.0]


def test_workers_that_keep_dying_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(making, "is_crashing_item", lambda *_: False)
    plan = RunPlan("things", {}, plan_shards({"train": [Thing("t", "kills")]}, 4), ())
    with pytest.raises(DataError, match="workers keep crashing"):
        make_shards(plan, read_or_die, tmp_path / "out", WorkerOptions(1))
