"""The paper's data sets by name: sizes, splits that do not depend on the files, and the coverage on every card."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from comodal.data.shards import ingest
from comodal.data.shards.dataset_record import format_dataset_record, read_dataset_record
from comodal.data.sources.official_sets import OFFICIAL_SETS, assign_official_splits
from comodal.data.sources.video_sources import VideoSource
from comodal.models.checkpoint import read_model_about
from comodal.tasks.correspondence.avc_evaluation import evaluate_avc
from comodal.tasks.evaluation.results_card import read_card
from comodal.training.run import train
from tests.support.shard_plans import catch_plans
from tests.support.small_world import write_world
from tests.support.synthetic_media import tone, write_video


def make_sources(count: int, missing: int = 0) -> list[VideoSource]:
    names = [f"video{index:06d}" for index in range(count)]
    return [VideoSource(f"{name}.mp4", name, name, missing=index < missing) for index, name in enumerate(names)]


def test_sizes_are_those_of_the_paper():
    """Section 4: 400k, 50k and 50k videos; 15k, 1.9k and 1.9k clips of 34 classes, 19k in all."""
    assert dict(OFFICIAL_SETS["flickr-soundnet"].sizes) == {"train": 400_000, "validation": 50_000, "test": 50_000}
    assert dict(OFFICIAL_SETS["kinetics-sounds"].sizes) == {"train": 15_000, "validation": 1_900, "test": 1_900}
    splits = Counter(source.split for source in assign_official_splits(make_sources(25_000), "kinetics-sounds"))
    assert splits == {"train": 15_000, "validation": 1_900, "test": 1_900}


def test_a_shorter_list_keeps_the_proportions():
    splits = Counter(source.split for source in assign_official_splits(make_sources(188), "kinetics-sounds"))
    assert splits == {"train": 150, "validation": 19, "test": 19}
    assert len(assign_official_splits(make_sources(7), "flickr-soundnet")) == 7


def test_splits_depend_neither_on_the_order_nor_on_the_files():
    there, missing = make_sources(300), make_sources(300, missing=200)
    first = {one.key: one.split for one in assign_official_splits(there, "kinetics-sounds")}
    assert {one.key: one.split for one in assign_official_splits(missing[::-1], "kinetics-sounds")} == first
    assert {one.key: one.split for one in assign_official_splits(there, "flickr-soundnet")} != first


def test_clips_of_one_video_are_in_one_split():
    sources = [replace(one, group=f"source{index // 3}") for index, one in enumerate(make_sources(600))]
    splits: dict[str, set] = {}
    for one in assign_official_splits(sources, "kinetics-sounds"):
        splits.setdefault(one.group, set()).add(one.split)
    assert all(len(found) == 1 for found in splits.values())


def write_kinetics(folder: Path, clips: int, labels: tuple[str, ...]) -> Path:
    rows = [f"{labels[n % len(labels)]},{n:011d},0,10,{('train', 'validate')[n % 2]}" for n in range(clips)]
    path = folder / "kinetics.csv"
    path.write_text("label,youtube_id,time_start,time_end,split\n" + "\n".join(rows) + "\n")
    return path


def test_a_preset_takes_its_classes_and_replaces_the_splits_of_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write_kinetics(tmp_path, 376, ("bowling", "abseiling"))
    files = tmp_path / "files"
    files.mkdir()
    for clip in range(0, 376, 4):  # half of the clips of the class
        (files / f"{clip:011d}_000000_000010.mp4").touch()
    plans = catch_plans(monkeypatch)
    ingest.prepare_videos(path, tmp_path / "out", files, preset="kinetics-sounds")
    (plan,) = plans
    assert plan.dataset == {
        "name": "kinetics-sounds",
        "lists": [{"name": "kinetics.csv", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}],
        "listed": {"train": 150, "validation": 19, "test": 19},
    }
    assert sum(len(shard.items) for shard in plan.shards) == 94 == len(plan.refused)
    assert {item.labels for shard in plan.shards for item in shard.items} == {("bowling",)}


@pytest.mark.parametrize("options", [{"classes": ["bowling"]}, {"split": "hash"}])
def test_a_preset_sets_classes_and_splits(options: dict, tmp_path: Path):
    path = write_kinetics(tmp_path, 8, ("bowling",))
    with pytest.raises(ValueError, match="--preset kinetics-sounds"):
        ingest.prepare_videos(path, tmp_path / "out", preset="kinetics-sounds", **options)


def test_a_list_without_a_preset_is_counted_by_its_own_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_kinetics(tmp_path, 30, ("bowling",))
    plans = catch_plans(monkeypatch)
    ingest.prepare_videos(path, tmp_path / "out", limit=4)
    (plan,) = plans
    assert plan.dataset["name"] == "kinetics.csv"
    assert plan.dataset["listed"] == {"train": 15, "validation": 15, "test": 0}


def test_coverage_is_written_with_the_shards(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Two of five videos are there; a folder of the same files names no list."""
    files = tmp_path / "files"
    files.mkdir()
    names = [f"{n}" for n in range(5)]
    (files / "urls.txt").write_text("".join(f"http://www.flickr.com/videos/me/{n}/play/orig/x\n" for n in names))
    for name in names[:2]:
        write_video(files / f"{name}.mp4", sound=tone(2.0, 48_000))
    ingest.prepare_videos(files / "urls.txt", tmp_path / "out", preset="flickr-soundnet", backend="sequential")
    record = read_dataset_record(tmp_path / "out")
    assert sum(record["listed"].values()) == 5 and sum(record["available"].values()) == 2
    digest = hashlib.sha256((files / "urls.txt").read_bytes()).hexdigest()[:12]
    line = format_dataset_record(record, "train")
    assert line == (
        f"flickr-soundnet, train: {record['available']['train']} of {record['listed']['train']} official clips "
        f"available; SHA-256: urls.txt {digest}"
    )
    assert line in " ".join(capsys.readouterr().out.split())
    (files / "urls.txt").unlink()
    ingest.prepare_videos(files, tmp_path / "folder", backend="sequential")
    assert read_dataset_record(tmp_path / "folder") == {}


def test_coverage_is_carried_to_the_model_and_to_every_card(tmp_path: Path):
    shards = tmp_path / "shards"
    for seed, split in enumerate(("train", "test")):
        write_world(shards / split, 6, seed=seed)
    record = {"name": "kinetics-sounds", "lists": [{"name": "train.csv", "sha256": "ab" * 32}]}
    record |= {"listed": {"train": 15_000, "validation": 1_900, "test": 1_900}}
    accepted = {"train": 6, "validation": 0, "test": 5}
    (shards / "about.json").write_text(json.dumps({"finished": True, "dataset": record, "accepted": accepted}))
    small = {"variant": "small", "width": 4, "image_size": 24, "batch_size": 4, "workers": 0}
    options = small | {"data": shards, "steps": 1, "validation_pairs": 0}
    assert train("l3net", options, tmp_path / "run", device="cpu") == 0
    assert read_model_about(tmp_path / "run")["dataset"] == record | {"available": accepted}
    evaluate_avc(tmp_path / "run", shards, workers=0, device="cpu", out=tmp_path / "card")
    settings = read_card(tmp_path / "card" / "card.json")["settings"]
    ending = "official clips available; SHA-256: train.csv abababababab"
    assert settings["data"] == f"kinetics-sounds, test: 5 of 1,900 {ending}"
    assert settings["training data"] == f"kinetics-sounds, train: 6 of 15,000 {ending}"
    assert settings["training data"] in (tmp_path / "card" / "card.md").read_text()
