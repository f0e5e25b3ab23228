"""Where the sound is, on networks built by hand and on boxes worked by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from comodal.analysis.heatmaps import normalize_map, resize_maps, shade_by_heat
from comodal.analysis.layer_activations import build_image_tower_input, compute_layer_map
from comodal.analysis.localization import decompose_margin, find_map_peak, predict_by_position
from comodal.analysis.pointing_game import (
    PointingScene,
    compute_pointing_accuracy,
    concatenate_scenes,
    is_inside_boxes,
    pair_scenes,
    read_pointing_scenes,
    run_pointing_game,
    score_center_pointing,
)
from comodal.errors import DataError
from comodal.models.ave_net.ave_net import AVENet, AVENetConfig
from comodal.models.l3net.l3net import L3Net, L3NetConfig, make_small_l3net_config
from comodal.models.l3net.spectrogram import SMALL_SPECTROGRAM_CONFIG
from tests.support.small_world import write_world

SOUND = torch.zeros(1, 48_000)


def square_finder() -> L3Net:
    """Says "probability" as far as there is a bright 3 x 3 square, and hears nothing: all other weights are zero."""
    model = L3Net(make_small_l3net_config(1, 32)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        for name, layer in model.image_tower.layers.items():
            if name == "conv1_1":
                layer.convolution.weight[0] = 1 / 27
                layer.convolution.bias[0] = -0.5
            else:
                layer.convolution.weight[0, 0, 1, 1] = 1.0
        model.fc1.weight[0, 0] = 1.0
        model.fc2.weight[1, 0] = 4.0
        model.fc2.bias[1] = -1.0
    return model


def square(top: int, left: int, height: int = 32, width: int = 48) -> torch.Tensor:
    """A white square of 8 x 8 on black."""
    image = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    image[:, :, top : top + 8, left : left + 8] = 255
    return image


def test_the_map_lands_on_the_square_that_the_network_looks_for():
    found = predict_by_position(square_finder(), square(8, 24), SOUND)
    expected = torch.full((1, 4, 6), -1.0)
    expected[0, 1, 3] = 4 * 0.5 - 1  # a mean of 1 over the threshold of 0.5, times 4, and the bias
    assert_close(found.position_margins, expected, atol=1e-3, rtol=0)
    assert_close(found.margin, torch.tensor([1.0]), atol=1e-3, rtol=0)
    assert_close(found.probability, torch.tensor([1 / (1 + np.exp(-1.0))], dtype=torch.float32), atol=1e-3, rtol=0)
    x, y = find_map_peak(found.position_margins[0], (32, 48))
    assert 24 <= x <= 32
    assert 8 <= y <= 16
    handed_back = decompose_margin(square_finder(), square(8, 24), SOUND)
    assert handed_back.positions.flatten().argmax() == 1 * 6 + 3
    assert_close(handed_back.positions.sum(), torch.tensor(2.0), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("down", "right"), [(8, 0), (0, 8), (16, 24), (-8, -16)])
def test_when_the_square_moves_the_map_moves_with_it(down: int, right: int):
    model = square_finder()
    before = predict_by_position(model, square(8, 16), SOUND).position_margins
    after = predict_by_position(model, square(8 + down, 16 + right), SOUND).position_margins
    assert torch.equal(after, before.roll((down // 8, right // 8), (1, 2)))


def some_pairs() -> tuple[L3Net, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, 3, 40, 56), dtype=torch.uint8)
    return L3Net(make_small_l3net_config(2, 32)).eval(), image, 0.1 * torch.randn(3, 48_000)


def test_the_verdict_is_the_models_own_and_its_parts_add_up_to_it():
    model, image, sound = some_pairs()
    with torch.inference_mode():
        logits = model(image, sound).logits
    parts = decompose_margin(model, image, sound)
    assert_close(parts.margin, logits[:, 1] - logits[:, 0])
    assert_close(parts.positions.sum((1, 2)) + parts.audio + parts.rest, parts.margin)
    assert_close(predict_by_position(model, image, sound).probability, logits.softmax(-1)[:, 1])


def test_a_units_part_is_its_gradient_times_its_value():
    """Against automatic differentiation of the verdict with respect to the map of the last convolution."""
    model, image, sound = some_pairs()
    kept: list[torch.Tensor] = []
    last = model.image_tower.layers["conv4_2"]
    handle = last.register_forward_hook(lambda _layer, _inputs, output: kept.append(output))
    logits = model(image, sound).logits
    handle.remove()
    gradient = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), kept[0])[0]
    assert_close(
        decompose_margin(model, image, sound).positions, (gradient * kept[0]).sum(1).detach(), atol=1e-5, rtol=1e-4
    )


def test_a_place_is_judged_as_if_it_were_the_whole_picture():
    """Of a picture of one place, the place's verdict is the picture's."""
    model, image, sound = some_pairs()
    found = predict_by_position(model, image[:, :, :8, :8], sound)
    assert found.position_margins.shape == (3, 1, 1)
    assert_close(found.position_margins.flatten(), found.margin)


def test_maps_of_layers_are_those_of_the_tower():
    model, image, _ = some_pairs()
    with torch.inference_mode():
        assert torch.equal(
            compute_layer_map(build_image_tower_input(model), "conv4_2")(image),
            model.image_tower(model.normalize_image(image)),
        )
    assert compute_layer_map(build_image_tower_input(model), "conv1_2")(image).shape == (3, 2, 40, 56)


def test_a_cell_keeps_its_place_when_a_map_is_enlarged():
    maps = torch.zeros(1, 2, 3)
    maps[0, 1, 2] = 1.0
    large = resize_maps(maps, (21, 28))  # cells of 9 pixels would not fit: 28 // 3 and 21 // 2 give 9
    assert large.shape == (1, 21, 28)
    row, column = divmod(int(large[0].argmax()), 28)
    assert 9 <= row < 18
    assert 18 <= column < 27
    assert torch.equal(resize_maps(maps, (2, 3)), maps)


def test_what_is_cold_is_dark():
    white = np.full((1, 2, 3), 200, np.uint8)
    assert shade_by_heat(white, np.array([[0.0, 1.0]])).tolist() == [[[50] * 3, [200] * 3]]
    assert normalize_map(np.array([[1.0, 3.0], [2.0, 1.0]])).tolist() == [[0.0, 1.0], [0.5, 0.0]]
    assert normalize_map(np.zeros((1, 2))).tolist() == [[1.0, 1.0]]


def scene(key: str, left: float, kind: str) -> PointingScene:
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[8:16, int(left) : int(left) + 8] = 255
    return PointingScene(
        key, picture, np.zeros(48_000, np.float32), ((left, 8.0, left + 8.0, 16.0),), frozenset({kind})
    )


def test_the_pointing_game_by_hand_on_two_boxes():
    boxes = ((0.0, 0.0, 10.0, 10.0), (20.0, 5.0, 30.0, 15.0))
    points = ((5.0, 5.0), (25.0, 14.0), (15.0, 7.0), (25.0, 16.0), (10.0, 10.0))
    assert [is_inside_boxes(point, boxes) for point in points] == [True, True, False, False, True]
    scenes = [scene("a", 0.0, "bell"), scene("b", 12.0, "drum")]
    assert (
        score_center_pointing(scenes) == 0.5
    )  # (16, 16) lies on the edge of the second box, left of which the first one ends
    corner = torch.zeros(1, 4, 4)
    corner[0, 1, 0] = 1.0  # the cell of rows 8 to 15 and columns 0 to 7
    assert compute_pointing_accuracy(lambda _image, _sound: corner, scenes) == 0.5


def test_of_two_pictures_side_by_side_one_is_heard():
    first, second = scene("a", 0.0, "bell"), scene("b", 12.0, "drum")
    right = concatenate_scenes(first, second, is_left=False)
    assert right.image.shape == (32, 64, 3)
    assert right.boxes == ((32.0, 8.0, 40.0, 16.0),)
    assert np.array_equal(right.image[:, 32:], first.image)
    assert concatenate_scenes(first, second, is_left=True).boxes == first.boxes
    pairs = pair_scenes([first, second, scene("c", 4.0, "drum")], seed=0)
    assert [pair.key for pair in pairs] == ["a", "b", "c"]
    assert pair_scenes([second, scene("c", 4.0, "drum")], seed=0) == []  # the same kind: nobody could tell
    with pytest.raises(ValueError, match="no two have sounding objects of different kinds"):
        run_pointing_game(square_finder(), [first])


def test_a_network_that_finds_squares_wins_the_game_on_squares():
    scenes = [scene("a", 0.0, "bell"), scene("b", 16.0, "drum"), scene("c", 24.0, "fan")]
    found = run_pointing_game(square_finder(), scenes)
    assert found["trained"]["alone"] == found["contributions"]["alone"] == 1.0
    assert found["center"]["alone"] == pytest.approx(1 / 3)  # of the second
    assert set(found) == {"trained", "contributions", "untrained", "center"}


def test_avol_net_plays_the_game_without_contributions():
    config = AVENetConfig(32, 1.0, SMALL_SPECTROGRAM_CONFIG, 2, 1, embedding_dim=4, comparison="localization")
    torch.manual_seed(0)
    scenes = [scene("a", 0.0, "bell"), scene("b", 16.0, "drum"), scene("c", 24.0, "fan")]
    found = run_pointing_game(AVENet(config).eval(), scenes)
    assert set(found) == {"trained", "untrained", "center"}
    assert found["center"]["alone"] == pytest.approx(1 / 3)


def write_truth(path: Path, clips: int) -> Path:
    """Boxes in a picture of 80 x 64 pixels, whose frames the small world keeps at half the size."""
    lines = []
    for clip in range(clips):
        kind = "bell" if clip % 2 == 0 else "drum"
        bell = {"kind": kind, "sounding": True, "boxes": [[0, 0, 1, 1], [8, 0, 40, 64], [0, 0, 1, 1]]}
        star = {"kind": "star", "sounding": False, "boxes": [[0, 0, 80, 64]] * 3}
        lines.append({"key": f"clip{clip}", "height": 64, "box_seconds": [0.3, 1.0, 1.7], "objects": [bell, star]})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_boxes_come_to_the_square_in_the_middle_of_the_frame(tmp_path: Path):
    world = write_world(tmp_path / "w", 4)
    model = L3Net(
        L3NetConfig(width=1, image_size=28)
    ).eval()  # frames of 32 x 40: neither scaled nor cut but to a square
    scenes = read_pointing_scenes(world, write_truth(tmp_path / "worlds.jsonl", 3), model, 10)
    assert [found.key for found in scenes] == ["clip0", "clip1", "clip2"]
    assert scenes[0].image.shape == (32, 32, 3)
    # at 1.0 s: left 8 / 2 - 4 = 0, right 40 / 2 - 4 = 16; silent objects do not count
    assert scenes[0].boxes == ((0.0, 0.0, 16.0, 32.0),)
    assert scenes[0].kinds == {"bell"}


def test_a_truth_that_is_none_is_told(tmp_path: Path):
    world, model = write_world(tmp_path / "w", 2), L3Net(L3NetConfig(width=1, image_size=28)).eval()
    truth = tmp_path / "worlds.jsonl"
    with pytest.raises(DataError, match="No such file"):
        read_pointing_scenes(world, truth, model, 2)
    truth.write_text("hello\n")
    with pytest.raises(DataError, match=r"worlds\.jsonl, line 1: not JSON"):
        read_pointing_scenes(world, truth, model, 2)
    truth.write_text('{"key": "clip0", "height": 64}\n')
    with pytest.raises(DataError, match="line 1: no 'box_seconds'"):
        read_pointing_scenes(world, truth, model, 2)
    truth.write_text('{"key": "other", "height": 64, "box_seconds": [0], "objects": []}\n')
    with pytest.raises(DataError, match=r"none of its 1 videos is in .*; its first is clip0"):
        read_pointing_scenes(world, truth, model, 2)
