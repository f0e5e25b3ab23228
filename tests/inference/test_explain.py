"""What is drawn is the attention that the model computes, worked out here in plain steps; the answers stay the same."""

import io
import json
import math
import re
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from comodal.analysis.co_attention import (
    check_co_attention,
    compute_co_attention,
    draw_attention,
    select_attention_examples,
    shade_by_attention,
)
from comodal.analysis.pages.attention_page import select_region_row, shrink_example
from comodal.cli.program import main
from comodal.errors import DataError
from comodal.inference.explain import build_attention_example
from comodal.inference.vision_language import TextPredictions, VisionLanguagePipeline, load_vision_language
from comodal.models.checkpoint import save_model
from comodal.models.vilbert.streams import UnimodalEncoding
from comodal.models.vilbert.vilbert import ViLBERT
from tests.inference.test_vision_language import POINTING, VQA, run_of, world
from tests.support.self_contained import check_page
from tests.support.small_tasks import COLOURS, SIDE, colour_of, write_colours, write_pretrained
from tests.support.small_tasks import config as small_config

__all__ = ["world"]
QUESTION = "what is on the grass?"


@pytest.fixture(scope="module")
def run(world: Path) -> Path:
    torch.manual_seed(0)
    return run_of(world, world / "run", VQA, POINTING)


@pytest.fixture(scope="module")
def answerer(run: Path) -> VisionLanguagePipeline:
    return load_vision_language(run, precision="fp32")


def plainly(layer: torch.nn.Module, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """Mean over heads of softmax(q k / sqrt(size)), head by head."""
    attention = layer.attention
    queries, keys = attention.query(x[0]), attention.key(context[0])
    size = queries.shape[1] // attention.heads
    parts = [slice(i * size, (i + 1) * size) for i in range(attention.heads)]
    shares = [(queries[:, part] @ keys[:, part].T / math.sqrt(size)).softmax(1) for part in parts]
    return torch.stack(shares).mean(0)


@torch.inference_mode()
def test_it_is_the_attention_of_the_layer_computed_plainly(world: Path, answerer: VisionLanguagePipeline):
    model, seen = answerer.vilbert, answerer.encode_image(world / "images" / "b.png")
    pieces = answerer.tokenizer.encode(QUESTION)
    words = torch.tensor([pieces])
    text = model.encode_text(words, torch.zeros_like(words), torch.ones_like(words, dtype=torch.bool))
    (layer,) = model.co_layers
    output, (found,) = compute_co_attention(model, pieces, seen.encoding)
    np.testing.assert_allclose(
        found.token_to_region, plainly(layer.text, text.hidden_states, seen.encoding.hidden_states), atol=1e-5
    )
    np.testing.assert_allclose(
        found.region_to_token, plainly(layer.vision, seen.encoding.hidden_states, text.hidden_states), atol=1e-5
    )
    np.testing.assert_allclose(found.token_to_region.sum(1), 1, atol=1e-5)  # the whole image's share is among them
    np.testing.assert_allclose(found.region_to_token.sum(1), 1, atol=1e-5)
    torch.testing.assert_close(output.token_states, answerer.fuse_texts([pieces], seen).token_states, atol=1e-5, rtol=0)


def test_an_image_that_was_seen_in_bfloat16_is_attended_to(world: Path, answerer: VisionLanguagePipeline):
    """As where bf16 is native: its prefix has the numbers that bfloat16 holds, and nothing else is rounded."""
    pieces, seen = answerer.tokenizer.encode(QUESTION), answerer.encode_image(world / "images" / "b.png").encoding
    rounded = seen._replace(hidden_states=seen.hidden_states.bfloat16())
    _, (found,) = compute_co_attention(answerer.vilbert, pieces, rounded)
    _, (expected,) = compute_co_attention(
        answerer.vilbert, pieces, rounded._replace(hidden_states=rounded.hidden_states.float())
    )
    assert np.array_equal(found.token_to_region, expected.token_to_region) and np.array_equal(
        found.region_to_token, expected.region_to_token
    )


def test_layers_stand_in_their_order(answerer: VisionLanguagePipeline):
    torch.manual_seed(0)
    model = ViLBERT(replace(small_config(answerer.tokenizer.size), co_attention_layers=((0, 0), (0, 1)))).eval()
    pieces, rows = (
        answerer.tokenizer.encode(QUESTION),
        UnimodalEncoding(torch.rand(1, 3, 32), torch.ones(1, 3, dtype=torch.bool)),
    )
    _, before = compute_co_attention(model, pieces, rows)
    with torch.no_grad():
        model.co_layers[1].text.attention.query.weight.mul_(-3)
    _, after = compute_co_attention(model, pieces, rows)
    assert np.array_equal(before[0].token_to_region, after[0].token_to_region)
    assert not np.allclose(before[1].token_to_region, after[1].token_to_region)


def test_a_picture_is_brightest_where_the_attention_is(world: Path, answerer: VisionLanguagePipeline):
    example = build_attention_example(
        answerer, answerer.encode_image(world / "images" / "b.png"), TextPredictions(QUESTION, [])
    )
    white = example._replace(image=np.full_like(example.image, 255), boxes=np.array([[0, 0, 10, 9], [20, 5, 30, 9]]))
    shown = shade_by_attention(white, np.array([0.1, 0.4]))
    assert shown[6, 25] == pytest.approx(1.0)
    assert shown[6, 5] == pytest.approx(0.15 + 0.85 / 4)
    assert shown[30, 50] == pytest.approx(0.15)
    half = shrink_example(white._replace(image=np.zeros((300, 600, 3), np.uint8)))
    assert half.image.shape == (150, 300, 3) and half.boxes[1].tolist() == [10, 2.5, 15, 4.5]


def test_the_region_of_the_page_is_the_one_that_is_meant(world: Path, answerer: VisionLanguagePipeline):
    seen = answerer.encode_image(world / "images" / "b.png")
    example = build_attention_example(answerer, seen, TextPredictions(QUESTION, []))
    layer = example.layers[-1]
    assert select_region_row(example._replace(grounded_box=tuple(map(float, seen.boxes[2]))), layer) == 3
    assert (
        select_region_row(example._replace(grounded_box=(0.0, 0.0, 70.0, 40.0)), layer) == 0
    )  # no region: the whole picture
    layer.token_to_region[:, 2] = 1.0
    assert select_region_row(example, layer) == 2


def test_words_to_be_filled_in_come_first(world: Path, answerer: VisionLanguagePipeline):
    seen = answerer.encode_image(world / "images" / "b.png")
    example = build_attention_example(answerer, seen, TextPredictions("a dog on the [MASK]", []))
    assert [example.tokens[word] for word in example.token_indices] == ["[MASK]", "a", "dog", "on", "the"]
    assert len([axes for axes in draw_attention([example]).axes if axes.images]) == 1 + 5


def told(*words: str) -> str:
    with redirect_stdout(io.StringIO()) as out:
        assert main([*words]) == 0
    return out.getvalue()


@pytest.mark.parametrize(
    ("command", "texts"),
    [
        ("ask", [QUESTION]),
        ("fill", ["a [MASK] on the [MASK]"]),
        ("align", ["a dog", "a red dog"]),
        ("ground", ["a dog"]),
    ],
)
def test_the_answers_are_the_same_and_the_page_stands_alone(
    world: Path, run: Path, tmp_path: Path, command: str, texts: list[str]
):
    line = [command, str(world / "images" / "b.png"), *texts, "--model", str(run), "--json"]
    assert told(*line, "--explain", str(tmp_path / "why.html")) == told(*line)
    page = (tmp_path / "why.html").read_text()
    read = check_page(page)
    words = {"ask": 6, "fill": 5, "align": 2 + 3, "ground": 2}[command]
    assert read.tags.count("figure") == words + len(texts)  # of one layer: every word, and a region of each text
    assert page.count("<details open>") == len(texts)
    probability = json.loads(told(*line).splitlines()[0])[0]["probability"]
    assert f"{probability:.3f}" in read.texts_of("td")
    shares = re.findall(r"best \d\.\d{3}, whole image (\d\.\d{3})", read.text)
    assert len(shares) == words and all(0 < float(share) < 1 for share in shares)


def test_figures(world: Path, run: Path, tmp_path: Path):
    line = ["ask", str(world / "images" / "b.png"), "what costs $2 or $3?", "--model", str(run), "--explain"]
    told(*line, str(tmp_path / "why.png"))
    with Image.open(tmp_path / "why.png") as drawn:
        assert drawn.format == "PNG" and drawn.size[0] > 500
    told(*line, str(tmp_path / "why.svg"))
    svg = (tmp_path / "why.svg").read_text()
    assert "<svg" in svg and 'href="data:image/png;base64,' in svg


def test_what_cannot_be_explained_is_told(world: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    line = ["align", str(world / "images" / "b.png"), "a dog"]
    assert main([*line, "--model", str(run), "--explain", str(tmp_path / "why.pdf")]) == 1
    assert "name a figure (.png or .svg) or a page (.html)" in capsys.readouterr().err
    apart = run_of(world, tmp_path / "apart")
    config = load_vision_language(apart).vilbert.config
    save_model(ViLBERT(replace(config, co_attention=False)), apart, {})
    assert main([*line, "--model", str(apart), "--explain", str(tmp_path / "why.png")]) == 1
    assert "has no co-attention, so there is no attention between tokens and regions" in capsys.readouterr().err
    assert main([*line, "--model", str(apart)]) == 0
    assert not list(tmp_path.glob("why*"))


@pytest.mark.parametrize("command", ["ask", "fill", "align", "ground"])
def test_the_flag_is_told(command: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "--explain PATH" in capsys.readouterr().out


def test_the_report_shows_held_out_pictures_in_the_same_way(tmp_path: Path):
    store = write_colours(tmp_path / "store")
    run = write_pretrained(tmp_path / "run", [f"a {colour} thing" for colour in COLOURS])
    (tmp_path / "images").mkdir()
    lines = []
    for image in store.ids:
        Image.new("RGB", (SIDE, SIDE), (255, 255, 255)).save(tmp_path / "images" / f"{image}.png")
        lines.append({"image": image, "caption": f"a {COLOURS[colour_of(int(image))]} thing"})
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = ViLBERT.from_pretrained(run)
    shown = select_attention_examples(
        model, run, tmp_path / "store", tmp_path / "captions.jsonl", tmp_path / "images", count=2
    )
    assert len(shown) == 2
    for example in shown:
        assert [example.tokens[word] for word in example.token_indices] == [example.text.split()[1], "thing"]
        np.testing.assert_allclose(example.layers[-1].token_to_region.sum(1), 1, atol=1e-5)
        assert re.fullmatch(r"probability of alignment: [01]\.\d\d", example.prediction)
    with pytest.raises(DataError, match="has no co-attention"):
        check_co_attention(ViLBERT(replace(model.config, co_attention=False)), run)
