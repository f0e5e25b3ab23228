"""Folders searched by image, audio and text in a common space, against products of the pipelines' own embeddings."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import comodal
from comodal.cli.program import main
from comodal.errors import CheckpointError, DataError
from comodal.inference.embedding_search import embedding_index, neighbors
from comodal.inference.embedding_search.embedding_searcher import EmbeddingSearcher, resolve_query
from comodal.inference.embedding_search.neighbors import CompressedNeighbors, ExactNeighbors, build_neighbors
from comodal.media.video import iterate_frames
from comodal.models.ave_net.ave_net import SMALL_AVE_NET_CONFIG, AVENet
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from tests.support.paths import FIXTURES
from tests.support.self_contained import check_page

RATE = 48_000
CONFIG = replace(SMALL_AVE_NET_CONFIG, width=2, image_size=56, embedding_dim=8)
CLIP = FIXTURES / "media" / "fragmented.mp4"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks of random weights."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    save_model(AVENet(CONFIG).eval(), folder / "ave", {})
    save_model(AVENet(replace(CONFIG, comparison="localization")).eval(), folder / "avol", {})
    save_model(L3Net(make_small_l3net_config(2)), folder / "l3net", {})
    return folder


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Five images, a tone that becomes noise after 3 s, noise of 1 s, and a video."""
    folder, rng = tmp_path / "clips", np.random.default_rng(0)
    folder.mkdir()
    for number in range(5):
        paint(folder / f"{number}.png", number)
    tone = np.sin(np.arange(3 * RATE) * 0.05)
    soundfile.write(folder / "long.wav", np.concatenate([tone, rng.normal(0, 0.2, 2 * RATE)]), RATE, subtype="FLOAT")
    soundfile.write(folder / "noise.wav", rng.normal(0, 0.5, RATE), RATE, subtype="FLOAT")
    shutil.copy(CLIP, folder / "clip.mp4")
    return folder


def paint(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((70, 64)).save(path)


def open_search(models: Path, name: str, folder: Path, find: str = "auto") -> EmbeddingSearcher:
    searcher = comodal.load(models / name, device="cpu", precision="fp32").open_index(folder, find=find)
    assert isinstance(searcher, EmbeddingSearcher)
    return searcher


def test_audio_is_found_by_an_image_with_its_time(models: Path, clips: Path):
    """Windows of one second side by side, each file once."""
    ave = comodal.load(models / "ave", device="cpu", precision="fp32")
    image = ave.embed_image(clips / "0.png")[0]
    expected = {}
    for name in ("long.wav", "noise.wav"):
        vectors, seconds = ave.embed_audio(clips / name)
        cosines = vectors @ image
        expected[name] = (float(cosines.max()), float(seconds[cosines.argmax()]))
    found = open_search(models, "ave", clips).search(clips / "0.png").best
    best = {hit.path.name: hit for hit in found}
    assert set(best) == {"long.wav", "noise.wav", "clip.mp4"}
    for name, (cosine, seconds) in expected.items():
        assert best[name].score == pytest.approx(cosine, abs=1e-5) and best[name].seconds == seconds
    assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)


def test_images_and_frames_are_found_by_audio(models: Path, clips: Path):
    ave = comodal.load(models / "ave", device="cpu", precision="fp32")
    samples, _ = soundfile.read(clips / "noise.wav", dtype="float32")
    audio = ave.embed_audio(clips / "noise.wav")[0][0]
    frames = [frame for _, frame in iterate_frames(clips / "clip.mp4", 1.0)]
    names = [f"{number}.png" for number in range(5)]
    expected = dict(zip(names, ave.embed_image([clips / name for name in names]) @ audio, strict=True))
    expected["clip.mp4"] = (ave.embed_image(frames) @ audio).max()
    searcher = open_search(models, "ave", clips)
    for found in (searcher.search(str(clips / "noise.wav")), searcher.search(samples, sample_rate=RATE)):
        assert [hit.path.name for hit in found.best] == sorted(expected, key=lambda name: -expected[name])
        assert [hit.score for hit in found.best] == pytest.approx(sorted(expected.values(), reverse=True), abs=1e-5)
        assert [hit.seconds is None for hit in found.best] == [hit.path.suffix == ".png" for hit in found.best]


def test_without_a_common_space_a_modality_finds_itself(models: Path, clips: Path):
    """L3-Net: the second half of the noise is nearest to itself, at its time; images to themselves."""
    searcher = open_search(models, "l3net", clips)
    samples, _ = soundfile.read(clips / "long.wav", dtype="float32", start=4 * RATE)
    best = searcher.search(samples, top_k=1, sample_rate=RATE).best[0]
    assert (best.path.name, best.seconds) == ("long.wav", 4.0) and best.score == pytest.approx(1, abs=1e-4)
    best = searcher.search(Image.open(clips / "3.png"), top_k=1).best[0]
    assert (best.path.name, best.seconds) == ("3.png", None) and best.score == pytest.approx(1, abs=1e-4)


def test_the_index_follows_the_folder(models: Path, clips: Path, monkeypatch: pytest.MonkeyPatch):
    """Only new and changed images are read; rows are appended; a folder that lost most of its files is written anew."""
    read: list[str] = []
    real = embedding_index.read_image
    monkeypatch.setattr(embedding_index, "read_image", lambda path: (read.append(path.name), real(path))[1])
    (clips / "broken.jpg").write_bytes(b"no image")
    query = clips / "noise.wav"
    first = open_search(models, "ave", clips).search(query, top_k=20)
    assert len(read) == 6 and len(first.best) == 6
    (rows,) = (clips / ".comodal-index").glob("*.rows")
    before = rows.read_bytes()
    paint(clips / "5.png", 5)
    paint(clips / "0.png", 50)
    (clips / "1.png").unlink()
    searcher = open_search(models, "ave", clips)
    assert searcher.search(query, top_k=20).num_files == 6
    assert sorted(read[6:]) == ["0.png", "5.png"]
    assert rows.read_bytes().startswith(before) and len(rows.read_bytes()) > len(before)
    assert "1.png" not in {hit.path.name for hit in searcher.search(query, top_k=20).best}
    fresh = comodal.load(models / "ave", device="cpu", precision="fp32").open_index(clips, clips.parent / "fresh")
    found, expected = searcher.search(query, top_k=20).best, fresh.search(query, top_k=20).best
    assert [hit.path for hit in found] == [hit.path for hit in expected]
    assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-5)
    for name in ("0.png", "2.png", "3.png", "4.png", "clip.mp4"):
        (clips / name).unlink()
    paint(clips / "6.png", 6)
    assert {hit.path.name for hit in open_search(models, "ave", clips).search(query).best} == {"5.png", "6.png"}
    assert len(rows.read_bytes()) == 2 * (8 + 4 + 4 * 8)
    rows.write_bytes(rows.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="is damaged"):
        open_search(models, "ave", clips).search(query)


def test_an_interrupted_index_is_resumed(models: Path, clips: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embedding_index, "ROWS_PER_WRITE", 1)
    real = embedding_index.embed_audio_file

    def interrupt(space: object, path: Path) -> embedding_index.FileVectors:
        if path.name == "noise.wav":
            raise KeyboardInterrupt
        return real(space, path)

    monkeypatch.setattr(embedding_index, "embed_audio_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        open_search(models, "ave", clips).open("audio")
    read: list[str] = []
    monkeypatch.setattr(embedding_index, "embed_audio_file", lambda s, p: (read.append(p.name), real(s, p))[1])
    assert len(open_search(models, "ave", clips).search(clips / "0.png").best) == 3
    assert read == ["noise.wav"]


def test_mistakes_are_one_sentence(models: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    ave, image = ["--model", str(models / "ave")], str(clips / "0.png")
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(image, empty)
    for arguments, sentence in (
        ([str(clips), "a dog", *ave], "'a dog' is a text, and AVE-Net searches by an image or audio"),
        ([str(clips), "gone.png", *ave], "gone.png does not exist"),
        ([str(clips), " ", *ave], "the text is empty"),
        ([str(empty), image, *ave], "has no audio and no video files (1 image files)"),
        ([str(clips), image, *ave, "--top-k", "0"], "top_k (0) must be at least 1"),
        ([str(clips), image, *ave, "--rerank", "5"], "--rerank is for a ViLBERT"),
        ([str(clips), image, "--model", str(models / "avol")], "AVOL-Net has a vector for each position"),
        (
            [str(clips), image, "--model", str(models / "l3net"), "--find", "audio"],
            "is an image: an L3-Net compares it with image, not with audio",
        ),
    ):
        assert main(["search", *arguments, "--device", "cpu", "--precision", "fp32"]) == 1, sentence
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1
    with pytest.raises(CheckpointError):
        open_search(models, "avol", clips)
    with pytest.raises(TypeError, match="got int"):
        resolve_query(3)


def test_the_command_prints_a_table_json_and_a_page(
    models: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    words = ["search", str(clips), str(clips / "0.png"), "--model", str(models / "ave"), "--precision", "fp32"]
    assert main([*words, "--top-k", "2", "--out", str(tmp_path / "page.html")]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3 and "0:00.0" in out
    assert "vectors of 3 files compared" in err and "not searched, because audio is: 5 image files" in err
    page = check_page((tmp_path / "page.html").read_text())
    assert page.tags.count("audio") == 2
    assert main([*words, "--json", "--find", "image", "--out", str(tmp_path / "page.html")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["item_kind"] == "image" and found["best"][0]["path"] == str(clips / "0.png")
    assert found["best"][0]["score"] == pytest.approx(1, abs=1e-5) and found["best"][0]["seconds"] is None
    assert check_page((tmp_path / "page.html").read_text()).tags.count("img") == 6


def random_vectors(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_exact_neighbors_are_those_of_a_full_sort():
    vectors, query = random_vectors(50, 5), random_vectors(1, 5, 1)[0]
    expected = np.argsort(-(vectors @ query), kind="stable")
    for count in (1, 7, 50, 60):
        assert ExactNeighbors(vectors).find(query, count).indices.tolist() == expected[:count].tolist()
    repeated = ExactNeighbors(np.repeat(vectors[:1], 4, 0)).find(vectors[0], 2)
    assert repeated.indices.tolist() == [0, 1]


@pytest.mark.parametrize("dim", [16, 15])
def test_approximate_neighbors_are_nearly_the_exact_ones(dim: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The codes of new vectors are appended, and give the same results as those of all at once."""
    pytest.importorskip("faiss", reason="the extra ann is not installed")
    monkeypatch.setattr(neighbors, "MIN_CANDIDATES", 100)
    vectors, queries = random_vectors(3000, dim), random_vectors(20, dim, 1)
    build_neighbors(tmp_path / "a", vectors[:2500], exact_below=1000)
    found = build_neighbors(tmp_path / "a", vectors, exact_below=1000)
    again = build_neighbors(tmp_path / "a", vectors, exact_below=1000)
    assert isinstance(found, CompressedNeighbors)
    assert (tmp_path / "a-codes.rows").stat().st_size == 3000 * 4  # 8 pairs of 4 bits
    kept = []
    for query in queries:
        exact, approximate = ExactNeighbors(vectors).find(query, 10), found.find(query, 10)
        kept.append(np.isin(exact.indices, approximate.indices).mean())
        assert again.find(query, 10).indices.tolist() == approximate.indices.tolist()
        assert np.allclose(approximate.scores, vectors[approximate.indices] @ query, atol=1e-6)
    assert np.mean(kept) >= 0.95
    others = random_vectors(3000, dim, 2)  # the vectors were built again in another order
    rebuilt = build_neighbors(tmp_path / "a", others, exact_below=1000)
    assert rebuilt.find(others[7], 1).indices.tolist() == [7]


def test_without_the_extra_the_search_is_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(neighbors, "import_faiss", lambda: None)
    assert isinstance(build_neighbors(tmp_path / "a", random_vectors(10, 4), exact_below=5), ExactNeighbors)
    error = capsys.readouterr().err
    assert "10 vectors are searched exactly; pip install 'comodal[ann]'" in error and error.count("\n") == 1
