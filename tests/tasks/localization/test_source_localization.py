"""`evaluate localization` against the published scripts, hand-worked numbers, and networks that know the answer."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch import nn

from comodal.errors import CheckpointError, DataError
from comodal.models.ave_net.ave_net import AVENet, AVENetConfig
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.models.l3net.spectrogram import SMALL_SPECTROGRAM_CONFIG
from comodal.tasks.audio.audio_features import LabeledAudioFile
from comodal.tasks.evaluation.results_card import read_card
from comodal.tasks.localization.localization_metrics import (
    build_center_map,
    build_truth_map,
    compute_consensus_iou,
    compute_curve_areas,
    compute_harmonic_mean,
    compute_image_areas,
    compute_universal_threshold,
    resize_position_maps,
    select_upper_half,
)
from comodal.tasks.localization.position_maps import choose_offscreen, read_center_audio
from comodal.tasks.localization.sounding_boxes import SoundingImage, read_localization_set
from comodal.tasks.localization.source_localization import evaluate_localization
from tests.support.paths import FIXTURES

FILES = FIXTURES / "localization"
PUBLISHED = json.loads((FILES / "published_scores.json").read_text())
SETS = {"flickr": FILES / "Annotations", "vggss": FILES / "vggss.json"}
CPU_OPTIONS = {"device": "cpu", "precision": "fp32"}


@pytest.mark.parametrize("name", SETS)
def test_scores_are_those_of_the_published_scripts(name: str):
    dataset = read_localization_set(SETS[name])
    maps = resize_position_maps(torch.tensor([PUBLISHED["maps"][image.name] for image in dataset.images]))
    truth = np.stack([build_truth_map(image.boxes, dataset.is_consensus) for image in dataset.images])
    assert truth.sum((1, 2)).tolist() == [PUBLISHED["truth_sum"][image.name] for image in dataset.images]
    ciou = compute_consensus_iou(select_upper_half(maps), truth)
    one_pixel = 2 / 13_000  # of the smallest truth: OpenCV rounds differently
    assert ciou.tolist() == pytest.approx([PUBLISHED["ciou"][image.name] for image in dataset.images], abs=one_pixel)
    assert compute_curve_areas(ciou).mean() == pytest.approx(PUBLISHED[f"auc_{name}"])
    assert (ciou >= 0.5).mean() == PUBLISHED[f"success_{name}"]
    if name == "vggss":
        areas = compute_image_areas(maps, 0.25)
        assert areas.tolist() == pytest.approx([PUBLISHED["pia"][image.name] for image in dataset.images], abs=1e-4)
        assert compute_curve_areas(areas, is_negative=True).mean() == pytest.approx(PUBLISHED["auc_n_vggss"])
    assert compute_harmonic_mean(0.3, 0.8) == pytest.approx(PUBLISHED["f"])


def test_consensus_counts_a_pixel_of_one_annotator_half():
    """By hand: boxes of 20 x 10 and 10 x 10 pixels share 10 x 10; the prediction is the shared part and 50 more."""
    truth = build_truth_map([(0, 0, 20, 10), (0, 0, 10, 10)], is_consensus=True)
    predicted = np.zeros((1, 224, 224), dtype=bool)
    predicted[0, :10, :10] = predicted[0, 100, :50] = True
    assert compute_consensus_iou(predicted, truth[None]) == pytest.approx([100 / (150 + 50)])
    assert build_truth_map([(0, 0, 20, 10), (0, 0, 10, 10)], is_consensus=False).sum() == 200


def test_areas_under_the_curve_by_hand():
    """A cIoU of 0.1 passes 0, 0.05 and 0.1: two whole trapezoids and half of the third. 1 passes all."""
    assert compute_curve_areas(np.array([0.0, 0.1, 1.0])).tolist() == pytest.approx([0.025, 0.125, 1.0])
    assert compute_curve_areas(np.array([0.0, 0.9, 1.0]), is_negative=True).tolist() == pytest.approx([1, 0.125, 0.025])


def test_a_constant_map_highlights_nothing_and_the_center_half_of_the_image():
    assert not select_upper_half(np.ones((1, 224, 224), np.float32)).any()
    disk = select_upper_half(build_center_map()[None])[0]
    assert disk.mean() == pytest.approx(0.5, abs=0.002)
    rows, columns = np.nonzero(disk)
    assert np.hypot(rows - 111.5, columns - 111.5).max() == pytest.approx(224 / np.sqrt(2 * np.pi), abs=1)


def test_threshold_is_the_third_quartile():
    assert compute_universal_threshold(np.array([4.0, 0.0, 3.0, 1.0, 2.0])) == 3.0


def test_offscreen_audio_is_of_another_video_and_class():
    images = [SoundingImage(f"{video}{index}", (), category, video) for index in range(5) for video, category in
              (("v", "dog"), ("w", "cat"), ("x", "dog"))]  # fmt: skip
    partners = choose_offscreen(images, seed=0)
    for image, partner in zip(images, partners, strict=True):
        assert images[partner].video != image.video
        assert images[partner].category != image.category
    with pytest.raises(DataError, match="v0: there is no image of another video"):
        choose_offscreen([image for image in images if image.category == "dog"], seed=0)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("<a><b><bbox><label>x</label><x>1</x><x>2</x><x>3</x></bbox></b></a>", "a label and four integers"),
        ("<a><b><bbox><label>x</label><x>1</x><x>2</x><x>3</x><x>q</x></bbox></b></a>", "a label and four integers"),
        ("<a><object><bndbox><xmin>1</xmin></bndbox></object></a>", "none of its 1 XML files has a bbox"),
        ("<a><b>", "damaged XML"),
    ],
)
def test_xml_files_of_another_format_are_refused(tmp_path: Path, text: str, match: str):
    (tmp_path / "1001.xml").write_text(text)
    with pytest.raises(DataError, match=match) as error:
        read_localization_set(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    "rows",
    [{}, [], [{"file": "a", "class": "b"}], [{"file": "a", "class": "b", "bbox": [[0, 0, 1]]}],
     [{"file": "a", "class": "b", "bbox": [[0, 0, 1, "1"]]}], [{"file": "a", "class": "b", "bbox": []}] * 2],
    ids=["object", "empty", "no bbox", "three numbers", "text", "twice"],
)  # fmt: skip
def test_json_files_of_another_format_are_refused(tmp_path: Path, rows: object):
    (tmp_path / "vggss.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"vggss\.json"):
        read_localization_set(tmp_path / "vggss.json")


def test_test_list_selects_images_and_must_be_annotated(tmp_path: Path):
    (tmp_path / "list.csv").write_text("1003,202\n1001,0\n")
    dataset = read_localization_set(FILES / "Annotations", tmp_path / "list.csv")
    assert [image.name for image in dataset.images] == ["1003", "1001"]
    assert not dataset.is_official
    with pytest.raises(DataError, match="1003"):
        read_localization_set(FILES / "vggss.json", tmp_path / "list.csv")


NUM_VIDEOS, SIDE = 12, 32


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with one white quarter, which is the box; one frame is missing, and one audio file is text."""
    folder, rng, rows = tmp_path_factory.mktemp("vggss"), np.random.default_rng(0), []
    for part in ("frames", "audio"):
        (folder / part).mkdir()
    for index in range(2 * NUM_VIDEOS):
        name, pixels = f"{'v' * 10}{'abcdefghijkl'[index // 2]}_{index:06d}", np.zeros((SIDE, SIDE, 3), np.uint8)
        top, left = rng.integers(2, size=2) * SIDE // 2
        pixels[top : top + SIDE // 2, left : left + SIDE // 2] = 255
        Image.fromarray(pixels).save(folder / "frames" / f"{name}.png")
        soundfile.write(folder / "audio" / f"{name}.wav", 0.1 * rng.normal(size=24_000), 48_000)
        box = [left / SIDE, top / SIDE, left / SIDE + 0.5, top / SIDE + 0.5]
        rows.append({"file": name, "class": ("dog", "cat", "cow")[index // 2 % 3], "bbox": [box]})
    (folder / "vggss.json").write_text(json.dumps(rows))
    (folder / "frames" / f"{rows[3]['file']}.png").unlink()
    (folder / "audio" / f"{rows[8]['file']}.wav").write_text("no audio")
    return folder


class BrightPositions(nn.Module):
    """A tower whose map is the brightness of each 4 x 4 pixels."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(image.mean(1, keepdim=True), 4).expand(-1, 8 * 4, -1, -1)


def save_localizer(folder: Path, comparison: str) -> Path:
    torch.manual_seed(1)
    if comparison == "fusion":
        network = L3Net(make_small_l3net_config(4, SIDE))
    else:
        config = AVENetConfig(SIDE, 1.0, SMALL_SPECTROGRAM_CONFIG, 4, 1, comparison=comparison, embedding_dim=8)
        network = AVENet(config)
    save_model(network.eval(), folder, {})
    return folder


def hear_and_see(_: L3Net, positions: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
    """Brightness above 100, with audio of any loudness; nothing in silence."""
    return positions[..., 0] - 100 - 1000 * (audio[:, :1, None] == 0)


def measure_loudness(_: L3Net, audio: torch.Tensor) -> torch.Tensor:
    return audio.square().sum(1, keepdim=True).expand(-1, 32)


def test_a_network_that_follows_brightness_finds_the_bright_quarter(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The upper half of its map holds the quarter: cIoU is 0.5. It ignores which audio it is, except silence."""
    tower = BrightPositions()
    monkeypatch.setattr(L3Net, "compute_position_features", lambda _, image: tower(image.float()).permute(0, 2, 3, 1))
    monkeypatch.setattr(L3Net, "compute_audio_features", measure_loudness)
    monkeypatch.setattr(L3Net, "score_positions", hear_and_see)
    model, out = save_localizer(tmp_path / "model", "fusion"), tmp_path / "out"
    found = evaluate_localization(model, media, media / "vggss.json", out=out, threshold=0.0, **CPU_OPTIONS)
    rows = list(csv.DictReader((out / "images.csv").read_text().splitlines()))
    assert len(rows) == found["localization.images"] == 2 * NUM_VIDEOS - 2
    assert all(float(row["ciou trained"]) >= 0.45 for row in rows)
    assert all(row["ciou trained"] == row["ciou offscreen"] for row in rows)
    assert found["localization.silence.pia"] == 0
    for kind in ("noise", "offscreen"):
        assert found[f"localization.{kind}.pia"] == pytest.approx(0.25, abs=0.06)  # the quarter, with blurred edges
    assert found["localization.ciou_at_threshold"] > 0.8
    assert found["localization.center.auc"] < found["localization.auc"] > found["localization.random.auc"]
    card = read_card(out / "card.json")
    reasons = {"frame or audio file is missing": 1, "cannot be read": 1}
    assert card["counts"] == {"items": 24, "predicted": 22, "videos": 12, **reasons}
    assert card["split"] == "other images than the official test set"
    assert all(score["paper"] is None for score in card["scores"].values())


@pytest.mark.parametrize("comparison", ["fusion", "distance", "localization"])
def test_position_scores_are_those_of_the_network_on_a_uniform_image(comparison: str, tmp_path: Path):
    """The inner positions of a uniform image all have the vector of the whole image, so its margin is theirs."""
    folder = save_localizer(tmp_path, comparison)
    network = (L3Net if comparison == "fusion" else AVENet).from_pretrained(folder).eval()
    image, audio = torch.full((2, 3, 64, 64), 90, dtype=torch.uint8), 0.1 * torch.randn(2, 48_000)
    with torch.inference_mode():
        vectors = network.compute_audio_features(audio)
        positions = network.compute_position_features(image)
        center = positions[:, 4:5, 4:5].contiguous()
        margins = network.score_positions(center, vectors)[:, 0, 0]
        features = center.flatten(1) if comparison != "distance" else center[:, 0, 0]
        logits = network.fuse_pairs(features, vectors)
    assert margins.tolist() == pytest.approx((logits[:, 1] - logits[:, 0]).tolist(), abs=1e-5)


def test_seeds_repeat_the_evaluation(media: Path, tmp_path: Path):
    model, test_list = save_localizer(tmp_path / "model", "localization"), tmp_path / "list.csv"
    names = [row["file"] for row in json.loads((media / "vggss.json").read_text())]
    test_list.write_text("\n".join(names[:7]))
    first, second, third = (
        evaluate_localization(
            model, media, media / "vggss.json", test_list=test_list, seed=seed, workers=workers, **CPU_OPTIONS
        )
        for seed, workers in ((3, 1), (3, 2), (4, 2))
    )
    assert first == second
    assert first["localization.auc"] == third["localization.auc"]
    for changed in ("random.auc", "untrained.threshold", "noise.pia"):
        assert first[f"localization.{changed}"] != third[f"localization.{changed}"]


def test_short_audio_is_repeated_and_long_audio_cut_at_its_center(tmp_path: Path):
    ramp = np.linspace(-0.5, 0.5, 100, dtype=np.float32)
    soundfile.write(tmp_path / "ramp.wav", ramp, 8000, subtype="FLOAT")
    file = LabeledAudioFile(tmp_path / "ramp.wav", "ramp", None)
    assert read_center_audio(file, 8000, 10) == pytest.approx(ramp[45:55])
    assert read_center_audio(file, 8000, 250) == pytest.approx(np.concatenate([ramp, ramp, ramp[:50]]))


def test_missing_folders_and_other_models_are_refused(media: Path, tmp_path: Path):
    model = save_localizer(tmp_path / "model", "fusion")
    with pytest.raises(DataError, match="frames: no such folder"):
        evaluate_localization(model, tmp_path, media / "vggss.json", **CPU_OPTIONS)
    with pytest.raises(DataError, match="none of the 4 annotated images"):
        evaluate_localization(model, media, FILES / "vggss.json", **CPU_OPTIONS)
    network = L3Net(make_small_l3net_config(4, SIDE))
    nn.init.zeros_(network.fc1.weight)
    save_model(network, tmp_path / "openl3", {})
    with pytest.raises(CheckpointError, match="no fusion network"):
        evaluate_localization(tmp_path / "openl3", media, media / "vggss.json", **CPU_OPTIONS)
