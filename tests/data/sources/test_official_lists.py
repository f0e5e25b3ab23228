"""Kinetics' CSVs and JSON and VGGSound's list name the same files, alone and several in one call."""

import json
from pathlib import Path

import pytest

from comodal.data.shards import ingest
from comodal.data.sources.video_sources import read_sources
from comodal.errors import DataError
from tests.support.shard_plans import catch_plans

FIRST, SECOND, THIRD = "---QUuC4vJs", "0wR5jVB-WPk", "abcdefghi-_"


def place(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_kinetics_json_is_its_csv(tmp_path: Path):
    files = place(tmp_path / "files", f"testifying/{FIRST}_000084_000094.mp4")
    entry = {"annotations": {"label": "testifying", "segment": [84.0, 94.0]}, "duration": 10.0, "subset": "validate"}
    content = {FIRST: entry, SECOND: {"annotations": {"segment": [1.0, 11.0]}, "duration": 10.0, "subset": "test"}}
    (tmp_path / "validate.json").write_text(json.dumps(content, indent=1))
    (tmp_path / "validate.csv").write_text(
        f"label,youtube_id,time_start,time_end,split\ntestifying,{FIRST},84,94,validate\n,{SECOND},1,11,test\n"
    )
    first, second = read_sources(tmp_path / "validate.json", files)
    assert [first, second] == read_sources(tmp_path / "validate.csv", files)
    assert (first.path, first.labels, first.split) == (
        f"testifying/{FIRST}_000084_000094.mp4",
        ("testifying",),
        "validation",
    )
    assert (second.missing, second.labels, second.split) == (True, (), "test")


@pytest.mark.parametrize("name", ["{}_000030.mp4", "{}_000030_000040.mp4", "{}_30.mp4", "video/{}.mp4"])
def test_vggsound(tmp_path: Path, name: str):
    files = place(tmp_path / "files", name.format(FIRST))
    (tmp_path / "vggsound.csv").write_text(f'{FIRST},30,"playing violin, fiddle",train\n{SECOND},0,dog barking,test\n')
    first, second = read_sources(tmp_path / "vggsound.csv", files)
    assert (first.path, first.key, first.group) == (name.format(FIRST), f"{FIRST}_000030", FIRST)
    assert (first.labels, first.split) == (("playing violin, fiddle",), "train")
    assert first.start_seconds == (30 if "video" in name else 0)
    assert (second.missing, second.labels, second.split) == (True, ("dog barking",), "test")


def test_a_list_of_another_layout_is_told_by_name(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"a": {"annotations": {}, "subset": "train"}}')
    with pytest.raises(DataError, match=r"a\.json is not a list in the format kinetics-json"):
        read_sources(tmp_path / "a.json")
    (tmp_path / "b.csv").write_text(f"{FIRST},30,dog,train\n{SECOND},x,dog,train\n")
    with pytest.raises(DataError, match=r"b\.csv is not a list in the format vggsound"):
        read_sources(tmp_path / "b.csv")


def test_several_lists_are_one_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = place(tmp_path / "files", *(f"{name}_000000_000010.mp4" for name in (FIRST, SECOND, THIRD)))
    for split, name in (("train", FIRST), ("validate", SECOND), ("test", THIRD)):
        line = f"dog,{name},0,10,{split}" if split != "test" else f",{name},0,10,{split}"
        (tmp_path / f"{split}.csv").write_text(f"label,youtube_id,time_start,time_end,split\n{line}\n")
    plans = catch_plans(monkeypatch)
    lists = [tmp_path / "validate.csv", tmp_path / "test.csv"]
    ingest.prepare_videos(tmp_path / "train.csv", tmp_path / "out", files, lists=lists)
    (plan,) = plans
    assert {shard.split: [item.group for item in shard.items] for shard in plan.shards} == {
        "train": [FIRST], "validation": [SECOND], "test": [THIRD],
    }  # fmt: skip
    with pytest.raises(ValueError, match="is a folder"):
        ingest.prepare_videos(files, tmp_path / "out", lists=lists)
