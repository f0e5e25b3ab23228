"""A folder searched by text: what is found is what plain scoring of every pair finds, and no picture is read twice."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import comodal
from comodal.cli.program import main
from comodal.data.captions.caption_dataset import prepend_full_image
from comodal.data.regions.region_store import RegionStore
from comodal.errors import CheckpointError, DataError
from comodal.inference.image_search import search_index
from comodal.inference.image_search.search import Searcher
from comodal.inference.image_search.search_command import open_index
from comodal.inference.image_search.search_first_stage import FirstStage, FirstStageTraining
from comodal.inference.vision_language import load_vision_language
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import save_model
from comodal.models.dual_encoder.dual_encoder import DualEncoder, DualEncoderConfig
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.models.vilbert.heads import Head
from comodal.models.vilbert.task_model import TaskModel, TaskModelConfig
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import StreamConfig
from comodal.regions import extract
from comodal.regions.extract import extract_regions
from comodal.tasks.retrieval import first_stage
from comodal.tasks.retrieval.first_stage import EncodingProjection, EncodingProjections
from tests.support.plain_retrieval import plain_logits
from tests.support.self_contained import check_page
from tests.support.small_tasks import config as small_config

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "white": (240, 240, 240)}
NAMES = [(left, right) for left in COLOURS for right in COLOURS]
TEXT = "a red thing left of a blue thing"
STEPS = first_stage.NUM_STEPS


def paint(path: Path, left: str, right: str, seed: int = 0) -> None:
    """Two halves of a colour each, with grains."""
    pixels = np.concatenate([np.full((40, 32, 3), COLOURS[name]) for name in (left, right)], axis=1)
    grains = np.random.default_rng(seed).integers(-12, 12, pixels.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(pixels + grains, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with captions, their regions by an L3-Net of chance, and a ViLBERT of chance as if trained on them."""
    folder = tmp_path_factory.mktemp("world")
    lines = []
    for number, (left, right) in enumerate(NAMES * 3):
        name = f"{number:03d}.png"
        paint(folder / "known" / name, left, right, number)
        caption = f"a {left} thing left of a {right} thing"
        lines.append({"image": name, "caption": caption, "split": "train" if number % 3 else "validation"})
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    torch.manual_seed(0)
    save_model(L3Net(make_small_l3net_config(4)), folder / "network", {})
    extract_regions(folder / "known", folder / "store", str(folder / "network"), grid=2, workers=1)
    save_run(folder, folder / "run")
    return folder


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what does not depend on how well the first stage is fitted."""
    monkeypatch.setattr(first_stage, "NUM_STEPS", 10)


@pytest.fixture
def enough_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what does: `few_steps` comes before it."""
    monkeypatch.setattr(first_stage, "NUM_STEPS", STEPS)


def save_run(world: Path, run: Path, seed: int = 3, heads: tuple[Head, ...] = (), **sizes: int) -> Path:
    """A run of chance as training leaves it."""
    store = RegionStore(world / "store")
    words = WordPieceTokenizer.from_texts(
        [json.loads(line)["caption"] for line in (world / "captions.jsonl").read_text().splitlines()]
    )
    config = replace(small_config(words.size), region_feature_dim=store.dim, initializer_range=0.3, **sizes)
    parameters = {"data": str(world / "store"), "captions": str(world / "captions.jsonl"), "validation_fraction": 0.02}
    torch.manual_seed(seed)
    model = TaskModel(TaskModelConfig(config, heads)) if heads else ViLBERT(config)
    save_model(model, run / "model", {"recipe": "vilbert", "parameters": parameters})
    words.save(run / "model")
    (run / "model" / "regions.json").write_bytes(store.encode_provenance())
    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number, (left, right) in enumerate(NAMES):
        paint(tmp_path / "photos" / ("holiday" if number % 2 else "home") / f"{left}_{right}.png", left, right, 99)
    return tmp_path / "photos"


def names_of(searcher: Searcher, text: str = TEXT, top: int = 10) -> list[str]:
    return [hit.path.name for hit in searcher.search(text, top).best]


def plainly(photos: Path, run: Path, text: str, out: Path) -> list[tuple[str, float]]:
    """Every picture scored by whole forward passes over a store that `comodal extract` made, the best first."""
    extract_regions(photos, out, like=run, workers=1)
    answerer, store = load_vision_language(run), RegionStore(out)
    seen = [tuple(map(torch.from_numpy, prepend_full_image(store.read_regions(row), 100))) for row in range(len(store))]
    words = torch.tensor(answerer.tokenizer.encode(text))
    logits = plain_logits(answerer.vilbert, [words] * len(seen), seen, words=36)
    shares = logits.softmax(1)[:, 0].tolist()
    order = (logits[:, 1] - logits[:, 0]).argsort(stable=True).tolist()
    return [(f"{store.ids[i].rpartition('/')[2]}.png", shares[i]) for i in order]


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of pictures that are read from here on."""
    read: list[str] = []
    real = extract.read_image

    def watched(path: Path) -> np.ndarray:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(extract, "read_image", watched)
    return read


# What is found


@pytest.mark.parametrize("rerank", [16, 15, 4])
def test_what_the_model_scores_it_scores_as_plain_passes_do(world: Path, photos: Path, tmp_path: Path, rerank: int):
    run = world / "run"
    expected = plainly(photos, run, TEXT, tmp_path / "store")
    searcher = open_index(photos, run, rerank=rerank, precision="fp32")
    found = searcher.search(TEXT, top_k=rerank)
    assert (searcher.stage is None) == (rerank == 16) and found.num_scored == rerank == len(found.best)
    kept = {hit.path.name for hit in found.best}
    expected = [(name, share) for name, share in expected if name in kept]
    assert [hit.path.name for hit in found.best] == [name for name, _ in expected]
    np.testing.assert_allclose([hit.score for hit in found.best], [share for _, share in expected], atol=1e-5)
    assert expected[0][1] - expected[-1][1] > 0.01 and len(kept) == rerank


def test_a_score_is_what_align_says_of_the_picture(world: Path, photos: Path):
    found = open_index(photos, world / "run", precision="fp32").search(TEXT, top_k=3)
    answerer = comodal.load(world / "run", precision="fp32")
    for hit in found.best:
        (said,) = answerer.score(answerer.encode_image(hit.path), [TEXT])
        assert hit.score == pytest.approx(said.probability, abs=2e-3)  # the index is fp16


@pytest.mark.usefixtures("enough_steps")
def test_the_first_stage_brings_what_captions_have_taught(world: Path, photos: Path, capsys: pytest.CaptureFixture):
    """The network is one of chance; the two maps have learnt which colour is on which side."""
    searcher = open_index(photos, world / "run", rerank=4)
    assert "fitting the first stage on 32 captions" in capsys.readouterr().err
    kept = {left: [] for left in COLOURS}
    for left, right in NAMES:
        text = f"a {left} thing left of a {right} thing"
        kept[left].append(f"{left}_{right}.png" in names_of(searcher, text, 4))
    assert np.mean([*kept.values()]) > 0.9  # 0.25 by chance
    assert searcher.search(TEXT, 4).recall > 0.9


def test_recall_is_that_of_as_large_a_share():
    learnt, nothing = FirstStageTraining("", "", 1, num_held_out=20), torch.zeros(2, 3)
    ranks = torch.tensor([0, 1, 2, 19])
    stage = FirstStage(
        learnt,
        EncodingProjections(EncodingProjection(nothing), EncodingProjection(nothing)),
        ranks,
        torch.arange(2),
        nothing,
    )
    # 50 of 1,000 pictures are as large a share as 1 of 20; 100 as 2; 150 as 3
    assert [stage.count_held_out_kept(keep, 1000) for keep in (50, 100, 150, 1000, 1)] == [1, 2, 3, 20, 1]
    assert [stage.compute_recall(keep, 1000) for keep in (50, 100, 150, 1000)] == [0.25, 0.5, 0.75, 1.0]
    assert replace(stage, ranks=ranks[:0]).compute_recall(50, 1000) is None


def test_a_model_that_is_fine_tuned_for_retrieval_searches_by_its_own_head(world: Path, photos: Path, tmp_path: Path):
    run = save_run(world, tmp_path / "run", heads=(Head("score", "linear", 1),))
    found = open_index(photos, run).search(TEXT, top_k=16)
    assert found.score_kind == "score"
    answerer = load_vision_language(run)
    tokens = answerer.tokenizer.encode(TEXT)
    scores = [
        float(answerer.compute_head_scores("score", "retrieval", tokens, answerer.encode_image(hit.path))[0])
        for hit in found.best
    ]
    np.testing.assert_allclose([hit.score for hit in found.best], scores, atol=2e-2)


# The index


def test_no_picture_is_read_twice(world: Path, photos: Path, monkeypatch: pytest.MonkeyPatch):
    read = reads(monkeypatch)
    first = open_index(photos, world / "run", rerank=4).search(TEXT, 4)
    assert len(read) == 16
    monkeypatch.setattr(extract, "load_extractor", lambda *_: pytest.fail("the network was loaded"))
    monkeypatch.setattr(
        "comodal.inference.image_search.search_first_stage.fit_projections", lambda *_: pytest.fail("fitted again")
    )
    again = open_index(photos, world / "run", rerank=4).search(TEXT, 4)
    assert len(read) == 16 and again.best == first.best


def test_the_index_follows_the_folder(world: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, index = world / "run", tmp_path / "index"
    open_index(photos, run, index, rerank=4)
    read = reads(monkeypatch)
    paint(photos / "another.png", "blue", "blue", 7)
    (photos / "home" / "red_red.png").unlink()
    repainted = photos / "home" / "green_red.png"
    paint(repainted, "white", "white", 8)
    os.utime(repainted, (1, 1))
    searcher = open_index(photos, run, index, rerank=4)
    assert sorted(read) == ["another.png", "green_red.png"]
    assert "another.png" in searcher.images.names and "home/red_red.png" not in searcher.images.names
    fresh = open_index(photos, run, tmp_path / "fresh", rerank=4)
    assert fresh.images.names == searcher.images.names
    for left, right in NAMES[::5]:
        text = f"a {left} thing left of a {right} thing"
        found, expected = searcher.search(text, 4).best, fresh.search(text, 4).best
        assert [hit.path for hit in found] == [hit.path for hit in expected]
        assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], rel=1e-6)
    shutil.rmtree(photos / "holiday")
    assert len(open_index(photos, run, index, rerank=4).images) == 8 and len(read) == 2 + 16


def test_one_more_picture_leaves_the_others_where_they_are(world: Path, photos: Path, tmp_path: Path):
    index = tmp_path / "index"
    open_index(photos, world / "run", index, rerank=4)
    files = [path for path in index.rglob("*") if path.suffix in {".bin", ".rows", ".safetensors"}]
    before = {path: (path.stat().st_ino, path.read_bytes()) for path in files}
    paint(photos / "a.png", "blue", "blue", 7)
    searcher = open_index(photos, world / "run", index, rerank=4)
    assert len(searcher.images) == 17 == len(searcher.stage.vectors)
    for path, (number, data) in before.items():
        assert path.stat().st_ino == number and path.read_bytes().startswith(data)
    assert sum(path.stat().st_size > len(before[path][1]) for path in files) == 3  # features, boxes, vectors
    for picture in photos.rglob("*_*.png"):
        picture.unlink()
    paint(photos / "home" / "b.png", "blue", "blue", 7)
    shutil.copy(photos / "home" / "b.png", photos / "home" / "red_b.png")
    assert len(open_index(photos, world / "run", index, rerank=1).images) == 3
    assert [path.name for path in index.glob("regions-*")] == ["regions-2"]  # most of the first one was gone


def test_killed_while_it_is_completed_it_goes_on(world: Path, photos: Path, monkeypatch: pytest.MonkeyPatch):
    open_index(photos, world / "run", rerank=4)
    for number in range(6):
        paint(photos / f"new{number}.png", "blue", "red", number)
    read, real = reads(monkeypatch), search_index.add_extraction_result

    def killed(writer: object, made: extract.ExtractionResult, name: str) -> None:
        if len(read) == 4:
            raise KeyboardInterrupt
        real(writer, made, name)

    monkeypatch.setattr(search_index, "add_extraction_result", killed)
    with pytest.raises(KeyboardInterrupt):
        open_index(photos, world / "run", rerank=4)
    monkeypatch.setattr(search_index, "add_extraction_result", real)
    assert len(open_index(photos, world / "run", rerank=4).images) == 22
    assert len(read) == 4 + 3  # the fourth again


def test_killed_it_goes_on(world: Path, photos: Path, monkeypatch: pytest.MonkeyPatch):
    read = reads(monkeypatch)
    real = search_index.add_extraction_result

    def killed(writer: object, made: extract.ExtractionResult, name: str) -> None:
        if len(read) == 9:
            raise KeyboardInterrupt
        real(writer, made, name)

    monkeypatch.setattr(search_index, "add_extraction_result", killed)
    with pytest.raises(KeyboardInterrupt):
        open_index(photos, world / "run")
    monkeypatch.setattr(search_index, "add_extraction_result", real)
    paint(photos / "new.png", "blue", "red")
    assert len(open_index(photos, world / "run").images) == 17
    assert len(read) == 9 + 1 + 8  # the ninth again, the new one


def test_a_changed_model_is_noticed(world: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = save_run(world, tmp_path / "run", seed=3)
    before = open_index(photos, run, rerank=4)
    read = reads(monkeypatch)
    save_run(world, run, seed=4)
    after, fresh = open_index(photos, run, rerank=4), open_index(photos, run, tmp_path / "fresh", rerank=4)
    assert len(read) == 16  # for the fresh index alone
    assert torch.equal(after.stage.vectors, fresh.stage.vectors)
    assert not torch.equal(after.stage.vectors, before.stage.vectors)
    assert after.search(TEXT, 4).best == fresh.search(TEXT, 4).best


def test_a_folder_is_moved_with_its_index(world: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    open_index(photos, world / "run")
    read = reads(monkeypatch)
    photos.rename(tmp_path / "elsewhere")
    assert names_of(open_index(tmp_path / "elsewhere", world / "run")) and not read


def test_what_cannot_be_read_is_told_once(world: Path, photos: Path, capsys: pytest.CaptureFixture[str]):
    (photos / "broken.jpg").write_bytes(b"")
    shutil.copy(photos / "home" / "red_red.png", photos / "broken.png")
    for _ in range(2):
        assert main(["search", str(photos), TEXT, "--model", str(world / "run"), "--top-k", "20"]) == 0
        out, err = capsys.readouterr()
        assert len(out.splitlines()) == 1 + 17 and "broken.png" in out
        assert "1 more cannot be read" in err
    (line,) = (photos / ".comodal-index" / "refused.jsonl").read_text().splitlines()
    assert json.loads(line)["image"] == "broken.jpg" and json.loads(line)["reason"] == "unreadable"


# The command


@pytest.mark.usefixtures("enough_steps")
def test_the_command_line(world: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["search", str(photos), TEXT, "--model", str(world / "run"), "--rerank", "5"]
    page = tmp_path / "page.html"
    assert main([*words, "--top-k", "3", "--json", "--out", str(page), "--precision", "bf16"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert (told["num_files"], told["num_scored"], len(told["best"])) == (16, 5, 3)
    assert told["recall"] == 1.0 and 0 < told["first_stage_milliseconds"] < 1000 * told["seconds"]
    assert all(Path(hit["path"]).is_file() and 0 < hit["score"] < 1 for hit in told["best"])
    assert "first stage: 16 images in" in err and "5 images kept" in err
    assert "measured on 16 held-out captions: recall of the first 5 of 16 images" in err
    read = check_page(page.read_text())
    assert read.tags.count("img") == 3 and read.texts_of("h1") == [TEXT]
    for bad, sentence in (
        (["--top-k", "6"], "top_k (6) must be from 1 to rerank (5)"),
        (["--rerank", "0"], "rerank (0) must be at least 1"),
        (["--workers", "0"], "workers is a number from 1 to 1,024, got 0"),
        (["--out", "page.png"], "a page is a .html"),
        (["--captions", str(world / "captions.jsonl")], "give both --captions and --regions"),
    ):
        assert main([*words, *bad]) == 1
        assert sentence in capsys.readouterr().err


def test_words_that_the_model_does_not_know(world: Path, photos: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--model", str(world / "run")]
    assert main(["search", str(photos), "\u4e2d \u56fd", *words]) == 0
    assert "has none of the words of" in capsys.readouterr().err
    assert main(["search", str(photos), "a red \u4e2d", *words]) == 0
    assert "has none of the words" not in capsys.readouterr().err
    assert main(["search", str(photos), " ", *words]) == 1
    assert "the text is empty" in capsys.readouterr().err


def test_without_captions_every_picture_is_scored(
    world: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "run"
    shutil.copytree(world / "run", run)
    path = run / "model" / "config.json"
    path.write_text(path.read_text().replace(str(world / "captions.jsonl"), "/nowhere.jsonl"))
    words = ["search", str(photos), TEXT, "--model", str(run), "--rerank", "4", "--top-k", "4", "--json"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["num_scored"] == 16 and json.loads(out)["recall"] is None
    assert "without a first stage" in err and "fit one with --captions FILE --regions STORE" in err
    assert main([*words, "--captions", str(world / "captions.jsonl"), "--regions", str(world / "store")]) == 0
    assert json.loads(capsys.readouterr().out)["num_scored"] == 4
    assert main(words) == 0  # what was fitted is kept
    assert json.loads(capsys.readouterr().out)["num_scored"] == 4


def test_training_data_that_changed_only_costs_the_first_stage(
    world: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "run"
    shutil.copytree(world / "run", run)
    path = run / "model" / "config.json"
    (tmp_path / "captions.jsonl").write_text("no captions")
    path.write_text(path.read_text().replace(str(world / "captions.jsonl"), str(tmp_path / "captions.jsonl")))
    assert open_index(photos, run, rerank=4).stage is None
    assert "the first stage does not fit the data of" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"captions\.jsonl"):
        open_index(photos, run, rerank=4, captions=tmp_path / "captions.jsonl", regions=world / "store")


# Boxes


def test_boxes_can_be_given_and_are_remembered(world: Path, photos: Path, tmp_path: Path):
    lines = [
        {"image": f"home/{name}", "boxes": [[0, 0, 20, 20], [30, 5, 60, 40]]} for name in ("red_red.png", "no.png")
    ]
    boxes = tmp_path / "boxes.jsonl"
    boxes.write_text("".join(json.dumps(line) + "\n" for line in lines))
    extract_regions(photos, tmp_path / "store", str(world / "network"), boxes)
    run = tmp_path / "run"
    shutil.copytree(world / "run", run)
    (run / "model" / "regions.json").write_bytes(RegionStore(tmp_path / "store").encode_provenance())
    with pytest.raises(DataError, match="was trained on given boxes: pass --boxes FILE"):
        open_index(photos, run, tmp_path / "index")
    assert len(open_index(photos, run, tmp_path / "index", boxes=str(boxes)).images) == 1
    searcher = open_index(photos, run, tmp_path / "index")
    assert names_of(searcher) == ["red_red.png"] and searcher.images.num_refused == 1
    with pytest.raises(DataError, match=r"was built with boxes of .*boxes.jsonl, not grid: give another --index"):
        open_index(photos, run, tmp_path / "index", boxes="grid")
    assert len(open_index(photos, run, tmp_path / "other", boxes="grid").images) == 16


# A dual encoder as first stage


@pytest.fixture
def dual_encoder(world: Path, tmp_path: Path) -> Path:
    """A dual encoder of random weights with an image network of its own."""
    pytest.importorskip("efficientnet_lite_pytorch")
    words = WordPieceTokenizer.read(world / "run")
    text = StreamConfig(16, 1, 2, 24)
    sizes = {"image_backbone": "efficientnet_lite0", "image_size": 32}
    torch.manual_seed(0)
    save_model(DualEncoder(DualEncoderConfig(text, words.size, 20, 0, 2, 1280, 8, **sizes)), tmp_path / "dual", {})
    words.save(tmp_path / "dual")
    return tmp_path / "dual"


def test_a_dual_encoder_chooses_what_the_model_scores(
    world: Path, photos: Path, dual_encoder: Path, capsys: pytest.CaptureFixture
):
    """The nearest images by the product of its own embeddings, ordered by the model."""
    (photos / "clip.mp4").write_bytes(b"no video, and not opened")
    dual = comodal.load(dual_encoder, device="cpu", precision="fp32")
    paths = sorted(photos.rglob("*.png"))
    nearest = np.argsort(-(dual.embed_image(paths) @ dual.embed_text(TEXT)[0]))[:4]
    words = ["search", str(photos), TEXT, "--model", str(world / "run"), "--first-stage", str(dual_encoder)]
    words += ["--rerank", "4", "--top-k", "4", "--json", "--precision", "fp32"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    best = json.loads(out)["best"]
    assert {Path(hit["path"]) for hit in best} == {paths[i] for i in nearest}
    scores = {hit.path: hit.score for hit in open_index(photos, world / "run", precision="fp32").search(TEXT, 16).best}
    assert [hit["score"] for hit in best] == pytest.approx(sorted((scores[paths[i]] for i in nearest), reverse=True))
    assert "recall of the dual encoder" in err
    assert main([*words, "--captions", str(world / "captions.jsonl"), "--regions", str(world / "store")]) == 1
    assert "--first-stage is a trained dual encoder" in capsys.readouterr().err
    assert main(["search", str(photos), str(paths[0]), "--model", str(world / "run")]) == 1
    assert "is an image, and a ViLBERT searches by a text" in capsys.readouterr().err


# What is refused


def damage_about(index: Path) -> None:
    (index / "about.json").write_text("{")


def another_kind(index: Path) -> None:
    (index / "about.json").write_text('{"kind": "regions"}')


def another_store(index: Path) -> None:
    (index / "about.json").write_text((index / "about.json").read_text().replace("regions-1", "../regions-1"))


def cut_store(index: Path) -> None:
    (index / "regions-1" / "features.bin").write_bytes(b"")


def damage_report(index: Path) -> None:
    (index / "refused.jsonl").write_text("[]\n")


def flip_vectors(index: Path) -> None:
    (path,) = index.glob("first_stage-*.rows")
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def cut_vectors(index: Path) -> None:
    (path,) = index.glob("first_stage-*.rows")
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (damage_about, "about.json.* the next search builds it again"),
        (another_kind, "holds regions, not a search index: give another --index"),
        (another_store, "about.json is damaged"),
        (cut_store, r"features.bin has 0 bytes.*Delete .*; the next search builds it again"),
        (damage_report, "refused.jsonl is damaged"),
        (flip_vectors, r"first_stage-.* is damaged \(checksum\): delete it; the next search builds it again"),
        (cut_vectors, r"first_stage-.* is damaged \(.*: delete it"),
    ],
)
def test_a_damaged_index_is_told(
    world: Path, photos: Path, tmp_path: Path, damage: Callable[[Path], None], sentence: str
):
    index = tmp_path / "index"
    open_index(photos, world / "run", index, rerank=4)
    damage(index)
    with pytest.raises(DataError, match=sentence):
        open_index(photos, world / "run", index, rerank=4)


def test_an_index_of_other_pictures_or_another_network_is_left_alone(world: Path, photos: Path, tmp_path: Path):
    open_index(photos, world / "run", tmp_path / "index")
    with pytest.raises(DataError, match=r"is the index of .*photos, not of .*known: give another --index"):
        open_index(world / "known", world / "run", tmp_path / "index")
    extract_regions(photos, tmp_path / "larger", str(world / "network"), grid=2, size=32, workers=1)
    run = save_run(world, tmp_path / "run")
    (run / "model" / "regions.json").write_bytes(RegionStore(tmp_path / "larger").encode_provenance())
    with pytest.raises(DataError, match=r"has regions of L3-Net \(size .*trained on those of L3-Net \(size 32"):
        open_index(photos, run, tmp_path / "index")
    with pytest.raises(DataError, match=r"has features of .* was trained on"):  # captions of other regions
        captions, regions = world / "captions.jsonl", world / "store"
        open_index(photos, run, tmp_path / "new", rerank=4, captions=captions, regions=regions)


def test_models_that_cannot_search_are_told(world: Path, photos: Path, tmp_path: Path):
    for name, error, sentence, run in (
        ("vqa", CheckpointError, "is fine-tuned for vqa: search with", {"heads": (Head("vqa", "answers", 3, 8),)}),
        ("tasks", DataError, "has task tokens", {"task_tokens": 3}),
        ("tokens", DataError, "reads visual tokens", {"num_visual_tokens": 9}),
    ):
        with pytest.raises(error, match=sentence):
            open_index(photos, save_run(world, tmp_path / name, **run))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is a text, and an L3-Net searches by an image or audio"):
        open_index(photos, world / "network").search(TEXT)
    with pytest.raises(DataError, match="holds no images"):
        open_index(world / "store", world / "run", tmp_path / "index")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of its 1 images can be read; .*refused.jsonl lists the reasons"):
        open_index(tmp_path / "bad", world / "run")


def test_a_folder_that_cannot_be_written_asks_for_another_place(
    world: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (photos / ".comodal-index").write_text("in the way")
    with pytest.raises(
        DataError, match=r"a file, not a folder; choose another folder for the index with --index FOLDER"
    ):
        open_index(photos, world / "run")
    (photos / ".comodal-index").unlink()
    real = Path.mkdir

    def refused(path: Path, *arguments: int, **named: bool) -> None:
        if path.name == ".comodal-index":
            raise PermissionError(13, "Permission denied", str(path))
        real(path, *arguments, **named)

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(
        DataError, match=r"index: Permission denied; choose another folder for the index with --index FOLDER"
    ):
        open_index(photos, world / "run")
    assert names_of(open_index(photos, world / "run", tmp_path / "index"))
