"""The report is one file with the run's own numbers in it."""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from comodal.analysis.pages.html_page import render_page
from comodal.analysis.pair_predictions import draw_pair_predictions, draw_probability_histogram, predict_pairs
from comodal.analysis.reports.curves import draw_curves
from comodal.analysis.reports.report import write_report
from comodal.analysis.reports.score_tables import build_scores_part
from comodal.errors import DataError
from comodal.models.checkpoint import load_model, save_model
from comodal.models.l3net.l3net import L3Net, L3NetConfig
from comodal.tasks.evaluation.results_card import ResultsCard, ScoreEntry, write_card
from comodal.tasks.evaluation.system_comparison import Comparison
from tests.analysis.test_inspect_path import write_run
from tests.analysis.test_localization import write_truth
from tests.support.self_contained import check_page
from tests.support.small_systems import PRETRAINED_MODELS
from tests.support.small_world import write_world


def scores(folder: Path) -> Path:
    truth = np.array([0, 1, 0, 1])
    answers = {"trained": truth, "untrained": np.array([0, 1, 1, 0]), "spectrogram": np.array([0, 1, 0, 0])}
    strengths = {system: {0: 0.1} for system in answers}
    items, folds = ("a", "b", "c", "d"), np.zeros(4, dtype=int)
    compared = Comparison("audio", "", items, ("x & y", "z"), truth, folds, answers, strengths)
    compared.write_files(folder, compared.compute_metrics())
    return folder


def test_the_page_stands_alone_and_holds_what_was_measured(tmp_path: Path):
    run = write_run(tmp_path / "run")
    write_world(tmp_path / "shards" / "validation", 8)
    out = tmp_path / "deep" / "report.html"
    truth = write_truth(tmp_path / "worlds.jsonl", 8)
    write_report(run, out, data=tmp_path / "shards", results=[scores(tmp_path / "sounds")], pairs=8, ground_truth=truth)
    page = out.read_text()
    read = check_page(page)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 6  # curves, confusion, pairs, histogram, where the sound is, two pictures with one sound
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    assert read.tags.count("audio") == 14 * 6  # of 14 units the six strongest seconds
    assert ("dd", "0.625") in read.texts  # the last validation accuracy
    found = {row[2]: (row[:2], row[4]) for row in read.tables[0].rows}
    assert found["trained network"] == (["audio classification", "sounds"], "1.000")
    assert found["raw spectrogram"] == (["audio classification", "sounds"], "0.750")
    assert [row[2] for row in read.tables[0].main] == ["trained network"]
    verdicts = predict_pairs(load_model(run), tmp_path / "shards" / "validation", 8, seed=1)
    assert f"Of 8 held-out pairs, sampled for this page, {verdicts.accuracy:.1%} are predicted correctly" in read.text
    numbers = json.loads(out.with_suffix(".json").read_text())
    assert numbers["Correspondence of held-out pairs"] == {"pairs": 8, "accuracy": verdicts.accuracy}
    assert numbers["Pointing game"]["scenes"] == 8 and numbers["Pointing game"]["center"]["alone"] in np.arange(9) / 8


def test_every_score_names_its_task_data_network_and_measure(tmp_path: Path):
    values = {f"vision.{name}": 0.5 for name in ("trained", "untrained", "pixels", "trained.top5", "pixels.top5")}
    limits = {f"{name}.{end}": value for name, value in values.items() for end in ("low", "high")}
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets" / "results.json").write_text(json.dumps(values | limits | {"vision.chance_level": 0.1}))
    page = check_page(render_page("page", [build_scores_part([tmp_path / "pets"])]))
    assert [row[:4] for row in page.rows()] == [
        ["image classification", "pets", "trained network", "top-1 accuracy"],
        ["image classification", "pets", "untrained network", "top-1 accuracy"],
        ["image classification", "pets", "raw pixels", "top-1 accuracy"],
        ["image classification", "pets", "trained network", "top-5 accuracy"],
        ["image classification", "pets", "raw pixels", "top-5 accuracy"],
    ]
    card = ResultsCard("images", "Oxford Pets", "test", {}, "runs/a")
    write_card(card, tmp_path / "pets")
    page = check_page(render_page("page", [build_scores_part([tmp_path / "pets"])]))
    assert {row[1] for row in page.rows()} == {"Oxford Pets, test"}


@pytest.mark.parametrize("system", PRETRAINED_MODELS)
def test_a_run_without_data_or_scores_has_its_curves(system: str, tmp_path: Path):
    run = write_run(tmp_path / "<run>")
    save_model(PRETRAINED_MODELS[system](), run / "model", {})
    if system == "ViLBERT":  # an accuracy for each of its tasks
        names = r'"token_accuracy": \1, "region_accuracy": \1, "alignment_accuracy": \1'
        log = run / "metrics.jsonl"
        log.write_text(re.sub(r'"accuracy": ([\d.]+)', names, log.read_text()))
    write_report(run, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img ") == 1
    assert "&lt;run&gt;" in page
    assert "<run>" not in page
    titles = {
        "L3Net": "L3-Net: audio",
        "AVENet": "AVE-Net: a joint",
        "ViLBERT": "ViLBERT: pre",
        "DualEncoder": "Dual encoder: one",
    }
    assert titles[system] in page
    assert ("dd", "0.625") in check_page(page).texts  # the last validation accuracy


def test_an_ave_net_predicts_held_out_pairs_and_a_dual_encoder_refuses_shards(tmp_path: Path):
    run, data = write_run(tmp_path / "run"), tmp_path / "shards"
    write_world(data / "validation", 8)
    write_card(ResultsCard("avc", "Correspondence", "test", {"accuracy": ScoreEntry(0.8)}, "run"), tmp_path / "card")
    save_model(PRETRAINED_MODELS["AVENet"](), run / "model", {})
    out = tmp_path / "report.html"
    write_report(run, out, data=data, results=[tmp_path / "card"], pairs=8)
    accuracy = predict_pairs(load_model(run), data / "validation", 8, seed=1).accuracy
    numbers = json.loads(out.with_suffix(".json").read_text())
    assert numbers == {"Correspondence of held-out pairs": {"pairs": 8, "accuracy": accuracy}}
    assert "Correspondence, test" in check_page(out.read_text()).texts_of("h2")
    save_model(PRETRAINED_MODELS["DualEncoder"](), run / "model", {})
    with pytest.raises(DataError, match="does not use --data"):
        write_report(run, out, data=data)


def test_a_results_card_is_a_table_of_the_page(tmp_path: Path):
    shown = ResultsCard(
        "vqa", "VQA v2", "val", {"accuracy": ScoreEntry(0.7, 0.69, 0.71, 0.7055)}, "runs/a", counts={"items": 12_345}
    )
    write_card(shown, tmp_path / "card")
    write_report(write_run(tmp_path / "run"), tmp_path / "report.html", results=[tmp_path / "card"])
    page = check_page((tmp_path / "report.html").read_text())
    assert ["accuracy", "0.7000", "0.690-0.710", "0.7055"] in page.rows()
    assert "VQA v2, val" in page.texts_of("h2")
    assert "items 12,345" in page.text


def test_what_is_not_a_run_is_told(tmp_path: Path):
    with pytest.raises(DataError, match="no run here"):
        write_report(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_verdicts_are_the_models_own(tmp_path: Path):
    torch.manual_seed(0)
    model = L3Net(L3NetConfig(width=1, image_size=24)).eval()
    found = predict_pairs(model, write_world(tmp_path / "w", 6), 10, seed=3)
    assert found.pairs.is_match.tolist() == [True, False] * 5
    with torch.inference_mode():
        expected = model(found.pairs.image, found.pairs.audio).logits.softmax(-1)[:, 1]
    assert np.allclose(found.probabilities, expected.numpy(), atol=1e-5)
    right = [(p > 0.5) == t for p, t in zip(expected.tolist(), [True, False] * 5, strict=True)]
    assert found.accuracy == pytest.approx(np.mean(right))
    figure = draw_pair_predictions(model, found, columns=4)
    assert [axes.get_title() for axes in figure.axes[4:]] == ["truth: match", "truth: mismatch"] * 2
    draw_probability_histogram(found).canvas.draw()


def test_curves_pass_through_the_validation_points():
    lines = [{"step": s, "split": "validation", "loss": 1 / s, "accuracy": 1 - 1 / s} for s in (10, 20, 40)]
    lines += [{"step": s, "split": "train", "loss": 0.5, "accuracy": 0.75} for s in range(1, 400)]
    loss, accuracy = draw_curves(lines).axes
    drawn = {line.get_label(): line.get_xydata() for line in loss.lines}
    assert np.allclose(drawn["validation"], [[10, 0.1], [20, 0.05], [40, 0.025]])
    assert np.allclose(drawn["train"][:, 1], 0.5)  # the running mean of a constant
    assert np.allclose(drawn["chance level"][:, 1], np.log(2))
    assert np.allclose({line.get_label(): line.get_xydata() for line in accuracy.lines}["chance level"][:, 1], 0.5)
