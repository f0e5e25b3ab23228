"""One image, one line: what a run says of any picture is what evaluation says of the same one in a store."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import comodal
from comodal.cli.program import main
from comodal.data.regions.region_store import RegionStore
from comodal.errors import CheckpointError, DataError, MediaError
from comodal.hardware import Compute
from comodal.inference.vision_language import VisionLanguagePipeline, load_vision_language
from comodal.models.vilbert.heads import Head
from comodal.models.vilbert.task_model import TaskModel
from comodal.regions.extract import extract_regions
from comodal.tasks.vision_language.text_image_examples import TaskExample, tokenize_text
from comodal.tasks.vision_language.vilbert_fine_tuning import LoadedTaskModel, score_examples
from tests.support.small_runs import ANSWERS, run_of, write_pictures


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("world"))


VQA, POINTING = Head("vqa", "answers", 3, 8), Head("regions", "regions", 1)


@pytest.mark.parametrize("head", [VQA, Head("gqa", "answers", 3, 8)], ids=lambda head: head.name)
def test_an_answer_is_that_of_the_evaluation_of_the_same_picture(world: Path, tmp_path: Path, head: Head):
    run = run_of(world, tmp_path / "run", head, POINTING)
    answerer, store = load_vision_language(run, precision="fp32"), RegionStore(world / "store")
    seen = answerer.encode_image(world / "images" / "b.png")
    np.testing.assert_allclose(seen.boxes, store.read_regions(store.find("b")).boxes, atol=1e-4)
    text = "what is on the grass?"
    assert isinstance(answerer.model, TaskModel)
    asked = LoadedTaskModel(answerer.model, store, answerer.tokenizer, "none", 100, Compute(torch.device("cpu")))
    example = TaskExample("1", (tokenize_text(answerer.tokenizer, text, 36),), (store.find("b"),), None)
    (theirs,) = score_examples(asked, head.name, [example])
    ours = {guess.text: guess.probability for guess in answerer.ask(seen, text)}
    expected = 1 / (1 + np.exp(-theirs.scores))
    np.testing.assert_allclose([ours[name] for name in ANSWERS], expected, rtol=2e-3)  # the store is fp16
    (pointed,) = score_examples(asked, "regions", [example])
    best = answerer.ground(seen, text)[0]
    corners = np.concatenate([[[0, 0, 70, 40]], store.read_regions(store.find("b")).boxes])
    assert best.box == pytest.approx(tuple(corners[pointed.scores.argmax()]), abs=1e-3)


def test_words_are_filled_in_where_the_masks_are(world: Path, tmp_path: Path):
    answerer = load_vision_language(run_of(world, tmp_path / "run"))
    seen = answerer.encode_image(world / "images" / "a.png")
    found = answerer.fill_mask(seen, "a [MASK] dog on the [MASK]", top_k=4)
    assert [len(guesses) for guesses in found] == [4, 4]
    shares = [guess.probability for guess in answerer.fill_mask(seen, "a [MASK]", top_k=answerer.tokenizer.size)[0]]
    assert sum(shares) == pytest.approx(1.0, abs=1e-4) and shares == sorted(shares, reverse=True)
    with pytest.raises(ValueError, match="has no \\[MASK\\] in its first"):
        answerer.fill_mask(seen, "a red dog")


def test_one_line_for_each(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    run, image = str(run_of(world, tmp_path / "run", VQA, POINTING)), str(world / "images" / "a.png")
    assert main(["ask", image, "what is it?", "--model", run, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {entry["text"] for entry in told} == set(ANSWERS)
    assert main(["align", image, "a dog", "a red dog", "--model", run, "--json"]) == 0
    shares = [entry["probability"] for entry in json.loads(capsys.readouterr().out)]
    assert len(shares) == 2 and shares[0] >= shares[1]
    assert main(["fill", image, "a [MASK]", "--model", run]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert main(["ground", image, "the dog", "--model", run, "--out", str(tmp_path / "dog.png"), "--json"]) == 0
    left, top, right, bottom = json.loads(capsys.readouterr().out)[0]["box"]
    assert 0 <= left < right <= 40 and 0 <= top < bottom <= 60
    with Image.open(tmp_path / "dog.png") as drawn:
        assert drawn.size[0] > 100


def test_what_cannot_be_asked_is_told(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    plain, image = run_of(world, tmp_path / "plain"), world / "images" / "a.png"
    assert main(["ask", str(image), "what?", "--model", str(plain)]) == 1
    assert "is not fine-tuned for vqa: run `comodal train vqa`" in capsys.readouterr().err
    (plain / "regions.json").write_text(json.dumps({"provenance": {"layout": "BUTD TSV"}}))
    with pytest.raises(DataError, match="its detector is unknown"):
        load_vision_language(plain).encode_image(image)
    (plain / "regions.json").unlink()
    with pytest.raises(CheckpointError, match="the regions of the training data"):
        load_vision_language(plain)
    assert (
        main(["ask", str(tmp_path / "nowhere.jpg"), "what?", "--model", str(run_of(world, tmp_path / "r", VQA))]) == 1
    )
    assert "nowhere.jpg" in capsys.readouterr().err


def test_boxes_can_be_given_where_the_model_has_learnt_from_boxes(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    lines = [{"image": f"{name}.png", "boxes": [[0, 0, 20, 20], [5, 5, 30, 40]]} for name in "ab"]
    (tmp_path / "boxes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    extract_regions(world / "images", tmp_path / "store", str(world / "network"), tmp_path / "boxes.jsonl")
    run = run_of(world, tmp_path / "run")
    (run / "regions.json").write_bytes(RegionStore(tmp_path / "store").encode_provenance())
    answerer = load_vision_language(run)
    with pytest.raises(DataError, match="pass the boxes of the objects with --boxes"):
        answerer.encode_image(world / "images" / "a.png")
    seen = answerer.encode_image(world / "images" / "a.png", np.array(lines[0]["boxes"], np.float32))
    assert seen.boxes.tolist() == lines[0]["boxes"]
    (tmp_path / "given.json").write_text("[[0, 0, 20, 20]]")
    words = ["align", str(world / "images" / "a.png"), "a dog", "--model", str(run)]
    assert main([*words, "--boxes", str(tmp_path / "given.json")]) == 0
    capsys.readouterr()
    for boxes, told in (
        ([[0, 0, 0, 20]], "given.json: no boxes, or an empty box"),
        ([[20, 20, 15, 30]], "given.json: boxes of left, top, width, height (xywh)"),
        ([[0.1, 0.1, 0.5, 0.7]], "a.png: boxes are fractions: no value of the boxes is above 1"),
    ):
        (tmp_path / "given.json").write_text(json.dumps(boxes))
        assert main([*words, "--boxes", str(tmp_path / "given.json")]) == 1
        assert told in " ".join(capsys.readouterr().err.split())
    with pytest.raises(MediaError, match=r"a\.png: boxes are not corners: .*left, top, width, height"):
        answerer.encode_image(world / "images" / "a.png", np.array([[20, 20, 15, 30]], np.float32))


def test_it_is_a_public_name(world: Path, tmp_path: Path):
    assert isinstance(comodal.load(run_of(world, tmp_path / "run")), VisionLanguagePipeline)


def test_an_answer_does_not_wait_for_imports_that_it_does_not_need(world: Path):
    """A new process: half of its time was importing torchvision, SciPy, Matplotlib, TensorBoard and `torch._dynamo`."""
    run = run_of(world, world / "light")
    words = ["align", str(world / "images" / "a.png"), "a dog", "--model", str(run)]
    script = (
        "import sys; from comodal.cli.program import main\n"
        f"assert main({words!r}) == 0\n"
        "heavy = {'torchvision', 'scipy', 'matplotlib', 'tensorboard', 'torch._dynamo'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
