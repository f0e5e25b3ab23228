"""The Visual Genome detector as a source of regions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import box_iou

from comodal.data.regions.region_store import RegionStore
from comodal.errors import CheckpointError, DataError, MediaError
from comodal.models.detectors.detector_boxes import nms_inclusive
from comodal.models.detectors.detector_rules import (
    C4Postprocessing,
    LXMERTPostprocessing,
    detect_caffe_regions,
    select_caffe_regions,
)
from comodal.regions.convert_detector import convert_detector
from comodal.regions.extract import extract_regions
from comodal.regions.extractors import ExtractorSource, load_extractor, parse_extractor_source
from comodal.regions.extractors_c4 import C4Extractor, build_c4_postprocessing
from comodal.regions.region_extractor import RegionExtractor
from tests.support.detector_fixtures import CAFFE, c4_of, tensors

if not CAFFE:
    pytest.skip("no folder of this detector under $COMODAL_FIXTURES", allow_module_level=True)
FILE = str(next(CAFFE[0].glob("*.caffemodel")))


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return tensors(CAFFE[0], "expected")["image_rgb"].numpy()


def test_it_is_a_source_of_regions(picture: np.ndarray):
    extractor = load_extractor(ExtractorSource(FILE, size=192, max_regions=12))
    assert isinstance(extractor.network, RegionExtractor)
    found = extractor(picture)
    theirs = detect_caffe_regions(c4_of(CAFFE[0]), torch.from_numpy(picture), extractor.network.postprocessing)
    assert found.boxes.shape == (12, 4) and found.features.shape == (12, 256) and found.classes.shape == (12, 41)
    assert np.allclose(found.classes.sum(1), 1, atol=1e-5)
    assert (found.boxes[:, 2] <= 160).all() and (found.boxes[:, 3] <= 120).all()
    assert (found.width, found.height) == (160, 120)
    assert len(theirs.boxes) == 12
    assert parse_extractor_source(extractor.about) == extractor.source


def test_a_converted_detector_is_the_same_source(picture: np.ndarray, tmp_path: Path):
    report = convert_detector(Path(FILE), tmp_path / "vg")
    assert len(report.filled) == 2 * 53 + 6 + 8 + 2 and not report.unused  # convolutions, proposals, dense layers
    assert "122 loaded, 0 new, 0 unused tensors in the file" in (tmp_path / "vg" / "report.txt").read_text()
    file, folder = (load_extractor(ExtractorSource(str(source), size=192)) for source in (FILE, tmp_path / "vg"))
    assert file.network.fingerprint == folder.network.fingerprint
    assert np.array_equal(file(picture).features, folder(picture).features)
    (tmp_path / "bad.caffemodel").write_bytes(Path(FILE).read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="ends in the middle"):
        convert_detector(tmp_path / "bad.caffemodel", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_settings_changed_by_hand_are_refused():
    made = load_extractor(ExtractorSource(FILE, size=192)).about
    assert parse_extractor_source(
        {name: value for name, value in made.items() if name not in ("postprocessing", "precision", "min_regions")}
    )
    former = {name: value for name, value in made.items() if name != "precision"} | {"head": "bf16"}
    assert parse_extractor_source(former).precision == "bf16"  # as earlier versions named it
    for name, value in (("postprocessing", "coffee"), ("precision", "float3"), ("min_regions", "few")):
        with pytest.raises(DataError, match="they were edited"):
            parse_extractor_source(made | {name: value})


def test_given_boxes_are_described_in_their_order(picture: np.ndarray):
    theirs = tensors(CAFFE[0], "expected")
    boxes = theirs["gt.boxes"].numpy()
    found = load_extractor(ExtractorSource(FILE, size=192))(picture, boxes)
    assert np.array_equal(found.boxes, boxes)
    assert np.allclose(found.features, theirs["gt.pool5"], atol=1e-3)
    turned = load_extractor(ExtractorSource(FILE, size=192))(picture, boxes[::-1].copy())
    assert np.allclose(turned.features[::-1], found.features, atol=1e-4)


def test_the_defaults_are_vilberts_and_a_users_wishes_go_in():
    assert build_c4_postprocessing() == C4Postprocessing(600, 1000, 16, 6000, 300, 0.7, 0.3, 36, 36, 0.2)
    assert build_c4_postprocessing(None, None, 10, 100) == C4Postprocessing(min_regions=10, max_regions=100)
    assert build_c4_postprocessing("lxmert", 300, None, 50) == LXMERTPostprocessing(
        size=300, longest=500, min_regions=50, max_regions=50
    )
    with pytest.raises(ValueError, match=r"min_regions \(40\) must not exceed max_regions \(36\)"):
        build_c4_postprocessing(None, None, 40, 36)


def test_lxmerts_regions_may_be_too_few_at_every_overlap(picture: np.ndarray):
    """Where the original fails or gives the boxes of the picture before."""
    network = C4Extractor(
        c4_of(CAFFE[0]),
        LXMERTPostprocessing(
            size=192, class_nms_thresholds=(0.1, 0.2), post_nms_top_k=50, min_regions=50, max_regions=50
        ),
    )
    found = network(picture)
    overlaps = box_iou(torch.from_numpy(found.boxes), torch.from_numpy(found.boxes)).fill_diagonal_(0)
    assert 0 < len(found.boxes) < 50 and overlaps.max() <= 0.2
    with pytest.raises(ValueError, match="class_nms_thresholds must not be empty"):
        LXMERTPostprocessing(class_nms_thresholds=())


def test_other_rules_are_other_features_and_other_boxes_are_not(picture: np.ndarray):
    prints = {
        key: load_extractor(source).network.fingerprint
        for key, source in {
            "usual": ExtractorSource(FILE, size=192),
            "more": ExtractorSource(FILE, size=192, max_regions=20, min_regions=2),
            "lxmert": ExtractorSource(FILE, size=192, postprocessing="lxmert"),
            "rough": ExtractorSource(FILE, size=192, precision="bf16"),
            "large": ExtractorSource(FILE, size=240),
        }.items()
    }
    assert prints["usual"] == prints["more"]
    assert len(set(prints.values())) == 4
    exact, rough = (
        load_extractor(ExtractorSource(FILE, size=192, precision=precision)) for precision in ("fp32", "bf16")
    )
    boxes = np.array([[10, 10, 90, 90], [40, 20, 150, 110]], np.float32)
    features = [torch.from_numpy(extractor(picture, boxes).features) for extractor in (exact, rough)]
    assert F.cosine_similarity(*features).min() > 0.999


def test_what_is_for_this_detector_alone_is_refused_elsewhere(tmp_path: Path):
    torch.manual_seed(0)
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_fpn

    model = fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None, num_classes=3)
    torch.save(model.state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="min_regions and postprocessing are for bottom-up attention's detector"):
        load_extractor(ExtractorSource(str(tmp_path / "other.pth"), min_regions=3))
    with pytest.raises(ValueError, match="precision bf16 is for bottom-up attention's detector"):
        load_extractor(ExtractorSource(str(tmp_path / "other.pth"), precision="bf16"))


def by_the_loop(boxes: torch.Tensor, classes: torch.Tensor, rules: C4Postprocessing) -> torch.Tensor:
    """The original's way (generate_tsv.py): class by class over all boxes."""
    sureness = torch.zeros(len(boxes))
    for column in classes.T[1:]:
        kept = nms_inclusive(boxes, column, rules.class_nms_threshold)
        sureness[kept] = torch.maximum(sureness[kept], column[kept])
    sure = (sureness >= rules.score_threshold).nonzero().flatten()
    if rules.min_regions <= len(sure) <= rules.max_regions:
        return sure
    return sureness.argsort(descending=True)[
        : rules.min_regions if len(sure) < rules.min_regions else rules.max_regions
    ]


@pytest.mark.parametrize("fewest, most", [(36, 36), (10, 100), (1, 300), (100, 100), (300, 300)])
@pytest.mark.parametrize("sharpness", [0.5, 3, 8])
def test_lazy_selection_is_the_loop_over_all_classes(fewest: int, most: int, sharpness: float):
    torch.manual_seed(int(sharpness * 10) + most)
    corners = torch.rand(300, 2) * 300
    boxes = torch.cat([corners, corners + 10 + torch.rand(300, 2) * 200], 1)
    classes = (torch.randn(300, 201) * sharpness).softmax(1)
    rules = C4Postprocessing(min_regions=fewest, max_regions=most)
    assert torch.equal(select_caffe_regions(boxes, classes, rules), by_the_loop(boxes, classes, rules))


@pytest.mark.parametrize("height, width", [(16, 17), (17, 60), (300, 18), (33, 500)])
@pytest.mark.parametrize("rules", ["caffe", "lxmert"])
def test_odd_pictures_have_regions_inside(height: int, width: int, rules: str):
    network = C4Extractor(c4_of(CAFFE[0]), build_c4_postprocessing(rules, 96, 1, 10))
    found = network(np.full((height, width, 3), 128, np.uint8))
    assert len(found.boxes)
    assert (found.boxes[:, 2] <= width).all() and (found.boxes[:, 3] <= height).all() and (found.boxes >= 0).all()
    assert np.isfinite(found.features).all()


@pytest.mark.parametrize("height, width", [(1, 1), (1, 40), (300, 7)])
def test_a_picture_smaller_than_any_region_is_refused(height: int, width: int):
    picture = np.zeros((height, width, 3), np.uint8)
    network = C4Extractor(c4_of(CAFFE[0]), build_c4_postprocessing(None, 96, 1, 10))
    with pytest.raises(MediaError, match=f"no regions: {width} x {height} pixels"):
        network(picture)
    assert network(picture, np.array([[0, 0, width, height]], np.float32)).features.shape == (1, 256)
    assert len(C4Extractor(c4_of(CAFFE[0]), build_c4_postprocessing("lxmert", 96, 1, 10))(picture).boxes)


def test_a_folder_of_pictures_becomes_a_store(picture: np.ndarray, tmp_path: Path):
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for name in "ab":
        Image.fromarray(picture).save(tmp_path / "photos" / f"{name}.png")
    counts = extract_regions(
        tmp_path / "photos", tmp_path / "store", FILE, size=192, max_regions=20, min_regions=4, backend="sequential"
    )
    store = RegionStore(tmp_path / "store")
    assert counts.images == 2 and store.classes == 41 and store.dim == 256
    assert "bottom-up attention" in store.about["provenance"]["name"]
    again = extract_regions(tmp_path / "photos", tmp_path / "store", FILE, size=192, max_regions=20, min_regions=4)
    assert again == counts
