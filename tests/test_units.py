"""What units respond to, on maps and shards whose truth is known."""

from pathlib import Path

import numpy as np
import pytest
import torch

from comodal.analysis.units import (
    Unit,
    draw_image_units,
    draw_sound_units,
    heat_maps,
    rank_units,
    read_moments,
    strongest,
)
from comodal.errors import DataError
from comodal.models.l3net import Config, L3Net
from small_world import write_world


def test_the_strongest_value_anywhere_in_the_map_counts():
    maps = torch.zeros(20, 3, 4, 5)
    maps[7, 1, 3, 2] = 9.0
    maps[:, 2] = -1.0
    found = strongest(lambda rows: rows, maps)
    assert found.shape == (20, 3)
    assert found[7].tolist() == [0.0, 9.0, -1.0]


def test_a_choosy_unit_comes_before_one_that_fires_for_all_and_dead_ones_last():
    activations = np.random.default_rng(0).uniform(0.0, 1.0, (50, 3))
    activations[:, 0] = 0.0
    activations[:, 1] = 0.0
    activations[[4, 9], 1] = 5.0, 6.0
    ranked = rank_units(activations, 3, 2)
    assert [unit.channel for unit in ranked] == [1, 2, 0]
    assert ranked[0].moments.tolist() == [9, 4]
    assert ranked[0].strengths.tolist() == [6.0, 5.0]


def test_heat_is_where_the_unit_fires():
    maps = torch.zeros(3, 2, 4, 4)
    maps[2, 1, 0, 3] = 5.0
    maps[0, 1, 3, 0] = 0.5
    heat = heat_maps(lambda rows: rows, maps, Unit(1, np.array([2, 0]), np.array([5.0, 0.5])), (32, 48))
    assert heat.shape == (2, 32, 48)
    assert heat[0, 0, 47] == heat[1, 31, 0] == 1.0
    assert heat[0, 16:].max() == heat[1, :16].max() == 0.0


def test_a_moment_is_the_middle_frame_and_the_second_around_it(tmp_path: Path):
    """In this world a brighter picture has a higher tone, so the two must keep their order."""
    model = L3Net(Config(width=1, image_size=24)).eval()
    moments = read_moments(write_world(tmp_path / "w", 6), model, 6)
    assert moments.names == tuple(f"clip{clip}" for clip in range(6))
    light = moments.image.float().mean((1, 2, 3))
    pitch = torch.fft.rfft(moments.sound).abs().argmax(-1).float()  # of one second: in hertz
    assert torch.equal(light.argsort(), pitch.argsort())


def test_a_wrong_sample_rate_is_told(tmp_path: Path):
    folder = write_world(tmp_path / "w", 2, rate=16_000)
    with pytest.raises(DataError, match="16000 samples a second; the model hears 48000"):
        read_moments(folder, L3Net(Config(width=1, image_size=24)), 2)


def test_figures_show_a_row_for_each_unit(tmp_path: Path):
    model = L3Net(Config(width=1, image_size=24)).eval()
    moments = read_moments(write_world(tmp_path / "w", 4), model, 4)
    for figure in (draw_image_units(model, moments, 2, 3), draw_sound_units(model, moments, 2, 3)):
        assert len(figure.axes) == 6
        figure.canvas.draw()
