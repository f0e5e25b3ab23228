"""Images and audio in every form that people have them in, against the same one read from its file."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from comodal.errors import MediaError
from comodal.media.user_inputs import to_path_list, to_rgb_array, to_rgb_arrays, to_waveform

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
CHANNELS = np.random.default_rng(1).uniform(-0.9, 0.9, (500, 2))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture
def stereo(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "a.wav", CHANNELS, 8_000, subtype="FLOAT")
    return tmp_path / "a.wav"


def test_an_image_is_the_same_in_every_form(picture: Path):
    forms = [picture, str(picture), Image.fromarray(PIXELS), PIXELS, torch.from_numpy(PIXELS).permute(2, 0, 1)]
    forms.append(np.dstack([PIXELS, np.full((6, 9), 255, np.uint8)]))  # opaque
    for form in forms:
        assert np.array_equal(to_rgb_array(form), PIXELS)


def test_gray_images_become_rgb_and_transparent_ones_black():
    gray = PIXELS[:, :, 0]
    for form in (gray, gray[:, :, None], torch.from_numpy(gray)[None], Image.fromarray(gray)):
        assert np.array_equal(to_rgb_array(form), np.dstack([gray] * 3))
    assert not to_rgb_array(np.dstack([PIXELS, np.zeros((6, 9), np.uint8)])).any()


def test_a_pil_image_is_turned_as_its_file_would_be(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(PIXELS).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        assert np.array_equal(to_rgb_array(image), np.rot90(PIXELS, -1))
    assert np.array_equal(to_rgb_array(tmp_path / "turned.png"), np.rot90(PIXELS, -1))


def test_several_images_come_as_a_list_an_array_or_a_tensor(picture: Path):
    several = np.stack([PIXELS, 255 - PIXELS])
    for form in (several, torch.from_numpy(several).permute(0, 3, 1, 2), [PIXELS, Image.fromarray(255 - PIXELS)]):
        assert all(np.array_equal(*both) for both in zip(to_rgb_arrays(form), several, strict=True))
    assert len(to_rgb_arrays(str(picture))) == 1


@pytest.mark.parametrize(
    ("wrong", "error", "told"),
    [
        (PIXELS / 255, TypeError, "pixels of float64: pass bytes"),
        (torch.rand(3, 6, 9), TypeError, "pixels of float32: pass bytes"),
        (PIXELS.transpose(2, 0, 1), ValueError, r"\(3, 6, 9\)"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"\(0, 4, 3\)"),
        (None, TypeError, "got NoneType for an image"),
        ({"image": PIXELS}, TypeError, "got dict for an image"),
        ([], ValueError, "no images"),
        (Path("nowhere.png"), MediaError, "nowhere.png"),
    ],
)
def test_what_is_no_image_is_refused_in_a_sentence(wrong: object, error: type[Exception], told: str):
    with pytest.raises(error, match=told):
        to_rgb_arrays(wrong)


def test_a_sound_is_the_same_in_every_form(stereo: Path):
    """The mean of its channels, full scale at 1."""
    mean = CHANNELS.astype(np.float32).mean(axis=1)
    tensor = torch.from_numpy(CHANNELS.T.astype(np.float32))
    for form in (stereo, str(stereo), CHANNELS, CHANNELS.astype(np.float32), tensor, mean, torch.from_numpy(mean)):
        samples, rate = to_waveform(form, None if isinstance(form, str | Path) else 8_000)
        assert rate == 8_000
        assert np.allclose(samples, mean, atol=1e-6)


def test_whole_numbers_are_pcm():
    assert to_waveform(np.array([-32768, 0, 16384], np.int16), 8_000).samples.tolist() == [-1, 0, 0.5]
    assert to_waveform(np.array([0, 128, 192], np.uint8), 8_000).samples.tolist() == [-1, 0, 0.5]
    assert to_waveform(torch.tensor([-(2**31), 2**30], dtype=torch.int32), 8_000).samples.tolist() == [-1, 0.5]


@pytest.mark.parametrize(
    ("wrong", "rate", "error", "told"),
    [
        (np.zeros((2, 500)), 8_000, ValueError, "500 channels and 2 samples"),
        (np.zeros(0), 8_000, ValueError, r"\(0,\)"),
        (np.zeros((3, 4, 5)), 8_000, ValueError, r"\(3, 4, 5\)"),
        (np.array([0.0, np.nan]), 8_000, ValueError, "not finite"),
        (np.array([0.0, np.inf]), 8_000, ValueError, "not finite"),
        (np.zeros(9), None, ValueError, "needs its sample rate"),
        (np.zeros(9), 0, ValueError, "needs its sample rate"),
        (np.zeros(9, complex), 8_000, TypeError, "complex128"),
        ([0.0, 0.1], 8_000, TypeError, "got list for audio"),
        (Path("nowhere.wav"), None, MediaError, "nowhere.wav"),
    ],
)
def test_what_is_no_sound_is_refused_in_a_sentence(wrong, rate, error: type[Exception], told: str):
    with pytest.raises(error, match=told):
        to_waveform(wrong, rate)


def test_paths_are_texts_or_paths_one_or_several():
    assert to_path_list("a.wav") == to_path_list(Path("a.wav")) == to_path_list(["a.wav"]) == [Path("a.wav")]
    with pytest.raises(TypeError, match="got int; pass a path"):
        to_path_list([3])
    with pytest.raises(TypeError, match="got ndarray of"):
        to_path_list(PIXELS)
