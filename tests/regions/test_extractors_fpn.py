"""The ResNeXt's detector as a source of regions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from comodal.data.regions.region_store import RegionStore
from comodal.errors import CheckpointError
from comodal.media.image import read_image
from comodal.models.convert.state_dicts import read_tensors
from comodal.models.detectors.detector_fpn_regions import FPNPostprocessing, detect_fpn_regions
from comodal.regions.convert_detector import convert_detector
from comodal.regions.extract import extract_regions
from comodal.regions.extractors import ExtractorSource, load_extractor, parse_extractor_source
from comodal.regions.extractors_fpn import build_fpn_postprocessing
from comodal.regions.region_extractor import RegionExtractor
from tests.support.detector_fixtures import PYRAMID, fpn_of, fpn_rules, tensors

if not PYRAMID:
    pytest.skip("no folder of this detector under $COMODAL_FIXTURES", allow_module_level=True)
FILE = PYRAMID[0] / "model.safetensors"


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return tensors(PYRAMID[0], "expected")["image_rgb"].numpy()


def test_it_is_a_source_of_regions(picture: np.ndarray):
    extractor = load_extractor(ExtractorSource(str(FILE), size=256, max_regions=10))
    assert isinstance(extractor.network, RegionExtractor)
    config = fpn_of(PYRAMID[0]).config
    found = extractor(picture)
    assert found.features.shape == (10, config.dense) and found.classes.shape == (10, config.classes)
    assert np.allclose(found.classes.sum(1), 1, atol=1e-5)
    assert (found.height, found.width) == picture.shape[:2]
    theirs = detect_fpn_regions(fpn_of(PYRAMID[0]), torch.from_numpy(picture), build_fpn_postprocessing(256, 10))
    assert_close(torch.from_numpy(found.boxes), theirs.boxes, rtol=0, atol=2e-2)
    assert parse_extractor_source(extractor.about) == extractor.source


def test_given_boxes_are_described_in_their_order(picture: np.ndarray):
    rules, theirs = fpn_rules(PYRAMID[0]), tensors(PYRAMID[0], "expected")
    boxes = theirs["gt.boxes"].numpy()
    extractor = load_extractor(ExtractorSource(str(FILE), size=rules.size))
    found = extractor(picture, boxes)
    assert np.array_equal(found.boxes, boxes)
    assert np.allclose(extractor(picture, boxes[::-1].copy()).features[::-1], found.features, atol=1e-4)


def test_the_original_saves_model_and_module(picture: np.ndarray, tmp_path: Path):
    """Whatever container, one network; a converted folder too."""
    state = {f"module.{name}": tensor for name, tensor in read_tensors(FILE).items()}
    torch.save({"model": state, "iteration": 1}, tmp_path / "model_final.pth")
    counts = convert_detector(tmp_path / "model_final.pth", tmp_path / "resnext")
    assert not counts.unused and len(counts.filled) == len(state) - 4  # anchors of five maps in one
    sources = [FILE, tmp_path / "model_final.pth", tmp_path / "resnext"]
    one, two, three = (load_extractor(ExtractorSource(str(source), size=256)) for source in sources)
    assert one.network.fingerprint == two.network.fingerprint == three.network.fingerprint
    assert np.array_equal(one(picture).features, three(picture).features)


def test_damaged_files_are_refused_and_nothing_is_written(tmp_path: Path):
    state = read_tensors(FILE)
    del state["rpn.head.conv.weight"]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(CheckpointError, match=r"less.pth: a tensor is missing: proposal.weight"):
        convert_detector(tmp_path / "less.pth", tmp_path / "none")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "less.pth").read_bytes()[:-900])
    with pytest.raises(CheckpointError, match=r"cut.pth"):
        load_extractor(ExtractorSource(str(tmp_path / "cut.pth")))
    assert not (tmp_path / "none").exists()


def test_settings_of_the_other_detector_are_refused():
    with pytest.raises(ValueError, match="min_regions and postprocessing are for bottom-up attention's detector"):
        load_extractor(ExtractorSource(str(FILE), min_regions=3))


def test_the_defaults_are_those_of_12_in_1():
    assert (
        build_fpn_postprocessing()
        == FPNPostprocessing()
        == FPNPostprocessing(800, 1333, 1000, 1000, 1000, 0.7, 0.5, 100)
    )
    assert build_fpn_postprocessing(400, 36) == FPNPostprocessing(size=400, longest=666, max_regions=36)


def test_a_folder_of_pictures(tmp_path: Path, picture: np.ndarray):
    from PIL import Image

    (tmp_path / "photos").mkdir()
    Image.fromarray(picture).save(tmp_path / "photos" / "coffee.png")
    Image.fromarray(picture[:20, :30]).save(tmp_path / "photos" / "small.png")
    extract_regions(tmp_path / "photos", tmp_path / "store", str(FILE), size=224, max_regions=8)
    store = RegionStore(tmp_path / "store")
    assert list(store.counts) == [8, 8] and store.classes == fpn_of(PYRAMID[0]).config.classes
    direct = load_extractor(ExtractorSource(str(FILE), size=224, max_regions=8))(
        read_image(tmp_path / "photos" / "coffee.png")
    )
    assert np.allclose(store.read_regions(list(store.ids).index("coffee")).features, direct.features, atol=1e-2)
