"""Whatever one file raises, it costs that file: every batch command does the rest, names the file, and can go on."""

import json
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from comodal.cli.program import main
from comodal.data.regions import feature_files
from comodal.data.regions.feature_records import build_or_skip_record
from comodal.data.regions.region_store import RegionStore
from comodal.data.shards import ingest, paired_files
from comodal.data.sources import archive_examples
from comodal.data.sources.file_batches import BatchedWork, FileJob, attempt_jobs, read_result_source
from comodal.data.sources.image_folder import find_image_files
from comodal.errors import MediaError, MediaWarning, run_batch_or_singly, wrap_item_errors
from comodal.inference import embed_files
from comodal.media.storage.tar_shard import TarShard
from comodal.regions import extract
from comodal.regions.backbones import PooledRegions
from comodal.tasks.audio import audio_features
from comodal.tasks.image import image_features
from tests.support.container_files import jpeg, write_tar
from tests.support.make_media import make_tone, make_video

ERRORS = [RuntimeError("boom"), IndexError("list index out of range"), AssertionError("not so"), OSError("odd")]


@pytest.fixture(scope="module")
def network(network: Path) -> str:
    return str(network)


def raising(real: Callable, bad: str, error: Exception = ERRORS[0]) -> Callable:
    """A function that fails where an argument names the bad file."""

    def call(*values, **named):
        if any(bad in str(value) for value in values):
            raise error
        return real(*values, **named)

    return call


class RaisingWork:
    """The same for a function of embed_files by its name, which a worker process looks up again."""

    def __init__(self, name: str, bad: str) -> None:
        self.name, self.bad, self.real = name, bad, getattr(embed_files, name)

    def __reduce__(self) -> tuple[type["RaisingWork"], tuple[str, str]]:
        return RaisingWork, (self.name, self.bad)

    def __call__(self, job: FileJob, **named: object) -> int:
        return raising(self.real, self.bad)(job, **named)


def report(out: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (out / "report.jsonl").read_text().splitlines()]
    return {line.get("path") or line["image"]: line["detail"] for line in lines if "detail" in line}


def photos(folder: Path, count: int = 4) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    return folder


@pytest.mark.parametrize("error", ERRORS)
def test_a_record_of_features_costs_itself(error: Exception):
    def fail() -> None:
        raise error

    skipped = build_or_skip_record("7", fail)
    assert (skipped.image, skipped.reason) == ("7", "damaged") and str(error) in skipped.detail


def test_prepare_regions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    for number in range(4):
        record = {"image_id": f"{number}", "image_w": 90, "image_h": 80, "num_boxes": 1,
                  "boxes": np.float32([[1, 2, 50, 60]]), "features": rng.random((1, 6)).astype(np.float32)}  # fmt: skip
        (tmp_path / "npy").mkdir(exist_ok=True)
        np.save(tmp_path / "npy" / f"{number}.npy", record)
    words = ["prepare", "regions", str(tmp_path / "npy"), str(tmp_path / "out")]
    monkeypatch.setattr(feature_files, "read_npy_record", raising(feature_files.read_npy_record, "2.npy"))
    assert main(words) == 0
    assert [*RegionStore(tmp_path / "out").ids] == ["0", "1", "3"]
    assert report(tmp_path / "out") == {"2": "RuntimeError: boom"}
    assert main(words) == 0


def test_prepare_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for number in range(3):
        make_video(tmp_path / "videos" / f"{number}.mp4", seconds=1.2, seed=number)
    words = ["prepare", "videos", str(tmp_path / "videos"), str(tmp_path / "out"), "--backend", "sequential"]
    words += ["--short-side", "32", "--validation-fraction", "0", "--test-fraction", "0", "--videos-per-shard", "2"]
    monkeypatch.setattr(ingest, "read_clip", raising(ingest.read_clip, "1.mp4"))
    assert main(words) == 0
    assert report(tmp_path / "out") == {"1.mp4": "RuntimeError: boom"}
    about = json.loads((tmp_path / "out" / "about.json").read_text())
    assert (about["accepted"]["train"], about["refused"]) == (2, {"unexpected error": 1})
    capsys.readouterr()
    assert main(words) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_prepare_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for number in range(3):
        make_tone(tmp_path / "sounds" / "train" / "a" / f"{number}.wav", 1.0, hertz=200.0 * (number + 1))
        path = tmp_path / "images" / "train" / "a" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    monkeypatch.setattr(paired_files, "read_image", raising(paired_files.read_image, "1.jpg"))
    words = ["prepare", "pairs", str(tmp_path / "images"), str(tmp_path / "sounds"), str(tmp_path / "out")]
    assert main([*words, "--backend", "sequential", "--short-side", "32"]) == 0
    ((path, detail),) = report(tmp_path / "out").items()
    assert path.startswith("train/a/1.jpg + train/a/") and detail == "RuntimeError: boom"
    assert json.loads((tmp_path / "out" / "about.json").read_text())["accepted"]["train"] == 2


def test_extract(network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words = ["extract", str(photos(tmp_path / "photos")), str(tmp_path / "out"), "--detector", network]
    monkeypatch.setattr(extract, "read_image", raising(extract.read_image, "2.jpg", ERRORS[1]))
    assert main([*words, "--workers", "1"]) == 0
    assert [*RegionStore(tmp_path / "out").ids] == ["0", "1", "3"]
    assert report(tmp_path / "out") == {"2.jpg": "IndexError: list index out of range"}


def test_extract_in_batches(network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As on a GPU: an image that spoils its batch is found, and the others of the batch are those of the CPU's path."""
    folder = photos(tmp_path / "photos", 5)
    Image.new("RGB", (64, 48), (1, 2, 3)).save(folder / "bad.png")
    extractor = extract.load_extractor(extract.ExtractorSource(network, grid=2))
    (folder / "broken.jpg").write_bytes(b"")
    todo = extract.list_images(folder).images
    plain, batch = (
        [extract.extract_image_regions(image, folder, extractor) for image in todo],
        PooledRegions.extract_batch,
    )

    def spoiled(self: PooledRegions, pictures: list) -> list:
        if any(picture.image.mean() < 4 for picture in pictures):
            raise RuntimeError("boom")
        return batch(self, pictures)

    monkeypatch.setattr(PooledRegions, "extract_batch", spoiled)
    made = list(extract.extract_batch_regions(todo, folder, extractor, extractor.network, 3))
    assert [one.image for one in made] == [image.image for image in todo]
    refused = {one.image: (one.reason, one.detail) for one in made if one.regions is None}
    assert refused.keys() == {"bad.png", "broken.jpg"} and refused["bad.png"] == (
        "unexpected error", "RuntimeError: boom",
    )  # fmt: skip
    for one, other in zip(made, plain, strict=True):
        if one.regions is not None:
            np.testing.assert_allclose(one.regions.features, other.regions.features, atol=1e-6)


def test_embed_images_in_batches(network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, embed = photos(tmp_path / "photos"), embed_files.embed_image_batches
    Image.new("RGB", (64, 48), (1, 2, 3)).save(folder / "bad.png")

    def spoiled(images: list, *values: object) -> object:
        if any(image.mean() < 4 for image in images):
            raise RuntimeError("boom")
        return embed(images, *values)

    monkeypatch.setattr(embed_files, "embed_image_batches", spoiled)
    planned = embed_files.plan_file_jobs([folder], {".jpg", ".png"}, None, ("",))
    outcomes = embed_files.write_images(planned.jobs, Path(network), embed_files.EmbedderOptions())
    assert [(one.job.source.name, one.error_message) for one in outcomes if one.error_message] == [
        ("bad.png", "unexpected error: RuntimeError: boom")
    ]
    assert sorted(path.stem for path in folder.glob("*.npz")) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("kind", ["audio", "image", "video"])
def test_embed(
    network: str, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Images in a worker process; audio and videos in this one, as on a GPU."""
    folder = photos(tmp_path / "in", 3)
    for number in range(3):
        make_tone(folder / f"{number}.wav", 1.0)
        make_video(folder / f"{number}.mp4", seconds=1.0, seed=number)
    name = {"audio": "write_audio_embedding", "image": "write_image", "video": "write_video_embeddings"}[kind]
    words = ["embed", kind, str(folder), "--model", network, "--out", str(tmp_path / "out"), "--workers", "1"]
    if kind != "image":
        monkeypatch.setattr(
            embed_files, "choose_gpu_batching", lambda work, *_: BatchedWork(partial(attempt_jobs, work=work), 1)
        )
    with monkeypatch.context() as patch:
        patch.setattr(embed_files, name, RaisingWork(name, "/1."))
        assert main(words) == 1
    said = capsys.readouterr()
    ending = {"audio": "wav", "image": "jpg", "video": "mp4"}[kind]
    assert f"1.{ending}" in said.out and f"1.{ending}: unexpected error: RuntimeError: boom" in said.err
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert {name[0] for name in made} == {"0", "2"}
    assert main(words) == 0
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert made.items() <= after.items() and {name[0] for name in after} == {"0", "1", "2"}


def test_a_container_costs_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Listing its members is part of the plan of every command."""
    for name in ("a.tar", "b.tar", "c.tar"):
        write_tar(tmp_path / name, {"1.jpg": jpeg(0)})
    opened = archive_examples.open_container_file

    class Odd(TarShard):
        def iterate_examples(self):
            yield next(super().iterate_examples())
            raise RuntimeError("boom")

    monkeypatch.setattr(
        archive_examples, "open_container_file", lambda path: (Odd if path.name == "b.tar" else opened)(path)
    )
    found = find_image_files(tmp_path)
    assert found.names == ["a.tar/1.jpg", "b.tar/1.jpg", "c.tar/1.jpg"]
    assert found.damaged == [("b.tar", ("damaged", "RuntimeError: boom"))]


def test_evaluate_audio_and_images(
    network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    rng = np.random.default_rng(0)
    for category in ("low", "high"):
        for side, count in (("train", 6), ("test", 3)):
            for number in range(count):
                path = tmp_path / "data" / side / category / f"{number}.wav"
                make_tone(path, 1.0, 16000, (200 if category == "low" else 2000) * rng.uniform(0.9, 1.1))
                path.with_suffix(".jpg").write_bytes(jpeg(number))
    (path := tmp_path / "data" / "test" / "high" / "2.jpg").unlink()
    path.symlink_to(tmp_path / "nowhere")
    (tmp_path / "data" / "train" / "low" / "link.wav").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "data" / "test" / "high" / "pipe.wav")
    bad = "test/low/1."
    monkeypatch.setattr(image_features, "render_view", raising(image_features.render_view, bad))
    monkeypatch.setattr(audio_features, "read_audio", raising(audio_features.read_audio, bad))
    words = ["--model", network, "--data", str(tmp_path / "data"), "--workers", "1", "--out"]
    for task, ending, lost, num_train in (("audio", "wav", 2, 1), ("images", "jpg", 2, 0)):
        out, more = tmp_path / task, [] if task == "audio" else ["--cache", str(tmp_path / "cache")]
        assert main(["evaluate", task, *words, str(out), *more]) == 0
        said = capsys.readouterr().out
        assert f"excluded: {lost + num_train}" in said and f"low/1.{ending}" in said and "RuntimeError: boom" in said
        assert all(name in said for name in (["link.wav", "pipe.wav"] if task == "audio" else ["high/2.jpg"]))
        counts = json.loads((out / "card.json").read_text())["counts"]
        tested = 7 if task == "audio" else 6
        assert counts["predicted"] == tested - lost
        assert counts["cannot be read"] == lost + num_train


def test_a_bad_image_costs_fine_tuning_that_image(network: str, tmp_path: Path, recwarn: pytest.WarningsRecorder):
    """Other images of its class take its place; a class without any image is refused."""
    rng = np.random.default_rng(0)
    for category in ("a", "b"):
        for side in ("train", "test"):
            for number in range(3):
                path = tmp_path / "data" / side / category / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(path)
    train = tmp_path / "data" / "train"
    (train / "a" / "1.png").write_bytes(b"not an image")
    (train / "b" / "link.png").symlink_to(tmp_path / "nowhere")
    words = ["train", "image_classes", "--model", network, "--data", str(tmp_path / "data"), "--batch-size", "2"]
    words += ["--epochs", "2", "--workers", "0", "--device", "cpu", "--out"]
    warnings.simplefilter("always")
    assert main([*words, str(tmp_path / "run")]) == 0
    said = [str(warning.message) for warning in recwarn if isinstance(warning.message, MediaWarning)]
    assert len(said) == 2 and all("other files of its class" in note for note in said)
    assert any("a/1.png: unreadable" in note for note in said) and any("b/link.png: missing" in note for note in said)
    for path in (train / "a").iterdir():
        path.write_bytes(b"not an image")
    assert main([*words, str(tmp_path / "again")]) != 0


def test_pipes_and_links_to_nothing_in_a_folder_are_counted(
    network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = photos(tmp_path / "in", 2)
    (folder / "nothing.jpg").symlink_to(tmp_path / "nowhere")
    (folder / "more").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.jpg")
    counts = embed_files.embed_image([folder], Path(network), workers=1)
    said = capsys.readouterr().out
    assert (counts.written, counts.special_files) == (2, 3)
    assert "3 entries of the folders were skipped" in said
    assert all(text in said for text in ("nothing.jpg", "a link to nothing", "pipe.jpg", "more", "a link to a folder"))


@pytest.mark.parametrize(("name", "expected"), [("OutOfMemoryError", MemoryError), ("AcceleratorError", RuntimeError)])
def test_a_gpu_that_fails_refuses_no_file(name: str, expected: type[Exception]):
    error = getattr(torch, name, type(name, (RuntimeError,), {}))
    with pytest.raises(expected, match="CUDA error"), wrap_item_errors("a.jpg"):
        raise error("CUDA error")

    def fail(_items: list[int]) -> list[int]:
        raise error("CUDA error")

    with pytest.raises(expected, match="CUDA error"):
        run_batch_or_singly(fail, [1, 2], [Path("a.jpg"), Path("b.jpg")])


def test_a_batch_without_errors_runs_once():
    runs = []

    def run(items: list[int]) -> list[int]:
        runs.append(len(items))
        return [10 // item for item in items]

    paths = [Path("a"), Path("b"), Path("c")]
    assert run_batch_or_singly(run, [1, 2, 5], paths) == [10, 5, 2] and runs == [3]
    found = run_batch_or_singly(run, [1, 0, 5], paths)
    assert (found[0], found[2]) == (10, 2) and isinstance(found[1], MediaError) and found[1].path == "b"
    assert run_batch_or_singly(run, [], []) == []


@pytest.mark.parametrize("place", ["version", "name"])
def test_a_damaged_result_is_kept_as_others_are(tmp_path: Path, place: str):
    """Of another program perhaps: it has no stamp, so that it is not taken for one of an older file."""
    result = tmp_path / "a.npz"
    np.savez(result, embedding=np.ones((1, 2)))
    data = bytearray(result.read_bytes())
    entry = data.rindex(b"PK\x01\x02")  # the central directory (APPNOTE 4.3.12)
    if place == "version":
        data[entry + 6 : entry + 8] = b"\xad\x00"
    else:
        data[entry + 8 : entry + 10] = b"\x00\x08"  # the name is UTF-8, and is not
        data[entry + 46] = 0xFF
    result.write_bytes(data)
    assert read_result_source(result) == ("", "")
