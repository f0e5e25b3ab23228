"""Containers that people have become the same clips, regions and captions as files: video2dataset, img2dataset,
Hugging Face's `datasets`."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from comodal.cli.program import main
from comodal.data.captions.caption_files import read_captions
from comodal.data.captions.caption_matching import match_captions
from comodal.data.regions.region_store import RegionStore
from comodal.data.shards.ingest import prepare_videos
from comodal.data.shards.paired_files import prepare_pairs
from comodal.data.shards.shard_reader import ShardReader
from comodal.data.sources.video_sources import read_sources
from comodal.errors import DataError
from comodal.inference.embed_files import embed_audio, embed_image, embed_video
from comodal.regions.extract import extract_regions
from tests.support.container_files import image_table, img2dataset, jpeg, save_to_disk, write_parquet, write_tar
from tests.support.make_media import make_tone, make_video

SMALL = {"short_side": 32, "sample_rate": 16000, "frames_per_second": 2.0, "videos_per_shard": 2}


def report(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "report.jsonl").read_text().splitlines()]


def tree(out: Path) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def network(network: Path) -> str:
    return str(network)


def extract(images: Path, out: Path, network: str) -> RegionStore:
    extract_regions(images, out, network, grid=2, workers=1, backend="sequential")
    return RegionStore(out)


@pytest.fixture(scope="module")
def webvid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """video2dataset's folder: two shards of three clips with their tables and statistics. The last tar is cut short."""
    root = tmp_path_factory.mktemp("webvid")
    for shard in range(2):
        members = {}
        for number in range(3):
            key = f"{shard:05d}{number:04d}"
            video = make_video(root / "video.mp4", seconds=1.2, seed=10 * shard + number)
            about = {"key": key, "url": f"http://example.org/{number // 2}", "caption": f"clip {key}", "label": "cat"}
            members |= {f"{key}.mp4": video.read_bytes(), f"{key}.json": json.dumps(about).encode()}
            members[f"{key}.txt"] = about["caption"].encode()
        write_tar(root / f"{shard:05d}.tar", members)
        (root / f"{shard:05d}.parquet").write_bytes(b"a table of the same")
        (root / f"{shard:05d}_stats.json").write_text("{}")
    (root / "video.mp4").unlink()
    last = root / "00001.tar"
    last.write_bytes(last.read_bytes()[: last.read_bytes().index(b"000010002.mp4") + 2000])
    return root


def test_video2dataset_becomes_clips_with_label_caption_and_group(webvid: Path, tmp_path: Path):
    about = prepare_videos(webvid, tmp_path / "out", **SMALL, workers=1, backend="sequential")
    assert sum(about.accepted.values()) == 5
    assert about.refused == {"truncated": 1}
    records = {}
    for split in ("train", "validation", "test"):
        if (tmp_path / "out" / split).is_dir() and any((tmp_path / "out" / split).glob("*.index")):
            shards = ShardReader(tmp_path / "out" / split)
            records |= {
                shards.read_record(i)["source"]: shards.read_record(i) | {"split": split} for i in range(len(shards))
            }
    assert sorted(records) == [
        *(f"00000.tar/00000000{n}.mp4" for n in range(3)), *(f"00001.tar/00001000{n}.mp4" for n in range(2)),
    ]  # fmt: skip
    first = records["00000.tar/000000001.mp4"]
    assert (first["label"], first["caption"], first["group"]) == ("cat", "clip 000000001", "http://example.org/0")
    assert len({record["split"] for record in records.values() if record["group"] == "http://example.org/0"}) == 1
    (line,) = [line for line in report(tmp_path / "out") if line["status"] == "refused"]
    assert (line["path"], line["reason"]) == ("00001.tar/000010002.mp4", "truncated")


def test_an_interrupted_run_ends_with_the_same_bytes_on_any_number_of_workers(
    webvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    prepare_videos(webvid, tmp_path / "whole", **SMALL, workers=1, backend="sequential")
    from comodal.data.shards import ingest

    original, calls = ingest.read_clip, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(ingest, "read_clip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_videos(webvid, tmp_path / "parts", **SMALL, workers=1, backend="sequential")
    monkeypatch.setattr(ingest, "read_clip", original)
    prepare_videos(webvid, tmp_path / "parts", **SMALL, workers=2)
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")


def test_a_pattern_names_shards_and_a_missing_one_is_reported(webvid: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert main(["prepare", "videos", f"{webvid}/{{00000..00002}}.tar", str(out), "--workers", "1", "--backend",
                 "sequential", "--short_side", "32", "--limit", "20"]) == 0  # fmt: skip
    refused = {line["path"]: line["reason"] for line in report(out) if line["status"] == "refused"}
    assert refused == {"00001.tar/000010002.mp4": "truncated", "00002.tar": "missing"}
    with pytest.raises(DataError, match=r"00007"):
        prepare_videos(webvid / "{00007..00009}.tar", tmp_path / "none", **SMALL)


def test_one_tar_is_a_source_too_and_another_one_is_not_taken_for_it(webvid: Path, tmp_path: Path):
    tar = tmp_path / "a.tar"
    tar.write_bytes((webvid / "00000.tar").read_bytes())
    about = prepare_videos(tar, tmp_path / "out", **SMALL, workers=1, backend="sequential")
    assert sum(about.accepted.values()) == 3
    tar.write_bytes((webvid / "00000.tar").read_bytes() + bytes(10240))
    with pytest.raises(DataError, match="started with other options: the source files have changed"):
        prepare_videos(tar, tmp_path / "out", **SMALL, workers=1, backend="sequential")


def test_audio_beside_a_video_without_sound_is_its_sound(tmp_path: Path):
    silent = make_video(tmp_path / "v.mp4", seconds=2.0, loudness=None).read_bytes()
    tone = make_tone(tmp_path / "a.wav", 1.5, 16000).read_bytes()
    write_tar(tmp_path / "in" / "0.tar", {"a.mp4": silent, "a.wav": tone, "b.mp4": silent, "c.wav": tone})
    prepare_videos(tmp_path / "in", tmp_path / "out", **SMALL, workers=1, backend="sequential")
    lines = {line["path"]: line for line in report(tmp_path / "out")}
    assert lines["0.tar/a.mp4"]["seconds"] == pytest.approx(1.5, abs=0.02)
    assert lines["0.tar/b.mp4"]["reason"] == "no audio stream"
    assert (lines["0.tar/c.wav"]["reason"], lines["0.tar/c.wav"]["detail"]) == ("not a video", "it has only audio")


def test_splits_come_from_metadata_folders_and_file_names(tmp_path: Path):
    def tar(name: str, **metadata: str) -> None:
        write_tar(tmp_path / name, {"a.mp4": b"v", "a.json": json.dumps(metadata).encode()})

    tar("train/0.tar")
    tar("validation-00000-of-00001.tar")
    tar("0.tar", split="test")
    tar("1.tar")
    tar("2.tar", split="all")
    found = {source.container: source for source in read_sources(tmp_path)}  # type: ignore[attr-defined]
    splits = {name: source.split for name, source in found.items()}
    assert splits == {
        "train/0.tar": "train", "validation-00000-of-00001.tar": "validation", "0.tar": "test", "1.tar": None,
        "2.tar": None,
    }  # fmt: skip
    assert found["2.tar"].fault.reason == "unknown split"  # type: ignore[attr-defined]


def test_img2dataset_is_extracted_and_its_captions_fit(tmp_path: Path, network: str):
    pq = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")
    root = tmp_path / "cc"
    for shard in range(2):
        img2dataset(root / f"{shard:05d}.tar", 3, first=3 * shard)
        keys = [f"{shard:05d}{3 * shard + n:04d}" for n in range(3)]
        table = {"url": ["http://x"] * 4, "key": [*keys, "9"], "status": ["success"] * 3 + ["failed_to_download"]}
        pq.write_table(
            pa.table(table | {"caption": [f"of {key}" for key in [*keys, "9"]]}), root / f"{shard:05d}.parquet"
        )
        (root / f"{shard:05d}_stats.json").write_text("{}")
    store = extract(root, tmp_path / "store", network)
    assert [*store.ids] == [f"0000{n // 3}.tar/0000{n // 3}{n:04d}" for n in range(6)]
    loose = tmp_path / "loose"
    loose.mkdir()
    for number in range(6):
        (loose / f"{number}.jpg").write_bytes(jpeg(number))
    extract(loose, tmp_path / "loose_store", network)
    assert (tmp_path / "loose_store" / "features.bin").read_bytes() == (
        tmp_path / "store" / "features.bin"
    ).read_bytes()
    read = read_captions(root)
    assert [(one.caption, row) for one, row in match_captions(read, store.ids).pairs] == [
        (f"picture number {n}", n) for n in range(6)
    ]
    table_alone = read_captions(root / "00001.parquet")  # the table of one tar
    assert [(one.caption, row) for one, row in match_captions(table_alone, store.ids).pairs] == [
        (f"of 00001{n:04d}", n) for n in range(3, 6)
    ]
    assert table_alone.refused == {"caption without image": 1}


def test_keys_that_repeat_in_every_shard_are_not_confused(tmp_path: Path):
    """Many data sets count their examples from 0 in each shard."""
    for shard in range(2):
        members = {f"{n}.txt": f"shard {shard}, {n}".encode() for n in range(3)} | {f"{n}.jpg": b"j" for n in range(3)}
        write_tar(tmp_path / f"{shard}.tar", members)
    pairs = match_captions(
        read_captions(tmp_path), ["1.tar/0", "1.tar/2"]
    ).pairs  # the store has the second shard alone
    assert [(one.caption, row) for one, row in pairs] == [("shard 1, 0", 0), ("shard 1, 2", 1)]


@pytest.mark.parametrize("layout", ["hub", "disk"])
def test_tables_of_datasets_are_extracted_and_their_captions_fit(tmp_path: Path, network: str, layout: str):
    pa = pytest.importorskip("pyarrow")
    rows = [
        {"image": {"bytes": jpeg(n), "path": f"1000{n}.jpg"}, "text": [f"first {n}", f"second {n}"], "split": "train"}
        for n in range(7)
    ]
    rows[5]["image"] = {"bytes": None, "path": "/elsewhere/10005.jpg"}
    rows[6]["image"] = None
    table = image_table(rows, text=pa.list_(pa.string()), split=pa.string())
    root = tmp_path / "set"
    if layout == "hub":
        write_parquet(root / "data" / "train-00000-of-00001.parquet", table)
        (root / "README.md").write_text("# a card")
        file = "data/train-00000-of-00001.parquet"
    else:
        save_to_disk(root / "train", table)
        (root / "dataset_dict.json").write_text("{}")
        file = "train/data-00000-of-00001.arrow"
    store = extract(root, tmp_path / "store", network)
    refused = {line["image"]: line["detail"] for line in report(tmp_path / "store")}
    # a row has no picture: the rows are called by their numbers
    assert [*store.ids] == [f"{file}/{n:06d}" for n in range(5)]
    assert sorted(refused) == [f"{file}/000005.jpg", f"{file}/000006.image"]
    assert "/elsewhere/10005.jpg" in refused[f"{file}/000005.jpg"]
    pairs = match_captions(read_captions(root), store.ids).pairs
    assert [(one.caption, row, one.split) for one, row in pairs] == [
        (f"{which} {n}", n, "train") for n in range(5) for which in ("first", "second")
    ]


def test_rows_are_called_by_their_files_and_official_captions_fit(tmp_path: Path, network: str):
    pytest.importorskip("pyarrow")
    table = image_table([{"image": {"bytes": jpeg(n), "path": f"COCO_val2014_{n:012d}.jpg"}} for n in range(3)])
    store = extract(write_parquet(tmp_path / "set" / "a.parquet", table), tmp_path / "store", network)
    assert [*store.ids] == [f"a.parquet/COCO_val2014_{n:012d}" for n in range(3)]
    captions = tmp_path / "captions.csv"
    captions.write_text("file_name,text\nCOCO_val2014_000000000002.jpg,a cat\n")
    assert [row for _, row in match_captions(read_captions(captions), store.ids).pairs] == [2]


def test_a_table_that_names_its_images_is_a_table_of_captions(tmp_path: Path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"filepath": ["a/1.jpg", "a/2.jpg"], "caption": ["one", "two"], "split": ["train", "val"]}
    pq.write_table(pa.table(columns), tmp_path / "table.parquet")
    read = read_captions(tmp_path / "table.parquet")
    assert [(one.image[4], one.caption, one.split) for one in read] == [
        ("a/1.jpg", "one", "train"), ("a/2.jpg", "two", "validation"),
    ]  # fmt: skip
    folder = tmp_path / "imagefolder"
    folder.mkdir()
    pq.write_table(pa.table({"file_name": ["1.jpg"], "text": ["one"]}), folder / "metadata.parquet")
    assert [(one.image[2], one.caption) for one in read_captions(folder)] == [("1.jpg", "one")]
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"other\.parquet"):
        read_captions(tmp_path / "other.parquet")


def test_class_labels_have_their_names_and_pairs_are_made_of_them(tmp_path: Path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names = {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    rows = [{"image": {"bytes": jpeg(n), "path": None}, "label": n % 2} for n in range(4)]
    write_parquet(tmp_path / "images.parquet", image_table(rows, names, label=pa.int64()))
    tones = [make_tone(tmp_path / "t" / f"{n}.wav", 1.1, 16000, 300 + n).read_bytes() for n in range(4)]
    audio = [{"bytes": tone, "path": f"{n}.wav"} for n, tone in enumerate(tones)]
    pq.write_table(pa.table({"audio": audio, "label": ["cat", "dog", "cat", "cow"]}), tmp_path / "sounds.parquet")
    about = prepare_pairs(
        tmp_path / "images.parquet", tmp_path / "sounds.parquet", tmp_path / "out", validation_fraction=0.0,
        test_fraction=0.0, short_side=32, sample_rate=16000, workers=1, backend="sequential",
    )  # fmt: skip
    assert about.accepted["train"] == 4
    assert about.refused == {"no partner": 1}
    shards = ShardReader(tmp_path / "out" / "train")
    for record in map(shards.read_record, range(4)):
        assert record["label"] == ("cat", "dog")[int(record["source"].split("/")[1][:6]) % 2]


def test_a_damaged_file_costs_that_file(tmp_path: Path, network: str):
    pytest.importorskip("pyarrow")
    rows = [{"image": {"bytes": jpeg(n), "path": None}} for n in range(3)]
    good = write_parquet(tmp_path / "set" / "a.parquet", image_table(rows))
    (tmp_path / "set" / "b.parquet").write_bytes(good.read_bytes()[:-200])
    disk = save_to_disk(tmp_path / "set" / "c", image_table(rows)) / "data-00000-of-00001.arrow"
    disk.write_bytes(disk.read_bytes()[: len(disk.read_bytes()) // 2])
    store = extract(tmp_path / "set", tmp_path / "store", network)
    assert [*store.ids] == [f"a.parquet/{n:06d}" for n in range(3)]
    assert sorted(line["image"] for line in report(tmp_path / "store")) == [
        "b.parquet", "c/data-00000-of-00001.arrow",
    ]  # fmt: skip


def test_without_pyarrow_one_sentence_says_what_to_install(
    tmp_path: Path, network: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.parquet").write_bytes(b"PAR1")
    for command in (
        ["extract", str(tmp_path / "set"), str(tmp_path / "store"), "--detector", network],
        ["prepare", "videos", str(tmp_path / "set" / "a.parquet"), str(tmp_path / "out")],
    ):
        assert main(command) == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line]
        assert "a.parquet" in line
        assert "pip install 'comodal[parquet]'" in line
    with pytest.raises(DataError, match=r"pip install 'comodal\[parquet\]'"):
        read_captions(tmp_path / "set")


def test_members_are_embedded_as_files_are(tmp_path: Path, network: str):
    loose = tmp_path / "loose"
    loose.mkdir()
    for number in range(3):
        (loose / f"0000{number:04d}.jpg").write_bytes(jpeg(number))
    img2dataset(tmp_path / "set" / "0000.tar", 3)
    embed_image([loose], network, tmp_path / "a")
    found = embed_image([tmp_path / "set"], network, tmp_path / "b")
    assert (found.written, found.other_files) == (3, 0)
    for number in range(3):
        ours, theirs = (np.load(tmp_path / folder / f"0000{number:04d}.npz")["embedding"] for folder in ("b/0000", "a"))
        assert np.array_equal(ours, theirs)
    assert embed_image([tmp_path / "set" / "0000.tar"], network, tmp_path / "b").skipped == 3
    tar = tmp_path / "set" / "0000.tar"
    tar.write_bytes(tar.read_bytes()[: tar.read_bytes().index(b"00000002.jpg") + 1000])
    with pytest.raises(DataError, match=r"1 of 3 files .*00000002\.jpg: truncated"):
        embed_image([tar], network, tmp_path / "b")


def test_sounds_of_a_table_are_embedded(tmp_path: Path, network: str):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    tones = [make_tone(tmp_path / f"{n}.wav", 1.3, 48000, 300 + 100 * n) for n in range(2)]
    audio = [{"bytes": tone.read_bytes(), "path": tone.name} for tone in tones]
    pq.write_table(pa.table({"audio": audio}), tmp_path / "set.parquet")
    embed_audio([*tones, tmp_path / "set.parquet"], network, tmp_path / "out")
    for number in range(2):
        ours, theirs = (np.load(tmp_path / "out" / name / f"{number}.npz")["embedding"] for name in ("set", ""))
        assert np.array_equal(ours, theirs)


@pytest.mark.slow
def test_videos_of_a_table_are_those_of_the_files(tmp_path: Path, network: str):
    """A column of `datasets`' Video, prepared and embedded: a row without bytes and one of text cost themselves."""
    pa = pytest.importorskip("pyarrow")
    videos = [make_video(tmp_path / "loose" / f"{n}.mp4", seconds=1.2, seed=n) for n in range(2)]
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in videos]
    rows += [{"bytes": None, "path": "away.mp4"}, {"bytes": b"no video at all", "path": "text.mp4"}]
    about = {"info": {"features": {"video": {"_type": "Video"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}}}
    table = pa.table({"video": rows, "label": [0, 1, 0, 1]}).replace_schema_metadata({"huggingface": json.dumps(about)})
    for source in (write_parquet(tmp_path / "set.parquet", table), save_to_disk(tmp_path / "disk", table)):
        out, plain = tmp_path / f"of {source.name}", tmp_path / f"plain {source.name}"
        options = SMALL | {"validation_fraction": 0.0, "test_fraction": 0.0, "backend": "sequential"}
        assert prepare_videos(source, out, **options).accepted["train"] == 2
        prepare_videos(tmp_path / "loose", plain, **options)
        theirs = {Path(one["source"]).name: one for one in map(ShardReader(plain / "train").read_record, range(2))}
        shards, files = ShardReader(out / "train"), ShardReader(plain / "train")
        for number in range(2):
            record = shards.read_record(number)
            name = Path(record["source"]).name
            assert record["label"] == "ab"[int(name[0])] and record["frames"] == theirs[name]["frames"]
            row = next(row for row in range(2) if files.read_record(row)["source"] == name)
            assert all(
                shards.read_member(number, part) == files.read_member(row, part) for part in (*record["frames"], "flac")
            )
        refused = {Path(line["path"]).name: line["detail"] for line in report(out) if line["status"] == "refused"}
        assert refused.keys() == {"away.mp4", "text.mp4"} and "no bytes but the path 'away.mp4'" in refused["away.mp4"]
    embed_video([tmp_path / "loose"], network, tmp_path / "a", workers=1)
    with pytest.raises(DataError, match=r"2 of 4 files .*away\.mp4"):
        embed_video([tmp_path / "set.parquet"], network, tmp_path / "b", workers=1)
    for name in ("0_audio.npz", "0_image.npz", "1_audio.npz", "1_image.npz"):
        assert np.array_equal(*(np.load(tmp_path / of / name)["embedding"] for of in ("a", "b/set")))
