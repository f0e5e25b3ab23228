"""What units respond to, on maps and shards whose truth is known."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from comodal.analysis.layer_activations import (
    POOL4,
    build_audio_tower_input,
    build_image_tower_input,
    max_channel_activations,
)
from comodal.analysis.pages.html_page import render_page, write_page_numbers
from comodal.analysis.pages.page_parts import PageSection
from comodal.analysis.reports.unit_report import (
    NUM_UNIT_EXAMPLES,
    build_unit_gallery,
    build_unit_parts,
    make_audio_cells,
    make_image_cells,
)
from comodal.analysis.tsne import compute_tsne, draw_tsne
from comodal.analysis.unit_activations import (
    ClipExamples,
    UnitActivation,
    compute_unit_heatmaps,
    rank_units,
    read_clip_examples,
)
from comodal.errors import DataError
from comodal.models.l3net.l3net import L3Net, L3NetConfig, make_small_l3net_config
from comodal.models.l3net.vgg import VGG_LAYER_NAMES
from tests.support.self_contained import check_page
from tests.support.small_world import write_world


def test_the_last_layer_s_largest_values_are_the_features_that_the_verdict_rests_on():
    torch.manual_seed(0)
    model = L3Net(L3NetConfig(width=1, image_size=24)).eval()
    image, sound = torch.randint(0, 256, (3, 3, 24, 24), dtype=torch.uint8), 0.1 * torch.randn(3, 48_000)
    with torch.inference_mode():
        output = model(image, sound)
    seen, heard = (
        max_channel_activations(build_image_tower_input(model), image),
        max_channel_activations(build_audio_tower_input(model), sound),
    )
    assert list(seen) == list(heard) == [f"conv{block}_{layer}" for block in range(1, 5) for layer in (1, 2)]
    assert np.allclose(seen[POOL4], output.image_features.numpy(), atol=1e-6)
    assert np.allclose(heard[POOL4], output.audio_features.numpy(), atol=1e-6)


def test_a_choosy_unit_comes_before_one_that_fires_for_all_and_dead_ones_last():
    activations = np.random.default_rng(0).uniform(0.0, 1.0, (50, 3))
    activations[:, 0] = 0.0
    activations[:, 1] = 0.0
    activations[[4, 9], 1] = 5.0, 6.0
    ranked = rank_units(activations, 3, 2)
    assert [unit.channel for unit in ranked] == [1, 2, 0]
    assert ranked[0].examples.tolist() == [9, 4]
    assert ranked[0].activations.tolist() == [6.0, 5.0]


def test_heat_is_where_the_unit_fires():
    maps = torch.zeros(3, 2, 4, 4)
    maps[2, 1, 0, 3] = 5.0
    maps[0, 1, 3, 0] = 0.5
    heat = compute_unit_heatmaps(
        lambda rows: rows, maps, UnitActivation(1, np.array([2, 0]), np.array([5.0, 0.5])), (32, 48)
    )
    assert heat.shape == (2, 32, 48)
    assert heat[0, 0, 47] == heat[1, 31, 0] == 1.0
    assert heat[0, 16:].max() == heat[1, :16].max() == 0.0


def test_a_example_is_the_middle_frame_and_the_second_around_it(tmp_path: Path):
    """In this world a brighter picture has a higher tone, so the two must keep their order."""
    model = L3Net(L3NetConfig(width=1, image_size=24)).eval()
    examples = read_clip_examples(write_world(tmp_path / "w", 6), model, 6)
    assert examples.names == tuple(f"clip{clip}" for clip in range(6))
    light = examples.image.float().mean((1, 2, 3))
    pitch = torch.fft.rfft(examples.audio).abs().argmax(-1).float()  # of one second: in hertz
    assert torch.equal(light.argsort(), pitch.argsort())


def test_a_wrong_sample_rate_is_told(tmp_path: Path):
    folder = write_world(tmp_path / "w", 2, rate=16_000)
    with pytest.raises(DataError, match="16000 Hz; the model needs 48000 Hz"):
        read_clip_examples(folder, L3Net(L3NetConfig(width=1, image_size=24)), 2)


def test_examples_have_labels_only_if_all_clips_have(tmp_path: Path):
    model = L3Net(L3NetConfig(width=1, image_size=24)).eval()
    assert read_clip_examples(write_world(tmp_path / "w", 2), model, 2).labels == ()


def test_galleries_show_a_row_for_each_unit_and_let_sounds_be_heard(tmp_path: Path):
    model = L3Net(make_small_l3net_config(1, 24)).eval()
    examples = read_clip_examples(write_world(tmp_path / "w", 4), model, 4)
    seen = build_unit_gallery(build_image_tower_input(model), examples.image, (), make_image_cells(examples))
    heard = build_unit_gallery(build_audio_tower_input(model), examples.audio, (), make_audio_cells(model, examples))
    pages = [render_page("units", [PageSection("units", "", blocks)]) for blocks in (seen, heard)]
    rows = 8 + 4 + 2  # pool4 has 8 units of a network of width 1, conv3_2 four, conv2_2 two; four examples each
    for page in map(check_page, pages):
        assert page.count_class("row") == rows
        assert page.tags.count("img") == 4 * rows
    assert "<audio" not in pages[0]
    played = re.findall(r'src="data:audio/mpeg;base64,([^"]+)"', pages[1])
    assert len(played) == 4 * rows
    sound, rate = soundfile.read(io.BytesIO(base64.b64decode(played[0])))
    first = rank_units(
        max_channel_activations(build_audio_tower_input(model), examples.audio)[POOL4], 1, NUM_UNIT_EXAMPLES
    )[0].examples[0]
    spectra = [np.abs(np.fft.rfft(wave[:44_000])) for wave in (sound, examples.audio[int(first)].numpy())]
    assert rate == 48_000
    assert abs(int(spectra[0].argmax()) - int(spectra[1].argmax())) <= 2  # the same tone


def test_without_labels_of_several_classes_there_is_no_study(tmp_path: Path):
    model = L3Net(make_small_l3net_config(1, 24)).eval()
    examples = read_clip_examples(write_world(tmp_path / "w", 4), model, 4)
    assert len(build_unit_parts(model, examples)) == 2
    labelled = ClipExamples(examples.image, examples.audio, examples.names, ("high", "low", "high", "low"))
    study = build_unit_parts(model, labelled)[2]
    page = check_page(render_page("units", [study]))
    assert [table.caption for table in page.tables] == ["Image tower", "Audio tower"]
    assert [row[0] for row in page.tables[0].rows[1:-1]] == list(VGG_LAYER_NAMES[:-1])
    assert "the 2 classes of 4 held-out examples" in page.text
    assert study.numbers["image"]["examples"] == 4 and study.numbers["audio"]["classes"] == ["high", "low"]
    cells = [row[1] for row in page.tables[0].rows[1:]]
    systems = ("trained", "untrained", "shuffled")
    for layer, cell in zip(VGG_LAYER_NAMES, cells, strict=True):
        assert cell == " | ".join(f"{study.numbers['image'][one][layer]['clusters_nmi']:.3f}" for one in systems)


def test_the_numbers_of_a_page_are_next_to_it(tmp_path: Path):
    sections = [PageSection("One", numbers={"a": 1}), PageSection("Two"), PageSection("Three", numbers={"b": [0.5]})]
    write_page_numbers(tmp_path / "deep" / "page.html", sections)
    assert json.loads((tmp_path / "deep" / "page.json").read_text()) == {"One": {"a": 1}, "Three": {"b": [0.5]}}
    write_page_numbers(tmp_path / "other.html", sections[1:2])
    assert not (tmp_path / "other.json").exists()


def test_neighbors_in_the_plane_are_neighbors_in_the_features():
    """Three tight clusters in 64 dimensions stay three; the order of units and their scale do not matter."""
    rng = np.random.default_rng(0)
    kinds = np.arange(45) % 3
    features = 10 * rng.normal(size=(3, 64))[kinds] + rng.normal(size=(45, 64))
    for seen in (features, features[:, ::-1] * 7 - 3):
        points = compute_tsne(seen, seed=1)
        gaps = np.linalg.norm(points[:, None] - points, axis=-1) + np.diag(np.full(45, np.inf))
        assert (kinds[gaps.argmin(1)] == kinds).all()
    assert np.array_equal(compute_tsne(features, seed=1), compute_tsne(features, seed=1))
    with pytest.raises(ValueError, match="4 examples"):
        compute_tsne(features[:3], seed=1)


@pytest.mark.slow
def test_the_plane_has_a_legend_of_the_classes(tmp_path: Path):
    model = L3Net(make_small_l3net_config(1, 24)).eval()
    examples = read_clip_examples(write_world(tmp_path / "w", 12, classes=("a", "b", "c")), model, 12)
    part = build_unit_parts(model, examples)[3]
    assert part.numbers["labels"] == list(examples.labels)
    assert np.array(part.numbers["audio tower"]).shape == (12, 2)
    figure = draw_tsne({"x": np.array(part.numbers["image tower"])}, examples.labels)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == sorted(set(examples.labels))
    assert sum(len(one.get_offsets()) for one in figure.axes[0].collections) == 12
