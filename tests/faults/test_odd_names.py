"""Names of files and classes may be anything that a file system holds: batch commands read, report and resume."""

import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from comodal.cli.program import main
from comodal.data.regions.region_store import RegionStore
from comodal.data.shards.shard_reader import ShardReader
from comodal.inference.image_search import search_index
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import save_model
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.regions import extract
from tests.support.container_files import jpeg
from tests.support.make_media import make_tone, make_video
from tests.support.small_tasks import config

NOT_TEXT = os.fsdecode(b"latin\xff")
STEMS = ["new\nline", "-dash", "[/b]dog", "\N{GRINNING FACE}", "x" * 246, "esc\x1b[2J", "\u202egpj", NOT_TEXT]
TEXT_STEMS = STEMS[:-1]
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")  # but the end of a line


@pytest.fixture(scope="module")
def network(network: Path) -> str:
    return str(network)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_video(tmp_path_factory.mktemp("clip") / "a.mp4", seconds=1.2).read_bytes()


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """The exit code of a command and what it prints, of which nothing may move the cursor."""
    capsys.readouterr()
    code = main([*map(str, words)])
    said = capsys.readouterr()
    for line in (said.out + said.err).splitlines():
        assert not CONTROL.search(line), line
    return code, said.out + said.err


def report(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "report.jsonl").read_bytes().splitlines()]


def fill(folder: Path, suffix: str, data: bytes) -> Path:
    for stem in STEMS:
        path = folder / f"{stem}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def test_prepare_videos(tmp_path: Path, clip: bytes, capsys: pytest.CaptureFixture[str]):
    folder, out = fill(tmp_path / "videos", ".mp4", clip), tmp_path / "out"
    words = ["prepare", "videos", folder, out, "--short-side", 32, "--validation-fraction", 0, "--test-fraction", 0]
    words += ["--backend", "sequential", "--videos-per-shard", 3]
    assert run(capsys, *words)[0] == 0
    lines = {line["path"].removesuffix(".mp4"): line for line in report(out)}
    assert lines.keys() == {*STEMS}
    assert {stem for stem, line in lines.items() if line["status"] == "accepted"} == {*TEXT_STEMS}
    assert "not UTF-8" in lines[NOT_TEXT]["detail"]
    shards = ShardReader(out / "train")
    records = [shards.read_record(i) for i in range(len(shards))]
    assert {record["source"].removesuffix(".mp4") for record in records} == {*TEXT_STEMS}
    code, said = run(capsys, *words)
    assert code == 0 and "nothing to do" in said
    next(out.glob("train/*.report.jsonl")).unlink()
    before = {path: path.read_bytes() for path in out.glob("train/*.tar")}
    assert run(capsys, *words)[0] == 0
    assert {path: path.read_bytes() for path in before} == before


def test_prepare_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tone = make_tone(tmp_path / "tone.wav", 1.0).read_bytes()
    for number, stem in enumerate(["new\nclass", "[b]", NOT_TEXT]):
        fill(tmp_path / "images" / stem, ".jpg", jpeg(number))
        fill(tmp_path / "sounds" / stem, ".wav", tone)
    words = ["prepare", "pairs", tmp_path / "images", tmp_path / "sounds", tmp_path / "out"]
    words += ["--backend", "sequential", "--short-side", 32, "--validation-fraction", 0, "--test-fraction", 0]
    assert run(capsys, *words)[0] == 0
    lines = report(tmp_path / "out")
    assert len(lines) == 3 * len(STEMS)
    taken = [line for line in lines if line["status"] == "accepted"]
    assert taken and all(line["status"] == "accepted" or NOT_TEXT in line["path"] for line in lines)
    assert not any(NOT_TEXT in line["path"] for line in taken)
    assert "nothing to do" in run(capsys, *words)[1]


def test_extract_resumes(
    tmp_path: Path, network: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    folder, out = fill(tmp_path / "photos", ".jpg", jpeg(0)), tmp_path / "out"
    words, add, read = (
        ["extract", folder, out, "--detector", network, "--workers", 1],
        extract.add_extraction_result,
        [],
    )

    def interrupted(*values: object) -> object:
        read.append(values[1].image)
        if len(read) == 5:
            raise KeyboardInterrupt
        return add(*values)

    monkeypatch.setattr(extract, "add_extraction_result", interrupted)
    assert run(capsys, *words)[0] != 0
    assert run(capsys, *words)[0] == 0
    assert len(read) < 5 + len(STEMS)
    assert sorted(RegionStore(out).ids) == sorted(TEXT_STEMS)
    (line,) = report(out)
    assert line["image"] == f"{NOT_TEXT}.jpg" and "not UTF-8" in line["detail"]
    assert run(capsys, *words)[0] == 0


@pytest.mark.parametrize(("kind", "suffix"), [("image", ".jpg"), ("video", ".mp4")])
def test_embed(tmp_path: Path, network: str, clip: bytes, kind: str, suffix: str, capsys: pytest.CaptureFixture[str]):
    folder, out = fill(tmp_path / "in", suffix, jpeg(0) if kind == "image" else clip), tmp_path / "out"
    words = ["embed", kind, folder, "--model", network, "--out", out, "--workers", 1]
    code, said = run(capsys, *words)
    assert code == 1 and f"1 of {len(STEMS)} files could not be embedded" in said and "not UTF-8" in said
    made = [*out.rglob("*.npz")]
    assert len(made) == len(TEXT_STEMS) * (2 if kind == "video" else 1)
    assert all(np.isfinite(np.load(path)["embedding"]).all() for path in made)
    (folder / f"{NOT_TEXT}{suffix}").unlink()
    code, said = run(capsys, *words)
    assert code == 0 and f"0 written, {len(TEXT_STEMS)} existed already" in said


def test_evaluate(tmp_path: Path, network: str, capsys: pytest.CaptureFixture[str]):
    for number, category in enumerate(["new\nclass", "[b]\x1b[2J $\\frac{$"]):
        tone = make_tone(tmp_path / "tone.wav", 1.0, hertz=300.0 * (number + 1)).read_bytes()
        for side in ("train", "test"):
            fill(tmp_path / "images" / side / category, ".jpg", jpeg(number))
            fill(tmp_path / "audio" / side / category, ".wav", tone)
    for task in ("audio", "images"):
        out, more = tmp_path / f"of {task}", ["--cache", tmp_path / "cache"] if task == "images" else []
        words = ["evaluate", task, "--model", network, "--data", tmp_path / task, "--out", out, "--workers", 1]
        for _ in range(2 if task == "images" else 1):
            code, said = run(capsys, *words, *more)
            assert code == 0 and "excluded: 4" in said and "not UTF-8" in said
        assert json.loads((out / "card.json").read_text())["counts"]["predicted"] == 2 * len(TEXT_STEMS)
        with (out / "predictions.csv").open(newline="") as file:
            answers = list(csv.DictReader(file))
        assert {Path(row["item"]).name.rpartition(".")[0] for row in answers} == {
            Path(stem).name for stem in TEXT_STEMS
        }


def test_search_resumes(
    tmp_path: Path, network: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "known").mkdir()
    (tmp_path / "known" / "a.jpg").write_bytes(jpeg(0))
    extract.extract_regions(tmp_path / "known", tmp_path / "store", network, grid=2, workers=1)
    store, words = RegionStore(tmp_path / "store"), WordPieceTokenizer.from_texts(["a red dog"])
    model = tmp_path / "run" / "model"
    save_model(ViLBERT(replace(config(words.size), region_feature_dim=store.dim)), model, {})
    words.save(model)
    (model / "regions.json").write_bytes(store.encode_provenance())
    folder, add, read = fill(tmp_path / "photos", ".jpg", jpeg(1)), search_index.add_extraction_result, []

    def interrupted(*values: object) -> object:
        read.append(values[1].image)
        if len(read) == 5:
            raise KeyboardInterrupt
        return add(*values)

    monkeypatch.setattr(search_index, "add_extraction_result", interrupted)
    words = ["search", folder, "a dog", "--model", tmp_path / "run", "--workers", 1, "--out", tmp_path / "page.html"]
    assert run(capsys, *words)[0] != 0
    code, said = run(capsys, *words)
    assert code == 0 and "1 more cannot be read" in said and "u001b[2J.jpg" in said
    done = len(read)  # what was stored before is not read again; the unreadable one is
    assert done < 5 + len(STEMS)
    code, said = run(capsys, *words, "--json")
    found = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    assert {hit["path"] for hit in found["best"]} == {str(folder / f"{stem}.jpg") for stem in TEXT_STEMS}
    assert len(read) == done


def test_a_warning_is_one_line_without_control_characters(tmp_path: Path, network: str):
    """Outside of the batch commands, whose reports have the notes; here warnings would be errors."""
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    sound = make_tone(tmp_path / "esc\x1b[2J\n.wav", 4.0)
    sound.write_bytes(sound.read_bytes()[: sound.stat().st_size // 2])
    words = ["match", str(tmp_path / "a.jpg"), str(sound), "--model", network]
    done = subprocess.run([sys.executable, "-m", "comodal", *words], capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stderr.splitlines() if "truncated" in line]
    assert line.startswith("comodal: warning: ") and "\\u001b[2J" in line
    assert not any(CONTROL.search(line) for line in (done.stdout + done.stderr).splitlines())
