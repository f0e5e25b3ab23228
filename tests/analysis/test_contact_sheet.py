"""The contact sheet shows the clips that are in the shards."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from comodal.analysis.contact_sheet import draw_contact_sheet, draw_spectrogram, draw_waveform
from comodal.errors import DataError
from tests.support.small_world import write_world


@pytest.mark.parametrize("name", ["sheet.png", "sheet.jpg"])
def test_the_sheet_is_a_picture_of_the_asked_kind(tmp_path: Path, name: str):
    world = write_world(tmp_path / "w", 5)
    draw_contact_sheet(world, tmp_path / name, clips=3, frames=2)
    with Image.open(tmp_path / name) as picture:
        assert picture.format == {"png": "PNG", "jpg": "JPEG"}[name[-3:]]
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_more_clips_than_there_are_is_all_of_them(tmp_path: Path):
    world = write_world(tmp_path / "w", 2)
    draw_contact_sheet(world, tmp_path / "all.png", clips=50)
    draw_contact_sheet(world, tmp_path / "two.png", clips=2)
    assert (tmp_path / "all.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_the_waveform_keeps_every_peak():
    """One loud sample in a second must not fall between the 400 pieces that are drawn."""
    sound = np.zeros(48_000, np.float32)
    sound[31_234] = 0.75
    axes = Figure().subplots()
    draw_waveform(axes, sound, 48_000)
    corners = axes.collections[0].get_paths()[0].vertices
    loudest = corners[corners[:, 1].argmax()]
    assert loudest[1] == 0.75
    assert loudest[0] == pytest.approx(31_234 / 48_000, abs=1 / 200)


def test_the_spectrogram_shows_a_tone_at_its_pitch():
    rate, pitch = 16_000, 3000.0
    sound = np.sin(2 * np.pi * pitch * np.arange(rate) / rate).astype(np.float32)
    axes = Figure().subplots()
    draw_spectrogram(axes, sound, rate)
    image = axes.images[0]
    shown, (_, _, bottom, top) = image.get_array(), image.get_extent()
    row = int(np.asarray(shown).mean(1).argmax())
    assert bottom + (top - bottom) * row / (len(shown) - 1) == pytest.approx(pitch / 1000, abs=0.02)


def test_wrong_numbers_and_empty_folders_are_told(tmp_path: Path):
    with pytest.raises(ValueError, match=r"clips \(0\)"):
        draw_contact_sheet(tmp_path, tmp_path / "x.png", clips=0)
    with pytest.raises(DataError, match="no shards"):
        draw_contact_sheet(tmp_path, tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"start \(9\) is not one of 2 clips"):
        draw_contact_sheet(write_world(tmp_path / "w", 2), tmp_path / "x.png", start=9)
