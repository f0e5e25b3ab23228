"""Names that look like markup, mathematics, patterns or table cells come through every command as they are."""

import csv
import html
import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from comodal.cli.program import main
from comodal.inference.figures.draw_boxes import draw_grounded_boxes
from comodal.inference.vision_language import EncodedImage, GroundedBox
from comodal.models.checkpoint import load_model, save_model
from comodal.models.l3net.l3net import L3Net, L3NetConfig
from tests.support.small_world import write_world

CLASSES = ("[/b]dog", "$x_{$ [red]cat", "a|b<i>")
RATE = 16_000


def write_esc(folder: Path, clips: int = 30) -> Path:
    """Tones of three pitches in ESC-50's layout, in five folds."""
    (folder / "audio").mkdir(parents=True)
    (folder / "meta").mkdir()
    rng, rows = np.random.default_rng(0), []
    for number in range(clips):
        kind, moments = number % 3, np.arange(RATE * 2) / RATE
        tone = 0.3 * np.sin(2 * np.pi * (300.0, 1000.0, 3000.0)[kind] * moments + rng.uniform(0, 6))
        soundfile.write(folder / "audio" / f"{number}.wav", tone + 0.001 * rng.normal(size=len(tone)), RATE)
        rows.append((f"{number}.wav", number // 3 % 5 + 1, kind, CLASSES[kind]))
    with (folder / "meta" / "esc50.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("filename", "fold", "target", "category"), *rows])
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "data[1]"
    write_world(folder / "shards" / "train", 4)
    write_world(folder / "shards" / "validation", 4, seed=1)
    write_esc(folder / "esc")
    return folder


def run(capsys: pytest.CaptureFixture, *words: object) -> str:
    """What a command that succeeds prints on both streams."""
    status = main([str(word) for word in words])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out + captured.err


@pytest.mark.slow
def test_a_run_and_classes_with_brackets_go_through_training_evaluation_report_and_export(
    world: Path, capsys: pytest.CaptureFixture
):
    out, results = world / "run[v2]", world / "results[v2]"
    small = "--variant small --width 2 --image_size 24 --batch_size 4 --validation_pairs 4 --workers 0 --device cpu"
    said = run(capsys, "train", "l3net", "--data", world / "shards", "--out", out, *small.split(), "--steps", 2)
    assert f"{out}: 2 steps done; the model is in {out / 'model'}" in said and f"wrote {out}\n" in said
    load_model(out)

    esc = ["--data", world / "esc", "--windows", 2, "--workers", 1]
    said = run(capsys, "evaluate", "esc50", "--model", out, *esc, "--out", results / "esc")
    assert f"wrote {results / 'esc'}" in said
    with (results / "esc" / "predictions.csv").open(newline="") as file:
        answers = list(csv.DictReader(file))
    assert len(answers) == 30 and {row["truth"] for row in answers} == set(CLASSES)
    card = json.loads((results / "esc" / "card.json").read_text())
    assert card["model"] == str(out) or card["model"] == out.name
    assert "run[v2]" in (results / "esc" / "card.md").read_text()

    said = run(capsys, "results", results, "--out", world / "table.md")
    assert "| esc " in (world / "table.md").read_text()
    page = world / "report[v2].html"
    said = run(capsys, "report", out, page, "--results", results / "esc")
    assert f"wrote {page}" in said and "run[v2]" in page.read_text()

    said = run(capsys, "export", out, "--to", "torch", "--only", "image", "--out", world / "exported[v2]")
    assert f"wrote {world / 'exported[v2]'}\n" in said
    assert {path.name for path in (world / "exported[v2]").iterdir()} >= {"image.pt2", "export.json"}
    said = run(capsys, "share", out, world / "shared[v2]")
    assert f"{world / 'shared[v2]'}: " in said and "# run[v2]" in (world / "shared[v2]" / "README.md").read_text()


def test_class_folders_with_brackets_are_classified_by_their_names(world: Path, capsys: pytest.CaptureFixture):
    """A folder's name has no slash; `[b]dog` would be bold."""
    names, data, out = ("[b]dog", "$x_{$cat"), world / "images[x]", world / "classes[v2]"
    rng = np.random.default_rng(0)
    for number in range(16):
        for kind, name in enumerate(names):
            folder = data / ("train" if number < 12 else "test") / name
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(100 * kind, 100 * kind + 100, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}[1].png")
    torch.manual_seed(0)
    save_model(L3Net(L3NetConfig(width=2, image_size=24)), world / "network[v2]", {})
    words = ["--model", world / "network[v2]", "--data", data, "--epochs", 2, "--batch_size", 8, "--workers", 0]
    run(capsys, "train", "image_classes", *words, "--out", out, "--device", "cpu")
    run(capsys, "evaluate", "image_classes", "--model", out, "--data", data, "--out", world / "scores[v2]")
    with (world / "scores[v2]" / "predictions.csv").open(newline="") as file:
        answers = list(csv.DictReader(file))
    assert len(answers) == 8 and {row["truth"] for row in answers} == set(names)
    said = run(capsys, "report", out, world / "classes.html", "--results", world / "scores[v2]")
    assert f"wrote {world / 'classes.html'}" in said
    page = html.unescape((world / "classes.html").read_text())
    assert "classes[v2]" in page


def test_a_phrase_that_looks_like_mathematics_is_drawn():
    """`$x_{$` is no formula of matplotlib's."""
    seen = EncodedImage(*([None] * (len(EncodedImage._fields))))._replace(image=np.zeros((20, 30, 3), np.uint8))
    figure = draw_grounded_boxes(seen, [GroundedBox((1.0, 1.0, 9.0, 9.0), 0.5)], "the $x_{$ dog")
    figure.savefig(io.BytesIO(), format="png")
    assert figure.axes[0].get_title().replace("\\$", "$") == "the $x_{$ dog"
