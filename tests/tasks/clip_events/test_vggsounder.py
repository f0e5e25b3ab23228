"""VGGSounder's readers and metrics against its own package, and `evaluate vggsounder` on small videos."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from comodal.errors import DataError
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.tasks.clip_events.multi_label_metrics import (
    compute_curve_means,
    compute_f1_interval,
    compute_hits,
    compute_micro_f1,
    compute_modality_confusion,
    mark_top_k,
)
from comodal.tasks.clip_events.vggsounder import evaluate_vggsounder
from comodal.tasks.clip_events.vggsounder_labels import LABEL_SUBSETS, MODALITIES, read_training_clips, read_vggsounder
from comodal.tasks.evaluation.results_card import read_card
from tests.support.event_videos import write_event_video
from tests.support.paths import FIXTURES

FILES = FIXTURES / "vggsounder"
PUBLISHED = json.loads((FILES / "published_scores.json").read_text())
SCORES = {name: np.array(rows) for name, rows in PUBLISHED["scores"].items()}
CPU_OPTIONS = {"device": "cpu", "precision": "fp32"}


@pytest.mark.parametrize("subset", LABEL_SUBSETS)
def test_metrics_are_those_of_the_package(subset: str):
    labels, expected = read_vggsounder(FILES / "vggsounder.csv"), PUBLISHED["metrics"][subset]
    truth = labels.build_truth(PUBLISHED["videos"], LABEL_SUBSETS[subset])
    has_label = truth.any(1)
    scores, truth = SCORES[subset.removesuffix("_only")][has_label], truth[has_label]
    assert len(truth) == expected["videos"]
    for k in (1, 3, 5):
        chosen = mark_top_k(scores, k)
        assert compute_micro_f1(chosen, truth) == pytest.approx(expected[f"f1@{k}"])
        assert compute_hits(chosen, truth).mean() == pytest.approx(expected[f"hit_rate@{k}"])
    assert compute_curve_means(scores, truth) == pytest.approx((expected["auc_roc"], expected["auc_pr"]))


def test_confusion_is_that_of_the_package():
    truth = read_vggsounder(FILES / "vggsounder.csv").build_truth(PUBLISHED["videos"], MODALITIES)
    found = compute_modality_confusion(SCORES["a"], SCORES["v"], SCORES["av"], truth)
    assert {name: rows.mean() for name, rows in found._asdict().items()} == pytest.approx(PUBLISHED["confusion"])


def test_interval_of_f1_treats_repeated_clips_of_a_video_as_one():
    """Ten copies of each item, in the group of the original, leave the interval as it is."""
    rng, groups = np.random.default_rng(0), [str(item) for item in range(30)]
    chosen, truth = rng.random((30, 5)) < 0.4, rng.random((30, 5)) < 0.4
    low, high = compute_f1_interval(chosen, truth, groups, np.random.default_rng(1))
    assert low < compute_micro_f1(chosen, truth) < high
    copies = compute_f1_interval(
        np.tile(chosen, (10, 1)), np.tile(truth, (10, 1)), groups * 10, np.random.default_rng(1)
    )
    assert copies == pytest.approx((low, high))


WRONG_ROWS = [
    ("x_000000,no such class,AV,False,False,False", "line 2: the label 'no such class'"),
    ("x_000000,dog barking,VA,False,False,False", "line 2: the modality is 'VA'"),
    ("x_0,dog barking,A,0,0,0\nx_0,dog barking,V,0,0,0", "line 3: x_0 has the label 'dog barking' before"),
]


@pytest.mark.parametrize(("row", "match"), WRONG_ROWS)
def test_labels_of_another_format_are_refused(tmp_path: Path, row: str, match: str):
    (tmp_path / "classes.csv").write_text((FILES / "classes.csv").read_text())
    header = (FILES / "vggsounder.csv").read_text().partition("\n")[0]
    (tmp_path / "labels.csv").write_text(f"{header}\n{row}\n")
    with pytest.raises(DataError, match=match):
        read_vggsounder(tmp_path / "labels.csv")


def test_training_list_names_clips_as_the_labels_do(tmp_path: Path):
    path = tmp_path / "vggsound.csv"
    path.write_text('---g-f_I2yQ,1,"people marching, slowly",test\n--0PQM4-hqg,30,"waterfall, burbling",train\n')
    assert read_training_clips(path, ["waterfall, burbling"]) == {"--0PQM4-hqg_000030": "waterfall, burbling"}
    with pytest.raises(DataError, match="line 2: the label 'waterfall, burbling' is not in"):
        read_training_clips(path, ["waterfall"])


KINDS = {"dog barking": (220, 3000.0), "playing cello": (120, 900.0), "air horn": (30, 250.0)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of three seconds. In the test clip `mixed` a bark is heard and a cello is seen."""
    folder = tmp_path_factory.mktemp("vggsound")
    (folder / "classes.csv").write_text((FILES / "classes.csv").read_text())
    train, test, number = [], [], 0
    for name, (light, pitch) in KINDS.items():
        for index in range(4):
            number += 1
            video = f"{number:011d}"
            write_event_video(folder / "clips" / f"{video}_000010.mp4", [light + 3 * index] * 3, [pitch + index] * 3)
            (train if index < 3 else test).append((video, 10, name))
    (folder / "vggsound.csv").write_text(
        "".join(f'{video},{start},"{name}",{split}\n' for split, rows in (("train", train), ("test", test))
                for video, start, name in rows)
    )  # fmt: skip
    write_event_video(folder / "clips" / "mixed_mixed_000000.mp4", [120] * 3, [3000.0] * 3)
    rows = [(f"{video}_{start:06d}", name, "AV") for video, start, name in test]
    rows += [("mixed_mixed_000000", "dog barking", "A"), ("mixed_mixed_000000", "playing cello", "V")]
    rows += [("absent_absen_000000", "people crowd", "AV")]
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["video_id", "label", "modality", "background_music", "static_image", "voice_over"])
        table.writerows([*row, "False", "False", "False"] for row in rows)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    save_model(L3Net(make_small_l3net_config(4, 24)).eval(), folder, {})
    return folder


def test_probes_hear_what_is_audible_and_see_what_is_visible(data: Path, model: Path, tmp_path: Path):
    lists = (data / "labels.csv", data / "vggsound.csv")
    found = evaluate_vggsounder(model, data / "clips", *lists, out=tmp_path, **CPU_OPTIONS)
    for subset in ("a", "v", "av", "a_only", "v_only"):
        assert found[f"vggsounder.{subset}.hit_rate_1"] == 1, subset
    assert found["vggsounder.a.videos"] == found["vggsounder.v.videos"] == 4
    assert found["vggsounder.av.videos"] == 3
    assert found["vggsounder.prior.av.auc_roc"] == 0.5  # all scores are equal
    saved = np.load(tmp_path / "scores.npz")
    row = saved["videos"].tolist().index("mixed_mixed_000000")
    assert saved["classes"][saved["trained_a"][row].argmax()] == "dog barking"
    assert saved["classes"][saved["trained_v"][row].argmax()] == "playing cello"
    card = read_card(tmp_path / "card.json")
    expected = {"items": 5, "predicted": 4, "video is missing or cannot be read": 1, "training clips": 9}
    assert expected.items() <= card["counts"].items()
    assert card["counts"]["classes without training clip"] == 4
    assert card["split"] == "other videos than the official ones"


def test_a_clip_of_both_lists_is_refused(data: Path, model: Path, tmp_path: Path):
    text = (data / "vggsound.csv").read_text().replace(",test", ",train")
    (tmp_path / "vggsound.csv").write_text(text)
    with pytest.raises(DataError, match=r"3 training clips are in labels\.csv"):
        evaluate_vggsounder(model, data / "clips", data / "labels.csv", tmp_path / "vggsound.csv", **CPU_OPTIONS)
