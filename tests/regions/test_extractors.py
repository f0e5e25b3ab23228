"""Regions of every source are what the source's own library gives, in pixels of the picture as it is seen."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_fpn, fasterrcnn_resnet50_fpn_v2
from torchvision.ops import box_iou, roi_align

from comodal.errors import CheckpointError, DataError, MediaError
from comodal.media.image import read_image
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.regions.backbones import load_backbone
from comodal.regions.extractors import ExtractorSource, LoadedExtractor, load_extractor, parse_extractor_source
from comodal.regions.extractors_torchvision import load_faster_rcnn
from comodal.regions.region_extractor import RegionExtractor
from tests.support.small_detectors import write_detr, write_faster_rcnn


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Coloured rectangles and noise, 90 wide and 60 high."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 40, (60, 90, 3), np.uint8)
    pixels[10:40, 10:45, 0] += 200
    pixels[25:55, 50:85, 1] += 180
    return pixels


@pytest.fixture(scope="module")
def faster_rcnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_faster_rcnn(tmp_path_factory.mktemp("weights") / "faster.pth")


def size_of(picture: np.ndarray) -> list[int]:
    return [picture.shape[1], picture.shape[0]] * 2


def test_a_grid_of_the_map_is_its_adaptive_mean(network: Path, picture: np.ndarray):
    """Where the cells of the grid meet cells of the map: 64 x 96 pixels, 8 x 12 cells, a grid of 4 x 4."""
    upright = np.asarray(Image.fromarray(picture).resize((96, 64)))
    found = load_extractor(ExtractorSource(str(network), grid=4))(upright)
    pixels = torch.from_numpy(upright.copy()).permute(2, 0, 1)[None]
    with torch.inference_mode():
        feature_map = L3Net.from_pretrained(network).compute_image_map(pixels)
    wanted = F.adaptive_avg_pool2d(feature_map, 4)[0].flatten(1).T
    torch.testing.assert_close(torch.from_numpy(found.features), wanted)
    assert found.boxes[5].tolist() == [24, 16, 48, 32] and found.classes is None


def test_given_boxes_over_a_network_are_torchvisions_roi_align(network: Path, picture: np.ndarray):
    boxes = np.array([[10, 10, 45, 40], [0, 0, 90, 60]], np.float32)
    found = load_extractor(ExtractorSource(str(network), cells=2))(picture, boxes)
    backbone = load_backbone(str(network))
    feature_map = backbone(backbone.scale_image(picture)[None])[-1]
    rows, columns = feature_map.shape[2:]
    scaled = torch.from_numpy(boxes) / torch.tensor([90.0, 60] * 2) * torch.tensor([columns, rows] * 2)
    wanted = roi_align(feature_map, [scaled], 2, aligned=True).permute(0, 2, 3, 1).flatten(1)
    torch.testing.assert_close(torch.from_numpy(found.features), wanted)
    assert np.array_equal(found.boxes, boxes)


def test_all_maps_of_a_network_are_its_blocks_one_behind_the_other(network: Path, picture: np.ndarray):
    """Against the same network taken layer by layer, averaged over the whole picture."""
    upright = np.asarray(Image.fromarray(picture).resize((64, 64)))
    extractor = load_extractor(ExtractorSource(str(network), grid=1, maps="all"))
    tower = L3Net.from_pretrained(network).image_tower.eval()
    x, wanted = torch.from_numpy(upright.copy()).permute(2, 0, 1)[None] * (2 / 255) - 1, []
    with torch.inference_mode():
        for block in range(1, 5):
            x = tower.layers[f"conv{block}_2"](tower.layers[f"conv{block}_1"](x))
            wanted.append(x.mean((2, 3))[0])
            x = F.max_pool2d(x, 2)
    found = extractor(upright)
    assert extractor.network.feature_dim == found.features.shape[1] == sum(map(len, wanted))
    torch.testing.assert_close(torch.from_numpy(found.features[0]), torch.cat(wanted))
    last = load_extractor(ExtractorSource(str(network), grid=1))
    assert last.about["fingerprint"] != extractor.about["fingerprint"]
    assert np.array_equal(last(upright).features[0], found.features[0, -len(wanted[-1]) :])


def whole_run(model: torch.nn.Module, picture: np.ndarray) -> tuple[torch.Tensor, ...]:
    """All proposals, their features and class probabilities, as torchvision's own forward computes them."""
    seen: dict[str, torch.Tensor] = {}
    sizes: list[tuple[int, int]] = []
    hooks = [
        model.rpn.register_forward_hook(lambda _, __, found: seen.update(boxes=found[0][0])),
        model.roi_heads.box_head.register_forward_hook(lambda _, __, found: seen.update(features=found)),
        model.roi_heads.box_predictor.register_forward_hook(lambda _, __, found: seen.update(logits=found[0])),
        model.transform.register_forward_hook(lambda _, __, found: sizes.append(found[0].image_sizes[0])),
    ]
    with torch.inference_mode():
        model([torch.from_numpy(picture.copy()).permute(2, 0, 1) / 255.0])
    for hook in hooks:
        hook.remove()
    rows, columns = sizes[0]
    height, width = picture.shape[:2]
    boxes = seen["boxes"] * torch.tensor([width / columns, height / rows] * 2)
    return boxes, seen["features"], seen["logits"].softmax(1)


def test_torchvisions_detector_gives_what_torchvision_computes_by_itself(faster_rcnn: Path, picture: np.ndarray):
    model = fasterrcnn_mobilenet_v3_large_fpn(
        weights=None, weights_backbone=None, num_classes=7, min_size=96, max_size=160
    )
    model.load_state_dict(torch.load(faster_rcnn, weights_only=True))
    boxes, features, shares = whole_run(model.eval(), picture)
    extractor = load_extractor(ExtractorSource(str(faster_rcnn), size=96, max_regions=20))
    found = extractor(picture)
    assert 2 <= len(found.boxes) <= 20
    assert (extractor.network.feature_dim, extractor.network.num_classes) == (1024, 7)
    kept: list[int] = []  # by hand: the surest first, none that overlaps a surer one by more than half
    overlaps = box_iou(boxes, boxes)
    for place in (-shares[:, 1:].amax(1)).argsort(stable=True).tolist():
        if all(overlaps[place, other] <= 0.5 for other in kept):
            kept.append(place)
    kept = kept[:20]
    torch.testing.assert_close(torch.from_numpy(found.boxes), boxes[kept])
    torch.testing.assert_close(torch.from_numpy(found.features), features[kept])
    torch.testing.assert_close(torch.from_numpy(found.classes), shares[kept])
    given = extractor(picture, found.boxes)
    torch.testing.assert_close(torch.from_numpy(given.features), features[kept], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.from_numpy(given.classes), shares[kept], atol=1e-4, rtol=1e-4)


def test_which_of_torchvisions_detectors_it_is_stands_in_the_file():
    model = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=3)
    found = load_faster_rcnn(Path("x.pth"), model.state_dict(), None, 36)
    assert found.name == "torchvision's fasterrcnn_resnet50_fpn_v2"
    assert (found.size, found.feature_dim, found.num_classes) == (800, 1024, 3)


def test_a_file_of_other_weights_is_refused_in_a_sentence(faster_rcnn: Path, tmp_path: Path):
    state = torch.load(faster_rcnn, weights_only=True)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other.pth: not a network of .*torchvision_faster_rcnn"):
        load_extractor(ExtractorSource(str(tmp_path / "other.pth")))
    name = "rpn.head.cls_logits.weight"
    for damaged, sentence in (
        ({k: v for k, v in state.items() if k != name}, f"missing \\['{name}'\\]"),
        (state | {name: torch.zeros(1, 2, 3, 4)}, "not the weights of fasterrcnn_mobilenet"),
        (state | {"more": torch.zeros(1)}, r"unknown \['more'\]"),
    ):
        torch.save({"model": damaged}, tmp_path / "damaged.pth")
        with pytest.raises(CheckpointError, match=sentence):
            load_extractor(ExtractorSource(str(tmp_path / "damaged.pth")))
    (tmp_path / "cut.pth").write_bytes(faster_rcnn.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"cut.pth: not a readable file of weights"):
        load_extractor(ExtractorSource(str(tmp_path / "cut.pth")))


@pytest.fixture(scope="module")
def detr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detr(tmp_path_factory.mktemp("d"))


def test_detr_gives_what_transformers_computes_by_itself(detr: Path, picture: np.ndarray):
    from transformers import DetrForObjectDetection, DetrImageProcessor

    extractor = load_extractor(ExtractorSource(str(detr), max_regions=4))
    found = extractor(picture)
    model, processor = DetrForObjectDetection.from_pretrained(detr).eval(), DetrImageProcessor.from_pretrained(detr)
    with torch.inference_mode():
        output = model(**processor(images=Image.fromarray(picture), return_tensors="pt"))
    detections = processor.post_process_object_detection(output, threshold=0.0, target_sizes=[(60, 90)])[0]
    best = detections["scores"].argsort(descending=True)[:4]
    boxes = detections["boxes"][best].numpy().clip(0, size_of(picture))
    np.testing.assert_allclose(found.boxes, boxes, atol=1e-3)
    np.testing.assert_allclose(found.classes[:, 1:].max(1), detections["scores"][best].numpy(), rtol=1e-4)
    assert (found.classes[:, 1:].argmax(1) == detections["labels"][best].numpy()).all()
    shares = output.logits[0].softmax(1)
    np.testing.assert_allclose(found.classes[:, 0], shares[best, -1].numpy(), rtol=1e-4)  # "no object" comes first
    np.testing.assert_allclose(found.features, output.last_hidden_state[0, best].numpy(), rtol=1e-3, atol=1e-5)
    assert (extractor.network.feature_dim, extractor.network.num_classes, extractor.network.size) == (16, 6, 64)


def test_boxes_cannot_be_given_to_a_detr(detr: Path):
    for boxes in ("given", "grid", "selective"):
        with pytest.raises(ValueError, match="has its own boxes and does not support given ones"):
            load_extractor(ExtractorSource(str(detr), boxes))


def test_networks_that_score_each_class_by_itself_have_no_class_probabilities(tmp_path: Path, picture: np.ndarray):
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessor, RTDetrResNetConfig

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    backbone = RTDetrResNetConfig(**sizes, out_features=["stage2", "stage3", "stage4"])
    config = RTDetrConfig(
        backbone_config=backbone, backbone=None, use_timm_backbone=False, use_pretrained_backbone=False,
        encoder_in_channels=[8, 16, 16], encoder_hidden_dim=16, d_model=16, encoder_layers=1, encoder_ffn_dim=16,
        decoder_layers=1, decoder_ffn_dim=16, decoder_attention_heads=2, encoder_attention_heads=2, num_queries=7,
        num_labels=5, num_feature_levels=3, decoder_in_channels=[16, 16, 16], feat_strides=[8, 16, 32],
    )  # fmt: skip
    torch.manual_seed(0)
    model = RTDetrForObjectDetection(config).eval()
    model.save_pretrained(tmp_path)
    RTDetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    extractor = load_extractor(ExtractorSource(str(tmp_path), size=96, max_regions=3))
    found = extractor(picture)
    assert found.classes is None and extractor.network.num_classes == 0
    assert (found.features.shape, found.boxes.shape) == ((3, 16), (3, 4))
    inputs = RTDetrImageProcessor(size={"height": 96, "width": 96})(images=picture, return_tensors="pt")
    with torch.inference_mode():
        output = model(**inputs)
    best = output.logits[0].amax(1).argsort(descending=True)[:3]
    np.testing.assert_allclose(found.features, output.last_hidden_state[0, best].numpy(), rtol=1e-3, atol=1e-4)


def test_a_detr_without_all_its_weights_is_refused(detr: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((detr / name).read_bytes())
    weights = load_file(detr / "model.safetensors")
    missing = next(name for name in weights if name.endswith("query_position_embeddings.weight"))
    save_file(
        {name: w for name, w in weights.items() if name != missing}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(CheckpointError, match="missing weights"):
        load_extractor(ExtractorSource(str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="not a network of the DETR family"):
        load_extractor(ExtractorSource(str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="not a network of the DETR family"):
        load_extractor(ExtractorSource(str(tmp_path)))


def test_selective_search_finds_what_stands_out(network: Path, picture: np.ndarray):
    pytest.importorskip("cv2")
    extractor = load_extractor(ExtractorSource(str(network), "selective", max_regions=30))
    found = extractor(picture)
    objects = torch.tensor([[10.0, 10, 45, 40], [50, 25, 85, 55]])
    assert (box_iou(objects, torch.from_numpy(found.boxes)).amax(1) > 0.7).all()
    areas = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(1)
    assert (np.diff(areas) <= 0).all() and len(areas) <= 30
    overlaps = box_iou(*[torch.from_numpy(found.boxes)] * 2)
    assert (overlaps - torch.eye(len(areas))).max() <= 0.701
    again = extractor(picture)
    assert np.array_equal(again.boxes, found.boxes)  # OpenCV itself orders them by chance
    plain = extractor(np.full((1, 1, 3), 9, np.uint8))
    assert plain.boxes.tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("source", ["network", "faster_rcnn", "detr"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_photograph_has_the_regions_of_its_upright_twin(
    source: str, orientation: int, picture: np.ndarray, tmp_path: Path, request: pytest.FixtureRequest
):
    """What is stored lies as EXIF says; Pillow's own transposition brings it upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture).transpose(BACK[orientation]).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(picture).save(tmp_path / "upright.png")
    extractor = cached(request, source)
    turned, upright = (extractor(read_image(tmp_path / f"{name}.png")) for name in ("turned", "upright"))
    assert (turned.width, turned.height) == (90, 60)
    assert np.array_equal(turned.boxes, upright.boxes) and np.array_equal(turned.features, upright.features)


BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip
EXTRACTORS: dict[str, LoadedExtractor] = {}


def cached(request: pytest.FixtureRequest, source: str) -> LoadedExtractor:
    if source not in EXTRACTORS:
        size = None if source == "network" else 64
        EXTRACTORS[source] = load_extractor(
            ExtractorSource(str(request.getfixturevalue(source)), size=size, max_regions=5)
        )
    return EXTRACTORS[source]


@pytest.mark.parametrize("source", ["network", "faster_rcnn", "detr"])
def test_odd_pictures_have_regions_or_are_refused(source: str, request: pytest.FixtureRequest):
    extractor = cached(request, source)
    assert isinstance(extractor.network, RegionExtractor)
    for shape in ((1, 1, 3), (3, 3, 3), (1, 50, 3), (60, 2, 3)):
        found = extractor(np.full(shape, 100, np.uint8))
        assert len(found.boxes) and np.isfinite(found.features).all()
        assert (found.boxes >= 0).all() and (found.boxes <= [shape[1], shape[0]] * 2).all()
    with pytest.raises(MediaError, match="too thin: 51 x 1 pixels"):
        extractor(np.zeros((1, 51, 3), np.uint8))


def test_boxes_are_cut_off_at_the_edges_and_those_outside_are_refused(network: Path, picture: np.ndarray):
    extractor = load_extractor(ExtractorSource(str(network), "given"))
    found = extractor(picture, np.array([[-5, 10, 30, 70]], np.float32))
    assert found.boxes.tolist() == [[0, 10, 30, 60]]
    with pytest.raises(MediaError, match=r"box outside the image: \[10, 70, 30, 80\] in 90 x 60 pixels"):
        extractor(picture, np.array([[0, 0, 5, 5], [10, 70, 30, 80]], np.float32))
    with pytest.raises(DataError, match="pass the boxes of the objects"):
        extractor(picture)


def test_the_fingerprint_is_of_weights_and_of_what_changes_features(network: Path, detr: Path, tmp_path: Path):
    plain = ExtractorSource(str(network))
    mark = load_extractor(plain).network.fingerprint
    for same in (replace(plain, grid=3), replace(plain, boxes="given")):
        assert load_extractor(same).network.fingerprint == mark
    for other in (replace(plain, size=32), replace(plain, cells=2)):
        assert load_extractor(other).network.fingerprint != mark
    torch.manual_seed(1)
    save_model(L3Net(make_small_l3net_config(width=2, image_size=32)), tmp_path / "other", {})
    assert load_extractor(ExtractorSource(str(tmp_path / "other"))).network.fingerprint != mark
    wishes = [ExtractorSource(str(detr), size=size, max_regions=most) for size, most in ((64, 3), (64, 5), (32, 3))]
    marks = {load_extractor(wish).network.fingerprint for wish in wishes}
    assert len(marks) == 2


def test_what_a_store_says_is_enough_to_make_regions_like_its_own(network: Path):
    extractor = load_extractor(ExtractorSource(str(network), grid=3, cells=2, size=48))
    made = json.loads(json.dumps(extractor.about))
    assert parse_extractor_source(made) == extractor.source
    with pytest.raises(DataError, match="its detector is unknown"):
        parse_extractor_source({"layout": "LMDB"})
    with pytest.raises(DataError, match="they were edited"):
        parse_extractor_source(made | {"boxes": "anywhere"})


def test_wrong_wishes_are_told(network: Path, faster_rcnn: Path, tmp_path: Path):
    for source, sentence in (
        (ExtractorSource(str(network), "own"), "has no boxes of its own"),
        (ExtractorSource(str(network), grid=0), "grid is a number from 1 to 100, got 0"),
        (ExtractorSource(str(network), size=-1), "size is a number from 1 to 4,096, got -1"),
        (ExtractorSource(str(faster_rcnn), cells=2), "cells and maps are for a vision network"),
    ):
        with pytest.raises(ValueError, match=sentence):
            load_extractor(source)
    with pytest.raises(CheckpointError, match=r"no config\.json and no weights"):
        load_extractor(ExtractorSource(str(tmp_path)))
