"""Front ends against closed forms: where a tone lies, how many frames there are, what silence becomes."""

import math

import pytest
import torch
from torch.testing import assert_close

from comodal.models.l3net import spectrogram as front_ends
from comodal.models.l3net.l3net import L3NetConfig
from comodal.models.l3net.mel_filters import hertz_to_mel, make_mel_filter_bank, mel_to_hertz
from comodal.models.l3net.spectrogram import Spectrogram, SpectrogramConfig

SECOND = torch.arange(48_000) / 48_000


def tone(hertz: float, amplitude: float = 1.0) -> torch.Tensor:
    return (amplitude * torch.sin(2 * math.pi * hertz * SECOND)).unsqueeze(0)


@pytest.mark.parametrize(
    ("config", "bands", "frames"),
    [
        (front_ends.PAPER_SPECTROGRAM_CONFIG, 257, 199),  # L3-Net, section 3.1
        (front_ends.L3EMBEDDING_SPECTROGRAM_CONFIG, 257, 197),  # l3embedding, audio_model.py
        (front_ends.make_openl3_spectrogram_config("linear", "kapre014"), 257, 197),  # OpenL3's models
        (front_ends.make_openl3_spectrogram_config("mel128", "kapre014"), 128, 199),
        (front_ends.make_openl3_spectrogram_config("mel256", "kapre03"), 256, 199),
        (front_ends.make_openl3_spectrogram_config("mel256", "librosa"), 256, 199),
    ],
)
def test_one_second_has_the_published_size(config: SpectrogramConfig, bands: int, frames: int):
    assert Spectrogram(config)(tone(440)).shape == (1, 1, bands, frames)


def test_a_tone_in_the_middle_of_a_bin_has_half_the_windows_sum():
    """Bins are 48000 / 512 Hz apart; a Hann window of 480 sums to 240, so a sine of 0.5 has the magnitude 60."""
    levels = Spectrogram(front_ends.PAPER_SPECTROGRAM_CONFIG)(tone(32 * 48_000 / 512, 0.5))[0, 0]
    assert torch.all(levels.argmax(0) == 32)
    assert_close(levels[32], torch.full((199,), math.log(60 + 1e-4)), atol=1e-3, rtol=0)


def test_the_paper_and_l3embedding_floors():
    silence = torch.zeros(1, 48_000)
    paper = Spectrogram(front_ends.PAPER_SPECTROGRAM_CONFIG)(silence)
    assert_close(paper, torch.full_like(paper, math.log(1e-4)))
    original = Spectrogram(front_ends.L3EMBEDDING_SPECTROGRAM_CONFIG)(silence)
    assert_close(original, torch.full_like(original, math.log(1e-12) / 5))


@pytest.mark.parametrize("frontend", ["kapre014", "kapre03", "librosa"])
def test_silence_looks_like_the_loudest_noise_in_every_openl3(frontend: front_ends.Frontend):
    """The trap of normalising by the maximum; 0 dB everywhere, and -80 where a real sound has nothing."""
    layer = Spectrogram(front_ends.make_openl3_spectrogram_config("mel128", frontend))
    assert torch.all(layer(torch.zeros(1, 48_000)) == 0)
    click = torch.zeros(1, 48_000)
    click[0, 24_000] = 1
    assert layer(click).amin() == -80


def test_decibels_do_not_depend_on_loudness():
    layer = Spectrogram(front_ends.make_openl3_spectrogram_config("mel128", "kapre014"))
    noise = torch.randn(1, 48_000, generator=torch.Generator().manual_seed(0))
    assert_close(layer(noise), layer(noise * 0.25), atol=1e-4, rtol=0)


def test_a_sound_ten_times_as_loud_is_ten_decibels_up():
    """kapre takes 10, not 20, times the logarithm of a magnitude."""
    quiet = torch.ones(1, 1, 1) * 0.1
    assert_close(
        front_ends.magnitude_to_decibels(torch.cat([quiet, quiet * 10], 1))[0, :, 0], torch.tensor([-10.0, 0.0])
    )


def test_autocast_leaves_the_spectrogram_alone():
    layer, noise = (
        Spectrogram(front_ends.SMALL_SPECTROGRAM_CONFIG),
        torch.randn(2, 48_000, generator=torch.Generator().manual_seed(0)),
    )
    plain = layer(noise)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(noise), plain)


def test_a_spectrogram_has_no_weights_to_save():
    assert Spectrogram(front_ends.make_openl3_spectrogram_config("mel128", "kapre014")).state_dict() == {}


def test_a_window_longer_than_the_transform_is_refused():
    with pytest.raises(ValueError, match="window_samples \\(600\\) must not exceed n_fft \\(512\\)"):
        Spectrogram(SpectrogramConfig(window_samples=600))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sample_rate", 0), ("sample_rate", 10**9), ("hop_samples", 0), ("mel_bands", -1), ("floor", -1.0),
        ("floor", 0.0), ("floor", float("nan")), ("floor", float("inf")), ("n_fft", 0), ("window_samples", 0),
        ("zeros_before", -1), ("zeros_after", 1 << 30),
    ],
)  # fmt: skip
def test_a_spectrogram_that_cannot_be_computed_is_refused(name: str, value: float):
    with pytest.raises(ValueError, match=f"^{name} is a number from .*, got {value}"):
        SpectrogramConfig(**{name: value})


def test_audio_of_less_than_one_window_is_refused():
    with pytest.raises(ValueError, match=r"audio_seconds \(0\.005\) are 240 samples"):
        L3NetConfig(audio_seconds=0.005)


def test_the_mel_scales_at_points_from_the_literature():
    """HTK: 1000 Hz is 2595 log10(1 + 10/7) mel. Slaney: 1000 Hz is 15, and each 27 above multiplies by 6.4."""
    thousand = torch.tensor([1000.0, 6400.0], dtype=torch.float64)
    assert_close(hertz_to_mel(thousand, "htk")[0].item(), 2595 * math.log10(1 + 10 / 7))
    assert_close(hertz_to_mel(thousand, "slaney"), torch.tensor([15.0, 42.0], dtype=torch.float64))
    for scale in ("htk", "slaney"):
        hertz = torch.linspace(0, 24_000, 50, dtype=torch.float64)
        assert_close(mel_to_hertz(hertz_to_mel(hertz, scale), scale), hertz)


@pytest.mark.parametrize("scale", ["htk", "slaney"])
def test_a_wide_filter_has_area_one(scale: str):
    """The sum over bins times their distance is the integral; narrow filters fall between bins."""
    filters = make_mel_filter_bank(48_000, 16_384, 64, scale)
    assert_close(filters.sum(1) * 48_000 / 16_384, torch.ones(64), atol=0.02, rtol=0)


def test_two_of_256_htk_filters_are_empty():
    """As in librosa and kapre, where those bands stay at the floor."""
    assert int((make_mel_filter_bank(48_000, 2048, 256, "htk").sum(1) == 0).sum()) == 2
